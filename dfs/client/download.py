"""From extents to bytes: fetch a file, or a part of it, in parallel, without ever mixing two versions.

Owns: the pages of one version's extents, where their bytes go, and starting again when the file changed. Refuses to
know: how a replica is talked to, and how a leader is found.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from msgspec import structs

from dfs.checksum import BLOCK_SIZE, combine, crc32c
from dfs.client.discovery import Masters
from dfs.client.extent_table import ExtentTable
from dfs.client.local_files import TargetFile, check_absent, local_error
from dfs.client.memory_stream import MemoryStream
from dfs.client.open_file import DfsFile
from dfs.client.parallel import Cancellation, Meter, in_order
from dfs.client.plan import ReadPlan, clip_range, plan_reads
from dfs.client.pool import ChannelPool
from dfs.client.readings import PIECE_SIZE
from dfs.client.tail_reads import TailSource
from dfs.client.transfer import Transfer
from dfs.clock import Deadline
from dfs.errors import (
    ChunkCorrupt,
    Conflict,
    DfsError,
    InvalidArgument,
    IsADirectory,
    LocalFileError,
    ProtocolError,
    Retry,
    StaleReplica,
    TokenExpired,
)
from dfs.net.buffers import BufferPool
from dfs.net.frames import PAYLOAD_SIZE_MAX
from dfs.net.messages import CloseTail, Done, Locate, LocateReply
from dfs.net.parts import FileStatus, Kind, LocatedExtent, ServerInfo

STREAM_PIECE_SIZE = 4 * 1024 * 1024  # bytes of one piece that `read` yields
STREAM_WINDOW = 4  # pieces read ahead; with the size above they bound the memory of a stream to 16 MiB
STREAM_RUN = 128  # pieces fetched ahead, where one was not in memory here, before memory is looked at again
STREAM_BUFFERS = STREAM_WINDOW + 4  # used again and again: those ahead, and what a caller holds for a moment
FOLLOW_WAIT_S = 2.0  # that the head of a tail is asked to wait for new records
FOLLOW_ROUNDS = 2  # without records, before the masters are asked whether it is still the tail
RESTARTS_MAX = 3  # of a get whose file is replaced while it runs
assert STREAM_PIECE_SIZE % BLOCK_SIZE == 0
assert PAYLOAD_SIZE_MAX % BLOCK_SIZE == 0


@dataclass(frozen=True, slots=True)
class FileChecksum:
    """The checksum of a file's content: `value` in hex digits."""

    algorithm: str
    value: str
    size: int


@dataclass(frozen=True, slots=True)
class _Task:
    plan: ReadPlan
    replicas: tuple[ServerInfo, ...]


@dataclass(frozen=True, slots=True)
class _TailTask:
    """File bytes [`start`, `end`) stand in the open tail."""

    start: int
    end: int


