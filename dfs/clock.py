"""Time as an argument: whoever needs a clock is given one, so that tests own time.

Owns: the clock interface, the system clock, the clock that no sleep stops, and deadlines. Refuses to know: who waits
for what.
"""

from __future__ import annotations

import time
from typing import Protocol

import msgspec

from dfs.errors import DeadlineExceeded


class Clock(Protocol):
    """`monotonic` measures waiting (seconds); `wall_ms` is the time of day for people (milliseconds since 1970)."""

    def monotonic(self) -> float: ...

    def wall_ms(self) -> int: ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


SYSTEM_CLOCK = SystemClock()


def boot_s() -> float:
    """Return the seconds since this computer was started, those that it slept included where the system counts them.

    For what another machine goes on counting meanwhile: `time.monotonic` stands still in a suspend, and the time of
    day may be set.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """A moment after which nobody waits; passed through every step of a call, so that steps share one budget."""

    at_s: float  # of time.monotonic()

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float:
        """Return the seconds left, 0.0 when it has passed."""
        return max(0.0, self.at_s - time.monotonic())

    @property
    def has_passed(self) -> bool:
        return time.monotonic() >= self.at_s

    def check(self, doing: str) -> float:
        """Return the seconds left; raise `DeadlineExceeded` that says what was being done when none are."""
        left = self.at_s - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"the deadline passed while {doing}; try again, or allow more time with --timeout")
        return left

    def no_later_than(self, seconds: float) -> Deadline:
        """Return this deadline or `seconds` from now, whichever is earlier."""
        return Deadline(min(self.at_s, time.monotonic() + seconds))
