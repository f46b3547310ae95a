"""What a writer says through the local door of a chunk server: here is memory, take the chunk from it.

Owns: lending memory and the pieces that stand in it. Refuses to know: how a descriptor travels, and what a chunk is
stored in.

`WriteChunk` and `FinishChunk` begin and end a chunk as they do over the network (dfs.net.messages.chunks).
"""

from __future__ import annotations

from typing import Final

from dfs.net.messages.base import Message, message

LENT_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes of memory that one connection may lend


@message(0x0430)
class LendMemory(Message, frozen=True, array_like=True):
    """Comes with a descriptor (SCM_RIGHTS) of `size` bytes of memory, sealed against growing and shrinking.

    Once for each connection. Reply: LendMemoryReply."""

    size: int


@message(0x0431)
class LendMemoryReply(Message, frozen=True, array_like=True):
    """The memory is of use; chunks may be written from it."""


@message(0x0432)
class WriteLent(Message, frozen=True, array_like=True):
    """The next bytes of the chunk are [`offset`, +`size`) of the lent memory: whole blocks, only the last may be short.

    Stands in the place of WriteData. Each is answered by one WriteLentReply, in order, or by the ErrorReply that ends
    the chunk and the connection."""

    offset: int
    size: int
    checksums: bytes  # list as in dfs.checksum


@message(0x0433)
class WriteLentReply(Message, frozen=True, array_like=True):
    """The bytes were taken, and agreed with their checksums; their place may be filled anew."""
