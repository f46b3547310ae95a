"""Does a plan of `dfs chaos` follow from its seed, and keep to its bounds?"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from dfs.chaos.scenario import FIRST_S, GENTLE, KINDS, Fault, plan_faults

OUTAGE_S = (1.0, 5.0)


def test_the_same_seed_gives_the_same_plan_and_another_one_does_not() -> None:
    plans = [plan_faults(seed, 120, list(kinds), OUTAGE_S) for seed in (7, 8) for kinds in (GENTLE, reversed(GENTLE))]
    assert plans[0] == plans[1], "the order in which kinds are named means nothing"
    assert plans[0] != plans[2]


@pytest.mark.parametrize("seed", range(20))
def test_faults_of_a_side_never_overlap_and_end_in_time(seed: int) -> None:
    servers_max = random.Random(seed).randint(1, 3)
    plan = plan_faults(seed, 90, KINDS.values(), OUTAGE_S, servers_max)
    assert len(plan) > 8
    for is_master in (True, False):
        side = [fault for fault in plan if fault.kind.victim.is_master is is_master]
        assert all(before.end_s < after.begin_s for before, after in pairwise(side))
        assert {fault.count for fault in side} <= ({1} if is_master else set(range(1, servers_max + 1)))
    assert all(fault.begin_s >= FIRST_S and fault.end_s < 90 for fault in plan)
    assert all(OUTAGE_S[0] <= fault.end_s - fault.begin_s <= OUTAGE_S[1] for fault in plan)


def test_every_kind_comes_before_any_comes_again() -> None:
    masters = [f.kind for f in plan_faults(3, 300, GENTLE, (1.0, 1.5)) if f.kind.victim.is_master]
    assert len(set(masters[:6])) == 6


def test_victims_are_different_and_all_can_be_hit() -> None:
    names = ["c1", "c2", "c3"]
    picked = [Fault(0, 1, KINDS["kill-server"], n / 30, 2).pick(names) for n in range(30)]
    assert all(len(set(pair)) == 2 for pair in picked)
    assert {name for pair in picked for name in pair} == set(names)
    assert Fault(0, 1, KINDS["kill-server"], 0.9, 5).pick(["c1"]) == ("c1",)
    assert Fault(0, 1, KINDS["kill-server"], 0.9).pick([]) == ()
