"""What is said to a chunk server by readers of ranges that are no whole blocks, and by readers on its own machine.

Owns: vector reads, and handing a descriptor over. Refuses to know: files, and how a descriptor travels (dfs.net.local).
"""

from __future__ import annotations

from typing import Final

from dfs.ids import ChunkHandle
from dfs.net.messages.base import Message, message

RANGES_MAX: Final = 1024  # ranges in one ReadRanges
RANGES_SIZE_MAX: Final = 4 * 1024 * 1024  # bytes of all of them: they pass through the server's memory


@message(0x0428)
class ReadRanges(Message, frozen=True, array_like=True):
    """Read bytes [`offsets[i]`, +`lengths[i]`) of a chunk for each i: any ranges in it, none empty."""

    handle: ChunkHandle
    token: bytes
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]


@message(0x0429)
class ReadRangesReply(Message, frozen=True, array_like=True):
    """The bytes of all ranges, one after the other, are the frame's payload, unverified.

    `checksums`: for each range the list of the blocks that it touches. `edges`: for each range two u32: the CRC of its
    first block's bytes before it, and of its last block's bytes behind it. With them the reader verifies what it got
    against `checksums`. `chunk_length` and `chunk_crc` as in ReadChunkReply.
    """

    chunk_length: int
    chunk_crc: int
    checksums: bytes
    edges: bytes


@message(0x042A)
class OpenReplica(Message, frozen=True, array_like=True):
    """Hand over a descriptor of a replica that is a file of its own. Understood at a server's local door only."""

    handle: ChunkHandle
    token: bytes


@message(0x042B)
class OpenReplicaReply(Message, frozen=True, array_like=True):
    """A descriptor comes with this frame; it is open for reading, and the chunk's bytes begin at 0.

    `checksums`: the list of all blocks.
    """

    chunk_length: int
    chunk_crc: int
    checksums: bytes
