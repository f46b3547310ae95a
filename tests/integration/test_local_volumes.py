"""Do readers of small chunks keep their promises when they are handed the volumes that these share?"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.chunk.store import FileStore
from dfs.client import DfsClient, ReadRules, local_replicas, local_volumes
from dfs.client.local_volumes import LocalVolumes, Place
from dfs.errors import DfsError, InvalidArgument, TokenInvalid
from dfs.fast_paths import VARIABLE
from dfs.ids import ChunkHandle, ServerId, new_chunk_handle
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, expect
from dfs.net.local import LocalChannel
from dfs.net.messages import STORE_SIZE_MAX, VOLUMES_HELD_MAX, OpenRecord, OpenRecordReply
from dfs.testing.chunk_server import KEY, LoopbackChunkServer, soon, token
from dfs.testing.cluster import wait_until
from dfs.testing.memory_cluster import MemoryCluster
from dfs.testing.replicas import put, stored_in, volumes_of

LOCAL = ReadRules(local=True, hedged=False)
SIZE = 4096

pytestmark = pytest.mark.usefixtures("all_fast_paths")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MemoryCluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with MemoryCluster(folder, chunk_servers=3, chunk_size=512 * 1024, is_on_disk=True) as running:
        for server in running.chunk_servers:
            server.open_door()
        yield running


@pytest.fixture(autouse=True)
def all_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are about what becomes of a read, not about what this machine's memory still holds."""
    monkeypatch.setattr(local_replicas, "READ_FLAGS", 0)
    monkeypatch.setattr(local_replicas, "DOOR_TIMEOUT_S", 60.0)  # nor about doors that a busy machine is slow to open


def stored(client: DfsClient, path: str, size: int = SIZE) -> bytes:
    data = os.urandom(size)
    client.put(io.BytesIO(data), path)
    return data


def content(client: DfsClient, path: str) -> bytes:
    return b"".join(bytes(piece) for piece in client.read(path))


def disk_of(cluster: MemoryCluster, name: str) -> Path:
    return cluster.config.run_dir / name / "disk"


def handed_over(cluster: MemoryCluster) -> int:
    return sum(server.service.meter.handed_over.values().get("volumes", 0) for server in cluster.chunk_servers)


def reads(cluster: MemoryCluster) -> int:
    return sum(server.service.meter.reads.snapshot().counts[-1] for server in cluster.chunk_servers)


# --- whole reads ----------------------------------------------------------------------------------------------


def test_small_files_are_read_from_volumes_that_are_handed_over_once(cluster: MemoryCluster) -> None:
    with cluster.client(reads=LOCAL) as client:
        held = {f"/{size}": stored(client, f"/{size}", size) for size in (1, 5, SIZE, 65_536, 65_537, 200_000, 262_144)}
        for _ in range(3):
            assert {path: content(client, path) for path in held} == held
        with client.open("/200000") as file:
            assert file.read_at(65_000, 100_000) == held["/200000"][65_000:165_000]
        assert [bytes(piece) for piece in client.read("/4096", offset=100, length=50)] == [held["/4096"][100:150]]
        assert content(client, "/1") == held["/1"]
        assert client.read_counts.remote == 0
    assert reads(cluster) == 0
    assert handed_over(cluster) <= 3


def test_an_appended_and_a_copied_small_file_are_read_the_same(cluster: MemoryCluster) -> None:
    with cluster.client(reads=LOCAL) as client:
        first = stored(client, "/file", 1000)
        client.append(io.BytesIO(b"more"), "/file")
        client.copy("/file", "/copy")
        client.put(io.BytesIO(b""), "/empty")
        for _ in range(2):
            assert content(client, "/copy") == first + b"more"
            assert content(client, "/empty") == b""
        client.truncate("/copy", 10)
        assert content(client, "/copy") == first[:10]
        assert b"".join(client.read("/file", offset=999, length=3)) == first[999:] + b"mo"
        assert client.read_counts.remote == 0


def test_damage_in_a_volume_is_never_served_and_told_to_its_server(cluster: MemoryCluster) -> None:
    with cluster.client(reads=LOCAL) as client:
        data, other = stored(client, "/file"), stored(client, "/other")
        assert content(client, "/file") == data  # its place is known from here on
        (server,) = [server for server in cluster.chunk_servers if server.service.meter.handed_over.values()]
        (replica,) = [found for found in stored_in(disk_of(cluster, server.name)) if found.data() == data]
        replica.damage(0.5)
        assert content(client, "/file") == data
        assert server.store.replica(replica.handle) is None, "it checked itself, and gave its replica up"
        assert content(client, "/file") == data
        assert content(client, "/other") == other


def test_damage_that_an_open_file_meets_in_a_volume_is_told_to_its_server(cluster: MemoryCluster) -> None:
    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file")
        with client.open("/file") as file:
            assert file.read_at(5, 5) == data[5:10]
            (server,) = [server for server in cluster.chunk_servers if server.service.meter.handed_over.values()]
            (replica,) = stored_in(disk_of(cluster, server.name))
            replica.damage(0.9)
            assert file.read_at(5, 5) == data[5:10]
            assert server.store.replica(replica.handle) is None


