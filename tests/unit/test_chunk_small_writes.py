"""Does a small chunk that comes as one message reach all servers of its chain, or none?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE, block_checksums, crc32c
from dfs.chunk import streams as streams_module
from dfs.errors import ChainBroken, ChunkCorrupt, ChunkExists, InvalidArgument, Overloaded, ProtocolError, TokenInvalid
from dfs.ids import ChunkHandle, new_chunk_handle
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, expect
from dfs.net.messages import STORE_SIZE_MAX, StoreChunk, WriteChunkReply
from dfs.testing.chunk_server import KEY, LoopbackChunkServer, loopback_servers, read, refusal, soon, token, wait_until


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


def assert_nothing_left(servers: list[LoopbackChunkServer], handle: ChunkHandle) -> None:
    wait_until(lambda: not any(server.temporaries() for server in servers), soon())
    wait_until(lambda: all(server.store.replica(handle) is None for server in servers), soon())


def send_small(
    channel: Channel,
    servers: list[LoopbackChunkServer],
    data: bytes,
    handle: ChunkHandle,
    *,
    rights: bytes = b"",
    crc: int = -1,
) -> None:
    chain = tuple(server.address for server in servers[1:])
    proof = rights or token(handle, Rights.WRITE)
    request = StoreChunk(handle, proof, chain, block_checksums(data), crc32c(data) if crc < 0 else crc)
    channel.send(request, soon(), request_id=7, payload=data)


def store_small(channel: Channel, servers: list[LoopbackChunkServer], data: bytes) -> ChunkHandle:
    handle = new_chunk_handle()
    send_small(channel, servers, data, handle)
    received = channel.receive(soon())
    assert received.request_id == 7
    expected = tuple(server.store.server_id for server in servers)
    assert expect(received.message, WriteChunkReply).servers == expected
    return handle


@pytest.mark.parametrize("size", [1, 4096, BLOCK_SIZE + 1, STORE_SIZE_MAX])
def test_small_chunk_goes_through_the_chain_in_one_message(
    servers: list[LoopbackChunkServer], channel: Channel, size: int
) -> None:
    data = os.urandom(size)
    for count in (3, 1):
        handle = store_small(channel, servers[:count], data)
        for server in servers[:count]:
            assert server.store.verify(handle)
            with Channel.connect(server.address, KEY, soon()) as reader:
                assert read(reader, handle, 0, size)[1] == data
    assert [server.connections for server in servers] == [3, 2, 2]


def test_refused_small_chunks_leave_nothing_and_the_connection_stays_usable(
    servers: list[LoopbackChunkServer], channel: Channel
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
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
    servers[1].close()
    handle = new_chunk_handle()
    send_small(channel, servers, b"data", handle)
    error = refusal(channel)
    assert (type(error), error.details["failed"]) == (ChainBroken, servers[1].address)
    assert_nothing_left([servers[0], servers[2]], handle)
    store_small(channel, [servers[0], servers[2]], b"data")


def test_chunk_too_large_for_one_message_is_refused_before_it_is_read(
    servers: list[LoopbackChunkServer], channel: Channel
) -> None:
    handle = new_chunk_handle()
    request = StoreChunk(handle, token(handle, Rights.WRITE), (), b"", 0)
    channel.send(request, soon(), payload_size=STORE_SIZE_MAX + 1)
    assert isinstance(refusal(channel), ProtocolError)
    assert servers[0].store.handles() == []


def test_small_chunk_that_finds_no_turn_is_refused_and_the_next_one_works(
    servers: list[LoopbackChunkServer], channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "STREAM_WAIT_S", 0.01)
    turns = streams_module.Streams("chunk writes", 1, 4 * BLOCK_SIZE)
    monkeypatch.setattr(servers[0].service, "_writes", turns)
    with turns.turn():
        send_small(channel, servers, b"data", new_chunk_handle())
        assert isinstance(refusal(channel), Overloaded)
    store_small(channel, servers, b"data")
