"""Fetches chunks from other chunk servers, as the leader ordered: re-replication by pull.

Owns: the conversation with a source, which source is asked next, and what of a failed copy is left behind (nothing).
Refuses to know: which orders wait (dfs.chunk.copy_queue), how the leader is told, and files.

The destination verifies every block and the whole chunk against the order; a source that sent bad bytes is made to look
at its replica, which is the way by which the leader hears of it. Source: GFS (SOSP 2003) section 4.3. Differs: chunks
are sealed, so a copy needs no lease and no version, its length and CRC say everything.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from dfs.checksum import CRC_SIZE, block_count
from dfs.chunk.copy_queue import CopyJob, CopyQueue
from dfs.chunk.peers import PeerConnections
from dfs.chunk.replicas import ChunkStore, ReplicaWriter
from dfs.chunk.token_bucket import TokenBucket
from dfs.clock import SYSTEM_CLOCK, Clock, Deadline
from dfs.errors import (
    ChunkCorrupt,
    ChunkExists,
    ChunkNotFound,
    DfsError,
    InvalidArgument,
    ProtocolError,
    StaleReplica,
    TokenExpired,
    TokenInvalid,
)
from dfs.ids import id_text
from dfs.log import get_logger
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel, expect
from dfs.net.messages import ReadChunk, ReadChunkReply, VerifyReplica, VerifyReplicaReply
from dfs.net.parts import CopyReplica

PIECE_SIZE = 1024 * 1024  # bytes asked for at a time
IN_FLIGHT_MAX = 4  # pieces that a source was asked for and has not sent: it never waits for our next word
STALL_S = 15.0  # for one piece; a source that is slower is as good as none
VERIFY_TIMEOUT_S = 30.0  # for a source to look at its replica again
SOURCES_MAX = 16  # of one order; the rest of a longer list is not asked
WAIT_S = 0.2  # how late a change of the rate limit may be noticed
YIELD_FACTOR = 1.0  # for so many times as a piece took, a copy that is not urgent rests while clients are served here
IDLE_WAIT_S = 1.0  # between two looks of a copier without work at `stop`; `close` wakes it at once

_WHOLE_ORDER = (TokenExpired, TokenInvalid)  # no other source will have it either: the leader has to sign anew

log = get_logger(__name__)


class Replicator:
    """Copies what the queue holds; `run` is the root of each of `COPIERS` threads, `run_once` for tests."""

    def __init__(
        self,
        store: ChunkStore,
        key: ClusterKey,
        own_address: str,
        *,
        is_serving_clients: Callable[[], bool] = lambda: False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.queue = CopyQueue(is_serving_clients)
        self._is_serving_clients = is_serving_clients
        self._store = store
        self._peers = PeerConnections(key)
        self._own_address = own_address
        self._clock = clock
        self._bucket = TokenBucket()
        self._lock = threading.Lock()  # of the bucket and the channels
        self._channels: set[Channel] = set()
        self._closing = threading.Event()

    def limit_rate(self, rate_max: int) -> None:
        """Fetch at most so many bytes per second for copies that are not urgent; 0 = no limit."""
        with self._lock:
            if rate_max != self._bucket.rate:
                self._bucket.set_rate(rate_max, self._clock.monotonic())

    # --- threads ------------------------------------------------------------------------------------------

    def run_once(self) -> int:
        """Carry out all that waits now; return how many chunks were copied."""
        count = 0
        while not self._closing.is_set() and (job := self.queue.take()) is not None:
            count += self._perform(job)
        return count

    def run(self, stop: threading.Event) -> None:
        """Serve as the root of a thread until `stop`."""
        while not (stop.is_set() or self._closing.is_set()):
            if (job := self.queue.take(IDLE_WAIT_S)) is not None:
                self._perform(job)

    def close(self) -> None:
        """Break off what is under way (nothing of it stays) and close the connections."""
        self._closing.set()
        self.queue.add(())  # wakes copiers without work
        with self._lock:
            for channel in self._channels:
                channel.interrupt()
        self._peers.close()

    # --- one order ----------------------------------------------------------------------------------------

    def _perform(self, job: CopyJob) -> bool:
        """Carry out one order and report how it ended; return whether a chunk was copied."""
        order = job.order
        try:
            was_copied = self._copy(job)
        except DfsError as error:
            log.warning("copy_failed", handle=order.handle, code=error.code, reason=error.message)
            self.queue.done(job, error.code, error.message)
            return False
        except Exception:
            log.exception("copy_failed", handle=order.handle)
            self.queue.done(job, "internal", "the copier met a bug; see the log of this chunk server")
            return False
        self.queue.done(job)
        return was_copied

    def _copy(self, job: CopyJob) -> bool:
        order = job.order
        if self._is_held(order):
            return False
        reasons: list[str] = []
        last: DfsError = ChunkNotFound("the order named no source but this server itself")
        for source in order.sources[:SOURCES_MAX]:
            if source == self._own_address:
                continue
            self._check_wanted(job)
            try:
                self._copy_from(source, job)
            except _NotStoredError as failure:
                raise failure.error from None
            except _WHOLE_ORDER:
                raise
            except DfsError as error:
                self._check_wanted(job)
                log.info("source_failed", handle=order.handle, source=source, code=error.code, reason=error.message)
                reasons.append(error.message if source in error.message else f"{source}: {error.message}")
                last = error
                if isinstance(error, (ChunkCorrupt, StaleReplica)):
                    self._accuse(source, order)
            else:
                log.info("chunk_copied", handle=order.handle, source=source, size=order.length, urgent=job.is_urgent)
                return True
        raise type(last)("; ".join(reasons) or last.message)

    def _is_held(self, order: CopyReplica) -> bool:
        """Whether the chunk is here already, which is told to the leader once more; raise when it is another one."""
        held = self._store.replica(order.handle)
        if held is None:
            return False
        self._store.changes.published(held)
        if (held.length, held.crc) != (order.length, order.crc):
            raise ChunkExists(
                f"this server holds chunk {id_text(order.handle)} with {held.length} bytes and CRC {held.crc:08x}, not "
                f"{order.length} and {order.crc:08x}; that replica has to go first"
            )
        log.info("copy_held_already", handle=order.handle)
        if self._store.replica(order.handle) is None:  # it went while we spoke of it: that must be heard last
            self._store.changes.removed(order.handle)
            raise ChunkNotFound(f"the replica of chunk {id_text(order.handle)} went away; order the copy again")
        return True

    def _check_wanted(self, job: CopyJob) -> None:
        if job.is_cancelled:
            raise ChunkNotFound("the chunk is to be deleted here; its copy was broken off")
        if self._closing.is_set():
            raise ChunkNotFound("this chunk server is being stopped; its copy was broken off")

    def _copy_from(self, source: str, job: CopyJob) -> None:
        with _stored_errors_marked():
            writer = self._store.create(job.order.handle)
        try:
            self._fetch(source, job, writer)
            self._check_wanted(job)
            writer.check(job.order.length, job.order.crc)
            self.queue.fetched(job)
            with _stored_errors_marked():
                writer.publish()
        finally:
            writer.discard()

    # --- one source ---------------------------------------------------------------------------------------

    def _fetch(self, source: str, job: CopyJob, writer: ReplicaWriter) -> None:
        """Bring all bytes of the chunk from one source into `writer`."""
        length = job.order.length
        buffer = memoryview(bytearray(min(PIECE_SIZE, length)))
        with self._channel(source) as channel:
            asked = got = 0
            while got < length:
                while asked < length and asked - got < IN_FLIGHT_MAX * PIECE_SIZE:
                    size = min(PIECE_SIZE, length - asked)
                    if not self._may_fetch(job, size, may_wait=asked == got):
                        break
                    request = ReadChunk(job.order.handle, job.order.token, asked, size, is_copy=True)
                    channel.send(request, Deadline.after(STALL_S))
                    asked += size
                piece = buffer[: min(PIECE_SIZE, length - got)]
                begun_s = self._clock.monotonic()
                self._receive_piece(channel, job.order, piece, writer)
                got += len(piece)
                self._check_wanted(job)
                if got < length and not job.is_urgent and self._is_serving_clients():
                    self._closing.wait(min(WAIT_S, YIELD_FACTOR * (self._clock.monotonic() - begun_s)))

    def _may_fetch(self, job: CopyJob, size: int, *, may_wait: bool) -> bool:
        """Whether the rate limit lets `size` bytes come now; with `may_wait` return only when it does."""
        while not job.is_urgent:
            with self._lock:
                pause_s = self._bucket.take(size, self._clock.monotonic())
            if not pause_s:
                return True
            if not may_wait:
                return False
            self._closing.wait(min(pause_s, WAIT_S))
            self._check_wanted(job)
        return True

    @staticmethod
    def _receive_piece(channel: Channel, order: CopyReplica, piece: memoryview, writer: ReplicaWriter) -> None:
        deadline = Deadline.after(STALL_S)
        received = channel.receive(deadline)
        try:
            reply = expect(received.message, ReadChunkReply)
        except InvalidArgument as error:  # the range is right for a chunk of the ordered length: it has another one
            raise StaleReplica(f"{channel.address} holds another chunk than ordered: {error.message}") from None
        if (reply.chunk_length, reply.chunk_crc) != (order.length, order.crc):
            raise StaleReplica(
                f"the replica of chunk {id_text(order.handle)} at {channel.address} has {reply.chunk_length} bytes and "
                f"CRC {reply.chunk_crc:08x}, the chunk map says {order.length} and {order.crc:08x}"
            )
        if received.payload_size != len(piece) or len(reply.checksums) != block_count(len(piece)) * CRC_SIZE:
            raise ProtocolError(f"{channel.address} answered a read of {len(piece)} bytes with {received.payload_size}")
        channel.receive_into(piece, deadline)
        with _stored_errors_marked():
            writer.write(piece, reply.checksums)

    @contextlib.contextmanager
    def _channel(self, source: str) -> Iterator[Channel]:
        """Lend a connection; it is kept for the next copy only when it stands between two requests."""
        channel = self._peers.take(source, Deadline.after(STALL_S))
        with self._lock:
            self._channels.add(channel)
        if self._closing.is_set():  # `close` came too early to interrupt this one
            channel.interrupt()
        is_clean = False
        try:
            yield channel
            is_clean = True
        finally:
            with self._lock:
                self._channels.discard(channel)
            if is_clean and not self._closing.is_set():
                self._peers.give(channel)
            else:
                channel.close()

    def _accuse(self, source: str, order: CopyReplica) -> None:
        """Make a source look at its replica; a bad one goes to its quarantine, and the leader hears of that."""
        deadline = Deadline.after(VERIFY_TIMEOUT_S)
        try:
            with self._channel(source) as channel:
                answer = channel.call(VerifyReplica(order.handle, order.token), deadline)
                reply = expect(answer, VerifyReplicaReply)
        except DfsError as error:
            log.warning("source_not_verified", handle=order.handle, source=source, reason=error.message)
        else:
            log.warning("source_verified", handle=order.handle, source=source, is_good=reply.is_good)


class _NotStoredError(Exception):
    """This server could not store the copy: no other source changes that."""

    def __init__(self, error: DfsError) -> None:
        super().__init__(error.message)
        self.error = error


@contextlib.contextmanager
def _stored_errors_marked() -> Iterator[None]:
    """Tell this server's own failures from those that a source sends under the same names."""
    try:
        yield
    except ChunkCorrupt:
        raise  # bad bytes are the source's doing
    except DfsError as error:
        raise _NotStoredError(error) from error
