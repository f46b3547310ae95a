"""Does the next log entry wait for those who will come, for them only, and never for long?"""

from __future__ import annotations

from dfs.master.raft_company import COMPANY_WAIT_S, Company

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


def test_nobody_waits_longer_than_an_entry_takes() -> None:
    company, is_waiting = after_an_entry(5, 3, took_s=FAST_S)
    assert not is_waiting
    assert company.is_enough(3)


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
