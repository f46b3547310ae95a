"""The file of a tail: rounds of records, appended and synced, and read back whole after a power cut.

Owns: the format of the file, torn ends, and damage. Refuses to know: chains, sockets, and who may append.

A file is frames: 16 bytes of the chunk handle, sizes of head and data, a CRC32C of sizes and head, the head (msgpack),
the data. The first head is a `TailStart`, each further one a `Round`, whose records are its data.
"""

from __future__ import annotations

import os
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dfs.checksum import Buffer, crc32c
from dfs.chunk.identity import sync_directory
from dfs.chunk.tail import Ledger
from dfs.errors import ChunkCorrupt, DfsError
from dfs.ids import ID_SIZE, ChunkHandle, id_text
from dfs.net.parts import AppenderState, RecordGroup

_SIZES = struct.Struct("<III")  # head size, data size, CRC32C of both and the head
FRAME_SIZE = ID_SIZE + _SIZES.size
HEAD_SIZE_MAX = 16 * 1024 * 1024  # bytes; a larger one is damage


class TailStart(msgspec.Struct, frozen=True, array_like=True):
    """What a tail is made with."""

    base: int
    size_max: int
    record_size_max: int
    appenders: tuple[AppenderState, ...]

    def ledger(self) -> Ledger:
        """Return the table before the first record."""
        return Ledger(self.base, self.size_max, self.record_size_max, self.appenders)


class Round(msgspec.Struct, frozen=True, array_like=True):
    """Records that became durable together, at `offset` of the chunk."""

    offset: int
    groups: tuple[RecordGroup, ...]

    @property
    def size(self) -> int:
        return sum(sum(group.lengths) for group in self.groups)

    def records(self) -> Iterator[tuple[int, int]]:
        """Yield (length, CRC) of each record."""
        for group in self.groups:
            yield from zip(group.lengths, group.crcs, strict=True)


@dataclass(slots=True)
class TailContent:
    """What a file was found to hold."""

    start: TailStart
    rounds: list[tuple[Round, int]] = field(default_factory=list)  # with the position of its data
    length: int = 0  # bytes of records
    end: int = 0  # of the last whole frame in the file


_ENCODER = msgspec.msgpack.Encoder()
_START = msgspec.msgpack.Decoder(TailStart)
_ROUND = msgspec.msgpack.Decoder(Round)


def check_records(groups: Iterable[RecordGroup], data: Buffer) -> None:
    """Raise `ChunkCorrupt` unless `data` are these records."""
    view, position = memoryview(data), 0
    for group in groups:
        if len(group.lengths) != len(group.crcs) or min(group.lengths, default=1) < 1:
            raise ChunkCorrupt(f"{len(group.lengths)} records with {len(group.crcs)} checksums are not possible")
        for length, crc in zip(group.lengths, group.crcs, strict=True):
            if crc32c(view[position : position + length]) != crc:
                raise ChunkCorrupt(f"a record of {length} bytes does not match its checksum on arrival; send it again")
            position += length
    if position != len(view):
        raise ChunkCorrupt(f"{len(view)} bytes came for records of {position} bytes; send them again")


class TailFile:
    """A tail on disk that this process made: it may be appended to and read. `append` is one thread's at a time."""

    def __init__(self, path: Path, handle: ChunkHandle, fd: int, end: int) -> None:
        self.path = path
        self.handle = handle
        self.length = 0  # bytes of records written
        self._fd = fd
        self._end = end
        self._ends = array("Q")  # of each record, in the chunk
        self._crcs = array("I")
        self._positions = array("Q")  # in the file, of each record

    @classmethod
    def create(cls, path: Path, handle: ChunkHandle, start: TailStart) -> TailFile:
        """Make the file, durably; raise OSError (FileExistsError: this tail was made before)."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            frame = encode_start(handle, start)
            _write_all(fd, [frame], 0)
            os.fdatasync(fd)
            sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return cls(path, handle, fd, len(frame))

    def append(self, item: Round, data: Buffer) -> None:
        """Write a round and sync it; raise OSError, after which nothing may be appended any more."""
        frame = encode_round(self.handle, item)
        _write_all(self._fd, [frame, data], self._end)
        os.fdatasync(self._fd)
        position = self._end + len(frame)
        for length, crc in item.records():
            self.length += length
            self._positions.append(position)
            self._ends.append(self.length)
            self._crcs.append(crc)
            position += length
        self._end = position

    def read(self, offset: int, committed: int, size_max: int) -> tuple[int, list[int], list[int], bytes]:
        """Return (start, lengths, CRCs, bytes) of whole records below `committed`, from the one at `offset` on."""
        first = index = bisect_right(self._ends, offset)
        start = position = self._ends[index - 1] if index else 0
        lengths: list[int] = []
        pieces: list[bytes] = []
        while index < len(self._ends) and self._ends[index] <= committed:
            length = self._ends[index] - position
            if lengths and position + length - start > size_max:
                break
            lengths.append(length)
            pieces.append(os.pread(self._fd, length, self._positions[index]))
            position, index = self._ends[index], index + 1
        return start, lengths, list(self._crcs[first:index]), b"".join(pieces)

    def __del__(self) -> None:
        os.close(self._fd)  # not before the last reader has let go: the number would be another file's


class TailLog:
    """A tail's file as it is found: by a server that restarted, or to make a sealed replica of it."""

    def __init__(self, path: Path, handle: ChunkHandle) -> None:
        """Read and check all of it; raise `ChunkCorrupt` when it is damaged, OSError when it cannot be read."""
        self._path = path
        self._handle = handle
        self._data = path.read_bytes()
        self._content = parse_tail(self._data, handle)
        self.length = self._content.length

    def ledger(self, length: int) -> Ledger:
        """Return the table for exactly the first `length` bytes."""
        ledger = self._content.start.ledger()
        for item, _ in self._rounds(length):
            for group in item.groups:
                if ledger.admit(group).fresh != group:
                    raise ChunkCorrupt(f"the log of tail {id_text(self._handle)} repeats a record")
        return ledger

    def content(self, length: int) -> bytes:
        """Return the first `length` bytes of the chunk, every record checked."""
        return b"".join(self._data[position : position + item.size] for item, position in self._rounds(length))

    def _rounds(self, length: int) -> list[tuple[Round, int]]:
        taken = [(item, position) for item, position in self._content.rounds if item.offset + item.size <= length]
        if sum(item.size for item, _ in taken) != length:
            raise ChunkCorrupt(f"tail {id_text(self._handle)} has no round that ends at {length}")
        return taken


