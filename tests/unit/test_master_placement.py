"""Where new chunks go: eligibility, racks, weights and chain order, with chance under the test's control."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dfs.ids import ServerId
from dfs.master.healing.placement import Candidate, plan_chains

SIZE = 64


def candidate(number: int, rack: str = "r1", room: int = 6400, promised: int = 0, load: int = 0) -> Candidate:
    return Candidate(ServerId(bytes([number]) * 16), rack, room, promised, load)


def plan(candidates: list[Candidate], count: int = 1, replication: int = 3, seed: int = 1) -> list[tuple[int, ...]]:
    chains = plan_chains(candidates, count, replication, SIZE, random.Random(seed).random)
    return [tuple(server_id[0] for server_id in chain) for chain in chains]


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 5), st.sampled_from("abc")), max_size=12
    ),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 1000),
)
def test_chains_are_as_long_as_possible_and_never_name_a_server_twice(
    rows: list[tuple[int, int, int, str]], count: int, replication: int, seed: int
) -> None:
    candidates = [candidate(n, rack, room, promised, load) for n, (room, promised, load, rack) in enumerate(rows)]
    roomy = {n for n, (room, _, _, _) in enumerate(rows) if room >= SIZE}
    chains = plan(candidates, count, replication, seed)
    assert len(chains) == count
    for chain in chains:
        assert len(chain) == len(set(chain)) == min(replication, len(roomy))
        assert set(chain) <= roomy


@given(st.lists(st.sampled_from("abcd"), min_size=3, max_size=12), st.integers(0, 1000))
def test_a_chain_uses_as_many_racks_as_it_can(racks: list[str], seed: int) -> None:
    candidates = [candidate(number, rack) for number, rack in enumerate(racks)]
    (chain,) = plan(candidates, seed=seed)
    used = Counter(racks[number] for number in chain)
    assert len(used) == min(3, len(set(racks)))


def test_servers_of_one_rack_stand_side_by_side_in_the_chain() -> None:
    candidates = [candidate(1, "a"), candidate(2, "b"), candidate(3, "a"), candidate(4, "b")]
    for seed in range(50):
        (chain,) = plan(candidates, replication=4, seed=seed)
        racks = ["ab"[number % 2 == 0] for number in chain]
        assert racks in (list("aabb"), list("bbaa")), chain


def test_heads_of_chains_are_spread() -> None:
    heads = Counter(chain[0] for chain in plan([candidate(n, f"r{n}") for n in range(3)], count=600))
    assert set(heads) == {0, 1, 2}
    assert min(heads.values()) > 100


def test_more_room_draws_more_chunks() -> None:
    wins: Counter[int] = Counter()
    for seed in range(400):
        wins.update(plan([candidate(1, room=6400), candidate(2, room=640)], replication=1, seed=seed)[0])
    assert wins[1] > 5 * wins[2] > 0


def test_a_busy_server_is_damped() -> None:
    wins: Counter[int] = Counter()
    for seed in range(400):
        wins.update(plan([candidate(1, load=9), candidate(2)], replication=1, seed=seed)[0])
    assert wins[2] > 5 * wins[1] > 0


def test_one_call_spreads_its_own_chunks() -> None:
    wins = Counter(chain[0] for chain in plan([candidate(n) for n in range(4)], count=64, replication=1))
    assert max(wins.values()) <= 24


def test_a_server_that_is_promised_full_comes_last_but_does_come() -> None:
    full, free = candidate(1, room=640, promised=600), candidate(2, "r2", room=640)
    assert all(plan([full, free], replication=1, seed=seed) == [(2,)] for seed in range(50))
    assert sorted(plan([full, free], replication=2)[0]) == [1, 2]
    assert plan([full], replication=1) == [(1,)]


def test_without_candidates_chains_are_empty() -> None:
    assert plan([], count=2) == [(), ()]
    assert plan([candidate(1, room=SIZE - 1)]) == [()]
