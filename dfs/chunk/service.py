"""What a chunk server answers: the request loop of one connection.

Owns: which messages are understood, access tokens, and when a connection is still usable after an error.
Refuses to know: how connections are accepted (dfs.net.listener), files, and the master.

One reply goes out for each request. A refused chunk is answered at once; the rest of it is then skipped, whether its
writer notices and stops or sends everything. So pooled connections survive refusals.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dfs import __version__
from dfs.checksum import BLOCK_SIZE
from dfs.chunk.chain import STALL_MAX_S, ChunkTransfer, Upstream, check_chain
from dfs.chunk.door import LocalDoor
from dfs.chunk.lent import LentUpstream
from dfs.chunk.lobby import IS_POSSIBLE, Visitor
from dfs.chunk.meter import ChunkMeter
from dfs.chunk.peers import PeerConnections
from dfs.chunk.replicas import ChunkStore, checksums_of, ranges_size, read_bytes, read_cut_ranges, read_range
from dfs.chunk.small_stores import GATHERED_SIZE_MAX, SmallStores
from dfs.chunk.streams import (
    BUFFER_SIZE,
    LENT_BUFFER_SIZE,
    RANGES_MEMORY_MAX,
    READS_MAX,
    STREAMS_MAX,
    ByteBudget,
    Streams,
)
from dfs.chunk.tails.folders import TailFolders
from dfs.chunk.tails.service import TAIL_MESSAGES, TailService
from dfs.clock import SYSTEM_CLOCK, Clock, Deadline
from dfs.errors import DeadlineExceeded, DfsError, DiskFailed, InvalidArgument, Overloaded, ProtocolError
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ID_SIZE, ChunkHandle
from dfs.log import get_logger
from dfs.net.auth import ClusterKey, Rights, check_token
from dfs.net.blocking import Channel, Received
from dfs.net.messages import (
    REPLICATION_MAX,
    STORE_SIZE_MAX,
    ErrorReply,
    Message,
    Ping,
    Pong,
    ReadChunk,
    ReadChunkReply,
    ReadRanges,
    ReadRangesReply,
    StoreChunk,
    VerifyReplica,
    VerifyReplicaReply,
    WriteChunk,
    WriteChunkReply,
)

CONNECTION_IDLE_S = 300.0  # a connection that asks nothing for so long is closed
REPLY_TIMEOUT_S = 30.0  # for a peer to take a small reply
READ_TIME_MAX_S = 600.0  # longest time for one read, whatever the reader says
COPY_SIZE = 1024 * 1024  # bytes that are read and sent at a time where the kernel does not copy them
SMALL_READ_SIZE = BLOCK_SIZE  # bytes up to which a read is copied into the reply: sendfile costs more calls

log = get_logger(__name__)


class ChunkService:
    """Answers every connection of one chunk server; `handle` runs in one thread per connection."""

    def __init__(
        self,
        *,
        store: ChunkStore,
        key: ClusterKey,
        name: str,
        address: str,
        clock: Clock = SYSTEM_CLOCK,
        tail_folders: TailFolders | Sequence[Path] = (),
    ) -> None:
        """`address`: what the other servers and the clients know this one by; `tail_folders`: see `TailService`."""
        self._store = store
        self._key = key
        self._name = name
        self._address = address
        self._clock = clock
        self._peers = PeerConnections(key)
        self._transfer = ChunkTransfer(store, self._peers, address)
        self._writes = Streams("chunk writes", STREAMS_MAX, BUFFER_SIZE)
        self._reads = Streams("chunk reads", READS_MAX)
        self._ranges = ByteBudget("ranges being read", RANGES_MEMORY_MAX)
        self._sends_files = is_on(FastPath.SENDFILE)
        self.meter = ChunkMeter()
        self._small_stores: SmallStores | None = None
        if is_on(FastPath.GATHERED_STORES) and IS_POSSIBLE:
            self._small_stores = SmallStores(store, self._transfer, self._check_token, self.meter, address)
        self.door = LocalDoor(store, self._check_token, self._reads, self.meter, self._take_lent)
        self.tails = TailService(tail_folders, store, self._peers, self._check_token)

    @property
    def active_streams(self) -> int:
        gathered = 0 if self._small_stores is None else self._small_stores.lobby.served_count
        return self._writes.active + self._reads.active + gathered

    def close(self) -> None:
        """Close the connections to other servers; those to this one end with their listener."""
        self._peers.close()
        if self._small_stores is not None:
            self._small_stores.lobby.close()

    def handle(self, channel: Channel) -> None:
        """Answer requests until the peer goes, says nothing for too long, or cannot be understood any more."""
        early: Received | None = None  # a request that came in place of the rest of a refused chunk
        visitor, gathering = Visitor(channel), self._small_stores
        is_storing = False  # whether the last request was a small chunk: then others are likely to follow
        try:
            while True:
                if is_storing and gathering is not None:
                    gathering.lobby.wait(visitor, CONNECTION_IDLE_S)
                received = early or channel.receive(Deadline.after(CONNECTION_IDLE_S))
                early = None
                is_storing = isinstance(received.message, StoreChunk) and received.payload_size <= GATHERED_SIZE_MAX
                if isinstance(received.message, WriteChunk):
                    early = self._write(channel, received, received.message)
                elif isinstance(received.message, StoreChunk):
                    self._store_small(channel, received, received.message)
                elif isinstance(received.message, TAIL_MESSAGES):
                    self.meter.note_client()
                    self.tails.answer(channel, received)
                else:
                    self._answer(channel, received)
        except DeadlineExceeded as error:
            log.debug("connection_silent", peer=channel.address, reason=error.message)

    # --- small requests ---------------------------------------------------------------------------------

    def _answer(self, channel: Channel, received: Received) -> None:
        if received.payload_size:
            raise ProtocolError(f"{type(received.message).__name__} came with a payload outside of a chunk")
        try:
            if isinstance(received.message, ReadChunk):
                self._read(channel, received, received.message)
                return
            if isinstance(received.message, ReadRanges):
                self._read_ranges(channel, received, received.message)
                return
            reply = self._reply(received.message)
        except DfsError as error:
            if channel.is_broken:
                raise
            self.meter.refused.add(error.code)
            log.debug("request_refused", peer=channel.address, code=error.code, reason=error.message)
            reply = ErrorReply.of(error)
        self._send(channel, received, reply)

    @staticmethod
    def _send(channel: Channel, received: Received, reply: Message) -> None:
        channel.send(reply, Deadline.after(REPLY_TIMEOUT_S), request_id=received.request_id)

    def _reply(self, request: Message) -> Message:
        match request:
            case Ping():
                return Pong(self._name, "chunk", __version__, self._clock.wall_ms())
            case VerifyReplica():
                return self._verify(request)
            case _:
                raise ProtocolError(f"a chunk server does not answer {type(request).__name__}; is the address right?")

    def _check_token(self, token: bytes, handle: ChunkHandle, rights: Rights) -> None:
        if len(handle) != ID_SIZE:
            raise InvalidArgument(f"a chunk handle has {ID_SIZE} bytes, {len(handle)} were sent")
        check_token(self._key, token, handle, rights, self._clock.wall_ms())

    def _verify(self, request: VerifyReplica) -> VerifyReplicaReply:
        self._check_token(request.token, request.handle, Rights.READ)
        with self._reads.turn():
            is_good = self._store.verify(request.handle)
        log.info("replica_verified", handle=request.handle, is_good=is_good)
        return VerifyReplicaReply(is_good)

    # --- reading ----------------------------------------------------------------------------------------

    def _read(self, channel: Channel, received: Received, request: ReadChunk) -> None:
        """Send the reply and the bytes; raise only while nothing was sent, or with the channel broken."""
        self._check_token(request.token, request.handle, Rights.READ)
        deadline, begun_s = received.deadline(READ_TIME_MAX_S), time.perf_counter()
        with self._reads.turn(), self._store.open(request.handle) as opened:
            tail, start = opened.tail, opened.start + request.offset
            reply = ReadChunkReply(tail.length, checksums_of(tail, request.offset, request.length), tail.crc)
            try:
                if request.length <= SMALL_READ_SIZE:
                    data = read_bytes(opened, request.offset, request.length)
                    channel.send(reply, deadline, request_id=received.request_id, payload=data)
                else:
                    channel.send(reply, deadline, request_id=received.request_id, payload_size=request.length)
                    self._send_range(channel, opened.fd, start, request.length, deadline)
            except DiskFailed as error:
                self._suspect(request.handle, error)
                raise
        self.meter.read(request.length, begun_s)
        if not request.is_copy:
            self.meter.note_client()

    def _send_range(self, channel: Channel, fd: int, start: int, length: int, deadline: Deadline) -> None:
        if self._sends_files:
            channel.send_file(fd, start, length, deadline)
            return
        for offset in range(start, start + length, COPY_SIZE):
            channel.send_bytes(read_range(fd, offset, min(COPY_SIZE, start + length - offset)), deadline)

    def _read_ranges(self, channel: Channel, received: Received, request: ReadRanges) -> None:
        """Send the bytes of several ranges; raise only while nothing was sent, or with the channel broken."""
        self._check_token(request.token, request.handle, Rights.READ)
        size, begun_s = ranges_size(request.handle, request.offsets, request.lengths), time.perf_counter()
        with self._reads.turn(), self._ranges.lent(size):
            with self._store.open(request.handle) as opened:
                tail = opened.tail
                try:
                    data, checksums, edges = read_cut_ranges(opened, request.offsets, request.lengths)
                except DiskFailed as error:
                    self._suspect(request.handle, error)
                    raise
            reply = ReadRangesReply(tail.length, tail.crc, checksums, edges)
            channel.send(reply, received.deadline(READ_TIME_MAX_S), request_id=received.request_id, payload=data)
        self.meter.read(size, begun_s)
        self.meter.note_client()

    def _suspect(self, handle: ChunkHandle, error: DiskFailed) -> None:
        """Take a second look at a replica that could not be read: it judges the replica or its disk."""
        log.error("replica_unreadable", handle=handle, reason=error.message)
        self._store.verify(handle)

    # --- writing ----------------------------------------------------------------------------------------

    def _write(self, channel: Channel, received: Received, request: WriteChunk) -> Received | None:
        """Take a chunk and reply; return the next request when the writer has already sent it."""
        upstream = Upstream(channel, received)
        try:
            reply = self._take(upstream, request, BUFFER_SIZE)
        except DfsError as error:
            if upstream.is_lost:
                raise
            self._send(channel, received, ErrorReply.of(error))
            return upstream.skip_chunk(CONNECTION_IDLE_S)
        self._send(channel, received, reply)
        return None

    def _take(self, upstream: Upstream, request: WriteChunk, buffer_size: int) -> WriteChunkReply:
        """Take a chunk if it may come, in its turn, by at most `buffer_size` bytes at a time, and count it."""
        begun_s = time.perf_counter()
        try:
            if upstream.unread:
                raise ProtocolError("WriteChunk came with a payload")
            self._check_token(request.token, request.handle, Rights.WRITE)
            check_chain(request, self._address, REPLICATION_MAX)
            with self._writes.turn() as buffer:
                reply = self._transfer.run(upstream, request, buffer[:buffer_size])
        except DfsError as error:
            self.meter.refused.add(error.code)
            log.warning(
                "chunk_refused", handle=request.handle, peer=upstream.peer, code=error.code, reason=error.message
            )
            raise
        self.meter.wrote(upstream.size, begun_s)
        self.meter.note_client()
        log.debug("chunk_written", handle=request.handle, peer=upstream.peer, servers=len(reply.servers))
        return reply

    def _take_lent(self, upstream: LentUpstream, request: WriteChunk) -> WriteChunkReply:
        return self._take(upstream, request, LENT_BUFFER_SIZE)

    def _store_small(self, channel: Channel, received: Received, request: StoreChunk) -> None:
        """Take a chunk that came as one message, and reply; raise when the connection is of no use any more."""
        size = received.payload_size
        if not 0 < size <= STORE_SIZE_MAX:
            raise ProtocolError(f"a chunk of {size} bytes came in one message; 1 to {STORE_SIZE_MAX} bytes may")
        try:
            with self._writes.turn() as buffer:
                data = buffer[:size]
                channel.receive_into(data, Deadline.after(STALL_MAX_S))
                reply = self._stored(channel, received, request, data)
        except Overloaded as error:
            self.meter.refused.add(error.code)
            channel.skip_payload(size, Deadline.after(STALL_MAX_S))
            reply = ErrorReply.of(error)
        self._send(channel, received, reply)

    def _stored(self, channel: Channel, received: Received, request: StoreChunk, data: memoryview) -> Message:
        begun_s = time.perf_counter()
        try:
            self._check_token(request.token, request.handle, Rights.WRITE)
            check_chain(request, self._address, REPLICATION_MAX)
            reply = self._transfer.store(received, request, data)
        except DfsError as error:
            self.meter.refused.add(error.code)
            log.warning(
                "chunk_refused", handle=request.handle, peer=channel.address, code=error.code, reason=error.message
            )
            return ErrorReply.of(error)
        self.meter.wrote(len(data), begun_s)
        self.meter.note_client()
        return reply
