"""What is said to a chunk server about chunks.

Owns: writing along a chain, reading and verifying. Refuses to know: files.

Sizes are bytes, times are milliseconds since 1970.
"""

from __future__ import annotations

from typing import Final

from dfs.ids import ChunkHandle, ServerId
from dfs.net.messages.base import Message, message

STORE_SIZE_MAX: Final = 256 * 1024  # bytes of a chunk that goes in one StoreChunk; a larger one gains nothing by it


@message(0x0400)
class WriteChunk(Message, frozen=True, array_like=True):
    """Open a new chunk here and forward it along `chain` (addresses of the servers after this one).

    Followed by `WriteData` frames and one `FinishChunk`; the receiver says nothing until then, or an ErrorReply.
    """

    handle: ChunkHandle
    token: bytes
    chain: tuple[str, ...]


@message(0x0401)
class WriteData(Message, frozen=True, array_like=True):
    """The next bytes of the chunk; they are the frame's payload: whole blocks, only the last may be short."""

    checksums: bytes  # list as in dfs.checksum


@message(0x0402)
class FinishChunk(Message, frozen=True, array_like=True):
    length: int
    crc: int


@message(0x0403)
class WriteChunkReply(Message, frozen=True, array_like=True):
    """The chunk is fsynced and published on all of `servers`, in chain order."""

    servers: tuple[ServerId, ...]


@message(0x0404)
class ReadChunk(Message, frozen=True, array_like=True):
    """Read whole blocks: `offset` is block-aligned; `length` is too, or ends at the chunk's end.

    `is_copy`: another chunk server asks, to make a replica; nobody waits for these bytes."""

    handle: ChunkHandle
    token: bytes
    offset: int
    length: int
    is_copy: bool = False


@message(0x0405)
class ReadChunkReply(Message, frozen=True, array_like=True):
    """The bytes are the frame's payload, unverified: the reader verifies them against `checksums`.

    `chunk_length` and `chunk_crc` are of the whole replica: the reader compares them with the chunk map's."""

    chunk_length: int
    checksums: bytes
    chunk_crc: int


@message(0x0406)
class VerifyReplica(Message, frozen=True, array_like=True):
    """A reader found a mismatch: check this replica. A bad one is quarantined and reported.

    Reply: VerifyReplicaReply."""

    handle: ChunkHandle
    token: bytes


@message(0x0407)
class VerifyReplicaReply(Message, frozen=True, array_like=True):
    is_good: bool


@message(0x0420)
class StoreChunk(Message, frozen=True, array_like=True):
    """Store a small chunk here and along `chain`, in one message: its bytes (1 to STORE_SIZE_MAX) are the payload.

    Means the same as WriteChunk, one WriteData and FinishChunk. Reply: WriteChunkReply."""

    handle: ChunkHandle
    token: bytes
    chain: tuple[str, ...]  # addresses of the servers after this one
    checksums: bytes  # list as in dfs.checksum
    crc: int  # of all bytes
