"""Does a chunk go down a chain of three servers whole or not at all, and is the right one blamed?

The servers are real ones in this process, over loopback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE, block_checksums, crc32c
from dfs.chunk import chain as chain_module
from dfs.chunk import streams as streams_module
from dfs.chunk.chain import WRITE_PIECE_SIZE_MAX
from dfs.chunk.peers import PeerConnections
from dfs.chunk.replicas import Replica
from dfs.chunk.store import FileReplicaWriter
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
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, expect
from dfs.net.listener import Listener
from dfs.net.messages import (
    ErrorReply,
    FinishChunk,
    Message,
    Ping,
    Pong,
    VerifyReplica,
    VerifyReplicaReply,
    WriteChunk,
    WriteChunkReply,
    WriteData,
)
from dfs.testing.chunk_server import KEY, LoopbackChunkServer, loopback_servers, read, refusal, soon, token, wait_until

PIECE = 1024 * 1024
SIZES = [1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 5 * PIECE + 12_345]


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LoopbackChunkServer]]:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # power cuts are not in question here
    with loopback_servers(tmp_path, "a", "b", "c") as servers:
        yield servers


@pytest.fixture
def channel(servers: list[LoopbackChunkServer]) -> Iterator[Channel]:
    """A client's connection to the first server."""
    with Channel.connect(servers[0].address, KEY, soon(), bulk=True) as connected:
        yield connected


def open_chunk(
    channel: Channel, servers: list[LoopbackChunkServer], handle: ChunkHandle, deadline: Deadline | None = None
) -> None:
    chain = tuple(server.address for server in servers[1:])
    channel.send(WriteChunk(handle, token(handle, Rights.WRITE), chain), deadline or soon(), request_id=7)


def send_piece(channel: Channel, data: bytes, checksums: bytes | None = None, deadline: Deadline | None = None) -> None:
    channel.send(WriteData(checksums or block_checksums(data)), deadline or soon(), payload=data)


def finish(channel: Channel, data: bytes, deadline: Deadline | None = None) -> tuple[bytes, ...]:
    channel.send(FinishChunk(len(data), crc32c(data)), deadline or soon())
    received = channel.receive(soon())
    assert received.request_id == 7
    return expect(received.message, WriteChunkReply).servers


def write(
    channel: Channel, servers: list[LoopbackChunkServer], data: bytes, handle: ChunkHandle | None = None
) -> ChunkHandle:
    handle = handle or new_chunk_handle()
    open_chunk(channel, servers, handle)
    for start in range(0, len(data), PIECE):
        send_piece(channel, data[start : start + PIECE])
    assert finish(channel, data) == tuple(server.store.server_id for server in servers)
    return handle


def assert_usable(channel: Channel) -> None:
    reply: Message = channel.call(Ping(), soon())
    assert isinstance(reply, Pong)
    assert (reply.node, reply.role) == ("a", "chunk")


def assert_nothing_left(servers: list[LoopbackChunkServer], handle: ChunkHandle) -> None:
    wait_until(lambda: not any(server.temporaries() for server in servers), soon())
    wait_until(lambda: all(server.store.replica(handle) is None for server in servers), soon())


# --- what goes well -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_chunk_is_on_all_three_servers_when_it_is_acknowledged(
    servers: list[LoopbackChunkServer], channel: Channel, size: int
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
def test_chains_of_any_length_work(servers: list[LoopbackChunkServer], channel: Channel, count: int) -> None:
    handle = write(channel, servers[:count], os.urandom(100_000))
    assert [server.store.replica(handle) is not None for server in servers] == [n < count for n in range(3)]


