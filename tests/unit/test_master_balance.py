"""Does balance even the fills of any cluster with no byte moved to and fro, and stop?"""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs.ids import ServerId
from dfs.master.healing.balance import STEPS_MAX, Filled, Flow, MoveBudget, plan_balance, spread_of


def filled(number: int, stored: int, free: int) -> Filled:
    return Filled(ServerId(bytes([number]) * 16), stored, free)


def after(servers: list[Filled], flows: list[Flow]) -> list[Filled]:
    moved = dict.fromkeys((server.server_id for server in servers), 0)
    for flow in flows:
        moved[flow.source] -= flow.size
        moved[flow.target] += flow.size
    return [Filled(s.server_id, s.stored + moved[s.server_id], s.free - moved[s.server_id]) for s in servers]


servers_drawn = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 40)), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(servers_drawn, st.floats(0.01, 0.5))
def test_flows_bring_all_fills_within_the_threshold(drawn: list[tuple[int, int]], threshold: float) -> None:
    servers = [filled(number, stored, free) for number, (stored, free) in enumerate(drawn, 1)]
    flows = plan_balance(servers, threshold)
    result = after(servers, flows)
    assert all(server.stored >= 0 for server in result)
    finest = max((sum(s.stored for s in servers) // STEPS_MAX + 1) / (s.stored + s.free) for s in servers)
    assert spread_of(result) <= max(threshold, 2 * finest)
    assert not {flow.source for flow in flows} & {flow.target for flow in flows}, "what was given is not taken away"
    assert plan_balance(result, max(threshold, 2 * finest)) == []


def test_an_even_cluster_and_a_single_server_have_nothing_to_move() -> None:
    assert plan_balance([filled(1, 50, 50), filled(2, 100, 100)], 0.1) == []
    assert plan_balance([filled(1, 50, 50)], 0.1) == []
    assert plan_balance([filled(1, 0, 50), filled(2, 0, 0)], 0.1) == []
    assert spread_of([]) == 0.0


def test_larger_disks_get_more_bytes() -> None:
    flows = plan_balance([filled(1, 900, 100), filled(2, 0, 1000), filled(3, 0, 9000)], 0.01)
    sizes = {flow.target[0]: flow.size for flow in flows}
    assert sizes[3] > 5 * sizes[2]


@pytest.mark.parametrize("seed", range(5))
def test_chunks_of_any_size_are_moved_until_it_ends_and_never_back(seed: int) -> None:
    """Chunks are not cut to the size of a flow: large ones must not go to and fro."""
    rng = Random(seed)
    chunks = {number: (rng.randrange(4), rng.choice([1, 5, 64, 64, 64])) for number in range(200)}
    room, threshold = 6000, 0.02
    moved = 0

    def fills() -> list[Filled]:
        stored = [sum(size for where, size in chunks.values() if where == server) for server in range(6)]
        return [filled(server, size, room - size) for server, size in enumerate(stored)]

    for _ in range(100):
        servers = fills()
        flows = plan_balance(servers, threshold)
        budget = MoveBudget(servers, flows)
        done = 0
        for number, (where, size) in chunks.items():
            for flow in flows:
                if flow.source[0] == where and budget.take(flow.source, flow.target, size):
                    chunks[number] = (flow.target[0], size)
                    moved += size
                    done += 1
                    break
        if not done:
            break
    else:
        raise AssertionError("it does not end")
    assert spread_of(fills()) <= threshold + 64 / room
    assert moved <= 1.2 * sum(size for _, size in chunks.values()) / 3 + 64


def test_a_budget_is_no_larger_than_its_flow_and_never_turns_the_tables() -> None:
    one, two = filled(1, 100, 0), filled(2, 0, 100)
    budget = MoveBudget([one, two], [Flow(one.server_id, two.server_id, 30)])
    assert not budget.take(one.server_id, two.server_id, 60), "the other would be the fuller one"
    assert budget.take(one.server_id, two.server_id, 20)
    assert budget.take(one.server_id, two.server_id, 20), "the last chunk may exceed it"
    assert not budget.take(one.server_id, two.server_id, 1)
    assert not budget.take(two.server_id, one.server_id, 1), "there is no such flow"
