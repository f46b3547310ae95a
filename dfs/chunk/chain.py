"""One chunk on its way through this server: from the upstream connection into the store and onward down the chain.

Owns: the order of the steps of a chain write, who is blamed for a failure, and what is left behind (nothing).
Refuses to know: files (the store writes), connection pools and request loops.

Source: GFS (SOSP 2003) section 3.2, data flow: each server forwards while it receives. Differs: the chain also carries
the commit; each server acknowledges only when itself and all after it have the chunk on disk. Every piece is sent on
before it is verified here (cut-through); the next server verifies for itself.

A chain of n servers divides the writer's patience: with k servers after this one, this one waits for them k/(k+1) of
it. So the server next to a silent one gives up first and names it, and its word arrives in time.
"""

from __future__ import annotations

import contextlib

import msgspec

from dfs.checksum import CRC_SIZE, Buffer, block_count
from dfs.chunk.peers import PeerConnections
from dfs.chunk.replicas import ChunkStore, ReplicaWriter
from dfs.clock import Deadline
from dfs.errors import (
    ChainBroken,
    ChunkExists,
    DfsError,
    DiskFailed,
    DiskFull,
    InvalidArgument,
    LimitExceeded,
    ProtocolError,
    TokenExpired,
    TokenInvalid,
)
from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.net.blocking import Channel, Received
from dfs.net.messages import FinishChunk, StoreChunk, WriteChunk, WriteChunkReply, WriteData

WRITE_PIECE_SIZE_MAX = 4 * 1024 * 1024  # bytes of payload in one WriteData
PATIENCE_MAX_S = 60.0  # longest wait for the rest of the chain, whatever the writer says
STALL_MAX_S = 60.0  # longest wait for a silent writer: a stream is a scarce thing
STALL_STEP_S = 2.0  # less of it for each server behind this one: who is nearer to the writer speaks first
WATCH_S = 0.1  # how late a refusal of the rest of the chain may be noticed while the writer is silent
REFUSAL_TIMEOUT_S = 5.0  # for the whole of a refusal whose first bytes are here

Opening = WriteChunk | StoreChunk
_NOW = Deadline(0.0)  # has passed: look, do not wait
_ABOUT_THE_CHUNK = (ChunkExists, TokenExpired, TokenInvalid, InvalidArgument, LimitExceeded)  # no server's fault


class Upstream:
    """The connection that a chunk comes from. It counts what is unread, so that a refused chunk can be skipped."""

    def __init__(self, channel: Channel, opening: Received) -> None:
        self.is_lost = False
        self.size = 0  # bytes of the chunk that came
        self.patience_s = _patience_s(opening)
        self.stall_s = STALL_MAX_S
        self._channel = channel
        self._unread = opening.payload_size

    @property
    def peer(self) -> str:
        return self._channel.address

    @property
    def unread(self) -> int:
        """Bytes of the latest message's payload that were not taken yet."""
        return self._unread

    def next(self, onward: Onward | None) -> Received:
        """Return the next message of the stream; raise as soon as the rest of the chain refuses the chunk."""
        stalled = Deadline.after(self.stall_s)
        if onward is not None:
            while not self._channel.wait_readable(stalled.no_later_than(WATCH_S)) and not stalled.has_passed:
                onward.check()
        return self._receive(stalled)

    def _receive(self, deadline: Deadline) -> Received:
        try:
            received = self._channel.receive(deadline)
        except DfsError:
            self.is_lost = True
            raise
        self._unread = received.payload_size
        self.patience_s = _patience_s(received)
        return received

    def fill(self, buffer: memoryview) -> None:
        """Fill `buffer` with the next bytes of the payload."""
        try:
            self._fill(buffer)
        except DfsError:
            self.is_lost = True
            raise
        self.size += len(buffer)

    def _fill(self, buffer: memoryview) -> None:
        self._channel.receive_into(buffer, Deadline.after(self.stall_s))
        self._unread -= len(buffer)

    def taken(self) -> None:
        """Hear that all bytes of a piece were taken and verified; raise when that was to be told and could not."""

    def skip_chunk(self, idle_s: float) -> Received | None:
        """Throw away what is left of a refused chunk. Return the message after it when the writer gave up early, and
        None when its FinishChunk came."""
        while True:
            if self._unread:
                self._channel.skip_payload(self._unread, Deadline.after(self.stall_s))
            received = self._receive(Deadline.after(idle_s))
            if isinstance(received.message, FinishChunk):
                return None
            if not isinstance(received.message, WriteData):
                return received


