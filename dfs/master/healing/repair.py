"""Decide which chunk is copied from where to where: re-replication, spreading over racks, and the moves of balance.

Owns: sources, destinations, and the limits of each server and of the cluster. Refuses to know: clocks, the state and
the soft view (candidates are handed in, in the order of their urgency), and how orders travel; chance is an argument.

GFS (SOSP 2003) section 4.3. Differs: one copy of a chunk is ordered at a time, for with its end the chunk is less
urgent; and what a server receives is limited by a rate that it keeps itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dfs.ids import ChunkHandle, ServerId
from dfs.master.healing.placement import Candidate, choose_server
from dfs.master.healing.standing import Member, Roster
from dfs.master.healing.survey import Work, judge, may_move
from dfs.master.state.views import ChunkView
from dfs.net.messages import COPIES_WAITING_MAX

SOURCE_COPIES_MAX = 2 * COPIES_WAITING_MAX  # outstanding copies that begin at one server
CLUSTER_COPIES_MAX = 4096  # outstanding copies of all servers: the leader keeps them all in mind
TARGET_SIZE_MAX = 1 << 30  # outstanding bytes for one server, so that urgent ones find its queue short
GENTLE_COPIES_MIN = 8  # outstanding copies for balance and spreading that one server may have, however large
GENTLE_COPIES_MAX = 256  # likewise, however small
GENTLE_SIZE_MAX = 64 << 20  # their bytes, where they are more than GENTLE_COPIES_MIN: some seconds of `balance_rate`


@dataclass(frozen=True, slots=True)
class CopyCandidate:
    """A chunk that waits for a copy. `source` and `target` bind a move; those in `avoid_*` have failed before."""

    handle: ChunkHandle
    chunk: ChunkView
    work: Work
    source: ServerId | None = None
    target: ServerId | None = None
    avoid_targets: Collection[ServerId] = ()
    avoid_sources: Collection[ServerId] = ()


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """Let `target` fetch a chunk from one of `sources`, the best one first."""

    handle: ChunkHandle
    chunk: ChunkView
    work: Work
    target: ServerId
    sources: tuple[ServerId, ...]
    is_urgent: bool
    relieved: ServerId | None = None  # the server that a move is meant to relieve


@dataclass(slots=True)
class CopyLoad:
    """What servers have to do already; grows with each plan."""

    incoming: Counter[ServerId] = field(default_factory=Counter)
    incoming_size: Counter[ServerId] = field(default_factory=Counter)
    outgoing: Counter[ServerId] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.incoming.total()

    def add(self, target: ServerId, source: ServerId, size: int) -> None:
        self.incoming[target] += 1
        self.incoming_size[target] += size
        self.outgoing[source] += 1


def plan_repairs(
    candidates: Iterable[CopyCandidate], roster: Roster, load: CopyLoad, draw: Callable[[], float]
) -> tuple[list[CopyPlan], list[CopyCandidate]]:
    """Return copies to order now, and the candidates that have to wait for a place; the others need nothing.

    `draw` returns random numbers in [0, 1). `load` grows.
    """
    plans: list[CopyPlan] = []
    waiting: list[CopyCandidate] = []
    for candidate in candidates:
        if load.total >= CLUSTER_COPIES_MAX:
            waiting.append(candidate)
            continue
        judgement = judge(candidate.chunk.servers, candidate.chunk.goal, roster)
        if not judgement.live or not _is_needed(candidate, roster):
            continue
        is_urgent = judgement.is_urgent
        sources = _sources(judgement.live, candidate, load)
        target = _target(candidate, roster, load, draw, is_urgent=is_urgent) if sources else None
        if target is None:
            waiting.append(candidate)
            continue
        load.add(target.server_id, sources[0].server_id, candidate.chunk.length)
        plans.append(
            CopyPlan(
                candidate.handle,
                candidate.chunk,
                candidate.work,
                target.server_id,
                tuple(source.server_id for source in sources),
                is_urgent,
                candidate.source,
            )
        )
    return plans, waiting


def _is_needed(candidate: CopyCandidate, roster: Roster) -> bool:
    """Whether the state of this moment still asks for the work."""
    judgement = judge(candidate.chunk.servers, candidate.chunk.goal, roster)
    if candidate.work is Work.COPY:
        return judgement.missing_count > 0
    if judgement.missing_count or judgement.surplus or judgement.is_deferred:
        return False
    if candidate.work is Work.SPREAD:
        return judgement.is_crowded
    source, target = _bound(candidate, roster)
    return (
        source is not None
        and target is not None
        and any(member.server_id == source.server_id for member in judgement.kept)
        and may_move(candidate.chunk.servers, source, target, roster)
    )


def _bound(candidate: CopyCandidate, roster: Roster) -> tuple[Member | None, Member | None]:
    source = None if candidate.source is None else roster.get(candidate.source)
    target = None if candidate.target is None else roster.get(candidate.target)
    return source, target


def _sources(live: Iterable[Member], candidate: CopyCandidate, load: CopyLoad) -> list[Member]:
    """Return who can be asked for the bytes: prompt ones first, then those with the least to send."""
    free = [member for member in live if load.outgoing[member.server_id] < SOURCE_COPIES_MAX]
    return sorted(
        free,
        key=lambda member: (
            member.server_id in candidate.avoid_sources,
            not member.is_prompt,
            load.outgoing[member.server_id],
            member.load,
        ),
    )


def _target(
    candidate: CopyCandidate, roster: Roster, load: CopyLoad, draw: Callable[[], float], *, is_urgent: bool
) -> Member | None:
    """Return who shall fetch it: a server without it, where possible in a rack without it."""
    chunk = candidate.chunk
    kept = judge(chunk.servers, chunk.goal, roster).kept
    racks = Counter(member.rack for member in kept)
    takers = [
        taker
        for taker in roster.takers
        if taker.server_id not in chunk.servers
        and _has_place(taker, candidate, load, is_urgent=is_urgent)
        and candidate.target in (None, taker.server_id)
        and not (candidate.work is Work.SPREAD and taker.rack in racks)
    ]
    fresh = [taker for taker in takers if taker.server_id not in candidate.avoid_targets] or takers
    prompt = [taker for taker in fresh if taker.is_prompt] or fresh
    chosen = choose_server([_candidate(taker, load) for taker in prompt], racks, chunk.length, draw)
    return None if chosen is None else roster[chosen]


def _candidate(taker: Member, load: CopyLoad) -> Candidate:
    server_id = taker.server_id
    return Candidate(
        server_id, taker.rack, taker.room, load.incoming_size[server_id], taker.load + load.incoming[server_id]
    )


def _has_place(taker: Member, candidate: CopyCandidate, load: CopyLoad, *, is_urgent: bool) -> bool:
    count, size = load.incoming[taker.server_id], load.incoming_size[taker.server_id]
    length = candidate.chunk.length
    if taker.room - size < length:
        return False
    is_gentle = count < GENTLE_COPIES_MIN or (count < GENTLE_COPIES_MAX and size + length <= GENTLE_SIZE_MAX)
    if candidate.work is not Work.COPY and not is_gentle:
        return False
    if count >= COPIES_WAITING_MAX:
        return False
    return is_urgent or not count or size + length <= TARGET_SIZE_MAX


def load_of(outstanding: Mapping[ServerId, Iterable[tuple[ServerId, int]]]) -> CopyLoad:
    """Return the load of outstanding copies, given as (first source, size) by target."""
    load = CopyLoad()
    for target, copies in outstanding.items():
        for source, size in copies:
            load.add(target, source, size)
    return load
