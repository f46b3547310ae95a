"""Do small chunks in volumes survive what disks, crashes and compaction do to them?"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dfs.checksum import block_checksums, crc32c
from dfs.chunk.disk import Disk
from dfs.chunk.identity import DataDirectory
from dfs.chunk.layout import encode_tail
from dfs.chunk.replicas import Replica
from dfs.chunk.store import FileStore
from dfs.chunk.volumes.records import HEADER_SIZE
from dfs.chunk.volumes.volumes import VolumeSet
from dfs.clock import SYSTEM_CLOCK
from dfs.errors import ChunkCorrupt, ChunkNotFound, DfsError, DiskFailed, DiskFull
from dfs.ids import ChunkHandle, new_chunk_handle
from dfs.testing.replicas import (
    content,
    flip,
    put,
    quarantined,
    record_size,
    roomy,
    small_volumes,
    volumes_of,
)

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sync would have kept is recorded where it matters; the disk itself is not in question."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda _fd: None)


class Killed(BaseException):
    """The process ends here."""


def held_by(store: FileStore) -> dict[ChunkHandle, bytes]:
    return {handle: content(store, handle) for handle in store.handles()}


# --- starts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_indexes", [True, False])
def test_restart_finds_all_small_replicas_and_no_deleted_one(tmp_path: Path, has_indexes: bool) -> None:
    with small_volumes(tmp_path / "a") as store:
        held = {put(store, data).handle: data for data in (os.urandom(900 + n) for n in range(40))}
        published = {handle: store.replica(handle) for handle in held}
        for handle in list(held)[::3]:
            assert store.delete(handle)
            del held[handle]
        assert held_by(store) == held
    assert len(volumes_of(tmp_path / "a")) > 3
    if not has_indexes:
        for path in (tmp_path / "a" / "volumes").glob("*.idx"):
            path.unlink()
    for _ in range(2):
        with small_volumes(tmp_path / "a") as store:
            assert held_by(store) == held
            assert {handle: store.replica(handle) for handle in held} == {h: published[h] for h in held}
            assert len(store.changes) == 0
    assert len(list((tmp_path / "a" / "volumes").glob("*.idx"))) >= len(volumes_of(tmp_path / "a")) - 1


def test_chunks_in_files_of_their_own_stay_readable_beside_volumes(tmp_path: Path) -> None:
    with FileStoreWithoutVolumes(tmp_path / "a") as store:
        old = put(store, b"old").handle
    with small_volumes(tmp_path / "a") as store:
        new, large = put(store, b"new").handle, put(store, bytes(store.volume_chunk_max + 1)).handle
        assert (content(store, old), content(store, new)) == (b"old", b"new")
        assert len(list((tmp_path / "a" / "chunks").glob("??/*"))) == 2
    with FileStoreWithoutVolumes(tmp_path / "a") as store:  # switched off again: what is in volumes is still served
        assert store.handles() == sorted([old, new, large])
        assert content(store, new) == b"new"


@contextmanager
def FileStoreWithoutVolumes(path: Path) -> Iterator[FileStore]:  # noqa: N802 - reads like the class
    store = FileStore([path], "test", disk_reserve=0, fsync=False, probe=roomy, volume_chunk_max=0)
    try:
        yield store
    finally:
        store.close()


def test_full_volume_is_taken_in_by_its_index_alone(tmp_path: Path) -> None:
    with small_volumes(tmp_path / "a") as store:
        handles = [put(store, bytes(1000)).handle for _ in range(20)]
    first = volumes_of(tmp_path / "a")[0]
    flip(first, HEADER_SIZE + 5)
    with small_volumes(tmp_path / "a") as store:
        assert store.handles() == sorted(handles)  # nobody read the data at start
        assert not store.verify(handles[0])
        with pytest.raises(ChunkNotFound):
            store.open(handles[0])
        assert store.changes.batch(10).removed == (handles[0],)
        assert quarantined(tmp_path / "a") == [f"{handles[0].hex()}.0"]
    with small_volumes(tmp_path / "a") as store:
        assert store.handles() == sorted(handles[1:])


def test_damaged_index_is_replaced_by_reading_the_volume(tmp_path: Path) -> None:
    with small_volumes(tmp_path / "a") as store:
        handles = [put(store, bytes(1000)).handle for _ in range(20)]
    index = volumes_of(tmp_path / "a")[0].with_suffix(".idx")
    flip(index, 40)
    damaged = index.read_bytes()
    with small_volumes(tmp_path / "a") as store:
        assert store.handles() == sorted(handles)
    assert index.read_bytes() != damaged


# --- torn ends and damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [b"", bytes(5000), b"\xff" * 300], ids=["cut", "zeros", "junk"])
def test_torn_end_is_cut_to_whole_records_wherever_it_tore(tmp_path: Path, junk: bytes) -> None:
    data = [os.urandom(300) for _ in range(3)]
    with small_volumes(tmp_path / "a") as store:
        handles = [put(store, each).handle for each in data]
    whole = volumes_of(tmp_path / "a")[0].read_bytes()
    size = record_size(300)
    for kept in sorted({*range(2 * size, 3 * size, 29), 2 * size + 1, 2 * size + HEADER_SIZE, 3 * size - 1, 5, 0}):
        volume = volumes_of(tmp_path / "a")[0]
        volume.write_bytes(whole[:kept] + junk)
        with volume_set(tmp_path / "a") as (volumes, found):
            assert [replica.handle for replica in found] == handles[: kept // size]
            assert volume.stat().st_size == kept // size * size
            after = Replica(new_chunk_handle(), 5, crc32c(b"after"), 1)
            volumes.append(after, b"after", encode_tail(after.handle, 5, after.crc, block_checksums(b"after")))
        with volume_set(tmp_path / "a") as (_, found):
            assert [replica.handle for replica in found] == [*handles[: kept // size], after.handle]
        assert quarantined(tmp_path / "a") == []


@contextmanager
def volume_set(path: Path) -> Iterator[tuple[VolumeSet, list[Replica]]]:
    """Open the volumes of a data directory alone: a whole store looks into 256 folders."""
    disk = Disk(DataDirectory(path), reserve=0, probe=roomy, clock=SYSTEM_CLOCK, on_failed=lambda _: None)
    volumes = VolumeSet(disk, fsync=False)
    try:
        yield volumes, volumes.load()
    finally:
        volumes.close()


@pytest.mark.parametrize("place", ["header", "data", "list", "trailer"])
def test_damage_in_the_middle_costs_that_record_only(tmp_path: Path, place: str) -> None:
    with small_volumes(tmp_path / "a") as store:
        handles = [put(store, os.urandom(300)).handle for _ in range(3)]
    offset = {"header": 20, "data": HEADER_SIZE + 7, "list": HEADER_SIZE + 301, "trailer": record_size(300) - 9}[place]
    flip(volumes_of(tmp_path / "a")[0], record_size(300) + offset)
    aside = [] if place == "header" else [f"{handles[1].hex()}.0"]  # without its header nobody knows what it was
    for _ in range(3):
        with small_volumes(tmp_path / "a") as store:
            assert store.handles() == sorted([handles[0], handles[2]])
            assert all(store.verify(handle) for handle in store.handles())
            assert quarantined(tmp_path / "a") == aside  # and not again at each start


def test_stored_bytes_never_pass_for_a_record(tmp_path: Path) -> None:
    with small_volumes(tmp_path / "a", volume_size=10**6) as store:
        put(store, b"first")
        forged = volumes_of(tmp_path / "a")[0].read_bytes()
        carrier = put(store, b"." * 11 + forged * 3).handle
        last = put(store, b"last").handle
    with small_volumes(
        tmp_path / "b", volume_size=10**6
    ) as store:  # a volume with another salt, the same records and places
        put(store, b"other")
    flip(volumes_of(tmp_path / "a")[0], record_size(5) + 3)  # the header of the carrier: what follows is searched
    with small_volumes(tmp_path / "a") as store:
        assert carrier not in store.handles()
        assert len(store.handles()) == 2
        assert content(store, last) == b"last"
    swapped = volumes_of(tmp_path / "b")[0]
    swapped.write_bytes(forged)
    with small_volumes(tmp_path / "b") as store:
        assert store.handles() == []


def test_everything_of_volumes_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with small_volumes(tmp_path / "a") as store:
            handles = [put(store, bytes(1000)).handle for _ in range(20)]
            flip(volumes_of(tmp_path / "a")[0], HEADER_SIZE + 5)
            assert not store.verify(handles[0])
    finally:
        os.umask(before)
    paths = [*(tmp_path / "a" / "volumes").iterdir(), *(tmp_path / "a" / "quarantine").iterdir()]
    assert {path.suffix for path in paths} == {".vol", ".idx", ".0"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_writer_that_outlives_its_store_is_refused(tmp_path: Path) -> None:
    with small_volumes(tmp_path / "a") as store:
        put(store, b"first")
        writer = store.create(new_chunk_handle())
        writer.write(memoryview(b"late"), block_checksums(b"late"))
        writer.check(4, crc32c(b"late"))
    size = volumes_of(tmp_path / "a")[0].stat().st_size
    with pytest.raises(DiskFailed):
        writer.publish()
    assert [path.stat().st_size for path in volumes_of(tmp_path / "a")] == [size]


# --- power cuts -------------------------------------------------------------------------------------------


class Platter:
    """Knows what of each file was synced, and lets the power fail in the n-th sync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int) -> None:
        self.synced: dict[int, bytes] = {}
        self.unsynced: dict[int, bytes] = {}  # what a file was to become when the power failed
        self._left = fails_at
        self._sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)

    def _fdatasync(self, fd: int) -> None:
        self._left -= 1
        status = os.fstat(fd)
        content = Path(f"/proc/self/fd/{fd}").read_bytes()
        if self._left < 0:
            self.unsynced.setdefault(status.st_ino, content)
            raise OSError(errno.EIO, "the power failed")
        self.synced[status.st_ino] = content

    def image(self, disk: Path, target: Path, end: Callable[[bytes, bytes], bytes]) -> None:
        """Copy a disk as it comes back; `end` says what became of the bytes from the first unsynced one on, and is
        told what they were to be, and what they were."""
        shutil.copytree(disk, target)
        for path in (target / "volumes").iterdir():
            number = (disk / "volumes" / path.name).stat().st_ino
            old, new = self.synced.get(number, b""), self.unsynced.get(number, path.read_bytes())
            kept = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            path.write_bytes(new[:kept] + end(new[kept:], old[kept:]))


