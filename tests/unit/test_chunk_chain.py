"""Does a chunk go down a chain of three servers whole or not at all, and is the right one blamed?

The servers are real ones in this process, over loopback.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE, block_checksums, crc32c
from dfs.chunk import chain as chain_module
from dfs.chunk import streams as streams_module
from dfs.chunk.chain import WRITE_PIECE_SIZE_MAX
from dfs.chunk.disk import measure_space
from dfs.chunk.peers import PeerConnections
from dfs.chunk.replicas import Replica, Space
from dfs.chunk.service import ChunkService
from dfs.chunk.store import FileReplicaWriter, FileStore
from dfs.clock import Deadline
from dfs.errors import (
    ChainBroken,
    ChunkCorrupt,
    ChunkExists,
    ChunkNotFound,
    ConnectionFailed,
    DfsError,
    DiskFull,
    InvalidArgument,
    LimitExceeded,
    Overloaded,
    ProtocolError,
    TokenExpired,
    TokenInvalid,
)
from dfs.ids import ChunkHandle, new_chunk_handle
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.blocking import Channel, expect
from dfs.net.listener import Listener, ServeLimits, serve_forever
from dfs.net.messages import (
    STORE_SIZE_MAX,
    ErrorReply,
    FinishChunk,
    Message,
    Ping,
    Pong,
    ReadChunk,
    ReadChunkReply,
    StoreChunk,
    VerifyReplica,
    VerifyReplicaReply,
    WriteChunk,
    WriteChunkReply,
    WriteData,
)

KEY = ClusterKey.from_secret(b"0" * 64, "test")
PIECE = 1024 * 1024
SIZES = [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 5 * PIECE + 12_345]


def wait_until(condition: Callable[[], bool], deadline: Deadline) -> None:
    while not condition():
        deadline.check("waiting for a condition of a test")
        time.sleep(0.005)


class Server:
    """A chunk server on one temporary directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.free: int | None = None
        self.store = FileStore([path], "test", disk_reserve=0, fsync=False, probe=self._probe)
        self.listener = Listener.bind("127.0.0.1:0")
        self.address = self.listener.address
        self.service = ChunkService(store=self.store, key=KEY, name=path.name, address=self.address)
        self.connections = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _probe(self, path: Path) -> Space:
        return measure_space(path) if self.free is None else Space(10**9, self.free)

    def _serve(self) -> None:
        serve_forever(self.listener, KEY, self._handle, ServeLimits(drain_s=0.0), self._stop)

    def _handle(self, channel: Channel) -> None:
        self.connections += 1
        self.service.handle(channel)

    def close(self) -> None:
        self._stop.set()
        self.listener.close()
        self._thread.join(20)
        self.service.close()
        self.store.close()

    def temporaries(self) -> list[str]:
        return [path.name for path in (self.path / "tmp").iterdir()]


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # power cuts are not in question here
    with ExitStack() as stack:
        made = []
        for name in ("a", "b", "c"):
            made.append(Server(tmp_path / name))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture
def channel(servers: list[Server]) -> Iterator[Channel]:
    """A client's connection to the first server."""
    with Channel.connect(servers[0].address, KEY, soon(), bulk=True) as connected:
        yield connected


