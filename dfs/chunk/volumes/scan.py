"""Read a volume at start: its index when it is full, else record by record, whatever power cuts or disks did to it.

Owns: what of a volume is sound, where its sound part ends, and which records are damaged. Refuses to know: other
volumes, and which copy of a replica counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dfs.checksum import combine_blocks, first_bad_block
from dfs.chunk.layout import decode_tail
from dfs.chunk.volumes.records import (
    HEADER_SIZE,
    RECORD_MAGIC,
    RecordHeader,
    RecordKind,
    VolumeName,
    decode_header,
    decode_index,
)
from dfs.errors import ChunkCorrupt, VersionMismatch
from dfs.log import get_logger

SEARCH_WINDOW = 1024 * 1024  # bytes read at a time when the next sound record is searched

log = get_logger(__name__)


@dataclass(slots=True)
class ScannedVolume:
    """`headers` of all sound records in order; `damaged`: header and reason; `end`: where the last sound one ends."""

    headers: list[RecordHeader] = field(default_factory=list)
    damaged: list[tuple[RecordHeader, str]] = field(default_factory=list)
    end: int = 0
    has_index: bool = False


def read_volume(path: Path, index_path: Path, name: VolumeName) -> ScannedVolume:
    """Return what a volume holds; raise `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        found = _read_index(index_path, size)
        return found if found is not None else scan_volume(fd, size, name)
    finally:
        os.close(fd)


def _read_index(path: Path, size: int) -> ScannedVolume | None:
    try:
        headers, end = decode_index(path.read_bytes())
        if end <= size:
            return ScannedVolume(list(headers), end=end, has_index=True)
        log.error("volume_cut_off", index=path, size=size, expected=end)
    except FileNotFoundError:
        return None
    except ChunkCorrupt as error:
        log.error("volume_index_damaged", index=path, reason=error.message, action="the volume itself is read instead")
    return None


def scan_volume(fd: int, size: int, name: VolumeName) -> ScannedVolume:
    """Read a volume record by record and verify every block.

    Damage with a sound record behind it is set apart; without one it is a torn end, which was never acknowledged.
    """
    found = ScannedVolume()
    torn: list[tuple[RecordHeader, str]] = []  # damaged records with nothing sound behind them so far
    for header in _headers(fd, size, name):
        reason = record_damage(fd, header)
        if reason:
            torn.append((header, reason))
            continue
        found.damaged += torn
        torn.clear()
        found.headers.append(header)
        found.end = header.offset + header.size
    if torn or not _is_zero(fd, found.end, size):  # zeros are written ahead of records
        lost = ",".join(header.handle.hex() for header, _ in torn)
        log.warning("volume_end_torn", volume=name.text, end=found.end, size=size, records=lost)
    return found


def _headers(fd: int, size: int, name: VolumeName) -> Iterator[RecordHeader]:
    position = 0
    while position < size:
        header = decode_header(os.pread(fd, HEADER_SIZE, position), name.salt, position)
        if header is not None:
            yield header
            position += header.size
            continue
        following = _next_header(fd, position + 1, size, name)
        if following is None:
            return
        log.error("volume_damaged", volume=name.text, offset=position, size=following - position)
        position = following


def _is_zero(fd: int, start: int, end: int) -> bool:
    for position in range(start, end, SEARCH_WINDOW):
        if os.pread(fd, min(SEARCH_WINDOW, end - position), position).strip(b"\0"):
            return False
    return True


def _next_header(fd: int, position: int, size: int, name: VolumeName) -> int | None:
    """Return where the next sound header at or behind `position` is."""
    while position + HEADER_SIZE <= size:
        window = os.pread(fd, SEARCH_WINDOW, position)
        start = window.find(RECORD_MAGIC)
        while start >= 0:
            place = position + start
            if decode_header(os.pread(fd, HEADER_SIZE, place), name.salt, place) is not None:
                return place
            start = window.find(RECORD_MAGIC, start + 1)
        position += max(1, len(window) - len(RECORD_MAGIC) + 1)
    return None


def record_damage(fd: int, header: RecordHeader) -> str:
    """Return what is wrong with a record, `""` when nothing is; raise `OSError`."""
    if header.kind is RecordKind.TOMBSTONE:
        return ""
    return damage_of(os.pread(fd, header.size - HEADER_SIZE, header.start), header)


def damage_of(body: bytes, header: RecordHeader) -> str:
    """Return what is wrong with the bytes that follow a header, `""` when nothing is."""
    if len(body) != header.size - HEADER_SIZE:
        return f"its volume ends {header.size - HEADER_SIZE - len(body)} bytes too early"
    view = memoryview(body)
    try:
        tail = decode_tail(view[header.length :], header.length, header.handle)
    except (ChunkCorrupt, VersionMismatch) as error:
        return error.message
    if tail.crc != header.crc or combine_blocks(tail.checksums, tail.length) != tail.crc:
        return "its checksums do not add up to the chunk's"
    if (bad := first_bad_block(view[: header.length], tail.checksums)) is not None:
        return f"its block number {bad} does not match its checksum"
    return ""
