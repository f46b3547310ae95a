"""A chunk on its way through this server whose bytes stand in memory that its writer lent.

Owns: where the bytes of each piece are, and the word that they were taken. Refuses to know: what is done with a chunk
(dfs.chunk.chain does the same as with one from the network), and descriptors (dfs.net.lent_memory).
"""

from __future__ import annotations

from dfs.chunk.chain import Upstream
from dfs.clock import Deadline
from dfs.errors import DfsError, ProtocolError
from dfs.net.blocking import Channel, Received
from dfs.net.lent_memory import BorrowedMemory
from dfs.net.messages import FinishChunk, WriteData, WriteLent, WriteLentReply


class LentUpstream(Upstream):
    """The writer at the local door. Each piece is copied out of its memory before it is verified."""

    def __init__(self, channel: Channel, opening: Received, memory: BorrowedMemory) -> None:
        super().__init__(channel, opening)
        self._memory = memory
        self._position = 0  # of the next byte, in the memory
        self._request_id = 0

    def _receive(self, deadline: Deadline) -> Received:
        """Return a piece as if its bytes came behind it."""
        received = super()._receive(deadline)
        piece = received.message
        if isinstance(piece, FinishChunk) and not received.payload_size:
            return received
        if not isinstance(piece, WriteLent) or received.payload_size:
            self.is_lost = True
            raise ProtocolError(f"{type(piece).__name__} came in the middle of a chunk in lent memory")
        self._memory.check_range(piece.offset, piece.size)
        self._position, self._request_id = piece.offset, received.request_id
        return received._replace(message=WriteData(piece.checksums), payload_size=piece.size)

    def _fill(self, buffer: memoryview) -> None:
        self._memory.read(self._position, buffer)
        self._position += len(buffer)

    def taken(self) -> None:
        try:
            deadline = Deadline.after(self.stall_s)
            self._channel.send(WriteLentReply(), deadline, request_id=self._request_id)
        except DfsError:
            self.is_lost = True
            raise
