"""Checkpoints: the whole replicated state in one file that is either sound to the last byte or refused.

Owns: the file format, the folder that keeps the newest checkpoint and the one before, writing in a forked child, and
moving a checkpoint to a follower in bounded pieces. Refuses to know: pysyncobj, the network and what the state holds.

Format: `MAGIC`, frames `size crc32c data`, and a trailer with the BLAKE2b digest of all before it. The first frame
tells the last two log entries that the state holds. A file appears under its name `checkpoint-<log index>` only after
its bytes are on disk, so a newer one never replaces an older one in place.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import re
import signal
import struct
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from dfs.checksum import crc32c
from dfs.decoders import msgpack_decoder
from dfs.errors import StorageCorrupt
from dfs.log import get_logger
from dfs.master.raft_journal import make_folder, sync_directory
from dfs.master.raft_records import Entry
from dfs.master.raft_times import CHECKPOINTS
from dfs.master.replicated_log import CheckpointFile

MAGIC = b"DFScp\r\n\x01"  # the last byte is the format version
FRAME_SIZE_MAX = 64 * 1024 * 1024  # bytes; a state machine dumps in smaller pieces
PIECE_SIZE = 256 * 1024  # bytes sent to a follower at a time
KEPT = 2  # checkpoints in the folder: the newest and the one before
WRITE_TIMEOUT_S = 1800.0  # a child that takes longer is ended and counts as failed
_SYNC_EVERY = 2 * 1024 * 1024  # bytes received between two syncs, so that each is short: they hold the loop
_DIGEST_SIZE = 32
_FRAME = struct.Struct("<II")  # size, crc
_TRAILER = 0xFFFFFFFF  # in place of a size
_FILE_NAME = re.compile(r"checkpoint-(\d{20})\.dfs")
_EXIT_NOT_OS = 120  # exit status of a child that failed otherwise than by an OSError, whose status is its errno

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointHead:
    """What the state of a checkpoint holds: all entries up to and with `last`. `previous` is the entry before it."""

    previous: Entry
    last: Entry

    @property
    def index(self) -> int:
        return self.last[1]


_HEAD_DECODER = msgpack_decoder(tuple[Entry, Entry])


def _damaged(path: Path, why: str) -> StorageCorrupt:
    return StorageCorrupt(f"checkpoint {path} is damaged: {why}")


def write_checkpoint(path: Path, head: CheckpointHead, pieces: Iterable[bytes], *, fsync: bool) -> None:
    """Write a whole checkpoint file; it is on disk when this returns, its name is not yet."""
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)

    def put(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    with path.open("wb") as file:
        put(MAGIC)
        for piece in _with_head(head, pieces):
            if len(piece) > FRAME_SIZE_MAX:
                raise AssertionError(f"a state piece of {len(piece)} bytes is over {FRAME_SIZE_MAX}")
            put(_FRAME.pack(len(piece), crc32c(piece)))
            put(piece)
        put(_FRAME.pack(_TRAILER, 0))
        file.write(digest.digest())
        file.flush()
        if fsync:
            os.fsync(file.fileno())


def _with_head(head: CheckpointHead, pieces: Iterable[bytes]) -> Iterator[bytes]:
    yield msgspec.msgpack.encode((head.previous, head.last))
    yield from pieces


def read_frames(path: Path) -> Generator[bytes]:
    """Yield the frames, the head first; raise `StorageCorrupt`. Only a run to the end proves the file."""
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise _damaged(path, f"it begins with {magic!r}; if a newer version of dfs wrote it, upgrade")
        digest.update(magic)
        while True:
            start = file.read(_FRAME.size)
            digest.update(start)
            size, crc = _FRAME.unpack(start) if len(start) == _FRAME.size else (0, -1)
            if size == _TRAILER:
                break
            data = file.read(size) if size <= FRAME_SIZE_MAX else b""
            if len(data) != size or crc32c(data) != crc:
                raise _damaged(path, f"the checksum of the frame before byte {file.tell()} does not match")
            digest.update(data)
            yield data
        if file.read(_DIGEST_SIZE + 1) != digest.digest():
            raise _damaged(path, "the digest of the whole file does not match")


def verify_checkpoint(path: Path) -> CheckpointHead:
    """Read the whole file and return its head; raise `StorageCorrupt`."""
    head, pieces = open_checkpoint(path)
    for _ in pieces:
        pass
    return head


def open_checkpoint(path: Path) -> tuple[CheckpointHead, Generator[bytes]]:
    """Return the head and the pieces to come; raise `StorageCorrupt`, here and while they are taken.

    Nothing is proved before the pieces have come to their end.
    """
    frames = read_frames(path)
    frame = next(frames, None)
    if frame is None:
        raise _damaged(path, "it is empty")
    try:
        return CheckpointHead(*_HEAD_DECODER.decode(frame)), frames
    except msgspec.DecodeError as error:
        frames.close()
        raise _damaged(path, f"its head cannot be read ({error})") from None


def read_pieces(path: Path) -> Iterator[bytes]:
    """Yield the pieces of the state of a checkpoint that `verify_checkpoint` has passed."""
    frames = read_frames(path)
    next(frames)
    return frames


class CheckpointFolder:
    """The folder with the newest checkpoint and the one before."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        self.folder = folder
        self.fsync = fsync
        make_folder(folder)
        for leftover in folder.glob("*.tmp"):
            leftover.unlink()

    def path(self, index: int) -> Path:
        return self.folder / f"checkpoint-{index:020d}.dfs"

    def indexes(self) -> list[int]:
        """Return the log indexes of the checkpoints, oldest first."""
        names = (_FILE_NAME.fullmatch(name) for name in os.listdir(self.folder))  # noqa: PTH208 - names are enough
        return sorted(int(name[1]) for name in names if name)

    def find(self, index: int | None = None) -> CheckpointFile | None:
        """Return the checkpoint `index`, or the newest one; None when it is not there."""
        indexes = self.indexes()
        wanted = index if index is not None else indexes[-1] if indexes else 0
        try:
            facts = self.path(wanted).stat()
        except FileNotFoundError:
            return None
        return CheckpointFile(wanted, facts.st_size, max(0.0, time.time() - facts.st_mtime), self.path(wanted))

    def newest(self) -> Path | None:
        indexes = self.indexes()
        return self.path(indexes[-1]) if indexes else None

    def publish(self, draft: Path, index: int) -> None:
        """Give a written file its name and drop what is older than the one before it."""
        draft.rename(self.path(index))
        if self.fsync:
            sync_directory(self.folder)
        for old in self.indexes()[:-KEPT]:
            self.path(old).unlink(missing_ok=True)


