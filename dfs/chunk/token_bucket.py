"""How fast bytes may move: a token bucket that is told the time.

Owns: the arithmetic of a rate with debts. Refuses to know: clocks, threads, and who waits.

Whoever asks while there is no debt gets all it asks for, and the next one waits until that is paid: so pieces larger
than what is saved up move, too, and the long-run rate is exact.
"""

from __future__ import annotations

from typing import Final

SAVED_S: Final = 0.05  # seconds of the rate that an idle time saves up: a burst of that stands above the rate


class TokenBucket:
    """`rate` bytes per second, 0 = no limit. Every moment is an argument, in seconds of one monotonic clock."""

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._level = 0.0  # bytes; below zero it is a debt
        self._seen_s: float | None = None  # when the level was right

    @property
    def rate(self) -> int:
        return self._rate

    def set_rate(self, rate: int, now_s: float) -> None:
        """Change the rate from now on; a debt is paid at the new one."""
        self._refill(now_s)
        self._rate = rate
        if not rate:
            self._level = 0.0

    def take(self, size: int, now_s: float) -> float:
        """Take `size` bytes and return 0.0, or take nothing and return after how many seconds to ask again."""
        if not self._rate:
            return 0.0
        self._refill(now_s)
        if self._level <= -1.0:  # a debt of less than a byte is none: floats would never pay it
            return -self._level / self._rate
        self._level -= size
        return 0.0

    def _refill(self, now_s: float) -> None:
        if self._seen_s is not None and now_s > self._seen_s:
            self._level = min(self._level + (now_s - self._seen_s) * self._rate, SAVED_S * self._rate)
        self._seen_s = now_s
