"""What daemons count while they work: totals and times, cheap enough for every request.

Owns: thread-safe counters and histograms of times. Refuses to know: what is counted, and how it is published
(dfs.net.exposition).

An observation costs a bisection and a lock nobody holds, well below a microsecond, so nobody asks whether metrics are
switched on.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass

BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LABELS_MAX = 200  # values of one label; what comes after that counts under OTHER
OTHER = "other"


@dataclass(frozen=True, slots=True)
class TimesSnapshot:
    """`counts` are of observations at most as long as each of BOUNDS_S, and of all, as Prometheus has them."""

    counts: tuple[int, ...]
    sum_s: float


class Times:
    """A histogram of seconds. Thread-safe."""

    __slots__ = ("_counts", "_lock", "_sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._lock = threading.Lock()

    def observe(self, seconds: float) -> None:
        index = bisect_left(BOUNDS_S, seconds)
        with self._lock:
            self._counts[index] += 1
            self._sum_s += seconds

    def snapshot(self) -> TimesSnapshot:
        with self._lock:
            counts, sum_s = list(self._counts), self._sum_s
        total, cumulative = 0, []
        for count in counts:
            total += count
            cumulative.append(total)
        return TimesSnapshot(tuple(cumulative), sum_s)


class TimesByLabel:
    """One histogram for each value of a label. Thread-safe; at most LABELS_MAX values are kept apart."""

    __slots__ = ("_lock", "_times")

    def __init__(self) -> None:
        self._times: dict[str, Times] = {}
        self._lock = threading.Lock()

    def observe(self, label: str, seconds: float) -> None:
        times = self._times.get(label)
        if times is None:
            with self._lock:
                kept = label if len(self._times) < LABELS_MAX else OTHER
                times = self._times.setdefault(kept, Times())
        times.observe(seconds)

    def snapshots(self) -> dict[str, TimesSnapshot]:
        return {label: times.snapshot() for label, times in sorted(self._times.copy().items())}


class Totals:
    """Numbers that only grow, by label. Thread-safe; at most LABELS_MAX labels are kept apart."""

    __slots__ = ("_lock", "_totals")

    def __init__(self) -> None:
        self._totals: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, label: str, amount: int = 1) -> None:
        with self._lock:
            if label not in self._totals and len(self._totals) >= LABELS_MAX:
                label = OTHER
            self._totals[label] = self._totals.get(label, 0) + amount

    def values(self) -> dict[str, int]:
        with self._lock:
            return dict(sorted(self._totals.items()))