class _Version:
    """One version of a file: its extents page by page, and what was committed in its tail when it was opened.

    Raises `Conflict` as soon as the file is another one. What is appended meanwhile does not make it another one.
    """

    def __init__(
        self, masters: Masters, pool: ChannelPool, path: str, timeout_s: float, *, stale_ms: int = 0, version: int = 0
    ) -> None:
        """`version`: one that the file must still begin with; 0: none."""
        self._masters = masters
        self._pool = pool
        self._timeout_s = timeout_s
        self._stale_ms = stale_ms
        self.path = path
        deadline = Deadline.after(timeout_s)
        while True:
            self.first = self._locate(0, version, deadline)
            self.status: FileStatus = self.first.status
            self.tail: TailSource | None = None
            if not self.first.tail:
                break
            self.tail = TailSource(pool, self.first.tail[0], self.first.servers)
            try:
                size = self.tail.committed()
            except DfsError as error:
                self.seal_tail(error, deadline)
                continue
            self.status = structs.replace(self.status, size=size, stored_size=size * self.status.replication)
            break
        if self.status.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{path!r} is a directory; only files have content")

    def seal_tail(self, error: DfsError, deadline: Deadline) -> None:
        """Have a tail sealed that could not be read; raise the error when that is no remedy."""
        if self.tail is None or (error.retry is Retry.NEVER or deadline.has_passed):
            raise error
        self._stale_ms = 0
        if not isinstance(error, TokenExpired):
            self._masters.call(CloseTail(self.path, self.tail.handle), Done, deadline)

    def again(self, error: DfsError) -> _Version:
        """Return this file opened anew after its tail could not be read: its bytes are in extents then."""
        self.seal_tail(error, Deadline.after(self._timeout_s))
        return _Version(self._masters, self._pool, self.path, self._timeout_s, version=self.status.version)

    def pages(self) -> Iterator[tuple[int, LocateReply]]:
        """Yield (number of the page's first extent, page); pages are not kept."""
        index, page = 0, self.first
        while True:
            yield index, page
            if not page.has_more:
                return
            if not page.extents:
                raise ProtocolError(
                    "a master sent an empty page of extents that has a next one; is it of another version?"
                )
            index += len(page.extents)
            page = self._locate(index, self.status.version, Deadline.after(self._timeout_s))

    def table(self) -> ExtentTable:
        """Return the places of all bytes that are not in the tail; pages are fetched when they are needed."""

        def locate(index: int) -> LocateReply:
            return self._locate(index, self.status.version, Deadline.after(self._timeout_s))

        return ExtentTable(self.first, locate)

    def tasks(self, start: int, end: int, piece_size: int) -> Iterator[_Task | _TailTask]:
        """Yield the reads that bring file bytes [`start`, `end`), in order."""
        base = self.tail.base if self.tail is not None else end
        yield from self._sealed_tasks(start, min(end, base), piece_size)
        for position in range(max(start, base), end, STREAM_PIECE_SIZE):
            yield _TailTask(position, min(end, position + STREAM_PIECE_SIZE))

    def _sealed_tasks(self, start: int, end: int, piece_size: int) -> Iterator[_Task]:
        if start >= end:
            return
        for index, page in self.pages():
            for plan in plan_reads(page.extents, index, page.first_offset, start=start, end=end, piece_size=piece_size):
                yield _Task(plan, _replicas(page, plan.extent))
            if page.first_offset + sum(extent.length for extent in page.extents) >= end:
                return

    def relocate(self, plan: ReadPlan, deadline: Deadline) -> tuple[LocatedExtent, tuple[ServerInfo, ...]]:
        """Return the present replicas of a read's chunk, with a fresh token; only the leader knows who lives."""
        self._stale_ms = 0
        page = self._locate(plan.extent_index, self.status.version, deadline)
        if not page.extents or page.extents[0].handle != plan.extent.handle:
            raise ProtocolError(f"a master located another chunk at extent {plan.extent_index} of the same version")
        return page.extents[0], _replicas(page, page.extents[0])

    def _locate(self, index: int, version: int, deadline: Deadline) -> LocateReply:
        if self._stale_ms:
            try:
                message = Locate(self.path, index, version, self._stale_ms)
                return self._masters.call_any(message, LocateReply, deadline)
            except Conflict:  # that master is behind the one which told the version
                if not version:
                    raise
        return self._masters.call(Locate(self.path, index, version), LocateReply, deadline)


def _replicas(page: LocateReply, extent: LocatedExtent) -> tuple[ServerInfo, ...]:
    servers = page.servers
    return tuple(servers[index] for index in extent.replicas if 0 <= index < len(servers))


class _IntoFile:
    """Destination: wanted bytes go to their place in a local file."""

    def __init__(self, plan: ReadPlan, target: TargetFile, base: int, meter: Meter) -> None:
        self._plan = plan
        self._target = target
        self._base = base  # file offset of the target's first byte
        self._meter = meter
        self._buffer = memoryview(bytearray(min(PIECE_SIZE, plan.block_length)))

    def window(self, position: int, size: int) -> memoryview:  # noqa: ARG002 - the buffer is used again
        return self._buffer[:size]

    def accept(self, position: int, data: memoryview) -> None:
        skip, length, offset = self._plan.wanted(position, len(data))
        self._target.write(data[skip : skip + length], offset - self._base)
        self._meter.advance(length)


