"""The local door of a chunk server: processes of its machine read open files, and lend memory to be written from.

Owns: which replica is handed over, which memory is borrowed, and under which conditions. Refuses to know: how a
descriptor travels (dfs.net.local), what a reader does with it (it verifies every block, as always), and what becomes of
a chunk (`take_chunk` has it admitted and stored as one from the network, docs/adr/0027).

A sealed chunk never changes, so what the descriptor shows is right for ever, also when the replica was deleted; only
its space stays taken until the reader lets go. A small replica is in a volume, with others: the reader is told where,
and handed the volume once (docs/adr/0033).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from dfs.chunk.lent import LentUpstream
from dfs.chunk.meter import ChunkMeter
from dfs.chunk.replicas import ChunkStore
from dfs.chunk.streams import Streams
from dfs.clock import Deadline
from dfs.errors import DeadlineExceeded, DfsError, DiskFailed, InvalidArgument, ProtocolError
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ChunkHandle, id_text
from dfs.log import get_logger
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, Received
from dfs.net.lent_memory import IS_POSSIBLE, BorrowedMemory
from dfs.net.messages import (
    LENT_SIZE_MAX,
    STORE_SIZE_MAX,
    VOLUMES_HELD_MAX,
    ErrorReply,
    LendMemory,
    LendMemoryReply,
    OpenRecord,
    OpenRecordReply,
    OpenReplica,
    OpenReplicaReply,
    WriteChunk,
    WriteChunkReply,
)

DOOR_IDLE_S = 300.0  # a peer that asks nothing for so long is let out
HAND_OVER_TIMEOUT_S = 10.0  # for it to take what it asked for
REPLY_TIMEOUT_S = 30.0  # for a writer to take the word on its chunk

TakeChunk = Callable[[LentUpstream, WriteChunk], WriteChunkReply]  # raises what is to be told to the writer

log = get_logger(__name__)


class LocalDoor:
    """Answers every connection of one door; `handle` runs in one thread per connection."""

    def __init__(
        self,
        store: ChunkStore,
        check_token: Callable[[bytes, ChunkHandle, Rights], None],
        reads: Streams,
        meter: ChunkMeter,
        take_chunk: TakeChunk,
    ) -> None:
        """`check_token` raises for a token that does not allow it; `reads` gives turns."""
        self._store = store
        self._check_token = check_token
        self._reads = reads
        self._meter = meter
        self._take_chunk = take_chunk
        self._hands_over = is_on(FastPath.LOCAL_READS)
        self._shows_volumes = self._hands_over and is_on(FastPath.LOCAL_VOLUMES)
        self._borrows = IS_POSSIBLE and is_on(FastPath.MEMORY_DOOR)

    def handle(self, channel: Channel) -> None:
        """Answer requests until the peer goes, says nothing for too long, or says something else."""
        memory: BorrowedMemory | None = None
        try:
            while True:
                received = channel.receive(Deadline.after(DOOR_IDLE_S))
                message = received.message
                if isinstance(message, OpenReplica | OpenRecord) and not received.payload_size:
                    self._answer_reader(channel, received, message)
                elif isinstance(message, LendMemory) and not received.payload_size and memory is None:
                    memory = self._borrow(channel, received, message)
                elif isinstance(message, WriteChunk) and not received.payload_size and memory is not None:
                    if not self._write(channel, received, message, memory):
                        return
                else:
                    raise ProtocolError(f"a local door does not answer {type(message).__name__} here")
        except DeadlineExceeded as error:
            log.debug("door_silent", peer=channel.address, reason=error.message)
        finally:
            if memory is not None:
                memory.close()

    # --- writing ----------------------------------------------------------------------------------------

    def _borrow(self, channel: Channel, received: Received, request: LendMemory) -> BorrowedMemory | None:
        """Take a peer's memory, or tell why not."""
        fd = channel.take_descriptor()
        try:
            if not self._borrows:
                os.close(fd)
                raise InvalidArgument("this chunk server takes no chunks from memory; write over the network")
            memory = BorrowedMemory(fd, request.size, LENT_SIZE_MAX)
        except DfsError as error:
            self._refuse(channel, received, error, "memory_not_borrowed")
            return None
        try:
            channel.send(LendMemoryReply(), Deadline.after(HAND_OVER_TIMEOUT_S), request_id=received.request_id)
        except BaseException:
            memory.close()
            raise
        return memory

    def _write(self, channel: Channel, received: Received, request: WriteChunk, memory: BorrowedMemory) -> bool:
        """Take a chunk and reply; False when it was refused: its writer may have said more, and enters anew."""
        upstream = LentUpstream(channel, received, memory)
        try:
            reply = self._take_chunk(upstream, request)
        except DfsError as error:
            if upstream.is_lost:
                raise
            channel.send(ErrorReply.of(error), Deadline.after(REPLY_TIMEOUT_S), request_id=received.request_id)
            return False
        self._meter.bytes.add("lent", upstream.size)
        channel.send(reply, Deadline.after(REPLY_TIMEOUT_S), request_id=received.request_id)
        return True

    def _refuse(self, channel: Channel, received: Received, error: DfsError, event: str) -> None:
        if channel.is_broken:
            raise error
        self._meter.refused.add(error.code)
        log.debug(event, peer=channel.address, code=error.code, reason=error.message)
        channel.send(ErrorReply.of(error), Deadline.after(HAND_OVER_TIMEOUT_S), request_id=received.request_id)

    # --- reading ----------------------------------------------------------------------------------------

    def _answer_reader(self, channel: Channel, received: Received, request: OpenReplica | OpenRecord) -> None:
        try:
            if isinstance(request, OpenRecord):
                self._show_record(channel, received, request)
            else:
                self._hand_over(channel, received, request)
        except DfsError as error:
            self._refuse(channel, received, error, "not_handed_over")

    def _hand_over(self, channel: Channel, received: Received, request: OpenReplica) -> None:
        if not self._hands_over:
            raise InvalidArgument("this chunk server hands no open files over; read over the network")
        self._check_token(request.token, request.handle, Rights.READ)
        with self._reads.turn(), self._store.open(request.handle) as opened:
            if opened.volume:
                raise InvalidArgument(
                    f"chunk {id_text(request.handle)} shares a file with others; it is read over the network"
                )
            tail, fd = opened.tail, _opened_again(opened.fd)
        try:
            reply = OpenReplicaReply(tail.length, tail.crc, tail.checksums)
            channel.send_descriptor(reply, fd, Deadline.after(HAND_OVER_TIMEOUT_S), request_id=received.request_id)
        finally:
            os.close(fd)
        self._meter.handed_over.add("replicas")
        self._meter.note_client()

    def _show_record(self, channel: Channel, received: Received, request: OpenRecord) -> None:
        """Tell where a small replica is; hand its file over to a reader that has not got it."""
        if not self._shows_volumes:
            raise InvalidArgument("this chunk server hands no volumes over; read over the network")
        if len(request.held) > VOLUMES_HELD_MAX:
            raise InvalidArgument(f"{len(request.held)} volumes are named as held; {VOLUMES_HELD_MAX} can be")
        self._check_token(request.token, request.handle, Rights.READ)
        fd: int | None = None
        with self._reads.turn(), self._store.open(request.handle) as opened:
            tail, start, volume = opened.tail, opened.start, opened.volume or request.handle
            if tail.length > STORE_SIZE_MAX:
                raise InvalidArgument(f"chunk {id_text(request.handle)} is a large one; ask for its open file")
            if volume not in request.held:
                fd = _opened_again(opened.fd)
        reply = OpenRecordReply(tail.length, tail.crc, tail.checksums, volume, start, fd is not None)
        deadline = Deadline.after(HAND_OVER_TIMEOUT_S)
        if fd is None:
            channel.send(reply, deadline, request_id=received.request_id)
        else:
            self._meter.handed_over.add("volumes")
            try:
                channel.send_descriptor(reply, fd, deadline, request_id=received.request_id)
            finally:
                os.close(fd)
        self._meter.note_client()


def _opened_again(fd: int) -> int:
    """Return an open file of its own for the same replica, for reading only.

    Whoever shares an open file shares its position and flags (a reader could set O_DIRECT on ours), and ours may be
    one that can write.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DiskFailed(f"a replica cannot be opened once more: {error.strerror}") from None
