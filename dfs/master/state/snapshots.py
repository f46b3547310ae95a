"""The snapshots of directories: kept subtrees that no command changes, by the path of their directory.

Owns: which snapshots there are, their totals, and finding nodes in them. Refuses to know: the live tree, how a subtree
comes to be shared (dfs.master.state.sharing), and who makes snapshots when.

The snapshots of one directory stand in a *shelf*: a directory of its own that is what `DIRECTORY/.snapshot` shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dfs.errors import NotFound
from dfs.master.state.namespace import descend, shown
from dfs.master.state.nodes import Directory, Node
from dfs.net.parts import SnapshotStatus
from dfs.paths import is_below

SNAPSHOTS_MAX = 10_000  # in all; each may come to hold a whole tree of nodes of its own


class Shelf:
    """The snapshots of one directory: `content` has their roots by name, `created_ms` when each was made."""

    __slots__ = ("content", "created_ms")

    def __init__(self, inode: int, now_ms: int) -> None:
        self.content = Directory(inode, now_ms)
        self.created_ms: dict[str, int] = {}


class SnapshotTable:
    """Shelves by the path of their directory; none is empty."""

    def __init__(self) -> None:
        self._shelves: dict[str, Shelf] = {}
        self.count = 0
        self.size = 0  # bytes of the files in all snapshots
        self.stored_size = 0

    def shelf(self, path: str) -> Shelf | None:
        return self._shelves.get(path)

    def shelves(self) -> Iterator[tuple[str, Shelf]]:
        """Yield (path of the directory, shelf) by path."""
        for path in sorted(self._shelves):
            yield path, self._shelves[path]

    def roots(self) -> Iterator[tuple[str, str, int, Directory]]:
        """Yield (directory, name, created_ms, root) by directory and name."""
        for path, shelf in self.shelves():
            for name, root in shelf.content.entries.items():
                assert isinstance(root, Directory), "a shelf holds directories"
                yield path, name, shelf.created_ms[name], root

    def get(self, path: str, name: str) -> Directory:
        """Return the root of a snapshot; raise `NotFound`."""
        shelf = self._shelves.get(path)
        root = shelf.content.entries.get(name) if shelf is not None else None
        if not isinstance(root, Directory):
            raise NotFound(f"{shown(path)} has no snapshot {shown(name)}; see `dfs snapshot ls`")
        return root

    def has(self, path: str, name: str) -> bool:
        shelf = self._shelves.get(path)
        return shelf is not None and name in shelf.created_ms

    def find(self, path: str, inner: Sequence[str], shown_path: str) -> Node:
        """Return what is at `inner` (snapshot name first, () = the shelf) below `path`/.snapshot; raise `NotFound`."""
        shelf = self._shelves.get(path)
        if shelf is None:
            raise NotFound(f"{shown(shown_path)} does not exist: {shown(path)} has no snapshots")
        return descend(shelf.content, inner, shown_path)

    def first_below(self, path: str, *, itself: bool = True) -> str | None:
        """Return the first directory with snapshots that is `path` (if `itself`) or lies in it."""
        found = (known for known in self._shelves if is_below(known, path) and (itself or known != path))
        return min(found, default=None) if self._shelves else None

    def page(self, path: str, after: tuple[str, str], limit: int) -> tuple[tuple[SnapshotStatus, ...], bool]:
        """Return at most `limit` snapshots of directories that are `path` or in it, after the pair `after`."""
        found: list[SnapshotStatus] = []
        for directory, name, _, _ in self.roots():
            if is_below(directory, path) and (directory, name) > after:
                if len(found) == limit:
                    return tuple(found), True
                found.append(self.status(directory, name))
        return tuple(found), False

    def status(self, path: str, name: str) -> SnapshotStatus:
        root = self.get(path, name)
        created_ms = self._shelves[path].created_ms[name]
        return SnapshotStatus(
            path, name, created_ms, root.file_count, root.directory_count, root.size, root.stored_size
        )

    # --- changes

    def open_shelf(self, path: str, inode: int, now_ms: int) -> Shelf:
        """Make a shelf for a directory that has none; it must get a snapshot in the same command."""
        shelf = self._shelves[path] = Shelf(inode, now_ms)
        return shelf

    def add(self, path: str, name: str, root: Directory, created_ms: int) -> None:
        """Put a snapshot on the shelf of a directory."""
        shelf = self._shelves[path]
        shelf.content.entries.add(name, root)
        shelf.content.account(root, 1)
        shelf.content.mtime_ms = shelf.created_ms[name] = created_ms
        self._count(root, 1)

    def remove(self, path: str, name: str, now_ms: int) -> Directory:
        """Take a snapshot that is there off its shelf, and the shelf away when it was the last; return its root."""
        root, shelf = self.get(path, name), self._shelves[path]
        shelf.content.entries.remove(name)
        shelf.content.account(root, -1)
        shelf.content.mtime_ms = now_ms
        del shelf.created_ms[name]
        if not shelf.created_ms:
            del self._shelves[path]
        self._count(root, -1)
        return root

    def _count(self, root: Directory, sign: int) -> None:
        self.count += sign
        self.size += sign * root.size
        self.stored_size += sign * root.stored_size

    def rename(self, source: str, target: str) -> None:
        """Follow a directory that was renamed: its snapshots, and those of directories in it, go with it."""
        for path in [known for known in self._shelves if is_below(known, source)]:
            self._shelves[target + path[len(source) :]] = self._shelves.pop(path)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the counters are right."""
        roots = [root for _, _, _, root in self.roots()]
        assert self.count == len(roots), f"{self.count} snapshots are counted, {len(roots)} are there"
        assert self.size == sum(root.size for root in roots), "the size of snapshots does not add up"
        assert self.stored_size == sum(root.stored_size for root in roots), "their stored size does not add up"
        for path, shelf in self.shelves():
            names = [name for name, _ in shelf.content.entries.items()]
            assert names, f"{path}: an empty shelf is kept"
            assert names == sorted(shelf.created_ms), f"{path}: times of {sorted(shelf.created_ms)}, roots of {names}"