class _IntoMemory:
    """Destination: all blocks of one plan in one buffer of their own."""

    def __init__(self, plan: ReadPlan, buffers: BufferPool) -> None:
        self._plan = plan
        self._buffer = buffers.take(plan.block_length)

    def window(self, position: int, size: int) -> memoryview:
        start = position - self._plan.block_offset
        return self._buffer[start : start + size]

    def accept(self, position: int, data: memoryview) -> None:
        """The bytes are in place."""

    def wanted(self) -> memoryview:
        skip, length, _ = self._plan.wanted(self._plan.block_offset, self._plan.block_length)
        return self._buffer[skip : skip + length]


class _IntoChecksum:
    """Destination: only the CRC of the wanted bytes is kept."""

    def __init__(self, plan: ReadPlan) -> None:
        self._plan = plan
        self._buffer = memoryview(bytearray(min(PIECE_SIZE, plan.block_length)))
        self.crc = 0

    def window(self, position: int, size: int) -> memoryview:  # noqa: ARG002 - the buffer is used again
        return self._buffer[:size]

    def accept(self, position: int, data: memoryview) -> None:
        skip, length, _ = self._plan.wanted(position, len(data))
        self.crc = crc32c(data[skip : skip + length], self.crc)


class Download:
    """Fetches files. Holds no state of its own between calls."""

    def __init__(
        self,
        masters: Masters,
        pool: ChannelPool,
        transfer: Transfer,
        timeout_s: float,
        *,
        parallel: int,
        stale_ms: int = 0,
    ) -> None:
        self._masters = masters
        self._pool = pool
        self._transfer = transfer
        self._timeout_s = timeout_s
        self._parallel = parallel
        self._stale_ms = stale_ms

    def get(
        self,
        path: str,
        target: Path | BinaryIO,
        *,
        overwrite: bool,
        offset: int,
        length: int | None,
        progress: Callable[[int], None] | None,
    ) -> FileStatus:
        """Fetch into a local file that appears whole, or into a stream."""
        _check_range(offset, length)
        meter = Meter(progress)
        if not isinstance(target, Path):
            version = self._open(path)
            for piece in self.stream(version, *clip_range(version.status.size, offset, length)):
                _write_stream(target, piece)
                meter.advance(len(piece))
            return version.status
        if not overwrite:
            check_absent(target)
        version = self._open(path)
        file = TargetFile(target)
        try:
            for restarts_left in range(RESTARTS_MAX, -1, -1):
                try:
                    self._fill(version, file, *clip_range(version.status.size, offset, length), meter)
                    break
                except Conflict as error:
                    if not restarts_left:
                        raise _changed(path, error) from None
                    meter.restart()
                    version = self._open(path)
            file.publish(overwrite=overwrite)
        finally:
            file.close()
        return version.status

    def extents(self, path: str) -> tuple[FileStatus, list[LocatedExtent]]:
        """Return a file's status and all extents of that version."""
        version = self._open(path)
        return version.status, [extent for _, page in version.pages() for extent in page.extents]

    def read(self, path: str, *, offset: int, length: int | None) -> Iterator[memoryview]:
        """Locate the file now, and yield its bytes in order."""
        _check_range(offset, length)
        version = self._open(path)
        start, end = clip_range(version.status.size, offset, length)
        block = self._block_at_hand(version, start, end)
        return self.stream(version, start, end) if block is None else iter((block,))

    def _block_at_hand(self, version: _Version, start: int, end: int) -> memoryview | None:
        """Return the bytes of a file that is one block and lies in memory here; None: read it in the ordinary way."""
        page, reader = version.first, self._transfer.reader
        if len(page.extents) != 1 or page.has_more or version.tail is not None:
            return None
        extent = page.extents[0]
        if not start < end <= extent.length or not extent.chunk_offset + end <= extent.chunk_length <= BLOCK_SIZE:
            return None
        replica = reader.at_hand(extent, _replicas(page, extent))
        if replica is None:
            return None
        buffer = memoryview(bytearray(replica.length))
        try:
            if not replica.read(0, buffer):
                return None
        except ChunkCorrupt:
            reader.refute(extent, replica)
            return None
        reader.note_local()
        return buffer[extent.chunk_offset + start : extent.chunk_offset + end]

    def open(self, path: str) -> DfsFile:
        """Return the present version of a file, held open for reading."""
        version = self._open(path)
        return DfsFile(
            version.status,
            version.table(),
            self._transfer.reader,
            sealed_size=version.status.size if version.tail is None else version.tail.base,
            stream=lambda start, end: self.stream(version, start, end),
            relocate=version.relocate,
            parallel=self._parallel,
        )

    def checksum(self, path: str) -> FileChecksum:
        """Compose the CRC of a whole file; chunks that belong to it as a whole are not read."""
        version = self._open(path)
        cancellation = Cancellation()
        total = 0

        def part(task: _Task | _TailTask) -> tuple[int, int]:
            if isinstance(task, _TailTask):
                data = self._tail_bytes(version, task.start, task.end)
                return crc32c(data), len(data)
            plan = task.plan
            if plan.length == plan.extent.chunk_length:
                return plan.extent.chunk_crc, plan.length
            destination = _IntoChecksum(plan)
            self._transfer.read(plan, task.replicas, destination, cancellation, relocate=version.relocate, path=path)
            return destination.crc, plan.length

        try:
            tasks = version.tasks(0, version.status.size, PAYLOAD_SIZE_MAX)
            for crc, size in in_order(part, tasks, cancellation, workers=self._parallel, window=2 * self._parallel):
                total = combine(total, crc, size)
        except Conflict as error:
            raise _changed(path, error) from None
        return FileChecksum("crc32c", f"{total:08x}", version.status.size)

    def _open(self, path: str) -> _Version:
        return _Version(self._masters, self._pool, path, self._timeout_s, stale_ms=self._stale_ms)

    def status(self, path: str) -> FileStatus:
        """Return the status of a file with what is committed in its open tail."""
        return self._open(path).status

    def follow(self, path: str, offset: int, pause_s: float) -> Iterator[bytes]:
        """Yield the content from an offset on, and what is appended, for ever; `Conflict` when the file is replaced."""
        version = self._open(path)
        while True:
            size = version.status.size
            if offset > size:
                raise Conflict(f"{path!r} has {size} bytes, less than the {offset} that were read already")
            for piece in self.stream(version, offset, size):
                offset += len(piece)
                yield bytes(piece)
            for record in self._new_records(version, offset, pause_s):
                offset += len(record)
                yield record
            version = _Version(self._masters, self._pool, path, self._timeout_s, version=version.status.version)

    def _new_records(self, version: _Version, offset: int, pause_s: float) -> Iterator[bytes]:
        """Yield records as they are committed to the tail, until it ends or says nothing for a while."""
        if version.tail is None:
            time.sleep(pause_s)
            return
        quiet = 0
        while quiet < FOLLOW_ROUNDS:
            try:
                found = version.tail.read(offset, wait_s=FOLLOW_WAIT_S)
            except DfsError as error:
                version.seal_tail(error, Deadline.after(self._timeout_s))
                return
            quiet = 0 if found.records else quiet + 1
            for record in found.records:
                offset += len(record)
                yield bytes(record)

    def _tail_bytes(self, version: _Version, start: int, end: int) -> bytes:
        """Return bytes of the tail, or of the extents that it became meanwhile."""
        pieces: list[bytes] = []
        position = start
        while position < end:
            assert version.tail is not None, "only a version with a tail has such reads"
            try:
                piece = version.tail.read(position, end - position).between(position, end)
                if not piece:
                    raise StaleReplica(f"the tail of {version.path!r} ends before byte {end}, which was committed")
            except DfsError as error:
                pieces += map(bytes, self.stream(version.again(error), position, end))
                break
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces)

    def _fill(self, version: _Version, file: TargetFile, start: int, end: int, meter: Meter) -> None:
        cancellation = Cancellation()
        file.reserve(end - start)

        def part(task: _Task | _TailTask) -> int:
            if isinstance(task, _TailTask):
                data = self._tail_bytes(version, task.start, task.end)
                file.write(memoryview(data), task.start - start)
                meter.advance(len(data))
                return len(data)
            destination = _IntoFile(task.plan, file, start, meter)
            self._transfer.read(
                task.plan, task.replicas, destination, cancellation, relocate=version.relocate, path=version.path
            )
            return task.plan.length

        tasks = version.tasks(start, end, PAYLOAD_SIZE_MAX)
        done = sum(in_order(part, tasks, cancellation, workers=self._parallel, window=2 * self._parallel))
        _check_complete(version, done, end - start)

    def stream(self, version: _Version, start: int, end: int) -> Iterator[memoryview]:
        """Yield bytes in order, in pieces that belong to the caller: from memory here, or fetched ahead."""
        done = 0
        try:
            for piece in self._pieces(version, version.tasks(start, end, STREAM_PIECE_SIZE)):
                done += len(piece)
                yield piece
                del piece  # its memory is used again as soon as the caller has let go of it
        except Conflict as error:
            raise _changed(version.path, error) from None
        _check_complete(version, done, end - start)

    def _pieces(self, version: _Version, tasks: Iterator[_Task | _TailTask]) -> Iterator[memoryview]:
        buffers = BufferPool(STREAM_PIECE_SIZE + BLOCK_SIZE, STREAM_BUFFERS)
        cancellation = Cancellation()

        def part(task: _Task | _TailTask) -> memoryview:
            if isinstance(task, _TailTask):
                return memoryview(self._tail_bytes(version, task.start, task.end))
            destination = _IntoMemory(task.plan, buffers)
            self._transfer.read(
                task.plan, task.replicas, destination, cancellation, relocate=version.relocate, path=version.path
            )
            return destination.wanted()

        memory = MemoryStream()
        while rest := (yield from self._from_memory(tasks, memory)):
            ahead = itertools.chain((rest,), itertools.islice(tasks, STREAM_RUN - 1))
            yield from in_order(part, ahead, cancellation, workers=self._parallel, window=STREAM_WINDOW)

    def _from_memory(
        self, tasks: Iterator[_Task | _TailTask], memory: MemoryStream
    ) -> Generator[memoryview, None, _Task | _TailTask | None]:
        """Yield what lies in this machine's memory; return the first read that does not wholly, None at the end."""
        for task in tasks:
            if isinstance(task, _TailTask):
                return task
            replica = self._transfer.reader.at_hand(task.plan.extent, task.replicas)
            if replica is None:
                return task
            left = yield from memory.pieces(task.plan, replica)
            if left is not None:
                if replica.is_damaged:
                    self._transfer.reader.refute(task.plan.extent, replica)
                return _Task(left, task.replicas)
            self._transfer.reader.note_local()
        return None


def _write_stream(target: BinaryIO, piece: memoryview) -> None:
    try:
        while piece:
            count = target.write(piece)
            if not count:  # None: a non-blocking stream that is full is not waited for
                raise LocalFileError("the target is a non-blocking stream that takes no more; give a blocking one")
            piece = piece[count:]
    except (BrokenPipeError, LocalFileError):
        raise  # the reader of a pipe left: a front end's business, not a failure
    except OSError as error:
        raise local_error(error, "write", getattr(target, "name", "stream")) from None


def _check_range(offset: int, length: int | None) -> None:
    if offset < 0 or (length is not None and length < 0):
        raise InvalidArgument(f"offset {offset} and length {length} must not be negative")


def _check_complete(version: _Version, done: int, wanted: int) -> None:
    if done != wanted:
        raise ProtocolError(
            f"the extents of {version.path!r} cover {done} of {wanted} bytes; the masters contradict themselves: "
            "see `dfs fsck`"
        )


def _changed(path: str, error: Conflict) -> Conflict:
    return Conflict(f"{path!r} was changed by somebody while it was read; read it again ({error.message})")
