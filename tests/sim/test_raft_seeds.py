"""Do simulated masters keep every rule of Raft and every acknowledged change, whatever a seed does to them?

The real Raft code and the real state machine on virtual machines, disks and network (dfs/testing/raft_world.py says
what is real). Each mutation below takes one safety away; a simulation that cannot find that out would prove nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import pytest

from dfs.errors import NotLeader
from dfs.master import raft_journal
from dfs.master.raft_gate import Gate
from dfs.master.raft_journal import Journal
from dfs.master.raft_node import HardenedRaftLog
from dfs.testing import simulate
from dfs.testing.raft_plan import Plan
from dfs.testing.raft_simulation import Outcome, run
from dfs.testing.virtual_disk import VirtualOs

Mutation: TypeAlias = Callable[[pytest.MonkeyPatch], None]
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
    assert {fault for plan in plans for fault in plan.faults} >= {"power_all", "power_in_write", "one_way", "disk_full"}


def first_failure(plans: list[Plan]) -> Outcome:
    for plan in plans:
        outcome = run(plan.seed, plan=plan)
        if outcome.failure is not None:
            return outcome
    pytest.fail(f"none of {len(plans)} seeds noticed")


def without_fsync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(VirtualOs, "fdatasync", lambda _os, _descriptor: None)


def without_gate_before_disk(patch: pytest.MonkeyPatch) -> None:
    """Messages leave before the records that they speak of are on disk."""
    patch.setattr(Gate, "durable", property(lambda gate: gate._journal.sequence))


def without_read_round(patch: pytest.MonkeyPatch) -> None:
    """A master that believes that it leads answers reads."""

    async def read_barrier(log: HardenedRaftLog, timeout_s: float) -> None:
        if not log.is_leader:
            raise NotLeader("does not lead")

    patch.setattr(HardenedRaftLog, "read_barrier", read_barrier)


def without_persisted_vote(patch: pytest.MonkeyPatch) -> None:
    """Term and vote are in memory only (fault a)."""

    def set_vote(journal: Journal, term: int, vote: str | None) -> None:
        journal.term, journal.vote = term, vote

    patch.setattr(Journal, "set_vote", set_vote)


def without_own_disk_in_quorum(patch: pytest.MonkeyPatch) -> None:
    """The leader counts its own vote for an entry that is not on its disk yet."""

    def ignore(_journal: Journal, _index: int) -> None: ...

    patch.setattr(Journal, "durable_index", property(lambda journal: journal.last_index, ignore), raising=False)


def without_directory_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(raft_journal, "sync_directory", lambda _folder: None)


MUTATIONS = [
    without_fsync,
    without_directory_sync,
    without_gate_before_disk,
    without_own_disk_in_quorum,
    without_persisted_vote,
    without_read_round,
]
RARE = {  # in all seeds together: look where it happens. (faults, seconds between them, seconds of a disk write)
    without_gate_before_disk: (("power_all",), 0.8, 0.02),
    without_own_disk_in_quorum: (("power", "power", "isolate_leader"), 0.4, 0.02),
    without_read_round: (("pause_leader",), 0.8, 0.0002),
}


def plan_for(mutate: Mutation, seed: int) -> Plan:
    plan = Plan.of(seed)
    if mutate in RARE:
        faults, gap_s, disk_s = RARE[mutate]
        limits = replace(plan.limits, disk_delay_s=disk_s)
        plan = replace(plan, size=3, faults=faults, fault_gap_s=gap_s, clients=4, keys=1, think_s=0.005, limits=limits)
    return plan


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_simulation_notices_a_master(mutate: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [plan_for(mutate, seed) for seed in range(200)]  # the first failure ends it
    mutate(monkeypatch)
    assert first_failure(plans).failure


def test_failing_seed_is_told_and_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    without_fsync(monkeypatch)
    failing = first_failure([Plan.of(seed) for seed in range(40)]).seed
    assert simulate.main(["--first", str(failing), "--count", "1", "--jobs", "1"]) == 1
    assert f"make sim SEED={failing}" in capsys.readouterr().out
    assert simulate.main(["--seed", str(failing)]) == 1
