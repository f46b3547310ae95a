"""A disk whose power can fail: bytes that were not synced are dropped, torn by sectors, or survive.

Owns: what is in the page cache and what is on the platter, for bytes and for names; full and failing disks.
Refuses to know: what the files mean.

Model: a file's bytes survive a power cut once fsync or fdatasync of it returned, its name once fsync of its directory
did (no help of a file system that does more is counted on). Of younger writes each 512-byte sector is old or new; of
younger changes of names the first few have happened. Directories themselves are durable at once. A mere kill loses
nothing that was handed to the kernel.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from dfs.testing.virtual_loop import Machine, MachineDied, current_machine

SECTOR_SIZE = 512
_NEVER = 1 << 60


@dataclass(eq=False, slots=True)
class _Inode:
    """`pending`: writes since the last sync as (offset, bytes), and truncations as (size, None)."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        _put(self.live, offset, data)
        self.pending.append((offset, data))

    def truncate(self, size: int) -> None:
        _resize(self.live, size)
        self.pending.append((size, None))

    def sync(self) -> None:
        content = bytearray(self.durable)
        for offset, data in self.pending:
            if data is None:
                _resize(content, offset)
            else:
                _put(content, offset, data)
        self.durable = bytes(content)
        self.pending.clear()

    def lose_power(self, rng: random.Random, survival: float) -> None:
        content = bytearray(self.durable)
        for offset, data in self.pending:
            if data is None:
                if rng.random() < survival:
                    _resize(content, offset)
                continue
            start = 0
            while start < len(data):
                end = min(len(data), start + SECTOR_SIZE - (offset + start) % SECTOR_SIZE)
                if rng.random() < survival:
                    _put(content, offset + start, data[start:end])
                start = end
        self.live, self.durable = content, bytes(content)
        self.pending.clear()


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass(slots=True)
class _Directory:
    """`pending`: changes of names since the last sync: (name, inode or None for no more, old name of a rename)."""

    live: dict[str, _Inode] = field(default_factory=dict)
    durable: dict[str, _Inode] = field(default_factory=dict)
    pending: list[tuple[str, _Inode | None, str | None]] = field(default_factory=list)

    def change(self, name: str, inode: _Inode | None, old: str | None = None) -> None:
        change = (name, inode, old)
        _rename(self.live, *change)
        self.pending.append(change)

    def sync(self) -> None:
        self.durable = dict(self.live)
        self.pending.clear()

    def lose_power(self, rng: random.Random) -> None:
        for change in self.pending[: rng.randint(0, len(self.pending))]:
            _rename(self.durable, *change)
        self.live = dict(self.durable)
        self.pending.clear()


def _rename(names: dict[str, _Inode], name: str, inode: _Inode | None, old: str | None) -> None:
    if old is not None:
        names.pop(old, None)
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


