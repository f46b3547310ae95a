"""The nodes of a tree: files and directories.

Owns: their fields, and the totals of a directory. Refuses to know: paths, and the tree they stand in.

A node knows neither its name nor its parent: it may stand in several trees at once (dfs.master.state.sharing).
"""

from __future__ import annotations

from collections.abc import Iterable
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
        account((self,), node, sign)


Node: TypeAlias = File | Directory


def account(chain: Iterable[Directory], node: Node, sign: int) -> None:
    """Do what `Directory.account` does for all of `chain`, the directories above `node`."""
    if isinstance(node, File):
        file_count, directory_count, size = sign, 0, sign * node.size
        stored_size = size * node.replication
    else:
        file_count, directory_count = sign * node.file_count, sign * (node.directory_count + 1)
        size, stored_size = sign * node.size, sign * node.stored_size
    for directory in chain:
        directory.file_count += file_count
        directory.directory_count += directory_count
        directory.size += size
        directory.stored_size += stored_size


def count_nodes(node: Node) -> int:
    """Return how many files and directories a subtree has, its top included."""
    return 1 if isinstance(node, File) else node.file_count + node.directory_count + 1


def stored_size_of(node: Node) -> int:
    """Return the bytes of a subtree with all replicas."""
    return node.size * node.replication if isinstance(node, File) else node.stored_size
