"""Do small chunks that few threads take for all connections keep the promises of those that had a thread each?"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dfs.checksum import block_checksums, crc32c
from dfs.chunk import service as service_module
from dfs.chunk.lobby import Visitor
from dfs.chunk.replicas import Done, ReplicaWriter
from dfs.chunk.small_stores import SmallStores
from dfs.chunk.volumes.volumes import VolumeSet
from dfs.errors import (
    ChunkCorrupt,
    ChunkExists,
    ConnectionFailed,
    DfsError,
    DiskFailed,
    DiskFull,
    InvalidArgument,
    TokenInvalid,
)
from dfs.ids import ChunkHandle, new_chunk_handle
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, expect
from dfs.net.frames import encode_frame
from dfs.net.messages import Ping, Pong, StoreChunk, WriteChunkReply, encode
from dfs.testing.chunk_server import KEY, LoopbackChunkServer, read, soon, token
from dfs.testing.cluster import wait_until
from dfs.testing.replicas import content

pytestmark = pytest.mark.usefixtures("all_fast_paths")


class SlowDisk:
    """Every sync waits until it is let, and fails with `failure` if there is one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.free = threading.Event()
        self.free.set()
        self.waiting = 0
        self.count = 0
        self.failure: OSError | None = None
        patch.setattr(VolumeSet, "_sync", lambda _self, fd: self._sync(fd))

    def _sync(self, fd: int) -> None:
        self.waiting += 1
        assert self.free.wait(20)
        self.waiting -= 1
        self.count += 1
        if self.failure is not None:
            raise self.failure
        os.fdatasync(fd)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


@pytest.fixture
def server(tmp_path: Path, disk: SlowDisk) -> Iterator[LoopbackChunkServer]:
    with contextlib.closing(LoopbackChunkServer(tmp_path / "a")) as running:
        yield running
        disk.free.set()


@pytest.fixture
def channels(server: LoopbackChunkServer) -> Iterator[list[Channel]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connected(server)) for _ in range(8)]


@contextlib.contextmanager
def connected(server: LoopbackChunkServer) -> Iterator[Channel]:
    """Connect as one who stores small chunks: has just stored one."""
    with Channel.connect(server.address, KEY, soon(), bulk=True) as channel:
        handle = send(channel, b"first")
        hear(channel)
        server.store.delete(handle)
        yield channel


def request_of(data: bytes, handle: ChunkHandle, chain: tuple[str, ...] = ()) -> StoreChunk:
    return StoreChunk(handle, token(handle, Rights.WRITE), chain, block_checksums(data), crc32c(data))


def send(channel: Channel, data: bytes, handle: ChunkHandle | None = None) -> ChunkHandle:
    handle = handle or new_chunk_handle()
    channel.send(request_of(data, handle), soon(), request_id=7, payload=data)
    return handle


def hear(channel: Channel) -> WriteChunkReply:
    received = channel.receive(soon())
    assert received.request_id == 7
    return expect(received.message, WriteChunkReply)


def lobby_of(server: LoopbackChunkServer) -> SmallStores:
    found = server.service._small_stores
    assert found is not None
    return found


def test_chunks_of_many_connections_are_stored_with_fewer_syncs(
    server: LoopbackChunkServer, channels: list[Channel], disk: SlowDisk
) -> None:
    held: dict[ChunkHandle, bytes] = {}
    before = disk.count
    for number in range(5):
        disk.free.clear()
        sent = {send(channel, data): data for channel in channels if (data := os.urandom(1 + number * 1000))}
        wait_until(lambda: lobby_of(server).lobby.served_count >= 2, 20, "some wait for the disk")
        disk.free.set()
        for channel in channels:
            assert hear(channel).servers == (server.store.server_id,)
        held |= sent
    assert {handle: content(server.store, handle) for handle in server.store.handles()} == held
    assert disk.count - before < len(held)
    assert server.connections == len(channels)
    wait_until(lambda: lobby_of(server).lobby.served_count == 0, 20, "all are served")


def test_no_word_is_given_before_the_sync(server: LoopbackChunkServer, channels: list[Channel], disk: SlowDisk) -> None:
    disk.free.clear()
    handles = [send(channel, b"data") for channel in channels[:4]]
    wait_until(lambda: disk.waiting == 1, 20, "a sync is under way")
    assert not any(channel.wait_readable(soon(0.05)) for channel in channels[:4])
    assert [server.store.replica(handle) for handle in handles] == [None] * 4
    assert server.service.active_streams >= 1
    disk.free.set()
    for channel, handle in zip(channels[:4], handles, strict=True):
        hear(channel)
        assert server.store.replica(handle) is not None


