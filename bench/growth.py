"""How cost grows: with the size of a file, the number of files, the entries of a directory, and the number of clients.

Owns: what is varied and how far. Refuses to know: how a measure is made (bench.crowd, bench.targets), and the drawing.
Run `python -m bench.growth [--preset quick]`; it writes the points as JSON, and plots where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.aims import DFS
from bench.crowd import ONCE, Effort, Step, rate, run_crowd
from bench.curves import Curve, Curves
from bench.demo import Failure, roomy_folder, write_random
from bench.machine import commit, describe, settle
from bench.rounds import PRODUCTION
from bench.targets import Target, Where
from bench.trees import in_process, load_verbs, write_tree
from dfs.config import GIB, KIB, MIB
from dfs.errors import DfsError
from dfs.testing.cluster import ClusterUnderTest

LOCAL = "local disk"
Ready = Callable[[Target, int], Step]  # (target, number of the client)


@dataclass(frozen=True, slots=True)
class Scale:
    """How far each of the four is varied."""

    sizes: tuple[int, ...] = (4 * KIB, 64 * KIB, MIB, 16 * MIB, 128 * MIB, 512 * MIB)
    counts: tuple[int, ...] = (100, 1_000, 10_000, 30_000)
    entries: tuple[int, ...] = (100, 1_000, 10_000, 50_000)
    clients: tuple[int, ...] = (1, 2, 4, 8, 16)
    seconds: float = 1.0
    rounds: int = 3


FULL: Final = Scale()
QUICK: Final = Scale(FULL.sizes[:-1], FULL.counts[:-1], FULL.entries[:-1], FULL.clients, 0.5, 1)
TINY: Final = Scale((4 * KIB, MIB), (10, 50), (10, 50), (1, 2), 0.05, 1)
PRESETS: Final = {"full": FULL, "quick": QUICK, "tiny": TINY}


class Growth:
    """One cluster, and the local disk beside it."""

    def __init__(self, folder: Path, cluster: ClusterUnderTest, scale: Scale) -> None:
        self._folder = folder
        self._cluster = cluster
        self._scale = scale
        self._dfs = Where(DFS, access=cluster.access)
        self._local = Where(LOCAL, root=folder / "local")
        self._names = 0  # of what was made so far: nothing is made twice

    def curves(self) -> Iterator[Curve]:
        (self._folder / "local").mkdir()
        yield from self.by_size()
        yield from self.by_count()
        yield from self.by_entries()
        yield from self.by_clients()

    def by_size(self) -> Iterator[Curve]:
        """One file by one client: seconds for a whole file, so that overhead and rate are both to be seen."""
        source = self._folder / "source"
        for where in (self._dfs, self._local):
            put: list[float] = []
            get: list[float] = []
            for size in self._scale.sizes:
                write_random(source, size)
                data = source.read_bytes() if size <= MIB else b""
                took = [self._put_and_get(where, source, data) for _ in range(self._scale.rounds)]
                put.append(statistics.median(seconds for seconds, _ in took))
                get.append(statistics.median(seconds for _, seconds in took))
                tell(f"{where.subject}: {size:,} bytes", put[-1], "s to put")
            yield Curve("size", f"put, {where.subject}", self._scale.sizes, tuple(put))
            yield Curve("size", f"get, {where.subject}", self._scale.sizes, tuple(get))

    def _put_and_get(self, where: Where, source: Path, data: bytes) -> tuple[float, float]:
        path, got = self._name("f"), self._folder / "got"

        def put(target: Target, _: int) -> Step:
            if data:
                return lambda _: target.put(path, data)
            return lambda _: store(target, source, path)

        def get(target: Target, _: int) -> Step:
            return lambda _: target.get_file(path, got)

        put_s, get_s = 1 / self._rate(where, put, ONCE), 1 / self._rate(where, get, ONCE)
        got.unlink()
        self._rate(where, lambda target, _: lambda _: target.remove(path), ONCE)
        return put_s, get_s

    def by_count(self) -> Iterator[Curve]:
        """A tree by `put -r`, `get -r` and `rm -r`: microseconds for each file."""
        spent: dict[str, list[float]] = {"put -r": [], "get -r": [], "rm -r": []}
        load_verbs()
        for count in self._scale.counts:
            for verb, seconds in zip(spent, self._tree(count), strict=True):
                spent[verb].append(1e6 * seconds / count)
            tell(f"{count:,} files", spent["put -r"][-1], "us each to put")
        for verb, costs in spent.items():
            yield Curve("count", verb, self._scale.counts, tuple(costs))

    def _tree(self, count: int) -> tuple[float, float, float]:
        """Return the seconds to put, to get and to remove a tree."""
        path = self._name("tree")
        source, back = self._folder / path[1:], self._folder / f"{path[1:]}-back"
        write_tree(source, count)
        put_s = 1 / self._command_rate("put", "-r", str(source), path)
        get_s = 1 / self._command_rate("get", "-r", path, str(back))
        remove_s = 1 / self._rate(self._dfs, lambda target, _: lambda _: target.remove_tree(path), ONCE)
        shutil.rmtree(source)
        shutil.rmtree(back)
        return put_s, get_s, remove_s

    def by_entries(self) -> Iterator[Curve]:
        """One directory with ever more entries: microseconds of one call, and of one entry of a listing."""
        verbs: dict[str, Callable[[str, int], Ready]] = {
            "touch": lambda path, _: lambda target, _: lambda n: target.touch(f"{path}/new-{n}"),
            "stat": lambda path, count: lambda target, _: lambda n: target.stat(f"{path}/{n % count:07d}"),
            "ls, for each entry": lambda path, _: lambda target, _: lambda _: target.count(path),
        }
        spent: dict[str, list[float]] = {verb: [] for verb in verbs}
        load_verbs()
        for count in self._scale.entries:
            path = self._directory_of(count)
            for verb, ready in verbs.items():
                per_second = self._rate(self._dfs, ready(path, count), Effort(self._scale.seconds))
                spent[verb].append(1e6 / per_second / (count if verb.startswith("ls") else 1))
            tell(f"directory of {count:,}", spent["stat"][-1], "us to stat")
        for verb, costs in spent.items():
            yield Curve("entries", verb, self._scale.entries, tuple(costs))

    def _directory_of(self, count: int) -> str:
        path = self._name("directory")
        source = self._folder / path[1:]
        source.mkdir()
        for number in range(count):
            (source / f"{number:07d}").touch()
        self._command_rate("put", "-r", str(source), path)
        shutil.rmtree(source)
        return path

    def by_clients(self) -> Iterator[Curve]:
        """Single calls by ever more processes: calls per second of all together."""
        small = os.urandom(4 * KIB)
        verbs: dict[str, Callable[[str], Ready]] = {
            "mkdir": lambda path: lambda target, own: lambda n: target.mkdir(f"{path}/d{own}-{n}"),
            "create 4 KiB": lambda path: lambda target, own: lambda n: target.put(f"{path}/f{own}-{n}", small),
            "read 4 KiB": lambda path: lambda target, _: lambda _: target.get(f"{path}/f0-0"),
            "stat": lambda path: lambda target, _: lambda _: target.stat(f"{path}/f0-0"),
        }
        rates: dict[str, list[float]] = {verb: [] for verb in verbs}
        for clients in self._scale.clients:
            path = self._made_directory()
            for verb, ready in verbs.items():
                rates[verb].append(self._rate(self._dfs, ready(path), Effort(self._scale.seconds), clients))
            tell(f"{clients} clients", rates["create 4 KiB"][-1], "creates/s")
        for verb, found in rates.items():
            yield Curve("clients", verb, self._scale.clients, tuple(found))

    def _made_directory(self) -> str:
        path = self._name("crowd")
        self._rate(self._dfs, lambda target, _: lambda _: target.mkdir(path), ONCE)
        return path

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"/{kind}{self._names}"

    def _rate(self, where: Where, ready: Ready, effort: Effort, clients: int = 1) -> float:
        @contextmanager
        def job(number: int) -> Iterator[Step]:
            with where.opened() as target:
                yield ready(target, number)

        settle(self._folder)
        return rate(run_crowd(clients, job, effort))

    def _command_rate(self, *arguments: str) -> float:
        @contextmanager
        def job(_: int) -> Iterator[Step]:
            yield lambda _: in_process(self._cluster, *arguments)

        settle(self._folder)
        return rate(run_crowd(1, job, ONCE))


def store(target: Target, source: Path, path: str) -> None:
    """Store a large file durably wherever it goes."""
    target.put_file(source, path)
    target.sync(path)


def tell(what: str, value: float, unit: str) -> None:
    print(f"growth   {what:36} {value:14,.4g} {unit}", file=sys.stderr, flush=True)


def run(scale: Scale) -> Curves:
    needed = 12 * max(scale.sizes) + GIB
    with tempfile.TemporaryDirectory(prefix="dfs-bench-", dir=roomy_folder(needed)) as name:
        folder = Path(name)
        machine = describe(folder)
        with ClusterUnderTest(folder, chunk_size=64 * MIB, settings=PRODUCTION) as cluster:
            return Curves(commit(), machine, tuple(Growth(folder, cluster, scale).curves()))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--preset", choices=PRESETS, default="full", help="how far all is varied (default full)")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("build/growth.json"), help="the points")
    parser.add_argument("--plots", type=Path, metavar="DIR", default=Path("build"), help="where SVG files go")
    given = parser.parse_args()
    try:
        curves = run(PRESETS[given.preset])
    except (Failure, DfsError, OSError) as error:
        sys.exit(f"FAILED: {error}")
    curves.save(given.json)
    try:
        from bench.plots import draw  # noqa: PLC0415 - matplotlib is optional
    except ModuleNotFoundError as error:
        sys.exit(f"the points are in {given.json}, but there are no plots: {error}; pip install 'dfss[bench]'")
    for path in draw(curves, given.plots):
        print(path)


if __name__ == "__main__":
    main()
