"""Does the token bucket hold its rate, whoever asks for how much and how often?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dfs.chunk.token_bucket import SAVED_S, TokenBucket


def test_without_a_rate_everything_passes_at_once() -> None:
    bucket = TokenBucket()
    assert [bucket.take(10**12, 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_debt_is_paid_before_the_next_one_passes() -> None:
    bucket = TokenBucket(100)
    assert bucket.take(1000, 5.0) == 0.0  # larger than anything saved up, and passes all the same
    assert bucket.take(1, 5.0) == 10.0
    assert bucket.take(1, 12.0) == 3.0
    assert bucket.take(1, 15.0) == 0.0


def test_new_rate_holds_for_the_debt_and_no_rate_forgives_it() -> None:
    bucket = TokenBucket(100)
    bucket.take(1000, 0.0)
    bucket.set_rate(1000, 0.0)
    assert bucket.take(1, 0.0) == 1.0
    bucket.set_rate(0, 0.0)
    assert bucket.take(1, 0.0) == 0.0
    bucket.set_rate(1, 0.0)
    assert bucket.take(1, 0.0) == 0.0


def test_clock_that_stands_or_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(100)
    bucket.take(100, 10.0)
    assert bucket.take(1, 10.0) == 1.0
    assert bucket.take(1, 9.0) == 1.0


@given(
    rate=st.integers(1, 10**9),
    steps=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 10**7)), min_size=1, max_size=60),
)
def test_no_pattern_of_asking_gets_more_than_the_rate(rate: int, steps: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(rate)
    now_s, passed, largest = 0.0, 0, 0
    for pause_s, size in steps:
        now_s += pause_s
        if bucket.take(size, now_s) == 0.0:
            passed += size
            largest = max(largest, size)
    assert passed <= rate * (now_s + SAVED_S) + largest + 1


@given(rate=st.integers(1, 10**9), sizes=st.lists(st.integers(1, 10**7), min_size=1, max_size=60))
def test_whoever_waits_as_told_passes_and_loses_nothing(rate: int, sizes: list[int]) -> None:
    bucket = TokenBucket(rate)
    now_s = 0.0
    for size in sizes:
        while pause_s := bucket.take(size, now_s):
            now_s += pause_s
    assert now_s <= sum(sizes) / rate * 1.001 + 0.001
