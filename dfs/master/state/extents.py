"""The packed extent list of a file: immutable bytes that files share when they share content.

Owns: the packing. Refuses to know: chunks, files and reference counts.

Either nothing (an empty file), or one chunk handle (one extent that is a whole chunk, by far the most common: the bytes
object is then the chunk map's own key and costs nothing), or `RECORD`s in file order. A record keeps the *end* of its
extent in the file, so that the offset of any extent is found without adding up those before it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from dfs.ids import ID_SIZE, ChunkHandle
from dfs.master.state.views import Extent

EMPTY = b""
EXTENTS_MAX = 262_144  # extents of one file (7 MiB packed; 16 TiB of 64 MiB chunks)
RECORD = struct.Struct("<16sIQ")  # handle, offset in the chunk, end in the file
Packable: TypeAlias = tuple[ChunkHandle, int, int]  # handle, offset in the chunk, length: an `Extent`, or as good
_END = struct.Struct("<Q")


def pack(extents: Sequence[Packable], start: int = 0) -> bytes:
    """Return the records of extents that begin at file offset `start`."""
    records = bytearray(RECORD.size * len(extents))
    place = 0
    for handle, offset, length in extents:
        start += length
        RECORD.pack_into(records, place, handle, offset, start)
        place += RECORD.size
    return bytes(records)


def whole_chunk(handle: ChunkHandle) -> bytes:
    """Return the list of a file that is exactly one whole chunk."""
    return handle


def count(packed: bytes) -> int:
    return 1 if len(packed) == ID_SIZE else len(packed) // RECORD.size


def is_valid(packed: bytes) -> bool:
    return len(packed) == ID_SIZE or len(packed) % RECORD.size == 0


def expand(packed: bytes, size: int) -> bytes:
    """Return records also for a list of one whole chunk; `size` is the file's."""
    return RECORD.pack(packed, 0, size) if len(packed) == ID_SIZE else packed


def end(packed: bytes) -> int:
    """Return the file offset where a list of at least one record ends."""
    return int(_END.unpack_from(packed, len(packed) - _END.size)[0])


def handles(packed: bytes) -> Iterator[ChunkHandle]:
    """Yield the chunk of each extent, in file order."""
    if len(packed) == ID_SIZE:
        yield ChunkHandle(packed)
    else:
        for record in RECORD.iter_unpack(packed):
            yield ChunkHandle(record[0])


def window(packed: bytes, size: int, first: int, limit: int) -> tuple[int, tuple[Extent, ...]]:
    """Return at most `limit` extents from number `first` on, and the file offset of the first; `size` is the file's."""
    packed = expand(packed, size)
    total = len(packed) // RECORD.size
    first = min(first, total)
    start = offset = _END.unpack_from(packed, first * RECORD.size - _END.size)[0] if first else 0
    found: list[Extent] = []
    for handle, chunk_offset, end in RECORD.iter_unpack(
        packed[first * RECORD.size : min(total, first + limit) * RECORD.size]
    ):
        found.append(Extent(ChunkHandle(handle), chunk_offset, end - start))
        start = end
    return offset, tuple(found)


def cut_last(packed: bytes, limit: int) -> tuple[bytes, bytes]:
    """Split the last `limit` extents off: return (those before, those)."""
    if count(packed) <= limit:
        return EMPTY, packed
    keep = len(packed) - limit * RECORD.size
    return packed[:keep], packed[keep:]


class Cut(NamedTuple):
    """A list of records taken apart at a range of the file that is to be replaced.

    `before` and `after` are what is left of the extents at its edges, None when an extent begins or ends there.
    """

    head: bytes  # records of the extents that end at or before the range
    before: Extent | None
    removed: tuple[Extent, ...]  # whole extents that the range touches, those at its edges included
    after: Extent | None
    tail: bytes  # records of the extents that begin at or after its end; their file offsets are the old ones


def index_at(packed: bytes, offset: int) -> int:
    """Return the number of the first record whose extent ends after a file offset, by bisection."""
    low, high = 0, len(packed) // RECORD.size
    while low < high:
        middle = (low + high) // 2
        if _END.unpack_from(packed, (middle + 1) * RECORD.size - _END.size)[0] > offset:
            high = middle
        else:
            low = middle + 1
    return low


def cut(packed: bytes, size: int, start: int, stop: int) -> Cut:
    """Take out file bytes [`start`, `stop`) of a file of `size` bytes, 0 <= start <= stop <= size."""
    packed = expand(packed, size)
    first = index_at(packed, start)
    last = index_at(packed, stop - 1) + 1 if stop > start else first
    if start == stop < size and start > (end(packed[: first * RECORD.size]) if first else 0):
        last += 1  # nothing goes, but the extent around this place is split
    begin, removed = window(packed, size, first, last - first) if last > first else (start, ())
    before = after = None
    if removed and begin < start:
        before = Extent(removed[0].handle, removed[0].chunk_offset, start - begin)
    finish = begin + sum(extent.length for extent in removed)
    if removed and finish > stop:
        kept, edge = finish - stop, removed[-1]
        after = Extent(edge.handle, edge.chunk_offset + edge.length - kept, kept)
    return Cut(packed[: first * RECORD.size], before, removed, after, packed[last * RECORD.size :])


def shifted(packed: bytes, size: int, start: int) -> bytes:
    """Return the records of a whole file of `size` bytes, to stand at file offset `start` of another one."""
    records = bytearray()
    for handle, offset, stop in RECORD.iter_unpack(expand(packed, size)):
        records += RECORD.pack(handle, offset, start + stop)
    return bytes(records)
