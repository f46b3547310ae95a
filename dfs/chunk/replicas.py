"""What a replica is, and what a store of replicas promises: the contract of `FileStore` and `MemoryStore`.

Owns: the `Replica` record and the store, writer and reader interfaces. Refuses to know: disks, sockets and masters.
Both stores pass tests/contract/test_chunk_store.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from dfs.checksum import BLOCK_SIZE, CRC_SIZE, Buffer, block_count, combine_blocks, covering, edges_of
from dfs.chunk.changes import ReplicaChanges
from dfs.chunk.layout import CHUNK_SIZE_MAX, Tail
from dfs.errors import ChunkCorrupt, DfsError, DiskFailed, InvalidArgument, LimitExceeded
from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.net.messages import RANGES_MAX, RANGES_SIZE_MAX
from dfs.net.parts import DiskReport, ReplicaReport


@dataclass(frozen=True, slots=True)
class Replica:
    """A sealed chunk that this server holds. `length` bytes with CRC32C `crc`; `published_ms` is wall-clock time."""

    handle: ChunkHandle
    length: int
    crc: int
    published_ms: int

    def report(self) -> ReplicaReport:
        return ReplicaReport(self.handle, self.length, self.crc)


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of a disk or of all of them. `free` is what chunks may still take: the reserve is already off."""

    capacity: int
    free: int


Done = Callable[[DfsError | None], None]  # is told how it went; raises nothing
Pace = Callable[[int], None]  # is told before so many bytes are read; it may wait, or raise to break off
SpaceProbe = Callable[[Path], Space]  # of a data directory, the reserve still in; raises OSError


class ReplicaWriter(Protocol):
    """One new replica on its way. Nobody sees it before `publish`; used by one thread."""

    def write(self, data: memoryview, checksums: Buffer) -> None:
        """Append `data` (whole blocks, only the last of a chunk may be short) once its checksum list agrees.

        Raise `ChunkCorrupt`, `DiskFull`, `DiskFailed`, `LimitExceeded`, or `InvalidArgument` after a short block.
        """

    def check(self, length: int, crc: int) -> None:
        """Raise `ChunkCorrupt` or `InvalidArgument` unless exactly these bytes were written."""

    def publish(self) -> Replica:
        """Make the replica durable and visible; it stands in the store's changes before this returns.

        `check` comes first. Raise `DiskFull` or `DiskFailed`; the replica is discarded then.
        """

    def discard(self) -> None:
        """Forget an unpublished replica and leave nothing behind; after `publish` it does nothing."""


class ReplicaReader(Protocol):
    """A replica held open: it stays readable until the end of the `with` block, even when it is deleted meanwhile."""

    @property
    def fd(self) -> int:
        """A descriptor that holds the data, `length` bytes from `start` on; use pread or sendfile only."""

    @property
    def start(self) -> int: ...

    @property
    def volume(self) -> bytes:
        """The name of the file, on this server and for ever, when it holds other replicas, too; else nothing."""

    @property
    def tail(self) -> Tail: ...

    @property
    def data(self) -> bytes | None:
        """All of the data, where they were read together with the tail because they are few."""

    def __enter__(self) -> ReplicaReader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ChunkStore(Protocol):
    """All replicas of one chunk server; safe to use from any thread."""

    @property
    def server_id(self) -> ServerId: ...

    @property
    def changes(self) -> ReplicaChanges:
        """Every replica that came or went, for the heartbeats."""

    def create(self, handle: ChunkHandle) -> ReplicaWriter:
        """Begin a new replica. Raise `ChunkExists`, `DiskFull`, `DiskFailed` or `Overloaded`."""

    def adopt(self, path: Path, tail: Tail) -> bool:
        """Let a file that begins with the data of a replica become that replica, whatever stands behind the data.

        False, and nothing done, when the store would not keep such a replica in such a file: write it then. Raise
        `ChunkExists`, `DiskFull` or `DiskFailed`; after any failure the data are still in the file.
        """

    def publish_all(self, writers: Sequence[tuple[ReplicaWriter, Done]]) -> None:
        """Publish replicas as their `publish` does, small ones of one disk with one sync.

        Each `done` hears how that went, from this thread or from another one, perhaps after this has returned.
        """

    def open(self, handle: ChunkHandle) -> ReplicaReader:
        """Open a replica to read it; raise `ChunkNotFound`, `ChunkCorrupt` (it is quarantined then), `DiskFailed`."""

    def replica(self, handle: ChunkHandle) -> Replica | None: ...

    def handles(self) -> list[ChunkHandle]:
        """Return what is held now, ascending."""

    def delete(self, handle: ChunkHandle) -> bool:
        """Remove a replica; whether it was there. Either way it is reported as removed.

        Raise `DiskFull`, `DiskFailed` or `Overloaded` when that cannot be made durable: it is still there then."""

    def verify(self, handle: ChunkHandle, pace: Pace | None = None) -> bool:
        """Read a replica again and compare every block; a bad one is quarantined. Raise `ChunkNotFound`, also when its
        file has gone. With a `pace` it is read from the disk, not from memory, at that pace; nothing is kept in memory.
        """

    def disks(self) -> tuple[DiskReport, ...]: ...

    def space(self) -> Space:
        """Return the sum over working disks, a device shared by several data directories counted once."""

    def close(self) -> None: ...


