"""The bytes of a replica's file: data, its block checksums, and a trailer that vouches for both.

Owns: the format of docs/chunk-format.md, encoded and decoded. Refuses to know: files, folders and disks.

A file is `data | checksum list | trailer`. All integers are little-endian. The size of the file alone tells where each
part starts, so one read at the end of the file yields list and trailer, and one CRC proves that both are whole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dfs.checksum import BLOCK_SIZE, CRC_SIZE, Buffer, block_count, crc32c
from dfs.errors import ChunkCorrupt, VersionMismatch
from dfs.ids import ChunkHandle, id_text

MAGIC = b"DFSc"
FORMAT_VERSION = 1
CHUNK_SIZE_MAX = 256 * 1024 * 1024  # bytes of data in one chunk: the largest payload of a frame

_FIELDS = struct.Struct("<4sHHIQ16sI")  # magic version flags block_size length handle chunk_crc
_CRC = struct.Struct("<I")  # CRC32C of the checksum list and the fields
TRAILER_SIZE = _FIELDS.size + _CRC.size
assert TRAILER_SIZE == 44
TAIL_SIZE_MAX = CHUNK_SIZE_MAX // BLOCK_SIZE * CRC_SIZE + TRAILER_SIZE  # bytes of the largest list and trailer


@dataclass(frozen=True, slots=True)
class Tail:
    """What stands behind the data of a sealed replica. `length`: bytes of data; `crc`: CRC32C of all of them."""

    handle: ChunkHandle
    length: int
    crc: int
    checksums: bytes  # list as in dfs.checksum


def file_size(length: int) -> int:
    """Return the bytes of the file that holds `length` bytes of data."""
    return length + block_count(length) * CRC_SIZE + TRAILER_SIZE


def data_length(size: int) -> int:
    """Return the length of the data in a file of `size` bytes; raise `ChunkCorrupt` when no data makes such a file."""
    rest = size - TRAILER_SIZE
    length = rest - -(-rest // (BLOCK_SIZE + CRC_SIZE)) * CRC_SIZE
    if not 0 < length <= CHUNK_SIZE_MAX or file_size(length) != size:
        raise ChunkCorrupt(f"a file of {size} bytes is no sealed replica: it was cut off, or it is not ours")
    return length


def encode_tail(handle: ChunkHandle, length: int, crc: int, checksums: Buffer) -> bytes:
    """Return the bytes that follow `length` bytes of data."""
    if len(checksums) != block_count(length) * CRC_SIZE:
        raise ValueError(f"{len(checksums)} bytes of checksums do not fit {length} bytes of data")
    body = bytes(checksums) + _FIELDS.pack(MAGIC, FORMAT_VERSION, 0, BLOCK_SIZE, length, handle, crc)
    return body + _CRC.pack(crc32c(body))


def decode_tail(tail: Buffer, length: int, handle: ChunkHandle) -> Tail:
    """Return the checked tail of the file that is named `handle` and whose size promises `length` bytes of data.

    Raise `ChunkCorrupt` when a bit of it is wrong, `VersionMismatch` when a newer dfs wrote it.
    """
    view = memoryview(tail)
    body = view[: -_CRC.size]
    if len(view) != file_size(length) - length:
        raise ChunkCorrupt(f"the end of replica {id_text(handle)} is {len(view)} bytes: it was cut off meanwhile")
    if crc32c(body) != _CRC.unpack_from(view, len(body))[0]:
        raise ChunkCorrupt(f"the checksum list or trailer of replica {id_text(handle)} is damaged")
    magic, version, flags, block_size, stored, owner, crc = _FIELDS.unpack_from(view, len(view) - TRAILER_SIZE)
    if magic != MAGIC:
        raise ChunkCorrupt(f"the file of replica {id_text(handle)} ends in another format")
    if (version, flags, block_size) != (FORMAT_VERSION, 0, BLOCK_SIZE):
        raise VersionMismatch(
            f"replica {id_text(handle)} has format {version} (flags {flags}, blocks of {block_size} bytes), "
            f"this chunk server reads format {FORMAT_VERSION}; start the version of dfs that wrote it"
        )
    if owner != handle or stored != length:
        raise ChunkCorrupt(f"the file of replica {id_text(handle)} holds {stored} bytes of chunk {id_text(owner)}")
    return Tail(handle, length, crc, bytes(view[: len(view) - TRAILER_SIZE]))