@pytest.mark.parametrize("size", [SIZE, 100_000])
def test_a_wrong_place_is_never_believed(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def misled(volume: tuple[ServerId, bytes], start: int, length: int, crc: int, checksums: bytes) -> Place:
        return Place(volume, start - 200, length, crc, checksums)

    with cluster.client(reads=LOCAL) as client:
        stored(client, "/before", size)
        data = stored(client, "/file", size)
        monkeypatch.setattr(local_replicas, "Place", misled)
        for _ in range(2):
            assert content(client, "/file") == data
        assert client.read_counts.remote == 2
    assert all(len(server.store.handles()) == 2 for server in cluster.chunk_servers), "nobody's replica was damaged"


def test_what_of_a_volume_is_not_in_memory_is_asked_of_the_server(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_in_memory(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        raise BlockingIOError(errno.EAGAIN, "not in memory")

    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file")
        monkeypatch.setattr("dfs.client.local_replicas.os.preadv", not_in_memory)
        assert content(client, "/file") == data
        assert (client.read_counts.local, client.read_counts.remote) == (0, 1)


def test_a_compacted_volume_is_read_until_its_reader_lets_go_of_it(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replicas, "WATCH_S", 3600.0)
    with cluster.client(reads=LOCAL) as client:
        stays = _left_by_compaction(cluster, client)
        assert content(client, "/stays") == stays
        assert client.read_counts.remote == 0
        wait_until(lambda: _removed_volumes_held(cluster) == 1, 20, "only the client still holds one")
    wait_until(lambda: _removed_volumes_held(cluster) == 0, 20, "the removed volume's space is given back")


def test_a_removed_volume_is_let_go_and_its_chunks_are_found_in_the_new_one(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replicas, "WATCH_S", 0.02)
    with cluster.client(reads=LOCAL) as client:
        stays = _left_by_compaction(cluster, client)
        wait_until(lambda: _removed_volumes_held(cluster) == 0, 20, "the removed volume's space is given back")
        assert content(client, "/stays") == stays
        assert client.read_counts.remote == 0


@pytest.mark.parametrize("size", [SIZE, STORE_SIZE_MAX + 1])
def test_nothing_is_held_of_a_server_that_ended_or_that_nobody_reads(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Or a disk could not be unmounted, and the space of what was deleted would not come back."""
    monkeypatch.setattr(local_replicas, "WATCH_S", 0.02)
    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file", size)
        assert content(client, "/file") == data
        (holder,) = client._local.holders()
        (server,) = [server for server in cluster.chunk_servers if server.store.server_id == holder]
        server.stop()
        wait_until(lambda: holder not in client._local.holders(), 20, "what a server had is let go with it")
        assert content(client, "/file") == data
        (other,) = client._local.holders()
        assert other != holder
        monkeypatch.setattr(local_replicas, "IDLE_S", 0.05)
        wait_until(lambda: not client._local.holders(), 20, "what nobody reads is let go")
        assert content(client, "/file") == data
        assert client.read_counts.remote == 0


def _left_by_compaction(cluster: MemoryCluster, client: DfsClient) -> bytes:
    """Have the client hold a volume that is then compacted; return what `/stays` holds, which moved to another one."""
    stays = stored(client, "/stays")
    for number in range(3):
        stored(client, f"/goes{number}")
    assert content(client, "/stays") == stays
    _compact_all_but(cluster, stays)
    return stays


def _compact_all_but(cluster: MemoryCluster, content: bytes) -> None:
    """Delete every other chunk, and have what is left moved to new volumes."""
    for server in cluster.chunk_servers:
        assert isinstance(server.store, FileStore)
        keep = next(found.handle for found in stored_in(disk_of(cluster, server.name)) if found.data() == content)
        for handle in server.store.handles():
            if handle != keep:
                server.store.delete(handle)
        _compact(server.store)


def _compact(store: FileStore) -> None:
    """Have the present volume compacted, as if it were full."""
    (volumes,) = store._volumes.values()
    with volumes._turns.paused():
        volumes._retire()
    assert store.compactor.run_once() > 0


def _removed_volumes_held(cluster: MemoryCluster) -> int:
    files = (file for file in _open_files() if file.is_relative_to(cluster.config.run_dir))
    return sum(file.name.endswith(".vol (deleted)") for file in files)


def _open_files() -> Iterator[Path]:
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            yield link.readlink()


def test_a_server_that_stops_does_not_stop_who_knows_the_place(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replicas, "WATCH_S", 3600.0)  # the next look would find that the server is gone
    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file")
        assert content(client, "/file") == data
        for server in cluster.chunk_servers:
            server.stop()
        assert content(client, "/file") == data


@pytest.mark.parametrize("without", ["local-volumes", "local-reads"])
def test_without_volumes_small_files_are_read_over_the_network(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    monkeypatch.setenv(VARIABLE, without)
    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file")
        assert content(client, "/file") == data
        assert (client.read_counts.local, client.read_counts.remote) == (0, 1)
    assert handed_over(cluster) == 0


# --- the door ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoopbackChunkServer]:
    with contextlib.closing(LoopbackChunkServer(tmp_path / "c1")) as running:
        running.open_door()
        yield running


def asked(
    channel: Channel, handle: ChunkHandle, held: tuple[bytes, ...] = (), rights: bytes | None = None
) -> OpenRecordReply:
    channel.send(OpenRecord(handle, rights or token(handle, Rights.READ), held), soon())
    return expect(channel.receive(soon()).message, OpenRecordReply)


def test_a_volume_is_handed_over_once_for_reading_only(server: LoopbackChunkServer) -> None:
    small = {put(server.store, data).handle: data for data in (b"one", os.urandom(5000), os.urandom(STORE_SIZE_MAX))}
    with LocalChannel.enter(server.store.server_id, KEY, soon()) as channel:
        first, *others = small
        reply = asked(channel, first)
        assert reply.is_handed_over
        fd = channel.take_descriptor()
        try:
            places = {first: reply, **{handle: asked(channel, handle, (b"x", reply.volume)) for handle in others}}
            for handle, place in places.items():
                assert os.pread(fd, place.chunk_length, place.start) == small[handle]
                assert place.volume == reply.volume
                assert place.is_handed_over == (handle == first)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.pwrite(fd, b"x", 0)
            assert not os.get_inheritable(fd)
            assert Path(f"/proc/self/fd/{fd}").readlink() == volumes_of(server.path)[0]
        finally:
            os.close(fd)


def test_places_are_told_for_the_same_proofs_as_bytes(server: LoopbackChunkServer) -> None:
    handle = put(server.store, b"small").handle
    large = put(server.store, os.urandom(STORE_SIZE_MAX + 1)).handle
    unknown = new_chunk_handle()
    with LocalChannel.enter(server.store.server_id, KEY, soon()) as channel:
        with pytest.raises(TokenInvalid):
            asked(channel, handle, (), token(handle, Rights.WRITE))
        with pytest.raises(TokenInvalid):
            asked(channel, handle, (), token(large, Rights.READ))
        with pytest.raises(InvalidArgument, match="large"):
            asked(channel, large)
        with pytest.raises(DfsError, match="no replica"):
            asked(channel, unknown)
        with pytest.raises(InvalidArgument, match="held"):
            asked(channel, handle, (b"x" * 16,) * (VOLUMES_HELD_MAX + 1))
        assert asked(channel, handle).is_handed_over  # the connection is good for the next question
        os.close(channel.take_descriptor())
    with Channel.connect(server.address, KEY, soon()) as channel, pytest.raises(DfsError, match="does not answer"):
        asked(channel, handle)


# --- what a client holds ----------------------------------------------------------------------------------------


def test_volumes_and_places_that_are_held_are_bounded_and_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_volumes, "PLACES_MAX", 40)
    server, volumes = ServerId(b"s" * 16), LocalVolumes()

    def opened(number: int) -> int:
        (tmp_path / str(number)).write_bytes(b"")
        return os.open(tmp_path / str(number), os.O_RDONLY)

    def held() -> set[str]:
        return {file.name for file in _open_files() if file.parent == tmp_path}

    handles = [new_chunk_handle() for _ in range(VOLUMES_HELD_MAX + 10)]
    for number, handle in enumerate(handles):
        place = Place((server, b"%d" % number), 0, 1, 0, b"")
        assert volumes.take(handle, place, opened(number), now_s=number / 100) is not None
    last = {str(number) for number in range(10, VOLUMES_HELD_MAX + 10)}
    assert held() == last
    assert {name.decode() for name in volumes.names(server)} == last
    assert volumes.names(ServerId(b"t" * 16)) == ()
    assert volumes.find(handles[0], 1.0) is None, "its volume was let go"
    assert volumes.take(handles[0], Place((server, b"0"), 0, 1, 0, b""), None, 1.0) is None
    for handle in (new_chunk_handle() for _ in range(50)):  # places alone are bounded, too
        volumes.take(handle, Place((server, b"41"), 0, 1, 0, b""), None, now_s=100.0)
    assert volumes.find(handles[-1], 100.0) is None
    place = Place((server, b"new"), 0, 1, 0, b"")
    assert volumes.take(handles[0], place, opened(99), now_s=100.0) is not None
    assert held() == last - {"10"} | {"99"}, "the one that was not read for longest went"
    assert volumes.servers() == {server}
    old = volumes.take_out(100.0, ())
    assert held() == last - {"10"} | {"99"}
    old.clear()
    assert held() == {"41", "99"}, "those that nobody read lately"
    found = volumes.find(handles[0], 100.0)
    volumes.close()
    assert held() == {"99"}, "whoever reads goes on reading"
    assert found is not None
    del found
    assert held() == set()
    assert volumes.find(handles[0], 100.0) is None
    assert volumes.take(handles[0], place, opened(98), now_s=100.0) is not None  # a reader that was under way
    assert held() == set()
