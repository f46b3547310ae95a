"""Measure single calls, by one and by eight client processes: small files, names, random reads; local disk beside it.

Owns: what is measured, how processes start together, when a figure is worth nothing, and the table. Refuses to know:
why a figure is what it is.

Each work runs in rounds that are interleaved with the others, after a warm-up; before each measurement the disk is
settled with sync. A fixed piece of arithmetic is timed beside each: when that varies, so does the machine, and the
report says so. `--against DIR` does the same to a mounted peer, by ordinary system calls.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty
from typing import Any, Protocol

from bench.demo import PRODUCTION, roomy_folder
from dfs.client import ClusterAccess, DfsClient
from dfs.config import GIB, MIB
from dfs.errors import DfsError
from dfs.testing.cluster import ClusterUnderTest

KIB = 1024
PROCESSES = (1, 8)
LISTED = 1000  # entries of the listed directory
WARM_UP = 5  # iterations before the clock starts
START_WAIT_S = 120.0
NOISE_MAX = 1.5  # slowest over fastest arithmetic: above it nothing can be concluded
ARITHMETIC = 300_000


class Target(Protocol):
    """What is measured: a file system, by its calls."""

    def put(self, path: str, data: bytes) -> None: ...

    def get(self, path: str) -> int: ...

    def mkdir(self, path: str) -> None: ...

    def stat(self, path: str) -> None: ...

    def rename(self, source: str, target: str) -> None: ...

    def count(self, path: str) -> int: ...

    def read_at(self, path: str, offset: int, size: int) -> int: ...


class DfsTarget:
    """A client of the cluster."""

    def __init__(self, client: DfsClient) -> None:
        self._client = client

    def put(self, path: str, data: bytes) -> None:
        self._client.put(io.BytesIO(data), path)

    def get(self, path: str) -> int:
        return sum(map(len, self._client.read(path)))

    def mkdir(self, path: str) -> None:
        self._client.make_directory(path)

    def stat(self, path: str) -> None:
        self._client.stat(path)

    def rename(self, source: str, target: str) -> None:
        self._client.rename(source, target)

    def count(self, path: str) -> int:
        return sum(1 for _ in self._client.list(path))

    def read_at(self, path: str, offset: int, size: int) -> int:
        return sum(map(len, self._client.read(path, offset=offset, length=size)))


class FolderTarget:
    """A folder of this machine: its disk, or a peer that is mounted there. Files are synced as dfs syncs them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, int] = {}

    def _place(self, path: str) -> str:
        return f"{self._root}{path}"

    def put(self, path: str, data: bytes) -> None:
        fd = os.open(self._place(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)

    def get(self, path: str) -> int:
        return len(Path(self._place(path)).read_bytes())

    def mkdir(self, path: str) -> None:
        Path(self._place(path)).mkdir()

    def stat(self, path: str) -> None:
        Path(self._place(path)).stat()

    def rename(self, source: str, target: str) -> None:
        Path(self._place(source)).rename(self._place(target))

    def count(self, path: str) -> int:
        return len([entry.stat() for entry in os.scandir(self._place(path))])

    def read_at(self, path: str, offset: int, size: int) -> int:
        if path not in self._open:
            self._open[path] = os.open(self._place(path), os.O_RDONLY)
        return len(os.pread(self._open[path], size, offset))


@dataclass(frozen=True, slots=True)
class Where:
    """A target as another process can make it: a cluster, or a folder."""

    name: str
    access: ClusterAccess | None = None
    root: Path | None = None

    @contextmanager
    def opened(self) -> Iterator[Target]:
        if self.access is None:
            assert self.root is not None, "neither a cluster nor a folder"
            yield FolderTarget(self.root)
            return
        with DfsClient(self.access) as client:
            yield DfsTarget(client)


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to do again and again. `step(target, own directory, number)` does it once; `share` of all iterations
    is done, for works that are slow."""

    name: str
    step: Callable[[Target, str, int], object]
    share: float = 1.0


def works(big_size: int) -> list[Work]:
    """Return what is measured, in an order in which each finds what it needs."""
    blocks = big_size // (4 * KIB)
    small, medium = os.urandom(4 * KIB), os.urandom(100 * KIB)
    return [
        Work("put 4 KiB", lambda target, own, n: target.put(f"{own}/s{n}", small)),
        Work("get 4 KiB", lambda target, own, n: target.get(f"{own}/s{n}")),
        Work("put 100 KiB", lambda target, own, n: target.put(f"{own}/m{n}", medium), 0.5),
        Work("get 100 KiB", lambda target, own, n: target.get(f"{own}/m{n}"), 0.5),
        Work("mkdir", lambda target, own, n: target.mkdir(f"{own}/d{n}")),
        Work("stat", lambda target, own, n: target.stat(f"{own}/s{n}")),
        Work("rename", lambda target, own, n: target.rename(f"{own}/d{n}", f"{own}/r{n}")),
        Work(f"list {LISTED}", lambda target, _, __: target.count("/listed"), 0.1),
        Work(
            "read 4 KiB at random",
            lambda target, _, __: target.read_at("/big", random.randrange(blocks) * 4 * KIB, 4 * KIB),
        ),
    ]


def work_in_process(
    where: Where, number: int, own: str, iterations: int, big_size: int, begin: Barrier, told: Any
) -> None:
    """The root of a client process: do one work when all are ready, and tell the seconds or the failure."""
    try:
        work = works(big_size)[number]
        with where.opened() as target:
            for warm in range(-WARM_UP, 0):
                work.step(target, own, warm)
            begin.wait(START_WAIT_S)
            start = time.perf_counter()
            for n in range(iterations):
                work.step(target, own, n)
            told.put(time.perf_counter() - start)
    except Exception as error:  # noqa: BLE001 - a process's root: whatever it is ends the measurement
        told.put(f"{where.name}: {type(error).__name__}: {error}")
        begin.abort()


@dataclass(slots=True)
class Figures:
    """Rates of each round by (target, work, processes), and how long the arithmetic took beside each."""

    rates: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    arithmetic_s: list[float] = field(default_factory=list)

    @property
    def noise(self) -> float:
        return max(self.arithmetic_s) / min(self.arithmetic_s)


def arithmetic() -> float:
    """Return the seconds of a fixed piece of work for one processor."""
    start = time.perf_counter()
    total = 0
    for number in range(ARITHMETIC):
        total += number * number
    return time.perf_counter() - start


def measure(where: Where, number: int, processes: int, iterations: int, round_: int, big_size: int) -> float:
    """Return iterations per second of all processes together; raise `DfsError` when one failed."""
    context = multiprocessing.get_context("fork")
    begin, told = context.Barrier(processes), context.Queue()
    each = max(1, iterations // processes)
    running = [
        context.Process(
            target=work_in_process,
            args=(where, number, f"/{round_}-{processes}-{process}", each, big_size, begin, told),
        )
        for process in range(processes)
    ]
    os.sync()
    for process in running:
        process.start()
    try:
        outcomes: list[float | str] = [told.get(timeout=600) for _ in running]
    except Empty:
        raise DfsError(f"{where.name}: a client process told nothing within 10 minutes") from None
    finally:
        for process in running:
            process.join(10)
    if failed := [outcome for outcome in outcomes if isinstance(outcome, str)]:
        raise DfsError(failed[0])
    return each * processes / max(seconds for seconds in outcomes if isinstance(seconds, float))


def prepare(where: Where, rounds: int, big_size: int) -> None:
    """Make the directories of all processes, the listed one, and the large file."""
    with where.opened() as target:
        for path in (f"/{r}-{p}-{n}" for r in range(-1, rounds) for p in PROCESSES for n in range(p)):
            target.mkdir(path)
        target.mkdir("/listed")
        for number in range(LISTED):
            target.mkdir(f"/listed/{number:04d}")
        target.put("/big", random.randbytes(big_size))


def run(targets: list[Where], count: int, rounds: int, big_size: int) -> Figures:
    """Measure all works on all targets, round by round."""
    figures = Figures()
    for where in targets:
        prepare(where, rounds, big_size)
    for round_ in range(rounds):
        for number, work in enumerate(works(big_size)):
            for processes in PROCESSES:
                for where in targets:
                    figures.arithmetic_s.append(arithmetic())
                    iterations = max(processes, int(count * work.share))
                    rate = measure(where, number, processes, iterations, round_, big_size)
                    figures.rates.setdefault((where.name, work.name, processes), []).append(rate)
                    print(
                        f"round {round_ + 1}/{rounds}  {work.name:22} {processes} x {where.name:10} {rate:10.0f}/s",
                        file=sys.stderr,
                    )
    return figures


def report(figures: Figures, targets: list[Where]) -> str:
    """Return the table: medians, spread, and the first target's median over each other's."""
    first = targets[0].name
    lines = [f"{'':22} {'clients':>7} {'':10} {'median':>10} {'min':>9} {'max':>9}   {first} is"]
    for (name, work, processes), rates in sorted(figures.rates.items(), key=lambda item: (item[0][1], item[0][2])):
        median = statistics.median(rates)
        own = statistics.median(figures.rates[first, work, processes])
        ratio = "" if name == first else f"{own / median:8.2f} x"
        lines.append(
            f"{work:22} {processes:7} {name:10} {median:8.0f}/s {min(rates):7.0f}/s {max(rates):7.0f}/s {ratio}"
        )
    load = os.getloadavg()[0]
    verdict = "the machine was quiet enough" if figures.noise <= NOISE_MAX else "TOO NOISY to conclude anything"
    lines.append(f"\nfixed arithmetic varied by {figures.noise:.2f} x, load {load:.1f}: {verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure single calls by one and by eight client processes.")
    parser.add_argument("--count", type=int, default=2000, help="iterations of each work (default 2000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default 3)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="the file that is read at random")
    parser.add_argument("--against", type=Path, metavar="DIR", help="an empty folder of a mounted peer to compare with")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    given = parser.parse_args()
    size = given.size * MIB
    try:
        with tempfile.TemporaryDirectory(prefix="dfs-bench-", dir=roomy_folder(2 * GIB + 8 * size)) as name:
            folder = Path(name)
            (folder / "local").mkdir()
            with ClusterUnderTest(folder, chunk_servers=3, chunk_size=64 * MIB, settings=PRODUCTION) as cluster:
                targets = [Where("dfs", access=cluster.access), Where("local", root=folder / "local")]
                if given.against is not None:
                    targets.append(Where("peer", root=given.against / "dfs-bench"))
                    (given.against / "dfs-bench").mkdir()
                figures = run(targets, given.count, given.rounds, size)
    except (DfsError, OSError) as error:
        sys.exit(f"FAILED: {error}")
    finally:
        if given.against is not None:
            shutil.rmtree(given.against / "dfs-bench", ignore_errors=True)
    print(report(figures, targets))
    if given.json is not None:
        facts = {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "count": given.count,
            "noise": figures.noise,
            "rates": [
                {"target": target, "work": work, "clients": clients, "per_second": rates}
                for (target, work, clients), rates in figures.rates.items()
            ],
        }
        given.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
