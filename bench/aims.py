"""What each workload should reach, as data: the one table against which every run is judged.

Owns: the aims and their judgement. Refuses to know: how a figure came about.

An aim is a rate, or a ratio to something measured in the same run: on another machine only the ratios mean something
(the rates are for 2 cores with an SSD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.figures import Figure, Key, Report

DFS: Final = "dfs"
PEER: Final = "peer"


@dataclass(frozen=True, slots=True)
class Aim:
    """`at_least` times the rate of `against`; with nothing there, a rate in the workload's own unit."""

    workload: str
    at_least: float
    clients: int = 1
    against: str = ""

    @property
    def key(self) -> Key:
        return Key(self.workload, DFS, self.clients)


@dataclass(frozen=True, slots=True)
class Outcome:
    """An aim beside what was reached, both as rates or both as ratios."""

    aim: Aim
    reached: float
    noisy: str

    @property
    def is_met(self) -> bool:
        return self.reached >= self.aim.at_least

    @property
    def share(self) -> float:
        """What was reached of the aim: 1 is just met."""
        return self.reached / self.aim.at_least


AIMS: Final = (
    Aim("put, unsynced", 1.0, against="3x cp"),
    Aim("put, fsynced", 0.8, against="3x cp + fsync"),
    Aim("put, unsynced", 3.0, against=PEER),
    Aim("get to a file", 0.8, against="cp"),
    Aim("read, verified", 0.85, against="loopback"),
    Aim("get to a file", 3.0, against=PEER),
    Aim("create 4 KiB", 700, 1),
    Aim("create 4 KiB", 2_000, 8),
    Aim("read 4 KiB", 4_000, 1),
    Aim("read 4 KiB", 12_000, 8),
    Aim("put -r of 4 KiB files", 10_000),
    Aim("get -r of 4 KiB files", 15_000),
    Aim("rm -r of 4 KiB files", 50_000),
    Aim("mkdir", 1_200, 1),
    Aim("mkdir", 6_000, 8),
    Aim("stat", 6_000, 1),
    Aim("stat", 15_000, 8),
    Aim("rename", 1_200, 1),
    Aim("rename", 5_000, 8),
    Aim("list 1,000 entries", 1_300),
    Aim("4 KiB at random", 8_000, 1),
    Aim("4 KiB at random", 30_000, 8),
    Aim("append 4 KiB", 5_000, 16),
    Aim("append 1 MiB", 0.5, against="3x local"),
)


def judge(aim: Aim, report: Report) -> Outcome | None:
    """Return how an aim fared, or nothing when it, or what it is compared with, was not measured."""
    figure = report.figure(aim.key)
    if figure is None:
        return None
    if not aim.against:
        return Outcome(aim, figure.median, figure.noisy)
    other = report.figure(Key(aim.workload, aim.against, aim.clients))
    if other is None:
        return None
    return Outcome(aim, ratio(figure, other), figure.noisy or other.noisy)


def outcomes(report: Report) -> list[Outcome]:
    """Return how all aims fared that this run can tell of."""
    return [outcome for aim in AIMS if (outcome := judge(aim, report)) is not None]


def ratio(figure: Figure, other: Figure) -> float:
    """Return how many times as fast a figure is as another one, by their medians."""
    return figure.median / other.median if other.median else float("inf")
