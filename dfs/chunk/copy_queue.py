"""The leader's orders to copy chunks to this server: what waits, what is under way, what came to nothing.

Owns: their order (urgent ones first), their limit, repetition and cancellation, failures until the leader has heard of
them, and when little is left to do. Refuses to know: how a chunk is copied (dfs.chunk.replicator), and how the leader
is told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from dfs.ids import ChunkHandle
from dfs.log import get_logger
from dfs.net.messages import COPIES_WAITING_MAX
from dfs.net.parts import COPY_GAVE_WAY, CopyFailure, CopyReplica

COPIERS = 12  # copies under way at the same time: small ones wait for a sync most of the time, and share it
ORDINARY_MAX = COPIERS - 4  # of them not urgent: slowed down by the rate limit, they must not make an urgent one wait
LARGE_SIZE = 1024 * 1024  # bytes of a chunk above which moving them takes longer than the sync
LARGE_MAX = 4  # large chunks being fetched; more make disks seek and take little time off
GENTLE_MAX = 2  # ordinary copies under way while clients read or write here
GENTLE_LARGE_MAX = 1  # likewise of large chunks being fetched
ORDINARY_LARGE_MAX = LARGE_MAX - 1  # an ordinary large copy begins only while fewer large ones are being fetched
LOW_WATER = 64  # waiting orders below which the leader should hear that there is room for more
FAILURE_TEXT_MAX = 500  # characters of a failure's reason

log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class CopyJob:
    """One order. `is_urgent` and `is_cancelled` may change while it is under way.

    `is_fetched`: all bytes came, and only its sync is awaited, beside which others can be fetched.
    """

    order: CopyReplica
    is_urgent: bool
    is_cancelled: bool = False
    is_fetched: bool = False

    @property
    def is_large(self) -> bool:
        return self.order.length > LARGE_SIZE


@dataclass(frozen=True, slots=True)
class CopyStatus:
    """What the leader is told: copies that wait or are under way, and failures that it did not acknowledge yet."""

    copying: tuple[ChunkHandle, ...]
    failures: tuple[CopyFailure, ...]


class CopyQueue:
    """At most `COPIES_WAITING_MAX` orders, each chunk once. Safe in any thread."""

    def __init__(self, is_serving_clients: Callable[[], bool] = lambda: False) -> None:
        """`is_serving_clients`: whether ordinary copies should give way now."""
        self._is_serving_clients = is_serving_clients
        self._on_low: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._waiting: dict[ChunkHandle, CopyJob] = {}
        self._running: dict[ChunkHandle, CopyJob] = {}
        self._failures: dict[ChunkHandle, CopyFailure] = {}

    # --- the leader's side --------------------------------------------------------------------------------

    def add(self, orders: Iterable[CopyReplica]) -> None:
        """Take orders in. A repeated one is no second; it brings fresh sources and a fresh token to one that waits."""
        with self._changed:
            for order in orders:
                self._add(order)
            self._changed.notify_all()

    def _add(self, order: CopyReplica) -> None:
        running = self._running.get(order.handle)
        if running is not None and not running.is_cancelled:
            running.is_urgent |= order.is_urgent
            return
        waiting = self._waiting.get(order.handle)
        if waiting is not None:
            waiting.order = order
            waiting.is_urgent |= order.is_urgent
        elif len(self._waiting) + len(self._running) < COPIES_WAITING_MAX or self._made_room(order):
            self._failures.pop(order.handle, None)  # of an earlier order; this one has yet to fail
            self._waiting[order.handle] = CopyJob(order, order.is_urgent)
        else:
            log.debug("copy_not_taken", handle=order.handle, waiting=len(self._waiting))  # the leader repeats it

    def _made_room(self, order: CopyReplica) -> bool:
        """Give up the youngest ordinary order for an urgent one."""
        ordinary = [job for job in self._waiting.values() if not job.is_urgent]
        if not order.is_urgent or not ordinary:
            return False
        given_up = ordinary[-1].order
        del self._waiting[given_up.handle]
        self._fail(given_up.handle, COPY_GAVE_WAY, "gave way to an urgent copy; order it again")
        return True

    def cancel(self, handles: Iterable[ChunkHandle]) -> None:
        """Hear that chunks are to be deleted: their copies end, and leave nothing."""
        with self._changed:
            for handle in handles:
                if self._waiting.pop(handle, None) is not None:
                    self._fail(handle, "chunk_not_found", "the chunk is to be deleted here; its copy was not begun")
                elif (running := self._running.get(handle)) is not None:
                    running.is_cancelled = True

    def status(self) -> CopyStatus:
        with self._changed:
            copying = (*self._running, *self._waiting)
            return CopyStatus(copying[:COPIES_WAITING_MAX], tuple(islice(self._failures.values(), COPIES_WAITING_MAX)))

    def acknowledge(self, failures: Iterable[CopyFailure]) -> None:
        """Forget failures that the leader has heard of, save those of which there is newer word."""
        with self._changed:
            for failure in failures:
                if self._failures.get(failure.handle) is failure:
                    del self._failures[failure.handle]

    def when_low(self, call: Callable[[], None]) -> None:
        """Let `call` be called, in any thread, whenever a copy has ended and fewer than LOW_WATER orders wait."""
        self._on_low = call

    # --- the copiers' side --------------------------------------------------------------------------------

    def take(self, wait_s: float = 0.0) -> CopyJob | None:
        """Return the next job, waiting for one for `wait_s`; it is under way until `done`."""
        with self._changed:
            job = self._next()
            if job is None and wait_s and self._changed.wait(wait_s):
                job = self._next()
            if job is not None:
                del self._waiting[job.order.handle]
                self._running[job.order.handle] = job
            return job

    def _next(self) -> CopyJob | None:
        running = self._running.values()
        is_gentle = self._is_serving_clients()
        large_count = sum(job.is_large and not job.is_fetched for job in running)
        large_max = GENTLE_LARGE_MAX if is_gentle else ORDINARY_LARGE_MAX
        may_be_ordinary = sum(not job.is_urgent for job in running) < (GENTLE_MAX if is_gentle else ORDINARY_MAX)
        found: CopyJob | None = None
        for handle, job in self._waiting.items():
            if handle in self._running:
                continue  # a cancelled copy of the same chunk has not ended yet
            if job.is_urgent and not (job.is_large and large_count >= LARGE_MAX):
                return job
            if found is not None or job.is_urgent or not may_be_ordinary:
                continue
            if not (job.is_large and large_count >= large_max):
                found = job
        return found

    def fetched(self, job: CopyJob) -> None:
        """Hear that all bytes of a job came; another large one may begin while it is synced."""
        with self._changed:
            job.is_fetched = True
            if job.is_large:
                self._changed.notify_all()

    def done(self, job: CopyJob, code: str = "", text: str = "") -> None:
        """Hear that a job has ended; with a `code` it failed."""
        with self._changed:
            del self._running[job.order.handle]
            if code:
                self._fail(job.order.handle, code, text)
            self._changed.notify_all()
            is_low = len(self._waiting) < LOW_WATER
        if is_low:
            self._on_low()

    def _fail(self, handle: ChunkHandle, code: str, text: str) -> None:
        self._failures.pop(handle, None)
        if len(self._failures) >= COPIES_WAITING_MAX:
            del self._failures[next(iter(self._failures))]  # the leader misses it in `copying`, and may order it again
        self._failures[handle] = CopyFailure(handle, code, text[:FAILURE_TEXT_MAX])
