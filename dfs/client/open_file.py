"""A file of the cluster that is held open for reading: a stream with readahead, and reads at any place.

Owns: the position, which reads are a stream, and cutting ranges along extents. Refuses to know: how a replica is talked
to, how a leader is found, and how a stream is fetched ahead (dfs.client.download).

The object keeps to the version that the file had when it was opened: what is appended or put in its place later is not
seen. Extents are located once, and again only when no known replica of a chunk gives it.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from dfs.client.extent_table import ExtentTable, Located
from dfs.client.ownership import Owner
from dfs.client.parallel import Cancellation, in_order
from dfs.client.plan import ReadPlan
from dfs.client.readings import Cut, RangeReading
from dfs.client.replica_reads import ReplicaReader
from dfs.clock import Deadline
from dfs.errors import InvalidArgument
from dfs.fast_paths import FastPath, is_on
from dfs.net.messages import RANGES_SIZE_MAX
from dfs.net.parts import FileStatus, LocatedExtent, ServerInfo

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

RANGE_SIZE_MAX: Final = 1024 * 1024  # bytes of a range up to which it is fetched as one; longer ones are streams
STREAM_AFTER: Final = 2  # reads, each where the one before it ended, before what follows is fetched ahead

Stream = Callable[[int, int], Iterator[memoryview]]  # the bytes [start, end) of the version, fetched ahead
Relocate = Callable[[ReadPlan, Deadline], tuple[LocatedExtent, tuple[ServerInfo, ...]]]


class DfsFile(io.RawIOBase):
    """An open file (`DfsClient.open`); errors are those of dfs.errors.

    `read_at`, `read_ranges` may be called by any number of threads at once; `read`, `readinto` and `seek` share one
    position and take turns. `io.BufferedReader` and `io.TextIOWrapper` work on top of it.
    """

    def __init__(
        self,
        status: FileStatus,
        table: ExtentTable,
        reader: ReplicaReader,
        *,
        sealed_size: int,
        stream: Stream,
        relocate: Relocate,
        parallel: int,
    ) -> None:
        """`sealed_size`: bytes in extents; what is behind them stands in the open tail and is read by `stream`."""
        super().__init__()
        self.status = status
        self.name = status.path
        self._table = table
        self._reader = reader
        self._sealed_size = sealed_size
        self._fetch = stream
        self._takes_cuts = is_on(FastPath.CUT_RANGES)
        self._relocate = relocate
        self._parallel = parallel
        self._owner = Owner()
        self._lock = threading.RLock()
        self._position = 0
        self._run = 0  # reads in a row
        self._run_end = 0  # where the last one ended
        self._pieces: Iterator[memoryview] | None = None  # the running stream
        self._piece = memoryview(b"")  # what it has given and was not read yet

    @property
    def size(self) -> int:
        return self.status.size

    @property
    def version(self) -> int:
        return self.status.version

    # --- at any place ---------------------------------------------------------------------------------------

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset` on, fewer only at the file's end; the position stays."""
        return self.read_ranges(((offset, length),))[0]

    def readinto_at(self, offset: int, buffer: WriteableBuffer) -> int:
        """Fill `buffer` from `offset` on, without a copy on the way; return the bytes got, fewer only at the end."""
        view = memoryview(buffer).cast("B")
        start, end = self._clipped(offset, len(view))
        self._fill([(start, view[: end - start])])
        return end - start

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each (offset, length), fewer only at the file's end.

        All ranges of a chunk are asked for at once, of one server; different chunks at the same time.
        """
        clipped = [self._clipped(offset, length) for offset, length in ranges]
        found = [bytearray(end - start) for start, end in clipped]
        self._fill([(start, memoryview(data)) for (start, _), data in zip(clipped, found, strict=True)])
        return [bytes(data) for data in found]

    def _clipped(self, offset: int, length: int) -> tuple[int, int]:
        self._check_open()
        if offset < 0 or length < 0:
            raise InvalidArgument(f"offset {offset} and length {length} must not be negative")
        start = min(offset, self.size)
        return start, min(self.size, start + length)

    def _fill(self, wanted: Sequence[tuple[int, memoryview]]) -> None:
        """Bring the bytes at each offset into the memory beside it."""
        chunks: dict[int, tuple[Located, list[Cut]]] = {}
        for start, view in wanted:
            self._cut(start, view, chunks)
        cancellation = Cancellation()

        def read(item: tuple[Located, list[Cut]]) -> None:
            located, cuts = item
            extent = located.extent
            first = min(cut.offset for cut in cuts)
            length = max(cut.offset + len(cut.view) for cut in cuts) - first
            place = located.offset + first - extent.chunk_offset
            plan = ReadPlan(located.index, extent, place, first, length, first, length)
            reading = RangeReading(plan, located.replicas, cuts)
            self._reader.read(reading, cancellation, relocate=self._relocated(located), path=self.name)

        for _ in in_order(read, chunks.values(), cancellation, workers=self._parallel, window=2 * self._parallel):
            pass

    def _cut(self, start: int, view: memoryview, chunks: dict[int, tuple[Located, list[Cut]]]) -> None:
        """Add the parts of a range to those of their extents; stream at once what is long, or in the open tail."""
        end = start + len(view)
        if len(view) > RANGE_SIZE_MAX or end > self._sealed_size or not self._takes_cuts:
            at = 0
            for piece in self._fetch(start, end):
                view[at : at + len(piece)] = piece
                at += len(piece)
            return
        offset = start
        while offset < end:
            located = self._table.find(offset)
            assert located is not None, "extents end before the sealed size"
            inner = offset - located.offset
            size = min(end - offset, located.extent.length - inner, RANGES_SIZE_MAX)
            part = Cut(located.extent.chunk_offset + inner, view[offset - start : offset - start + size])
            chunks.setdefault(located.index, (located, []))[1].append(part)
            offset += size

    def _relocated(self, located: Located) -> Relocate:
        """Return what asks the masters for an extent's present places, and notes them for all later reads."""

        def relocate(plan: ReadPlan, deadline: Deadline) -> tuple[LocatedExtent, tuple[ServerInfo, ...]]:
            located.extent, located.replicas = self._relocate(plan, deadline)
            return located.extent, located.replicas

        return relocate

    # --- as a stream ----------------------------------------------------------------------------------------

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def write(self, _data: object) -> NoReturn:
        raise io.UnsupportedOperation("a file of the cluster is open for reading; write with put, append or write_at")

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; behind the end it may stand, and reads give nothing there."""
        self._check_open()
        with self._lock:
            bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
            if whence not in bases or bases[whence] + offset < 0:
                raise InvalidArgument(f"there is no position {offset} from {whence} in {self.name!r}")
            self._position = bases[whence] + offset
            return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read on into `buffer`; return the bytes got, 0 at the end. There may be more even if it is not full."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        with self._lock:
            length = min(len(view), self.size - self._position)
            if length <= 0:
                return 0
            if self._is_stream():
                got = self._next_piece(view[:length])
            else:
                got = min(length, RANGE_SIZE_MAX)
                self._fill([(self._position, view[:got])])
            self._position += got
            self._run_end = self._position
            return got

    def readall(self) -> bytes:
        """Read on to the end."""
        self._check_open()
        with self._lock:
            start, self._position = min(self._position, self.size), max(self._position, self.size)
            self._end_stream()
            return b"".join(self._fetch(start, self.size))

    def _is_stream(self) -> bool:
        """Whether this read goes on where others ended; a stream that is left is ended."""
        if self._position == self._run_end:
            self._run += 1
        else:
            self._end_stream()
            self._run = 1
        return self._run >= STREAM_AFTER

    def _next_piece(self, view: memoryview) -> int:
        """Copy the next bytes of the stream; the lock is held."""
        if not self._piece:
            if self._pieces is None:
                self._pieces = self._fetch(self._position, self.size)
            try:
                self._piece = next(self._pieces)
            except BaseException:
                self._end_stream()
                raise
        got = min(len(view), len(self._piece))
        view[:got] = self._piece[:got]
        self._piece = self._piece[got:]
        return got

    def _end_stream(self) -> None:
        pieces, self._pieces, self._piece = self._pieces, None, memoryview(b"")
        self._run = 0
        close = getattr(pieces, "close", None)
        if close is not None:
            close()  # its threads end

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the stream; again is harmless."""
        if not self.closed and hasattr(self, "_lock") and self._owner.is_here:
            with self._lock:
                self._end_stream()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")  # as every file object says it
        self._owner.check()
