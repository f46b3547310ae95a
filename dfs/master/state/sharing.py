"""Subtrees that belong to several trees at once: how a snapshot costs nothing, and a change copies one directory.

Owns: sharing a directory, and giving one a table of its own before it changes, at once or step by step.
Refuses to know: why this is done.

What is shared is the table of entries, with all nodes in it; `EntryTable.sharers` counts the directories that have
it. Only `Namespace.locate`, on its way from the root, and `own_below` make tables single again: what they return may be
changed. Sharing is a matter of memory alone: no outcome depends on it, and a dump keeps it. See docs/adr/0017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dfs.errors import Overloaded
from dfs.master.state.entries import EntryTable
from dfs.master.state.nodes import Directory, File, Node

AT_ONCE_MAX = 50_000  # entries of a table that is copied within one command: 35 milliseconds
STEP_MAX = 10_000  # entries of a larger one that are copied after each command: 20 milliseconds


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


class Separation:
    """A table of its own in the making for one of the directories that share `table`, from its first name on."""

    __slots__ = ("made", "table")

    def __init__(self, table: EntryTable[Node], made: Directory) -> None:
        self.table = table
        self.made = made  # a detached directory that holds the new table; its totals mean nothing

    @property
    def is_complete(self) -> bool:
        return len(self.made.entries) == len(self.table)


class Sharing:
    """Makes shared tables single. `reference` counts the chunks of a file that comes into being, `release` gives up a
    subtree."""

    def __init__(self, reference: Callable[[File], None], release: Callable[[Node], None]) -> None:
        self._reference = reference
        self._release = release
        self._separations: dict[int, Separation] = {}  # by id of the table, oldest first

    def __len__(self) -> int:
        return len(self._separations)

    @property
    def is_pending(self) -> bool:
        """Whether the next steps have something to do."""
        return any(not separation.is_complete for separation in self._separations.values())

    def separations(self) -> Iterator[Separation]:
        """Yield the separations that go on or wait for their directory, oldest first."""
        yield from self._separations.values()

    def own(self, directory: Directory) -> None:
        """Give a directory a table that is its own, with files of its own; its subdirectories stay shared.

        A table of more than AT_ONCE_MAX entries is copied in steps: raise `Overloaded` until that is done.
        """
        table = directory.entries
        if table.sharers == 1:
            return
        separation = self._separations.get(id(table))
        if separation is None and len(table) > AT_ONCE_MAX:
            separation = Separation(table, Directory(directory.inode, directory.mtime_ms))
            self._separations[id(table)] = separation
        if separation is None:
            directory.entries = table.mapped(self._twin)
        elif separation.is_complete:
            directory.entries = separation.made.entries
            del self._separations[id(table)]
        else:
            raise Overloaded(
                f"a directory of {len(table)} entries changes for the first time since a snapshot, and is being copied "
                f"({len(separation.made.entries)} are done); try again in a moment"
            )
        self.leave(table)

    def own_below(self, node: Node) -> None:
        """Let a subtree share nothing, O(nodes), at once."""
        stack = [node]
        while stack:
            node = stack.pop()
            if isinstance(node, Directory):
                if (table := node.entries).sharers > 1:
                    node.entries = table.mapped(self._twin)
                    self.leave(table)
                stack.extend(node.entries.nodes())

    def leave(self, table: EntryTable[Node]) -> None:
        """Count a directory less that shares a table. The last one may change it: what was copied of it goes."""
        table.sharers -= 1
        if table.sharers == 1 and (separation := self._separations.pop(id(table), None)) is not None:
            self._release(separation.made)

    def step(self) -> None:
        """Copy at most STEP_MAX entries of the oldest separation that is not complete."""
        for separation in self._separations.values():
            if not separation.is_complete:
                made = separation.made.entries
                for name, node in separation.table.page(made.last_name(), STEP_MAX)[0]:
                    made.add(name, self._twin(node))
                return

    def restore(self, table: EntryTable[Node], made: Directory) -> None:
        """Take in a separation of a dump."""
        self._separations[id(table)] = Separation(table, made)

    def _twin(self, node: Node) -> Node:
        if isinstance(node, Directory):
            return share(node)
        made: File = node.__copy__()  # type: ignore[attr-defined]  # what copy.copy calls, at a third of its time
        self._reference(made)
        return made