ENDS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "lost": lambda _new, old: old,
    "zeros": lambda new, _old: bytes(len(new)),
    "half": lambda new, old: new[: len(new) // 2] + old[len(new) // 2 :],
    "second half": lambda new, old: bytes(len(new) // 2) + new[len(new) // 2 :] + old[len(new) :],
}


@pytest.mark.parametrize("without", ["", "volume-ahead"])
@pytest.mark.parametrize("fails_at", [0, 1, 7, 16, 29])
def test_power_cut_loses_nothing_acknowledged_and_brings_nothing_deleted_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, without: str
) -> None:
    monkeypatch.setenv("DFS_WITHOUT", without)
    platter = Platter(monkeypatch, fails_at)
    rng = random.Random(fails_at)
    held: dict[ChunkHandle, bytes] = {}
    in_flight: ChunkHandle | None = None

    def work() -> None:
        nonlocal in_flight
        while True:
            if held and rng.random() < 0.3:
                in_flight = rng.choice(list(held))
                store.delete(in_flight)
                del held[in_flight]
            else:
                in_flight, data = new_chunk_handle(), rng.randbytes(rng.randrange(1, 3000))
                put(store, data, in_flight)
                held[in_flight] = data

    with small_volumes(tmp_path / "a", fsync=True) as store, pytest.raises(DfsError):
        work()
    monkeypatch.undo()
    assert in_flight is not None
    for number, end in enumerate(ENDS.values()):
        platter.image(tmp_path / "a", tmp_path / f"image{number}", end)
        with small_volumes(tmp_path / f"image{number}") as store:
            found = held_by(store)
        found.pop(in_flight, None)  # its outcome was never told
        assert found == {handle: data for handle, data in held.items() if handle != in_flight}