def test_pieces_of_the_largest_size_and_mixed_sizes_make_one_chunk(
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
    data = os.urandom(WRITE_PIECE_SIZE_MAX + 3 * BLOCK_SIZE + 5)
    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    send_piece(channel, data[:WRITE_PIECE_SIZE_MAX])
    send_piece(channel, data[WRITE_PIECE_SIZE_MAX : WRITE_PIECE_SIZE_MAX + BLOCK_SIZE])
    send_piece(channel, data[WRITE_PIECE_SIZE_MAX + BLOCK_SIZE :])
    finish(channel, data)
    assert read(channel, handle, 0, len(data))[1] == data


def test_connections_are_used_again_all_along_the_chain(servers: list[LoopbackChunkServer], channel: Channel) -> None:
    for _ in range(20):
        write(channel, servers, os.urandom(1000))
    assert [server.connections for server in servers] == [1, 1, 1]


def test_idle_connections_to_peers_grow_old_and_are_made_anew(
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
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


def test_small_chunk_sent_in_one_go_is_answered_once(servers: list[LoopbackChunkServer], channel: Channel) -> None:
    handles = [new_chunk_handle() for _ in range(5)]
    for handle in handles:  # five whole chunks under way before the first answer is read
        open_chunk(channel, servers, handle)
        send_piece(channel, b"small")
        channel.send(FinishChunk(5, crc32c(b"small")), soon())
    for _ in handles:
        assert isinstance(channel.receive(soon()).message, WriteChunkReply)
    assert servers[2].store.handles() == sorted(handles)


def test_chain_survives_the_restart_of_a_peer_between_chunks(
    servers: list[LoopbackChunkServer], channel: Channel, tmp_path: Path
) -> None:
    write(channel, servers, b"before")
    servers[1].close()
    again = LoopbackChunkServer(tmp_path / "b")
    try:
        write(channel, [servers[0], again, servers[2]], b"after")
        assert len(again.store.handles()) == 2
    finally:
        again.close()


def test_any_aligned_range_is_read(servers: list[LoopbackChunkServer], channel: Channel) -> None:
    data = os.urandom(5 * BLOCK_SIZE + 77)
    handle = write(channel, servers, data)
    block = BLOCK_SIZE
    for offset, length in [(0, block), (block, 3 * block), (5 * block, 77), (4 * block, block + 77)]:
        reply, got = read(channel, handle, offset, length)
        assert got == data[offset : offset + length]
        assert reply.checksums == block_checksums(got)
        assert reply.chunk_length == len(data)


# --- what is refused ------------------------------------------------------------------------------------


def test_reads_need_a_valid_token_and_an_aligned_range(servers: list[LoopbackChunkServer], channel: Channel) -> None:
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


def test_write_without_right_is_refused_and_the_connection_lives_on(
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
    handle = new_chunk_handle()
    channel.send(WriteChunk(handle, token(handle, Rights.READ), ()), soon())
    send_piece(channel, b"data")
    channel.send(FinishChunk(4, crc32c(b"data")), soon())
    assert isinstance(refusal(channel), TokenInvalid)
    assert_usable(channel)
    assert_nothing_left(servers, handle)


def test_writer_that_stops_after_a_refusal_can_go_on_at_once(
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
    first = write(channel, servers, b"first")
    open_chunk(channel, servers, first)  # exists
    assert isinstance(refusal(channel), ChunkExists)
    write(channel, servers, b"second")  # without a FinishChunk for the refused one
    assert_usable(channel)


def test_handle_that_exists_further_down_is_refused_as_such(
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
    handle = new_chunk_handle()
    with Channel.connect(servers[2].address, KEY, soon()) as direct:
        write(direct, servers[2:], b"there", handle)
    open_chunk(channel, servers, handle)
    send_piece(channel, b"again")
    channel.send(FinishChunk(5, crc32c(b"again")), soon())
    assert isinstance(refusal(channel), ChunkExists)
    wait_until(lambda: servers[0].store.replica(handle) is None, soon())
    assert servers[2].store.verify(handle)


def test_empty_chunk_and_wrong_sums_are_refused(servers: list[LoopbackChunkServer], channel: Channel) -> None:
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


def test_misshapen_pieces_are_refused(servers: list[LoopbackChunkServer], channel: Channel) -> None:
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


def test_chain_that_visits_a_server_twice_or_is_too_long_is_refused(
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
    handle = new_chunk_handle()
    first = servers[0].address
    for chain, expected in [((first,), InvalidArgument), (tuple(f"10.0.0.{n}:1" for n in range(16)), LimitExceeded)]:
        channel.send(WriteChunk(handle, token(handle, Rights.WRITE), chain), soon())
        assert isinstance(refusal(channel), expected)
    assert_usable(channel)


def test_foreign_messages_are_answered_with_an_error(servers: list[LoopbackChunkServer], channel: Channel) -> None:
    with pytest.raises(ProtocolError):
        channel.call(FinishChunk(1, 2), soon())
    assert_usable(channel)


# --- what breaks ------------------------------------------------------------------------------------------


def test_corrupt_piece_is_refused_and_nothing_is_left(servers: list[LoopbackChunkServer], channel: Channel) -> None:
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
def test_dead_server_is_named_and_nothing_is_left(
    servers: list[LoopbackChunkServer], channel: Channel, dead: int
) -> None:
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
def test_server_that_dies_in_the_middle_is_named(
    servers: list[LoopbackChunkServer], channel: Channel, dead: int
) -> None:
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
def test_full_disk_is_blamed_on_its_server(servers: list[LoopbackChunkServer], channel: Channel, full: int) -> None:
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
def test_writer_that_vanishes_leaves_nothing_anywhere(servers: list[LoopbackChunkServer], sent: int) -> None:
    handle = new_chunk_handle()
    channel = Channel.connect(servers[0].address, KEY, soon(), bulk=True)
    open_chunk(channel, servers, handle)
    for _ in range(sent):
        send_piece(channel, bytes(PIECE))
    wait_until(lambda: servers[2].service.active_streams == 1, soon())
    channel.close()
    assert_nothing_left(servers, handle)


def test_silent_server_is_named_by_its_neighbour_before_the_writer_gives_up(
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
    silent = Listener.bind("127.0.0.1:0")  # accepts, and never greets
    try:
        handle = new_chunk_handle()
        patience = Deadline.after(6.0)
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
    servers: list[LoopbackChunkServer], channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = soon(6.0)  # the first waits two thirds of it for the rest, and is slower than that itself
    publish = FileReplicaWriter.publish

    def published(writer: FileReplicaWriter) -> Replica:
        if writer._store is servers[0].store:
            wait_until(lambda: servers[1].store.replica(handle) is not None, soon())
            wait_until(lambda: patience.remaining_s() < 1.8, soon())
        return publish(writer)

    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    send_piece(channel, b"slow")
    monkeypatch.setattr(FileReplicaWriter, "publish", published)
    assert len(finish(channel, b"slow", patience)) == 3


def test_writer_that_stalls_is_dropped(
    servers: list[LoopbackChunkServer], channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_module, "STALL_MAX_S", 0.2)
    handle = new_chunk_handle()
    open_chunk(channel, servers, handle)
    with pytest.raises(ConnectionFailed):
        channel.receive(soon())
    assert_nothing_left(servers, handle)


def test_writer_may_pause_for_longer_than_it_waits_itself(servers: list[LoopbackChunkServer], channel: Channel) -> None:
    handle = new_chunk_handle()
    data = os.urandom(2 * BLOCK_SIZE)
    open_chunk(channel, servers, handle)
    send_piece(channel, data[:BLOCK_SIZE], deadline=Deadline.after(1.0))
    assert not channel.wait_readable(Deadline.after(1.5))  # nobody lost patience
    send_piece(channel, data[BLOCK_SIZE:])
    assert len(finish(channel, data)) == 3


def test_streams_are_bounded_and_refused_ones_are_told(
    servers: list[LoopbackChunkServer], channel: Channel, monkeypatch: pytest.MonkeyPatch
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


# --- damage -------------------------------------------------------------------------------------------------


def test_damaged_replica_is_found_on_a_readers_word_and_never_served_again(
    servers: list[LoopbackChunkServer], channel: Channel
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


def test_replica_that_was_cut_off_under_way_is_taken_out(servers: list[LoopbackChunkServer], channel: Channel) -> None:
    handle = write(channel, servers, os.urandom(5 * BLOCK_SIZE))  # a file of its own
    read(channel, handle, 0, BLOCK_SIZE)  # now it is held open
    os.truncate(servers[0].path / "chunks" / handle.hex()[:2] / handle.hex(), BLOCK_SIZE)
    with pytest.raises(ConnectionFailed):
        read(channel, handle, 0, 5 * BLOCK_SIZE)
    wait_until(lambda: servers[0].store.replica(handle) is None, soon())
    assert servers[0].store.changes.batch(10).removed == (handle,)
