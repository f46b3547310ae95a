"""Decide how many bytes go from which chunk server to which, so that all are filled alike.

Owns: what "filled" means, when it is uneven, and the flows that even it. Refuses to know: single chunks
(dfs.master.healing.survey finds those that may take a flow), clocks, and who asked for it.

A fill is a share, not bytes: servers with larger disks hold more. Garbage does not count, for it goes by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from dfs.ids import ServerId

STEPS_MAX = 1000  # of the plan: the finest flow is this part of all that is stored
THRESHOLD_DEFAULT = 0.1  # the spread that is left alone: 10 percentage points


@dataclass(frozen=True, slots=True)
class Filled:
    """A server that takes part. Sizes are bytes; `stored` are its replicas, `free` what it can still take."""

    server_id: ServerId
    stored: int
    free: int

    @property
    def fill(self) -> float:
        return _share(self.stored, self.stored + self.free)


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes that shall go from `source` to `target`."""

    source: ServerId
    target: ServerId
    size: int


def spread_of(servers: Iterable[Filled]) -> float:
    """Return the difference between the fullest and the emptiest."""
    fills = [server.fill for server in servers]
    return max(fills) - min(fills) if fills else 0.0


def plan_balance(servers: Iterable[Filled], threshold: float) -> list[Flow]:
    """Return flows after which no two servers differ by more than `threshold`, the largest first.

    Each step takes from the fullest and gives to the emptiest, so that nobody gets what it must give away again.
    """
    filled = [_Tank.of(server) for server in servers]
    total = sum(tank.stored for tank in filled)
    if len(filled) < 2 or not total:
        return []
    step = -(-total // STEPS_MAX)  # rounded up: so many steps could move all there is
    down = [(-tank.share, tank.server_id, tank) for tank in filled]
    up = [(tank.share, tank.server_id, tank) for tank in filled]
    heapify(down)
    heapify(up)
    sizes: dict[tuple[ServerId, ServerId], int] = {}
    for _ in range(STEPS_MAX):
        full, empty = _top(down, -1), _top(up, 1)
        size = min(step, full.stored)
        if full.share - empty.share <= threshold or size <= 0 or not full.stays_above(empty, size):
            break
        full.stored -= size
        empty.stored += size
        for tank in (full, empty):
            heappush(down, (-tank.share, tank.server_id, tank))
            heappush(up, (tank.share, tank.server_id, tank))
        sizes[full.server_id, empty.server_id] = sizes.get((full.server_id, empty.server_id), 0) + size
    flows = [Flow(source, target, size) for (source, target), size in sizes.items()]
    return sorted(flows, key=lambda flow: (-flow.size, flow.source, flow.target))


class MoveBudget:
    """How much of each flow may still be ordered in one turn, chunk by chunk.

    Chunks are not cut to measure: one may exceed what is left of its flow, but never so that the server that gives is
    emptier afterwards than the one that gets. Otherwise large chunks would go to and fro for ever.
    """

    def __init__(self, servers: Iterable[Filled], flows: Iterable[Flow]) -> None:
        self._tanks = {server.server_id: _Tank.of(server) for server in servers}
        self._left = {(flow.source, flow.target): flow.size for flow in flows}

    def take(self, source: ServerId, target: ServerId, length: int) -> bool:
        """Whether a chunk may go this way now; counts it if so."""
        left = self._left.get((source, target), 0)
        if left <= 0 or not self._tanks[source].stays_above(self._tanks[target], length):
            return False
        self._left[source, target] = left - length
        self._tanks[source].stored -= length
        self._tanks[target].stored += length
        return True


@dataclass(slots=True)
class _Tank:
    """A server while the plan is made."""

    server_id: ServerId
    stored: int
    room: int

    @classmethod
    def of(cls, server: Filled) -> _Tank:
        return cls(server.server_id, server.stored, server.stored + server.free)

    def __lt__(self, other: _Tank) -> bool:
        return self.server_id < other.server_id  # two entries of one server may tie

    @property
    def share(self) -> float:
        return _share(self.stored, self.room)

    def stays_above(self, other: _Tank, size: int) -> bool:
        """Whether the one that gives is no emptier afterwards than the one that gets."""
        return _share(self.stored - size, self.room) >= _share(other.stored + size, other.room)


def _top(heap: list[tuple[float, ServerId, _Tank]], sign: int) -> _Tank:
    """Return the first of the heap; entries from before a change of their server are thrown away."""
    while heap[0][0] != sign * heap[0][2].share:
        heappop(heap)
    return heap[0][2]


def _share(stored: int, room: int) -> float:
    return stored / room if room > 0 else 1.0