def test_small_replica_is_synced_before_it_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    with small_volumes(tmp_path / "a", fsync=True) as store:
        put(store, b"the volume is there")
        published, removed = store.changes.published, store.changes.removed
        monkeypatch.setattr(os, "fdatasync", lambda _fd: steps.append("sync"))

        def on_published(replica: Replica) -> None:
            steps.append("published")
            published(replica)

        def on_removed(handle: ChunkHandle) -> None:
            steps.append("removed")
            removed(handle)

        monkeypatch.setattr(store.changes, "published", on_published)
        monkeypatch.setattr(store.changes, "removed", on_removed)
        store.delete(put(store, b"data").handle)
    assert steps == ["sync", "published", "sync", "removed"]


# --- disks that fill or fail --------------------------------------------------------------------------------


def test_full_disk_refuses_a_small_chunk_and_keeps_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwritev = os.pwritev

    def full(fd: int, buffers: list[bytes], offset: int) -> int:
        pwritev(fd, buffers[:1], offset)  # a part of it fits
        raise OSError(errno.ENOSPC, "no space")

    with small_volumes(tmp_path / "a") as store:
        first = put(store, b"first")
        size = volumes_of(tmp_path / "a")[0].stat().st_size
        monkeypatch.setattr(os, "pwritev", full)
        with pytest.raises(DiskFull):
            put(store, b"second")
        with pytest.raises(DiskFull):
            store.delete(first.handle)
        assert volumes_of(tmp_path / "a")[0].stat().st_size == size
        assert store.handles() == [first.handle]  # a deletion that is not durable did not happen
        assert store.changes.batch(10).removed == ()
        monkeypatch.undo()
        assert store.delete(first.handle)
    with small_volumes(tmp_path / "a") as store:
        assert store.handles() == []


