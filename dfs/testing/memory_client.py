"""A `DfsClient` that keeps everything in a dict, for tests of front ends.

Owns: the calls of `DfsClient` with their errors, faults on demand. Refuses to know: sockets, chunks, and how far it is
from a cluster: there is no concurrency to see and no failure that a test did not ask for.
"""

from __future__ import annotations

import builtins
import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from dfs import checksum, paths
from dfs.client import FileChecksum
from dfs.errors import (
    AlreadyExists,
    Conflict,
    DfsError,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from dfs.net.messages import DeleteReply, EmptyTrashReply, GetClusterStatusReply
from dfs.net.parts import FileStatus, Kind, MasterStatus, QuotaStatus, ServerInfo, ServerStatus, SpaceStatus, TrashEntry
from dfs.testing.memory_inspection import MemoryInspection
from dfs.testing.memory_packing import MemoryPacking

START_MS = 1_700_000_000_000  # the first moment of a memory client's time; each change is a second later
TRASH_KEEP_MS = 3 * 86_400_000
PIECE_SIZE = 64 * 1024  # bytes of one piece that `read` yields: small, so that tests see several


@dataclass(slots=True)
class Node:
    """A file (`content`) or a directory (`content` is `None`)."""

    content: bytes | None
    mtime_ms: int
    inode: int
    replication: int = 3
    version: int = 1


@dataclass(slots=True)
class _Trashed:
    entry: TrashEntry
    nodes: dict[str, Node] = field(default_factory=dict)


def healthy_status(space: SpaceStatus) -> GetClusterStatusReply:
    """Return a leader's view with four servers alive."""
    servers = tuple(
        ServerStatus(
            ServerInfo(bytes([number]) * 16, f"c{number}", f"127.0.0.1:742{number}", f"r{number % 2}", is_alive=True),  # type: ignore[arg-type]
            "alive",
            0.4,
            10 << 30,
            6 << 30,
            12,
            (),
        )
        for number in range(1, 5)
    )
    return GetClusterStatusReply(servers, space, 3, 64 << 20)


class MemoryQuotas:
    """The quotas of a memory client: there are none."""

    def effective(self, path: str) -> Iterator[QuotaStatus]:
        paths.normalise(path)
        yield from ()


class MemoryClient(MemoryPacking):
    """`faults` maps a path to the error that any call about it ends in; `down` is the error of every call."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {"/": Node(None, START_MS, 1)}
        self.faults: dict[str, DfsError] = {}
        self.down: DfsError | None = None
        self.masters: list[MasterStatus | tuple[str, DfsError]] = [
            MasterStatus(f"m{number}", "leader" if number == 1 else "follower", 7, 42, 42, "m1", "0.1.0", 61.0)
            for number in (1, 2, 3)
        ]
        self.status_reply: GetClusterStatusReply | None = None
        self.quotas = MemoryQuotas()
        self.calls: list[str] = []
        self.inspection = MemoryInspection(self._files, self._servers, self._check)
        self._trash: list[_Trashed] = []
        self._now_ms = START_MS
        self._last_inode = 1
        self._last_trash_id = 0
        self._lock = threading.RLock()

    def close(self) -> None:
        self.calls.append("close")

    # --- looking ------------------------------------------------------------------------------------

    def stat(self, path: str) -> FileStatus:
        path = paths.normalise(path)
        with self._lock:
            return self._status(path, self._node("stat", path))

    def exists(self, path: str) -> bool:
        try:
            self.stat(path)
        except (NotFound, NotADirectory):
            return False
        return True

    def list(self, path: str) -> Iterator[FileStatus]:
        path = paths.normalise(path)
        with self._lock:
            if self._node("list", path).content is not None:
                raise NotADirectory(f"{path!r} is a file, not a directory")
            children = sorted(child for child in self.nodes if child != "/" and paths.parent(child) == path)
            entries = [self._status(child, self.nodes[child]) for child in children]
        for entry in entries:
            yield _renamed(entry, paths.basename(entry.path))

    def walk(self, path: str) -> Iterator[tuple[str, FileStatus]]:
        path = paths.normalise(path)
        for entry in self.list(path):
            full = paths.join(path, entry.path)
            yield full, _renamed(entry, full)
            if entry.kind is Kind.DIRECTORY:
                yield from self.walk(full)

    # --- changing names -------------------------------------------------------------------------------

    def make_directory(self, path: str, *, parents: bool = False) -> FileStatus:
        path = paths.normalise(path)
        with self._lock:
            self._check("make_directory", path)
            if path in self.nodes:
                if not parents or self.nodes[path].content is not None:
                    raise AlreadyExists(f"{path!r} already exists")
            else:
                self._check_parent(path, make=parents)
                self._add(path, None)
            return self._status(path, self.nodes[path])

    def remove_directory(self, path: str) -> None:
        path = paths.normalise(path)
        with self._lock:
            if self._node("remove_directory", path).content is not None:
                raise NotADirectory(f"{path!r} is a file, not a directory")
            if len(self._below(path)) > 1:
                raise DirectoryNotEmpty(f"directory {path!r} is not empty")
            del self.nodes[path]

    def delete(self, path: str, *, recursive: bool = False, skip_trash: bool = False) -> DeleteReply:
        path = paths.normalise(path)
        with self._lock:
            node = self._node("delete", path)
            if node.content is None and not recursive:
                raise IsADirectory(f"{path!r} is a directory")
            if path == "/":
                raise InvalidArgument("the root directory cannot be removed")
            status = self._status(path, node)
            files = status.file_count if status.kind is Kind.DIRECTORY else 1
            removed = {key: self.nodes.pop(key) for key in self._below(path)}
            if skip_trash:
                return DeleteReply(status.kind, files, status.size, 0, 0)
            self._last_trash_id += 1
            now_ms = self._tick()
            expires_ms = now_ms + TRASH_KEEP_MS
            entry = TrashEntry(self._last_trash_id, path, status.kind, status.size, now_ms, expires_ms)
            self._trash.append(_Trashed(entry, removed))
            return DeleteReply(status.kind, files, status.size, expires_ms, entry.trash_id)

    def rename(self, source: str, target: str, *, overwrite: bool = False) -> FileStatus:
        source, target = paths.normalise(source), paths.normalise(target)
        with self._lock:
            self._transplant("rename", source, target, overwrite=overwrite, keeps_source=False)
            return self._status(target, self.nodes[target])

    def copy(self, source: str, target: str, *, recursive: bool = False, overwrite: bool = False) -> FileStatus:
        source, target = paths.normalise(source), paths.normalise(target)
        with self._lock:
            if self._node("copy", source).content is None and not recursive:
                raise IsADirectory(f"{source!r} is a directory")
            self._transplant("copy", source, target, overwrite=overwrite, keeps_source=True)
            return self._status(target, self.nodes[target])

    def touch(self, path: str, *, mtime_ms: int = 0, no_create: bool = False) -> FileStatus:
        path = paths.normalise(path)
        with self._lock:
            self._check("touch", path)
            if path not in self.nodes:
                if no_create:
                    raise NotFound(f"no such file: {path!r}")
                self._check_parent(path)
                self._add(path, b"")
            self.nodes[path].mtime_ms = mtime_ms or self._tick()
            return self._status(path, self.nodes[path])

    def set_replication(self, path: str, replication: int, *, recursive: bool = False) -> int:
        path = paths.normalise(path)
        with self._lock:
            if self._node("set_replication", path).content is None and not recursive:
                raise IsADirectory(f"{path!r} is a directory; its files are set recursively only")
            files = [self.nodes[key] for key in self._below(path) if self.nodes[key].content is not None]
            for node in files:
                node.replication = replication
            return len(files)

    # --- content ----------------------------------------------------------------------------------------

    def put(
        self,
        source: Path | BinaryIO,
        path: str,
        *,
        overwrite: bool = False,
        parents: bool = False,
        replication: int | None = None,
        mtime_ms: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> FileStatus:
        path = paths.normalise(path)
        data = _read_all(source, progress)
        with self._lock:
            self._check("put", path)
            node = self.nodes.get(path)
            if node is not None and node.content is None:
                raise IsADirectory(f"{path!r} is a directory")
            if node is not None and not overwrite:
                raise AlreadyExists(f"{path!r} already exists")
            self._check_parent(path, make=parents)
            self._add(path, data, replication or 3, mtime_ms)
            return self._status(path, self.nodes[path])

    def append(
        self,
        source: Path | BinaryIO,
        path: str,
        *,
        create: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> FileStatus:
        path = paths.normalise(path)
        data = _read_all(source, progress)
        with self._lock:
            if path not in self.nodes and create:
                self._check_parent(path)
                self._add(path, b"")
            node = self._node("append", path)
            if node.content is None:
                raise IsADirectory(f"{path!r} is a directory")
            node.content += data
            node.version += 1
            node.mtime_ms = self._tick()
            return self._status(path, node)

    def appender(self, path: str, *, create: bool = True, identity: bytes | None = None) -> MemoryAppender:
        path = paths.normalise(path)
        if not create:
            self.stat(path)
        return MemoryAppender(self, path, identity or b"m" * 16)

    def get(
        self,
        path: str,
        target: Path | BinaryIO,
        *,
        overwrite: bool = True,
        offset: int = 0,
        length: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> FileStatus:
        status = self.stat(path)
        data = b"".join(self.read(path, offset=offset, length=length))
        if progress is not None:
            progress(len(data))
        if not isinstance(target, Path):
            target.write(data)
        elif not overwrite and target.exists():
            raise AlreadyExists(f"the local file {str(target)!r} exists")
        else:
            temporary = target.with_name(f".{target.name}.part")
            temporary.write_bytes(data)
            temporary.replace(target)
        return status

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        path = paths.normalise(path)
        with self._lock:
            content = self._node(f"read({offset}, {length})", path).content
        if content is None:
            raise IsADirectory(f"{path!r} is a directory; only files have content")
        view = memoryview(content)[offset : None if length is None else offset + length]
        return (view[start : start + PIECE_SIZE] for start in range(0, len(view), PIECE_SIZE))

    def follow(self, path: str, *, offset: int = 0, pause_s: float = 0.2) -> Iterator[bytes]:
        while True:
            content = self._node("follow", paths.normalise(path)).content
            assert content is not None, "only files are followed"
            if len(content) < offset:
                raise Conflict(f"{path!r} has {len(content)} bytes, less than the {offset} that were read already")
            if offset < len(content):
                yield content[offset:]
                offset = len(content)
            time.sleep(pause_s)

    def checksum(self, path: str) -> FileChecksum:
        data = b"".join(self.read(path))
        return FileChecksum("crc32c", f"{checksum.crc32c(data):08x}", len(data))

    # --- trash --------------------------------------------------------------------------------------------

    def undelete(self, path: str, *, trash_id: int = 0) -> FileStatus:
        path = paths.normalise(path)
        with self._lock:
            self._check("undelete", path)
            found = [item for item in self._trash if item.entry.path == path and trash_id in (0, item.entry.trash_id)]
            if not found:
                raise NotFound(f"nothing deleted from {path!r} is in the trash")
            if path in self.nodes:
                raise AlreadyExists(f"{path!r} already exists")
            self._trash.remove(found[-1])
            self.nodes.update(found[-1].nodes)
            return self._status(path, self.nodes[path])

    def list_trash(self) -> Iterator[TrashEntry]:
        self._check("list_trash", "")
        yield from [item.entry for item in self._trash]

    def empty_trash(self, trash_id: int = 0) -> EmptyTrashReply:
        self._check("empty_trash", "")
        gone = [item for item in self._trash if trash_id in (0, item.entry.trash_id)]
        if trash_id and not gone:
            raise NotFound(f"the trash has no entry {trash_id}")
        self._trash = [item for item in self._trash if item not in gone]
        return EmptyTrashReply(len(gone), sum(item.entry.size for item in gone), has_more=False)

    # --- the cluster ----------------------------------------------------------------------------------------

    def cluster_status(self) -> GetClusterStatusReply:
        self._check("cluster_status", "")
        if self.status_reply is not None:
            return self.status_reply
        root = self.stat("/")
        trash_size = sum(item.entry.size for item in self._trash)
        files, directories = root.file_count, root.directory_count
        stored = 3 * (root.size + trash_size)
        return healthy_status(
            SpaceStatus(files, directories, root.size, trash_size, len(self._trash), files, stored, 0, 0, 0, 0, 0)
        )

    def master_statuses(self) -> builtins.list[MasterStatus | tuple[str, DfsError]]:
        return self.masters

    def _files(self) -> Iterator[tuple[str, bytes, int]]:
        for path, node in self.nodes.items():
            if node.content is not None:
                yield path, node.content, node.replication

    def _servers(self) -> tuple[ServerInfo, ...]:
        return tuple(server.info for server in self.cluster_status().servers)

    # --- inside -----------------------------------------------------------------------------------------------

    def _check(self, call: str, path: str) -> None:
        self.calls.append(f"{call} {path}")
        if self.down is not None:
            raise self.down
        if path in self.faults:
            raise self.faults[path]

    def _node(self, call: str, path: str) -> Node:
        self._check(call, path)
        if path not in self.nodes:
            raise NotFound(f"no such file or directory: {path!r}")
        return self.nodes[path]

    def _check_parent(self, path: str, *, make: bool = False) -> None:
        parent = paths.parent(path)
        if parent not in self.nodes:
            if not make:
                raise NotFound(f"no such directory: {parent!r}")
            self._check_parent(parent, make=True)
            self._add(parent, None)
        elif self.nodes[parent].content is not None:
            raise NotADirectory(f"{parent!r} is a file, not a directory")

    def _add(self, path: str, content: bytes | None, replication: int = 3, mtime_ms: int = 0) -> None:
        old = self.nodes.get(path)
        self._last_inode += 1
        version = old.version + 1 if old else 1
        self.nodes[path] = Node(content, mtime_ms or self._tick(), self._last_inode, replication, version)

    def _transplant(self, call: str, source: str, target: str, *, overwrite: bool, keeps_source: bool) -> None:
        self._node(call, source)
        self._check(call, target)
        if target.startswith(source + "/"):
            raise InvalidArgument(f"{source!r} cannot go into itself")
        if source == target:
            return
        self._check_parent(target)
        if target in self.nodes:
            if self.nodes[target].content is None or self.nodes[source].content is None or not overwrite:
                raise AlreadyExists(f"{target!r} already exists")
            self.delete(target)
        for key in self._below(source):
            self.nodes[target + key[len(source) :]] = replace(self.nodes[key])
            if not keeps_source:
                del self.nodes[key]

    def _below(self, path: str) -> builtins.list[str]:
        prefix = "/" if path == "/" else path + "/"
        return [key for key in self.nodes if key == path or key.startswith(prefix)]

    def _status(self, path: str, node: Node) -> FileStatus:
        if node.content is not None:
            size = len(node.content)
            extents = 1 if size else 0
            stored = size * node.replication
            return FileStatus(
                path, Kind.FILE, size, stored, node.mtime_ms, node.inode, node.version, node.replication, extents
            )
        below = [self.nodes[key] for key in self._below(path) if key != path]
        files = [child for child in below if child.content is not None]
        size = sum(len(child.content or b"") for child in files)
        stored = sum(len(child.content or b"") * child.replication for child in files)
        return FileStatus(
            path,
            Kind.DIRECTORY,
            size,
            stored,
            node.mtime_ms,
            node.inode,
            1,
            0,
            0,
            len(files),
            len(below) - len(files),
        )

    def _tick(self) -> int:
        self._now_ms += 1000
        return self._now_ms


def _renamed(status: FileStatus, path: str) -> FileStatus:

    return msgspec.structs.replace(status, path=path)


def _read_all(source: Path | BinaryIO, progress: Callable[[int], None] | None) -> bytes:
    data = source.read_bytes() if isinstance(source, Path) else source.read()
    if progress is not None:
        progress(len(data))
    return data


class MemoryAppender:
    """Appends records to a file of a `MemoryClient`; each is there at once."""

    def __init__(self, client: MemoryClient, path: str, identity: bytes) -> None:
        self.path = path
        self.identity = identity
        self._client = client

    def append(self, data: bytes) -> Future[int]:
        outcome: Future[int] = Future()
        try:
            outcome.set_result(self._client.append(io.BytesIO(data), self.path).size - len(data))
        except DfsError as error:
            outcome.set_exception(error)
        return outcome

    def __enter__(self) -> MemoryAppender:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing waits."""
