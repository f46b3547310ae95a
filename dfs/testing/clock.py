"""A clock that stands still until a test moves it.

Owns: FakeClock, which satisfies dfs.clock.Clock. Refuses to know: who reads it.
"""

from __future__ import annotations


class FakeClock:
    """Starts at `monotonic` 1000 s and `wall_ms` 1,700,000,000,000 (November 2023). Not for several threads."""

    def __init__(self, *, monotonic_s: float = 1000.0, wall_ms: int = 1_700_000_000_000) -> None:
        self._monotonic_s = monotonic_s
        self._wall_ms = wall_ms

    def monotonic(self) -> float:
        return self._monotonic_s

    def wall_ms(self) -> int:
        return self._wall_ms

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        if seconds < 0:
            raise ValueError("monotonic time does not go back; use step_wall for the time of day")
        self._monotonic_s += seconds
        self._wall_ms += round(seconds * 1000)

    def step_wall(self, seconds: float) -> None:
        """Let somebody set the time of day, forward or back; monotonic time does not notice."""
        self._wall_ms += round(seconds * 1000)
