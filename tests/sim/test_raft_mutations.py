"""Would the simulation notice if the masters lacked one of their safeties?

`KILLERS` is the table: mutation (dfs/testing/raft_mutations.py says what it takes away, and which fault of pysyncobj's
study comes back) and a seed that finds it out. A change of the masters' timing or of the plans moves such seeds: then
the search goes on from seed 0, and a new seed belongs into the table (`python -m dfs.testing.simulate --mutation all`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from dfs.testing import simulate
from dfs.testing.raft_mutations import MUTATIONS
from dfs.testing.raft_simulation import run
from dfs.testing.simulate import run_mutated

SEARCHED = 2000  # seeds that must suffice to find any mutation out
KILLERS = {
    "journal_not_synced": 0,  # b1
    "directories_not_synced": 0,  # b1
    "checkpoint_not_synced": 5,  # b1
    "adopted_tail_not_synced": 191,  # b1
    "records_without_crc": 612,  # b4
    "truncation_not_recorded": 0,  # b5
    "messages_before_disk": 0,  # b1
    "own_disk_not_awaited": 2,  # b1
    "term_and_vote_in_memory": 0,  # a
    "vote_in_memory": 782,  # a
    "votes_counted_per_message": 5,  # d2
    "election_without_prevote": 2,  # f1
    "votes_beside_a_leader": 25,  # f1
    "stale_senders_not_told": 65,  # f3
    "resent_entries_truncate": 1,  # c
    "replies_without_term": 2,  # d1
    "checkpoint_piece_commits": 5,  # k1
    "known_entries_commit_the_tail": 58,  # k1
    "mismatch_commits_the_tail": 3,  # k1
    "lonely_leader_stays": 2,  # f2
    "read_without_round": 10,  # f2
    "read_before_own_entry": 104,  # f2
    "waits_not_ended": 1,  # e2 e4
    "resent_calls_run_again": 15,  # i
    "entries_after_checkpoint_dropped": 25,  # h2
    "older_checkpoint_installed": 35,  # h5
    "empty_master_votes": 82,  # l
}


@pytest.fixture(autouse=True)
def _collect() -> Iterator[None]:
    yield
    gc.collect()  # a run leaves cycles, and collects nothing itself


def test_every_mutation_has_its_killer() -> None:
    assert list(KILLERS) == list(MUTATIONS)


@pytest.mark.parametrize("name", KILLERS)
@pytest.mark.timeout(900)
def test_simulation_finds_out_masters_with(name: str) -> None:
    for seed in (KILLERS[name], *range(SEARCHED)):
        if run_mutated(name, seed).failure is not None:
            assert run(seed).failure is None, "the same seed is clean with the safety in its place"
            return
    pytest.fail(f"none of {SEARCHED} seeds found it out")


def test_a_mutation_leaves_nothing_behind() -> None:
    before = {name: [vars(owner).get(key) for owner, key, _ in one.changes()] for name, one in MUTATIONS.items()}
    for one in MUTATIONS.values():
        with one.installed():
            pass
    after = {name: [vars(owner).get(key) for owner, key, _ in one.changes()] for name, one in MUTATIONS.items()}
    assert after == before


def test_failing_seed_is_told_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    name = "journal_not_synced"
    failing = str(KILLERS[name])
    with MUTATIONS[name].installed():
        assert simulate.main(["--first", failing, "--count", "1", "--jobs", "1"]) == 1
        assert f"make sim SEED={failing}" in capsys.readouterr().out
        assert simulate.main(["--seed", failing]) == 1


def test_the_search_tells_the_seed_or_that_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    name = "journal_not_synced"
    arguments = ["--mutation", name, "--first", str(KILLERS[name]), "--jobs", "1"]
    assert simulate.main([*arguments, "--count", "1"]) == 0
    assert f"seed {KILLERS[name]}" in capsys.readouterr().out
    assert simulate.main([*arguments, "--count", "0"]) == 1
    assert "NOT FOUND OUT" in capsys.readouterr().out
