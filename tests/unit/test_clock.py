"""Clocks and deadlines: time moves when it should, and budgets are shared."""

from __future__ import annotations

import time

import pytest

from dfs.clock import SYSTEM_CLOCK, Clock, Deadline, boot_s
from dfs.errors import DeadlineExceeded
from dfs.testing.clock import FakeClock


def test_fake_clock_stands_still_until_it_is_moved() -> None:
    clock: Clock = FakeClock()
    before = (clock.monotonic(), clock.wall_ms())
    assert (clock.monotonic(), clock.wall_ms()) == before


def test_fake_clock_moves_both_times_and_never_back() -> None:
    clock = FakeClock(monotonic_s=10, wall_ms=1000)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.wall_ms()) == (12.5, 3500)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_stepping_the_time_of_day_leaves_monotonic_time_alone() -> None:
    clock = FakeClock(monotonic_s=10, wall_ms=5000)
    clock.step_wall(-2)
    assert (clock.monotonic(), clock.wall_ms()) == (10, 3000)


def test_system_clock_does_not_go_back() -> None:
    first, second = SYSTEM_CLOCK.monotonic(), SYSTEM_CLOCK.monotonic()
    assert second >= first
    assert SYSTEM_CLOCK.wall_ms() > 1_700_000_000_000


def test_clock_that_no_sleep_stops_is_never_behind_the_one_that_it_does() -> None:
    first, awake_s = boot_s(), time.monotonic()
    assert boot_s() >= first
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert first == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=60)
        assert boot_s() >= awake_s


def test_passed_deadline_has_nothing_left_and_says_what_was_being_done() -> None:
    deadline = Deadline(time.monotonic() - 1)
    assert deadline.has_passed
    assert deadline.remaining_s() == 0.0
    with pytest.raises(DeadlineExceeded, match="while counting sheep"):
        deadline.check("counting sheep")


def test_shorter_budget_never_outlives_the_whole_one() -> None:
    whole = Deadline.after(1000)
    assert not whole.has_passed
    assert whole.no_later_than(5000).at_s == whole.at_s
    assert whole.no_later_than(10).at_s < whole.at_s
    assert 0 < whole.no_later_than(10).check("waiting") <= 10
