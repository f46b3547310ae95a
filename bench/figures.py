"""What a run of the benchmarks found: samples, their statistics, and the JSON that is written of them.

Owns: medians and quartiles, and the schema of the JSON. Refuses to know: how anything is measured, aimed at or shown.
Source of the quartiles: linear interpolation between the order statistics (type 7 of Hyndman and Fan, 1996).
"""

from __future__ import annotations

import statistics
from pathlib import Path

import msgspec

SCHEMA = 1  # raised when a reader of older files would be misled
SPREAD_MAX = 0.35  # quartile distance over median: above it a median says little

Option = str | int | float | bool | None


class Key(msgspec.Struct, frozen=True, order=True):
    """What was measured on whom. `clients` are processes that work at the same time."""

    workload: str
    subject: str  # "dfs", or what it is compared with
    clients: int = 1


class Figure(msgspec.Struct, frozen=True):
    """The rates of all rounds, in `unit` per second. `noisy` says why nothing should be concluded, or nothing."""

    group: str
    key: Key
    unit: str
    samples: tuple[float, ...]
    noisy: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        return quartiles(self.samples)

    @property
    def spread(self) -> float:
        """The distance of the quartiles over the median: 0 when all rounds agree."""
        low, high = self.quartiles
        return (high - low) / self.median if self.median else 0.0

    @property
    def is_scattered(self) -> bool:
        return self.spread > SPREAD_MAX


class Calibration(msgspec.Struct, frozen=True):
    """What the machine could do at a moment when the benchmark itself did nothing."""

    group: str
    arithmetic_s: float  # a fixed piece of work for one processor
    fsync_s: float  # 4 KiB written and fdatasynced, the median of some
    others: float  # processors that somebody else used meanwhile: 0.5 is half of one
    stolen: float  # share of the time that the hypervisor gave to others since the last look, 0 to 1
    load: float  # of the last minute; the benchmark itself adds to it


class Machine(msgspec.Struct, frozen=True):
    """Where it ran."""

    cpus: int
    cpu: str
    memory: int  # bytes
    kernel: str
    file_system: str
    python: str


class Report(msgspec.Struct, frozen=True):
    """One run: everything that the tables and plots are made of."""

    when: str  # ISO 8601, UTC
    commit: str
    machine: Machine
    options: dict[str, Option]
    figures: tuple[Figure, ...]
    calibrations: tuple[Calibration, ...]
    schema: int = SCHEMA

    def figure(self, key: Key) -> Figure | None:
        return next((figure for figure in self.figures if figure.key == key), None)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Return a saved report. Raises `ValueError` when it is not one, or of another schema."""
        try:
            report = msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} is not a report of the benchmarks: {error}") from None
        if report.schema != SCHEMA:
            raise ValueError(f"{path} has schema {report.schema}; this program reads {SCHEMA}")
        return report


def quartiles(samples: tuple[float, ...]) -> tuple[float, float]:
    """Return the lower and the upper quartile; of one sample, twice itself."""
    if not samples:
        raise ValueError("quartiles of no samples")
    if len(samples) == 1:
        return samples[0], samples[0]
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high