def soon(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def token(handle: ChunkHandle, rights: Rights, lifetime_s: float = 60.0) -> bytes:
    return sign_token(KEY, handle, rights, int((time.time() + lifetime_s) * 1000))


def open_chunk(channel: Channel, servers: list[Server], handle: ChunkHandle, deadline: Deadline | None = None) -> None:
    chain = tuple(server.address for server in servers[1:])
    channel.send(WriteChunk(handle, token(handle, Rights.WRITE), chain), deadline or soon(), request_id=7)


def send_piece(channel: Channel, data: bytes, checksums: bytes | None = None, deadline: Deadline | None = None) -> None:
    channel.send(WriteData(checksums or block_checksums(data)), deadline or soon(), payload=data)


def finish(channel: Channel, data: bytes, deadline: Deadline | None = None) -> tuple[bytes, ...]:
    channel.send(FinishChunk(len(data), crc32c(data)), deadline or soon())
    received = channel.receive(soon())
    assert received.request_id == 7
    return expect(received.message, WriteChunkReply).servers


def write(channel: Channel, servers: list[Server], data: bytes, handle: ChunkHandle | None = None) -> ChunkHandle:
    handle = handle or new_chunk_handle()
    open_chunk(channel, servers, handle)
    for start in range(0, len(data), PIECE):
        send_piece(channel, data[start : start + PIECE])
    assert finish(channel, data) == tuple(server.store.server_id for server in servers)
    return handle


def read(
    channel: Channel, handle: ChunkHandle, offset: int, length: int, rights: bytes | None = None
) -> tuple[ReadChunkReply, bytes]:
    request = ReadChunk(handle, rights or token(handle, Rights.READ), offset, length)
    channel.send(request, soon(), request_id=3)
    received = channel.receive(soon())
    reply = expect(received.message, ReadChunkReply)
    data = bytearray(received.payload_size)
    channel.receive_into(memoryview(data), soon())
    return reply, bytes(data)


def refusal(channel: Channel) -> DfsError:
    received = channel.receive(soon())
    assert isinstance(received.message, ErrorReply), received
    return received.message.error()


def assert_usable(channel: Channel) -> None:
    reply: Message = channel.call(Ping(), soon())
    assert isinstance(reply, Pong)
    assert (reply.node, reply.role) == ("a", "chunk")


def assert_nothing_left(servers: list[Server], handle: ChunkHandle) -> None:
    wait_until(lambda: not any(server.temporaries() for server in servers), soon())
    wait_until(lambda: all(server.store.replica(handle) is None for server in servers), soon())


# --- what goes well -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_chunk_is_on_all_three_servers_when_it_is_acknowledged(
    servers: list[Server], channel: Channel, size: int
) -> None:
    data = os.urandom(size)
    handle = write(channel, servers, data)
    for server in servers:
        assert server.store.verify(handle)
        assert handle in [replica.handle for replica in server.store.changes.batch(10).added]
        with Channel.connect(server.address, KEY, soon()) as reader:
            reply, got = read(reader, handle, 0, size)
            assert got == data
            assert (reply.chunk_length, reply.checksums) == (size, block_checksums(data))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_chains_of_any_length_work(servers: list[Server], channel: Channel, count: int) -> None:
    handle = write(channel, servers[:count], os.urandom(100_000))
    assert [server.store.replica(handle) is not None for server in servers] == [n < count for n in range(3)]


def test_pieces_of_the_largest_size_and_mixed_sizes_make_one_chunk(servers: list[Server], channel: Channel) -> None:
    data = os.urandom(WRITE_PIECE_SIZE_MAX + 3 * BLOCK_SIZE + 5)
    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    send_piece(channel, data[:WRITE_PIECE_SIZE_MAX])
    send_piece(channel, data[WRITE_PIECE_SIZE_MAX : WRITE_PIECE_SIZE_MAX + BLOCK_SIZE])
    send_piece(channel, data[WRITE_PIECE_SIZE_MAX + BLOCK_SIZE :])
    finish(channel, data)
    assert read(channel, handle, 0, len(data))[1] == data


def test_connections_are_used_again_all_along_the_chain(servers: list[Server], channel: Channel) -> None:
    for _ in range(20):
        write(channel, servers, os.urandom(1000))
    assert [server.connections for server in servers] == [1, 1, 1]


def test_idle_connections_to_peers_grow_old_and_are_made_anew(servers: list[Server], channel: Channel) -> None:
    peers = PeerConnections(KEY)
    first = peers.take(servers[1].address, soon())
    peers.give(first)
    assert peers.take(servers[1].address, soon()) is first
    peers.give(first)
    peers.close_old(0.0)
    assert first.is_broken
    second = peers.take(servers[1].address, soon())
    assert second is not first
    second.close()
    peers.give(second)  # a broken one is not kept
    with peers.take(servers[1].address, soon()) as third:
        assert third is not second
    peers.close()


def test_small_chunk_sent_in_one_go_is_answered_once(servers: list[Server], channel: Channel) -> None:
    handles = [new_chunk_handle() for _ in range(5)]
    for handle in handles:  # five whole chunks under way before the first answer is read
        open_chunk(channel, servers, handle)
        send_piece(channel, b"small")
        channel.send(FinishChunk(5, crc32c(b"small")), soon())
    for _ in handles:
        assert isinstance(channel.receive(soon()).message, WriteChunkReply)
    assert servers[2].store.handles() == sorted(handles)


