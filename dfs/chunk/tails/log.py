"""The file of a tail: rounds of records, written where a sealed replica has them, and read back after a power cut.

Owns: the format of the file, torn ends, and damage. Refuses to know: chains, sockets, and who may append.

The bytes of the records stand from the beginning of the file on, as in a sealed replica; so to seal a tail is to cut
the file (docs/adr/0021). The journal of the rounds begins at JOURNAL_START, behind a hole; one sync covers both.
It is frames: 16 bytes of the chunk handle, size of the head, 0, a CRC32C of sizes and head, the head (msgpack). The
first head is a `TailStart`, each further one a `Round`. In format 1, which is still read, the journal was all of the
file, and the data of a round followed its head.
"""

from __future__ import annotations

import os
import struct
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dfs.checksum import BLOCK_SIZE, Buffer, combine, crc32c
from dfs.chunk.identity import sync_directory
from dfs.chunk.layout import CHUNK_SIZE_MAX, TAIL_SIZE_MAX
from dfs.chunk.tails.order import Ledger
from dfs.chunk.writeback import reserve_room, start_writeback
from dfs.decoders import msgpack_decoder
from dfs.errors import ChunkCorrupt, DfsError, TailClosed, VersionMismatch
from dfs.ids import ID_SIZE, ChunkHandle, id_text
from dfs.net.parts import AppenderState, RecordGroup
from dfs.page_cache import write_at

