"""Does repeated planning heal any cluster: every chunk at its goal, in racks apart, and never one replica too few?

Owns: the pure planners, performed at once by a pretended cluster. Refuses to know: heartbeats, the log and time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs.ids import ChunkHandle, ServerId
from dfs.master.healing.repair import (
    GENTLE_COPIES_MAX,
    GENTLE_COPIES_MIN,
    GENTLE_SIZE_MAX,
    SOURCE_COPIES_MAX,
    TARGET_SIZE_MAX,
    CopyCandidate,
    CopyLoad,
    CopyPlan,
    plan_repairs,
)
from dfs.master.healing.standing import Member, Roster, Standing
from dfs.master.healing.survey import Bucket, Survey, Work, judge, victim_of
from dfs.master.state.views import ChunkView, ReplicaTally
from dfs.net.messages import COPIES_WAITING_MAX

GIB = 1 << 30
LIVE = (Standing.PRESENT, Standing.LEAVING)


def server_id(number: int) -> ServerId:
    return ServerId(bytes([number]) * 16)


def member(number: int, standing: Standing = Standing.PRESENT, *, rack: str = "", room: int = GIB) -> Member:
    takes = standing is Standing.PRESENT
    return Member(
        server_id(number),
        f"c{number}",
        f"10.0.0.{number}:1",
        rack or f"r{number}",
        standing,
        room=room if takes else 0,
        free=room,
        is_prompt=True,
        is_confirmed=standing in LIVE,
    )


def view(*numbers: int, goal: int = 3, length: int = 10) -> ChunkView:
    return ChunkView(length, 5, goal, tuple(sorted(map(server_id, numbers))), 1)


def candidate(number: int, chunk: ChunkView, work: Work = Work.COPY) -> CopyCandidate:
    return CopyCandidate(ChunkHandle(number.to_bytes(16, "big")), chunk, work)


def plan(candidates: list[CopyCandidate], roster: Roster, load: CopyLoad | None = None) -> list[CopyPlan]:
    return plan_repairs(candidates, roster, load or CopyLoad(), Random(1).random)[0]


# --- judging --------------------------------------------------------------------------------------


def test_what_is_missing_depends_on_who_may_come_back() -> None:
    present, awaited, excused = Standing.PRESENT, Standing.AWAITED, Standing.EXCUSED
    lost, leaving = Standing.LOST, Standing.LEAVING
    for standings, goal, missing, urgent, deferred in [
        ((present, present, present), 3, 0, False, False),
        ((present, present, awaited), 3, 0, False, True),
        ((present, present, excused), 3, 0, False, True),
        ((present, present, lost), 3, 1, False, False),
        ((present, awaited, awaited), 3, 2, True, False),  # one live replica: nobody is awaited
        ((present, excused, excused), 3, 0, False, True),  # an administrator answers for them
        ((present, excused, awaited), 3, 1, True, False),
        ((present, present, leaving), 3, 1, False, False),
        ((leaving,), 1, 1, False, False),
        ((present,), 1, 0, False, False),
        ((lost, lost), 2, 2, False, False),
    ]:
        roster = Roster(member(number, standing) for number, standing in enumerate(standings, 1))
        found = judge([server_id(number) for number in range(1, len(standings) + 1)], goal, roster)
        assert (found.missing_count, found.is_urgent, found.is_deferred) == (missing, urgent, deferred), standings


def test_surplus_counts_confirmed_replicas_only() -> None:
    members = [member(number) for number in (1, 2, 3, 4)]
    unsure = Member(server_id(4), "c4", "a:1", "r4", Standing.PRESENT, room=GIB, is_confirmed=False)
    servers = [server_id(number) for number in (1, 2, 3, 4)]
    assert judge(servers, 3, Roster(members)).surplus == 1
    assert judge(servers, 3, Roster([*members[:3], unsure])).surplus == 0


def test_the_victim_is_of_a_rack_that_has_two_and_then_of_the_fullest_server() -> None:
    roster = Roster([member(1), member(2, rack="x"), member(3, rack="x"), member(4)])
    fills = {server_id(1): 0.9, server_id(2): 0.2, server_id(3): 0.3, server_id(4): 0.1}
    judgement = judge([server_id(number) for number in (1, 2, 3, 4)], 3, roster)
    victim = victim_of(judgement, fills, None)
    assert victim is not None
    assert victim.name == "c3"
    apart = Roster([member(number) for number in (1, 2, 3, 4)])
    judgement = judge([server_id(number) for number in (1, 2, 3, 4)], 3, apart)
    assert [getattr(victim_of(judgement, fills, wanted), "name", "") for wanted in (None, server_id(2))] == ["c1", "c2"]


# --- planning -------------------------------------------------------------------------------------


def test_a_copy_goes_to_another_rack_and_comes_from_the_least_busy_server() -> None:
    roster = Roster([member(1, rack="a"), member(2, rack="b"), member(3, rack="a"), member(4, rack="c")])
    load = CopyLoad()
    load.add(server_id(3), server_id(1), 5)
    (found,) = plan([candidate(1, view(1, 2))], roster, load)
    assert found.target == server_id(4)
    assert found.sources == (server_id(2), server_id(1))


def test_limits_of_destination_source_and_gentleness_hold() -> None:
    pair = Roster([member(1), member(2)])
    many = [candidate(number, view(1, goal=2)) for number in range(3 * COPIES_WAITING_MAX)]
    assert len(plan(many, pair)) == COPIES_WAITING_MAX
    large = [candidate(number, view(1, 3, goal=3, length=TARGET_SIZE_MAX // 4 + 1)) for number in range(200)]
    trio = Roster([member(1), member(2, room=100 * GIB), member(3)])
    assert len(plan(large, trio)) == 3, "no more bytes than the limit wait for one server"
    urgent = [candidate(number, view(1, goal=3, length=TARGET_SIZE_MAX // 4 + 1)) for number in range(20)]
    assert len(plan(urgent, Roster([member(1), member(2, room=100 * GIB)]))) == 20, "urgent ones have no such limit"
    rack = Roster([member(1, rack="a"), member(2, rack="a"), member(3, rack="b", room=100 * GIB)])
    for length, count in ((10, GENTLE_COPIES_MAX), (GENTLE_SIZE_MAX // 20, 20), (GENTLE_SIZE_MAX, GENTLE_COPIES_MIN)):
        gentle = [
            candidate(number, view(1, 2, goal=2, length=length), Work.SPREAD) for number in range(2 * GENTLE_COPIES_MAX)
        ]
        assert len(plan(gentle, rack)) == count, f"of chunks with {length} bytes"
    wide = Roster([member(number) for number in range(1, 8)])
    assert (
        len(plan([candidate(number, view(1, goal=2)) for number in range(2 * SOURCE_COPIES_MAX)], wide))
        == SOURCE_COPIES_MAX
    )


def test_a_server_without_room_for_the_chunk_is_never_chosen() -> None:
    roster = Roster([member(1), member(2, room=99), member(3, room=100)])
    plans = plan([candidate(number, view(1, goal=2, length=100)) for number in range(3)], roster)
    assert [found.target for found in plans] == [server_id(3)], "the room that is promised to copies is gone"


def test_who_failed_before_is_asked_last() -> None:
    roster = Roster([member(number) for number in (1, 2, 3, 4)])
    chunk = view(1, 2)
    avoiding = CopyCandidate(
        ChunkHandle(b"h" * 16), chunk, Work.COPY, avoid_targets={server_id(3)}, avoid_sources={server_id(1)}
    )
    for seed in range(5):
        (found,), _ = plan_repairs([avoiding], roster, CopyLoad(), Random(seed).random)
        assert (found.target, found.sources[0]) == (server_id(4), server_id(2))
    only = Roster([member(number) for number in (1, 2, 3)])
    assert [found.target for found in plan([avoiding], only)] == [server_id(3)], "better than nobody"


# --- plan, perform, plan … until nothing is left ------------------------------------------------


@dataclass
class Pretended:
    """A cluster whose copies and deletions are done at once. `chunks`: servers and goal by number."""

    members: dict[int, Member]
    chunks: dict[int, tuple[set[int], int]]
    rng: Random
    order: list[tuple[int, int]] = field(default_factory=list)  # (live replicas at that time, chunk)

    def roster(self) -> Roster:
        return Roster(self.members.values())

    def view(self, number: int) -> ChunkView:
        servers, goal = self.chunks[number]
        return view(*servers, goal=goal)

    def survey(self) -> Survey:
        survey = Survey(self.roster())
        for number in self.chunks:
            found = self.view(number)
            survey.take(ReplicaTally(found.servers, found.goal, 1, found.length))
        return survey

    def buckets(self) -> dict[Bucket, list[int]]:
        survey = self.survey()
        found: dict[Bucket, list[int]] = {}
        for number in self.chunks:
            bucket = survey.wanted.get((self.view(number).servers, self.view(number).goal))
            if bucket is not None:
                found.setdefault(bucket, []).append(number)
        assert {bucket: len(numbers) for bucket, numbers in found.items()} == dict(survey.counts)
        return found

    def live(self, number: int) -> int:
        return sum(self.members[server].standing in LIVE for server in self.chunks[number][0])

    def turn(self) -> bool:
        """Plan and perform once; return whether there was something to do."""
        did = False
        load = CopyLoad()
        for bucket, numbers in sorted(self.buckets().items()):
            if bucket.work is Work.TRIM:
                did |= self.trim(numbers)
                continue
            asked = [candidate(number, self.view(number), bucket.work) for number in numbers]
            plans, _ = plan_repairs(asked, self.roster(), load, self.rng.random)
            for made in plans:
                self.perform(made)
            did |= bool(plans)
        return did

    def perform(self, made: CopyPlan) -> None:
        number, target = int.from_bytes(made.handle, "big"), made.target[0]
        servers, _ = self.chunks[number]
        assert target not in servers, "two replicas on one server"
        assert all(self.members[source[0]].standing in LIVE and source[0] in servers for source in made.sources)
        assert self.members[target].standing is Standing.PRESENT
        assert made.is_urgent == judge(self.view(number).servers, self.chunks[number][1], self.roster()).is_urgent
        if made.work is Work.COPY:
            self.order.append((self.live(number), number))
        servers.add(target)

    def trim(self, numbers: list[int]) -> bool:
        for number in numbers:
            servers, goal = self.chunks[number]
            judgement = judge(self.view(number).servers, goal, self.roster())
            racks = {m.rack for m in judgement.kept}
            victim = victim_of(judgement, {}, None)
            assert victim is not None
            servers.remove(victim.server_id[0])
            kept = judge(self.view(number).servers, goal, self.roster()).kept
            assert len(kept) >= goal, "trimmed below its goal"
            assert len({m.rack for m in kept}) >= min(len(racks), goal), "trimming brought replicas closer together"
        return bool(numbers)


clusters = st.builds(
    lambda servers, chunks, seed: (servers, chunks, seed),
    st.lists(
        st.tuples(st.sampled_from([*[Standing.PRESENT] * 4, *Standing]), st.sampled_from("abc")), min_size=1, max_size=8
    ),
    st.lists(st.tuples(st.sets(st.integers(1, 8), min_size=1, max_size=5), st.integers(1, 4)), max_size=12),
    st.integers(0, 99),
)


@settings(max_examples=150, deadline=None)
@given(clusters)
def test_planning_until_nothing_is_left_heals_any_cluster(
    drawn: tuple[list[tuple[Standing, str]], list[tuple[set[int], int]], int],
) -> None:
    servers, chunks, seed = drawn
    members = {number: member(number, standing, rack=rack) for number, (standing, rack) in enumerate(servers, 1)}
    placed = {
        number: ({server for server in where if server in members} or {1}, goal)
        for number, (where, goal) in enumerate(chunks)
    }
    cluster = Pretended(members, placed, Random(seed))
    turns = 0
    while cluster.turn():
        turns += 1
        assert turns < 50, "it does not end"
    present = sum(m.standing is Standing.PRESENT for m in members.values())
    racks = {m.rack for m in members.values() if m.standing is Standing.PRESENT}
    for number, (where, goal) in cluster.chunks.items():
        judgement = judge(cluster.view(number).servers, goal, cluster.roster())
        if not judgement.live:
            continue
        counted = [s for s in where if members[s].standing in (Standing.PRESENT, Standing.AWAITED, Standing.EXCUSED)]
        assert len(counted) >= min(goal, present), f"chunk {number} on {where} has not its goal of {goal}"
        assert not judgement.surplus
        if len(judgement.kept) >= goal > 1 and len(racks) > 1:
            assert len({m.rack for m in judgement.kept}) > 1, f"chunk {number} is in one rack"


def test_the_most_endangered_chunks_are_copied_first() -> None:
    members = {number: member(number) for number in range(1, 6)}
    members[6], members[7] = member(6, Standing.LOST), member(7, Standing.LOST)
    chunks = {number: ({1, 2, 6}, 3) for number in range(100)}
    chunks |= {number: ({1 + number % 5, 6, 7}, 3) for number in range(100, 130)}
    cluster = Pretended(members, chunks, Random(3))
    cluster.turn()
    lives = [live for live, _ in cluster.order]
    assert lives[:30] == [1] * 30
    assert {number for _, number in cluster.order[:30]} == set(range(100, 130))
    assert set(lives[30:]) == {2}


def test_a_survey_adds_up_to_what_each_chunk_needs() -> None:
    leaving = member(4, Standing.LEAVING)
    roster = Roster([member(1), member(2), member(3, Standing.LOST), leaving, member(5)])
    survey = Survey(roster)
    for servers, goal, count in [((1, 2, 3), 3, 7), ((3,), 3, 2), ((1, 3), 2, 5), ((1, 2, 5), 3, 100), ((1, 4), 2, 3)]:
        survey.take(ReplicaTally(tuple(map(server_id, servers)), goal, count, 10 * count))
    assert survey.waiting == [2, 5, 10]
    assert survey.waiting_size == 70 + 50 + 30
    assert survey.single_size == 50
    assert survey.left == {leaving.server_id: [3, 30]}
    assert survey.blocked_count == 0
    assert survey.stored[server_id(1)] == 10 * (7 + 5 + 100 + 3)


def test_chunks_that_no_server_can_take_are_blocked_and_not_walked_for() -> None:
    survey = Survey(Roster([member(1), member(2)]))
    survey.take(ReplicaTally((server_id(1), server_id(2)), 3, 9, 90))
    assert (survey.waiting, survey.blocked_count) == ([0, 0, 9], 9)
    assert not survey.wanted


@pytest.mark.parametrize("goal", [1, 2, 3])
def test_draining_leaves_nothing_that_depends_on_the_server(goal: int) -> None:
    members = {number: member(number, rack=f"r{number % 2}") for number in range(1, 5)}
    members[1] = member(1, Standing.LEAVING)
    chunks = {number: (set(Random(number).sample(range(1, 5), goal)), goal) for number in range(40)}
    cluster = Pretended(members, chunks, Random(1))
    assert cluster.survey().left
    while cluster.turn():
        pass
    assert not cluster.survey().left
    for where, _ in cluster.chunks.values():
        assert len(where - {1}) == goal
