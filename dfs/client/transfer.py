"""Move the bytes of one chunk: to the head of a replica chain, or from whichever replica gives them right.

Owns: which way a chunk is written, the talk with the head of a chain, checksums on the way. Refuses to know: files and
their extents, local files, where new chunks come from, and which replica is read (dfs.client.replica_reads).

There is no limit on the whole time of a transfer: it may go on as long as it makes progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from dfs.checksum import block_checksums, combine_blocks
from dfs.client.fan_out import FAN_OUT_SIZE_MAX, ServerFailed, store_everywhere
from dfs.client.lanes import Lanes
from dfs.client.lent_writes import write_lent
from dfs.client.parallel import Cancellation
from dfs.client.plan import ReadPlan, ServerHealth, blamed
from dfs.client.pool import ChannelPool, stalls_as_failures
from dfs.client.readings import BlockReading, Destination
from dfs.client.replica_reads import Relocate, ReplicaReader
from dfs.client.write_target import (
    FINISH_TIMEOUT_S,
    WRITE_STALL_S,
    ChunkNotWritten,
    ChunkSource,
    WriteTarget,
    finish_deadline,
)
from dfs.clock import Deadline
from dfs.errors import (
    ChainBroken,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    ProtocolError,
)
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ServerId, id_text
from dfs.log import get_logger
from dfs.net.blocking import Channel, expect
from dfs.net.messages import (
    AllocateReply,
    FinishChunk,
    StoreChunk,
    WriteChunk,
    WriteChunkReply,
    WriteData,
)
from dfs.net.parts import NewChunk, ServerInfo

CONNECT_TIMEOUT_S = 2.0  # to a chunk server; there are others

log = get_logger(__name__)


def targets_of(reply: AllocateReply) -> list[WriteTarget]:
    """Return the allocated chunks; raise `ProtocolError` when the reply makes no sense."""
    servers = reply.servers
    if not reply.chunks or reply.chunk_size <= 0:
        raise ProtocolError("a master allocated no chunk where at least one was asked for; is it of another version?")
    targets = []
    for chunk in reply.chunks:
        if not chunk.chain or not all(0 <= index < len(servers) for index in chunk.chain):
            raise ProtocolError("a master allocated a chunk with an impossible chain; is it of another version?")
        targets.append(WriteTarget(chunk.handle, chunk.token, tuple(servers[index] for index in chunk.chain)))
    return targets


class Transfer:
    """Thread-safe; shared by all transfers of a client, so that they learn of bad servers from each other."""

    def __init__(self, pool: ChannelPool, health: ServerHealth, reader: ReplicaReader, lanes: Lanes) -> None:
        self._pool = pool
        self._lanes = lanes
        self._fans_out = is_on(FastPath.FAN_OUT)
        self.health = health
        self.reader = reader

    # --- writing ------------------------------------------------------------------------------------------

    def write_chunk(
        self, target: WriteTarget, source: ChunkSource, reached: Callable[[int], None], cancellation: Cancellation
    ) -> NewChunk:
        """Store one chunk by one attempt; raise `ChunkNotWritten`. Errors of `source` pass through.

        `reached` is told the number of bytes sent so far.
        """
        try:
            with self._lanes.entered(target.chain) as entered:
                if entered is not None:
                    lane, doors = entered
                    return write_lent(lane, doors, target, source, reached, cancellation)
            return self._write_along_chain(target, source, reached, cancellation)
        except ChunkNotWritten as failure:
            cancellation.check()
            self._note_not_written(target, failure)
            raise

    def _write_along_chain(
        self, target: WriteTarget, source: ChunkSource, reached: Callable[[int], None], cancellation: Cancellation
    ) -> NewChunk:
        with ExitStack() as stack:  # errors of the source pass as they are, those of the chain as ChunkNotWritten
            with _chain_errors(target):
                lent = self._pool.channel(target.chain[0].address, Deadline.after(CONNECT_TIMEOUT_S), bulk=True)
                channel = stack.enter_context(lent)
            stack.enter_context(cancellation.watched(channel))
            length, crc = self._send_data(channel, target, source.pieces(), reached, cancellation)
            finish = finish_deadline(length)  # the chain shares it out
            with _chain_errors(target, channel):
                channel.send(FinishChunk(length, crc), finish)
                reply = expect(channel.receive(finish).message, WriteChunkReply)
                _check_servers(reply, target)
        return NewChunk(target.handle, length, crc, reply.servers)

    def store_chunk(self, target: WriteTarget, data: memoryview, cancellation: Cancellation) -> NewChunk:
        """Store a chunk of at most STORE_SIZE_MAX bytes by one attempt, in one message; raise `ChunkNotWritten`."""
        checksums = block_checksums(data)
        crc = combine_blocks(checksums, len(data))
        request = StoreChunk(target.handle, target.token, (), checksums, crc)
        try:
            if self._fans_out and len(data) <= FAN_OUT_SIZE_MAX:
                servers = self._store_everywhere(target, request, data, cancellation)
            else:
                servers = self._store_along_chain(target, request, data, cancellation)
        except ChunkNotWritten as failure:
            cancellation.check()
            self._note_not_written(target, failure)
            raise
        return NewChunk(target.handle, len(data), crc, servers)

    def _store_everywhere(
        self, target: WriteTarget, request: StoreChunk, data: memoryview, cancellation: Cancellation
    ) -> tuple[ServerId, ...]:
        connect, finish = Deadline.after(CONNECT_TIMEOUT_S), Deadline.after(FINISH_TIMEOUT_S)
        try:
            return store_everywhere(self._pool, target.chain, request, data, cancellation, connect, finish)
        except ServerFailed as failure:
            raise ChunkNotWritten(failure.error, failure.failed) from None

    def _store_along_chain(
        self, target: WriteTarget, request: StoreChunk, data: memoryview, cancellation: Cancellation
    ) -> tuple[ServerId, ...]:
        rest = tuple(server.address for server in target.chain[1:])
        with ExitStack() as stack:
            with _chain_errors(target):
                lent = self._pool.channel(target.chain[0].address, Deadline.after(CONNECT_TIMEOUT_S), bulk=True)
                channel = stack.enter_context(lent)
            stack.enter_context(cancellation.watched(channel))
            finish = Deadline.after(FINISH_TIMEOUT_S)
            with _chain_errors(target, channel):
                channel.send(msgspec.structs.replace(request, chain=rest), finish, payload=data)
                reply = expect(channel.receive(finish).message, WriteChunkReply)
                _check_servers(reply, target)
            return reply.servers

    def _note_not_written(self, target: WriteTarget, failure: ChunkNotWritten) -> None:
        now_s = time.monotonic()
        for server in failure.failed:
            self.health.failed(server, now_s)
            self._lanes.shut(server)
        head = target.chain[0].address
        log.warning("chunk_not_written", handle=target.handle, head=head, reason=failure.error.message)

    def _send_data(
        self,
        channel: Channel,
        target: WriteTarget,
        pieces: Iterable[memoryview],
        reached: Callable[[int], None],
        cancellation: Cancellation,
    ) -> tuple[int, int]:
        """Send head and data of a chunk; return its length and CRC."""
        chain = tuple(server.address for server in target.chain[1:])
        checksums = bytearray()
        sent = 0
        with _chain_errors(target):
            channel.send(WriteChunk(target.handle, target.token, chain), Deadline.after(WRITE_STALL_S))
        for piece in pieces:
            cancellation.check()
            listed = block_checksums(piece)
            checksums += listed
            with _chain_errors(target, channel):
                if channel.wait_readable(Deadline(0.0)):  # nothing is due yet: it can only be an error
                    expect(channel.receive(Deadline.after(WRITE_STALL_S)).message, WriteChunkReply)
                    raise ProtocolError(f"{channel.address} acknowledged a chunk before its end")
                channel.send(WriteData(listed), Deadline.after(WRITE_STALL_S), payload=piece)
            sent += len(piece)
            reached(sent)
        return sent, combine_blocks(checksums, sent)

    # --- reading ------------------------------------------------------------------------------------------

    def read(
        self,
        plan: ReadPlan,
        replicas: tuple[ServerInfo, ...],
        destination: Destination,
        cancellation: Cancellation,
        *,
        relocate: Relocate,
        path: str,
    ) -> None:
        """Bring the blocks of `plan` to `destination`, verified, from any replica (see `ReplicaReader.read`)."""
        self.reader.read(BlockReading(plan, replicas, destination), cancellation, relocate=relocate, path=path)


@contextmanager
def _chain_errors(target: WriteTarget, channel: Channel | None = None) -> Iterator[None]:
    """Turn every error of the chain into `ChunkNotWritten`; a lost `channel` may still hold the reason."""
    try:
        with stalls_as_failures(target.chain[0].address, WRITE_STALL_S):
            yield
    except DfsError as error:
        reason = error
        if channel is not None and isinstance(error, ConnectionFailed):
            reason = _last_words(channel) or error
        raise ChunkNotWritten(reason, blamed(reason, target.chain)) from None


def _last_words(channel: Channel) -> DfsError | None:
    """Return the error that the peer sent before it closed the connection, if that came through."""
    try:
        deadline = Deadline.after(0.2)
        if channel.wait_readable(deadline):
            expect(channel.receive(deadline).message, WriteChunkReply)
    except DfsError as error:
        return None if isinstance(error, (ConnectionFailed, DeadlineExceeded, ProtocolError)) else error
    return None


def _check_servers(reply: WriteChunkReply, target: WriteTarget) -> None:
    wrong = [
        server.address
        for server, stored in zip(target.chain, (*reply.servers, *[None] * len(target.chain)), strict=False)
        if server.server_id != stored
    ]
    if wrong or len(reply.servers) != len(target.chain):
        raise ChainBroken(
            f"chunk {id_text(target.handle)} was acknowledged by other servers than those of its chain",
            failed=",".join(wrong),
        )
