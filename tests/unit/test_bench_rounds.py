"""Rounds are interleaved, warm-up does not count, and the machine is looked at before, between and after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from bench import rounds
from bench.figures import Calibration, Key
from bench.rounds import TINY, Measure, Site, run_group
from dfs.testing.cluster import ClusterUnderTest


class QuietWatch:
    """Stands for the machine: each look is written down in `heard`, and the third one finds a neighbour's fsync."""

    heard: list[str]

    def __init__(self, _: Path) -> None:
        self._looks = 0

    def calibrate(self, group: str) -> Calibration:
        self.heard.append("look")
        self._looks += 1
        return Calibration(group, 0.01, 0.1 if self._looks == 3 else 0.001, 0.0, 0.0, 0.1)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(QuietWatch, "heard", [], raising=False)
    monkeypatch.setattr(rounds, "Watch", QuietWatch)
    return QuietWatch.heard


def test_all_measures_of_a_round_come_before_the_next_round(heard: list[str], tmp_path: Path) -> None:
    @contextmanager
    def group(_: Site) -> Iterator[Sequence[Measure]]:
        def measure(subject: str, rate: float) -> Measure:
            def run(round_: int) -> float:
                heard.append(f"{subject}{round_}")
                return rate + round_

            return Measure(Key("stat", subject), "calls", run)

        yield [measure("a", 100), measure("b", 200)]

    nowhere = cast("ClusterUnderTest", None)  # no measure of this group needs one
    site = Site(nowhere, tmp_path, None, replace(TINY, rounds=2, warm_ups=1))
    figures, calibrations = run_group("calls", group, site)
    assert heard == ["look", "a-1", "b-1", "look", "a0", "b0", "look", "a1", "b1", "look"]
    assert [(figure.key.subject, figure.samples) for figure in figures] == [("a", (100, 101)), ("b", (200, 201))]
    assert len(calibrations) == 4
    assert all("fsync" in figure.noisy for figure in figures)
