"""The nodes of a tree: files and directories.

Owns: their fields, and the totals of a directory. Refuses to know: paths, and the tree they stand in.

A node knows neither its name nor its parent: it may stand in several trees at once (dfs.master.state.sharing).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from dfs.master.state.entries import EntryTable


class File(msgspec.Struct, gc=False):
    """A file's attributes and content. Not tracked by the garbage collector: it holds no container."""

    inode: int
    version: int
    mtime_ms: int
    replication: int
    size: int
    extents: bytes  # see dfs.master.state.extents


class Directory:
    """A directory and the totals of all below it, itself not counted."""

    __slots__ = ("directory_count", "entries", "file_count", "inode", "mtime_ms", "size", "stored_size")

    def __init__(self, inode: int, mtime_ms: int) -> None:
        self.inode = inode
        self.mtime_ms = mtime_ms
        self.entries: EntryTable[Node] = EntryTable()
        self.file_count = 0
        self.directory_count = 0
        self.size = 0
        self.stored_size = 0  # size times replication, summed over files

    def account(self, node: Node, sign: int) -> None:
        """Add (`sign` 1) or take away (-1) what `node` counts for in the directories above it."""
        if isinstance(node, File):
            self.file_count += sign
            self.size += sign * node.size
            self.stored_size += sign * node.size * node.replication
        else:
            self.file_count += sign * node.file_count
            self.directory_count += sign * (node.directory_count + 1)
            self.size += sign * node.size
            self.stored_size += sign * node.stored_size


Node: TypeAlias = File | Directory


def count_nodes(node: Node) -> int:
    """Return how many files and directories a subtree has, its top included."""
    return 1 if isinstance(node, File) else node.file_count + node.directory_count + 1


def stored_size_of(node: Node) -> int:
    """Return the bytes of a subtree with all replicas."""
    return node.size * node.replication if isinstance(node, File) else node.stored_size
