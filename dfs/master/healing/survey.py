"""What is to be done about the chunks of a replica set: copy, trim, spread, move, or nothing.

Owns: the judgement on one combination of servers and goal, and the totals over all of them. Refuses to know: single
chunks (they share their judgement with all of the same servers and goal), orders, and clocks.

The chunk map tallies chunks by servers and goal, so a survey costs one step for each combination that exists, whether
it stands for one chunk or a million. Which chunks these are is looked up afterwards, and only when there are any.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dfs.ids import ServerId
from dfs.master.healing.standing import Member, Roster, Standing
from dfs.master.state.views import ReplicaTally

MANY = 2  # live replicas from which on a chunk counts as "more" in the totals


class Work(enum.IntEnum):
    """What chunks wait for; the order is that of importance."""

    COPY = 0
    TRIM = 1
    SPREAD = 2  # all replicas are in one rack, and need not be
    MOVE = 3  # balance takes it from a full server to an empty one


class Bucket(NamedTuple):
    """Chunks that wait for the same work with the same urgency; smaller ones first.

    `rank`: of copies the live replicas, and 0 before 1 for those more at risk. `source` and `target` are of moves.
    """

    work: Work
    rank: tuple[int, int] = (0, 0)
    source: ServerId = ServerId(b"")
    target: ServerId = ServerId(b"")


@dataclass(frozen=True, slots=True)
class Judgement:
    """About the chunks of some registered servers and a goal. `missing_count`: copies to make."""

    live: tuple[Member, ...]  # can be read
    kept: tuple[Member, ...]  # of these, those that count for the goal
    missing_count: int = 0
    surplus: int = 0  # kept and confirmed ones above the goal
    is_deferred: bool = False  # copies would be made but for a server that is awaited or excused
    is_urgent: bool = False  # one more failure loses it
    is_at_risk: bool = False  # what can be read is in one rack, or on servers in trouble
    is_crowded: bool = False  # in one rack, though another one has room


def judge(servers: Sequence[ServerId], goal: int, roster: Roster) -> Judgement:
    """Judge the chunks that have replicas on `servers`."""
    members = roster.members_of(servers)
    live = tuple(member for member in members if member.standing.is_live)
    kept = tuple(member for member in live if member.standing is Standing.PRESENT)
    awaited = sum(member.standing is Standing.AWAITED for member in members)
    excused = sum(member.standing is Standing.EXCUSED for member in members)
    is_alone = len(live) == 1 and goal > 1
    short = goal - len(kept)
    missing_count = max(0, short - excused - (0 if is_alone else awaited))
    if not live:
        gone = max(0, short - excused - awaited)
        return Judgement(live, kept, missing_count=gone, is_deferred=not gone)
    confirmed = sum(member.is_confirmed for member in kept)
    racks = {member.rack for member in kept}
    is_whole = short <= 0
    return Judgement(
        live,
        kept,
        missing_count=missing_count,
        surplus=max(0, confirmed - goal),
        is_deferred=short > 0 and missing_count == 0,
        is_urgent=missing_count > 0 and is_alone,
        is_at_risk=len({member.rack for member in live}) == 1 or not all(member.is_prompt for member in live),
        is_crowded=is_whole and goal > 1 and len(racks) == 1 and not roster.racks_with_room <= racks,
    )


def victim_of(judgement: Judgement, fills: Mapping[ServerId, float], wanted: ServerId | None) -> Member | None:
    """Return the server whose replica of a surplus chunk goes: of a rack that has two, `wanted`, the fullest."""
    if not judgement.surplus:
        return None
    confirmed = [member for member in judgement.kept if member.is_confirmed]
    racks = Counter(member.rack for member in judgement.kept)
    crowded = [member for member in confirmed if racks[member.rack] > 1] or confirmed
    return max(crowded, key=lambda member: (member.server_id == wanted, fills.get(member.server_id, 0.0), member.name))


def may_move(servers: Sequence[ServerId], source: Member, target: Member, roster: Roster) -> bool:
    """Whether a replica may go from `source` to `target` without bringing replicas closer together."""
    if target.server_id in servers:
        return False
    others = {member.rack for member in roster.members_of(servers) if member.server_id != source.server_id}
    return target.rack not in others or source.rack in others


@dataclass(slots=True)
class Survey:
    """The totals over all replica sets; `take` adds one. `flows`: where balance moves chunks, by source."""

    roster: Roster
    flows: Mapping[ServerId, Sequence[ServerId]] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=lambda: [0] * (MANY + 1))
    waiting_size: int = 0
    single_size: int = 0  # bytes to copy until no chunk is down to one live replica
    deferred_count: int = 0
    blocked_count: int = 0
    surplus_count: int = 0
    misplaced_count: int = 0
    chunk_count: int = 0
    stored: Counter[ServerId] = field(default_factory=Counter)  # bytes of registered replicas
    left: dict[ServerId, list[int]] = field(default_factory=dict)  # leaving: [chunks, bytes] that need it
    counts: Counter[Bucket] = field(default_factory=Counter)  # chunks of each bucket
    wanted: dict[tuple[tuple[ServerId, ...], int], Bucket] = field(default_factory=dict)

    def take(self, row: ReplicaTally) -> None:
        """Add the chunks of one combination of servers and goal."""
        judgement = judge(row.servers, row.goal, self.roster)
        self.chunk_count += row.chunk_count
        for server_id in row.servers:
            self.stored[server_id] += row.size
        for member in judgement.live:
            if member.standing is Standing.LEAVING and len(judgement.kept) < min(row.goal, self.roster.staying_count):
                left = self.left.setdefault(member.server_id, [0, 0])
                left[0] += row.chunk_count
                left[1] += row.size
        bucket = self._bucket(row, judgement)
        if bucket is not None:
            self.wanted[row.servers, row.goal] = bucket
            self.counts[bucket] += row.chunk_count

    def _bucket(self, row: ReplicaTally, judgement: Judgement) -> Bucket | None:
        """Count the row where it belongs; return what its chunks wait for, if it can be done."""
        if judgement.is_deferred:
            self.deferred_count += row.chunk_count
        if judgement.missing_count:
            return self._short(row, judgement)
        if judgement.surplus:
            self.surplus_count += row.chunk_count
            return Bucket(Work.TRIM)
        if judgement.is_crowded:
            self.misplaced_count += row.chunk_count
            racks = {member.rack for member in judgement.kept}
            if any(taker.rack not in racks for taker in self.roster.takers):
                return Bucket(Work.SPREAD)
        return self._move(row, judgement) if self.flows and not judgement.is_deferred else None

    def _short(self, row: ReplicaTally, judgement: Judgement) -> Bucket | None:
        live = len(judgement.live)
        self.waiting[min(live, MANY)] += row.chunk_count
        if not live:
            return None
        self.waiting_size += row.size * judgement.missing_count
        self.single_size += row.size if judgement.is_urgent else 0
        if all(taker.server_id in row.servers for taker in self.roster.takers):
            self.blocked_count += row.chunk_count
            return None
        return Bucket(Work.COPY, (live, 0 if judgement.is_at_risk else 1))

    def _move(self, row: ReplicaTally, judgement: Judgement) -> Bucket | None:
        for source in judgement.kept:
            for target_id in self.flows.get(source.server_id, ()):
                target = self.roster.get(target_id)
                if target is not None and may_move(row.servers, source, target, self.roster):
                    return Bucket(Work.MOVE, source=source.server_id, target=target_id)
        return None