def test_disk_whose_sync_fails_is_out_of_use_with_all_its_small_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    with small_volumes(tmp_path / "a", fsync=True) as store:
        first = put(store, b"first")
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(DiskFailed):
            put(store, b"second")
        assert store.handles() == []
        assert store.changes.batch(10).removed == (first.handle,)
        assert store.disks()[0].state == "failed"
    monkeypatch.undo()
    with small_volumes(tmp_path / "a") as store:
        assert first.handle in store.handles()


# --- group commit -------------------------------------------------------------------------------------------


def test_writers_that_come_during_a_sync_share_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    is_syncing, may_go_on = threading.Event(), threading.Event()

    def slow(_fd: int) -> None:
        syncs.append(1)
        is_syncing.set()
        assert may_go_on.wait(WAIT_S)

    with small_volumes(tmp_path / "a", fsync=True, volume_size=10**6) as store:
        put(store, b"the volume is there")
        turns = next(iter(store._volumes.values()))._turns
        monkeypatch.setattr(os, "fdatasync", slow)
        threads = [threading.Thread(target=put, args=(store, b"%d" % number)) for number in range(8)]
        threads[0].start()
        assert is_syncing.wait(WAIT_S)
        for thread in threads[1:]:
            thread.start()
        pause = threading.Event()
        while len(turns._queue) < 7:
            pause.wait(0.001)
        may_go_on.set()
        for thread in threads:
            thread.join(WAIT_S)
        assert len(store.handles()) == 9
    assert len(syncs) == 2


# --- compaction ---------------------------------------------------------------------------------------------


def test_compaction_gives_the_space_of_deleted_chunks_back(tmp_path: Path) -> None:
    with small_volumes(tmp_path / "a") as store:
        held = {put(store, data).handle: data for data in (os.urandom(1000) for _ in range(60))}
        before = sum(path.stat().st_size for path in volumes_of(tmp_path / "a"))
        assert store.compactor.run_once() == 0
        for number, handle in enumerate(list(held)):
            if number % 10:
                store.delete(handle)
                del held[handle]
        assert store.compactor.run_once() > before // 2
        assert held_by(store) == held
        size = sum(path.stat().st_size for path in volumes_of(tmp_path / "a"))
        assert size < before // 3
        assert store.compactor.run_once() == 0  # what is left is worth keeping
    with small_volumes(tmp_path / "a") as store:
        assert held_by(store) == held
        for handle in held:
            store.delete(handle)
        while store.compactor.run_once():
            pass
        # Tombstones go with the volumes that they name: only the volume that is written to is left, and little in it.
        assert len(volumes_of(tmp_path / "a")) <= 2


def test_reader_of_a_volume_that_is_compacted_away_reads_on(tmp_path: Path) -> None:
    with small_volumes(tmp_path / "a") as store:
        handles = [put(store, bytes([number]) * 1000).handle for number in range(30)]
        with store.open(handles[0]) as reader:
            for handle in handles[1:]:
                store.delete(handle)
            while store.compactor.run_once():
                pass
            assert os.pread(reader.fd, 1000, reader.start) == bytes(1000)
        assert content(store, handles[0]) == bytes(1000)


