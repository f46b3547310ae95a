"""The store's twin without disks: the same promises over anonymous memory, for tests and simulations.

Owns: replicas as memory files, so that even sendfile works on them. Refuses to know: directories and identity files.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from dfs.checksum import Buffer, first_bad_block
from dfs.chunk.changes import ReplicaChanges
from dfs.chunk.layout import Tail
from dfs.chunk.replicas import BlockSequence, Done, Pace, Replica, ReplicaWriter, Space, failure_of
from dfs.clock import SYSTEM_CLOCK, Clock
from dfs.errors import ChunkCorrupt, ChunkExists, ChunkNotFound, DiskFull
from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.net.parts import DiskReport


class MemoryReader:
    """A descriptor of its own onto a memory file."""

    def __init__(self, fd: int, tail: Tail) -> None:
        self.fd = fd
        self.start = 0
        self.volume = b""
        self.data = None
        self.tail = tail

    def __enter__(self) -> MemoryReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)


class MemoryStore:
    """A `ChunkStore` of `capacity` bytes (contract: dfs.chunk.replicas)."""

    def __init__(self, server_id: ServerId, capacity: int, clock: Clock = SYSTEM_CLOCK) -> None:
        self.server_id = server_id
        self.changes = ReplicaChanges()
        self._clock = clock
        self._capacity = capacity
        self._used = 0
        self._lock = threading.RLock()
        self._held: dict[ChunkHandle, tuple[Replica, int, Tail]] = {}
        self._being_written: set[ChunkHandle] = set()

    def create(self, handle: ChunkHandle) -> MemoryReplicaWriter:
        with self._lock:
            if handle in self._held or handle in self._being_written:
                raise ChunkExists(f"chunk {id_text(handle)} exists here already; write under a new handle")
            self.take_room(1, reserve_only=True)
            self._being_written.add(handle)
        return MemoryReplicaWriter(self, handle, os.memfd_create(id_text(handle)))

    def adopt(self, path: Path, tail: Tail) -> bool:  # noqa: ARG002 - what is in memory is in no file
        return False

    def publish_all(self, writers: Sequence[tuple[ReplicaWriter, Done]]) -> None:
        for writer, done in writers:
            done(failure_of(writer.publish))

    def take_room(self, size: int, *, reserve_only: bool = False) -> None:
        """Count `size` bytes as used (negative: given back); raise `DiskFull`."""
        with self._lock:
            if self._used + size > self._capacity:
                raise DiskFull(f"memory store of {self._capacity} bytes is full; write elsewhere")
            if not reserve_only:
                self._used += size

    def finish_writing(self, handle: ChunkHandle, fd: int, tail: Tail | None) -> Replica | None:
        """Hear from a writer that it is done; with a tail the replica becomes visible."""
        with self._lock:
            self._being_written.discard(handle)
            if tail is None:
                os.close(fd)
                return None
            replica = Replica(handle, tail.length, tail.crc, self._clock.wall_ms())
            self._held[handle] = (replica, fd, tail)
            self.changes.published(replica)  # under the lock: whoever removes it at once is heard after this
        return replica

    def open(self, handle: ChunkHandle) -> MemoryReader:
        with self._lock:
            entry = self._held.get(handle)
            if entry is None:
                raise ChunkNotFound(f"chunk server {id_text(self.server_id)} has no replica of chunk {id_text(handle)}")
            return MemoryReader(os.dup(entry[1]), entry[2])

    def replica(self, handle: ChunkHandle) -> Replica | None:
        with self._lock:
            entry = self._held.get(handle)
        return entry[0] if entry else None

    def handles(self) -> list[ChunkHandle]:
        with self._lock:
            return sorted(self._held)

    def delete(self, handle: ChunkHandle) -> bool:
        with self._lock:
            entry = self._held.pop(handle, None)
            if entry is not None:
                os.close(entry[1])
                self._used -= entry[2].length
            self.changes.removed(handle)
        return entry is not None

    def verify(self, handle: ChunkHandle, pace: Pace | None = None) -> bool:
        with self.open(handle) as opened:
            if pace is not None:
                pace(opened.tail.length)
            data = os.pread(opened.fd, opened.tail.length, 0)
            is_good = len(data) == opened.tail.length and first_bad_block(data, opened.tail.checksums) is None
        if not is_good:
            self.changes.found_corrupt(handle)
            self.delete(handle)
        return is_good

    def disks(self) -> tuple[DiskReport, ...]:
        with self._lock:
            free, count = self._capacity - self._used, len(self._held)
        state, reason = ("ok", "") if free else ("full", "the capacity is used up")
        return (DiskReport("memory", self._capacity, free, count, state, reason),)

    def space(self) -> Space:
        with self._lock:
            return Space(self._capacity, self._capacity - self._used)

    def close(self) -> None:
        with self._lock:
            for _, fd, _ in self._held.values():
                os.close(fd)
            self._held.clear()


class MemoryReplicaWriter:
    """A replica on its way into a `MemoryStore`."""

    def __init__(self, store: MemoryStore, handle: ChunkHandle, fd: int) -> None:
        self._store = store
        self._handle = handle
        self._fd = fd
        self._blocks = BlockSequence(handle)
        self._crc = 0
        self._is_open = True

    def write(self, data: memoryview, checksums: Buffer) -> None:
        self._blocks.check_next(len(data))
        if first_bad_block(data, checksums) is not None:
            raise ChunkCorrupt(
                f"chunk {id_text(self._handle)}: a block does not match its checksum on arrival; resend",
                handle=id_text(self._handle),
                server=id_text(self._store.server_id),
            )
        self._store.take_room(len(data))
        os.pwrite(self._fd, data, self._blocks.length)
        self._blocks.add(len(data), checksums)

    def check(self, length: int, crc: int) -> None:
        self._blocks.check_finished(length, crc)
        self._crc = crc

    def publish(self) -> Replica:
        tail = Tail(self._handle, self._blocks.length, self._crc, bytes(self._blocks.checksums))
        self._is_open = False
        replica = self._store.finish_writing(self._handle, self._fd, tail)
        assert replica is not None
        return replica

    def discard(self) -> None:
        if self._is_open:
            self._is_open = False
            self._store.take_room(-self._blocks.length)
            self._store.finish_writing(self._handle, self._fd, None)