class CheckpointWriter:
    """Writes one checkpoint at a time in a forked child, which has the state as it was at the fork.

    The child closes what it inherited (a listening socket kept open would hold the port after a kill), never touches
    the event loop, logs nothing (a lock may be held by a thread that it does not have) and ends by `os._exit`.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self._child = 0
        self._begun_s = 0.0
        self._deadline_s = 0.0
        self.index = 0  # of the checkpoint being written, or last written

    @property
    def is_writing(self) -> bool:
        return self._child != 0

    def start(self, head: CheckpointHead, dump: Callable[[], Iterator[bytes]]) -> None:
        if self._child:
            raise AssertionError("a checkpoint is being written already")
        self.index = head.index
        self._begun_s = time.monotonic()
        self._deadline_s = self._begun_s + WRITE_TIMEOUT_S
        parent = os.getpid()
        with warnings.catch_warnings():  # from 3.12 on fork warns when there are threads; the child uses none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child:
            self._child = child
        else:
            _run_child(self._folder, head, dump, parent)

    def poll(self) -> bool | None:
        """Return True once when a checkpoint is complete, False once when it failed, None otherwise."""
        if not self._child:
            return None
        try:
            found, status = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:  # somebody else reaped it: the file tells
            found, status = self._child, 0 if self._folder.path(self.index).exists() else 1
        if not found:
            if time.monotonic() > self._deadline_s:
                self.stop()
                _log.error("checkpoint_timeout", index=self.index, timeout_s=WRITE_TIMEOUT_S)
                return False
            return None
        self._child = 0
        if not status:
            CHECKPOINTS.observe(time.monotonic() - self._begun_s)
        else:
            code = os.waitstatus_to_exitcode(status)
            why = os.strerror(code) if 0 < code < _EXIT_NOT_OS else f"exit status {code}"
            _log.error("checkpoint_failed", index=self.index, folder=str(self._folder.folder), why=why)
        return not status

    def stop(self) -> None:
        """End the child, if there is one; its checkpoint does not appear."""
        child, self._child = self._child, 0
        if child:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            self._draft(self.index).unlink(missing_ok=True)

    def _draft(self, index: int) -> Path:
        return self._folder.folder / f"checkpoint-{index:020d}.tmp"


def _run_child(
    folder: CheckpointFolder, head: CheckpointHead, dump: Callable[[], Iterator[bytes]], parent: int
) -> None:
    """Write and publish, then end this process whatever happens."""
    status = _EXIT_NOT_OS
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 1 << 20))
        gc.disable()
        os.nice(10)
        draft = folder.folder / f"checkpoint-{head.index:020d}.tmp"
        write_checkpoint(draft, head, _while_child_of(parent, dump()), fsync=folder.fsync)
        _check_parent(parent)  # the draft of that name may be another one's by now: of the child of the next master
        folder.publish(draft, head.index)
        status = 0
    except OSError as error:
        status = min(error.errno or _EXIT_NOT_OS, _EXIT_NOT_OS)
    finally:
        os._exit(status)


def _while_child_of(parent: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pass pieces on until the parent is gone: an orphan must not work on."""
    for piece in pieces:
        _check_parent(parent)
        yield piece