def test_damaged_record_is_quarantined_by_compaction_and_not_copied(tmp_path: Path) -> None:
    with small_volumes(tmp_path / "a") as store:
        handles = [put(store, os.urandom(1000)).handle for _ in range(20)]
        for handle in handles[2:]:
            store.delete(handle)
        flip(volumes_of(tmp_path / "a")[0], HEADER_SIZE + 5)
        store.changes.acknowledge(store.changes.batch(100))
        while store.compactor.run_once():
            pass
        assert store.handles() == [handles[1]]
        assert store.changes.batch(100).removed == (handles[0],)
        assert quarantined(tmp_path / "a") == [f"{handles[0].hex()}.0"]
        with pytest.raises((ChunkNotFound, ChunkCorrupt)):
            store.open(handles[0])


@pytest.mark.parametrize("is_removed", [False, True])
def test_scrubbing_finds_damage_in_volumes_and_volumes_that_are_gone(tmp_path: Path, is_removed: bool) -> None:
    with small_volumes(tmp_path / "a", volume_size=10**6) as store:
        sound, bad = put(store, bytes(1000)).handle, put(store, bytes(1000)).handle
        store.changes.acknowledge(store.changes.batch(10))
        paced: list[int] = []
        assert store.verify(bad, paced.append)
        assert paced == [1000]
        if is_removed:
            volumes_of(tmp_path / "a")[0].unlink()
            with pytest.raises(ChunkNotFound):
                store.verify(bad, paced.append)
        else:
            flip(volumes_of(tmp_path / "a")[0], record_size(1000) + HEADER_SIZE + 5)
            assert not store.verify(bad, paced.append)
            assert store.verify(sound, paced.append)
        assert store.handles() == [sound]
        assert store.changes.batch(10).corrupt == (bad,)


class Executioner:
    """Ends the n-th change of a file or folder before it happens: the process dies, or the call alone fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.kills = True
        self.count = 0
        for owner, name in ((os, "pwritev"), (os, "fsync"), (os, "fdatasync"), (Path, "unlink"), (Path, "rename")):
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, function: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **options: object) -> object:
            if self.left is not None:
                self.left -= 1
                if self.left == -1:
                    self.count += 1
                    raise Killed if self.kills else OSError(errno.EMFILE, "too many open files")
            return function(*arguments, **options)

        return called


@pytest.mark.parametrize("kills", [True, False], ids=["killed", "failed"])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_comes_back_through_crashes_in_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, kills: bool
) -> None:
    """Puts, deletes, new lives of old handles, compactions ended at any step, and restarts, against a dictionary."""
    executioner = Executioner(monkeypatch)
    executioner.kills = kills
    rng = random.Random(seed)
    held: dict[ChunkHandle, bytes] = {}
    gone: list[ChunkHandle] = []
    for _ in range(20):
        with small_volumes(tmp_path / "a", volume_size=2000, fsync=True) as store:
            assert held_by(store) == held
            for _ in range(rng.randrange(1, 4)):
                for _ in range(rng.randrange(20)):
                    change(store, held, gone, rng)
                executioner.left = rng.randrange(25)
                try:
                    store.compactor.run_once()
                except Killed:
                    break
                finally:
                    executioner.left = None
                assert held_by(store) == held
    assert executioner.count > 5
    with small_volumes(tmp_path / "a", volume_size=2000) as store:
        while store.compactor.run_once():
            pass
        assert held_by(store) == held
        live = sum(record_size(len(data)) for data in held.values())
        assert sum(path.stat().st_size for path in volumes_of(tmp_path / "a")) <= 2 * live + 2 * 2000


def change(store: FileStore, held: dict[ChunkHandle, bytes], gone: list[ChunkHandle], rng: random.Random) -> None:
    """Put or delete a chunk; some get a handle that was deleted before, as a replica that is copied back does."""
    if held and rng.random() < 0.5:
        handle = rng.choice(list(held))
        store.delete(handle)
        gone.append(handle)
        del held[handle]
    else:
        again = gone.pop(rng.randrange(len(gone))) if gone and rng.random() < 0.3 else None
        data = rng.randbytes(rng.randrange(1, 900))
        held[put(store, data, again).handle] = data
