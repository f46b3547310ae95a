"""Log refused peers, but never so many lines that the log becomes the damage.

Owns: the rate limit of refusal lines. Refuses to know: why a peer was refused.
"""

from __future__ import annotations

import threading

from dfs.clock import SYSTEM_CLOCK, Clock
from dfs.log import Logger

LINES_MAX = 20  # lines per window; the rest is counted
WINDOW_S = 10.0


class RefusalLog:
    """Writes one warning per refused peer, at most LINES_MAX per WINDOW_S, then how many were not written.

    Safe to call from any thread.
    """

    def __init__(self, log: Logger, clock: Clock = SYSTEM_CLOCK) -> None:
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._window_start_s = clock.monotonic()
        self._count = 0
        self.total = 0  # since the start, for status displays and tests

    def record(self, peer: str, reason: object) -> None:
        """Note that `peer` was refused."""
        with self._lock:
            now = self._clock.monotonic()
            hidden = 0
            if now - self._window_start_s >= WINDOW_S:
                hidden = max(0, self._count - LINES_MAX)
                self._window_start_s, self._count = now, 0
            self._count += 1
            self.total += 1
            is_written = self._count <= LINES_MAX
        if hidden:
            self._log.warning("refusals_not_logged", count=hidden, window_s=WINDOW_S)
        if is_written:
            self._log.warning("connection_refused", peer=peer, reason=str(reason))
