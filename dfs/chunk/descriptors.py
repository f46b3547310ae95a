"""Recently read replicas, held open with their checksum lists: a read of a warm chunk touches no folder.

Owns: the open descriptors and when they are closed. Refuses to know: where files are and whether they may be read.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType

from dfs.chunk.layout import Tail
from dfs.ids import ChunkHandle

FD_CACHE_MAX = 256  # replicas held open, 4 KiB of checksums each at 64 MiB


class OpenReplica:
    """A descriptor and its tail, shared by readers; closed when the last of them lets go of an evicted one."""

    __slots__ = ("_cache", "fd", "is_kept", "readers", "start", "tail")

    def __init__(self, cache: DescriptorCache, fd: int, tail: Tail) -> None:
        self.fd = fd
        self.start = 0  # of the data in the file
        self.tail = tail
        self.readers = 0
        self.is_kept = True
        self._cache = cache

    @property
    def volume(self) -> bytes:
        return b""

    @property
    def data(self) -> None:
        return None

    def __enter__(self) -> OpenReplica:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cache.release(self)


class DescriptorCache:
    """Least recently used descriptors go first; those in use stay open until they are released."""

    def __init__(self, size_max: int = FD_CACHE_MAX) -> None:
        self._size_max = size_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[ChunkHandle, OpenReplica] = OrderedDict()

    def get(self, handle: ChunkHandle) -> OpenReplica | None:
        """Return the open replica, taken once more, or None."""
        with self._lock:
            found = self._kept.get(handle)
            if found is not None:
                self._kept.move_to_end(handle)
                found.readers += 1
            return found

    def put(self, fd: int, tail: Tail, is_current: Callable[[], bool]) -> OpenReplica:
        """Keep a descriptor and return it taken once. `is_current` is asked under the lock: a replica that was deleted
        while it was being opened is handed out, but not kept."""
        opened = OpenReplica(self, fd, tail)
        opened.readers = 1
        with self._lock:
            if tail.handle in self._kept or not is_current():
                opened.is_kept = False
                return opened
            self._kept[tail.handle] = opened
            evicted = self._kept.popitem(last=False)[1] if len(self._kept) > self._size_max else None
            closing = evicted is not None and self._drop(evicted)
        if evicted is not None and closing:
            os.close(evicted.fd)
        return opened

    def release(self, opened: OpenReplica) -> None:
        with self._lock:
            opened.readers -= 1
            closing = opened.readers == 0 and not opened.is_kept
        if closing:
            os.close(opened.fd)

    def evict(self, handle: ChunkHandle) -> None:
        """Forget a replica that is gone; present readers may finish."""
        with self._lock:
            opened = self._kept.pop(handle, None)
            closing = opened is not None and self._drop(opened)
        if opened is not None and closing:
            os.close(opened.fd)

    @staticmethod
    def _drop(opened: OpenReplica) -> bool:
        opened.is_kept = False
        return opened.readers == 0

    def close(self) -> None:
        for handle in list(self._kept):
            self.evict(handle)
