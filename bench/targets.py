"""File systems by their calls: a cluster, or any folder (the local disk, a peer's mount), so that all do the same work.

Owns: how each call is made, durable where the cluster's is. Refuses to know: what is measured, and how long it takes.
"""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dfs.client import ClusterAccess, DfsClient
from dfs.config import MIB
from dfs.testing.cluster import wait_until

TIMEOUT_S = 120.0
DRAIN_WAIT_S = 60.0

ReadAt = Callable[[int, int], int]  # (offset, size) -> bytes read


class Target(Protocol):
    """What is measured: a file system, by its calls. Paths are absolute."""

    def put(self, path: str, data: bytes) -> None: ...

    def put_file(self, source: Path, path: str) -> None: ...

    def sync(self, path: str) -> None: ...

    def get(self, path: str) -> int: ...

    def get_file(self, path: str, target: Path) -> None: ...

    def mkdir(self, path: str) -> None: ...

    def touch(self, path: str) -> None: ...

    def stat(self, path: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def count(self, path: str) -> int: ...

    def remove(self, path: str) -> None: ...

    def remove_tree(self, path: str) -> None: ...

    def opened(self, path: str) -> ReadAt: ...

    def drain(self) -> None: ...


class DfsTarget:
    """A client of the cluster."""

    def __init__(self, client: DfsClient) -> None:
        self.client = client

    def put(self, path: str, data: bytes) -> None:
        self.client.put(io.BytesIO(data), path)

    def put_file(self, source: Path, path: str) -> None:
        self.client.put(source, path)

    def sync(self, path: str) -> None:
        """Nothing is left to do: a put is durable when it returns."""

    def get(self, path: str) -> int:
        return sum(map(len, self.client.read(path)))

    def get_file(self, path: str, target: Path) -> None:
        self.client.get(path, target)

    def mkdir(self, path: str) -> None:
        self.client.make_directory(path)

    def touch(self, path: str) -> None:
        self.client.touch(path)

    def stat(self, path: str) -> None:
        self.client.stat(path)

    def rename(self, source: str, target: str) -> None:
        self.client.rename(source, target)

    def count(self, path: str) -> int:
        return sum(1 for _ in self.client.list(path))

    def remove(self, path: str) -> None:
        self.client.delete(path, skip_trash=True)

    def remove_tree(self, path: str) -> None:
        self.client.delete(path, recursive=True, skip_trash=True)

    def opened(self, path: str) -> ReadAt:
        file = self.client.open(path)
        return lambda offset, size: len(file.read_at(offset, size))

    def drain(self) -> None:
        """Wait until deleted chunks have left the disks."""
        wait_until(
            lambda: self.client.cluster_status().space.garbage_count == 0, DRAIN_WAIT_S, "all garbage is collected"
        )


class FolderTarget:
    """A folder of this machine: its disk, or a mounted peer. Small files are synced, as dfs syncs them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _place(self, path: str) -> str:
        return f"{self._root}{path}"

    def put(self, path: str, data: bytes) -> None:
        fd = os.open(self._place(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)

    def put_file(self, source: Path, path: str) -> None:
        copy(source, Path(self._place(path)))

    def sync(self, path: str) -> None:
        sync_file(Path(self._place(path)))

    def get(self, path: str) -> int:
        size, buffer = 0, bytearray(MIB)
        with open(self._place(path), "rb", buffering=0) as file:  # noqa: PTH123 - a Path each would be measured, too
            while count := file.readinto(buffer):
                size += count
        return size

    def get_file(self, path: str, target: Path) -> None:
        copy(Path(self._place(path)), target)

    def mkdir(self, path: str) -> None:
        os.mkdir(self._place(path))  # noqa: PTH102

    def touch(self, path: str) -> None:
        os.close(os.open(self._place(path), os.O_WRONLY | os.O_CREAT, 0o600))

    def stat(self, path: str) -> None:
        os.stat(self._place(path))  # noqa: PTH116

    def rename(self, source: str, target: str) -> None:
        os.rename(self._place(source), self._place(target))  # noqa: PTH104

    def count(self, path: str) -> int:
        return len([entry.stat() for entry in os.scandir(self._place(path))])

    def remove(self, path: str) -> None:
        os.unlink(self._place(path))  # noqa: PTH108

    def remove_tree(self, path: str) -> None:
        subprocess.run(["rm", "-rf", self._place(path)], check=True)

    def opened(self, path: str) -> ReadAt:
        fd = os.open(self._place(path), os.O_RDONLY)
        return lambda offset, size: len(os.pread(fd, size, offset))

    def forget(self, path: str) -> None:
        """Let the kernel drop what it has cached of a file, so that a mount has to fetch it."""
        fd = os.open(self._place(path), os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def drain(self) -> None:
        """Nothing waits: what was removed is gone."""


@dataclass(frozen=True, slots=True)
class Where:
    """A target as another process can make it: a cluster, or a folder."""

    subject: str
    access: ClusterAccess | None = None
    root: Path | None = None

    @contextmanager
    def opened(self) -> Iterator[Target]:
        if self.access is None:
            assert self.root is not None, "neither a cluster nor a folder"
            yield FolderTarget(self.root)
            return
        with DfsClient(self.access, timeout_s=TIMEOUT_S) as client:
            client.stat("/")  # connected: no mount connects when it is used
            yield DfsTarget(client)


def copy(source: Path, target: Path) -> None:
    """Copy as a person would; no block is shared."""
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
