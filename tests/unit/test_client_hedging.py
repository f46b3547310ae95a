"""Is a slow replica told from a busy machine, and are second requests bounded?"""

from __future__ import annotations

import pytest

from dfs.client.hedging import (
    BURST_MAX,
    PATIENCE_FACTOR,
    PATIENCE_FIRST_S,
    PATIENCE_MIN_S,
    SAMPLES_MIN,
    SHARE_MAX,
    SIZE_CLASSES,
    Hedging,
)

SMALL = 4096
LARGE = SIZE_CLASSES[-1] + 1


def told(hedging: Hedging, size: int, *times_s: float) -> None:
    for taken_s in times_s:
        hedging.answered(size, taken_s)


def test_while_nothing_is_known_patience_is_long() -> None:
    hedging = Hedging()
    told(hedging, SMALL, *[0.0001] * (SAMPLES_MIN - 1))
    assert hedging.patience_s(SMALL) == PATIENCE_FIRST_S


def test_patience_follows_a_high_quantile_of_the_recent_times() -> None:
    hedging = Hedging()
    told(hedging, SMALL, *([0.05] * 90 + [0.08] * 10) * 2)
    assert hedging.patience_s(SMALL) == pytest.approx(PATIENCE_FACTOR * 0.08)
    told(hedging, SMALL, *[0.0001] * 400)
    assert hedging.patience_s(SMALL) == PATIENCE_MIN_S, "never less than the noise of a machine"


def test_one_slow_answer_in_a_hundred_makes_nobody_patient() -> None:
    hedging = Hedging()
    told(hedging, SMALL, *([0.02] * 99 + [5.0]) * 2)
    assert hedging.patience_s(SMALL) == pytest.approx(PATIENCE_FACTOR * 0.02)


def test_sizes_are_told_apart() -> None:
    hedging = Hedging()
    told(hedging, LARGE, *[0.1] * 100)
    assert hedging.patience_s(SMALL) == PATIENCE_FIRST_S
    assert hedging.patience_s(LARGE) == pytest.approx(PATIENCE_FACTOR * 0.1)


def test_patience_grows_with_a_cluster_that_becomes_slower_as_a_whole() -> None:
    hedging = Hedging()
    told(hedging, SMALL, *[0.02] * 200)
    for _ in range(400):  # every answer is late: what is told is how long it was waited for
        told(hedging, SMALL, hedging.patience_s(SMALL))
    assert hedging.patience_s(SMALL) == PATIENCE_FIRST_S


def test_second_requests_are_a_few_in_a_hundred() -> None:
    hedging = Hedging()
    sent = 0
    for _ in range(2000):
        hedging.answered(SMALL, 0.1)
        sent += hedging.take()
    assert BURST_MAX <= sent <= BURST_MAX + 2000 * SHARE_MAX


def test_an_unused_budget_does_not_pile_up() -> None:
    hedging = Hedging()
    told(hedging, SMALL, *[0.001] * 10_000)
    assert sum(hedging.take() for _ in range(100)) == BURST_MAX
