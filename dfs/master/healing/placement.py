"""Decide which chunk servers hold a new chunk, or one more replica of an old one.

Owns: who is eligible, racks, weights, damping, and the order of a chain.
Refuses to know: clocks, the state and the soft view (candidates are handed in), tokens; chance is an argument.

Like GFS (SOSP 2003, section 4.2): prefer servers with free space, damp bursts of creations on one server, spread over
racks. Differs: the weight is continuous instead of a threshold, so that a new empty server is not flooded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dfs.ids import ServerId


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server that may take chunks. `room`: bytes above its reserve by the last heartbeat; `load`: chunks being
    written to it or promised to writers; `promised`: bytes of these that `room` does not show yet."""

    server_id: ServerId
    rack: str
    room: int
    promised: int = 0
    load: int = 0


@dataclass(slots=True)
class _Slot:
    """A candidate while chains are drawn: each chain takes from its room and adds to its load."""

    server_id: ServerId
    rack: str
    room: int
    load: int

    def weight(self, size: int) -> float:
        return max(self.room, size) / (1 + self.load)


def plan_chains(
    candidates: Sequence[Candidate], count: int, replication: int, size: int, draw: Callable[[], float]
) -> list[tuple[ServerId, ...]]:
    """Return `count` chains for chunks of `size` bytes, each of `replication` servers or of as many as there are.

    `draw` returns random numbers in [0, 1). Servers without room for one more chunk are left out. Promised bytes
    only steer, for most chunks end up smaller than `size`: when all are promised full, the disks have the last word.
    """
    slots = [_slot(candidate) for candidate in candidates if candidate.room >= size]
    chains = []
    for _ in range(count):
        chosen = _choose(slots, replication, size, draw)
        for slot in chosen:
            slot.room -= size
            slot.load += 1
        chains.append(tuple(slot.server_id for slot in _in_chain_order(chosen, draw)))
    return chains


def choose_server(
    candidates: Sequence[Candidate], rack_use: Mapping[str, int], size: int, draw: Callable[[], float]
) -> ServerId | None:
    """Return the server for one more replica of a chunk of `size` bytes, None when nobody has room.

    `rack_use` counts the replicas that the chunk has in each rack: those with the fewest are preferred.
    """
    slots = [_slot(candidate) for candidate in candidates if candidate.room - candidate.promised >= size]
    if not slots:
        return None
    least = min(rack_use.get(slot.rack, 0) for slot in slots)
    return _weighted([slot for slot in slots if rack_use.get(slot.rack, 0) == least], size, draw).server_id


def _slot(candidate: Candidate) -> _Slot:
    return _Slot(candidate.server_id, candidate.rack, candidate.room - candidate.promised, candidate.load)


def _choose(slots: Sequence[_Slot], replication: int, size: int, draw: Callable[[], float]) -> list[_Slot]:
    pool = list(slots)
    chosen: list[_Slot] = []
    rack_use: dict[str, int] = {}
    while pool and len(chosen) < replication:
        roomy = [slot for slot in pool if slot.room >= size] or pool
        least = min(rack_use.get(slot.rack, 0) for slot in roomy)
        slot = _weighted([slot for slot in roomy if rack_use.get(slot.rack, 0) == least], size, draw)
        chosen.append(slot)
        pool.remove(slot)
        rack_use[slot.rack] = least + 1
    return chosen


def _weighted(slots: Sequence[_Slot], size: int, draw: Callable[[], float]) -> _Slot:
    target = draw() * sum(slot.weight(size) for slot in slots)
    for slot in slots:
        target -= slot.weight(size)
        if target < 0:
            return slot
    return slots[-1]  # rounding


def _in_chain_order(chosen: Sequence[_Slot], draw: Callable[[], float]) -> list[_Slot]:
    """Order a chain: a random head, and servers of one rack side by side so that bytes cross between racks once."""
    rack_rank = {rack: draw() for rack in dict.fromkeys(slot.rack for slot in chosen)}
    ranked = sorted((rack_rank[slot.rack], draw(), index) for index, slot in enumerate(chosen))
    return [chosen[index] for _, _, index in ranked]
