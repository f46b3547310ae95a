"""Is a question to the other masters answered when, and only when, a majority has answered that very question?"""

from __future__ import annotations

import pytest

from dfs.master.raft_rounds import Round


@pytest.mark.parametrize(("peers", "needed"), [(0, 0), (2, 1), (4, 2)])
def test_a_majority_of_all_masters_is_needed_and_the_asker_is_one_of_them(peers: int, needed: int) -> None:
    round_ = Round(peers)
    number = round_.begin()
    for peer in range(needed):
        assert not round_.take()
        round_.answer(f"m{peer}", number)
    assert round_.take()
    assert round_.answered == frozenset(f"m{peer}" for peer in range(needed))


def test_an_answer_to_an_earlier_question_says_nothing_about_this_one() -> None:
    round_ = Round(2)
    earlier = round_.begin()
    number = round_.begin()
    round_.answer("m1", earlier)
    assert not round_.take()
    round_.answer("m1", number)
    assert round_.take()


def test_a_master_counts_once_and_a_question_is_answered_once() -> None:
    round_ = Round(4)
    number = round_.begin()
    round_.answer("m1", number)
    round_.answer("m1", number)
    assert not round_.take()
    round_.answer("m2", number)
    assert round_.take()
    assert not round_.take()


def test_what_comes_after_the_end_of_a_question_counts_no_more() -> None:
    round_ = Round(4)
    number = round_.begin()
    round_.answer("m1", number)
    round_.cancel()
    round_.answer("m2", number)
    assert not round_.take()
    assert round_.answered == {"m1"}