def test_chain_survives_the_restart_of_a_peer_between_chunks(
    servers: list[Server], channel: Channel, tmp_path: Path
) -> None:
    write(channel, servers, b"before")
    servers[1].close()
    again = Server(tmp_path / "b")
    try:
        write(channel, [servers[0], again, servers[2]], b"after")
        assert len(again.store.handles()) == 2
    finally:
        again.close()


def test_any_aligned_range_is_read(servers: list[Server], channel: Channel) -> None:
    data = os.urandom(5 * BLOCK_SIZE + 77)
    handle = write(channel, servers, data)
    block = BLOCK_SIZE
    for offset, length in [(0, block), (block, 3 * block), (5 * block, 77), (4 * block, block + 77)]:
        reply, got = read(channel, handle, offset, length)
        assert got == data[offset : offset + length]
        assert reply.checksums == block_checksums(got)
        assert reply.chunk_length == len(data)


# --- what is refused ------------------------------------------------------------------------------------


def test_reads_need_a_valid_token_and_an_aligned_range(servers: list[Server], channel: Channel) -> None:
    handle = write(channel, servers, os.urandom(2 * BLOCK_SIZE + 1))
    other = token(new_chunk_handle(), Rights.READ)
    for rights in (b"", other, token(handle, Rights.WRITE), bytes(26)):
        with pytest.raises(TokenInvalid):
            read(channel, handle, 0, BLOCK_SIZE, rights or b"x")
    with pytest.raises(TokenExpired):
        read(channel, handle, 0, BLOCK_SIZE, token(handle, Rights.READ, -1))
    for offset, length in [(1, BLOCK_SIZE), (0, 5), (0, 4 * BLOCK_SIZE), (0, 0)]:
        with pytest.raises(InvalidArgument):
            read(channel, handle, offset, length)
    missing = new_chunk_handle()
    with pytest.raises(ChunkNotFound):
        read(channel, missing, 0, BLOCK_SIZE)
    assert_usable(channel)


def test_write_without_right_is_refused_and_the_connection_lives_on(servers: list[Server], channel: Channel) -> None:
    handle = new_chunk_handle()
    channel.send(WriteChunk(handle, token(handle, Rights.READ), ()), soon())
    send_piece(channel, b"data")
    channel.send(FinishChunk(4, crc32c(b"data")), soon())
    assert isinstance(refusal(channel), TokenInvalid)
    assert_usable(channel)
    assert_nothing_left(servers, handle)


def test_writer_that_stops_after_a_refusal_can_go_on_at_once(servers: list[Server], channel: Channel) -> None:
    first = write(channel, servers, b"first")
    open_chunk(channel, servers, first)  # exists
    assert isinstance(refusal(channel), ChunkExists)
    write(channel, servers, b"second")  # without a FinishChunk for the refused one
    assert_usable(channel)


def test_handle_that_exists_further_down_is_refused_as_such(servers: list[Server], channel: Channel) -> None:
    handle = new_chunk_handle()
    with Channel.connect(servers[2].address, KEY, soon()) as direct:
        write(direct, servers[2:], b"there", handle)
    open_chunk(channel, servers, handle)
    send_piece(channel, b"again")
    channel.send(FinishChunk(5, crc32c(b"again")), soon())
    assert isinstance(refusal(channel), ChunkExists)
    wait_until(lambda: servers[0].store.replica(handle) is None, soon())
    assert servers[2].store.verify(handle)


def test_empty_chunk_and_wrong_sums_are_refused(servers: list[Server], channel: Channel) -> None:
    for data, length, crc, expected in [
        (b"", 0, 0, InvalidArgument),
        (b"abc", 4, crc32c(b"abc"), InvalidArgument),
        (b"abc", 3, crc32c(b"abd"), ChunkCorrupt),
    ]:
        handle = new_chunk_handle()
        open_chunk(channel, servers, handle)
        if data:
            send_piece(channel, data)
        channel.send(FinishChunk(length, crc), soon())
        assert isinstance(refusal(channel), expected)
        assert_nothing_left(servers, handle)
        assert_usable(channel)


