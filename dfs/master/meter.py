"""What a master counts while it works.

Owns: times of requests by message, errors by code, what is in progress, the lag of the loop. Refuses to know: how it is
shown (dfs.master.metrics).
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from dfs.measures import Times, TimesByLabel, Totals

LAG_INTERVAL_S: Final = 0.1  # between two looks at how late the loop is


class MasterMeter:
    """What is counted as it happens; all of it from the master's loop."""

    def __init__(self) -> None:
        self.requests = TimesByLabel()  # by message
        self.errors = Totals()  # by code
        self.in_progress: dict[str, int] = {}  # by message
        self.loop_lag = Times()
        self.leaderships = 0  # how often this master began to lead

    def begin(self, name: str) -> float:
        """Count a request that is begun; return the moment for `end`."""
        self.in_progress[name] = self.in_progress.get(name, 0) + 1
        return time.perf_counter()

    def end(self, name: str, begun_s: float, error_code: str = "") -> None:
        self.in_progress[name] -= 1
        self.requests.observe(name, time.perf_counter() - begun_s)
        if error_code:
            self.errors.add(error_code)

    async def watch_loop(self) -> None:
        """Measure for ever how late the loop wakes a task that has slept."""
        while True:
            begun_s = time.perf_counter()
            await asyncio.sleep(LAG_INTERVAL_S)
            self.loop_lag.observe(max(0.0, time.perf_counter() - begun_s - LAG_INTERVAL_S))
