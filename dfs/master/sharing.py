"""Subtrees that belong to several trees at once: how a snapshot costs nothing, and a change copies one directory.

Owns: sharing a directory, and giving one a table of its own before it changes. Refuses to know: why this is done.

What is shared is the table of entries, with all nodes in it; `EntryTable.sharers` counts the directories that have
it. Only `Namespace.locate`, on its way from the root, and `own_below` make tables single again: what they return may be
changed. Sharing is a matter of memory alone: no reply depends on it, and a dump keeps it. See docs/adr/0017.
"""

from __future__ import annotations

from collections.abc import Callable

from dfs.master.entries import EntryTable
from dfs.master.nodes import Directory, File, Node


def share(directory: Directory) -> Directory:
    """Return another directory that is the same as this one, inode, time and all. O(1)."""
    directory.entries.sharers += 1
    return _detached(directory)


def _detached(directory: Directory) -> Directory:
    twin = Directory(directory.inode, directory.mtime_ms)
    twin.entries = directory.entries
    take_totals(twin, directory)
    return twin


def take_totals(directory: Directory, source: Directory) -> None:
    directory.file_count, directory.directory_count = source.file_count, source.directory_count
    directory.size, directory.stored_size = source.size, source.stored_size


def exchange(directory: Directory, source: Directory) -> Directory:
    """Let a directory share the content of another one; return a detached directory with its content before. O(1).

    The totals of the directories above are the caller's.
    """
    before = _detached(directory)
    source.entries.sharers += 1
    directory.entries, directory.mtime_ms = source.entries, source.mtime_ms
    take_totals(directory, source)
    return before


def own(directory: Directory, reference: Callable[[File], None]) -> EntryTable[Node]:
    """Give a directory a table that is its own, with files of its own, O(entries); subdirectories stay shared.

    `reference` counts the chunks of a file that has come into being.
    """

    def twin(node: Node) -> Node:
        if isinstance(node, Directory):
            return share(node)
        made: File = node.__copy__()  # type: ignore[attr-defined]  # what copy.copy calls, at a third of its time
        reference(made)
        return made

    shared = directory.entries
    if shared.sharers == 1:
        return shared
    shared.sharers -= 1
    directory.entries = shared.mapped(twin)
    return directory.entries


def own_below(node: Node, reference: Callable[[File], None]) -> None:
    """Let a subtree share nothing, O(nodes)."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, Directory):
            stack.extend(own(node, reference).nodes())
