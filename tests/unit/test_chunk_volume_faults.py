"""What becomes of small replicas where volumes meet readers, deletions that fail, and indexes of another time?"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from pathlib import Path

import pytest

from dfs.checksum import block_checksums, crc32c
from dfs.chunk.ballast import BALLAST_NAME, BALLAST_SIZE, STEP_SIZE
from dfs.chunk.store import FileStore
from dfs.chunk.volumes.records import HEADER_SIZE
from dfs.errors import ChunkNotFound, DfsError, DiskFull
from dfs.ids import ChunkHandle, new_chunk_handle
from dfs.testing.replicas import SMALL_VOLUME, content, flip, put, record_size, small_volumes, volumes_of

opened = functools.partial(small_volumes, volume_chunk_max=4096)


@pytest.fixture(autouse=True)
def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sync would have kept is recorded where it matters; the disk itself is not in question."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda _fd: None)


def no_space(*_arguments: object, **_options: object) -> int:
    raise OSError(errno.ENOSPC, "no space")


# --- readers and deletions -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_small", [True, False], ids=["in a volume", "in a file"])
def test_reader_who_meets_a_deletion_does_not_call_the_replica_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    """A deletion ends between a reader's look into the index and its look at the disk."""
    with opened(tmp_path / "a") as store:
        handle = put(store, bytes(100 if is_small else 5000)).handle
        entry = store._entry

        def deleted_meanwhile(wanted: ChunkHandle) -> object:
            found = entry(wanted)
            store.delete(wanted)
            return found

        monkeypatch.setattr(store, "_entry", deleted_meanwhile)
        with pytest.raises(ChunkNotFound):
            store.open(handle)
        batch = store.changes.batch(10)
        assert (batch.removed, batch.corrupt) == ((handle,), ())
        store.delete(handle)  # the leader repeats what it was not told of
        assert (store.changes.batch(10).corrupt, store.changes.corrupt_count) == ((), 0)


def test_reader_between_the_durable_end_of_a_record_and_its_report_finds_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "a") as store:
        handle = put(store, bytes(100)).handle
        (volumes,) = store._volumes.values()
        delete = volumes.delete

        def read_then(wanted: ChunkHandle, now_ms: int) -> None:
            delete(wanted, now_ms)
            with pytest.raises(ChunkNotFound):
                store.open(wanted)

        monkeypatch.setattr(volumes, "delete", read_then)
        assert store.delete(handle)
        batch = store.changes.batch(10)
        assert (batch.removed, batch.corrupt) == ((handle,), ())


def test_large_replica_whose_file_cannot_be_removed_now_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "a") as store:
        handle = put(store, bytes(5000)).handle
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", no_space)
            with pytest.raises(DiskFull):
                store.delete(handle)
        assert content(store, handle) == bytes(5000)
        assert [replica.handle for replica in store.changes.batch(10).added] == [handle]
        assert sum(disk.chunk_count for disk in store.disks()) == 1
        assert store.delete(handle)
    with opened(tmp_path / "a") as store:
        assert store.handles() == []


# --- compaction and records that nobody knows any more --------------------------------------------------------


def fill(store: FileStore, count: int = 12) -> list[ChunkHandle]:
    return [put(store, os.urandom(1000)).handle for _ in range(count)]


def test_compaction_goes_on_after_a_damaged_record_could_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "a") as store:
        handles = fill(store)
        first = volumes_of(tmp_path / "a")[0]
        flip(first, HEADER_SIZE + 5)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", no_space)
            assert not store.verify(handles[0])
        for handle in handles[1:7]:
            store.delete(handle)
        assert store.compactor.run_once() > 0
        assert not first.exists()
        assert store.changes.batch(99).corrupt == (handles[0],)
        assert [content(store, handle) for handle in handles[8:]]
    with opened(tmp_path / "a") as store:
        assert store.handles() == sorted(handles[7:])


def test_compaction_goes_on_when_a_volume_has_vanished_with_live_replicas(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store:
        handles = fill(store)
        first = volumes_of(tmp_path / "a")[0]
        for handle in handles[:6]:
            store.delete(handle)
        first.unlink()
        store.compactor.run_once()
        assert set(store.changes.batch(99).corrupt) <= set(handles[6:8])
        assert handles[6] not in store.handles()
        for handle in handles[8:]:
            store.delete(handle)
        store.compactor.run_once()
        assert sum(path.stat().st_size for path in volumes_of(tmp_path / "a")) < SMALL_VOLUME


def test_descriptor_of_a_volume_that_goes_while_it_is_opened_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold the space of the volume until 64 others were read."""
    with opened(tmp_path / "a") as store:
        handles = fill(store)
        first = volumes_of(tmp_path / "a")[0]
        for handle in handles[:6]:
            store.delete(handle)
        open_file = os.open
        seen: list[os.stat_result] = []

        def opened_then_compacted(path: str | Path, flags: int, mode: int = 0o777) -> int:
            fd = open_file(path, flags, mode)
            if Path(path) == first and not seen:
                seen.append(os.fstat(fd))
                assert store.compactor.run_once()
            return fd

        monkeypatch.setattr(os, "open", opened_then_compacted)
        assert len(content(store, handles[6])) == 1000
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # that of the listing itself, and those of others
                assert not os.path.samestat(link.stat(), seen[0]), "it is held"


# --- indexes and ends of another time ----------------------------------------------------------------------


def test_index_of_a_volume_that_was_cut_off_does_not_hide_what_is_written_later(tmp_path: Path) -> None:
    """Without syncing a power cut may keep an index and lose the end of its volume."""
    with opened(tmp_path / "a") as store:
        handles = fill(store, 8)
    (volume,) = volumes_of(tmp_path / "a")
    with opened(tmp_path / "a") as store:
        put(store, b"a new volume: the first gets its index")
    volumes_of(tmp_path / "a")[1].unlink()
    assert volume.with_suffix(".idx").exists()
    os.truncate(volume, 3 * record_size(1000))
    with opened(tmp_path / "a") as store:
        assert store.handles() == sorted(handles[:3])
        later = fill(store, 5)
        assert volumes_of(tmp_path / "a") == [volume]
    with opened(tmp_path / "a") as store:
        assert store.handles() == sorted(handles[:3] + later)


def test_records_found_at_start_are_synced_before_they_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have died between writing a record and syncing it."""
    with opened(tmp_path / "a") as store:
        put(store, b"written")
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_ino))
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    with opened(tmp_path / "a", fsync=True) as store:
        assert len(store.handles()) == 1
        assert volumes_of(tmp_path / "a")[0].stat().st_ino in synced
        assert (tmp_path / "a" / "volumes").stat().st_ino in synced  # it may not have been, either


