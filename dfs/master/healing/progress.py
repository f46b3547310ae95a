"""How fast chunks are copied lately, and how long the rest takes.

Owns: a window of seconds with their bytes, and the totals since the leadership began. Refuses to know: clocks (moments
are arguments), and what the copies are for.
"""

from __future__ import annotations

from collections import deque

WINDOW_S = 30.0
UNKNOWN_S = -1.0


class CopyMeter:
    """Counts finished copies. Rule 1: only `note` changes it."""

    def __init__(self) -> None:
        self.count = self.size = self.failed_count = 0
        self._window: deque[list[float]] = deque()  # [second, bytes]

    def note(self, size: int, now_s: float) -> None:
        """Count a chunk that was copied."""
        self.count += 1
        self.size += size
        second = float(int(now_s))
        if not self._window or self._window[-1][0] != second:
            self._window.append([second, 0])
        self._window[-1][1] += size
        self._forget(now_s)

    def rate(self, now_s: float) -> float:
        """Return bytes per second over the window, as far as there is one; 0.0 when nothing was copied in it."""
        self._forget(now_s)
        if not self._window:
            return 0.0
        return sum(size for _, size in self._window) / max(1.0, now_s - self._window[0][0])

    def eta_s(self, left: int, now_s: float) -> float:
        """Return the seconds that `left` bytes take at this rate, `UNKNOWN_S` when nothing moves."""
        if left <= 0:
            return 0.0
        rate = self.rate(now_s)
        return left / rate if rate else UNKNOWN_S

    def _forget(self, now_s: float) -> None:
        while self._window and self._window[0][0] < now_s - WINDOW_S:
            self._window.popleft()
