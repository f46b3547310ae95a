"""Move the bytes of one chunk: to the head of a replica chain, or from whichever replica gives them right.

Owns: the talk with chunk servers, checksums on the way, stall limits, and the choice of the next replica. Refuses to
know: files and their extents, local files, and where new chunks come from.

There is no limit on the whole time of a transfer: it may go on as long as it makes progress.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from dfs.checksum import BLOCK_SIZE, CRC_SIZE, block_checksums, block_count, combine_blocks, first_bad_block
from dfs.client.fan_out import FAN_OUT_SIZE_MAX, ServerFailed, store_everywhere
from dfs.client.parallel import Cancellation
from dfs.client.plan import ReadPlan, ServerHealth, backoff_s, blamed
from dfs.client.pool import ChannelPool, exchange
from dfs.clock import Deadline
from dfs.errors import (
    ChainBroken,
    ChunkCorrupt,
    ChunkNotFound,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    LocalFileError,
    NoQuorum,
    ProtocolError,
    Retry,
    StaleReplica,
)
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.log import get_logger
from dfs.net.blocking import Channel, expect
from dfs.net.messages import (
    AllocateReply,
    FinishChunk,
    ReadChunk,
    ReadChunkReply,
    StoreChunk,
    VerifyReplica,
    VerifyReplicaReply,
    WriteChunk,
    WriteChunkReply,
    WriteData,
)
from dfs.net.parts import LocatedExtent, NewChunk, ServerInfo

PIECE_SIZE = 1024 * 1024  # bytes received and verified at a time: the measured optimum, and it bounds memory
CONNECT_TIMEOUT_S = 2.0  # to a chunk server; there are others
READ_STALL_S = 5.0  # a replica that gives nothing for so long is left for another one; doubles when all are slow
READ_STALL_GROWTH_MAX = 8
READ_TIME_S = 600.0  # told to the server as our patience with a whole read; ours is the stall limit
WRITE_STALL_S = 15.0  # a chain that takes nothing for so long is given up; longer than a chain's own patience
FINISH_TIMEOUT_S = 10.0  # for fsync and publishing along the chain, and in addition:
FINISH_SPEED_MIN = 4 * 1024 * 1024  # bytes per second that a chain's slowest disk is expected to sync
VERIFY_TIMEOUT_S = 5.0  # for a suspected replica to check itself; it goes on alone after that

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WriteTarget:
    """An allocated chunk: who is to store it, in chain order."""

    handle: ChunkHandle
    token: bytes
    chain: tuple[ServerInfo, ...]


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


class ChunkNotWritten(Exception):
    """One attempt at writing a chunk failed; `failed` are the servers to leave out. Never leaves dfs.client."""

    def __init__(self, error: DfsError, failed: tuple[ServerInfo, ...]) -> None:
        super().__init__(str(error))
        self.error = error
        self.failed = failed


class Destination(Protocol):
    """Where read bytes go. `window` gives the memory for the next ones; `accept` gets them verified, in order."""

    def window(self, position: int, size: int) -> memoryview: ...

    def accept(self, position: int, data: memoryview) -> None: ...


@dataclass(slots=True)
class _Reading:
    """How far the read of one plan has come, and what went wrong on the way."""

    plan: ReadPlan
    extent: LocatedExtent
    replicas: tuple[ServerInfo, ...]
    destination: Destination
    position: int
    reasons: dict[str, str] = field(default_factory=dict)  # server -> its last failure
    verified: set[str] = field(default_factory=set)  # addresses told to check themselves
    last_error: DfsError | None = None


class Transfer:
    """Thread-safe; shared by all transfers of a client, so that they learn of bad servers from each other."""

    def __init__(self, pool: ChannelPool, health: ServerHealth, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._fans_out = is_on(FastPath.FAN_OUT)
        self.health = health

    # --- writing ------------------------------------------------------------------------------------------

    def write_chunk(
        self,
        target: WriteTarget,
        pieces: Iterable[memoryview],
        reached: Callable[[int], None],
        cancellation: Cancellation,
    ) -> NewChunk:
        """Store one chunk by one attempt; raise `ChunkNotWritten`. Errors of `pieces` pass through.

        Each piece is whole blocks, but for the last. `reached` is told the number of bytes sent so far.
        """
        head = target.chain[0]
        try:
            with ExitStack() as stack:  # errors of the source pass as they are, those of the chain as ChunkNotWritten
                with _chain_errors(target):
                    lent = self._pool.channel(head.address, Deadline.after(CONNECT_TIMEOUT_S), bulk=True)
                    channel = stack.enter_context(lent)
                stack.enter_context(cancellation.watched(channel))
                length, crc = self._send_data(channel, target, pieces, reached, cancellation)
                finish = Deadline.after(FINISH_TIMEOUT_S + length / FINISH_SPEED_MIN)  # the chain shares it out
                with _chain_errors(target, channel):
                    channel.send(FinishChunk(length, crc), finish)
                    reply = expect(channel.receive(finish).message, WriteChunkReply)
                    _check_servers(reply, target)
        except ChunkNotWritten as failure:
            cancellation.check()
            self._note_not_written(target, failure)
            raise
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
        relocate: Callable[[ReadPlan, Deadline], tuple[LocatedExtent, tuple[ServerInfo, ...]]],
        path: str,
    ) -> None:
        """Bring the blocks of `plan` to `destination`, verified, from any replica.

        When all fail, `relocate` asks the masters for present places and tokens, until nothing was got for the timeout.
        """
        reading = _Reading(plan, plan.extent, replicas, destination, plan.block_offset)
        deadline = Deadline.after(self._timeout_s)
        rounds = 0
        while True:
            before = reading.position
            may_get_better = self._read_round(
                reading, cancellation, READ_STALL_S * min(2**rounds, READ_STALL_GROWTH_MAX)
            )
            if reading.position >= plan.block_end:
                return
            if reading.position > before:
                deadline = Deadline.after(self._timeout_s)
            if deadline.has_passed or not may_get_better:
                raise _unreadable(reading, path)
            rounds += 1
            time.sleep(min(backoff_s(rounds, random.random()), deadline.remaining_s()))  # noqa: S311
            cancellation.check()
            try:
                reading.extent, reading.replicas = relocate(plan, deadline)
            except (ConnectionFailed, NoQuorum, DeadlineExceeded) as error:
                reading.reasons.setdefault("the masters", error.message)
                raise _unreadable(reading, path) from None

    def _read_round(self, reading: _Reading, cancellation: Cancellation, stall_s: float) -> bool:
        """Ask each replica once, until all is read; return whether asking again later may help."""
        may_get_better = not reading.replicas
        for server in self.health.order(reading.replicas, time.monotonic(), reading.plan.extent_index):
            cancellation.check()
            try:
                with _stalls_as_failures(server.address, stall_s):
                    self._read_from(server, reading, cancellation, stall_s)
            except LocalFileError:
                raise
            except DfsError as error:
                cancellation.check()
                self._note_failure(server, reading, error)
                may_get_better = may_get_better or error.retry is not Retry.NEVER
            else:
                self.health.worked(server)
                return True
        return may_get_better

    def _read_from(self, server: ServerInfo, reading: _Reading, cancellation: Cancellation, stall_s: float) -> None:
        """Read on from `reading.position` at one replica; each verified piece counts, also when a later one fails."""
        extent, end = reading.extent, reading.plan.block_end
        connect = Deadline.after(min(CONNECT_TIMEOUT_S, stall_s))
        with self._pool.channel(server.address, connect, bulk=True) as channel, cancellation.watched(channel):
            start = reading.position
            channel.send(ReadChunk(extent.handle, extent.token, start, end - start), Deadline.after(READ_TIME_S))
            received = channel.receive(Deadline.after(stall_s))
            reply = expect(received.message, ReadChunkReply)
            _check_reply(reply, received.payload_size, extent, server, start=start, end=end)
            while reading.position < end:
                cancellation.check()
                position = reading.position
                size = min(PIECE_SIZE, end - position)
                view = reading.destination.window(position, size)
                channel.receive_into(view, Deadline.after(stall_s))
                first = (position - start) // BLOCK_SIZE * CRC_SIZE
                bad = first_bad_block(view, reply.checksums[first : first + block_count(size) * CRC_SIZE])
                if bad is not None:
                    raise ChunkCorrupt(
                        f"bytes at {position + bad * BLOCK_SIZE} of chunk {id_text(extent.handle)} from "
                        f"{server.address} do not match their checksum",
                        handle=id_text(extent.handle),
                        server=server.address,
                    )
                reading.destination.accept(position, view)
                reading.position += size

    def _note_failure(self, server: ServerInfo, reading: _Reading, error: DfsError) -> None:
        handle = reading.extent.handle
        reading.reasons[f"{server.name} ({server.address})"] = error.message
        reading.last_error = error
        log.warning("replica_read_failed", handle=handle, server=server.address, code=error.code, reason=error.message)
        if isinstance(error, (ConnectionFailed, ProtocolError)):
            self.health.failed(server, time.monotonic())
        elif isinstance(error, (ChunkCorrupt, StaleReplica)) and server.address not in reading.verified:
            reading.verified.add(server.address)
            self._report_replica(server, reading.extent)

    def _report_replica(self, server: ServerInfo, extent: LocatedExtent) -> None:
        """Make a server check its replica: the way by which damage that a reader met is repaired."""
        deadline = Deadline.after(VERIFY_TIMEOUT_S)
        try:
            with self._pool.channel(server.address, deadline) as channel:
                reply = expect(
                    exchange(channel, VerifyReplica(extent.handle, extent.token), deadline), VerifyReplicaReply
                )
        except DfsError as error:
            log.warning("replica_not_reported", handle=extent.handle, server=server.address, reason=error.message)
        else:
            log.warning("replica_reported", handle=extent.handle, server=server.address, is_good=reply.is_good)


@contextmanager
def _stalls_as_failures(address: str, stall_s: float) -> Iterator[None]:
    """Make a passed stall limit what it means: this server failed, another one may do."""
    try:
        yield
    except DeadlineExceeded as error:
        raise ConnectionFailed(
            f"{address} made no progress within {stall_s:g} s ({error.message})", address=address
        ) from None


@contextmanager
def _chain_errors(target: WriteTarget, channel: Channel | None = None) -> Iterator[None]:
    """Turn every error of the chain into `ChunkNotWritten`; a lost `channel` may still hold the reason."""
    try:
        with _stalls_as_failures(target.chain[0].address, WRITE_STALL_S):
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


def _check_reply(
    reply: ReadChunkReply, payload_size: int, extent: LocatedExtent, server: ServerInfo, *, start: int, end: int
) -> None:
    """Raise unless the reply announces exactly what was asked for, of the chunk that the map knows."""
    name = f"the replica of chunk {id_text(extent.handle)} at {server.address}"
    if reply.chunk_length != extent.chunk_length:
        raise StaleReplica(f"{name} has {reply.chunk_length} bytes, the chunk map says {extent.chunk_length}")
    if reply.chunk_crc != extent.chunk_crc:
        raise StaleReplica(f"{name} has CRC {reply.chunk_crc:08x}, the chunk map says {extent.chunk_crc:08x}")
    if payload_size != end - start or len(reply.checksums) != block_count(end - start) * CRC_SIZE:
        raise ProtocolError(f"{server.address} answered a read of {end - start} bytes with {payload_size}")
    whole = start == 0 and end == extent.chunk_length
    if whole and combine_blocks(reply.checksums, end) != extent.chunk_crc:
        raise StaleReplica(f"{name} has block checksums that do not add up to that of the chunk map")


def _unreadable(reading: _Reading, path: str) -> DfsError:
    plan = reading.plan
    reasons = "; ".join(f"{server}: {reason}" for server, reason in reading.reasons.items())
    text = (
        f"bytes {plan.file_offset} to {plan.file_offset + plan.length} of {path!r} (chunk "
        f"{id_text(plan.extent.handle)}) cannot be read: {reasons or 'no chunk server holds a replica of it'}; see "
        "`dfs fsck` and `dfs status`"
    )
    error = reading.last_error
    cls: type[DfsError] = type(error) if error is not None and reading.reasons else ChunkNotFound
    return cls(text, handle=id_text(plan.extent.handle))
