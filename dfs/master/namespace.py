"""The tree of directories and files, with exact totals at every directory.

Owns: nodes, finding them by path, linking and unlinking them, totals, and the counter that inodes and versions are
drawn from. Refuses to know: chunks, sessions, the trash, and who asks.

Nodes know neither their names nor their parents: a path is walked from the root, and the directories met on the way
are where totals change. So a rename is O(depth), a subtree in the trash needs no upkeep, and the memory holds no cycle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from dfs.errors import NotADirectory, NotFound
from dfs.master.entries import EntryTable
from dfs.master.extents import count as extent_count
from dfs.net.parts import FileStatus, Kind
from dfs.paths import ROOT, join, split

_SHOWN_MAX = 200  # characters of a path in an error message


class File(msgspec.Struct, gc=False):
    """A file's attributes and content. Not tracked by the garbage collector: it holds no container."""

    inode: int
    version: int
    mtime_ms: int
    replication: int
    size: int
    extents: bytes  # see dfs.master.extents


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
    if isinstance(node, File):
        return FileStatus(
            path,
            Kind.FILE,
            node.size,
            node.size * node.replication,
            node.mtime_ms,
            node.inode,
            node.version,
            node.replication,
            extent_count(node.extents),
        )
    return FileStatus(
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


class Namespace:
    """The live tree. Methods that change it expect that their caller has checked everything."""

    def __init__(self) -> None:
        self.root = Directory(1, 0)
        self.next_id = 2  # of the next inode or file version; versions are never reused at a path, whatever moves there

    def draw_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    def locate(self, path: str, *, parents: bool = False) -> Place:
        """Find a path; raise `InvalidName`, `NotADirectory` (a file on the way) or `NotFound` (a missing ancestor,
        unless `parents` will make it)."""
        parts = split(path)
        if not parts:
            return Place(path, [], (), "", self.root)
        directory = self.root
        chain = [directory]
        for index, name in enumerate(parts[:-1]):
            child = directory.entries.get(name)
            if child is None:
                if parents:
                    return Place(path, chain, parts[index:-1], parts[-1], None)
                raise NotFound(f"{shown(path)}: directory {shown('/' + '/'.join(parts[: index + 1]))} does not exist")
            if isinstance(child, File):
                raise NotADirectory(f"{shown(path)}: {shown('/' + '/'.join(parts[: index + 1]))} is a file")
            directory = child
            chain.append(directory)
        return Place(path, chain, (), parts[-1], directory.entries.get(parts[-1]))

    def find(self, path: str) -> Node:
        """Return the node at a path; raise `NotFound` or what `locate` raises."""
        node = self.locate(path).node
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
        for directory in chain:
            directory.account(node, 1)

    def unlink(self, place: Place, now_ms: int) -> Node:
        """Take away and return the node at a place that is not the root."""
        node = place.node
        assert node is not None, "nothing to unlink"
        place.chain[-1].entries.remove(place.name)
        place.chain[-1].mtime_ms = now_ms
        for directory in place.chain:
            directory.account(node, -1)
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
        for directory in place.chain:
            directory.account(old, -1)
        file.extents, file.size = content.extents, content.size
        file.replication, file.mtime_ms, file.version = content.replication, content.mtime_ms, self.draw_id()
        for directory in place.chain:
            directory.account(file, 1)
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


def check_tree(root: Directory, next_id: int, seen: set[int], path: str = ROOT) -> None:
    """Raise AssertionError unless totals, sorted entries and inodes of a tree are right; add its inodes to `seen`."""
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
        _check_inode(where, directory.inode, next_id, seen)
        for field in ("file_count", "directory_count", "size", "stored_size"):
            stored, counted = getattr(directory, field), getattr(actual, field)
            assert stored == counted, f"{where}: {field} is {stored}, its entries add up to {counted}"


def check_file(path: str, file: File, next_id: int, seen: set[int]) -> None:
    """Raise AssertionError unless a file's numbers are possible."""
    _check_inode(path, file.inode, next_id, seen)
    assert file.inode <= file.version < next_id, f"{path}: version {file.version} of inode {file.inode}, next {next_id}"
    assert file.replication >= 1, f"{path}: replication {file.replication}"
    assert (file.size == 0) == (file.extents == b""), f"{path}: size {file.size} with {len(file.extents)} B of extents"


def _check_inode(path: str, inode: int, next_id: int, seen: set[int]) -> None:
    assert 0 < inode < next_id, f"{path}: inode {inode}, the counter is at {next_id}"
    assert inode not in seen, f"{path}: inode {inode} is in use twice"
    seen.add(inode)
