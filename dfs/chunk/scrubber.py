"""Verifies all replicas again and again, at leisure: damage that no reader meets is found while there are other copies.

Owns: the walk over the replicas, its pace, and how far it is. Refuses to know: how a replica is verified and what
becomes of a bad one (the store's), and how the leader hears of it (from the store's changes).

A lap goes by ascending handle at the configured rate, then rests until the period since its beginning has passed. It
stands aside while the server is busy. Source: Swift's object auditor.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence

from dfs.chunk.replicas import ChunkStore
from dfs.chunk.scrub_position import PositionFiles, ScrubPosition
from dfs.chunk.token_bucket import TokenBucket
from dfs.clock import SYSTEM_CLOCK, Clock
from dfs.errors import ChunkNotFound, DfsError
from dfs.ids import ChunkHandle, id_text
from dfs.log import get_logger
from dfs.net.parts import ScrubStatus

FILE_COST = 64 * 1024  # bytes of the rate that opening a replica counts for: many small ones make a disk seek
BUSY_STREAMS = 4  # chunks moving in or out from which on the server counts as busy
BUSY_WAIT_MAX_S = 30.0  # longest wait for one replica on a busy server: a lap ends under any load
SAVE_EVERY_S = 60.0  # so much of a lap is done again after a crash
WAIT_S = 0.2  # how late a stop may be noticed
REST_STEP_S = 5.0  # how late a lap may begin

log = get_logger(__name__)


class Scrubber:
    """The walk of one chunk server; `run` is the root of a thread, `run_once` finishes the present lap."""

    def __init__(
        self,
        store: ChunkStore,
        position_files: PositionFiles,
        *,
        period_s: float,
        rate: int,
        active_streams: Callable[[], int],
        clock: Clock = SYSTEM_CLOCK,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """`period_s`: time of a lap, 0 = never; `rate`: bytes per second; `wait`: how to pass the time of `clock`."""
        self._store = store
        self._files = position_files
        self._period_s = period_s
        self._rate = rate
        self._active_streams = active_streams
        self._clock = clock
        self._wait = wait
        self._stop = threading.Event()
        self._bucket = TokenBucket(rate)
        self._position = ScrubPosition()
        self._is_loaded = False
        self._saved_s = clock.monotonic()
        self._patience_s = 0.0  # left for the present replica
        self._verified_count = self._verified_size = 0
        self._progress = 0.0

    def status(self) -> ScrubStatus:
        """Tell how far it is, for a heartbeat; from any thread."""
        return ScrubStatus(
            self._verified_count,
            self._verified_size,
            self._store.changes.corrupt_count,
            self._progress,
            self._position.last_ended_ms,
        )

    # --- the thread ---------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Serve as the root of a thread until `stop`."""
        if not self._period_s:
            log.warning("scrubbing_off", reason="scrub_period = 0 s: damage is found by readers only")
            return
        self._stop = stop
        pause_s = 0.0
        while not stop.wait(min(pause_s, REST_STEP_S)):
            try:
                if (pause_s := self.due_in_s()) <= 0:
                    self.run_once()
            except _StoppedError:
                break
            except Exception:
                log.exception("scrub_failed")
                pause_s = REST_STEP_S
        self._save()

    def due_in_s(self) -> float:
        """Return the seconds until a lap begins or goes on; 0.0 when that is now."""
        self._load()
        now_ms = self._clock.wall_ms()
        if self._position.lap_began_ms or not self._position.last_began_ms:
            return 0.0
        began_ms = min(self._position.last_began_ms, now_ms)  # whatever happened to the time of day: a period at most
        return max(0.0, self._period_s - (now_ms - began_ms) / 1000)

    def run_once(self) -> int:
        """Verify what is left of the present lap, or a whole new one; return how many bad replicas came to light."""
        self._load()
        position, bad_before = self._position, self._store.changes.corrupt_count
        if not position.lap_began_ms:
            position.lap_began_ms = max(1, self._clock.wall_ms())
            position.verified = ""
        handles = self._store.handles()
        done = bisect_right(handles, ChunkHandle(bytes.fromhex(position.verified))) if position.verified else 0
        self._warn_if_too_slow(handles)
        log.info("scrub_began", replicas=len(handles), verified=done)
        for index in range(done, len(handles)):
            self._progress = index / len(handles)
            self._verify(handles[index])
            position.verified = id_text(handles[index])
            if self._clock.monotonic() - self._saved_s >= SAVE_EVERY_S:
                self._save()
        position.last_began_ms, position.last_ended_ms = position.lap_began_ms, self._clock.wall_ms()
        position.lap_began_ms = 0
        self._progress = 1.0
        self._save()
        bad = self._store.changes.corrupt_count - bad_before
        (log.warning if bad else log.info)("scrub_ended", replicas=len(handles), bad=bad)
        return bad

    def _warn_if_too_slow(self, handles: Sequence[ChunkHandle]) -> None:
        held = filter(None, map(self._store.replica, handles))
        needed_s = sum(replica.length + FILE_COST for replica in held) / self._rate
        if self._period_s and needed_s > self._period_s:
            log.warning(
                "scrub_rate_too_low",
                lap_takes_s=int(needed_s),
                scrub_period_s=int(self._period_s),
                action="raise scrub_rate or scrub_period in cluster.ini",
            )

    # --- one replica --------------------------------------------------------------------------------------

    def _verify(self, handle: ChunkHandle) -> None:
        self._patience_s = BUSY_WAIT_MAX_S
        held = self._store.replica(handle)
        if held is None:
            return  # deleted since the lap began
        try:
            self._pace(FILE_COST)
            if not self._store.verify(handle, self._pace):
                log.warning("scrub_found_damage", handle=handle)
        except ChunkNotFound as error:
            if "vanished" in error.details:  # else it was deleted at this moment
                log.warning("scrub_found_damage", handle=handle, reason=error.message)
            return
        except DfsError as error:  # its disk is out of use, or too many files are open
            log.warning("replica_not_verified", handle=handle, code=error.code, reason=error.message)
            return
        self._verified_count += 1
        self._verified_size += held.length

    def _pace(self, size: int) -> None:
        """Wait until `size` bytes may be read; raise `_StoppedError`."""
        pause_s = 0.0
        while True:
            if self._wait(self._stop, pause_s):
                raise _StoppedError
            if self._patience_s > 0 and self._active_streams() >= BUSY_STREAMS:
                pause_s = WAIT_S
                self._patience_s -= WAIT_S
            elif not (pause_s := min(self._bucket.take(size, self._clock.monotonic()), WAIT_S)):
                return

    # --- the position -------------------------------------------------------------------------------------

    def _load(self) -> None:
        if not self._is_loaded:
            self._position = self._files.load()
            self._is_loaded = True

    def _save(self) -> None:
        self._saved_s = self._clock.monotonic()
        if self._is_loaded:
            self._position.saved_ms = self._clock.wall_ms()
            self._files.save(self._position)


class _StoppedError(Exception):
    """The daemon ends in the middle of a lap."""
