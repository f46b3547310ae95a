"""The bytes of a volume: records of small replicas and of their deletions, and the index of a full volume.

Owns: the format of docs/chunk-format.md, encoded and decoded. Refuses to know: files, and which record counts.

A record is a header and, for a replica, what a plain file would hold (dfs.chunk.layout). The CRC of a header is seeded
with the volume's salt, and it says its own offset: bytes that users store cannot pass for a record.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dfs.checksum import Buffer, crc32c
from dfs.chunk.layout import CHUNK_SIZE_MAX, file_size
from dfs.errors import ChunkCorrupt
from dfs.ids import ChunkHandle

RECORD_MAGIC = b"DFSr"
RECORD_VERSION = 1
SALT_SIZE = 8
_KEY_NUMBER = struct.Struct("<Q")
_FIELDS = struct.Struct("<4sHHQ16sIIQIQI")  # the fields of `RecordHeader` after magic and version; reserved; the CRC
HEADER_SIZE = _FIELDS.size
_BODY_SIZE = HEADER_SIZE - 4  # the CRC of the header covers these bytes
assert HEADER_SIZE == 64

INDEX_MAGIC = b"DFSi"
_INDEX_HEAD = struct.Struct("<4sHHIQ")  # magic, version, reserved, number of headers, end of the volume
_INDEX_CRC = struct.Struct("<I")


class RecordKind(enum.IntEnum):
    """What a record says: here is a replica, or: that one is gone."""

    REPLICA = 1
    TOMBSTONE = 2


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """What stands before a record at `offset` of its volume.

    Of a tombstone, `target_volume` and `target_offset` are the record that it ends; length and CRC are 0.
    """

    kind: RecordKind
    offset: int
    handle: ChunkHandle
    length: int = 0  # bytes of data
    crc: int = 0  # CRC32C of the data
    moment_ms: int = 0  # when it was published or deleted, wall-clock time
    target_volume: int = 0
    target_offset: int = 0

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return HEADER_SIZE + (file_size(self.length) if self.kind is RecordKind.REPLICA else 0)

    def moved_to(self, offset: int) -> RecordHeader:
        return replace(self, offset=offset)

    @property
    def start(self) -> int:
        """Where the data begins in the volume."""
        return self.offset + HEADER_SIZE


@dataclass(frozen=True, slots=True)
class VolumeName:
    """A volume's number, which grows with each new one on a disk and is never used again, and its salt."""

    number: int
    salt: bytes

    @property
    def text(self) -> str:
        return f"{self.number:08x}-{self.salt.hex()}"

    @property
    def key(self) -> bytes:
        """The name as readers of this machine are told it."""
        return _KEY_NUMBER.pack(self.number) + self.salt

    @classmethod
    def parse(cls, text: str) -> VolumeName | None:
        """Return the name, or None when this is none."""
        number, _, salt = text.partition("-")
        try:
            name = cls(int(number, 16), bytes.fromhex(salt))
        except ValueError:
            return None
        return name if name.text == text and len(name.salt) == SALT_SIZE else None


def encode_header(header: RecordHeader, salt: bytes) -> bytes:
    fields = (RECORD_MAGIC, RECORD_VERSION, header.kind, header.offset, header.handle, header.length, header.crc)
    rest = (header.moment_ms, header.target_volume, header.target_offset, 0)
    body = _FIELDS.pack(*fields, *rest)[:_BODY_SIZE]
    return body + _INDEX_CRC.pack(crc32c(body, crc32c(salt)))


def decode_header(data: Buffer, salt: bytes, offset: int) -> RecordHeader | None:
    """Return the header of the record at `offset`, or None when the bytes are not one of this volume."""
    if len(data) != HEADER_SIZE:
        return None
    header, place, crc = _unpacked(data)
    if header is None or place != offset or crc32c(memoryview(data)[:_BODY_SIZE], crc32c(salt)) != crc:
        return None
    return header


def _unpacked(data: Buffer) -> tuple[RecordHeader | None, int, int]:
    magic, version, kind, offset, handle, length, crc, moment_ms, volume, target, own_crc = _FIELDS.unpack(data)
    if (magic, version) != (RECORD_MAGIC, RECORD_VERSION) or kind not in (RecordKind.REPLICA, RecordKind.TOMBSTONE):
        return None, offset, own_crc
    if (kind == RecordKind.REPLICA) != (0 < length <= CHUNK_SIZE_MAX):
        return None, offset, own_crc
    header = RecordHeader(RecordKind(kind), offset, ChunkHandle(handle), length, crc, moment_ms, volume, target)
    return header, offset, own_crc


def encode_index(headers: list[bytes], end: int) -> bytes:
    """Return the index of a full volume of `end` bytes from the headers of its records, in order."""
    body = _INDEX_HEAD.pack(INDEX_MAGIC, RECORD_VERSION, 0, len(headers), end) + b"".join(headers)
    return body + _INDEX_CRC.pack(crc32c(body))


def decode_index(data: bytes) -> tuple[Iterator[RecordHeader], int]:
    """Return the headers of all records and the size of the volume; raise `ChunkCorrupt` when a bit is wrong."""
    body = memoryview(data)[: -_INDEX_CRC.size]
    if len(body) < _INDEX_HEAD.size or crc32c(body) != _INDEX_CRC.unpack_from(data, len(body))[0]:
        raise ChunkCorrupt("the index of a volume is damaged")
    magic, version, _, count, end = _INDEX_HEAD.unpack_from(body)
    if (magic, version) != (INDEX_MAGIC, RECORD_VERSION) or len(body) != _INDEX_HEAD.size + count * HEADER_SIZE:
        raise ChunkCorrupt("the index of a volume is of another format")
    return _headers(body[_INDEX_HEAD.size :]), end


def _headers(body: memoryview) -> Iterator[RecordHeader]:
    for start in range(0, len(body), HEADER_SIZE):
        header = _unpacked(body[start : start + HEADER_SIZE])[0]
        if header is None:
            raise ChunkCorrupt("the index of a volume holds what is no header of a record")
        yield header
