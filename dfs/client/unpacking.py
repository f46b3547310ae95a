"""Many small remote files into a local folder: located by pages, read from their chunks in long runs, written at once.

Owns: which files are read together and cutting what came into files. Refuses to know: how a replica is talked to, how
local folders come to be, and what is shown to anybody.

The files of one page that lie in one chunk are read in runs: adjacent blocks in one request. Bytes between them are
read along where that is cheaper than another request. A file for which that fails, for whatever reason, is left to an
ordinary get, which looks it up anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from dfs.checksum import BLOCK_SIZE
from dfs.client.local_files import write_whole
from dfs.client.parallel import Cancellation, in_order
from dfs.client.plan import ReadPlan
from dfs.client.transfer import Transfer
from dfs.clock import Deadline
from dfs.errors import ConnectionFailed, DfsError
from dfs.fast_paths import FastPath, is_on
from dfs.log import get_logger
from dfs.net.messages import LocateManyReply
from dfs.net.parts import Kind, LocatedExtent, LocatedFile, NewExtent, ServerInfo

RUN_SIZE_MAX: Final = 4 * 1024 * 1024  # bytes read at once
GAP_MAX: Final = 256 * 1024  # bytes between two files of a run that are read and thrown away
RUNS_AT_ONCE: Final = 3

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class UnpackItem:
    """A remote file as a page told it, its full path, and where it goes."""

    file: LocatedFile
    path: str
    target: Path


@dataclass(frozen=True, slots=True)
class UnpackEvents:
    """Who hears what became of a file; called from any thread. What `failed` raises ends the whole run."""

    fetched: Callable[[UnpackItem], None]
    failed: Callable[[UnpackItem, DfsError], None]
    left_over: Callable[[UnpackItem], None]  # not fetched: get it by itself


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes [`start`, `end`) of number `chunk` of a page's chunks (whole blocks), and the files in them."""

    chunk: int
    start: int
    end: int
    items: tuple[UnpackItem, ...]


def is_packable(file: LocatedFile) -> bool:
    """Whether a file is small and in one piece: all that the files of a pack are."""
    return not file.is_partial and file.size <= RUN_SIZE_MAX // 4 and len(file.extents) <= 1 and file.kind is Kind.FILE


def plan_runs(items: Iterable[UnpackItem], lengths: list[int]) -> Iterator[Run]:
    """Yield the runs that cover the extents of all files; `lengths` are those of the chunks."""
    run: list[UnpackItem] = []
    chunk = start = end = 0
    for item in sorted((item for item in items if item.file.extents), key=_place):
        extent = item.file.extents[0]
        first = extent.offset - extent.offset % BLOCK_SIZE
        last = extent.offset + extent.length
        last = min(last + -last % BLOCK_SIZE, lengths[extent.chunk])
        if run and (extent.chunk != chunk or first > end + GAP_MAX or last - start > RUN_SIZE_MAX):
            yield Run(chunk, start, end, tuple(run))
            run = []
        if not run:
            chunk, start, end = extent.chunk, first, last
        run.append(item)
        end = max(end, last)
    if run:
        yield Run(chunk, start, end, tuple(run))


def _place(item: UnpackItem) -> tuple[int, int]:
    extent: NewExtent = item.file.extents[0]
    return extent.chunk, extent.offset


class Unpacker:
    """Fetches the packable files of pages; made for each call."""

    def __init__(self, transfer: Transfer, events: UnpackEvents, *, overwrite: bool) -> None:
        self._transfer = transfer
        self._events = events
        self._overwrite = overwrite
        self._cancellation = Cancellation()

    def run(self, pages: Iterable[tuple[LocateManyReply, list[UnpackItem]]]) -> None:
        """Fetch the items of all pages; on return every one was told of. Raise what ended the run early."""
        done = in_order(
            lambda work: work(), self._works(pages), self._cancellation, workers=RUNS_AT_ONCE, window=2 * RUNS_AT_ONCE
        )
        for _ in done:
            pass

    def _works(self, pages: Iterable[tuple[LocateManyReply, list[UnpackItem]]]) -> Iterator[Callable[[], None]]:
        for page, items in pages:
            if not is_on(FastPath.UNPACKING):
                yield partial(self._leave, items)
                continue
            empty = [item for item in items if not item.file.extents]
            if empty:
                yield partial(self._write_all, empty, memoryview(b""), 0)
            for run in plan_runs(items, [chunk.length for chunk in page.chunks]):
                yield partial(self._fetch, page, run)

    def _fetch(self, page: LocateManyReply, run: Run) -> None:
        self._cancellation.check()
        try:
            data = read_run(self._transfer, page, run, self._cancellation)
        except DfsError as error:
            log.warning("run_not_read", handle=page.chunks[run.chunk].handle, code=error.code, reason=error.message)
            self._leave(run.items)
        else:
            self._write_all(run.items, data, run.start)

    def _leave(self, items: Iterable[UnpackItem]) -> None:
        for item in items:
            self._events.left_over(item)

    def _write_all(self, items: Iterable[UnpackItem], data: memoryview, start: int) -> None:
        for item in items:
            self._cancellation.check()
            extents = item.file.extents
            offset = extents[0].offset - start if extents else 0
            try:
                write_whole(item.target, data[offset : offset + item.file.size], overwrite=self._overwrite)
            except DfsError as error:
                self._events.failed(item, error)
            else:
                self._events.fetched(item)


def read_run(transfer: Transfer, page: LocateManyReply, run: Run, cancellation: Cancellation) -> memoryview:
    """Return the bytes of a run, verified."""
    chunk = page.chunks[run.chunk]
    size = run.end - run.start
    extent = LocatedExtent(chunk.handle, run.start, size, chunk.length, chunk.crc, chunk.token, chunk.replicas)
    plan = ReadPlan(run.start // BLOCK_SIZE, extent, 0, run.start, size, run.start, size)
    servers = tuple(page.servers[index] for index in chunk.replicas if 0 <= index < len(page.servers))
    buffer = _Buffer(run.start, size)
    transfer.read(plan, servers, buffer, cancellation, relocate=_do_not, path=run.items[0].path)
    return buffer.data


class _Buffer:
    """Destination: all blocks of a run."""

    def __init__(self, start: int, size: int) -> None:
        self.data = memoryview(bytearray(size))
        self._start = start

    def window(self, position: int, size: int) -> memoryview:
        return self.data[position - self._start : position - self._start + size]

    def accept(self, position: int, data: memoryview) -> None:
        """The bytes are in place."""


def _do_not(_plan: ReadPlan, _deadline: Deadline) -> tuple[LocatedExtent, tuple[ServerInfo, ...]]:
    raise ConnectionFailed("the files of a run are looked up one by one when it cannot be read")
