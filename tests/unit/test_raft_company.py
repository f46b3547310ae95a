"""Does the next log entry wait for those who will come, for them only, and never for long?"""

from __future__ import annotations

from dfs.master.raft_company import COMPANY_WAIT_S, LEFT_OUT_MAX, Company

SLOW_S, FAST_S = 2 * COMPANY_WAIT_S, 0.5 * COMPANY_WAIT_S


def after_an_entry(decided: int, waiting: int, *, took_s: float = SLOW_S) -> tuple[Company, bool]:
    """Return what there is after an entry of so many changes, during which others came, and whether it waits."""
    company = Company()
    company.entry_made(10.0)
    company.decided(decided)
    return company, company.all_applied(waiting, 10.0 + took_s)


def test_those_who_were_just_answered_are_waited_for() -> None:
    company, is_waiting = after_an_entry(5, 3)
    assert is_waiting
    assert not company.is_enough(7)
    assert company.is_enough(8)


def test_a_caller_that_was_alone_never_waits() -> None:
    company, is_waiting = after_an_entry(1, 0)
    assert not is_waiting
    assert company.is_enough(1)


def test_after_a_quick_entry_they_are_waited_for_as_long_as_they_come() -> None:
    company, is_waiting = after_an_entry(5, 3, took_s=FAST_S)
    assert is_waiting
    for _ in range(100):
        assert company.is_enough(8)
        company.entry_made(20.0)
        company.decided(8)
        assert company.all_applied(0, 20.0 + FAST_S), "all came in time: they are waited for again"


def test_who_does_other_things_in_between_is_waited_for_ever_more_seldom_and_never_given_up() -> None:
    company = Company()
    waits = []
    for number in range(1000):
        company.entry_made(20.0)
        company.decided(3)
        if company.all_applied(1, 20.0 + FAST_S):
            waits.append(number)
            company.waited()
        assert company.is_enough(1)
    assert waits[:5] == [0, 2, 6, 14, 30]
    assert waits[-1] - waits[-2] == LEFT_OUT_MAX + 1
    company.entry_made(20.0)
    company.decided(3)
    assert company.all_applied(1, 20.0 + SLOW_S), "an entry as slow as the wait is worth it anyway"
    company.entry_made(21.0)  # with all four: they came
    company.decided(4)
    while not company.all_applied(0, 21.0 + FAST_S):
        company.entry_made(21.0)
        company.decided(4)
    company.entry_made(22.0)
    company.decided(4)
    assert company.all_applied(0, 22.0 + FAST_S)


def test_who_does_not_come_is_not_waited_for_again() -> None:
    company, _ = after_an_entry(5, 3)
    company.waited()
    assert company.is_enough(3)
    company.entry_made(11.0)
    company.decided(3)
    assert company.all_applied(0, 11.0 + SLOW_S)
    assert company.is_enough(3)


def test_entries_that_are_on_their_way_together_count_as_one() -> None:
    company = Company()
    company.entry_made(10.0)
    company.entry_made(10.0 + FAST_S)
    company.decided(2)
    company.decided(2)
    assert company.all_applied(0, 10.0 + SLOW_S)
    assert not company.is_enough(3)
    assert company.is_enough(4)


def test_without_an_entry_of_own_changes_nobody_waits() -> None:
    company = Company()
    assert not company.all_applied(0, 10.0)
    assert company.is_enough(1)
    company.entry_made(10.0)
    company.decided(4)
    assert company.all_applied(0, 10.0 + SLOW_S)
    assert not company.all_applied(0, 10.0 + 2 * SLOW_S)  # told already: the wait that goes on is not begun anew
