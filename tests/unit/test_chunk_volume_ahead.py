"""Do zeros written ahead of records make syncs cheaper and change nothing else?"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from dfs.checksum import block_checksums, crc32c
from dfs.chunk.replicas import Space
from dfs.chunk.store import FileStore
from dfs.chunk.volumes import volumes as volumes_module
from dfs.chunk.volumes.files import write_all
from dfs.chunk.volumes.volumes import AHEAD_BATCH_MAX, AHEAD_SIZE
from dfs.fast_paths import VARIABLE
from dfs.ids import ChunkHandle, new_chunk_handle


def opened(path: Path) -> FileStore:
    return FileStore([path], "test", disk_reserve=0, fsync=True, probe=lambda _: Space(10**9, 10**9))


def put(store: FileStore, data: bytes) -> ChunkHandle:
    writer = store.create(new_chunk_handle())
    for start in range(0, len(data), 65536):
        piece = memoryview(data)[start : start + 65536]
        writer.write(piece, block_checksums(piece))
    writer.check(len(data), crc32c(data))
    return writer.publish().handle


def read(store: FileStore, handle: ChunkHandle) -> bytes:
    with store.open(handle) as replica:
        return os.pread(replica.fd, replica.tail.length, replica.start)


def volume_of(disk: Path) -> Path:
    (found,) = (disk / "volumes").glob("*.vol")
    return found


def test_small_records_fall_into_bytes_that_the_disk_already_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    store = opened(tmp_path / "a")
    put(store, b"first")
    size = volume_of(tmp_path / "a").stat().st_size
    assert size > AHEAD_SIZE
    for _ in range(20):
        put(store, os.urandom(1000))
    assert volume_of(tmp_path / "a").stat().st_size == size
    store.close()


def test_large_records_are_not_written_twice(tmp_path: Path) -> None:
    store = opened(tmp_path / "a")
    put(store, bytes(AHEAD_BATCH_MAX))
    assert volume_of(tmp_path / "a").stat().st_size < AHEAD_BATCH_MAX + 4096
    store.close()


def test_a_kill_leaves_zeros_that_nobody_takes_for_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(tmp_path / "a")
    held = {put(store, data): data for data in (b"one", b"two", b"three")}
    shutil.copytree(tmp_path / "a", tmp_path / "killed")
    store.close()
    store = opened(tmp_path / "killed")
    assert {handle: read(store, handle) for handle in store.handles()} == held
    more = put(store, b"four")
    assert read(store, more) == b"four"
    store.close()
    assert "volume_end_torn" not in caplog.text
    assert "volume_damaged" not in caplog.text


def test_a_torn_record_over_zeros_is_cut_off_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(tmp_path / "a")
    held = {put(store, data): data for data in (b"one", b"two")}
    end = sum(volume.end for volume in store._volumes[store.data_disks[0]]._volumes.values())
    shutil.copytree(tmp_path / "a", tmp_path / "killed")
    store.close()
    with volume_of(tmp_path / "killed").open("r+b") as file:
        file.seek(end)
        file.write(b"DFSr and what came of a record")
    store = opened(tmp_path / "killed")
    assert {handle: read(store, handle) for handle in store.handles()} == held
    assert volume_of(tmp_path / "killed").stat().st_size == end
    store.close()
    assert "volume_end_torn" in caplog.text


def test_a_clean_end_leaves_no_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for number, without in enumerate(("", "volume-ahead")):
        monkeypatch.setenv(VARIABLE, without)
        store = opened(tmp_path / str(number))
        for size in (1, 100, 4096):
            put(store, bytes(size))
        store.close()
        sizes.append(volume_of(tmp_path / str(number)).stat().st_size)
    assert sizes[0] == sizes[1]


def test_a_disk_without_room_for_zeros_takes_records_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def without_room(fd: int, buffers: list[bytes], offset: int) -> None:
        if sum(map(len, buffers)) >= AHEAD_SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(fd, buffers, offset)

    monkeypatch.setattr(volumes_module, "write_all", without_room)
    store = opened(tmp_path / "a")
    handles = [put(store, b"small") for _ in range(3)]
    assert [read(store, handle) for handle in handles] == [b"small"] * 3
    store.close()
