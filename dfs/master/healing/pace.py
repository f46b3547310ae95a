"""Which chunk servers are slow: not dead, not late, but so much behind the others that they hold everybody up.

Owns: the smoothed pace of a server, and the comparison with the others. Refuses to know: clocks (moments are
arguments), and what is done about slow servers.

A server is judged against the median of all, never by an absolute time: on a loaded machine all are slow alike, and
nothing would be won by avoiding all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import median

from dfs.ids import ServerId

SMOOTHING = 0.2  # the weight of one heartbeat after a whole interval: about ten of them decide
SLOW_FACTOR = 5.0  # times the median: slow
RECOVERED_FACTOR = 2.0  # times the median: no longer
WAIT_FLOOR_MS = 100.0  # no synced write that is quicker is called slow
LATENESS_FLOOR_MS = 500.0  # likewise for the delay of heartbeats
ABSENCE_INTERVALS = 3  # so long between two heartbeats is no slowness: the server was late, dead or restarted
SERVERS_MIN = 3  # two alone cannot tell which of them is slow
SHARE_MAX = 3  # at most one of three is called slow: the others could not carry what all are kept from


class Pace:
    """How one server does lately. Rule 1: only `note` changes it."""

    __slots__ = ("_last_s", "lateness_ms", "wait_ms")

    def __init__(self) -> None:
        self.wait_ms = 0.0  # of a small synced write, as the server says
        self.lateness_ms = 0.0  # of its heartbeats
        self._last_s: float | None = None

    def note(self, wait_ms: int, now_s: float, interval_s: float) -> None:
        """Take a heartbeat in; one that comes early (there was much to tell) is not late, and weighs less."""
        gap_s = 0.0 if self._last_s is None else now_s - self._last_s
        if self._last_s is not None and gap_s <= ABSENCE_INTERVALS * interval_s:
            late_ms = max(0.0, gap_s - interval_s) * 1000
            weight = SMOOTHING * min(1.0, gap_s / interval_s)
            self.lateness_ms += weight * (late_ms - self.lateness_ms)
            self.wait_ms += weight * (wait_ms - self.wait_ms)
        elif self._last_s is None:
            self.wait_ms = float(wait_ms)
        self._last_s = now_s


def slow_ones(paces: Mapping[ServerId, Pace], before: Collection[ServerId]) -> frozenset[ServerId]:
    """Return the servers to avoid; those of `before` must come close to the others to be trusted again."""
    if len(paces) < SERVERS_MIN:
        return frozenset()
    wait_ms = median(pace.wait_ms for pace in paces.values())
    lateness_ms = median(pace.lateness_ms for pace in paces.values())
    scores: dict[ServerId, float] = {}
    for server_id, pace in paces.items():
        factor = RECOVERED_FACTOR if server_id in before else SLOW_FACTOR
        score = max(
            pace.wait_ms / max(WAIT_FLOOR_MS, factor * wait_ms),
            pace.lateness_ms / max(LATENESS_FLOOR_MS, factor * lateness_ms),
        )
        if score > 1:
            scores[server_id] = score
    worst = sorted(scores, key=lambda server_id: (-scores[server_id], server_id))
    return frozenset(worst[: len(paces) // SHARE_MAX])
