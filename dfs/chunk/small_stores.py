"""The small chunks of all connections, taken by few threads and made durable together.

Owns: which requests are taken in the lobby, and the word that each writer gets. Refuses to know: who waits there
(dfs.chunk.lobby), what makes a chunk acceptable (`ChunkTransfer.begin`), and how it becomes durable (the store).

A chunk that came as one message, for this server alone, is the whole talk: nothing of it needs a thread of its own. All
that speak at the same time are verified one after the other, put into their volumes with one write and one sync, and
answered by the thread that waited for the disk. Everything else is left to the connection's own thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from dfs.chunk.chain import ChunkTransfer, check_chain
from dfs.chunk.lobby import Lobby, Visitor
from dfs.chunk.meter import ChunkMeter
from dfs.chunk.replicas import ChunkStore, Done, ReplicaWriter
from dfs.clock import Deadline
from dfs.errors import DfsError, DiskFailed, DiskFull, InternalError
from dfs.ids import ChunkHandle
from dfs.log import get_logger
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, Received
from dfs.net.messages import REPLICATION_MAX, ErrorReply, Message, StoreChunk, WriteChunkReply
from dfs.net.stream import READ_AHEAD_SIZE

GATHERED_SIZE_MAX = READ_AHEAD_SIZE  # bytes of a message that comes in one receive
PATIENCE_S = 0.005  # for a sync that is under way; a slower disk is not waited for by who could do other things
REPLY_WAIT_S = 0.25  # for a writer to take its word, which fits into any socket: others wait for the same thread

log = get_logger(__name__)


class SmallStores:
    """What the threads of a lobby do for its visitors."""

    def __init__(
        self,
        store: ChunkStore,
        transfer: ChunkTransfer,
        check_token: Callable[[bytes, ChunkHandle, Rights], None],
        meter: ChunkMeter,
        address: str,
    ) -> None:
        self._store = store
        self._transfer = transfer
        self._check_token = check_token
        self._meter = meter
        self._address = address
        # At the worst one thread waits for the turn of a disk, one for the disk, and one is left for whoever speaks.
        # With one disk, nothing is gained by a thread that verifies while another one waits for it: it gathers instead.
        # With several, what is taken in one go must be for one disk, or one would wait for the other.
        disks = len(store.disks())
        if disks > 1:
            self.lobby = Lobby(self.look, self.serve, threads=2 * disks + 1, visitors_max=1)
        else:
            self.lobby = Lobby(self.look, self.serve, threads=3, patience_s=PATIENCE_S)

    def look(self, visitor: Visitor) -> bool:
        """Say whether a visitor brought a small chunk; else see to it that it stays, or that its own thread goes on."""
        visitor.brought = visitor.channel.whole(StoreChunk, _is_for_here)
        if visitor.brought is not None:
            return True
        if visitor.channel.has_unread:
            self.lobby.leave(visitor)
        else:  # it was nothing
            self.lobby.stay(visitor)
        return False

    def serve(self, visitors: Sequence[Visitor]) -> None:
        """Take the small chunks of those who brought one."""
        begun: list[tuple[ReplicaWriter, Done]] = []
        for visitor in visitors:
            self._take(visitor, begun)
        if begun:
            self._store.publish_all(begun)

    def _take(self, visitor: Visitor, begun: list[tuple[ReplicaWriter, Done]]) -> None:
        """Verify a chunk; refuse it, or add it to those that are to be published."""
        request, received, data = visitor.brought
        end = partial(self._end, visitor, received, request, time.perf_counter())
        try:
            self._check_token(request.token, request.handle, Rights.WRITE)
            check_chain(request, self._address, REPLICATION_MAX)
            writer = self._transfer.begin(request, data)
        except DfsError as error:
            end(error)
        except Exception as error:  # its writer waits for a word, and the others for this thread
            log.exception("small_store_failed", handle=request.handle)
            end(InternalError(f"a chunk was not taken: {type(error).__name__}: {error}; this is a bug of dfs"))
        else:
            begun.append((writer, end))

    def _end(
        self, visitor: Visitor, received: Received, request: StoreChunk, begun_s: float, error: DfsError | None
    ) -> None:
        """Tell a writer how it went. Raises nothing: this thread has others of the same commit to tell."""
        try:
            self._tell(visitor.channel, received, request, begun_s, error)
        except DfsError as failure:
            self.lobby.leave(visitor, failure)
        except Exception as failure:
            log.exception("small_store_reply_failed", handle=request.handle)
            self.lobby.leave(visitor, InternalError(f"no reply was sent: {failure}; this is a bug of dfs"))
        else:
            self.lobby.stay(visitor)

    def _tell(
        self, channel: Channel, received: Received, request: StoreChunk, begun_s: float, error: DfsError | None
    ) -> None:
        reply: Message = WriteChunkReply((self._store.server_id,))
        if error is None:
            self._meter.wrote(received.payload_size, begun_s)
            self._meter.note_client()
        else:
            if isinstance(error, DiskFull | DiskFailed):
                self._transfer.blame_here(error)
            self._meter.refused.add(error.code)
            reason = error.message
            log.warning("chunk_refused", handle=request.handle, peer=channel.address, code=error.code, reason=reason)
            reply = ErrorReply.of(error)
        channel.send(reply, Deadline.after(REPLY_WAIT_S), request_id=received.request_id)


def _is_for_here(request: StoreChunk, size: int) -> bool:
    """Whether a chunk is for this server alone; whoever passes one on has to wait for others."""
    return not request.chain and size > 0
