"""Does the length of a seal cover what was acknowledged, and does it keep as many replicas as it can?"""

from __future__ import annotations

import itertools

import pytest

from dfs.ids import ServerId
from dfs.master.sealing import SealPlan, plan_seal
from dfs.net.messages import FenceTailReply


def fresh(length: int, published: int = -1) -> FenceTailReply:
    return FenceTailReply(ServerId(b"s" * 16), length, True, published)


def restarted(length: int, published: int = -1) -> FenceTailReply:
    return FenceTailReply(ServerId(b"s" * 16), length, False, published)


@pytest.mark.parametrize(
    ("answers", "plan"),
    [
        ([], None),
        ([fresh(0)], SealPlan(0, (0,))),
        ([fresh(9), fresh(7), fresh(7)], SealPlan(7, (0, 1, 2))),
        ([restarted(9), fresh(7)], SealPlan(7, (0, 1))),
        ([restarted(5), fresh(7)], SealPlan(7, (1,))),
        ([restarted(5), restarted(7)], SealPlan(7, (1,))),
        ([fresh(9), fresh(9, 7), fresh(6)], SealPlan(7, (0, 1))),
        ([restarted(9, 9), restarted(7, 7)], SealPlan(9, (0,))),
        ([fresh(9, 0), fresh(8)], SealPlan(0, (0, 1))),
    ],
)
def test_plans_take_the_length_that_keeps_most_replicas(answers: list[FenceTailReply], plan: SealPlan | None) -> None:
    assert plan_seal(answers) == plan


def test_every_plan_covers_what_all_servers_have() -> None:
    """What was acknowledged is on all servers, published or not: no plan may be shorter than the shortest of them."""
    kinds = [
        answer
        for length in range(4)
        for answer in (fresh(length), restarted(length), *(fresh(length, cut) for cut in range(length + 1)))
    ]
    for answers in itertools.product(kinds, repeat=3):
        acknowledged = min(min(a.length, a.published_length if a.published_length >= 0 else 9) for a in answers)
        for taken in (answers, answers[:2], answers[1:2]):
            plan = plan_seal(taken)
            assert plan is not None
            assert plan.length >= acknowledged
            assert plan.servers, "somebody can publish it"
            assert all(taken[index].length >= plan.length for index in plan.servers)
