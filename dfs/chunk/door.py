"""The local door of a chunk server: readers on the same machine are given the open file of a replica.

Owns: which replica is handed over, and under which conditions. Refuses to know: how a descriptor travels
(dfs.net.local), and what a reader does with it (it verifies every block, as always).

A sealed chunk never changes, so what the descriptor shows is right for ever, also when the replica was deleted; only
its space stays taken until the reader lets go. A replica in a volume is not handed over: there are others' bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from dfs.chunk.meter import ChunkMeter
from dfs.chunk.replicas import ChunkStore
from dfs.chunk.streams import Streams
from dfs.clock import Deadline
from dfs.errors import DeadlineExceeded, DfsError, DiskFailed, InvalidArgument, ProtocolError
from dfs.ids import ChunkHandle, id_text
from dfs.log import get_logger
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, Received
from dfs.net.messages import ErrorReply, OpenReplica, OpenReplicaReply

DOOR_IDLE_S = 300.0  # a reader that asks nothing for so long is let out
HAND_OVER_TIMEOUT_S = 10.0  # for it to take what it asked for

log = get_logger(__name__)


class LocalDoor:
    """Answers every connection of one door; `handle` runs in one thread per connection."""

    def __init__(
        self,
        store: ChunkStore,
        check_token: Callable[[bytes, ChunkHandle, Rights], None],
        reads: Streams,
        meter: ChunkMeter,
    ) -> None:
        """`check_token` raises for a token that does not allow it; `reads` gives turns."""
        self._store = store
        self._check_token = check_token
        self._reads = reads
        self._meter = meter

    def handle(self, channel: Channel) -> None:
        """Answer requests until the peer goes, says nothing for too long, or says something else."""
        try:
            while True:
                received = channel.receive(Deadline.after(DOOR_IDLE_S))
                if not isinstance(received.message, OpenReplica) or received.payload_size:
                    raise ProtocolError(f"a local door does not answer {type(received.message).__name__}")
                try:
                    self._hand_over(channel, received, received.message)
                except DfsError as error:
                    if channel.is_broken:
                        raise
                    self._meter.refused.add(error.code)
                    log.debug("not_handed_over", peer=channel.address, code=error.code, reason=error.message)
                    deadline = Deadline.after(HAND_OVER_TIMEOUT_S)
                    channel.send(ErrorReply.of(error), deadline, request_id=received.request_id)
        except DeadlineExceeded as error:
            log.debug("door_silent", peer=channel.address, reason=error.message)

    def _hand_over(self, channel: Channel, received: Received, request: OpenReplica) -> None:
        self._check_token(request.token, request.handle, Rights.READ)
        with self._reads.turn(), self._store.open(request.handle) as opened:
            if not opened.is_alone:
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


def _opened_again(fd: int) -> int:
    """Return an open file of its own for the same replica, for reading only.

    Whoever shares an open file shares its position and flags (a reader could set O_DIRECT on ours), and ours may be
    one that can write.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DiskFailed(f"a replica cannot be opened once more: {error.strerror}") from None