FORMAT_VERSION = 2
TAIL_SUFFIX = ".tail"  # of a file of this format; one of format 1 has none
JOURNAL_START = CHUNK_SIZE_MAX + -(-TAIL_SIZE_MAX // BLOCK_SIZE) * BLOCK_SIZE  # behind the largest sealed replica
WRITEBACK_SIZE = 256 * 1024  # bytes of a round from which it pays to let the disk begin before the sync
RESERVE_SIZE = 8 * 1024 * 1024  # bytes for which room is made ahead of a large round; sealing gives back what is left
READ_SIZE = 16 * BLOCK_SIZE  # bytes read at a time for the checksums of blocks

_SIZES = struct.Struct("<III")  # head size, data size, CRC32C of both and the head
FRAME_SIZE = ID_SIZE + _SIZES.size
HEAD_SIZE_MAX = 16 * 1024 * 1024  # bytes; a larger one is damage


class TailStart(msgspec.Struct, frozen=True, array_like=True):
    """What a tail is made with."""

    base: int
    size_max: int
    record_size_max: int
    appenders: tuple[AppenderState, ...]
    format: int = 1

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
    rounds: list[tuple[Round, int]] = field(default_factory=list)  # with the position of its data in the file
    length: int = 0  # bytes of records
    end: int = 0  # of the last whole frame in the journal


_ENCODER = msgspec.msgpack.Encoder()
_START: msgspec.msgpack.Decoder[TailStart] = msgpack_decoder(TailStart)
_ROUND: msgspec.msgpack.Decoder[Round] = msgpack_decoder(Round)


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
    """A tail on disk that this process made: it may be appended to and read. A round is one thread's at a time."""

    def __init__(self, path: Path, handle: ChunkHandle, fd: int, end: int) -> None:
        self.path = path
        self.handle = handle
        self.length = 0  # bytes of records, all of them synced
        self.end = end  # of the journal
        self._fd = fd
        self._writing = threading.Lock()
        self._is_ended = False
        self._reserved = 0  # bytes for which room was asked
        self._ends = array("Q")  # of each record
        self._crcs = array("I")

    @classmethod
    def create(cls, path: Path, handle: ChunkHandle, start: TailStart) -> TailFile:
        """Make the file, durably; raise OSError (FileExistsError: this tail was made before)."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            frame = encode_start(handle, start)
            _write_all(fd, [frame], JOURNAL_START)
            os.fdatasync(fd)
            sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return cls(path, handle, fd, JOURNAL_START + len(frame))

    def make_room(self, size: int) -> None:
        """Have room allocated for the next `size` bytes, and for what is likely to follow them."""
        end = self.length + size
        with self._writing:  # not in a sealed replica, which would keep it for ever
            if not self._is_ended and self._reserved < end <= JOURNAL_START - RESERVE_SIZE:
                start = max(self._reserved, self.length)
                self._reserved = end + RESERVE_SIZE
                reserve_room(self._fd, start, self._reserved - start)

    def stage(self, data: Buffer, behind: int = 0) -> None:
        """Write data of the next round, `behind` bytes after its beginning; nothing of it counts before `append`.

        Raise OSError, or `TailClosed` after `end_writing`.
        """
        with self._writing:
            self._check_open()
            write_at(self._fd, memoryview(data).cast("B"), self.length + behind)
        if len(data) >= WRITEBACK_SIZE:
            start_writeback(self._fd, self.length + behind, len(data))

    def append(self, item: Round) -> None:
        """Make a round durable whose data are staged; raise as `stage`, then nothing may be appended any more."""
        frame = encode_round(self.handle, item)
        with self._writing:
            self._check_open()
            _write_all(self._fd, [frame], self.end)
            os.fdatasync(self._fd)
        for length, crc in item.records():
            self.length += length
            self._ends.append(self.length)
            self._crcs.append(crc)
        self.end += len(frame)

    def _check_open(self) -> None:
        if self._is_ended:
            raise TailClosed(f"tail {id_text(self.handle)} was sealed while a round of it was under way")

    def end_writing(self) -> None:
        """Let nothing be written any more: the file is about to become a sealed replica."""
        with self._writing:
            self._is_ended = True

    def read(self, offset: int, committed: int, size_max: int) -> tuple[int, list[int], list[int], bytes]:
        """Return (start, lengths, CRCs, bytes) of whole records below `committed`, from the one at `offset` on."""
        first = index = bisect_right(self._ends, offset)
        start = position = self._ends[index - 1] if index else 0
        lengths: list[int] = []
        while index < len(self._ends) and self._ends[index] <= committed:
            length = self._ends[index] - position
            if lengths and position + length - start > size_max:
                break
            lengths.append(length)
            position, index = self._ends[index], index + 1
        return start, lengths, list(self._crcs[first:index]), _read_all(self._fd, start, position - start)

    def __del__(self) -> None:
        os.close(self._fd)  # not before the last reader has let go: the number would be another file's


class TailLog:
    """A tail's file as it is found: by a server that restarted, or to make a sealed replica of it."""

    def __init__(self, path: Path, handle: ChunkHandle, *, is_checked: bool = False) -> None:
        """Read and check all of it; raise `ChunkCorrupt` when it is damaged, OSError when it cannot be read.

        `is_checked`: only read the journal; the caller compares the data it needs with `crc`.
        """
        self.path = path
        self._handle = handle
        with path.open("rb", buffering=0) as file:
            is_inline = path.suffix != TAIL_SUFFIX
            self._content = parse_tail(file.fileno(), handle, is_inline=is_inline, is_checked=is_checked)
        self.length = self._content.length

    def ledger(self, length: int) -> Ledger:
        """Return the table for exactly the first `length` bytes."""
        ledger = self._content.start.ledger()
        for item, _ in self._rounds(length):
            for group in item.groups:
                if ledger.admit(group).fresh != group:
                    raise ChunkCorrupt(f"the log of tail {id_text(self._handle)} repeats a record")
        return ledger

    def record_count(self, length: int) -> int:
        return sum(len(group.lengths) for item, _ in self._rounds(length) for group in item.groups)

    def crc(self, length: int) -> int:
        """Return the CRC32C of the first `length` bytes, by those of the records: some microseconds for each."""
        crc = 0
        for item, _ in self._rounds(length):
            for size, record_crc in item.records():
                crc = combine(crc, record_crc, size)
        return crc

    def content(self, length: int) -> bytes:
        """Return the first `length` bytes of the chunk."""
        rounds = self._rounds(length)
        with self.path.open("rb", buffering=0) as file:
            return b"".join(_read_all(file.fileno(), position, item.size) for item, position in rounds)

    def _rounds(self, length: int) -> list[tuple[Round, int]]:
        taken = [(item, position) for item, position in self._content.rounds if item.offset + item.size <= length]
        if sum(item.size for item, _ in taken) != length:
            raise ChunkCorrupt(f"tail {id_text(self._handle)} has no round that ends at {length}")
        return taken


def read_data(path: Path, length: int) -> Iterator[bytes]:
    """Yield the first `length` bytes of a file of this format, in pieces of whole blocks; raise OSError."""
    with path.open("rb", buffering=0) as file:
        for start in range(0, length, READ_SIZE):
            yield _read_all(file.fileno(), start, min(READ_SIZE, length - start))


def encode_start(handle: ChunkHandle, start: TailStart) -> bytes:
    """Return the first frame of a journal."""
    return encode_frame(handle, _ENCODER.encode(msgspec.structs.replace(start, format=FORMAT_VERSION)))


def encode_round(handle: ChunkHandle, item: Round) -> bytes:
    """Return the frame of a round."""
    return encode_frame(handle, _ENCODER.encode(item))


def encode_frame(handle: ChunkHandle, head: bytes) -> bytes:
    """Return a head as it stands in a file, with what proves it whole."""
    sizes = struct.pack("<II", len(head), 0)
    return handle + sizes + struct.pack("<I", crc32c(head, crc32c(sizes))) + head


def decode_frame(data: bytes, handle: ChunkHandle) -> bytes | None:
    """Return the head at the beginning of `data`, None when it is not whole."""
    found = _next_frame(data, 0, handle)
    return None if found is None else found[0]


def parse_tail(fd: int, handle: ChunkHandle, *, is_inline: bool = False, is_checked: bool = False) -> TailContent:
    """Take in whole rounds up to the first that is not; what follows it may only be a torn end.

    `is_inline`: in format 1; `is_checked`: the data need not be read. Raise `ChunkCorrupt` when the beginning is not
    there, or whole rounds stand behind one that is not, `VersionMismatch` for a newer format.
    """
    start = 0 if is_inline else JOURNAL_START
    journal = _read_all(fd, start, max(0, os.fstat(fd).st_size - start))
    found = _next_frame(journal, 0, handle)
    if found is None:
        raise ChunkCorrupt(f"the file of tail {id_text(handle)} does not begin like one")
    head, position, _ = found
    try:
        content = TailContent(_START.decode(head), end=position)
    except msgspec.MsgspecError as error:
        raise ChunkCorrupt(f"the beginning of tail {id_text(handle)} is damaged: {error}") from None
    if content.start.format != (1 if is_inline else FORMAT_VERSION):
        raise VersionMismatch(
            f"tail {id_text(handle)} has format {content.start.format}, this chunk server reads formats 1 and "
            f"{FORMAT_VERSION}; start the version of dfs that wrote it"
        )
    while (taken := _next_round(fd, journal, content, handle, is_checked)) is not None:
        item, position, end = taken
        content.rounds.append((item, position))
        content.length += item.size
        content.end = end
    if _has_frame(journal, content.end + 1, handle):
        raise ChunkCorrupt(
            f"tail {id_text(handle)} is damaged at byte {content.end} of its journal: whole rounds stand behind it, so "
            "this is no torn end"
        )
    return content


def _next_round(
    fd: int, journal: bytes, content: TailContent, handle: ChunkHandle, is_checked: bool
) -> tuple[Round, int, int] | None:
    """Return the round at the end of what is known, the position of its data in the file, and its end."""
    found = _next_frame(journal, content.end, handle)
    if found is None:
        return None
    head, end, inline_size = found
    is_inline = content.start.format == 1
    try:
        item = _ROUND.decode(head)
        position = end if is_inline else item.offset
        if item.offset != content.length or not 0 <= item.size <= CHUNK_SIZE_MAX - item.offset:
            return None
        if not is_checked:
            check_records(item.groups, _read_all(fd, position, inline_size if is_inline else item.size))
    except (msgspec.MsgspecError, DfsError):
        return None
    return item, position, end + inline_size


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


def _read_all(fd: int, offset: int, size: int) -> bytes:
    """Return `size` bytes, fewer at the end of the file."""
    data = os.pread(fd, size, offset)
    while 0 < len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
        data += more
    return data