class VirtualDisk:
    """The disk of one host. `on_power_cut` is called when an operation meets the end of `operations_left`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._directories: dict[str, _Directory] = {}
        self.capacity = _NEVER  # bytes
        self.fails_next_sync = False
        self.operations_left = _NEVER  # writes, syncs and renames until the power fails
        self.operation_count = 0
        self.on_power_cut: Callable[[], None] = lambda: None

    def root(self) -> VirtualPath:
        return VirtualPath(self, "/disk")

    @property
    def used(self) -> int:
        inodes = {id(one): one for folder in self._directories.values() for one in folder.live.values()}
        return sum(len(inode.live) for inode in inodes.values())

    def lose_power(self) -> None:
        """Keep what was synced, and of the rest what chance leaves."""
        survival = self._rng.choice((0.0, 1.0, 0.5, self._rng.random()))
        seen: set[int] = set()
        for folder in self._directories.values():
            for inode in [*folder.live.values(), *folder.durable.values(), *(c[1] for c in folder.pending)]:
                if inode is not None and id(inode) not in seen:
                    seen.add(id(inode))
                    inode.lose_power(self._rng, survival)
            folder.lose_power(self._rng)
        self.operations_left = _NEVER

    # --- what paths and the operating system's functions ask

    def operate(self) -> None:
        """Count an operation that changes something; the power may fail just before it."""
        machine = current_machine()
        if machine is not None and not machine.is_alive:
            raise MachineDied
        self.operation_count += 1
        self.operations_left -= 1
        if self.operations_left < 0:
            self.on_power_cut()
            raise MachineDied

    def directory(self, path: str) -> _Directory:
        try:
            return self._directories[path]
        except KeyError:
            raise _error(errno.ENOENT, path) from None

    def make_directory(self, path: str) -> None:
        self._directories.setdefault(path, _Directory())

    def is_directory(self, path: str) -> bool:
        return path in self._directories

    def inode(self, path: VirtualPath) -> _Inode:
        inode = self.directory(path.folder).live.get(path.name)
        if inode is None:
            raise _error(errno.ENOENT, str(path))
        return inode

    def open(self, path: VirtualPath, *, create: bool, truncate: bool) -> _Inode:
        folder = self.directory(path.folder)
        inode = folder.live.get(path.name)
        if inode is None:
            if not create:
                raise _error(errno.ENOENT, str(path))
            self.operate()
            inode = _Inode()
            folder.change(path.name, inode)
        elif truncate and inode.live:
            self.operate()
            inode.truncate(0)
        return inode

    def write(self, inode: _Inode, offset: int, data: bytes) -> None:
        self.operate()
        growth = offset + len(data) - len(inode.live)
        if growth > 0 and self.capacity != _NEVER and self.used + growth > self.capacity:
            raise _error(errno.ENOSPC, "the virtual disk")
        inode.write(offset, data)

    def sync(self, inode: _Inode) -> None:
        self.operate()
        if self.fails_next_sync:
            self.fails_next_sync = False
            if self._rng.random() < 0.5:  # the kernel forgets what it could not write, or keeps it and calls it written
                inode.live = bytearray(inode.durable)
            inode.pending.clear()
            raise _error(errno.EIO, "the virtual disk")
        inode.sync()


def _error(number: int, what: str) -> OSError:
    return OSError(number, os.strerror(number), what)


class VirtualPath:
    """As much of pathlib.Path as code that keeps its files on a virtual disk may use."""

    __slots__ = ("disk", "folder", "name")

    def __init__(self, disk: VirtualDisk, path: str) -> None:
        self.disk = disk
        self.folder, _, self.name = path.rpartition("/")

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    def __truediv__(self, name: str) -> VirtualPath:
        return VirtualPath(self.disk, f"{self}/{name}")

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def parent(self) -> VirtualPath:
        """The folder around this one; a folder at the top is its own."""
        return VirtualPath(self.disk, self.folder) if self.folder else self

    @property
    def parents(self) -> tuple[VirtualPath, ...]:
        return (self.parent, *self.parent.parents) if self.folder else ()

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        del mode, parents, exist_ok
        for path in (self, *self.parents):
            self.disk.make_directory(str(path))

    def exists(self) -> bool:
        return self.disk.is_directory(str(self)) or (
            self.disk.is_directory(self.folder) and self.name in self.disk.directory(self.folder).live
        )

    def glob(self, pattern: str) -> Iterator[VirtualPath]:
        names = sorted(self.disk.directory(str(self)).live)
        return iter([self / name for name in names if fnmatch.fnmatchcase(name, pattern)])

    def read_bytes(self) -> bytes:
        return bytes(self.disk.inode(self).live)

    def open(self, mode: str) -> VirtualFile:
        return VirtualFile(self, self.disk.open(self, create="w" in mode, truncate="w" in mode))

    def unlink(self, missing_ok: bool = False) -> None:
        folder = self.disk.directory(self.folder)
        if self.name in folder.live:
            self.disk.operate()
            folder.change(self.name, None)
        elif not missing_ok:
            raise _error(errno.ENOENT, str(self))

    def rename(self, target: VirtualPath) -> None:
        assert target.folder == self.folder, "moving between directories is not modelled"
        inode = self.disk.inode(self)
        self.disk.operate()
        self.disk.directory(self.folder).change(target.name, inode, self.name)


class VirtualFile:
    """A buffered binary file: what was not flushed dies with the process."""

    def __init__(self, path: VirtualPath, inode: _Inode) -> None:
        self._disk, self._inode = path.disk, inode
        self._position = 0
        self._buffer = bytearray()
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Exception):
            self.close()

    def write(self, data: bytes) -> int:
        self._buffer += data
        return len(data)

    def flush(self) -> None:
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._disk.write(self._inode, self._position, data)
            self._position += len(data)

    def read(self, size: int = -1) -> bytes:
        end = len(self._inode.live) if size < 0 else self._position + size
        data = bytes(self._inode.live[self._position : end])
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position

    def fileno(self) -> int:
        if self._descriptor < 0:
            self._descriptor = VirtualOs.register(self._disk, self._inode)
        return self._descriptor

    def close(self) -> None:
        self.flush()
        if self._descriptor >= 0:
            VirtualOs.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True)
class _Status:
    st_size: int


class VirtualOs:
    """The functions of `os` on virtual paths and descriptors, in place of the module. No descriptor is used twice."""

    O_RDONLY, O_RDWR, O_CREAT, O_TRUNC = os.O_RDONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC
    O_DIRECTORY, O_CLOEXEC, O_EXCL = os.O_DIRECTORY, os.O_CLOEXEC, os.O_EXCL
    _descriptors: dict[int, tuple[VirtualDisk, _Inode | _Directory]] = {}  # noqa: RUF012 - one table for the process
    _next_descriptor = 1_000_000

    def __init__(self, rng_of: Callable[[Machine | None], random.Random]) -> None:
        self._rng_of = rng_of

    @classmethod
    def register(cls, disk: VirtualDisk, target: _Inode | _Directory) -> int:
        cls._next_descriptor += 1
        cls._descriptors[cls._next_descriptor] = (disk, target)
        return cls._next_descriptor

    @classmethod
    def close(cls, descriptor: int) -> None:
        cls._descriptors.pop(descriptor, None)

    @classmethod
    def forget(cls) -> None:
        """Close what killed machines had open, at the end of a run: it would keep their whole world."""
        cls._descriptors.clear()

    def open(self, path: VirtualPath, flags: int, mode: int = 0o777) -> int:
        del mode
        disk = path.disk
        if flags & self.O_DIRECTORY:
            return self.register(disk, disk.directory(str(path)))
        inode = disk.open(path, create=bool(flags & self.O_CREAT), truncate=bool(flags & self.O_TRUNC))
        return self.register(disk, inode)

    def _inode(self, descriptor: int) -> tuple[VirtualDisk, _Inode]:
        disk, inode = self._descriptors[descriptor]
        assert isinstance(inode, _Inode)
        return disk, inode

    def pwrite(self, descriptor: int, data: bytes | memoryview, offset: int) -> int:
        disk, inode = self._inode(descriptor)
        disk.write(inode, offset, bytes(data))
        return len(data)

    def fdatasync(self, descriptor: int) -> None:
        disk, inode = self._inode(descriptor)
        disk.sync(inode)

    def fsync(self, descriptor: int) -> None:
        disk, target = self._descriptors[descriptor]
        if isinstance(target, _Inode):
            disk.sync(target)
        else:
            disk.operate()
            target.sync()

    def truncate(self, path: VirtualPath, size: int) -> None:
        inode = path.disk.inode(path)
        path.disk.operate()
        inode.truncate(size)

    def fstat(self, descriptor: int) -> _Status:
        return _Status(len(self._inode(descriptor)[1].live))

    def listdir(self, path: VirtualPath) -> list[str]:
        return sorted(path.disk.directory(str(path)).live)

    def urandom(self, size: int) -> bytes:
        return self._rng_of(current_machine()).randbytes(size)
