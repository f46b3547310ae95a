"""The judge of chaos runs: what breaks a promise is found, and what does not is not called broken."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from dfs.chaos.history import History
from dfs.chaos.workloads import EDITION_SIZES, edition_bytes, edition_of
from dfs.errors import DeadlineExceeded, DfsError, NoQuorum, NotFound
from dfs.testing.chaos.report import report
from dfs.testing.chaos.schedule import TAKES_THE_QUORUM, TOUCHES_MASTERS, Fault, FaultKind, Means, plan_faults
from dfs.testing.chaos.verdict import Verdict, judge


def answered(result: Any) -> Any:
    def ask() -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    return ask


def history_of(*calls: tuple[str, str, Any, Any]) -> History:
    """Return the history of one client; each call is (key, name, argument, result or error)."""
    history = History()
    for key, name, argument, result in calls:
        history.run(key, name, argument, answered(result), is_read=name in ("read", "look", "list"))
    return history


def verdict_of(*calls: tuple[str, str, Any, Any]) -> Verdict:
    return judge(1, 1.0, history_of(*calls), [], {})


def test_a_lost_acknowledged_write_is_found() -> None:
    assert verdict_of(("book", "put", 1, "ok"), ("book", "put", 2, "ok"), ("book", "read", None, 1)).broken
    assert verdict_of(("book", "put", 1, "ok"), ("book", "read", None, NotFound("gone"))).broken


def test_a_torn_content_is_found() -> None:
    assert verdict_of(("book", "put", 1, "ok"), ("book", "read", None, -1)).broken


def test_a_name_that_is_there_twice_after_a_move_is_found() -> None:
    calls = (("yard", "touch", ("a", 7), "ok"), ("yard", "move", ("a", "b", False), "ok"))
    assert verdict_of(*calls, ("yard", "list", None, ("a", "b"))).broken
    assert verdict_of(*calls, ("yard", "list", None, ("b",)), ("yard", "look", "b", 7)).is_clean


def test_a_call_without_a_known_outcome_may_have_happened_or_not() -> None:
    unknown = NoQuorum("nobody leads", may_have_happened="yes")
    for seen in (1, 2):
        assert verdict_of(("book", "put", 1, "ok"), ("book", "put", 2, unknown), ("book", "read", None, seen)).is_clean


def test_a_call_that_says_it_failed_and_took_effect_is_found() -> None:
    calls = (("book", "put", 1, "ok"), ("book", "put", 2, NoQuorum("nobody leads")), ("book", "read", None, 2))
    assert verdict_of(*calls).broken


def test_a_failed_read_counts_unless_the_quorum_was_away() -> None:
    history = history_of(("book", "read", None, DeadlineExceeded("too late")))
    assert not judge(1, 1.0, history, [], {}).is_clean
    now_s = time.monotonic()
    for kind in FaultKind:
        moment = (Fault(0, 1, kind, 0), now_s - 1, now_s + 1)
        assert judge(1, 1.0, history, [moment], {}).is_clean is (kind in TAKES_THE_QUORUM)


def test_the_gap_after_a_lost_leader_is_the_longest_time_without_a_change() -> None:
    history = History()
    history.changed_s = [(0, 10.0), (10, 10.5), (10.1, 12.5), (12, 12.7), (12, 20.0)]
    moment = (Fault(0, 1, FaultKind.KILL_LEADER, 0), 10.3, 13.0)
    assert judge(1, 1.0, history, [moment], {}).write_gaps_s == [pytest.approx(2.0)]


@pytest.mark.parametrize("size", EDITION_SIZES)
def test_an_edition_is_known_by_each_of_its_bytes(size: int) -> None:
    content = edition_bytes(5, size)
    assert edition_of(content) == (5 if size else 0)
    if size:
        assert edition_of(content[:-1]) == -1
        assert edition_of(edition_bytes(6, size)[: len(content) // 2] + content[len(content) // 2 :]) == -1


def test_a_plan_follows_from_its_seed_and_one_side_breaks_once_at_a_time() -> None:
    plan = plan_faults(3, 120, Means(network=True, disks=True, clocks=True))
    assert plan == plan_faults(3, 120, Means(network=True, disks=True, clocks=True))
    assert plan != plan_faults(4, 120, Means(network=True, disks=True, clocks=True))
    for side in (plan.masters, plan.servers):
        assert len(side) > 10
        assert all(before.end_s < after.begin_s for before, after in itertools.pairwise(side))
    assert not {fault.kind for fault in plan.servers} & TOUCHES_MASTERS
    assert {FaultKind.KILL_EVERYTHING, FaultKind.KILL_LEADER} <= {fault.kind for fault in plan.masters}


def test_errors_tell_whether_the_change_may_have_happened() -> None:
    assert NoQuorum("x", may_have_happened="yes").may_have_happened
    assert not NoQuorum("x").may_have_happened
    assert not DfsError("x").may_have_happened


def test_the_report_sums_the_runs_and_hides_no_failure() -> None:
    clean = Verdict(1, 30.0, {"put done": 5, "put failed (no_quorum)": 1}, {"kill_leader": 2}, [], [], [0.5, 0.7])
    broken = Verdict(2, 30.0, {"put done": 3, "put unknown": 1}, {"kill_leader": 1}, ["book1: no order"], [], [2.0])
    page = report([clean, broken], "abc", "1000 seeds")
    for words in ("| calls judged | 9 |", "| kill leader | 3 |", "median 0.70 s", "max 2.00 s", "book1: no order"):
        assert words in page
    assert "| promises found broken | 1 |" in page
    assert "Found broken" not in report([clean], "abc", "")
