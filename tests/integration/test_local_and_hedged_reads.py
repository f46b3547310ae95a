"""Do reads keep their promises on the fast paths: open files that are handed over, and second requests?"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from dfs.checksum import BLOCK_SIZE
from dfs.client import DfsClient, ReadRules, local_replicas, replica_reads
from dfs.client.held_file import OpenFile
from dfs.clock import Deadline
from dfs.errors import (
    AuthenticationFailed,
    ChunkNotFound,
    ConnectionFailed,
    DfsError,
    InvalidArgument,
    NoQuorum,
    ProtocolError,
    TokenInvalid,
)
from dfs.ids import ChunkHandle, ServerId, id_text, new_server_id
from dfs.net.auth import ClusterKey, Rights
from dfs.net.blocking import Channel, Received, expect
from dfs.net.listener import ServeLimits, serve_forever
from dfs.net.local import LocalChannel, LocalListener
from dfs.net.messages import ErrorReply, OpenReplica, OpenReplicaReply, Ping, Pong, ReadRanges, ReadRangesReply
from dfs.testing.chunk_server import KEY, LoopbackChunkServer, info, soon, token
from dfs.testing.cluster import wait_until
from dfs.testing.memory_cluster import MemoryCluster
from dfs.testing.replicas import flip, path_of, put

CHUNK = 512 * 1024
LOCAL = ReadRules(local=True, hedged=False)
HEDGED = ReadRules(local=False, hedged=True)

pytestmark = pytest.mark.usefixtures("all_fast_paths")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MemoryCluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with MemoryCluster(folder, chunk_servers=3, chunk_size=CHUNK) as running:
        yield running


@pytest.fixture(autouse=True)
def patient_at_doors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Doors that a busy machine is slow to open are used all the same."""
    monkeypatch.setattr(local_replicas, "DOOR_TIMEOUT_S", 60.0)


