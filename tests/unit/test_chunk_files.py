"""Does a FileStore survive what disks, crashes and operators do to it?"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE, block_checksums
from dfs.chunk import quarantine as quarantine_module
from dfs.chunk.identity import NEW_DISK_FILE
from dfs.chunk.layout import file_size
from dfs.chunk.replicas import Space
from dfs.chunk.store import RESERVE_FROM, RESERVE_SIZE, FileStore
from dfs.errors import ChunkCorrupt, ChunkNotFound, ConfigError, DiskFailed, DiskFull, Overloaded
from dfs.ids import id_text, new_chunk_handle
from dfs.testing.replicas import DATA, content, flip, path_of, put, quarantined

SHORT_ID = b'{"format":1,"cluster":"test","server_id":"ab","data_dirs":[]}'


@pytest.fixture(autouse=True)
def no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power cuts are not in question here; the tests are many."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


def roomy(path: Path) -> Space:
    return Space(10**9, 10**9)


@contextmanager
def opened(
    *paths: Path, cluster: str = "test", reserve: int = 0, probe: Callable[[Path], Space] = roomy, fd_cache_max: int = 8
) -> Iterator[FileStore]:
    store = FileStore(
        paths, cluster, disk_reserve=reserve, fsync=False, probe=probe, fd_cache_max=fd_cache_max, volume_chunk_max=0
    )
    try:
        yield store
    finally:
        store.close()


# --- restarts and crashes ---------------------------------------------------------------------------


def test_restart_finds_all_replicas_and_the_same_server_id(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    with opened(*disks) as store:
        server_id = store.server_id
        replicas = {replica.handle: replica for replica in [put(store, os.urandom(100 + n)) for n in range(20)]}
    with opened(*disks) as store:
        assert store.server_id == server_id
        assert store.handles() == sorted(replicas)
        for handle, replica in replicas.items():
            found = store.replica(handle)
            assert found is not None
            assert (found.length, found.crc) == (replica.length, replica.crc)
            assert store.verify(handle)
        assert len(store.changes) == 0


def test_start_reads_the_ends_of_files_and_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "a") as store:
        for _ in range(3):
            put(store, bytes(2_000_000))
    read, pread = [], os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        read.append(size)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    with opened(tmp_path / "a") as store:
        assert len(store.handles()) == 3
    assert sum(read) < 3 * 1000, "list and trailer, a few hundred bytes each"


def test_kill_while_writing_leaves_only_a_temporary_that_the_next_start_removes(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store:
        writer = store.create(new_chunk_handle())
        writer.write(memoryview(DATA), block_checksums(DATA))
        assert len(list((tmp_path / "a" / "tmp").iterdir())) == 1
    with opened(tmp_path / "a") as store:
        assert list((tmp_path / "a" / "tmp").iterdir()) == []
        assert store.handles() == []


def test_replica_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename = Path.rename

    def renamed(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    store = FileStore([tmp_path / "a"], "test", disk_reserve=0, fsync=True, volume_chunk_max=0)
    try:
        monkeypatch.setattr(os, "fdatasync", lambda fd: steps.append(f"sync {os.fstat(fd).st_size}"))
        monkeypatch.setattr(os, "fsync", lambda fd: steps.append(Path(f"/proc/self/fd/{fd}").readlink().name))
        monkeypatch.setattr(Path, "rename", renamed)
        handle = put(store).handle
        assert steps == [f"sync {file_size(len(DATA))}", "rename", id_text(handle)[:2]]
    finally:
        store.close()


@pytest.mark.parametrize("kept", [0, 1, 43, 44, 45, BLOCK_SIZE, len(DATA), len(DATA) + 12, len(DATA) + 55])
def test_file_that_was_cut_off_is_quarantined_at_start(tmp_path: Path, kept: int) -> None:
    with opened(tmp_path / "a") as store:
        good, bad = put(store).handle, put(store).handle
    os.truncate(path_of(tmp_path / "a", bad), kept)
    with opened(tmp_path / "a") as store:
        assert store.handles() == [good]
        assert quarantined(tmp_path / "a") == [f"{id_text(bad)}.0"]
        with pytest.raises(ChunkNotFound):
            store.open(bad)


@pytest.mark.parametrize("from_end", [1, 5, 30, 44, 45, 56], ids=lambda value: f"byte -{value}")
def test_flipped_bit_in_list_or_trailer_is_found_at_start(tmp_path: Path, from_end: int) -> None:
    with opened(tmp_path / "a") as store:
        bad = put(store).handle
    flip(path_of(tmp_path / "a", bad), file_size(len(DATA)) - from_end)
    with opened(tmp_path / "a") as store:
        assert store.handles() == []
        assert len(quarantined(tmp_path / "a")) == 1


@pytest.mark.parametrize("offset", [0, BLOCK_SIZE, len(DATA) - 1])
def test_flipped_bit_in_the_data_is_found_by_verify_and_never_served_again(tmp_path: Path, offset: int) -> None:
    with opened(tmp_path / "a") as store:
        bad = put(store).handle
        store.changes.acknowledge(store.changes.batch(10))
        flip(path_of(tmp_path / "a", bad), offset)
        assert not store.verify(bad)
        with pytest.raises(ChunkNotFound):
            store.open(bad)
        assert store.changes.batch(10).removed == (bad,)
        assert quarantined(tmp_path / "a") == [f"{id_text(bad)}.0"]
    with opened(tmp_path / "a") as store:
        assert store.handles() == []


def test_damage_of_a_trailer_while_running_is_found_when_the_replica_is_opened(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store:
        bad = put(store).handle
        flip(path_of(tmp_path / "a", bad), file_size(len(DATA)) - 3)
        with pytest.raises(ChunkCorrupt) as caught:
            store.open(bad)
        assert caught.value.details == {"handle": id_text(bad), "server": id_text(store.server_id)}
        assert store.handles() == []


def test_replica_under_anothers_name_and_foreign_files_are_quarantined(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store:
        good = put(store).handle
    other = new_chunk_handle()
    path_of(tmp_path / "a", other).write_bytes(path_of(tmp_path / "a", good).read_bytes())
    (tmp_path / "a" / "chunks" / "00" / "README").write_text("not a chunk")
    misplaced = tmp_path / "a" / "chunks" / f"{(good[0] + 1) % 256:02x}" / id_text(good)
    misplaced.write_bytes(path_of(tmp_path / "a", good).read_bytes())
    (tmp_path / "a" / "chunks" / "01" / "link").symlink_to("/etc/passwd")
    with opened(tmp_path / "a") as store:
        assert store.handles() == [good]
        assert quarantined(tmp_path / "a") == sorted(
            ["README.0", "link.0", f"{id_text(good)}.0", f"{id_text(other)}.0"]
        )


def test_quarantine_is_bounded_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine_module, "QUARANTINE_FILES_MAX", 3)
    with opened(tmp_path / "a") as store:
        handles = [put(store).handle for _ in range(5)]
        for handle in handles:
            store.quarantine(handle, "test")
        assert quarantined(tmp_path / "a") == sorted(f"{id_text(handle)}.0" for handle in handles[2:])


def test_same_chunk_on_two_disks_is_kept_once(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    with opened(*disks) as store:
        handle = put(store).handle
    home = next(disk for disk in disks if path_of(disk, handle).exists())
    other = next(disk for disk in disks if disk != home)
    path_of(other, handle).write_bytes(path_of(home, handle).read_bytes())
    with opened(*disks) as store:
        assert store.handles() == [handle]
        assert content(store, handle) == DATA
        assert len(quarantined(home)) + len(quarantined(other)) == 1
        assert sum(report.chunk_count for report in store.disks()) == 1


def test_file_that_vanished_is_reported_and_not_served(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store:
        handle = put(store).handle
        store.changes.acknowledge(store.changes.batch(10))
        path_of(tmp_path / "a", handle).unlink()
        with pytest.raises(ChunkNotFound):
            store.open(handle)
        assert store.changes.batch(10).removed == (handle,)


def test_few_descriptors_serve_many_replicas(tmp_path: Path) -> None:
    with opened(tmp_path / "a", fd_cache_max=2) as store:
        replicas = [(put(store, data), data) for data in (os.urandom(50) for _ in range(10))]
        with store.open(replicas[0][0].handle) as first:
            for replica, data in replicas * 2:
                assert content(store, replica.handle) == data
            assert os.pread(first.fd, 50, 0) == replicas[0][1]  # evicted, and still open for its reader
        kept = [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path / "a" / "chunks") in target(link)]
        assert len(kept) <= 2


def target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


# --- full and failing disks -------------------------------------------------------------------------


def test_reserve_is_kept_and_a_full_disk_refuses(tmp_path: Path) -> None:
    with opened(tmp_path / "a", reserve=1000, probe=lambda _: Space(10_000, 999)) as store:
        with pytest.raises(DiskFull):
            put(store)
        assert store.disks()[0].state == "full"
        assert store.space() == Space(10_000, 0)
        assert list((tmp_path / "a" / "tmp").iterdir()) == []


def test_disk_that_fills_while_a_chunk_comes_in_keeps_nothing_of_it(tmp_path: Path) -> None:
    free = [10**6]
    with opened(tmp_path / "a", reserve=1000, probe=lambda _: Space(10**6, free[0])) as store:
        writer = store.create(new_chunk_handle())
        writer.write(memoryview(bytes(BLOCK_SIZE)), block_checksums(bytes(BLOCK_SIZE)))
        free[0] = 1500
        with pytest.raises(DiskFull):
            writer.write(memoryview(bytes(BLOCK_SIZE)), block_checksums(bytes(BLOCK_SIZE)))
        writer.discard()
        assert list((tmp_path / "a" / "tmp").iterdir()) == []


def test_new_replicas_go_to_the_disk_with_the_most_room(tmp_path: Path) -> None:
    free = {"a": 1000_000, "b": 5000_000}
    with opened(tmp_path / "a", tmp_path / "b", probe=lambda path: Space(10**7, free[path.name])) as store:
        handle = put(store).handle
        assert path_of(tmp_path / "b", handle).exists()
        free["b"] = 0
        handle = put(store).handle
        assert path_of(tmp_path / "a", handle).exists()


def test_parallel_writes_use_all_disks(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    with opened(*disks) as store:
        writers = [store.create(new_chunk_handle()) for _ in range(6)]
        assert [len(list((disk / "tmp").iterdir())) for disk in disks] == [2, 2, 2]
        for writer in writers:
            writer.discard()


def failing(error_number: int) -> Callable[..., int]:
    def fail(*args: object) -> int:
        raise OSError(error_number, os.strerror(error_number))

    return fail


def test_no_space_from_the_system_means_full_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "a") as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", failing(errno.ENOSPC))
            with pytest.raises(DiskFull):
                put(store)
        assert list((tmp_path / "a" / "tmp").iterdir()) == []
        assert store.disks()[0].state == "full"  # for a while, whatever the free bytes say
        with pytest.raises(DiskFull):
            put(store)


def test_io_error_takes_the_disk_out_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"a": 5000_000, "b": 1000_000}
    with opened(tmp_path / "a", tmp_path / "b", probe=lambda path: Space(10**7, free[path.name])) as store:
        lost = put(store).handle
        free["a"] = 100_000_000
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", failing(errno.EIO))
            with pytest.raises(DiskFailed):
                put(store)
        assert [report.state for report in store.disks()] == ["failed", "ok"]
        assert store.handles() == []
        assert lost in store.changes.batch(10).removed
        kept = put(store).handle
        assert path_of(tmp_path / "b", kept).exists()
        assert store.space() == Space(10**7, 1000_000)


def test_io_error_while_verifying_takes_the_disk_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "a") as store:
        handle = put(store).handle
        monkeypatch.setattr(os, "preadv", failing(errno.EIO))
        with pytest.raises(DiskFailed):
            store.verify(handle)
        assert store.disks()[0].state == "failed"
        with pytest.raises(DiskFailed):
            store.create(new_chunk_handle())


def test_lack_of_descriptors_is_not_the_fault_of_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path / "a") as store:
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", failing(errno.EMFILE))
            with pytest.raises(Overloaded):
                store.create(new_chunk_handle())
        assert store.disks()[0].state == "ok"
        put(store)


def test_directory_that_vanishes_while_running_fails_its_disk(tmp_path: Path) -> None:
    with opened(tmp_path / "a", tmp_path / "b") as store:
        (tmp_path / "a").rename(tmp_path / "elsewhere")
        assert [report.state for report in store.disks()] == ["failed", "ok"]
        (tmp_path / "b").rename(tmp_path / "elsewhere too")
        (tmp_path / "b").mkdir()
        assert [report.state for report in store.disks()] == ["failed", "failed"]


# --- whose directory is it ----------------------------------------------------------------------------


def test_two_daemons_never_share_a_directory(tmp_path: Path) -> None:
    with opened(tmp_path / "a"):
        with pytest.raises(ConfigError, match=rf"in use by another chunk server \(pid {os.getpid()}\)"):
            FileStore([tmp_path / "a"], "test", disk_reserve=0)
        with pytest.raises(ConfigError):
            FileStore([tmp_path / "b", tmp_path / "a"], "test", disk_reserve=0)
    with opened(tmp_path / "a") as store:
        put(store)


def test_directory_of_another_cluster_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "a"):
        pass
    with pytest.raises(ConfigError, match="belongs to cluster 'test'"):
        FileStore([tmp_path / "a"], "other", disk_reserve=0)
    with opened(tmp_path / "a"):
        pass  # the refusal let go of the lock


def test_directories_of_two_servers_are_refused_together(tmp_path: Path) -> None:
    for name in "ab":
        with opened(tmp_path / name):
            pass
    with pytest.raises(ConfigError, match="check which disk is mounted where"):
        FileStore([tmp_path / "a", tmp_path / "b"], "test", disk_reserve=0)


def test_directory_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "a"):
        pass
    identity = json.loads((tmp_path / "a" / "server.json").read_text())
    (tmp_path / "a" / "server.json").write_text(json.dumps({"format": 2, "new": identity}))
    with pytest.raises(ConfigError, match="format 2"):
        FileStore([tmp_path / "a"], "test", disk_reserve=0)


def test_directory_with_foreign_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        FileStore([tmp_path / "a"], "test", disk_reserve=0)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.tex"]


def test_missing_disk_is_reported_failed_and_the_others_go_on(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    with opened(*disks) as store:
        server_id = store.server_id
    disks[1].rename(tmp_path / "unmounted")
    with opened(*disks) as store:
        assert store.server_id == server_id
        assert [report.state for report in store.disks()] == ["ok", "failed"]
        assert "mount its disk" in store.disks()[1].reason
        put(store)
    assert not disks[1].exists()


def test_empty_mount_point_is_not_mistaken_for_a_new_disk(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    with opened(*disks):
        pass
    disks[1].rename(tmp_path / "unmounted")
    disks[1].mkdir()
    with opened(*disks) as store:
        assert [report.state for report in store.disks()] == ["ok", "failed"]
    (disks[1] / NEW_DISK_FILE).touch()
    with opened(*disks) as store:
        assert [report.state for report in store.disks()] == ["ok", "ok"]
    assert not (disks[1] / NEW_DISK_FILE).exists()


def test_added_empty_disk_joins_the_server(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as store:
        server_id = store.server_id
    (tmp_path / "b").mkdir()
    with opened(tmp_path / "a", tmp_path / "b") as store:
        assert store.server_id == server_id
        assert [report.state for report in store.disks()] == ["ok", "ok"]
    with opened(tmp_path / "b") as store:
        assert store.server_id == server_id


def test_damaged_identity_fails_its_disk_only(tmp_path: Path) -> None:
    disks = [tmp_path / "a", tmp_path / "b"]
    with opened(*disks):
        pass
    for damage in (b"", b"{", b'{"format": 1}', b"\xff" * 10, SHORT_ID):
        (disks[0] / "server.json").write_bytes(damage)
        with opened(*disks) as store:
            assert [report.state for report in store.disks()] == ["failed", "ok"]
            assert "damaged" in store.disks()[0].reason


def test_start_without_any_usable_disk_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "a"):
        pass
    (tmp_path / "a" / "server.json").write_bytes(b"?")
    with pytest.raises(DiskFailed, match="no data directory is usable"):
        FileStore([tmp_path / "a"], "test", disk_reserve=0)
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(DiskFailed):
        FileStore([tmp_path / "file"], "test", disk_reserve=0)


# --- room made ahead ----------------------------------------------------------------------------------


def taken(path: Path) -> int:
    """Bytes that a file takes on its disk."""
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("size", [RESERVE_FROM, RESERVE_FROM + 1, RESERVE_FROM + RESERVE_SIZE + BLOCK_SIZE + 5])
def test_a_published_replica_keeps_no_room_that_was_made_ahead(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    with opened(tmp_path) as store:
        handle = put(store, data).handle
        path = path_of(tmp_path, handle)
        assert path.stat().st_size == file_size(size)
        assert taken(path) <= file_size(size) + BLOCK_SIZE
        assert content(store, handle) == data
        assert store.verify(handle)


@pytest.mark.parametrize(("free", "is_made"), [(10**9, True), (2 * RESERVE_SIZE, False)])
def test_room_is_made_ahead_only_while_there_is_plenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, is_made: bool
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("dfs.chunk.store.reserve_room", lambda _fd, start, size: asked.append((start, size)))
    data = bytes(RESERVE_FROM + RESERVE_SIZE + 2 * BLOCK_SIZE)
    with opened(tmp_path, probe=lambda _: Space(10**9, free)) as store:
        assert content(store, put(store, data).handle) == data  # a hint that does nothing changes nothing
    assert bool(asked) is is_made
    ends = [start + size for start, size in asked]
    assert [start for start, _ in asked[1:]] == ends[:-1], "each begins where the one before ends"


def test_writers_that_come_at_once_make_no_more_room_ahead_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the free space is some milliseconds old: none of them sees what the others took."""
    asked: list[int] = []
    monkeypatch.setattr("dfs.chunk.store.reserve_room", lambda _fd, _start, size: asked.append(size))
    monkeypatch.setattr("dfs.chunk.store.RESERVE_FROM", 0)
    block, free = memoryview(bytes(BLOCK_SIZE)), 5 * RESERVE_SIZE
    with opened(tmp_path, probe=lambda _: Space(10**9, free)) as store:
        writers = [store.create(new_chunk_handle()) for _ in range(8)]
        for writer in writers:
            writer.write(block, block_checksums(block))
        assert sum(asked) <= free
        for writer in writers[2:]:
            writer.discard()
        writers[0].write(block, block_checksums(block))
        assert asked, "with fewer of them there is plenty again"
        for writer in writers[:2]:
            writer.discard()