def test_misshapen_pieces_are_refused(servers: list[Server], channel: Channel) -> None:
    big = bytes(WRITE_PIECE_SIZE_MAX + BLOCK_SIZE)
    for payload, checksums, expected in [
        (big, block_checksums(big), LimitExceeded),
        (b"abc", b"1234" * 2, InvalidArgument),
        (b"abc", b"123", InvalidArgument),
    ]:
        handle = new_chunk_handle()
        open_chunk(channel, servers, handle)
        send_piece(channel, payload, checksums)
        assert isinstance(refusal(channel), expected)
        assert_nothing_left(servers, handle)
        assert_usable(channel)


def test_chain_that_visits_a_server_twice_or_is_too_long_is_refused(servers: list[Server], channel: Channel) -> None:
    handle = new_chunk_handle()
    first = servers[0].address
    for chain, expected in [((first,), InvalidArgument), (tuple(f"10.0.0.{n}:1" for n in range(16)), LimitExceeded)]:
        channel.send(WriteChunk(handle, token(handle, Rights.WRITE), chain), soon())
        assert isinstance(refusal(channel), expected)
    assert_usable(channel)


def test_foreign_messages_are_answered_with_an_error(servers: list[Server], channel: Channel) -> None:
    with pytest.raises(ProtocolError):
        channel.call(FinishChunk(1, 2), soon())
    assert_usable(channel)


# --- what breaks ------------------------------------------------------------------------------------------


def test_corrupt_piece_is_refused_and_nothing_is_left(servers: list[Server], channel: Channel) -> None:
    data = bytearray(os.urandom(2 * PIECE))
    checksums = block_checksums(bytes(data[PIECE:]))
    data[PIECE + 70_000] ^= 4
    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    send_piece(channel, bytes(data[:PIECE]))
    send_piece(channel, bytes(data[PIECE:]), checksums)
    channel.send(FinishChunk(2 * PIECE, crc32c(data)), soon())
    assert isinstance(refusal(channel), ChunkCorrupt)
    assert_nothing_left(servers, handle)
    assert_usable(channel)


@pytest.mark.parametrize("dead", [1, 2])
def test_dead_server_is_named_and_nothing_is_left(servers: list[Server], channel: Channel, dead: int) -> None:
    servers[dead].close()
    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    send_piece(channel, b"data")
    channel.send(FinishChunk(4, crc32c(b"data")), soon())
    error = refusal(channel)
    assert isinstance(error, ChainBroken)
    assert error.details["failed"] == servers[dead].address
    assert_nothing_left(servers, handle)
    assert_usable(channel)


@pytest.mark.parametrize("dead", [1, 2])
def test_server_that_dies_in_the_middle_is_named(servers: list[Server], channel: Channel, dead: int) -> None:
    handle = new_chunk_handle()
    data = os.urandom(PIECE)
    open_chunk(channel, servers, handle)
    send_piece(channel, data)
    wait_until(lambda: bool(servers[dead].temporaries()), soon())
    servers[dead].close()
    error: DfsError | None = None
    while error is None:  # a writer looks for an early refusal between two pieces
        send_piece(channel, data)
        if channel.wait_readable(Deadline.after(0.01)):
            error = refusal(channel)
    assert isinstance(error, ChainBroken)
    assert error.details["failed"] == servers[dead].address
    assert_nothing_left([server for server in servers if server is not servers[dead]], handle)
    assert_usable(channel)


@pytest.mark.parametrize("full", [0, 1, 2])
def test_full_disk_is_blamed_on_its_server(servers: list[Server], channel: Channel, full: int) -> None:
    servers[full].free = 100
    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    send_piece(channel, os.urandom(PIECE))
    error = refusal(channel)
    assert isinstance(error, DiskFull if full == 0 else ChainBroken)
    assert error.details["failed"] == servers[full].address
    assert_nothing_left(servers, handle)
    servers[full].free = None
    write(channel, servers, b"there is room again")


@pytest.mark.parametrize("sent", [0, 1, 3])
def test_writer_that_vanishes_leaves_nothing_anywhere(servers: list[Server], sent: int) -> None:
    handle = new_chunk_handle()
    channel = Channel.connect(servers[0].address, KEY, soon(), bulk=True)
    open_chunk(channel, servers, handle)
    for _ in range(sent):
        send_piece(channel, bytes(PIECE))
    wait_until(lambda: servers[2].service.active_streams == 1, soon())
    channel.close()
    assert_nothing_left(servers, handle)


