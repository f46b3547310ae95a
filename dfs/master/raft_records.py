"""The record format of the Raft journal: how an entry, a vote or a mark becomes bytes that can be believed later.

Owns: record kinds, their layout, CRCs and the reading of one segment. Refuses to know: files, threads and Raft.

All integers are little-endian. A record is `magic crc size kind a b payload`; the CRC32C covers everything after itself
and is seeded with the salt of the run that wrote it, so that neither bytes of an older run nor a record forged inside
a command can pass for a record. A segment starts with a HEAD (seeded with 0) that carries the salt.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from dfs.checksum import crc32c
from dfs.errors import StorageCorrupt

MAGIC = b"dRj1"
FORMAT_VERSION = 1
Entry: TypeAlias = tuple[bytes, int, int]  # command, log index, term; the shape that pysyncobj uses

WAY_OUT = (  # an old copy of the directory would be worse than none: it has forgotten votes and acknowledgements
    "replace this master as docs/operations.md describes (the others have the data); do not bring back an old copy"
)
_HEADER = struct.Struct("<4sIIBQQ")
_CHECKED = struct.Struct("<IBQQ")  # the part of the header under the CRC
_HEAD = struct.Struct("<HI")  # format version, salt; then the node's name in UTF-8
HEADER_SIZE = _HEADER.size


class Kind(enum.IntEnum):
    """`a` and `b` of each kind are named in its comment."""

    ENTRY = 1  # a log index, b term; payload: the command
    TRUNCATE = 2  # a first log index that is no more
    VOTE = 3  # a current term; payload: name of the node voted for, empty for none
    MARK = 4  # a offset of this segment below which all is known to be on disk
    HEAD = 5  # a segment number, b end of the previous segment; payload: version, salt, node name
    RESET = 6  # the log is empty from here (a checkpoint of the leader replaced it)


class Record(NamedTuple):
    """One sound record; `end` is the offset after it."""

    kind: int
    a: int
    b: int
    payload: bytes
    end: int


def encode_record(kind: Kind, a: int, b: int, payload: bytes = b"", *, salt: int) -> bytes:
    checked = _CHECKED.pack(len(payload), kind, a, b)
    crc = crc32c(payload, crc32c(checked, salt))
    return b"".join((MAGIC, crc.to_bytes(4, "little"), checked, payload))


def parse_record(data: bytes, offset: int, salt: int) -> Record | None:
    """Return the record at `offset`, `None` when there is none that its CRC vouches for."""
    if offset + HEADER_SIZE > len(data):
        return None
    magic, crc, size, kind, a, b = _HEADER.unpack_from(data, offset)
    start = offset + HEADER_SIZE
    if magic != MAGIC or start + size > len(data):
        return None
    payload = data[start : start + size]
    if crc32c(payload, crc32c(data[offset + 8 : start], salt)) != crc:
        return None
    return Record(kind, a, b, payload, start + size)


@dataclass(frozen=True, slots=True)
class SegmentHead:
    """What a segment says of itself. `previous_end`: where the segment before it ends, tail cut off."""

    number: int
    previous_end: int
    version: int
    salt: int
    node: str
    size: int  # bytes of the HEAD record


def encode_head(number: int, previous_end: int, salt: int, node: str) -> bytes:
    payload = _HEAD.pack(FORMAT_VERSION, salt) + node.encode()
    return encode_record(Kind.HEAD, number, previous_end, payload, salt=0)


def parse_head(data: bytes) -> SegmentHead | None:
    record = parse_record(data, 0, 0)
    if record is None or record.kind != Kind.HEAD or len(record.payload) < _HEAD.size:
        return None
    version, salt = _HEAD.unpack_from(record.payload)
    try:
        return SegmentHead(record.a, record.b, version, salt, record.payload[_HEAD.size :].decode(), record.end)
    except UnicodeDecodeError:
        return None


@dataclass(slots=True)
class Replay:
    """The log, the term and the vote as far as the segments were read. `marked`: the last MARK of the last segment."""

    entries: list[Entry] = field(default_factory=list)
    term: int = 0
    vote: str | None = None
    marked: int = 0

    def read_segment(self, data: bytes, head: SegmentHead, limit: int | None, where: str) -> int:
        """Take in the records after the head; return the offset after the last one.

        `limit` is the known end of an older segment: every record below it must be sound. The newest segment has none:
        a record that is not sound ends it, unless a later MARK says that its bytes were on disk once.
        Raise `StorageCorrupt` in both cases of damage.
        """
        offset = head.size
        self.marked = 0
        while limit is None or offset < limit:
            record = parse_record(data, offset, head.salt)
            if record is None:
                break
            self._take(record, where, offset)
            offset = record.end
        if limit is not None:
            if offset != limit:
                raise _damaged(where, offset, f"this segment is sound only below its end at {limit}")
        elif (mark := _later_mark(data, offset, head.salt)) is not None:
            raise _damaged(where, offset, f"bytes below {mark} had reached the disk")
        return offset

    def _take(self, record: Record, where: str, offset: int) -> None:
        kind, index = record.kind, record.a
        if kind == Kind.ENTRY:
            if self.entries and index != self.entries[-1][1] + 1:
                raise _damaged(where, offset, f"log index {index} follows {self.entries[-1][1]}")
            self.entries.append((record.payload, index, record.b))
        elif kind == Kind.TRUNCATE:
            if self.entries:
                del self.entries[max(0, index - self.entries[0][1]) :]
        elif kind == Kind.VOTE:
            try:
                self.term, self.vote = record.a, record.payload.decode() or None
            except UnicodeDecodeError:
                raise _damaged(where, offset, "a vote is for a name that cannot be one") from None
        elif kind == Kind.RESET:
            self.entries = []
        elif kind == Kind.MARK:
            self.marked = record.a
        else:
            raise _damaged(where, offset, f"record kind {kind} is unknown; was this written by a newer version?")


def _later_mark(data: bytes, offset: int, salt: int) -> int | None:
    """Return the position of a sound MARK after `offset` that covers `offset`, if there is one."""
    position = data.find(MAGIC, offset)
    while position >= 0:
        record = parse_record(data, position, salt)
        if record is not None and record.kind == Kind.MARK and record.a > offset:
            return record.a
        position = data.find(MAGIC, position + 1)
    return None


def _damaged(where: str, offset: int, why: str) -> StorageCorrupt:
    return StorageCorrupt(
        f"the Raft journal is damaged: {where} at byte {offset}: {why}. This master will not start, because guessing "
        f"could undo acknowledged changes; {WAY_OUT}"
    )