def test_a_hung_disk_holds_up_nobody_who_wants_something_else(
    server: LoopbackChunkServer, channels: list[Channel], disk: SlowDisk
) -> None:
    held = send(channels[0], b"held")
    hear(channels[0])
    before = disk.count
    disk.free.clear()
    handles = []
    for number, channel in enumerate(channels[:6], 1):  # one after the other: each finds the ones before it hanging
        handles.append(send(channel, b"waits"))
        wait_until(lambda: lobby_of(server).lobby.served_count == number, 20, "it is taken")  # noqa: B023
    assert isinstance(channels[6].call(Ping(), soon()), Pong)
    assert read(channels[7], held, 0, 4)[1] == b"held"
    with Channel.connect(server.address, KEY, soon()) as late:
        assert isinstance(late.call(Ping(), soon()), Pong)
    disk.free.set()
    for channel in channels[:6]:
        hear(channel)
    assert all(server.store.replica(handle) is not None for handle in handles)
    assert disk.count - before <= 4, "those that came while the disk hung share their syncs"


def test_refused_chunks_leave_nothing_and_the_connection_stays_usable(
    server: LoopbackChunkServer, channels: list[Channel]
) -> None:
    channel, handle = channels[0], new_chunk_handle()

    def refused(request: StoreChunk, data: bytes = b"data") -> DfsError:
        channel.send(request, soon(), request_id=7, payload=data)
        with pytest.raises(DfsError) as caught:
            hear(channel)
        return caught.value

    good = request_of(b"data", handle)
    assert isinstance(refused(good, b"dada"), ChunkCorrupt)
    assert isinstance(refused(StoreChunk(handle, b"x" * 26, (), good.checksums, good.crc)), TokenInvalid)
    assert isinstance(
        refused(StoreChunk(handle, token(handle, Rights.READ), (), good.checksums, good.crc)), TokenInvalid
    )
    short = ChunkHandle(b"short")
    assert isinstance(refused(StoreChunk(short, good.token, (), good.checksums, good.crc)), InvalidArgument)
    server.free = 0
    full = refused(good)
    assert isinstance(full, DiskFull)
    assert full.details["failed"] == server.address
    server.free = None
    assert server.store.handles() == []
    send(channel, b"data", handle)
    hear(channel)
    assert isinstance(refused(good), ChunkExists)
    assert isinstance(channel.call(Ping(), soon()), Pong)


def test_a_sync_that_fails_is_told_to_all_who_shared_it(
    server: LoopbackChunkServer, channels: list[Channel], disk: SlowDisk
) -> None:
    disk.free.clear()
    handles = [send(channel, b"data") for channel in channels]
    wait_until(lambda: lobby_of(server).lobby.served_count >= 2, 20, "some wait for the disk")
    disk.failure = OSError(errno.EIO, os.strerror(errno.EIO))
    disk.free.set()
    for channel in channels:
        with pytest.raises(DiskFailed) as caught:
            hear(channel)
        assert caught.value.details["failed"] == server.address
        assert isinstance(channel.call(Ping(), soon()), Pong)
    assert [server.store.replica(handle) for handle in handles] == [None] * len(handles)
    wait_until(lambda: lobby_of(server).lobby.served_count == 0, 20, "all are served")


