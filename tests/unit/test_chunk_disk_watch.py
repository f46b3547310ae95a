"""Is a disk's latency measured by what it does to a writer, and is a disk that breaks in silence found?"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.chunk import disk_watch as disk_watch_module
from dfs.chunk.disk_watch import PROBE_EVERY_S, PROBES_KEPT, TIDY_EVERY, DiskWatch
from dfs.chunk.store import FileStore
from dfs.testing.clock import FakeClock
from dfs.testing.replicas import put


class SlowSync:
    """A fdatasync that takes a scripted time of a fake clock, or fails."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.lasts_s = 0.010
        self.errno = 0

    def __call__(self, _fd: int) -> None:
        self.clock.advance(self.lasts_s)
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sync(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> SlowSync:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    made = SlowSync(clock)
    monkeypatch.setattr(os, "fdatasync", made)
    return made


@pytest.fixture
def store(tmp_path: Path, sync: SlowSync) -> Iterator[FileStore]:
    opened = FileStore([tmp_path / "a", tmp_path / "b"], "test", disk_reserve=0, fsync=False)
    yield opened
    opened.close()


@pytest.fixture
def watch(store: FileStore, clock: FakeClock) -> DiskWatch:
    return DiskWatch(store.data_disks, clock=clock)


def test_median_of_the_slowest_disk_counts_and_one_hiccup_does_not(watch: DiskWatch, sync: SlowSync) -> None:
    assert watch.wait_ms() == 0, "nothing is known yet"
    for lasts_s in (0.010, 3.0, 0.012):
        sync.lasts_s = lasts_s
        watch.run_once()
    assert watch.wait_ms() == 12
    sync.lasts_s = 0.5
    for _ in range(PROBES_KEPT):
        watch.run_once()
    assert watch.wait_ms() == 500


def test_probe_leaves_nothing_behind(watch: DiskWatch, tmp_path: Path) -> None:
    watch.run_once()
    assert [list((tmp_path / disk / "tmp").iterdir()) for disk in ("a", "b")] == [[], []]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_disk_that_broke_while_nobody_wrote_is_taken_out(
    store: FileStore, watch: DiskWatch, sync: SlowSync, number: int
) -> None:
    handles = [put(store).handle for _ in range(4)]
    sync.errno = number
    watch.run_once()
    assert [disk.state for disk in store.disks()] == ["failed", "failed"]
    assert os.strerror(number) in store.disks()[0].reason
    assert set(store.changes.batch(10).removed) == set(handles)
    assert watch.wait_ms() == 0, "a failed disk is not slow"


def test_full_disk_is_no_failure(store: FileStore, watch: DiskWatch, sync: SlowSync) -> None:
    sync.errno = errno.ENOSPC
    watch.run_once()
    assert [disk.state for disk in store.disks()] == ["full", "full"]


def test_write_that_hangs_is_seen_before_it_ends(
    watch: DiskWatch, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def hang(_fd: int) -> None:
        for _ in range(3):
            clock.advance(PROBE_EVERY_S)
            seen.append(watch.wait_ms())

    monkeypatch.setattr(os, "fdatasync", hang)
    watch.run_once()
    assert seen[:3] == [0, 10_000, 15_000]


def test_quarantines_are_tidied_now_and_then(
    store: FileStore, watch: DiskWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tidied: list[Path] = []
    monkeypatch.setattr("dfs.chunk.disk.Disk.tidy_quarantine", lambda disk: tidied.append(disk.path))
    for _ in range(TIDY_EVERY + 1):
        watch.run_once()
    assert len(tidied) == 2 * 2


def test_thread_survives_a_bug_and_ends_when_told(
    watch: DiskWatch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk_watch_module, "PROBE_EVERY_S", 0.001)
    stop, rounds = threading.Event(), []

    def stumble() -> None:
        rounds.append(1)
        if len(rounds) > 2:
            stop.set()
        raise ZeroDivisionError

    monkeypatch.setattr(watch, "run_once", stumble)
    watch.run(stop)
    assert len(rounds) == 3
    assert "disk_watch_failed" in [record.message for record in caplog.records]
