"""Measure put and get beside cp on the same disk in the same run: one large file, and many small ones.

Owns: what is measured and how it is printed. Refuses to know: why a figure is what it is.

Everything runs as a person would run it, as commands (`cp`, `dfs put`, …), start-up included. Rounds are interleaved,
so that a slow minute of the machine hits all; before each measurement the disk is settled with sync; medians are
printed. `cp + fsync` syncs each copied file as dfs does; `3x` makes three copies, as replication 3 does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.demo import BLOCK, PRODUCTION, Failure, roomy_folder, write_random
from dfs.config import GIB, MIB
from dfs.errors import DfsError
from dfs.testing.cluster import ClusterUnderTest

COPIES = 3
SMALL_SIZE = 4096
COMMAND_TIMEOUT_S = 600.0
Work = Callable[[int], None]  # is given the number of the round


class Bench:
    """One cluster, one folder, and the works to measure: name -> (work, clean-up)."""

    def __init__(self, folder: Path, cluster: ClusterUnderTest, size: int, count: int) -> None:
        self._folder = folder
        self._cluster = cluster
        self._size = size
        self._count = count
        self._big = folder / "big.bin"
        self._small = folder / "small"
        self._copies = folder / "copies"

    def prepare(self) -> None:
        """Make the sources; store them once for the gets."""
        write_random(self._big, self._size)
        for number in range(self._count):
            path = self._small / f"{number // 100:03d}" / f"{number:06d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(SMALL_SIZE))
        self._dfs("put", str(self._big), "/big.bin")
        self._dfs("put", "-r", str(self._small), "/small")

    def works(self) -> dict[str, dict[str, Work]]:
        """Return the groups; the first work of a group is what the others are compared with."""
        return {
            f"put {size_text(self._size)}": {
                "cp": lambda _: self._cp(1, synced=False),
                "cp + fsync": lambda _: self._cp(1, synced=True),
                "3x cp": lambda _: self._cp(COPIES, synced=False),
                "3x cp + fsync": lambda _: self._cp(COPIES, synced=True),
                "dfs put, 3 replicas": lambda round_: self._dfs("put", str(self._big), f"/big-{round_}.bin"),
                "dfs put, 1 replica": lambda round_: self._dfs(
                    "put", "--replication", "1", str(self._big), f"/single-{round_}.bin"
                ),
            },
            f"get {size_text(self._size)}": {
                "cp": lambda _: self._cp(1, synced=False),
                "cp + fsync": lambda _: self._cp(1, synced=True),
                "dfs get": lambda _: self._dfs("get", "/big.bin", str(self._target("got"))),
            },
            f"put {self._count} x 4 KiB": {
                "cp -r": lambda _: self._cp_tree(1, synced=False),
                "cp -r + fsync": lambda _: self._cp_tree(1, synced=True),
                "3x cp -r": lambda _: self._cp_tree(COPIES, synced=False),
                "3x cp -r + fsync": lambda _: self._cp_tree(COPIES, synced=True),
                "dfs put -r, 3 replicas": lambda round_: self._dfs("put", "-r", str(self._small), f"/small-{round_}"),
            },
            f"get {self._count} x 4 KiB": {
                "cp -r": lambda _: self._cp_tree(1, synced=False),
                "cp -r + fsync": lambda _: self._cp_tree(1, synced=True),
                "dfs get -r": lambda _: self._dfs("get", "-r", "/small", str(self._target("got"))),
            },
        }

    def measure(self, work: Work, round_: int) -> float:
        """Return the seconds that one work took."""
        shutil.rmtree(self._copies, ignore_errors=True)
        self._copies.mkdir()
        os.sync()
        start = time.perf_counter()
        work(round_)
        return time.perf_counter() - start

    def forget(self, round_: int) -> None:
        """Give back the space of a round's puts as far as the cluster does so at once."""
        with self._cluster.client() as client:
            for path in (f"/big-{round_}.bin", f"/single-{round_}.bin", f"/small-{round_}"):
                if client.exists(path):
                    client.delete(path, recursive=True, skip_trash=True)

    def _target(self, name: str) -> Path:
        return self._copies / name

    def _cp(self, copies: int, *, synced: bool) -> None:
        for number in range(copies):
            target = self._target(f"copy{number}")
            subprocess.run(["cp", "--reflink=never", str(self._big), str(target)], check=True)
            if synced:
                sync_file(target)

    def _cp_tree(self, copies: int, *, synced: bool) -> None:
        for number in range(copies):
            target = self._target(f"copy{number}")
            subprocess.run(["cp", "-r", "--reflink=never", str(self._small), str(target)], check=True)
            if synced:
                for path in target.rglob("*"):
                    sync_file(path)

    def _dfs(self, *arguments: str) -> None:
        done = self._cluster.run_cli(*arguments, timeout_s=COMMAND_TIMEOUT_S)
        if done.returncode != 0:
            raise Failure(f"dfs {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")


def size_text(size: int) -> str:
    return f"{size / GIB:g} GiB" if size % GIB == 0 else f"{size / MIB:g} MiB"


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def run(size: int, count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each round by group and work."""
    seconds: dict[str, dict[str, list[float]]] = {}
    needed = size * (8 + rounds * (COPIES + 1))  # if no garbage were collected meanwhile
    with tempfile.TemporaryDirectory(prefix="dfs-bench-", dir=roomy_folder(needed)) as name:
        folder = Path(name)
        settings = {**PRODUCTION, "garbage_grace": "1 s"}
        with ClusterUnderTest(folder, chunk_size=64 * MIB, settings=settings) as cluster:
            bench = Bench(folder, cluster, size, count)
            bench.prepare()
            for round_ in range(rounds):
                for group, works in bench.works().items():
                    for work, action in works.items():
                        taken = bench.measure(action, round_)
                        seconds.setdefault(group, {}).setdefault(work, []).append(taken)
                        print(f"round {round_ + 1}/{rounds}  {group:18} {work:24} {taken:8.2f} s", file=sys.stderr)
                bench.forget(round_)
    return seconds


def report(seconds: dict[str, dict[str, list[float]]], size: int, count: int) -> str:
    """Return the table: medians, rates, and how many times the first work of the group each took."""
    lines = [f"{'':18} {'':24} {'median':>9} {'min':>8} {'max':>8} {'rate':>14} {'x first':>8}"]
    for group, works in seconds.items():
        first = statistics.median(next(iter(works.values())))
        for work, taken in works.items():
            median = statistics.median(taken)
            rate = f"{count / median:.0f} files/s" if "x 4 KiB" in group else f"{size / MIB / median:.0f} MiB/s"
            ratio = median / first
            lines.append(
                f"{group:18} {work:24} {median:7.2f} s {min(taken):8.2f} {max(taken):8.2f} {rate:>14} {ratio:8.2f}"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure put and get beside cp on the same disk.")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="the large file (default 1024)")
    parser.add_argument("--count", type=int, default=1000, help="small files of 4 KiB (default 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each measurement (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    given = parser.parse_args()
    size = max(BLOCK, given.size * MIB)
    try:
        seconds = run(size, given.count, given.rounds)
    except (Failure, DfsError) as error:
        sys.exit(f"FAILED: {error}")
    print(report(seconds, size, given.count))
    if given.json is not None:
        facts = {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "size": size,
            "count": given.count,
            "seconds": seconds,
        }
        given.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