def test_unsyncable_volume_at_start_fails_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "a") as store:
        put(store, b"written")

    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(DfsError), opened(tmp_path / "a", fsync=True):
        pass


# --- the end ---------------------------------------------------------------------------------------------


def test_writer_that_outlives_its_store_writes_nothing_more(tmp_path: Path) -> None:
    """The next process may have the directory by then: two volumes of one number would hide each other's records."""
    with opened(tmp_path / "a") as store:
        writer = store.create(new_chunk_handle())
        data = b"too late"
        writer.write(memoryview(data), block_checksums(data))
        writer.check(len(data), crc32c(data))
    with pytest.raises(DfsError):
        writer.publish()
    assert volumes_of(tmp_path / "a") == []


# --- full disks ----------------------------------------------------------------------------------------------


class FullDisk:
    """Refuses to store more than is given back by files that shrink; counts from the moment it is made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        self._pwritev, self._truncate = os.pwritev, os.truncate
        monkeypatch.setattr(os, "pwritev", self.pwritev)
        monkeypatch.setattr(os, "truncate", self.truncate)

    def pwritev(self, fd: int, buffers: list[bytes], offset: int) -> int:
        size = sum(map(len, buffers))
        if size > self.room:
            raise OSError(errno.ENOSPC, "no space")
        self.room -= size
        return self._pwritev(fd, buffers, offset)

    def truncate(self, path: Path, size: int) -> None:
        self.room += path.stat().st_size - size
        self._truncate(path, size)


def two_full_volumes(store: FileStore) -> tuple[list[ChunkHandle], list[ChunkHandle]]:
    """Fill a volume with two replicas and the next one with four; return their handles. A third volume is in use."""
    half = [put(store, bytes(4000)).handle for _ in range(2)]
    whole = [put(store, bytes(2100)).handle for _ in range(4)]
    put(store, bytes(4000))
    store.compactor.run_once()
    return half, whole


def test_small_replicas_can_be_deleted_from_a_full_disk_and_nothing_is_stored_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    with opened(path) as store:
        handles = [put(store, bytes(100)).handle for _ in range(20)]
        store.compactor.run_once()
        assert (path / BALLAST_NAME).stat().st_blocks * 512 >= BALLAST_SIZE
        with monkeypatch.context() as full:
            FullDisk(full)
            assert all(store.delete(handle) for handle in handles)
            assert (path / BALLAST_NAME).stat().st_size == BALLAST_SIZE - STEP_SIZE
            with pytest.raises(DiskFull):
                put(store, bytes(100))
            assert (path / BALLAST_NAME).stat().st_size == BALLAST_SIZE - STEP_SIZE, "it is for deletions only"
        assert store.changes.batch(100).removed == tuple(handles)
    with opened(path) as store:
        assert store.handles() == []
        store.compactor.run_once()
        assert (path / BALLAST_NAME).stat().st_size == BALLAST_SIZE, "it is taken again when there is room"


def test_without_room_and_ballast_a_deletion_fails_and_the_replica_is_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "a") as store:
        handle = put(store, b"x" * 100).handle
        FullDisk(monkeypatch)
        with pytest.raises(DiskFull):
            store.delete(handle)
        assert content(store, handle) == b"x" * 100


def test_on_a_full_disk_a_volume_without_live_replicas_goes_though_others_hold_more_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    with opened(path) as store:
        half, whole = two_full_volumes(store)
        for handle in (half[0], *whole):
            store.delete(handle)
        before = volumes_of(path)
        FullDisk(monkeypatch)
        store.compactor.run_once()
        assert set(before) - set(volumes_of(path)) == {before[1]}
        assert len(content(store, half[1])) == 4000


def test_on_a_full_disk_volumes_become_free_also_after_a_compaction_that_found_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    with opened(path) as store:
        half, whole = two_full_volumes(store)
        store.delete(half[0])
        before = volumes_of(path)
        disk = FullDisk(monkeypatch)
        store.compactor.run_once()
        assert volumes_of(path) == before, "what is live in the first one found no room"
        assert all(store.delete(handle) for handle in whole)
        disk.room = 0
        store.compactor.run_once()
        assert set(before) - set(volumes_of(path)) == {before[1]}
        assert len(content(store, half[1])) == 4000