def _check_parent(parent: int) -> None:
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "the master ended")


@dataclass(frozen=True, slots=True)
class CheckpointPiece:
    """A part of a checkpoint file on its way to a follower. `offset` in bytes; `index` names the checkpoint."""

    index: int
    offset: int
    data: bytes
    is_last: bool


class CheckpointSender:
    """Reads one checkpoint in pieces. It stays readable although a newer one replaces it meanwhile."""

    def __init__(self, path: Path, index: int) -> None:
        self._file: BinaryIO = path.open("rb")
        self._size = os.fstat(self._file.fileno()).st_size
        self._index = index
        self._offset = 0

    def next_piece(self) -> CheckpointPiece:
        offset, data = self._offset, self._file.read(PIECE_SIZE)
        self._offset += len(data)
        return CheckpointPiece(self._index, offset, data, self._offset >= self._size)

    def close(self) -> None:
        self._file.close()


class CheckpointReceiver:
    """Collects the pieces of one checkpoint; a gap or another checkpoint begins anew."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self._draft = folder.folder / "received.tmp"
        self._file: BinaryIO | None = None
        self._index = self._offset = self._synced = 0

    def take(self, piece: CheckpointPiece) -> Path | None:
        """Return the draft when the last piece has come: on disk, but not verified."""
        if piece.offset == 0:
            self.close()
            self._file, self._index, self._offset, self._synced = self._draft.open("wb"), piece.index, 0, 0
        if self._file is None or (piece.index, piece.offset) != (self._index, self._offset):
            self.close()
            return None
        self._file.write(piece.data)
        self._offset += len(piece.data)
        if self._folder.fsync and (piece.is_last or self._offset - self._synced >= _SYNC_EVERY):
            self._file.flush()
            os.fdatasync(self._file.fileno())
            self._synced = self._offset
        if not piece.is_last:
            return None
        self.close()
        return self._draft

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