def test_an_unforeseen_error_is_told_and_costs_nobody_else_anything(
    server: LoopbackChunkServer, channels: list[Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = server.store.create
    bad = new_chunk_handle()

    def broken(handle: ChunkHandle) -> object:
        if handle == bad:
            raise ValueError("unforeseen")
        return create(handle)

    monkeypatch.setattr(server.store, "create", broken)
    send(channels[0], b"data", bad)
    good = send(channels[1], b"data")
    with pytest.raises(DfsError, match="unforeseen"):
        hear(channels[0])
    hear(channels[1])
    assert server.store.handles() == [good]
    send(channels[0], b"data")
    hear(channels[0])


def test_requests_that_come_in_pieces_or_ahead_are_answered_in_order(server: LoopbackChunkServer) -> None:
    data, handles = os.urandom(3000), [new_chunk_handle() for _ in range(4)]

    def frame(number: int) -> bytes:
        request = request_of(data, handles[number])
        return encode_frame(request.type_code, encode(request), request_id=7, payload_size=len(data)) + data

    with connected(server) as channel:
        ping = encode_frame(Ping.type_code, encode(Ping()), request_id=8)
        channel._stream.send(frame(0) + ping + frame(1) + frame(2)[:20], soon())
        hear(channel)
        assert channel.receive(soon()).request_id == 8
        hear(channel)
        for start in range(20, len(frame(2)), 700):
            channel._stream.send(frame(2)[start : start + 700], soon())
        hear(channel)
        channel._stream.send(frame(3)[:1000], soon())
        wait_until(lambda: not lobby_of(server).lobby._waiting, 20, "its own thread waits for the rest")
        channel._stream.send(frame(3)[1000:], soon())
        hear(channel)
        large = os.urandom(100_000)
        handles.append(send(channel, large))
        hear(channel)
    assert sorted(server.store.handles()) == sorted(handles)
    assert content(server.store, handles[-1]) == large
    assert all(content(server.store, handle) == data for handle in handles[:-1])


def test_a_small_chunk_with_a_chain_goes_along_it(tmp_path: Path, server: LoopbackChunkServer) -> None:
    with (
        contextlib.closing(LoopbackChunkServer(tmp_path / "b")) as second,
        connected(server) as channel,
    ):
        handle = new_chunk_handle()
        channel.send(request_of(b"data", handle, (second.address,)), soon(), request_id=7, payload=b"data")
        assert hear(channel).servers == (server.store.server_id, second.store.server_id)
        assert content(second.store, handle) == b"data"


def test_who_breaks_the_protocol_is_cut_off(server: LoopbackChunkServer) -> None:
    with connected(server) as channel:
        send(channel, b"data")
        hear(channel)
        channel._stream.send(b"no frame at all, but longer than a prefix is", soon())
        with pytest.raises(DfsError, match="not a dfs frame"):
            expect(channel.receive(soon()).message, WriteChunkReply)
        with pytest.raises(ConnectionFailed):
            channel.receive(soon())


def test_silent_connections_end_and_those_that_speak_do_not(
    server: LoopbackChunkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "CONNECTION_IDLE_S", 3.0)
    with (
        connected(server) as silent,
        connected(server) as speaking,
    ):
        send(silent, b"first")
        hear(silent)

        def is_ended() -> bool:
            send(speaking, b"data")
            hear(speaking)
            return silent.wait_readable(soon(0.01))

        wait_until(is_ended, 30, "the silent one is let go")
        with pytest.raises(ConnectionFailed):
            silent.receive(soon())
        send(speaking, b"data")
        hear(speaking)


def test_a_peer_that_left_before_its_word_costs_nothing(
    server: LoopbackChunkServer, channels: list[Channel], disk: SlowDisk
) -> None:
    disk.free.clear()
    handle = send(channels[0], b"left")
    wait_until(lambda: disk.waiting == 1, 20, "its chunk is being written")
    channels[0].close()
    disk.free.set()
    wait_until(lambda: lobby_of(server).lobby.served_count == 0, 20, "it is let go")
    assert server.store.replica(handle) is not None
    send(channels[1], b"data")
    hear(channels[1])


def test_a_stop_ends_connections_that_wait(tmp_path: Path, disk: SlowDisk) -> None:
    running = LoopbackChunkServer(tmp_path / "b")
    with connected(running) as channel:
        send(channel, b"data")
        hear(channel)
        running.close()
        with pytest.raises(ConnectionFailed):
            channel.receive(soon())
    wait_until(lambda: not lobby_of(running).lobby._waiting, 20, "nobody waits")
    wait_until(lambda: not lobby_of(running).lobby._threads, 20, "its threads end")


def test_without_threads_for_the_lobby_each_connection_is_served_by_its_own(
    server: LoopbackChunkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lobby, start, may_start = lobby_of(server).lobby, threading.Thread.start, 0

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("dfs lobby") and len(lobby._threads) >= may_start:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    for may_start in (0, 1, 3):
        with connected(server) as channel:
            for _ in range(3):
                send(channel, b"data")
                hear(channel)
            wait_until(lambda: len(lobby._threads) == may_start, 20, "those that may have begun")  # noqa: B023


@pytest.mark.parametrize("step", ["look", "serve", "publish", "reply"])
def test_a_bug_while_requests_are_served_costs_those_connections_and_nothing_else(
    server: LoopbackChunkServer, channels: list[Channel], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """No thread and no descriptor of theirs may be left: there would be no end to a leak of them."""
    lobby = lobby_of(server).lobby
    wait_until(lambda: len(lobby._waiting) == len(channels), 20, "all wait")

    def broken(*_arguments: object) -> bool:
        raise ValueError("unforeseen")

    with monkeypatch.context() as patch:
        if step == "look":
            patch.setattr(lobby, "_look", broken)
        elif step == "serve":
            patch.setattr(lobby, "_serve", broken)
        elif step == "publish":
            patch.setattr(server.store, "publish_all", broken)
        else:
            patch.setattr(server.service.meter, "wrote", broken)
        for channel in channels[:4]:
            send(channel, b"data")
        for channel in channels[:4]:
            with pytest.raises(ConnectionFailed):
                channel.receive(soon())
    wait_until(lambda: len(lobby._waiting) == len(channels) - 4, 20, "their own threads have them back")
    wait_until(lambda: lobby.served_count == 0, 20, "nobody is held")
    wait_until(lambda: len(server.talking) == len(channels) - 4, 20, "their threads have ended")
    for channel in channels[4:]:
        send(channel, b"data")
        hear(channel)


def test_who_was_sent_away_by_a_bug_may_be_told_by_who_commits_for_it(
    server: LoopbackChunkServer, channels: list[Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_all = server.store.publish_all
    begun: list[tuple[ReplicaWriter, Done]] = []

    def broken(items: Sequence[tuple[ReplicaWriter, Done]]) -> None:
        begun.extend(items)
        raise ValueError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(server.store, "publish_all", broken)
        handle = send(channels[0], b"data")
        with pytest.raises(ConnectionFailed):
            channels[0].receive(soon())
    publish_all(begun)
    assert server.store.replica(handle) is not None
    wait_until(lambda: lobby_of(server).lobby.served_count == 0, 20, "nobody is held")


def test_who_was_told_and_speaks_again_is_not_sent_away_by_a_bug_behind_the_word(
    server: LoopbackChunkServer, channels: list[Channel], disk: SlowDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    lobby, publish_all, send_away = lobby_of(server).lobby, server.store.publish_all, lobby_of(server).lobby._send_away
    is_over = threading.Event()

    def late(items: Sequence[tuple[ReplicaWriter, Done]]) -> None:
        monkeypatch.setattr(server.store, "publish_all", publish_all)
        publish_all(items)
        disk.free.clear()
        send(channels[0], b"again")
        wait_until(lambda: disk.waiting == 1, 20, "another thread serves it")
        raise ValueError("unforeseen")

    def noted(turns: list[tuple[Visitor, int]], error: DfsError | None) -> None:
        send_away(turns, error)
        is_over.set()

    monkeypatch.setattr(server.store, "publish_all", late)
    monkeypatch.setattr(lobby, "_send_away", noted)
    send(channels[0], b"data")
    hear(channels[0])
    assert is_over.wait(20)
    disk.free.set()
    hear(channels[0])
    assert isinstance(channels[0].call(Ping(), soon()), Pong)


def test_several_disks_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = [tmp_path / "one", tmp_path / "two"]
    hung, is_hanging = threading.Event(), threading.Event()

    def sync(volumes: VolumeSet, fd: int) -> None:
        if is_hanging.is_set() and volumes.disk.path == disks[0]:
            assert hung.wait(20)

    monkeypatch.setattr(VolumeSet, "_sync", sync)
    running = LoopbackChunkServer(*disks)
    try:
        with contextlib.ExitStack() as stack:
            channels = [stack.enter_context(connected(running)) for _ in range(12)]
            is_hanging.set()
            for channel in channels:
                send(channel, b"data")

            def told() -> int:
                return sum(channel.wait_readable(soon(0.0)) for channel in channels)

            wait_until(lambda: told() >= len(channels) // 3, 20, "the other disk works")
            assert told() < len(channels), "one disk hangs"
            hung.set()
            for channel in channels:
                hear(channel)
        assert len(running.store.handles()) == len(channels)
    finally:
        hung.set()
        running.close()
