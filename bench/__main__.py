"""`python -m bench`: all groups side by side, one table with ratios and aims, and the figures as JSON.

Owns: the command line and the order of the groups. Refuses to know: what the groups measure.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from rich.console import Console

from bench.append import appends
from bench.bulk import fsynced, unsynced
from bench.calls import calls
from bench.demo import Failure, roomy_folder
from bench.figures import Calibration, Figure, Option, Report
from bench.machine import commit, describe, spread
from bench.rounds import FULL, PRODUCTION, QUICK, TINY, Group, Site, Sizes, run_group
from bench.table import show
from bench.trees import trees
from dfs.config import GIB, MIB
from dfs.errors import DfsError
from dfs.testing.cluster import ClusterUnderTest

GROUPS: Final[dict[str, Group]] = {
    "put": unsynced,
    "bulk": fsynced,
    "tree": trees,
    "calls": calls,
    "append": appends,
}
UNSYNCED: Final = frozenset({"put"})  # groups whose cluster does not sync; all others share one that does
PRESETS: Final = {"full": FULL, "quick": QUICK, "tiny": TINY}
PLAIN_WIDTH = 170  # of a table that goes into a file
SPACE_FACTOR = 12  # large files at once: the source, three replicas of two, three copies, and what waits for deletion


def run(sizes: Sizes, chosen: list[str], against: Path | None, options: dict[str, str | None]) -> Report:
    """Run the groups one after the other, each in empty folders."""
    figures: list[Figure] = []
    calibrations: list[Calibration] = []
    room = roomy_folder(GIB + SPACE_FACTOR * sizes.large)
    machine = describe(room)
    for is_unsynced, names in groupby(chosen, UNSYNCED.__contains__):
        with tempfile.TemporaryDirectory(prefix="dfs-bench-", dir=room) as folder:
            settings = {**PRODUCTION, "fsync": "no" if is_unsynced else "yes"}
            with ClusterUnderTest(Path(folder), chunk_size=64 * MIB, settings=settings) as cluster:
                for name in names:
                    found, looked = run_in(cluster, name, Path(folder) / name, against, sizes)
                    figures += found
                    calibrations += looked
    when = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    facts: dict[str, Option] = {**options, **asdict(sizes)}
    return Report(when, commit(), machine, facts, tuple(figures), tuple(calibrations))


def run_in(
    cluster: ClusterUnderTest, name: str, folder: Path, against: Path | None, sizes: Sizes
) -> tuple[list[Figure], list[Calibration]]:
    """Run one group, and leave neither its folder nor the peer's behind."""
    folder.mkdir()
    peer = None if against is None else Path(tempfile.mkdtemp(prefix="dfs-bench-", dir=against))
    for path in filter(None, (folder, peer)):
        spread(path)
    try:
        return run_group(name, GROUPS[name], Site(cluster, folder, peer, sizes))
    finally:
        for path in filter(None, (folder, peer)):
            shutil.rmtree(path, ignore_errors=True)


def chosen_groups(text: str) -> list[str]:
    """Return the groups of a comma-separated list, in their order."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(GROUPS)):
        raise argparse.ArgumentTypeError(f"no such group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    return [name for name in GROUPS if name in names]


def end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure dfs beside the machine's own limits.")
    parser.add_argument("--preset", choices=PRESETS, default="full", help="how much is done (default full)")
    parser.add_argument("--rounds", type=int, help="rounds that count, after one that does not")
    parser.add_argument("--only", type=chosen_groups, default=list(GROUPS), metavar="GROUPS", help=", ".join(GROUPS))
    parser.add_argument("--against", type=Path, metavar="DIR", help="a peer's mount: the same is done there")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("build/bench.json"), help="all figures")
    given = parser.parse_args()
    sizes = PRESETS[given.preset]
    if given.rounds is not None:
        if given.rounds < 1:
            parser.error("at least one round must count")
        sizes = replace(sizes, rounds=given.rounds)
    if given.against is not None and not given.against.is_dir():
        parser.error(f"{given.against} is no directory")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)  # no cluster is left behind
    options = {"preset": given.preset, "against": None if given.against is None else str(given.against)}
    try:
        report = run(sizes, given.only, given.against, options)
    except (Failure, DfsError, OSError) as error:
        sys.exit(f"FAILED: {error}")
    report.save(given.json)
    console = Console()
    show(report, console if console.is_terminal else Console(width=PLAIN_WIDTH))
    print(f"all figures: {given.json}")


if __name__ == "__main__":
    main()
