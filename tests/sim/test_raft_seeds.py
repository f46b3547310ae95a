"""Do simulated masters keep every rule of Raft and every acknowledged change, whatever a seed does to them?

The real Raft code and the real state machine on virtual machines, disks and network (dfs/testing/raft_world.py says
what is real). test_raft_mutations.py asks whether these seeds would notice if they did not.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from dfs.testing.raft_plan import Plan
from dfs.testing.raft_simulation import run

SEEDS = range(40)
SEEDS_PER_TEST = 10


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()  # a run leaves cycles, and collects nothing itself


@pytest.mark.parametrize("first", SEEDS[::SEEDS_PER_TEST])
def test_seeds_keep_all_rules(first: int) -> None:
    outcomes = [run(seed) for seed in range(first, first + SEEDS_PER_TEST)]
    assert [(one.seed, one.failure) for one in outcomes if one.failure] == []
    assert sum(one.done for one in outcomes) > 500, "the clients got something done"
    assert sum(len(one.faults) for one in outcomes) > 10, "and things went wrong meanwhile"


@pytest.mark.parametrize("seed", [3, 11])
def test_seed_replays_exactly(seed: int) -> None:
    first, second = run(seed), run(seed)
    assert (first.digest, first.steps, first.done) == (second.digest, second.steps, second.done)


def test_seeds_differ_from_each_other() -> None:
    assert len({run(seed).digest for seed in range(3)}) == 3


def test_plans_of_seeds_cover_both_sizes_and_every_fault() -> None:
    plans = [Plan.of(seed) for seed in range(200)]
    assert {plan.size for plan in plans} == {3, 5}
    assert {plan.temper for plan in plans} == {"mixed", "power", "laggards", "minorities", "elections"}
    assert {fault for plan in plans for fault in plan.faults} >= {"power_all", "power_in_write", "one_way", "disk_full"}
