"""When to ask a second replica because the first is slow, and how often that may be done.

Owns: recent times to the first byte, the patience that follows from them, and the budget of second requests. Times are
arguments. Refuses to know: sockets, replicas and clocks.

Source: Dean and Barroso, The Tail at Scale (CACM 2013), hedged requests: wait for a high quantile of the usual time,
then ask a second one. The budget keeps a cluster that is slow as a whole from being asked twice for everything.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

QUANTILE: Final = 0.95  # of the recent times; who takes longer is called slow
SAMPLES_MAX: Final = 200  # recent times kept for each size of reads
SAMPLES_MIN: Final = 20  # below that nothing is known yet
REVIEW_EVERY: Final = 16  # times after which the quantile is taken anew
PATIENCE_MIN_S: Final = 0.02  # less is the noise of a busy machine
PATIENCE_FIRST_S: Final = 0.5  # while nothing is known
PATIENCE_FACTOR: Final = 2.0  # over the quantile
SHARE_MAX: Final = 0.05  # second requests for each first one, in the long run
BURST_MAX: Final = 4.0  # second requests that may come at once
SIZE_CLASSES: Final = (64 * 1024, 1024 * 1024)  # bytes; reads up to the first, up to the second, larger ones


class _Times:
    """Recent times of reads of one class of sizes."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=SAMPLES_MAX)
        self.patience_s = PATIENCE_FIRST_S
        self.unseen = 0


class Hedging:
    """Thread-safe; shared by all reads of a client."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._classes = tuple(_Times() for _ in range(len(SIZE_CLASSES) + 1))
        self._budget = BURST_MAX

    def patience_s(self, size: int) -> float:
        """Return how long to wait for the first byte of a read of `size` bytes before another replica is asked."""
        return self._times(size).patience_s

    def answered(self, size: int, taken_s: float) -> None:
        """Note that a read's first byte came after so long, or that it had not come by then."""
        times = self._times(size)
        with self._lock:
            self._budget = min(BURST_MAX, self._budget + SHARE_MAX)
            times.recent.append(taken_s)
            times.unseen += 1
            if len(times.recent) >= SAMPLES_MIN and times.unseen >= REVIEW_EVERY:
                times.unseen = 0
                quantile = sorted(times.recent)[int(QUANTILE * (len(times.recent) - 1))]
                times.patience_s = min(PATIENCE_FIRST_S, max(PATIENCE_MIN_S, PATIENCE_FACTOR * quantile))

    def take(self) -> bool:
        """Spend a second request; False when the budget is used up."""
        with self._lock:
            if self._budget < 1.0:
                return False
            self._budget -= 1.0
            return True

    def _times(self, size: int) -> _Times:
        for times, size_max in zip(self._classes, SIZE_CLASSES, strict=False):
            if size <= size_max:
                return times
        return self._classes[-1]