def failure_of(work: Callable[[], object]) -> DfsError | None:
    """Do something; return what it raised."""
    try:
        work()
    except DfsError as error:
        return error
    return None


class BlockSequence:
    """The checksum list of a replica being written, and the rules of how it may grow."""

    def __init__(self, handle: ChunkHandle) -> None:
        self._handle = handle
        self.length = 0
        self.checksums = bytearray()

    def check_next(self, size: int) -> None:
        """Raise unless `size` more bytes may follow."""
        if self.length % BLOCK_SIZE:
            raise InvalidArgument(
                f"chunk {id_text(self._handle)}: data after a short block at {self.length}; only the last may be short"
            )
        if self.length + size > CHUNK_SIZE_MAX:
            raise LimitExceeded(f"chunk {id_text(self._handle)} would grow over the limit of {CHUNK_SIZE_MAX} bytes")

    def add(self, size: int, checksums: Buffer) -> None:
        self.checksums += checksums
        self.length += size

    def check_finished(self, length: int, crc: int) -> None:
        """Raise unless the bytes so far are the whole chunk: `length` of them with CRC32C `crc`."""
        name = id_text(self._handle)
        if length == 0:
            raise InvalidArgument(f"chunk {name} is empty; a file without bytes needs no chunk")
        if length != self.length:
            raise InvalidArgument(f"chunk {name}: {self.length} bytes were written, {length} are to be sealed")
        if combine_blocks(self.checksums, length) != crc:
            raise ChunkCorrupt(f"chunk {name}: its blocks are sound but do not add up to the CRC it is sealed with")


def ranges_size(handle: ChunkHandle, offsets: Sequence[int], lengths: Sequence[int]) -> int:
    """Return the bytes of all ranges of a ReadRanges; raise `InvalidArgument` when it asks for what cannot be."""
    size = sum(lengths)
    is_sound = len(offsets) == len(lengths) and 0 < len(offsets) <= RANGES_MAX and 0 < size <= RANGES_SIZE_MAX
    if not is_sound or min(offsets) < 0 or min(lengths) <= 0:
        raise InvalidArgument(
            f"{len(offsets)} ranges of {size} bytes of chunk {id_text(handle)} are asked for; 1 to {RANGES_MAX} that "
            f"are not empty, of at most {RANGES_SIZE_MAX} bytes in all, can be"
        )
    return size


def read_cut_ranges(
    opened: ReplicaReader, offsets: Sequence[int], lengths: Sequence[int]
) -> tuple[bytearray, bytes, bytes]:
    """Return (data, checksums, edges) of ranges as in ReadRangesReply; raise `InvalidArgument` or `DiskFailed`."""
    tail, data, checksums, edges = opened.tail, bytearray(), bytearray(), bytearray()
    for offset, length in zip(offsets, lengths, strict=True):
        start, end = covering(offset, length, tail.length)
        checksums += checksums_of(tail, start, max(end, offset + length) - start)
        blocks, skip = memoryview(read_bytes(opened, start, end - start)), offset - start
        edges += edges_of(blocks, skip, length)
        data += blocks[skip : skip + length]
    return data, bytes(checksums), bytes(edges)


def read_bytes(opened: ReplicaReader, offset: int, length: int) -> bytes:
    """Return exactly these bytes of a replica; raise `DiskFailed`."""
    if opened.data is not None:
        return opened.data[offset : offset + length]
    return read_range(opened.fd, opened.start + offset, length)


def read_range(fd: int, offset: int, length: int) -> bytes:
    """Return exactly these bytes of a replica's file; raise `DiskFailed`."""
    try:
        data = os.pread(fd, length, offset)
    except OSError as error:
        raise DiskFailed(f"a replica cannot be read: {error.strerror}") from None
    if len(data) != length:
        raise DiskFailed(f"the file of a replica ends before byte {offset + length}")
    return data


def checksums_of(tail: Tail, offset: int, length: int) -> bytes:
    """Return the checksum list of the blocks of [`offset`, +`length`); raise `InvalidArgument` unless it is a range
    of whole blocks within the chunk."""
    end = offset + length
    is_aligned = offset % BLOCK_SIZE == 0 and (end % BLOCK_SIZE == 0 or end == tail.length)
    if offset < 0 or length <= 0 or end > tail.length or not is_aligned:
        raise InvalidArgument(
            f"bytes [{offset}, {end}) of chunk {id_text(tail.handle)} are not whole {BLOCK_SIZE}-byte blocks "
            f"within its {tail.length} bytes"
        )
    return tail.checksums[offset // BLOCK_SIZE * CRC_SIZE : block_count(end) * CRC_SIZE]