@pytest.fixture
def all_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory file cannot be asked what of it is in memory: all of it is."""
    monkeypatch.setattr(local_replicas, "READ_FLAGS", 0)


def stored(client: DfsClient, path: str, size: int) -> bytes:
    data = os.urandom(size)
    client.put(io.BytesIO(data), path)
    return data


def content(client: DfsClient, path: str) -> bytes:
    return b"".join(bytes(piece) for piece in client.read(path))


# --- open files that are handed over ------------------------------------------------------------------------


def test_damage_in_an_open_file_is_never_served_and_told_to_its_server(
    cluster: MemoryCluster, all_is_memory: None
) -> None:
    for server in cluster.chunk_servers:
        server.open_door()
    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file", CHUNK)
        (handle,) = cluster.chunk_servers[0].store.handles()
        with client.open("/file") as file:
            assert file.read_at(5, 5) == data[5:10]  # the descriptor is held from here on
            for server in cluster.chunk_servers[:2]:
                server.damage(handle, BLOCK_SIZE + 17)
            assert file.read_at(BLOCK_SIZE + 10, 100) == data[BLOCK_SIZE + 10 : BLOCK_SIZE + 110]
            assert content(client, "/file") == data
        assert client.read_counts.remote == 0
    held = [server.store.replica(handle) is not None for server in cluster.chunk_servers]
    assert not all(held), "whoever was read from and found damaged checked itself and gave its replica up"
    assert held[2]


def test_a_deleted_replica_stays_readable_by_whoever_holds_it_open(cluster: MemoryCluster, all_is_memory: None) -> None:
    for server in cluster.chunk_servers:
        server.open_door()
    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file", CHUNK)
        with client.open("/file") as file:
            assert file.read_at(0, 10) == data[:10]
            for server in cluster.chunk_servers:
                for handle in server.store.handles():
                    server.store.delete(handle)
            assert file.read_at(100, 1000) == data[100:1100]
        assert client.read_counts.remote == 0


def test_a_server_that_stops_does_not_stop_whoever_holds_its_replica_open(
    cluster: MemoryCluster, all_is_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replicas, "WATCH_S", 3600.0)  # the next look would find that the server is gone
    for server in cluster.chunk_servers:
        server.open_door()
    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file", CHUNK)
        with client.open("/file") as file:
            assert file.read_at(0, 10) == data[:10]
            for server in cluster.chunk_servers:
                server.stop()
            assert file.read_at(5000, 1000) == data[5000:6000]


def test_what_cannot_be_handed_over_is_read_over_the_network(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file", CHUNK + 5)
        assert content(client, "/file") == data  # no server has a door
        assert client.read_counts.local == 0
    for server in cluster.chunk_servers:
        server.open_door()
    with cluster.client(reads=LOCAL) as client:  # a file system that cannot tell what is in memory, as that of memory
        assert content(client, "/file") == data
        assert client.read_counts.local == 0
    monkeypatch.setattr(local_replicas, "READ_FLAGS", 0)
    with cluster.client(reads=LOCAL) as client:
        assert content(client, "/file") == data
        assert (client.read_counts.local, client.read_counts.remote) == (2, 0)


def test_what_is_not_in_memory_is_asked_of_the_server(
    cluster: MemoryCluster, all_is_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server in cluster.chunk_servers:
        server.open_door()
    preadv = os.preadv

    def half_in_memory(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset >= CHUNK // 2:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return preadv(fd, [buffers[0][: CHUNK // 2 - offset]], offset)  # the kernel gives what it has

    with cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file", CHUNK)
        monkeypatch.setattr("dfs.client.local_replicas.os.preadv", half_in_memory)
        assert content(client, "/file") == data
        with client.open("/file") as file:
            assert file.read_at(100, 100) == data[100:200]
            assert file.read_at(CHUNK // 2 - 50, 100) == data[CHUNK // 2 - 50 : CHUNK // 2 + 50]
        assert (client.read_counts.local, client.read_counts.remote) == (1, 2)


def test_descriptors_are_bounded_and_closed_in_the_end(cluster: MemoryCluster, all_is_memory: None) -> None:
    for server in cluster.chunk_servers:
        server.open_door()

    with cluster.client() as writer:
        data = stored(writer, "/file", 12 * CHUNK)
    replicas = {f"/memfd:{id_text(h)} (deleted)" for server in cluster.chunk_servers for h in server.store.handles()}

    def held() -> int:
        return sum(str(file) in replicas for file in _open_files())

    before = held()
    assert before == 12 * len(cluster.chunk_servers)
    local_replicas_max = 4
    with pytest.MonkeyPatch.context() as patch, cluster.client(reads=LOCAL) as client:
        patch.setattr(local_replicas, "HELD_MAX", local_replicas_max)
        assert content(client, "/file") == data
        wait_until(lambda: before < held() <= before + local_replicas_max, 20, "the others are let go")
    wait_until(lambda: held() == before, 20, "all are let go")


def _open_files() -> Iterator[Path]:
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            yield link.readlink()


class Door:
    """A chunk server on real files with an open door."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.server = LoopbackChunkServer(folder)
        self.id: ServerId = self.server.store.server_id
        self.stop = threading.Event()
        listener = LocalListener.open(self.id)
        arguments = (listener, KEY, self.server.service.door.handle, ServeLimits(drain_s=0.0), self.stop)
        self.thread = threading.Thread(target=serve_forever, args=arguments, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.stop.set()
        self.thread.join(20)
        self.server.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    found = Door(tmp_path / "disk")
    yield found
    found.close()


def opened(door: Door, handle: ChunkHandle, rights: bytes | None = None) -> tuple[int, OpenReplicaReply]:
    with LocalChannel.enter(door.id, KEY, soon()) as channel:
        channel.send(OpenReplica(handle, rights or token(handle, Rights.READ)), soon())
        reply = expect(channel.receive(soon()).message, OpenReplicaReply)
        return channel.take_descriptor(), reply


def test_a_descriptor_is_read_only_and_shares_nothing_with_the_servers_own(door: Door) -> None:
    data = os.urandom(300_000)
    handle = put(door.server.store, data).handle
    fd, reply = opened(door, handle)
    other, _ = opened(door, handle)
    try:
        assert (reply.chunk_length, os.pread(fd, len(data), 0)) == (len(data), data)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        assert not os.get_inheritable(fd)
        os.lseek(fd, 77, os.SEEK_SET)
        assert os.lseek(other, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)
        os.close(other)


def test_small_replicas_that_share_a_file_are_not_handed_over(door: Door) -> None:
    handle = put(door.server.store, b"small").handle
    with pytest.raises(InvalidArgument, match="shares a file"):
        opened(door, handle)


def test_a_door_asks_for_the_same_proofs_as_the_port(door: Door) -> None:
    handle = put(door.server.store, os.urandom(300_000)).handle
    with pytest.raises(TokenInvalid):
        opened(door, handle, token(handle, Rights.WRITE))
    with pytest.raises(TokenInvalid):
        opened(door, handle, b"x" * 26)
    stranger = ClusterKey.from_secret(b"1" * 64, "test")
    with pytest.raises(AuthenticationFailed):
        LocalChannel.enter(door.id, stranger, soon())
    with LocalChannel.enter(door.id, KEY, soon()) as channel:
        channel.send(Ping(), soon())
        with pytest.raises(ProtocolError, match="local door"):
            expect(channel.receive(soon()).message, OpenReplicaReply)
    with pytest.raises(ConnectionFailed):
        LocalChannel.enter(new_server_id(), KEY, soon())


def test_the_port_hands_nothing_over(door: Door) -> None:
    handle = put(door.server.store, os.urandom(300_000)).handle
    with Channel.connect(door.server.address, KEY, soon()) as channel:
        channel.send(OpenReplica(handle, token(handle, Rights.READ)), soon())
        with pytest.raises(DfsError, match="does not answer"):
            expect(channel.receive(soon()).message, OpenReplicaReply)


def test_whoever_took_the_name_of_a_door_and_says_nothing_holds_nobody_up(
    cluster: MemoryCluster, all_is_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replicas, "DOOR_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as impostor, cluster.client(reads=LOCAL) as client:
        data = stored(client, "/file", 2 * CHUNK)
        for server in cluster.chunk_servers[:1]:
            impostor.bind(f"\0dfs/{server.store.server_id.hex()}")
        impostor.listen()
        assert content(client, "/file") == data
        assert content(client, "/file") == data
        assert client.read_counts.local == 0


def test_a_flipped_bit_on_disk_is_quarantined_on_the_word_of_a_local_reader(door: Door) -> None:
    data = os.urandom(300_000)
    handle = put(door.server.store, data).handle
    fd, reply = opened(door, handle)
    place = (0, reply.chunk_length, reply.chunk_crc, reply.checksums)
    replica = local_replicas.LocalReplica(info(door.server), OpenFile(fd), *place, 0.0)
    buffer = memoryview(bytearray(BLOCK_SIZE))
    assert replica.read(0, buffer)
    assert buffer == data[:BLOCK_SIZE]
    flip(path_of(door.server.path, handle), 100)
    with pytest.raises(DfsError, match="wrong bytes at 0"):
        replica.read(0, buffer)
    os.truncate(path_of(door.server.path, handle), 10)
    with pytest.raises(DfsError, match="ends before"):
        replica.read(BLOCK_SIZE, buffer)
    assert not door.server.store.verify(handle)


# --- cut ranges on real files --------------------------------------------------------------------------------


def ranges_of(door: Door, handle: ChunkHandle, offsets: tuple[int, ...], lengths: tuple[int, ...]) -> bytes:
    with Channel.connect(door.server.address, KEY, soon()) as channel:
        channel.send(ReadRanges(handle, token(handle, Rights.READ), offsets, lengths), soon())
        received = channel.receive(soon())
        expect(received.message, ReadRangesReply)
        data = bytearray(received.payload_size)
        channel.receive_into(memoryview(data), soon())
        return bytes(data)


@pytest.mark.parametrize("size", [1000, 70_000, 300_001])
def test_ranges_of_a_replica_in_a_volume_or_a_file_of_its_own(door: Door, size: int) -> None:
    data = os.urandom(size)
    put(door.server.store, os.urandom(500))  # so that the next one does not begin its volume
    handle = put(door.server.store, data).handle
    places = (0, size - 1, size // 2, size // 3)
    lengths = (1, 1, size - size // 2, size // 2)
    wanted = b"".join(data[place : place + length] for place, length in zip(places, lengths, strict=True))
    assert ranges_of(door, handle, places, lengths) == wanted


def test_ranges_that_cannot_be_are_refused_and_the_connection_goes_on(door: Door) -> None:
    size = 300_000
    handle = put(door.server.store, os.urandom(size)).handle
    impossible: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((), ()),
        ((0,), ()),
        ((0,), (0,)),
        ((-1,), (5,)),
        ((0,), (-5,)),
        ((size - 4,), (5,)),
        ((size,), (1,)),
        ((size + 100_000,), (1,)),
        ((1 << 62,), (1 << 62,)),
        ((0,) * 1025, (1,) * 1025),
        ((0,) * 15, (size,) * 15),
    ]
    with Channel.connect(door.server.address, KEY, soon()) as channel:
        for offsets, lengths in impossible:
            channel.send(ReadRanges(handle, token(handle, Rights.READ), offsets, lengths), soon())
            with pytest.raises(InvalidArgument):
                expect(channel.receive(soon()).message, ReadRangesReply)
        channel.send(ReadRanges(handle, token(handle, Rights.WRITE), (0,), (1,)), soon())
        with pytest.raises(TokenInvalid):
            expect(channel.receive(soon()).message, ReadRangesReply)
        assert isinstance(channel.call(Ping(), soon()), Pong)


# --- second requests ----------------------------------------------------------------------------------------


class Stall:
    """Makes a chunk server take requests and answer none of them, as a paused one does, until it is released.

    With `is_for_first`, only the first connection of all is treated so, whichever server it is made to.
    """

    def __init__(self, *, is_for_first: bool = False) -> None:
        self.released = threading.Event()
        self.count = 0
        self._is_for_first = is_for_first

    def __call__(self, channel: Channel) -> bool:
        if self._is_for_first and self.count:
            return True
        self.count += 1
        channel.wait_readable(Deadline.after(60))
        self.released.wait(60)
        return True


def test_a_slow_replica_is_overtaken_by_another_one(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_reads, "READ_STALL_S", 60.0)  # only a second request ends the waiting in time
    with cluster.client() as writer:
        data = stored(writer, "/file", 4 * CHUNK)
    stall = Stall(is_for_first=True)
    for server in cluster.chunk_servers:
        server.intercept = stall  # connections that are made from here on
    with cluster.client(reads=HEDGED) as client:
        begun_s = time.monotonic()
        assert content(client, "/file") == data
        with client.open("/file") as file:
            for number in range(20):
                assert file.read_at(number * 50_000, 10) == data[number * 50_000 : number * 50_000 + 10]
        assert time.monotonic() - begun_s < 50
        assert stall.count == 1
        assert client.read_counts.hedges_won >= 1
        stall.released.set()


def test_without_second_requests_a_slow_replica_is_left_at_the_stall_limit(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_reads, "READ_STALL_S", 1.0)
    with cluster.client(reads=ReadRules(local=False, hedged=False)) as client:
        data = stored(client, "/file", 4 * CHUNK)
        stall = Stall()
        cluster.chunk_servers[0].intercept = stall
        assert content(client, "/file") == data
        assert client.read_counts.hedged == 0
        stall.released.set()


def test_a_cluster_that_is_slow_as_a_whole_is_not_asked_twice_for_everything(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.client.hedging.PATIENCE_FIRST_S", 0.01)
    monkeypatch.setattr("dfs.client.hedging.PATIENCE_MIN_S", 0.0)

    def slow(channel: Channel) -> bool:
        channel.receive = _delayed(channel.receive)  # type: ignore[method-assign,assignment]
        return True

    with cluster.client() as writer:
        data = stored(writer, "/file", CHUNK)
    for server in cluster.chunk_servers:
        server.intercept = slow  # connections that are made from here on
    with cluster.client(reads=HEDGED) as client:
        with client.open("/file") as file:
            for number in range(60):
                assert file.read_at(number, 10) == data[number : number + 10]
        counts = client.read_counts
        assert counts.remote == 60
        assert 1 <= counts.hedged <= 4 + 60 * 0.05 + 1


def test_a_slow_replica_is_read_when_those_that_answered_first_have_none(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was only overtaken has not failed, and no master is there to tell of other replicas."""
    monkeypatch.setattr("dfs.client.hedging.PATIENCE_FIRST_S", 0.01)
    with cluster.client() as writer:
        data = stored(writer, "/file", CHUNK)
    slow: list[int] = []

    def answer(number: int, channel: Channel) -> bool:
        slow.append(number)
        if slow[0] == number:
            channel.receive = _delayed(channel.receive, 0.5)  # type: ignore[method-assign,assignment]
            return True
        received = channel.receive(soon())
        channel.send(ErrorReply.of(ChunkNotFound("it was moved away")), soon(), request_id=received.request_id)
        channel.wait_readable(soon())
        return False

    def nobody(*_arguments: object) -> NoReturn:
        raise NoQuorum("no master answers")

    for number, server in enumerate(cluster.chunk_servers):
        server.intercept = functools.partial(answer, number)  # connections that are made from here on
    with cluster.client(reads=HEDGED) as client, client.open("/file") as file:
        monkeypatch.setattr(file, "_relocate", nobody)
        assert file.read_at(100, 1000) == data[100:1100]
        assert client.read_counts.hedges_won >= 1


def _delayed(receive: Callable[[Deadline], Received], delay_s: float = 0.02) -> Callable[[Deadline], Received]:
    def late(deadline: Deadline) -> Received:
        received = receive(deadline)
        time.sleep(delay_s)
        return received

    return late
