"""What happens to a chunk server when two things happen to one replica, or one thing at a bad moment?"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfs.chunk import identity as identity_module
from dfs.chunk.descriptors import DescriptorCache
from dfs.chunk.replicas import Replica
from dfs.chunk.store import FileStore
from dfs.chunk.streams import Streams
from dfs.chunk.volumes.volumes import VOLUME_CHUNK_MAX
from dfs.errors import ChunkExists
from dfs.ids import id_text, new_chunk_handle
from dfs.testing.replicas import DATA, flip, path_of, put, quarantined

WAIT_S = 60.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileStore]:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # power cuts are not in question here
    opened = FileStore([tmp_path / "disk"], "test", disk_reserve=0, fsync=False, volume_chunk_max=0)
    yield opened
    opened.close()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# --- what the masters are told ------------------------------------------------------------------------


def test_replica_that_goes_while_it_is_announced_is_reported_as_gone(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, removers = store.changes.published, []

    def announced(replica: Replica) -> None:
        removers.append(in_thread(lambda: store.delete(replica.handle)))
        removers[0].join(0.1)  # a store that lets it in here gets the order wrong
        published(replica)

    monkeypatch.setattr(store.changes, "published", announced)
    handle = put(store).handle
    removers[0].join(WAIT_S)
    assert store.replica(handle) is None
    assert store.changes.batch(10).entries == ((handle, None),)


def test_replicas_of_a_disk_that_fails_while_one_is_announced_are_all_reported_as_gone(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, threads = store.changes.published, []

    def announced(replica: Replica) -> None:
        threads.append(in_thread(lambda: store._disks[0].fail("it smokes")))
        threads[0].join(0.1)
        published(replica)

    monkeypatch.setattr(store.changes, "published", announced)
    handle = put(store).handle
    threads[0].join(WAIT_S)
    assert store.handles() == []
    assert store.changes.batch(10).entries == ((handle, None),)


def test_name_of_a_replica_is_not_used_again_before_its_file_is_gone(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, unlink = put(store).handle, Path.unlink
    refused: list[ChunkExists] = []

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.name == id_text(handle) and not refused:
            with pytest.raises(ChunkExists) as caught:
                put(store, b"the next one", handle)
            refused.append(caught.value)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlinked)
    assert store.delete(handle)
    assert refused
    put(store, b"the next one", handle)
    assert store.verify(handle)


def test_descriptor_of_a_replica_that_was_exchanged_while_it_was_opened_is_not_kept(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, keep = put(store).handle, DescriptorCache.put
    second = b"second" * 1000

    def kept(cache: DescriptorCache, *arguments: object) -> object:
        monkeypatch.undo()
        store.delete(handle)
        put(store, second, handle)
        return keep(cache, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DescriptorCache, "put", kept)
    with store.open(handle) as opened:
        assert os.pread(opened.fd, len(DATA), 0) == DATA  # who opened the first reads the first
    with store.open(handle) as opened:
        assert os.pread(opened.fd, len(DATA), 0)[: len(second)] == second


# --- the quarantine -------------------------------------------------------------------------------------


def test_damaged_replica_goes_to_a_quarantine_that_somebody_removed(store: FileStore, tmp_path: Path) -> None:
    handle = put(store).handle
    (tmp_path / "disk" / "quarantine").rmdir()
    flip(path_of(tmp_path / "disk", handle), 0)
    assert not store.verify(handle)
    assert not path_of(tmp_path / "disk", handle).exists(), "the next start would serve it again"
    assert quarantined(tmp_path / "disk") == [f"{id_text(handle)}.0"]


def test_quarantine_does_not_mind_files_that_vanish_from_it(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = put(store).handle
    flip(path_of(tmp_path / "disk", handle), 0)
    (tmp_path / "disk" / "quarantine" / "old").touch()
    lstat = Path.lstat

    def looked(path: Path) -> os.stat_result:
        if path.name == "old":
            raise FileNotFoundError(errno.ENOENT, "another thread was faster")
        return lstat(path)

    monkeypatch.setattr("dfs.chunk.quarantine.QUARANTINE_FILES_MAX", 1)
    monkeypatch.setattr(Path, "lstat", looked)
    assert not store.verify(handle)
    assert not path_of(tmp_path / "disk", handle).exists()


def test_folder_among_the_temporaries_does_not_cost_the_disk(store: FileStore, tmp_path: Path) -> None:
    handle = put(store).handle
    store.close()
    (tmp_path / "disk" / "tmp" / "strange").mkdir()
    again = FileStore([tmp_path / "disk"], "test", disk_reserve=0, fsync=False, volume_chunk_max=0)
    try:
        assert again.handles() == [handle]
        assert list((tmp_path / "disk" / "tmp").iterdir()) == []
        assert (tmp_path / "disk" / "quarantine" / "strange.0").is_dir()
    finally:
        again.close()


# --- power, rights, memory ------------------------------------------------------------------------------


def test_names_of_a_new_data_directory_and_its_parents_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = identity_module.sync_directory

    def noted(path: Path) -> None:
        synced.append(path)
        sync(path)

    monkeypatch.setattr(identity_module, "sync_directory", noted)
    FileStore([tmp_path / "srv" / "dfs" / "disk"], "test", disk_reserve=0).close()
    assert {tmp_path, tmp_path / "srv", tmp_path / "srv" / "dfs"} <= set(synced)


def test_chunks_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = FileStore([tmp_path / "disk"], "test", disk_reserve=0)
        put(store)
        put(store, bytes(VOLUME_CHUNK_MAX + 1))
        store.close()
    finally:
        os.umask(before)
    paths = [tmp_path / "disk", *(tmp_path / "disk").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {0o700}
    assert {"chunks", "volumes"} <= {path.parent.name[:7] if path.is_file() else path.name for path in paths}


def test_turn_is_given_back_when_there_is_no_memory_for_its_buffer() -> None:
    streams = Streams("writes", 1, 1 << 60)
    for _ in range(3):  # with the turn lost the second would be refused as Overloaded
        with pytest.raises(MemoryError), streams.turn():
            pytest.fail("there is no machine with so much memory")
    assert streams.active == 0


def test_descriptor_that_cannot_be_closed_does_not_block_its_name(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, close = store.create(handle := new_chunk_handle()), os.close

    def closed(fd: int) -> None:
        close(fd)
        if threading.current_thread() is threading.main_thread():
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", closed)
        writer.discard()
    assert put(store, handle=handle).handle == handle
