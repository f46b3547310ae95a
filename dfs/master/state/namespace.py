"""The tree of directories and files, with exact totals at every directory.

Owns: nodes, finding them by path, linking and unlinking them, totals, and the counter that inodes and versions are
drawn from. Refuses to know: chunks, sessions, the trash, and who asks.

Nodes know neither their names nor their parents: a path is walked from the root, and the directories met on the way
are where totals change. So a rename is O(depth), a subtree in the trash needs no upkeep, and the memory holds no cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dfs.errors import InvalidName, NotADirectory, NotFound, ReadOnly
from dfs.master.state.extents import count as extent_count
from dfs.master.state.nodes import Directory, File, Node, account
from dfs.master.state.sharing import Sharing
from dfs.net.parts import FileStatus, Kind
from dfs.paths import ROOT, SNAPSHOTS, SNAPSHOTS_MARK, join, split, split_snapshot

__all__ = [
    "Directory",
    "File",
    "Namespace",
    "Node",
    "Place",
    "check_changeable",
    "check_file",
    "check_tree",
    "descend",
    "files_below",
    "shown",
    "status_of",
    "statuses_of",
    "walk",
]

_SHOWN_MAX = 200  # characters of a path in an error message


@dataclass(slots=True)
class Place:
    """Where a path leads: the directories from the root to the parent, and what is there.

    `missing`: ancestors that do not exist yet, below the last of `chain` (only when they were asked to be made).
    """

    path: str
    chain: list[Directory]
    missing: tuple[str, ...]
    name: str  # "" for the root
    node: Node | None

    @property
    def is_root(self) -> bool:
        return not self.chain


def shown(path: str) -> str:
    """Return a path as error messages quote it."""
    return repr(path) if len(path) <= _SHOWN_MAX else f"{path[:_SHOWN_MAX]!r}…"


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and all below it, each directory before its entries; the order is the same on every replica."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, Directory):
            stack.extend(node.entries.nodes())


def files_below(node: Node) -> Iterator[File]:
    """Yield a file itself, or all files below a directory."""
    return (found for found in walk(node) if isinstance(found, File))


def status_of(path: str, node: Node) -> FileStatus:
    return statuses_of(((path, node),))[0]


def statuses_of(entries: Iterable[tuple[str, Node]]) -> tuple[FileStatus, ...]:
    """Return the status of each (path, node); in one loop, because directories are long."""
    found = []
    for path, node in entries:
        if isinstance(node, File):
            size, replication, packed = node.size, node.replication, node.extents
            found.append(
                FileStatus(
                    path,
                    Kind.FILE,
                    size,
                    size * replication,
                    node.mtime_ms,
                    node.inode,
                    node.version,
                    replication,
                    extent_count(packed) if packed else 0,
                )
            )
        else:
            found.append(
                FileStatus(
                    path,
                    Kind.DIRECTORY,
                    node.size,
                    node.stored_size,
                    node.mtime_ms,
                    node.inode,
                    0,
                    0,
                    0,
                    node.file_count,
                    node.directory_count,
                )
            )
    return tuple(found)


def check_changeable(path: str) -> None:
    """Raise `ReadOnly` or `InvalidName` when a path leads into snapshots."""
    cut = split_snapshot(path)
    if cut is None:
        return
    directory, inner = cut
    if not inner:
        raise InvalidName(
            f"{shown(path)}: the name {SNAPSHOTS!r} is reserved for the snapshots of {shown(directory)}; choose another"
        )
    if len(inner) == 1:
        raise ReadOnly(
            f"{shown(path)} is a snapshot, which never changes; `dfs snapshot rm` removes it as a whole, `dfs snapshot "
            "restore` goes back to it"
        )
    raise ReadOnly(
        f"{shown(path)} is in a snapshot, which never changes; copy it out of there (cp), or bring it back: "
        "`dfs snapshot restore`"
    )


def descend(root: Directory, parts: Sequence[str], path: str) -> Node:
    """Return the node at `parts` below a directory; raise `NotFound` or `NotADirectory`. `path` is for the message."""
    node: Node = root
    for name in parts:
        if isinstance(node, File):
            raise NotADirectory(f"{shown(path)}: what is before {shown(name)} is a file")
        child = node.entries.get(name)
        if child is None:
            raise NotFound(f"{shown(path)} does not exist: there is no {shown(name)}")
        node = child
    return node


class Namespace:
    """The live tree. Methods that change it expect that their caller has checked everything.

    `sharing` gives directories tables of their own before they change.
    """

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing
        self.root = Directory(1, 0)
        self.next_id = 2  # of the next inode or file version; versions are never reused at a path, whatever moves there

    def draw_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def locate(self, path: str, *, parents: bool = False) -> Place:
        """Find a path that is to be changed; what the place holds may then be changed, and is in no snapshot.

        Raise `InvalidName`, `ReadOnly` (in a snapshot), `NotADirectory` (a file on the way), `NotFound` (a missing
        ancestor, unless `parents` will make it) or `Overloaded` (a large directory is being copied).
        """
        if SNAPSHOTS_MARK in path:
            check_changeable(path)
        return self._walk(path, parents, True)

    def look(self, path: str, *, parents: bool = False) -> Place:
        """Find a path that is only looked at."""
        return self._walk(path, parents, False)

    def _walk(self, path: str, parents: bool, is_to_change: bool) -> Place:
        parts = split(path)
        if not parts:
            return Place(path, [], (), "", self.root)
        directory = self.root
        chain = [directory]
        for index, name in enumerate(parts[:-1]):
            if is_to_change and directory.entries.sharers > 1:
                self.sharing.own(directory)
            child = directory.entries.get(name)
            if child is None:
                if parents:
                    return Place(path, chain, parts[index:-1], parts[-1], None)
                raise NotFound(f"{shown(path)}: directory {shown('/' + '/'.join(parts[: index + 1]))} does not exist")
            if isinstance(child, File):
                raise NotADirectory(f"{shown(path)}: {shown('/' + '/'.join(parts[: index + 1]))} is a file")
            directory = child
            chain.append(directory)
        if is_to_change and directory.entries.sharers > 1:
            self.sharing.own(directory)
        return Place(path, chain, (), parts[-1], directory.entries.get(parts[-1]))

    def find(self, path: str) -> Node:
        """Return the node at a path, to look at it; raise `NotFound` or what `look` raises."""
        node = self.look(path).node
        if node is None:
            raise NotFound(f"{shown(path)} does not exist")
        return node

    def link(self, place: Place, node: Node, now_ms: int) -> None:
        """Put `node` at a place where nothing is, making the missing ancestors."""
        for name in place.missing:
            directory = Directory(self.draw_id(), now_ms)
            self._link(place.chain, name, directory, now_ms)
            place.chain.append(directory)
        place.missing = ()
        self._link(place.chain, place.name, node, now_ms)
        place.node = node

    def _link(self, chain: list[Directory], name: str, node: Node, now_ms: int) -> None:
        chain[-1].entries.add(name, node)
        chain[-1].mtime_ms = now_ms
        account(chain, node, 1)

    def unlink(self, place: Place, now_ms: int) -> Node:
        """Take away and return the node at a place that is not the root."""
        node = place.node
        assert node is not None, "nothing to unlink"
        place.chain[-1].entries.remove(place.name)
        place.chain[-1].mtime_ms = now_ms
        account(place.chain, node, -1)
        place.node = None
        return node

    def create_file(self, place: Place, file: File, now_ms: int) -> None:
        """Put a new file at a place where nothing is; its inode is drawn here and is its first version, too."""
        self.link(place, file, now_ms)
        file.inode = file.version = self.draw_id()

    def set_content(self, place: Place, content: File) -> File:
        """Give the file at a place the content, replication and time of `content`, at once; the inode stays.

        Return a detached file that holds the old content.
        """
        file = place.node
        assert isinstance(file, File), "only a file has content"
        old = File(file.inode, file.version, file.mtime_ms, file.replication, file.size, file.extents)
        account(place.chain, old, -1)
        file.extents, file.size = content.extents, content.size
        file.replication, file.mtime_ms, file.version = content.replication, content.mtime_ms, self.draw_id()
        account(place.chain, file, 1)
        return old

    def set_replication(self, place: Place, replication: int) -> None:
        """Set the goal of all files below a place, and the stored sizes that follow from it."""
        node = place.node
        assert node is not None, "nothing there"
        before = node.stored_size if isinstance(node, Directory) else node.size * node.replication
        for found in walk(node):
            if isinstance(found, File):
                found.replication = replication
            else:
                found.stored_size = found.size * replication
        for directory in place.chain:
            directory.stored_size += node.size * replication - before

    def copy(self, source: Node, now_ms: int) -> Node:
        """Return a detached copy of a subtree that shares the content; inodes and versions are new."""
        made = self._twin(source, now_ms)
        todo = [(source, made)]
        while todo:
            node, twin = todo.pop()
            if isinstance(node, Directory) and isinstance(twin, Directory):
                for name, child in node.entries.items():
                    twin_child = self._twin(child, now_ms)
                    twin.entries.add(name, twin_child)
                    if isinstance(child, Directory):
                        todo.append((child, twin_child))
        return made

    def _twin(self, node: Node, now_ms: int) -> Node:
        inode = self.draw_id()
        if isinstance(node, File):
            return File(inode, inode, now_ms, node.replication, node.size, node.extents)
        twin = Directory(inode, now_ms)
        twin.file_count, twin.directory_count = node.file_count, node.directory_count
        twin.size, twin.stored_size = node.size, node.stored_size
        return twin


Contents = dict[tuple[int, int], tuple[int, bytes]]  # (inode, version) -> (size, extents)


def check_tree(root: Directory, next_id: int, seen: Contents, path: str = ROOT) -> None:
    """Raise AssertionError unless totals, sorted entries and ids of a tree are right; add its files to `seen`."""
    order: list[tuple[str, Directory]] = [(path, root)]
    for where, directory in order:
        for name, node in directory.entries.items():
            if isinstance(node, Directory):
                order.append((join(where, name), node))
    for where, directory in reversed(order):
        directory.entries.check_invariants()
        actual = Directory(directory.inode, directory.mtime_ms)
        for name, node in directory.entries.items():
            actual.account(node, 1)
            if isinstance(node, File):
                check_file(join(where, name), node, next_id, seen)
        assert 0 < directory.inode < next_id, f"{where}: inode {directory.inode}, the counter is at {next_id}"
        for field in ("file_count", "directory_count", "size", "stored_size"):
            stored, counted = getattr(directory, field), getattr(actual, field)
            assert stored == counted, f"{where}: {field} is {stored}, its entries add up to {counted}"


def check_file(path: str, file: File, next_id: int, seen: Contents) -> None:
    """Raise AssertionError unless a file's numbers are possible, and its inode and version say what is in it.

    A file and its images in snapshots have the same inode, and so do two files when one was restored and the other,
    moved away, is the original; the same version of an inode is the same content everywhere.
    """
    assert 0 < file.inode < next_id, f"{path}: inode {file.inode}, the counter is at {next_id}"
    assert file.inode <= file.version < next_id, f"{path}: version {file.version} of inode {file.inode}, next {next_id}"
    assert file.replication >= 1, f"{path}: replication {file.replication}"
    assert (file.size == 0) == (file.extents == b""), f"{path}: size {file.size} with {len(file.extents)} B of extents"
    content = (file.size, file.extents)
    known = seen.setdefault((file.inode, file.version), content)
    assert known == content, f"{path}: version {file.version} of inode {file.inode} has two contents"
