"""Does the scrubber find every kind of damage, at its rate, standing aside, and once in its period, restarts or not?"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE
from dfs.chunk import scrubber as scrubber_module
from dfs.chunk.memstore import MemoryStore
from dfs.chunk.scrub_position import POSITION_FILE, PositionFiles
from dfs.chunk.scrubber import BUSY_STREAMS, BUSY_WAIT_MAX_S, FILE_COST, Scrubber
from dfs.chunk.store import FileStore
from dfs.ids import ChunkHandle, ServerId
from dfs.testing.chunk_server import soon, wait_until
from dfs.testing.clock import FakeClock
from dfs.testing.replicas import DATA, content, flip, path_of, put, quarantined

PERIOD_S = 1000.0
RATE = 1024 * 1024


class Scrubbing:
    """A scrubber whose waiting moves a fake clock."""

    def __init__(self, store: FileStore | MemoryStore, folder: Path, period_s: float = PERIOD_S) -> None:
        self.clock = FakeClock()
        self.busy_streams = 0
        self.scrubber = self.make(store, folder, period_s)

    def make(self, store: FileStore | MemoryStore, folder: Path, period_s: float = PERIOD_S) -> Scrubber:
        return Scrubber(
            store,
            PositionFiles(lambda: [folder]),
            period_s=period_s,
            rate=RATE,
            active_streams=lambda: self.busy_streams,
            clock=self.clock,
            wait=self.wait,
        )

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        self.clock.advance(seconds)
        return stop.is_set()


def lap_of(store: FileStore | MemoryStore, folder: Path) -> int:
    return Scrubbing(store, folder).scrubber.run_once()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def store(disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # power cuts are not in question here
    opened = FileStore([disk], "test", disk_reserve=0, fsync=False, volume_chunk_max=0)
    yield opened
    opened.close()


@pytest.fixture
def memory() -> Iterator[MemoryStore]:
    opened = MemoryStore(ServerId(bytes(16)), 10**9)
    yield opened
    opened.close()


def heat(store: FileStore, handle: ChunkHandle) -> None:
    """Read a replica, so that its descriptor is kept open."""
    assert content(store, handle) == DATA


# --- what it finds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "held open"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda path: flip(path, BLOCK_SIZE + 1),
        lambda path: flip(path, path.stat().st_size - 30),
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, 0),
        lambda path: path.unlink(),
    ],
    ids=["data", "trailer", "cut off", "emptied", "removed"],
)
def test_every_damage_is_found_told_and_never_served(
    store: FileStore, disk: Path, harm: Callable[[Path], None], is_warm: bool
) -> None:
    sound, bad = put(store).handle, put(store).handle
    store.changes.acknowledge(store.changes.batch(10))
    if is_warm:
        heat(store, bad)
    path = path_of(disk, bad)
    harm(path)
    was_there = path.exists()
    assert lap_of(store, disk) == 1
    assert store.handles() == [sound]
    assert store.changes.batch(10).corrupt == (bad,)
    assert len(quarantined(disk)) == was_there
    assert store.disks()[0].quarantined_count == was_there
    assert lap_of(store, disk) == 0


def test_sound_replicas_stay_and_are_counted(store: FileStore, disk: Path) -> None:
    handles = [put(store).handle for _ in range(3)]
    scrubbing = Scrubbing(store, disk)
    assert scrubbing.scrubber.run_once() == 0
    assert store.handles() == sorted(handles)
    status = scrubbing.scrubber.status()
    assert (status.verified_count, status.verified_size) == (3, 3 * len(DATA))
    assert (status.corrupt_count, status.lap_progress) == (0, 1.0)
    assert status.last_lap_ms == scrubbing.clock.wall_ms()


def test_disk_is_read_and_not_what_memory_holds_of_it(
    store: FileStore, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store)
    dropped: list[tuple[int, int]] = []
    monkeypatch.setattr("dfs.chunk.damage.drop_pages", lambda _fd, offset, size: dropped.append((offset, size)))
    assert lap_of(store, disk) == 0
    assert dropped == [(0, len(DATA)), (0, len(DATA))], "before it is read, and after"
    store.verify(store.handles()[0])
    assert len(dropped) == 2, "a reader's word is checked as fast as can be"


def test_failed_disk_does_not_end_the_lap(store: FileStore, disk: Path) -> None:
    handles = [put(store).handle for _ in range(3)]
    scrubbing = Scrubbing(store, disk)
    store.data_disks[0].fail("it smokes")
    assert scrubbing.scrubber.run_once() == 0
    assert store.changes.batch(10).removed == tuple(handles)


# --- its pace -----------------------------------------------------------------------------------------------


def test_rate_is_kept(memory: MemoryStore, tmp_path: Path) -> None:
    for _ in range(10):
        put(memory, bytes(RATE))
    scrubbing = Scrubbing(memory, tmp_path)
    begun_s = scrubbing.clock.monotonic()
    assert scrubbing.scrubber.run_once() == 0
    lasted_s = scrubbing.clock.monotonic() - begun_s
    assert lasted_s == pytest.approx(10 * (RATE + FILE_COST) / RATE, abs=1.5)


def test_busy_server_is_left_alone_but_not_for_ever(memory: MemoryStore, tmp_path: Path) -> None:
    put(memory)
    for streams, waits_s in ((BUSY_STREAMS - 1, 0.0), (BUSY_STREAMS, BUSY_WAIT_MAX_S)):
        scrubbing = Scrubbing(memory, tmp_path)
        scrubbing.busy_streams = streams
        begun_s = scrubbing.clock.monotonic()
        assert scrubbing.scrubber.run_once() == 0
        assert scrubbing.clock.monotonic() - begun_s == pytest.approx(waits_s, abs=1.0)
        assert scrubbing.scrubber.status().verified_count == 1


def test_rate_that_is_too_low_for_the_period_is_said(
    memory: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(memory, bytes(RATE))
    Scrubbing(memory, tmp_path, period_s=1.0).scrubber.run_once()
    assert "scrub_rate_too_low" in [record.message for record in caplog.records]


# --- its laps -----------------------------------------------------------------------------------------------


def test_next_lap_begins_a_period_after_the_last_one_began_restarts_or_not(memory: MemoryStore, tmp_path: Path) -> None:
    put(memory, bytes(RATE))
    scrubbing = Scrubbing(memory, tmp_path)
    assert scrubbing.scrubber.due_in_s() == 0.0
    scrubbing.scrubber.run_once()
    for scrubber in (scrubbing.scrubber, scrubbing.make(memory, tmp_path)):
        assert scrubber.due_in_s() == pytest.approx(PERIOD_S, abs=2.0)
        assert scrubber.status().last_lap_ms > 0
    scrubbing.clock.step_wall(-(10**6))
    assert scrubbing.scrubber.due_in_s() == PERIOD_S, "a clock that was set back costs one period at most"
    scrubbing.clock.step_wall(2 * 10**6)
    assert scrubbing.scrubber.due_in_s() == 0.0


def test_restart_goes_on_where_the_lap_was(memory: MemoryStore, tmp_path: Path) -> None:
    handles = sorted(put(memory).handle for _ in range(5))
    scrubbing = Scrubbing(memory, tmp_path)
    verified: list[ChunkHandle] = []
    stop = threading.Event()
    verify = memory.verify

    def counted(handle: ChunkHandle, pace: Callable[[int], None] | None = None) -> bool:
        if len(verified) == 2 and not stop.is_set():
            stop.set()
        is_good = verify(handle, pace)
        verified.append(handle)
        return is_good

    memory.verify = counted  # type: ignore[method-assign]
    scrubbing.scrubber.run(stop)
    assert verified == handles[:2], "the stop broke the third one off"
    again = scrubbing.make(memory, tmp_path)
    assert again.due_in_s() == 0.0
    again.run_once()
    assert verified[2:] == handles[2:]
    late = put(memory).handle
    again.run_once()
    assert verified[5:] == sorted([*handles, late])


@pytest.mark.parametrize("text", ["", "{", '{"verified":"zz"}', '{"verified":5}', "x" * 10_000])
def test_unreadable_position_means_a_new_lap(memory: MemoryStore, tmp_path: Path, text: str) -> None:
    (tmp_path / POSITION_FILE).write_text(text)
    put(memory)
    scrubbing = Scrubbing(memory, tmp_path)
    assert scrubbing.scrubber.due_in_s() == 0.0
    scrubbing.scrubber.run_once()
    assert scrubbing.scrubber.status().verified_count == 1


def test_youngest_position_of_all_disks_counts_and_an_unwritable_one_does_no_harm(
    memory: MemoryStore, tmp_path: Path
) -> None:
    disks = [tmp_path / "a", tmp_path / "b", tmp_path / "gone"]
    for disk in disks[:2]:
        disk.mkdir()
    files = PositionFiles(lambda: disks)
    position = files.load()
    position.verified, position.saved_ms = "ab" * 16, 5
    files.save(position)
    (disks[0] / POSITION_FILE).write_text('{"verified":"cd","saved_ms":4}')
    assert files.load() == position


def test_scrubbing_that_is_off_verifies_nothing_and_says_so(
    memory: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(memory)
    scrubbing = Scrubbing(memory, tmp_path, period_s=0.0)
    scrubbing.scrubber.run(threading.Event())
    assert scrubbing.scrubber.status().verified_count == 0
    assert "scrubbing_off" in [record.message for record in caplog.records]


def test_bug_in_a_lap_does_not_end_the_thread(
    memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scrubber_module, "REST_STEP_S", 0.01)
    put(memory)
    scrubbing, stop, verify, failed = Scrubbing(memory, tmp_path), threading.Event(), memory.verify, threading.Event()

    def stumble(handle: ChunkHandle, pace: Callable[[int], None] | None = None) -> bool:
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return verify(handle, pace)

    memory.verify = stumble  # type: ignore[method-assign]
    thread = threading.Thread(target=scrubbing.scrubber.run, args=(stop,), daemon=True)
    thread.start()
    wait_until(lambda: scrubbing.scrubber.status().last_lap_ms != 0, soon())
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert scrubbing.scrubber.status().verified_count == 1
