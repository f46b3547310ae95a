"""Records that can be told apart, and the judge of exactly-once append.

Owns: records that say who wrote them and whether they are whole, and every promise about a file of them. Refuses to
know: how they were appended, and through which failures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

from dfs.checksum import crc32c

_HEAD = struct.Struct("<4sIIII")  # magic, appender, sequence, size of the body, CRC32C of these three and the body
_MAGIC = b"rec:"
HEAD_SIZE = _HEAD.size


class Acknowledged(NamedTuple):
    """What an appender was told: its record `sequence` stands at `offset`."""

    appender: int
    sequence: int
    offset: int


class Copied(NamedTuple):
    """A copy of the file that was made while records were appended: its content, and what had to be in it at least."""

    size: int  # bytes
    crc: int  # CRC32C of all of it
    acknowledged: int  # bytes up to the end of the last record that was acknowledged before the copy began


class Found(NamedTuple):
    """A whole record of a file."""

    appender: int
    sequence: int
    offset: int


def make_record(appender: int, sequence: int, size: int) -> bytes:
    """Return record `sequence` of an appender, about `size` bytes; the same arguments give the same bytes."""
    body = Random(appender << 32 | sequence).randbytes(max(0, size - HEAD_SIZE))  # noqa: S311 - to be told apart
    crc = crc32c(body, crc32c(struct.pack("<III", appender, sequence, len(body))))
    return _HEAD.pack(_MAGIC, appender, sequence, len(body), crc) + body


def _require(holds: bool, words: str) -> None:
    """Judge also under `python -O`."""
    if not holds:
        raise AssertionError(words)


def parse_records(content: bytes) -> list[Found]:
    """Return the records of a file; raise AssertionError at the first byte that belongs to no whole record."""
    found, offset = [], 0
    while offset < len(content):
        _require(
            offset + HEAD_SIZE <= len(content), f"a torn record at {offset}: {len(content) - offset} bytes are left"
        )
        magic, appender, sequence, size, crc = _HEAD.unpack_from(content, offset)
        _require(magic == _MAGIC, f"at {offset} begins no record: {content[offset : offset + 16]!r}")
        body = content[offset + HEAD_SIZE : offset + HEAD_SIZE + size]
        _require(
            len(body) == size, f"record {sequence} of appender {appender} at {offset} is torn: {len(body)} of {size}"
        )
        actual = crc32c(body, crc32c(struct.pack("<III", appender, sequence, size)))
        _require(actual == crc, f"record {sequence} of appender {appender} at {offset} has other bytes")
        found.append(Found(appender, sequence, offset))
        offset += HEAD_SIZE + size
    return found


def check_exactly_once(content: bytes, acknowledged: Iterable[Acknowledged]) -> list[Found]:
    """Raise AssertionError unless a file keeps every promise of record append; return its records.

    Every byte belongs to a whole record; each record is there at most once; those of one appender stand in order and
    without a gap; each acknowledged one stands at the offset that was told.
    """
    found = parse_records(content)
    last: dict[int, int] = {}
    for record in found:
        before = last.get(record.appender, 0)
        _require(
            record.sequence > before,
            f"record {record.sequence} of appender {record.appender} at {record.offset} comes after record {before}: "
            "it is doubled or out of order",
        )
        _require(
            record.sequence == before + 1,
            f"record {record.sequence} of appender {record.appender} at {record.offset} follows record {before}: "
            "one is missing",
        )
        last[record.appender] = record.sequence
    places = {(record.appender, record.sequence): record.offset for record in found}
    for appender, sequence, offset in acknowledged:
        actual = places.get((appender, sequence))
        _require(
            actual == offset,
            f"record {sequence} of appender {appender} was acknowledged at {offset}, it is at {actual}",
        )
    return found


def check_copies(content: bytes, copies: Iterable[Copied]) -> None:
    """Raise AssertionError unless each copy is a beginning of the file with all that was acknowledged before it."""
    crc, at = 0, 0
    for copy in sorted(copies):
        _require(
            copy.size >= copy.acknowledged,
            f"a copy has {copy.size} bytes, though records up to {copy.acknowledged} were acknowledged before it",
        )
        crc, at = crc32c(content[at : copy.size], crc), copy.size
        _require(
            copy.size <= len(content) and crc == copy.crc,
            f"a copy of {copy.size} bytes was no beginning of the file, which has {len(content)} bytes in the end",
        )
