"""Keeps an eye on the disks of a chunk server: how long a small synced write takes, and what lies in the quarantine.

Owns: the measurement, its rhythm and its median. Refuses to know: what a slow disk means (the leader compares servers),
and what an error means (the disk judges it).

The measurement is a real write where replicas are written: a disk that was remounted read-only or broke while nobody
wrote is found by it, too.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections import deque
from collections.abc import Sequence

from dfs.chunk.disk import Disk
from dfs.clock import SYSTEM_CLOCK, Clock
from dfs.log import get_logger

PROBE_EVERY_S = 5.0  # between two measurements of a disk
PROBES_KEPT = 5  # measurements whose median counts: one hiccup says nothing
PROBE_SIZE = 4096  # bytes
PROBE_FILE = "probe"  # below tmp/, which every start empties
TIDY_EVERY = 720  # rounds of measurements between two looks into the quarantine: an hour

log = get_logger(__name__)


class DiskWatch:
    """Measures all disks in turn; `run` is the root of a thread, `run_once` one round."""

    def __init__(self, disks: Sequence[Disk], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._waits_s: dict[Disk, deque[float]] = {disk: deque(maxlen=PROBES_KEPT) for disk in disks}
        self._running: tuple[Disk, float] | None = None  # the measurement under way, and when it began
        self._rounds = 0

    def wait_ms(self) -> int:
        """Return how long a small synced write takes on the slowest working disk; one that hangs counts as it is."""
        slowest_s = 0.0
        for disk, waits_s in self._waits_s.items():
            seen_s = list(waits_s)
            if seen_s and not disk.has_failed:
                slowest_s = max(slowest_s, statistics.median(seen_s))
        running = self._running
        if running is not None and not running[0].has_failed:
            lasting_s = self._clock.monotonic() - running[1]
            if lasting_s > PROBE_EVERY_S:  # below that it may still end well
                slowest_s = max(slowest_s, lasting_s)
        return round(slowest_s * 1000)

    def run_once(self) -> None:
        """Measure each working disk once; now and then tidy the quarantines."""
        for disk, waits_s in self._waits_s.items():
            if disk.has_failed:
                continue
            began_s = self._clock.monotonic()
            self._running = disk, began_s
            try:
                self._probe(disk)
            except OSError as error:
                log.warning("disk_probe_failed", disk=disk.path, reason=disk.judge(error, "a test write").message)
                continue
            finally:
                self._running = None
            waits_s.append(self._clock.monotonic() - began_s)
        if self._rounds % TIDY_EVERY == 0:
            for disk in self._waits_s:
                disk.tidy_quarantine()
        self._rounds += 1

    @staticmethod
    def _probe(disk: Disk) -> None:
        path = disk.temporary / PROBE_FILE
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, bytes(PROBE_SIZE))
            os.fdatasync(fd)
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()

    def run(self, stop: threading.Event) -> None:
        """Serve as the root of a thread until `stop`."""
        while not stop.is_set():
            try:
                self.run_once()
            except Exception:
                log.exception("disk_watch_failed")
            stop.wait(PROBE_EVERY_S)
