"""Snapshots as a program sees them: make, list, compare, go back, remove.

Owns: these calls. Refuses to know: how a leader is found, and how two trees are compared (dfs.client.tree_changes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from dfs import paths
from dfs.client.calls import Calls
from dfs.client.discovery import Masters
from dfs.client.tree_changes import Change, compare_trees
from dfs.clock import Deadline
from dfs.errors import InvalidArgument
from dfs.net.messages import (
    CreateSnapshot,
    ListSnapshots,
    ListSnapshotsReply,
    Message,
    Mutation,
    RemoveSnapshot,
    RestoreSnapshot,
    SnapshotReply,
    StatReply,
)
from dfs.net.parts import CallId, FileStatus, SnapshotStatus

T = TypeVar("T", bound=Message)


class Snapshots:
    """The snapshots of directories; `directory` is always the path of the live one."""

    def __init__(
        self, masters: Masters, calls: Calls, timeout_s: float, list_directory: Callable[[str], Iterator[FileStatus]]
    ) -> None:
        self._masters = masters
        self._calls = calls
        self._timeout_s = timeout_s
        self._list_directory = list_directory

    def path(self, directory: str, name: str) -> str:
        """Return where the content of a snapshot is read."""
        paths.check_name(name)
        return paths.join(paths.join(paths.normalise(directory), paths.SNAPSHOTS), name)

    def create(self, directory: str, name: str) -> SnapshotStatus:
        """Keep a directory as it is now, at once and whatever its size; raise `AlreadyExists`."""
        directory = paths.normalise(directory)
        return self._change(lambda call: CreateSnapshot(call, directory, name), SnapshotReply).snapshot

    def remove(self, directory: str, name: str) -> SnapshotStatus:
        """Give a snapshot up: what only it held is released. Returns what it was."""
        directory = paths.normalise(directory)
        return self._change(lambda call: RemoveSnapshot(call, directory, name), SnapshotReply).snapshot

    def restore(self, directory: str, name: str, inner: str = "", *, safety_name: str = "") -> FileStatus:
        """Make a directory, or what is at `inner` in it, what it was in a snapshot, atomically.

        With `safety_name` the directory as it is now is kept in a snapshot of that name; without, what is there now
        and in no snapshot is released.
        """
        directory = paths.normalise(directory)
        inner = paths.normalise(inner)[1:] if inner else ""
        return self._change(lambda call: RestoreSnapshot(call, directory, name, inner, safety_name), StatReply).status

    def list(self, path: str = "/") -> Iterator[SnapshotStatus]:
        """Yield the snapshots of a directory and of those in it, by directory and name."""
        path, after = paths.normalise(path), ("", "")
        while True:
            reply = self._masters.call(ListSnapshots(path, *after), ListSnapshotsReply, Deadline.after(self._timeout_s))
            yield from reply.entries
            if not reply.has_more or not reply.entries:
                return
            after = reply.entries[-1].directory, reply.entries[-1].name

    def changes(self, directory: str, old: str, new: str = "") -> Iterator[Change]:
        """Yield what changed between two snapshots, or from a snapshot to the present (`new` ""), by path.

        Both trees are listed: it takes a call for each thousand entries. Renames are recognised by inode.
        """
        if old == new:
            raise InvalidArgument(f"snapshot {old!r} is compared with itself; name two")
        before = self.path(directory, old)
        after = self.path(directory, new) if new else paths.normalise(directory)
        yield from compare_trees(
            lambda inner: self._list_directory(paths.join(before, inner) if inner else before),
            lambda inner: self._list_directory(paths.join(after, inner) if inner else after),
        )

    def _change(self, build: Callable[[CallId], Mutation], reply: type[T]) -> T:
        return self._calls.call(build, reply, Deadline.after(self._timeout_s))