def test_silent_server_is_named_by_its_neighbour_before_the_writer_gives_up(
    servers: list[Server], channel: Channel
) -> None:
    silent = Listener.bind("127.0.0.1:0")  # accepts, and never greets
    try:
        handle = new_chunk_handle()
        patience = Deadline.after(1.5)
        rights = token(handle, Rights.WRITE)
        channel.send(WriteChunk(handle, rights, (servers[1].address, silent.address)), patience)
        received = channel.receive(patience)
        assert isinstance(received.message, ErrorReply)
        error = received.message.error()
        assert isinstance(error, ChainBroken)
        assert error.details["failed"] == silent.address
    finally:
        silent.close()
    assert_nothing_left(servers, handle)


def test_server_that_was_slow_itself_does_not_blame_the_next_one(
    servers: list[Server], channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = soon(0.9)  # the first waits two thirds of it for the rest, and is slower than that itself
    publish = FileReplicaWriter.publish

    def published(writer: FileReplicaWriter) -> Replica:
        if writer._store is servers[0].store:
            wait_until(lambda: servers[1].store.replica(handle) is not None, soon())
            wait_until(lambda: patience.remaining_s() < 0.2, soon())
        return publish(writer)

    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    send_piece(channel, b"slow")
    monkeypatch.setattr(FileReplicaWriter, "publish", published)
    assert len(finish(channel, b"slow", patience)) == 3


def test_writer_that_stalls_is_dropped(
    servers: list[Server], channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_module, "STALL_MAX_S", 0.2)
    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    with pytest.raises(ConnectionFailed):
        channel.receive(soon())
    assert_nothing_left(servers, handle)


def test_writer_may_pause_for_longer_than_it_waits_itself(servers: list[Server], channel: Channel) -> None:
    handle = new_chunk_handle()
    data = os.urandom(2 * BLOCK_SIZE)
    open_chunk(channel, servers, handle)
    send_piece(channel, data[:BLOCK_SIZE], deadline=Deadline.after(0.3))
    assert not channel.wait_readable(Deadline.after(0.5))  # nobody lost patience
    send_piece(channel, data[BLOCK_SIZE:])
    assert len(finish(channel, data)) == 3


def test_streams_are_bounded_and_refused_ones_are_told(
    servers: list[Server], channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "STREAM_WAIT_S", 0.01)
    monkeypatch.setattr(servers[0].service, "_writes", streams_module.Streams("chunk writes", 1, BLOCK_SIZE))
    first, second = new_chunk_handle(), new_chunk_handle()
    open_chunk(channel, servers, first)
    wait_until(lambda: servers[0].service.active_streams == 1, soon())
    with Channel.connect(servers[0].address, KEY, soon()) as other:
        open_chunk(other, servers, second)
        assert isinstance(refusal(other), Overloaded)
        send_piece(channel, b"data")
        finish(channel, b"data")
        wait_until(lambda: servers[0].service.active_streams == 0, soon())
        write(other, servers, b"data", second)


# --- small chunks in one message ----------------------------------------------------------------------------


def send_small(
    channel: Channel, servers: list[Server], data: bytes, handle: ChunkHandle, *, rights: bytes = b"", crc: int = -1
) -> None:
    chain = tuple(server.address for server in servers[1:])
    proof = rights or token(handle, Rights.WRITE)
    request = StoreChunk(handle, proof, chain, block_checksums(data), crc32c(data) if crc < 0 else crc)
    channel.send(request, soon(), request_id=7, payload=data)


def store_small(channel: Channel, servers: list[Server], data: bytes) -> ChunkHandle:
    handle = new_chunk_handle()
    send_small(channel, servers, data, handle)
    received = channel.receive(soon())
    assert received.request_id == 7
    expected = tuple(server.store.server_id for server in servers)
    assert expect(received.message, WriteChunkReply).servers == expected
    return handle


@pytest.mark.parametrize("size", [1, 4096, BLOCK_SIZE + 1, STORE_SIZE_MAX])
def test_small_chunk_goes_through_the_chain_in_one_message(servers: list[Server], channel: Channel, size: int) -> None:
    data = os.urandom(size)
    for count in (3, 1):
        handle = store_small(channel, servers[:count], data)
        for server in servers[:count]:
            assert server.store.verify(handle)
            with Channel.connect(server.address, KEY, soon()) as reader:
                assert read(reader, handle, 0, size)[1] == data
    assert [server.connections for server in servers] == [3, 2, 2]


def test_refused_small_chunks_leave_nothing_and_the_connection_stays_usable(
    servers: list[Server], channel: Channel
) -> None:
    handle = new_chunk_handle()
    send_small(channel, servers, b"data", handle, crc=1)
    assert isinstance(refusal(channel), ChunkCorrupt)
    send_small(channel, servers, b"data", handle, rights=token(handle, Rights.READ))
    assert isinstance(refusal(channel), TokenInvalid)
    send_small(channel, [servers[0], servers[0]], b"data", handle)
    assert isinstance(refusal(channel), InvalidArgument)
    assert_nothing_left(servers, handle)
    servers[2].free = 0
    send_small(channel, servers, b"data", handle)
    error = refusal(channel)
    assert (type(error), error.details["failed"]) == (ChainBroken, servers[2].address)
    assert_nothing_left(servers, handle)
    servers[2].free = None
    send_small(channel, servers, b"data", handle)
    assert isinstance(channel.receive(soon()).message, WriteChunkReply)
    send_small(channel, servers, b"data", handle)
    assert isinstance(refusal(channel), ChunkExists)
    assert all(server.store.verify(handle) for server in servers)


def test_small_chunk_whose_chain_is_cut_leaves_nothing_and_names_who_failed(
    servers: list[Server], channel: Channel
) -> None:
    servers[1].close()
    handle = new_chunk_handle()
    send_small(channel, servers, b"data", handle)
    error = refusal(channel)
    assert (type(error), error.details["failed"]) == (ChainBroken, servers[1].address)
    assert_nothing_left([servers[0], servers[2]], handle)
    store_small(channel, [servers[0], servers[2]], b"data")


def test_chunk_too_large_for_one_message_is_refused_before_it_is_read(servers: list[Server], channel: Channel) -> None:
    handle = new_chunk_handle()
    request = StoreChunk(handle, token(handle, Rights.WRITE), (), b"", 0)
    channel.send(request, soon(), payload_size=STORE_SIZE_MAX + 1)
    assert isinstance(refusal(channel), ProtocolError)
    assert servers[0].store.handles() == []


def test_small_chunk_that_finds_no_turn_is_refused_and_the_next_one_works(
    servers: list[Server], channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "STREAM_WAIT_S", 0.01)
    turns = streams_module.Streams("chunk writes", 1, 4 * BLOCK_SIZE)
    monkeypatch.setattr(servers[0].service, "_writes", turns)
    with turns.turn():
        send_small(channel, servers, b"data", new_chunk_handle())
        assert isinstance(refusal(channel), Overloaded)
    store_small(channel, servers, b"data")


# --- damage -------------------------------------------------------------------------------------------------


def test_damaged_replica_is_found_on_a_readers_word_and_never_served_again(
    servers: list[Server], channel: Channel
) -> None:
    handle = write(channel, servers, os.urandom(5 * BLOCK_SIZE))  # a file of its own
    verify = VerifyReplica(handle, token(handle, Rights.READ))
    assert channel.expect(channel.call(verify, soon()), VerifyReplicaReply).is_good
    path = servers[0].path / "chunks" / handle.hex()[:2] / handle.hex()
    with path.open("r+b") as file:
        file.seek(BLOCK_SIZE + 1)
        file.write(b"damage")
    assert not channel.expect(channel.call(verify, soon()), VerifyReplicaReply).is_good
    with pytest.raises(ChunkNotFound):
        read(channel, handle, 0, BLOCK_SIZE)
    assert servers[0].store.changes.batch(10).removed == (handle,)


def test_replica_that_was_cut_off_under_way_is_taken_out(servers: list[Server], channel: Channel) -> None:
    handle = write(channel, servers, os.urandom(5 * BLOCK_SIZE))  # a file of its own
    read(channel, handle, 0, BLOCK_SIZE)  # now it is held open
    os.truncate(servers[0].path / "chunks" / handle.hex()[:2] / handle.hex(), BLOCK_SIZE)
    with pytest.raises(ConnectionFailed):
        read(channel, handle, 0, 5 * BLOCK_SIZE)
    wait_until(lambda: servers[0].store.replica(handle) is None, soon())
    assert servers[0].store.changes.batch(10).removed == (handle,)
