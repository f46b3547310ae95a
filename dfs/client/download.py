"""From extents to bytes: fetch a file, or a part of it, in parallel, without ever mixing two versions.

Owns: the pages of one version's extents, where their bytes go, and starting again when the file changed. Refuses to
know: how a replica is talked to, and how a leader is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dfs.checksum import BLOCK_SIZE, combine, crc32c
from dfs.client.discovery import Masters
from dfs.client.local_files import TargetFile, check_absent, local_error
from dfs.client.parallel import Cancellation, Meter, in_order
from dfs.client.plan import ReadPlan, clip_range, plan_reads
from dfs.client.transfer import PIECE_SIZE, Transfer
from dfs.clock import Deadline
from dfs.errors import Conflict, InvalidArgument, IsADirectory, LocalFileError, ProtocolError
from dfs.net.frames import PAYLOAD_SIZE_MAX
from dfs.net.messages import Locate, LocateReply
from dfs.net.parts import FileStatus, Kind, LocatedExtent, ServerInfo

STREAM_PIECE_SIZE = 4 * 1024 * 1024  # bytes of one piece that `read` yields
STREAM_WINDOW = 8  # pieces read ahead; with the size above they bound the memory of a stream to 32 MiB
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


class _Version:
    """One version of a file: its extents page by page. Raises `Conflict` as soon as the file is another one."""

    def __init__(self, masters: Masters, path: str, timeout_s: float, stale_ms: int = 0) -> None:
        self._masters = masters
        self._timeout_s = timeout_s
        self._stale_ms = stale_ms
        self.path = path
        self._first = self._locate(0, 0, Deadline.after(timeout_s))
        self.status: FileStatus = self._first.status
        if self.status.kind is Kind.DIRECTORY:
            raise IsADirectory(f"{path!r} is a directory; only files have content")

    def pages(self) -> Iterator[tuple[int, LocateReply]]:
        """Yield (number of the page's first extent, page); pages are not kept."""
        index, page = 0, self._first
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

    def tasks(self, start: int, end: int, piece_size: int) -> Iterator[_Task]:
        """Yield the reads that bring file bytes [`start`, `end`), in order."""
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

    def __init__(self, plan: ReadPlan) -> None:
        self._plan = plan
        self._buffer = memoryview(bytearray(plan.block_length))

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
        self, masters: Masters, transfer: Transfer, timeout_s: float, *, parallel: int, stale_ms: int = 0
    ) -> None:
        self._masters = masters
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
            for piece in self._stream(version, *clip_range(version.status.size, offset, length)):
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
        return self._stream(version, *clip_range(version.status.size, offset, length))

    def checksum(self, path: str) -> FileChecksum:
        """Compose the CRC of a whole file; chunks that belong to it as a whole are not read."""
        version = self._open(path)
        cancellation = Cancellation()
        total = 0

        def part(task: _Task) -> tuple[int, int]:
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
        return _Version(self._masters, path, self._timeout_s, self._stale_ms)

    def _fill(self, version: _Version, file: TargetFile, start: int, end: int, meter: Meter) -> None:
        cancellation = Cancellation()
        file.reserve(end - start)

        def part(task: _Task) -> int:
            destination = _IntoFile(task.plan, file, start, meter)
            self._transfer.read(
                task.plan, task.replicas, destination, cancellation, relocate=version.relocate, path=version.path
            )
            return task.plan.length

        tasks = version.tasks(start, end, PAYLOAD_SIZE_MAX)
        done = sum(in_order(part, tasks, cancellation, workers=self._parallel, window=2 * self._parallel))
        _check_complete(version, done, end - start)

    def _stream(self, version: _Version, start: int, end: int) -> Iterator[memoryview]:
        cancellation = Cancellation()
        done = 0

        def part(task: _Task) -> memoryview:
            destination = _IntoMemory(task.plan)
            self._transfer.read(
                task.plan, task.replicas, destination, cancellation, relocate=version.relocate, path=version.path
            )
            return destination.wanted()

        try:
            tasks = version.tasks(start, end, STREAM_PIECE_SIZE)
            for piece in in_order(part, tasks, cancellation, workers=self._parallel, window=STREAM_WINDOW):
                done += len(piece)
                yield piece
        except Conflict as error:
            raise _changed(version.path, error) from None
        _check_complete(version, done, end - start)


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
