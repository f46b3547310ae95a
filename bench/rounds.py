"""Groups of measures, run in interleaved rounds: a slow minute of the machine hits all that are compared.

Owns: the order of rounds, warm-up, settling the disk, looking at the machine. Refuses to know: what a measure does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Calibration, Figure, Key
from bench.machine import Watch, settle
from bench.noise import verdict
from dfs.config import GIB
from dfs.testing.cluster import ClusterUnderTest

PRODUCTION = {  # the values of the default cluster.ini, not the hasty ones of tests
    "heartbeat_interval": "1 s",
    "dead_after": "10 s",
    "repair_after": "60 s",
    "client_timeout": "30 s",
    "disk_reserve": "256 MiB",
    "garbage_grace": "1 s",  # but for this: a round's garbage must not lie in the way of the next one
    "scrub_period": "0 s",  # nor shall a scrubber wake up in the midst of one measure
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done."""

    rounds: int = 3
    warm_ups: int = 1  # rounds before those, which do not count; their numbers are negative
    seconds: float = 1.0  # of single calls by each client
    crowd: int = 8  # clients that work at the same time
    large: int = GIB  # bytes of the large file
    tree: int = 10_000  # small files of a tree
    listed: int = 1_000  # entries of the listed directory
    records: int = 10_000  # small ones that are appended
    appenders: int = 16
    is_settled: bool = True  # whether the disk is drained before each measure

    @property
    def all_rounds(self) -> range:
        return range(-self.warm_ups, self.rounds)


FULL = Sizes()
QUICK = Sizes(rounds=1, seconds=0.5, large=GIB // 4, tree=2_000, records=4_000)
TINY = Sizes(
    rounds=1, seconds=0.05, crowd=2, large=4 << 20, tree=40, listed=20, records=64, appenders=2, is_settled=False
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing to measure: `run(round)` prepares, does it, cleans up, and returns its rate in `unit` per second."""

    key: Key
    unit: str
    run: Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Site:
    """Where a group works: a cluster, a folder of its own on the local disk, and an empty one of a peer, if any.

    Other groups may have left files in the cluster.
    """

    cluster: ClusterUnderTest
    folder: Path
    peer: Path | None
    sizes: Sizes

    def settle(self) -> None:
        if self.sizes.is_settled:
            settle(self.folder)


Group = Callable[[Site], AbstractContextManager[Sequence[Measure]]]


def run_group(name: str, group: Group, site: Site) -> tuple[list[Figure], list[Calibration]]:
    """Return what all measures of a group found, and how the machine was meanwhile."""
    samples: dict[Key, list[float]] = {}
    units: dict[Key, str] = {}
    watch, calibrations = Watch(site.folder), []
    with group(site) as measures:
        for round_ in site.sizes.all_rounds:
            site.settle()
            calibrations.append(watch.calibrate(name))
            for measure in measures:
                site.settle()
                rate = measure.run(round_)
                tell(name, round_, site.sizes.rounds, measure, rate)
                if round_ >= 0:
                    samples.setdefault(measure.key, []).append(rate)
                    units[measure.key] = measure.unit
        site.settle()
        calibrations.append(watch.calibrate(name))
    noisy = verdict(calibrations)
    figures = [Figure(name, key, units[key], tuple(rates), noisy) for key, rates in samples.items()]
    return figures, calibrations


def tell(group: str, round_: int, rounds: int, measure: Measure, rate: float) -> None:
    count = "warm-up" if round_ < 0 else f"{round_ + 1}/{rounds}"
    key = measure.key
    line = f"{group:8} {count:>7}  {key.workload:26} {key.clients:2} x {key.subject:22} {rate:12,.0f} {measure.unit}/s"
    print(line, file=sys.stderr, flush=True)