class Onward:
    """The rest of the chain. Every failure of it comes out as `ChainBroken` that names whom to leave out next time."""

    def __init__(self, peers: PeerConnections, opening: Opening, patience_s: float, data: Buffer | None = None) -> None:
        """Connect to the first server of the rest and open the chunk there; a `StoreChunk` takes its `data` along."""
        self._peers = peers
        self._address = opening.chain[0]
        self._share = len(opening.chain) / (len(opening.chain) + 1)
        self._channel: Channel | None = None
        deadline = self.deadline(patience_s)
        try:
            self._channel = peers.take(self._address, deadline)
            self._channel.send(msgspec.structs.replace(opening, chain=opening.chain[1:]), deadline, payload=data)
        except DfsError as error:
            raise self._broken(error) from None

    def deadline(self, patience_s: float) -> Deadline:
        """Return when to give the rest up, so that a writer of that patience still hears why."""
        return Deadline.after(patience_s * self._share)

    def _broken(self, error: DfsError) -> DfsError:
        """Close the connection and return the error that goes upstream."""
        self.close()
        if isinstance(error, _ABOUT_THE_CHUNK):
            return error
        if isinstance(error, ChainBroken) and error.details.get("failed"):
            return error
        failed = error.details.get("failed") or self._address
        return ChainBroken(f"chunk server {failed} failed in the chain: {error.message}", failed=failed)

    @property
    def _open(self) -> Channel:
        assert self._channel is not None, "used after it was closed"
        return self._channel

    def check(self) -> None:
        """Raise when the rest of the chain has refused the chunk or gone."""
        try:
            if self._open.wait_readable(_NOW):
                self._open.expect(self._open.receive(Deadline.after(REFUSAL_TIMEOUT_S)).message, WriteChunkReply)
                raise ProtocolError(f"{self._address} acknowledged a chunk that is not finished")
        except DfsError as error:
            raise self._broken(error) from None

    def announce(self, piece: WriteData, payload_size: int, deadline: Deadline) -> None:
        """Send a message whose payload follows by `send_bytes`; raise when the rest has refused the chunk."""
        self.check()
        try:
            self._open.send(piece, deadline, payload_size=payload_size)
        except DfsError as error:
            raise self._broken(error) from None

    def send_bytes(self, data: memoryview, deadline: Deadline) -> None:
        try:
            self._open.send_bytes(data, deadline)
        except DfsError as error:
            raise self._broken(error) from None

    def finish(self, finish: FinishChunk, deadline: Deadline) -> None:
        """Let the rest make the chunk durable; `wait` tells how that went."""
        try:
            self._open.send(finish, deadline)
        except DfsError as error:
            raise self._broken(error) from None

    def wait(self, deadline: Deadline) -> tuple[ServerId, ...]:
        """Return the servers of the rest once all of them have the chunk on disk."""
        try:
            if deadline.has_passed and self._open.wait_readable(_NOW):  # we were slow ourselves; the rest has answered
                deadline = Deadline.after(REFUSAL_TIMEOUT_S)
            reply = self._open.expect(self._open.receive(deadline).message, WriteChunkReply)
        except DfsError as error:
            raise self._broken(error) from None
        self._peers.give(self._open)
        self._channel = None
        return reply.servers

    def close(self) -> None:
        """Break off; the servers after this one discard the chunk. After `wait` it does nothing."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class ChunkTransfer:
    """Takes one chunk from upstream, after its WriteChunk was accepted."""

    def __init__(self, store: ChunkStore, peers: PeerConnections, own_address: str) -> None:
        self._store = store
        self._peers = peers
        self._own_address = own_address

    def run(self, upstream: Upstream, opening: WriteChunk, buffer: memoryview) -> WriteChunkReply:
        """Return the reply for upstream, or raise with nothing left behind here.

        `upstream.is_lost` tells afterwards whether the error can still be told to anybody.
        """
        try:
            writer = self._store.create(opening.handle)
        except (DiskFull, DiskFailed) as error:
            raise self.blame_here(error) from None
        onward: Onward | None = None
        upstream.stall_s = STALL_MAX_S - STALL_STEP_S * len(opening.chain)
        try:
            if opening.chain:
                onward = Onward(self._peers, opening, upstream.patience_s)
            finish = self._receive_data(upstream, writer, onward, buffer)
            return self._finish(finish, upstream.patience_s, opening, writer, onward)
        except (DiskFull, DiskFailed) as error:
            raise self.blame_here(error) from None
        finally:
            writer.discard()
            if onward is not None:
                onward.close()

    def store(self, received: Received, request: StoreChunk, data: memoryview) -> WriteChunkReply:
        """Store a small chunk of which all bytes are here: pass them on first, so that all servers sync at once."""
        patience_s = _patience_s(received)
        onward: Onward | None = None
        writer = self.begin(request, data)
        try:
            if not request.chain:
                writer.publish()
                return WriteChunkReply((self._store.server_id,))
            onward = Onward(self._peers, request, patience_s, data)
            return self._publish(onward, onward.deadline(patience_s), request.handle, writer)
        except (DiskFull, DiskFailed) as error:
            raise self.blame_here(error) from None
        finally:
            writer.discard()
            if onward is not None:
                onward.close()

    def begin(self, request: StoreChunk, data: memoryview) -> ReplicaWriter:
        """Return the replica of a small chunk of which all bytes are here, verified, to be published or discarded."""
        try:
            writer = self._store.create(request.handle)
            try:
                writer.write(data, request.checksums)
                writer.check(len(data), request.crc)
            except BaseException:
                writer.discard()
                raise
        except (DiskFull, DiskFailed) as error:
            raise self.blame_here(error) from None
        return writer

    def blame_here(self, error: DfsError) -> DfsError:
        """Return an error that names this server as the one to be left out next time."""
        error.details.setdefault("failed", self._own_address)
        return error

    def _receive_data(
        self, upstream: Upstream, writer: ReplicaWriter, onward: Onward | None, buffer: memoryview
    ) -> FinishChunk:
        """Move all pieces; return the message that ends the chunk."""
        while True:
            received = upstream.next(onward)
            if isinstance(received.message, FinishChunk):
                return received.message
            self._move_piece(received, upstream, writer, onward, buffer)

    @staticmethod
    def _move_piece(
        received: Received, upstream: Upstream, writer: ReplicaWriter, onward: Onward | None, buffer: memoryview
    ) -> None:
        piece, size = received.message, received.payload_size
        if not isinstance(piece, WriteData):
            upstream.is_lost = True  # what follows cannot be understood
            raise ProtocolError(f"{type(piece).__name__} came in the middle of a chunk")
        if not 0 < size <= WRITE_PIECE_SIZE_MAX:
            raise LimitExceeded(f"a piece of {size} bytes was sent; 1 to {WRITE_PIECE_SIZE_MAX} are allowed")
        if len(piece.checksums) != block_count(size) * CRC_SIZE:
            raise InvalidArgument(f"{len(piece.checksums)} bytes of checksums came with {size} bytes of data")
        if onward is not None:
            onward.announce(piece, size, onward.deadline(upstream.patience_s))
        for start in range(0, size, len(buffer)):
            part = buffer[: min(len(buffer), size - start)]
            upstream.fill(part)
            if onward is not None:
                onward.send_bytes(part, onward.deadline(upstream.patience_s))
            first = block_count(start) * CRC_SIZE
            writer.write(part, piece.checksums[first : first + block_count(len(part)) * CRC_SIZE])
        upstream.taken()

    def _finish(
        self,
        finish: FinishChunk,
        patience_s: float,
        opening: WriteChunk,
        writer: ReplicaWriter,
        onward: Onward | None,
    ) -> WriteChunkReply:
        """Make the chunk durable here while the rest of the chain does the same; then hear the rest."""
        writer.check(finish.length, finish.crc)
        if onward is None:
            writer.publish()
            return WriteChunkReply((self._store.server_id,))
        deadline = onward.deadline(patience_s)  # counted from here: the writer waits since it sent its word
        onward.finish(finish, deadline)
        return self._publish(onward, deadline, opening.handle, writer)

    def _publish(
        self, onward: Onward, deadline: Deadline, handle: ChunkHandle, writer: ReplicaWriter
    ) -> WriteChunkReply:
        writer.publish()
        try:
            return WriteChunkReply((self._store.server_id, *onward.wait(deadline)))
        except DfsError:
            with contextlib.suppress(DfsError):  # then it is an orphan, which the masters have collected
                self._store.delete(handle)  # its writer will hear of the failure and use another handle
            raise


def _patience_s(received: Received) -> float:
    """Return how long the sender of a message waits for what follows from it."""
    return min(received.timeout_ms / 1000, PATIENCE_MAX_S) if received.timeout_ms else PATIENCE_MAX_S


def check_chain(opening: Opening, own_address: str, chain_max: int) -> None:
    """Raise unless `opening` names a chain that can be."""
    addresses = (own_address, *opening.chain)
    if len(addresses) > chain_max:
        raise LimitExceeded(f"a chain of {len(addresses)} servers is over the limit of {chain_max}")
    if len(set(addresses)) != len(addresses):
        raise InvalidArgument(f"chunk {id_text(opening.handle)}: a server stands twice in its chain {addresses}")
