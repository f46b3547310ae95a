"""The pieces of a stream that lie in this machine's memory: read where they are, by the thread that wants them.

Owns: the size and the memory of such pieces, and where they end. Refuses to know: what becomes of the rest of a read
(dfs.client.download), which replica is at hand, and how a wrong block is reported (dfs.client.replica_reads).

Reading ahead by other threads gains nothing here: there is no wait to hide, and a piece that is read just before it is
used is still in the processor's cache. So a few small buffers are used again and again; large ones that are filled
ahead cost more than half of the speed.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from dfs.checksum import BLOCK_SIZE
from dfs.client.local_replicas import LocalReplica
from dfs.client.plan import ReadPlan
from dfs.errors import ChunkCorrupt
from dfs.net.buffers import BufferPool

PIECE_SIZE: Final = 512 * 1024  # bytes of a piece: two of them fit into the second-level cache of one processor
BUFFERS_MAX: Final = 4  # kept for use again; a caller that holds more pieces gets fresh memory
assert PIECE_SIZE % BLOCK_SIZE == 0


class MemoryStream:
    """Pieces of one stream; used by one thread."""

    def __init__(self) -> None:
        self._buffers = BufferPool(PIECE_SIZE, BUFFERS_MAX)

    def pieces(self, plan: ReadPlan, replica: LocalReplica) -> Generator[memoryview, None, ReadPlan | None]:
        """Yield the wanted bytes of a plan, verified; return what is left: of a block not in memory, or wrong, on."""
        position = plan.block_offset
        while position < plan.block_end:
            size = min(PIECE_SIZE, plan.block_end - position)
            buffer = self._buffers.take(size)
            try:
                if not replica.read(position, buffer):
                    return plan.after(position)
            except ChunkCorrupt:
                return plan.after(position)  # whoever reads it again meets the same, and reports it
            skip, length, _ = plan.wanted(position, size)
            position += size
            buffer = buffer[skip : skip + length]
            yield buffer
            del buffer  # else it could not be used again for the next piece
        return None