def encode_start(handle: ChunkHandle, start: TailStart) -> bytes:
    """Return the first frame of a file."""
    return _frame(handle, _ENCODER.encode(start), 0)


def encode_round(handle: ChunkHandle, item: Round) -> bytes:
    """Return what stands before the data of a round."""
    return _frame(handle, _ENCODER.encode(item), item.size)


def _frame(handle: ChunkHandle, head: bytes, data_size: int) -> bytes:
    sizes = struct.pack("<II", len(head), data_size)
    return handle + sizes + struct.pack("<I", crc32c(head, crc32c(sizes))) + head


def parse_tail(data: bytes, handle: ChunkHandle) -> TailContent:
    """Take in whole frames up to the first that is not; what follows it may only be a torn end.

    Raise `ChunkCorrupt` when the beginning is not there, or whole frames stand behind one that is not.
    """
    found = _next_frame(data, 0, handle)
    if found is None:
        raise ChunkCorrupt(f"the file of tail {id_text(handle)} does not begin like one")
    head, position, _ = found
    try:
        content = TailContent(_START.decode(head), end=position)
    except msgspec.MsgspecError as error:
        raise ChunkCorrupt(f"the beginning of tail {id_text(handle)} is damaged: {error}") from None
    while (taken := _next_round(data, content, handle)) is not None:
        item, position = taken
        content.rounds.append((item, position))
        content.length += item.size
        content.end = position + item.size
    if _has_frame(data, content.end + 1, handle):
        raise ChunkCorrupt(
            f"tail {id_text(handle)} is damaged at byte {content.end} of its file: whole rounds stand behind it, so "
            "this is no torn end"
        )
    return content


def _next_round(data: bytes, content: TailContent, handle: ChunkHandle) -> tuple[Round, int] | None:
    found = _next_frame(data, content.end, handle)
    if found is None:
        return None
    head, position, size = found
    try:
        item = _ROUND.decode(head)
        check_records(item.groups, memoryview(data)[position : position + size])
    except (msgspec.MsgspecError, DfsError):
        return None
    return (item, position) if item.offset == content.length else None


def _next_frame(data: bytes, position: int, handle: ChunkHandle) -> tuple[bytes, int, int] | None:
    """Return (head, position of the data, size of the data) of the whole frame at `position`, None when there is none.

    The head is whole by its CRC; the data are only known to be there.
    """
    if data[position : position + ID_SIZE] != handle or len(data) < position + FRAME_SIZE:
        return None
    head_size, data_size, crc = _SIZES.unpack_from(data, position + ID_SIZE)
    start = position + FRAME_SIZE
    head = data[start : start + head_size]
    if head_size > HEAD_SIZE_MAX or len(data) < start + head_size + data_size:
        return None
    sizes = data[position + ID_SIZE : position + ID_SIZE + 8]
    return (head, start + head_size, data_size) if crc32c(head, crc32c(sizes)) == crc else None


def _has_frame(data: bytes, position: int, handle: ChunkHandle) -> bool:
    """Whether a whole frame begins anywhere behind `position`."""
    while (position := data.find(handle, position)) >= 0:
        if _next_frame(data, position, handle) is not None:
            return True
        position += 1
    return False


def _write_all(fd: int, pieces: list[Buffer], offset: int) -> None:
    views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    while views:
        written = os.pwritev(fd, views, offset)
        offset += written
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if views and written:
            views[0] = views[0][written:]
