"""The durable Raft log of one master: append-only segments, written and fdatasynced in groups.

Owns: segment files, the in-memory log, term and vote, and what is known to be on disk.
Refuses to know: pysyncobj, elections, the network and what a command means.

Nothing is rewritten in place. A write batch is a MARK, the records of one loop turn and one fdatasync. Every start
begins a new segment whose HEAD says where the previous one ends, so that a torn tail is cut without touching it.
All methods but the end of `close` belong to the loop thread; the writer thread talks back through `post`. While the
disk is quick the loop thread writes a batch itself: to hand it over and to hear of it takes longer than the disk does
(docs/adr/0032).
A failed write or sync is final: `on_failure` is called once, nothing becomes durable any more, and the owner must stop
(fsync may not be asked twice).
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dfs.errors import DfsError, DiskFailed, DiskFull, InternalError, StorageCorrupt
from dfs.fast_paths import FastPath, is_on
from dfs.log import get_logger
from dfs.master.raft_records import (
    FORMAT_VERSION,
    WAY_OUT,
    Entry,
    Kind,
    Replay,
    SegmentHead,
    encode_head,
    encode_record,
    parse_head,
)
from dfs.master.raft_times import SYNCS

SEGMENT_SIZE = 8 * 1024 * 1024  # bytes; prepared ahead and zero-filled, so that a fdatasync needs no metadata
_FILL_SIZE = 256 * 1024  # bytes zero-filled per step: a larger sync would hold up the journal's own
_FIRST_BATCH_ROOM = 4096  # bytes; a segment this empty takes a batch of any size
SLICE_ENTRIES_MAX = 512  # a slice of the log: what the engine sends in one message or applies in one turn
SLICE_SIZE_MAX = 512 * 1024  # bytes of commands in a slice of three or more
_SETTLE_S = 1.0  # after a batch its MARK is written at the latest, if no other batch has brought it
QUICK_S = 0.001  # a disk that syncs in less, on average, is not worth another thread
QUICK_SIZE_MAX = 64 * 1024  # bytes of a batch that the loop thread may write
_PACE_SHARE = 16  # of the average each new sync makes up one part: the last few dozen decide
_PACE_AT_START_S = 0.1  # nothing is known: some dozens of quick syncs have to prove it
_SPARE = "next.tmp"
_SEGMENT_GLOB = "[0-9]" * 16 + ".seg"

_log = get_logger(__name__)
Post = Callable[..., object]  # loop.call_soon_threadsafe


@dataclass(frozen=True, slots=True)
class _Batch:
    data: bytes
    sequence: int
    last_index: int
    epoch: int
    vote: tuple[int, str | None]


@dataclass(frozen=True, slots=True)
class _Release:
    index: int


@dataclass(frozen=True, slots=True)
class _Settle:
    """The loop thread has written a batch: its MARK is due in a while."""


def sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, private, and so that their names survive a power cut, too."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in missing:
        sync_directory(path.parent)


def write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def disk_error(error: OSError, folder: Path, doing: str) -> DfsError:
    """Translate an `OSError` of the master's own disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{doing} in {folder} failed: the disk is full; free space there and start this master again")
    return DiskFailed(f"{doing} in {folder} failed: {error.strerror}; check the disk, then start this master again")


