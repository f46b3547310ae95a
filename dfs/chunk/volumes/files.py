"""Volumes held open for reading, and a small replica opened in one of them.

Owns: the read descriptors of volumes and when they are closed, whole reads and writes. Refuses to know: where a replica
is, and what counts.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from dfs.checksum import Buffer
from dfs.chunk.layout import Tail
from dfs.chunk.volumes.records import VolumeName

WHOLE_SIZE_MAX = 16 * 1024  # bytes of a replica whose data are read with its tail, in one call of the system
BUFFERS_MAX = 1000  # in one call of the system, which takes 1024
OPEN_VOLUMES_MAX = 64  # of one disk: 4 GiB of small chunks that are read without opening a file


class _SharedFile:
    __slots__ = ("fd", "is_kept", "readers")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.readers = 0
        self.is_kept = True


class OpenRecord:
    """A small replica that is being read (contract: dfs.chunk.replicas.ReplicaReader)."""

    __slots__ = ("_file", "_files", "_name", "data", "fd", "start", "tail")

    def __init__(
        self, files: VolumeFiles, file: _SharedFile, name: VolumeName, start: int, tail: Tail, data: bytes | None
    ) -> None:
        self.fd = file.fd
        self._name = name
        self.start = start
        self.tail = tail
        self.data = data
        self._files = files
        self._file = file

    @property
    def volume(self) -> bytes:
        return self._name.key

    def __enter__(self) -> OpenRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.release(self._file)


class VolumeFiles:
    """Descriptors by volume number, the least recently used go first; those in use stay open until released."""

    def __init__(self, size_max: int = OPEN_VOLUMES_MAX) -> None:
        self._size_max = size_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, _SharedFile] = OrderedDict()

    def take(self, number: int, path: Path, is_current: Callable[[], bool]) -> _SharedFile:
        """Return the open volume, taken once more; raise `OSError` when it cannot be opened.

        `is_current` is asked under the lock: a volume that was removed while it was being opened is not kept.
        """
        with self._lock:
            file = self._kept.get(number)
            if file is not None:
                self._kept.move_to_end(number)
                file.readers += 1
                return file
        opened = _SharedFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        opened.readers = 1
        with self._lock:
            if number in self._kept or not is_current():  # somebody was faster: this one lives as long as its reader
                opened.is_kept = False
                return opened
            self._kept[number] = opened
            oldest = self._kept.popitem(last=False)[1] if len(self._kept) > self._size_max else None
            is_closing = oldest is not None and self._drop(oldest)
        if oldest is not None and is_closing:
            os.close(oldest.fd)
        return opened

    def release(self, file: _SharedFile) -> None:
        with self._lock:
            file.readers -= 1
            is_closing = not file.readers and not file.is_kept
        if is_closing:
            os.close(file.fd)

    def evict(self, number: int) -> None:
        """Forget a volume that was removed; present readers go on."""
        with self._lock:
            file = self._kept.pop(number, None)
            is_closing = file is not None and self._drop(file)
        if file is not None and is_closing:
            os.close(file.fd)

    @staticmethod
    def _drop(file: _SharedFile) -> bool:
        file.is_kept = False
        return not file.readers

    def close(self) -> None:
        for number in list(self._kept):
            self.evict(number)


def read_whole(fd: int, start: int, size: int) -> bytes:
    """Return a record's data and tail, nothing when they cannot be read: then each is read, and judged, for itself."""
    try:
        whole = os.pread(fd, size, start)
    except OSError:
        return b""
    return whole if len(whole) == size else b""


def write_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write all buffers one behind the other from `offset` on."""
    for first in range(0, len(buffers), BUFFERS_MAX):
        part = buffers[first : first + BUFFERS_MAX]
        size = sum(map(len, part))
        written = os.pwritev(fd, part, offset)
        if written < size:
            rest = memoryview(b"".join(part))
            while written < size:
                written += os.pwrite(fd, rest[written:], offset + written)
        offset += size
