"""A small chunk sent to all its servers at once: each stores and syncs it while the others do the same.

Owns: the talk with the servers of one small chunk, and who is blamed when it fails. Refuses to know: where chunks come
from, chains, and what follows a failure.

Along a chain of three a chunk of a few KiB waits for three servers to be woken one after the other, and each spends
more time on passing it on than on storing it. The writer's uplink carries the bytes once per replica instead: for up to
`FAN_OUT_SIZE_MAX` that is cheaper. The promise is the same: the call returns when all servers have it on disk. When one
fails, what the others stored belongs to no file and is collected as garbage (docs/adr/0022).
"""

from __future__ import annotations

from contextlib import ExitStack

from dfs.checksum import BLOCK_SIZE
from dfs.client.parallel import Cancellation
from dfs.client.pool import ChannelPool
from dfs.clock import Deadline
from dfs.errors import (
    ChainBroken,
    ChunkExists,
    DfsError,
    InvalidArgument,
    LimitExceeded,
    Retry,
    TokenExpired,
    TokenInvalid,
)
from dfs.ids import ServerId, id_text
from dfs.net.blocking import Channel, expect
from dfs.net.messages import StoreChunk, WriteChunkReply
from dfs.net.parts import ServerInfo

FAN_OUT_SIZE_MAX = BLOCK_SIZE  # bytes; above it a writer's network matters more than the wait


_ABOUT_THE_CHUNK = (ChunkExists, TokenExpired, TokenInvalid, InvalidArgument, LimitExceeded)  # no server's fault


class ServerFailed(Exception):
    """One of the servers did not store the chunk: `error` says why, `failed` whom to leave out. Never leaves
    dfs.client."""

    def __init__(self, error: DfsError, server: ServerInfo) -> None:
        super().__init__(str(error))
        self.failed = () if error.retry is Retry.REFRESH else (server,)
        self.error = error
        if not isinstance(error, _ABOUT_THE_CHUNK):  # others may do what this one cannot, whatever the reason is
            text = f"chunk server {server.address} did not store the chunk: {error.message}"
            self.error = ChainBroken(text, failed=server.address)


def store_everywhere(
    pool: ChannelPool,
    servers: tuple[ServerInfo, ...],
    request: StoreChunk,
    data: memoryview,
    cancellation: Cancellation,
    connect: Deadline,
    finish: Deadline,
) -> tuple[ServerId, ...]:
    """Return the ids of `servers` when all of them have the chunk on disk; raise `ServerFailed` for the first that
    has not. `request` names no chain."""
    with ExitStack() as stack:  # after a failure it closes the channels on which an answer is still to come
        channels: list[Channel] = []
        for server in servers:
            try:
                channel = pool.take(server.address, connect, bulk=True)
                stack.callback(channel.close)
                channels.append(channel)
                channel.send(request, finish, payload=data)
            except DfsError as error:
                raise ServerFailed(error, server) from None
        with cancellation.watched(*channels):
            for server, channel in zip(servers, channels, strict=True):
                _hear(server, channel, request, finish)
        stack.pop_all()
    for server, channel in zip(servers, channels, strict=True):
        pool.give(server.address, channel, bulk=True)
    return tuple(server.server_id for server in servers)


def _hear(server: ServerInfo, channel: Channel, request: StoreChunk, finish: Deadline) -> None:
    try:
        reply = expect(channel.receive(finish).message, WriteChunkReply)
        if reply.servers != (server.server_id,):
            raise ChainBroken(
                f"chunk {id_text(request.handle)} was acknowledged by another server than the one at {server.address}",
                failed=server.address,
            )
    except DfsError as error:
        raise ServerFailed(error, server) from None