class Journal:
    """The log entries, the term and the vote of one master. Opening replays what is on disk.

    `sequence` counts records made, `durable` is the last of them on disk, `vote_sequence` the last VOTE record.
    `durable_index` is the last log index on disk.
    """

    def __init__(self, folder: Path, *, name: str, fsync: bool = True, segment_size: int = SEGMENT_SIZE) -> None:
        self.folder = folder
        self.entries: list[Entry] = []
        self.term = 0
        self.vote: str | None = None
        self.sequence = self.durable = self.vote_sequence = 0
        self.durable_index = 0
        self.flush_count = 0
        self.appended_size = 0  # bytes of commands appended, those read at start included
        self._name = name
        self._fsync = fsync
        self._segment_size = segment_size
        self._salt = int.from_bytes(os.urandom(4), "little")
        self._epoch = 0  # changes when indexes are reused: a batch of an older epoch proves nothing about an index
        self._buffer: list[bytes] = []
        self._is_writing = False
        self._is_stopped = False
        self._failure: DfsError | None = None
        self._queue: queue.SimpleQueue[_Batch | _Release | _Settle | None] = queue.SimpleQueue()
        self._disk = threading.Lock()  # held by the thread that writes; the loop thread never waits for it
        self._is_disk_broken = False  # under the lock: a write or a sync has failed
        self._pace_s = _PACE_AT_START_S  # of a sync, on average
        self._quick_s = QUICK_S if is_on(FastPath.QUICK_JOURNAL) else 0.0
        self._writer: threading.Thread | None = None
        self._preparer: threading.Thread | None = None
        self._closed_segments: list[tuple[int, int]] = []  # number, last log index at its end
        self._written_last = 0
        self._written_vote: tuple[int, str | None] = (0, None)
        self._fd = -1
        self._number = self._offset = self._synced_offset = 0
        self._needs_mark = False
        self._post: Post = lambda *_: None
        self._on_durable: Callable[[], None] = lambda: None
        self._on_failure: Callable[[DfsError], None] = lambda _: None
        try:
            make_folder(folder)
            previous_end = self._load()
            self._roll(self._closed_segments[-1][0] + 1 if self._closed_segments else 1, previous_end)
        except OSError as error:
            raise disk_error(error, folder, "opening the Raft journal") from error

    # --- opening ----------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:016d}.seg"

    def _load(self) -> int:
        """Replay all segments; return the end of the last one."""
        numbers = sorted(int(path.stem) for path in self.folder.glob(_SEGMENT_GLOB))
        heads = [self._load_head(number) for number in numbers]
        replay, end = Replay(), 0
        for position, (number, head) in enumerate(zip(numbers, heads, strict=True)):
            if position and number != numbers[position - 1] + 1:
                raise StorageCorrupt(
                    f"the Raft journal in {self.folder} misses segment {numbers[position - 1] + 1}; {WAY_OUT}"
                )
            is_newest = position + 1 == len(numbers)
            limit = None if is_newest else heads[position + 1].previous_end
            path = self._path(number)
            data = path.read_bytes()
            end = replay.read_segment(data, head, limit, str(path))
            self._closed_segments.append((number, replay.entries[-1][1] if replay.entries else 0))
            if is_newest:
                self._adopt_tail(path, data, replay.marked, end)
        self.entries, self.vote = replay.entries, replay.vote
        self.term = replay.term
        if self.entries and self.entries[-1][2] > self.term:
            raise StorageCorrupt(f"the Raft journal in {self.folder} ends in a term after its own; {WAY_OUT}")
        self._written_vote = (self.term, self.vote)
        self.appended_size = sum(len(entry[0]) for entry in self.entries)
        self.durable_index = self._written_last = self.last_index
        return end

    def _load_head(self, number: int) -> SegmentHead:
        path = self._path(number)
        with path.open("rb") as file:
            head = parse_head(file.read(4096))
        if head is None or head.number != number:
            raise StorageCorrupt(f"the Raft journal is damaged: {path} has no readable head; {WAY_OUT}")
        if head.version != FORMAT_VERSION:
            raise StorageCorrupt(f"{path} has journal format {head.version}, {FORMAT_VERSION} is read here; upgrade")
        if head.node != self._name:
            raise StorageCorrupt(
                f"{path} belongs to master {head.node!r}, not to {self._name!r}; correct data_dir in the configuration"
            )
        return head

    def _adopt_tail(self, path: Path, data: bytes, marked: int, end: int) -> None:
        """Make what was read durable (a killed process leaves it in the page cache only) and tell of a torn tail.

        What no MARK vouches for is written again: after a failed sync the kernel calls pages clean that never reached
        the disk, and a sync alone would believe it.
        """
        if data.count(0, end) != len(data) - end:
            _log.warning("journal_tail_cut", file=str(path), offset=end)
        if self._fsync:
            fd = os.open(path, os.O_RDWR)
            try:
                write_all(fd, data[marked:end], marked)
                os.fdatasync(fd)
            finally:
                os.close(fd)

    # --- the log (loop thread) -----------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        return self.entries[0][1] if self.entries else 1

    @property
    def last_index(self) -> int:
        return self.entries[-1][1] if self.entries else 0

    @property
    def last_term(self) -> int:
        return self.entries[-1][2] if self.entries else 0

    def term_at(self, index: int) -> int | None:
        """Return the term of the entry at a log index, `None` when it is not held."""
        position = index - self.first_index
        return self.entries[position][2] if 0 <= position < len(self.entries) else None

    def slice(self, start: int, stop: int | None) -> list[Entry]:
        """Return entries by position, as many as the limits of a slice allow; a last two always."""
        stop = len(self.entries) if stop is None else stop
        found = self.entries[start : min(stop, start + SLICE_ENTRIES_MAX)]
        if len(found) <= 2:  # a checkpoint needs two entries, whatever their size
            return found
        size = 0
        for count, entry in enumerate(found):
            size += len(entry[0])
            if size > SLICE_SIZE_MAX and count:
                return found[:count]
        return found

    def append(self, command: bytes, index: int, term: int) -> None:
        if self.entries and index != self.last_index + 1:
            raise AssertionError(f"log index {index} appended after {self.last_index}")
        self.entries.append((command, index, term))
        self.appended_size += len(command)
        self._put(Kind.ENTRY, index, term, command)

    def truncate_from(self, position: int) -> None:
        """Drop the entries from `position` on (they conflict with the leader's)."""
        if position < len(self.entries):
            index = self.entries[position][1]
            del self.entries[position:]
            self.durable_index = min(self.durable_index, index - 1)
            self._epoch += 1
            self._put(Kind.TRUNCATE, index, 0)

    def reset(self) -> None:
        """Drop all entries (a checkpoint replaces them)."""
        self.entries = []
        self.durable_index = 0
        self._epoch += 1
        self._put(Kind.RESET, 0, 0)

    def forget(self, count: int) -> None:
        """Drop the first `count` entries from memory; the disk keeps them until `release`."""
        if count > 0:
            del self.entries[:count]

    def release(self, index: int) -> None:
        """Delete the segments that hold no entry at or after a log index."""
        self._queue.put(_Release(index))

    def set_vote(self, term: int, vote: str | None) -> None:
        if (term, vote) != (self.term, self.vote):
            self.term, self.vote = term, vote
            self._put(Kind.VOTE, term, 0, (vote or "").encode())
            self.vote_sequence = self.sequence

    def _put(self, kind: Kind, a: int, b: int, payload: bytes = b"") -> None:
        self._buffer.append(encode_record(kind, a, b, payload, salt=self._salt))
        self.sequence += 1

    # --- group commit ----------------------------------------------------------------------------------

    def attach(self, post: Post, on_durable: Callable[[], None], on_failure: Callable[[DfsError], None]) -> None:
        """Start the writer thread; the callbacks are run through `post`."""
        self._post, self._on_durable, self._on_failure = post, on_durable, on_failure
        writer = threading.Thread(target=self._write_forever, name="raft-journal", daemon=True)
        writer.start()
        self._writer = writer

    def flush(self) -> None:
        """Let the buffered records become durable: here and now when the disk is quick (`on_durable` is called), else
        by the writer; when that is busy they go with its next batch."""
        if self._buffer and not (self._is_writing or self._is_stopped) and self._failure is None:
            batch = self._take_buffer()
            if not self._write_here(batch):
                self._is_writing = True
                self._queue.put(batch)

    @property
    def is_quick(self) -> bool:
        """Whether the disk takes less time than another thread would: `flush` may do it all."""
        return self._pace_s < self._quick_s

    @property
    def has_waiting(self) -> bool:
        """Whether there are records for `flush` to hand on."""
        return bool(self._buffer)

    def _write_here(self, batch: _Batch) -> bool:
        """Write a small batch in this thread; return False when it is the writer's business."""
        if not self.is_quick or len(batch.data) > QUICK_SIZE_MAX or not self._disk.acquire(blocking=False):
            return False
        try:
            if self._is_disk_broken or self._offset + len(batch.data) > self._segment_size:
                return False
            was_settled = not self._needs_mark
            self._write_batch(batch)
        except OSError as error:
            self._is_disk_broken = True
            self._failed(self._disk_error(error))
            return True
        finally:
            self._disk.release()
        if was_settled:
            self._queue.put(_Settle())
        self._written(batch)
        return True

    def _take_buffer(self) -> _Batch:
        data = b"".join(self._buffer)
        self._buffer.clear()
        return _Batch(data, self.sequence, self.last_index, self._epoch, (self.term, self.vote))

    def stop(self) -> None:
        """Hand what is buffered to the writer, as its last batch; nothing may be appended afterwards."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self._post = lambda *_: None
        if self._writer is not None:
            if self._buffer and self._failure is None:
                self._queue.put(self._take_buffer())
            self._queue.put(None)

    def close(self) -> None:
        """Stop, and wait for the writer's end: after a `stop` by the loop thread any other one may do that."""
        self.stop()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.join()
        if self._preparer is not None:
            self._preparer.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _written(self, batch: _Batch) -> None:
        self._is_writing = False
        self.durable = batch.sequence
        self.flush_count += 1
        if batch.epoch == self._epoch:
            self.durable_index = batch.last_index
        self.flush()
        self._on_durable()

    def _failed(self, error: DfsError) -> None:
        if self._failure is None:
            self._failure = error
            self._on_failure(error)

    # --- the writer thread -------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        try:
            while self._write_next():
                pass
        except OSError as error:
            self._report(self._failed, self._disk_error(error))
        except Exception as error:  # noqa: BLE001 - a thread root: a master whose journal has ended must not lead on
            _log.exception("journal_writer_failed", folder=str(self.folder))
            self._report(self._failed, InternalError(f"the writer of the Raft journal met a bug: {error!r}; report it"))

    def _disk_error(self, error: OSError) -> DfsError:
        return disk_error(error, self.folder, "writing the Raft journal")

    def _write_next(self) -> bool:
        try:
            job = self._queue.get(timeout=_SETTLE_S if self._needs_mark else None)
            is_mark_due = job is None
        except queue.Empty:
            job, is_mark_due = _Settle(), True
        if isinstance(job, _Settle) and not is_mark_due:
            return True  # the wait for its moment begins; the disk stays the loop's meanwhile
        with self._disk:
            try:
                if is_mark_due and self._needs_mark:
                    self._write_mark()
                elif isinstance(job, _Release):
                    self._delete_below(job.index)
                elif isinstance(job, _Batch):
                    self._write_batch(job)
            except BaseException:
                self._is_disk_broken = True
                raise
        if isinstance(job, _Batch):
            self._report(self._written, job)
        return job is not None

    def _report(self, callback: Callable[..., None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._post(callback, argument)

    def _write_batch(self, batch: _Batch) -> None:
        is_full = self._offset + len(batch.data) > self._segment_size
        if is_full and self._offset > min(_FIRST_BATCH_ROOM, self._segment_size // 2):
            self._closed_segments.append((self._number, self._written_last))
            os.close(self._fd)
            self._fd = -1
            self._roll(self._number + 1, self._offset)
        mark = encode_record(Kind.MARK, self._synced_offset, 0, salt=self._salt)
        self._append(mark + batch.data)
        self._written_last, self._written_vote = batch.last_index, batch.vote
        self._needs_mark = True

    def _write_mark(self) -> None:
        self._append(encode_record(Kind.MARK, self._synced_offset, 0, salt=self._salt))
        self._needs_mark = False

    def _append(self, data: bytes) -> None:
        begun_s = time.perf_counter()
        write_all(self._fd, data, self._offset)
        self._offset += len(data)
        if self._fsync:
            os.fdatasync(self._fd)
        took_s = time.perf_counter() - begun_s
        self._pace_s += (took_s - self._pace_s) / _PACE_SHARE
        SYNCS.observe(took_s)
        self._synced_offset = self._offset

    def _roll(self, number: int, previous_end: int) -> None:
        """Begin segment `number`: its head is on disk before its name is, and only then the old tail is given back."""
        preparer, self._preparer = self._preparer, None
        if preparer is not None:
            preparer.join()
        spare = self.folder / _SPARE
        if preparer is None or not spare.exists():
            self._fill_spare()
        start = encode_head(number, previous_end, self._salt, self._name)
        term, vote = self._written_vote
        start += encode_record(Kind.VOTE, term, 0, (vote or "").encode(), salt=self._salt)
        fd = os.open(spare, os.O_RDWR)
        try:
            write_all(fd, start, 0)
            if self._fsync:
                os.fdatasync(fd)
            spare.rename(self._path(number))
            if self._fsync:
                sync_directory(self.folder)
        except OSError:
            os.close(fd)
            raise
        self._fd, self._number, self._offset = fd, number, len(start)
        self._synced_offset = self._offset
        if self._closed_segments:
            os.truncate(self._path(self._closed_segments[-1][0]), previous_end)
        preparer = threading.Thread(target=self._prepare, name="raft-journal-spare", daemon=True)
        try:
            preparer.start()
        except RuntimeError as error:  # the system has no thread for us: the next roll prepares its segment itself
            _log.warning("journal_spare_failed", folder=str(self.folder), error=str(error))
        else:
            self._preparer = preparer

    def _prepare(self) -> None:
        try:
            self._fill_spare()
        except OSError as error:  # not yet fatal: the current segment has room, the next roll tries again
            _log.warning("journal_spare_failed", folder=str(self.folder), error=str(error))
            with contextlib.suppress(OSError):
                (self.folder / _SPARE).unlink()

    def _fill_spare(self) -> None:
        fd = os.open(self.folder / _SPARE, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
        try:
            for offset in range(0, self._segment_size, _FILL_SIZE):
                write_all(fd, bytes(min(_FILL_SIZE, self._segment_size - offset)), offset)
                if self._fsync:
                    os.fdatasync(fd)
            if self._fsync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _delete_below(self, index: int) -> None:
        while self._closed_segments and self._closed_segments[0][1] < index:
            self._path(self._closed_segments.pop(0)[0]).unlink()
            if self._fsync:
                sync_directory(self.folder)  # one by one: a power cut must leave no hole in the numbers
