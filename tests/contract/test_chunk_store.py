"""Do both stores keep the promises of dfs.chunk.replicas? Every test runs on FileStore and MemoryStore."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE, block_checksums, crc32c
from dfs.chunk.memstore import MemoryStore
from dfs.chunk.replicas import ChunkStore, Done, ReplicaWriter, Space, checksums_of
from dfs.chunk.store import FileStore
from dfs.chunk.volumes.volumes import VOLUME_CHUNK_MAX
from dfs.errors import ChunkCorrupt, ChunkExists, ChunkNotFound, DfsError, DiskFull, InvalidArgument
from dfs.ids import ChunkHandle, ServerId, new_chunk_handle
from dfs.testing.replicas import content, put

CAPACITY = 16 * 1024 * 1024
WAYS = {"volumes": VOLUME_CHUNK_MAX, "files": 0}  # the largest chunk that shares a file
SIZES = [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE + 17, 5 * 1024 * 1024]


@pytest.fixture(params=["volumes", "files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ChunkStore]:
    """A store with room for `CAPACITY` bytes."""
    opened: ChunkStore
    if request.param != "memory":

        def probe(path: Path) -> Space:
            used = 0
            for file in path.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # another thread deletes
                    used += file.stat().st_size if file.is_file() else 0
            return Space(CAPACITY, CAPACITY - used)

        opened = FileStore(
            [tmp_path / "disk"], "test", disk_reserve=0, probe=probe, volume_chunk_max=WAYS[request.param]
        )
    else:
        opened = MemoryStore(ServerId(bytes(16)), CAPACITY)
    yield opened
    opened.close()


@pytest.mark.parametrize("size", SIZES)
def test_what_was_published_is_read_back_with_its_checksums(store: ChunkStore, size: int) -> None:
    data = os.urandom(size)
    replica = put(store, data)
    assert (replica.length, replica.crc) == (size, crc32c(data))
    assert content(store, replica.handle) == data
    with store.open(replica.handle) as opened:
        assert opened.tail.checksums == block_checksums(data)
        assert (opened.tail.length, opened.tail.crc) == (size, crc32c(data))
    assert store.replica(replica.handle) == replica


def test_nothing_is_visible_before_publish(store: ChunkStore) -> None:
    handle = new_chunk_handle()
    writer = store.create(handle)
    writer.write(memoryview(b"abc"), block_checksums(b"abc"))
    writer.check(3, crc32c(b"abc"))
    assert store.replica(handle) is None
    assert store.handles() == []
    with pytest.raises(ChunkNotFound):
        store.open(handle)
    writer.publish()
    assert store.handles() == [handle]


def test_discarded_chunk_leaves_nothing_and_its_handle_is_free_again(store: ChunkStore) -> None:
    handle = new_chunk_handle()
    free = store.space().free
    writer = store.create(handle)
    writer.write(memoryview(b"abc"), block_checksums(b"abc"))
    writer.discard()
    writer.discard()
    assert store.handles() == []
    assert store.space().free == free
    assert put(store, b"again", handle).length == 5


def test_discard_after_publish_keeps_the_replica(store: ChunkStore) -> None:
    replica = put(store, b"data")  # `put` discards at its end
    assert content(store, replica.handle) == b"data"


def test_replicas_that_are_published_together_are_all_there_and_each_is_told(store: ChunkStore) -> None:
    held = {new_chunk_handle(): os.urandom(size) for size in (1, BLOCK_SIZE, 70_000, VOLUME_CHUNK_MAX + 1, 4096)}
    told: list[tuple[ChunkHandle, DfsError | None]] = []
    writers: list[tuple[ReplicaWriter, Done]] = []
    for handle, data in held.items():
        writer = store.create(handle)
        writer.write(memoryview(data), block_checksums(data))
        writer.check(len(data), crc32c(data))
        writers.append((writer, lambda error, handle=handle: told.append((handle, error))))  # type: ignore[misc]
    assert store.handles() == []
    store.publish_all(writers)
    assert sorted(told) == sorted((handle, None) for handle in held)
    assert {handle: content(store, handle) for handle in store.handles()} == held
    assert {handle for handle, _ in store.changes.batch(100).entries} == set(held)
    for writer, _ in writers:
        writer.discard()  # does nothing any more
    assert store.handles() == sorted(held)


def test_handle_is_never_written_twice(store: ChunkStore) -> None:
    replica = put(store, b"first")
    with pytest.raises(ChunkExists):
        store.create(replica.handle)
    handle = new_chunk_handle()
    writer = store.create(handle)
    with pytest.raises(ChunkExists):
        store.create(handle)
    writer.discard()
    assert content(store, replica.handle) == b"first"


def test_corrupt_piece_is_refused_on_arrival(store: ChunkStore) -> None:
    data = bytearray(os.urandom(3 * BLOCK_SIZE))
    checksums = block_checksums(data)
    data[BLOCK_SIZE + 5] ^= 1
    writer = store.create(new_chunk_handle())
    with pytest.raises(ChunkCorrupt) as caught:
        writer.write(memoryview(data), checksums)
    assert set(caught.value.details) == {"handle", "server"}
    writer.discard()
    assert store.handles() == []


def test_wrong_length_crc_and_emptiness_cannot_be_sealed(store: ChunkStore) -> None:
    writer = store.create(new_chunk_handle())
    with pytest.raises(InvalidArgument):
        writer.check(0, 0)
    writer.write(memoryview(b"abc"), block_checksums(b"abc"))
    with pytest.raises(InvalidArgument):
        writer.check(4, crc32c(b"abc"))
    with pytest.raises(ChunkCorrupt):
        writer.check(3, crc32c(b"abd"))
    writer.discard()
    assert store.handles() == []


def test_nothing_follows_a_short_block(store: ChunkStore) -> None:
    writer = store.create(new_chunk_handle())
    writer.write(memoryview(b"abc"), block_checksums(b"abc"))
    with pytest.raises(InvalidArgument):
        writer.write(memoryview(b"def"), block_checksums(b"def"))
    writer.discard()


def test_full_store_refuses_and_keeps_no_half_chunk(store: ChunkStore) -> None:
    data = os.urandom(CAPACITY)
    with pytest.raises(DiskFull):
        put(store, data + data)
    assert store.handles() == []
    assert put(store, b"small").length == 5


def test_deleted_replica_is_gone_but_a_present_reader_finishes(store: ChunkStore) -> None:
    replica = put(store, b"data")
    with store.open(replica.handle) as opened:
        assert store.delete(replica.handle)
        assert os.pread(opened.fd, 4, opened.start) == b"data"
    assert store.replica(replica.handle) is None
    with pytest.raises(ChunkNotFound):
        store.open(replica.handle)
    with pytest.raises(ChunkNotFound):
        store.verify(replica.handle)


def test_deleting_what_is_not_there_is_reported_as_removed_too(store: ChunkStore) -> None:
    handle = new_chunk_handle()
    assert not store.delete(handle)
    assert store.changes.batch(10).removed == (handle,)


def test_handles_are_listed_ascending(store: ChunkStore) -> None:
    handles = [put(store, b"x").handle for _ in range(20)]
    assert store.handles() == sorted(handles)


def test_changes_tell_what_came_and_went(store: ChunkStore) -> None:
    first, second = put(store, b"first"), put(store, b"second")
    batch = store.changes.batch(10)
    assert batch.added == (first, second)
    store.changes.acknowledge(batch)
    store.delete(first.handle)
    batch = store.changes.batch(10)
    assert (batch.added, batch.removed) == ((), (first.handle,))


def test_sound_replica_is_verified_and_kept(store: ChunkStore) -> None:
    replica = put(store, os.urandom(3 * BLOCK_SIZE + 1))
    assert store.verify(replica.handle)
    assert store.handles() == [replica.handle]


def test_space_and_disk_reports_count_what_is_held(store: ChunkStore) -> None:
    before = store.space()
    replica = put(store, os.urandom(1024 * 1024))
    after = store.space()
    assert before.capacity == after.capacity == CAPACITY
    assert before.free - after.free >= 1024 * 1024
    (report,) = store.disks()
    assert (report.state, report.chunk_count) == ("ok", 1)
    store.delete(replica.handle)
    assert store.disks()[0].chunk_count == 0


def test_checksums_are_given_for_whole_blocks_within_the_chunk_only(store: ChunkStore) -> None:
    data = os.urandom(2 * BLOCK_SIZE + 100)
    with store.open(put(store, data).handle) as opened:
        tail = opened.tail
    assert checksums_of(tail, BLOCK_SIZE, BLOCK_SIZE + 100) == block_checksums(data[BLOCK_SIZE:])
    assert checksums_of(tail, 0, BLOCK_SIZE) == block_checksums(data[:BLOCK_SIZE])
    for offset, length in [
        (1, 10),
        (0, 10),
        (0, 0),
        (-BLOCK_SIZE, BLOCK_SIZE),
        (0, 3 * BLOCK_SIZE),
        (3 * BLOCK_SIZE, 1),
    ]:
        with pytest.raises(InvalidArgument):
            checksums_of(tail, offset, length)


def test_many_threads_write_read_and_delete_at_once(store: ChunkStore) -> None:
    failures: list[Exception] = []

    def work() -> None:
        try:
            for number in range(10):
                data = os.urandom(1000 + number)
                replica = put(store, data)
                assert content(store, replica.handle) == data
                assert store.verify(replica.handle)
                if number % 2:
                    assert store.delete(replica.handle)
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(store.handles()) == 20
