"""The benchmarks run from end to end, at sizes that prove nothing about speed: they shall not rot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.aims import AIMS
from bench.crowd import Effort, Step, run_crowd
from bench.figures import Report
from bench.rounds import TINY
from dfs.errors import DfsError

ROOT = Path(__file__).parent.parent.parent
SUBJECTS = {  # what each workload must have been done on
    "put, unsynced": {"dfs", "cp", "3x cp", "peer"},
    "put, fsynced": {"dfs", "cp + fsync", "3x cp + fsync", "peer"},
    "get to a file": {"dfs", "cp", "peer"},
    "read, verified": {"dfs", "loopback", "loopback, verified", "peer"},
    "put -r of 4 KiB files": {"dfs", "dfs command", "cp -r", "3x cp -r + sync", "peer"},
    "rm -r of 4 KiB files": {"dfs", "rm -r", "peer"},
    "create 4 KiB": {"dfs", "local", "peer"},
    "rename": {"dfs", "local", "peer"},
    "4 KiB at random": {"dfs", "local", "peer"},
    "append 4 KiB, each awaited": {"dfs", "local", "3x local", "peer"},
}


@pytest.mark.timeout(300)  # seconds on a quiet machine, and many processes one after the other on a busy one
def test_every_workload_is_measured_beside_everything_it_is_compared_with(tmp_path: Path) -> None:
    peer, json = tmp_path / "peer", tmp_path / "bench.json"
    peer.mkdir()
    command = [sys.executable, "-m", "bench", "--preset", "tiny", "--against", str(peer), "--json", str(json)]
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environ, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    report = Report.load(json)
    found: dict[str, set[str]] = {}
    for figure in report.figures:
        found.setdefault(figure.key.workload, set()).add(figure.key.subject)
        assert len(figure.samples) == TINY.rounds
        assert min(figure.samples) > 0, figure
    for workload, subjects in SUBJECTS.items():
        assert found[workload] == subjects
        assert workload in done.stdout
    unmeasured = {aim.workload for aim in AIMS} - set(found) - {"list 1,000 entries"}  # a tiny listing is shorter
    assert not unmeasured, "aims that no measure can meet"
    assert {calibration.group for calibration in report.calibrations} == {figure.group for figure in report.figures}
    assert list(peer.iterdir()) == [], "the peer's directory was not left as it was"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("dfs-bench-")] == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_client_that_fails_or_dies_ends_the_measurement_with_its_reason() -> None:
    @contextmanager
    def failing(number: int) -> Iterator[Step]:
        if number == 1:
            raise OSError("the disk is gone")
        yield lambda _: None

    @contextmanager
    def dying(number: int) -> Iterator[Step]:
        yield lambda _: os._exit(9) if number == 1 else None

    with pytest.raises(DfsError, match="client 1: OSError: the disk is gone"):
        run_crowd(3, failing, Effort(seconds=0.01))
    with pytest.raises(DfsError, match="died without a word"):
        run_crowd(3, dying, Effort(seconds=0.01))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_clients_of_a_crowd_work_at_the_same_time_and_stop_at_their_count() -> None:
    @contextmanager
    def job(_: int) -> Iterator[Step]:
        yield lambda _: None

    done = run_crowd(3, job, Effort(seconds=60, count=50))
    assert [each.count for each in done] == [50, 50, 50]
    assert all(each.began_s <= each.ended_s for each in done)
