"""One data directory: its folders, its health, and the judgement of every operating system error on it.

Owns: paths below the directory, free space, the states ok, full and failed, scanning and quarantining files.
Refuses to know: which replicas exist (dfs.chunk.store) and the other disks.

Below the directory: `chunks/xx/<32 hex>` sealed replicas, xx the first two digits; `tmp/` replicas being written,
emptied at each start; `quarantine/` damaged files for an operator to look at, never served.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from dfs.chunk.identity import DataDirectory, sync_directory
from dfs.chunk.layout import TRAILER_SIZE, Tail, data_length, decode_tail, file_size
from dfs.chunk.quarantine import Quarantine
from dfs.chunk.replicas import Replica, Space, SpaceProbe
from dfs.clock import SYSTEM_CLOCK, Clock
from dfs.errors import ChunkCorrupt, DfsError, DiskFailed, DiskFull, Overloaded, VersionMismatch
from dfs.ids import ID_SIZE, ChunkHandle, id_text
from dfs.log import get_logger
from dfs.net.parts import DiskReport

FOLDER_COUNT = 256  # below chunks/, named by the first byte of a handle
SPACE_AGE_MAX_S = 0.02  # of what is known of free space: a disk takes no more in it than any reserve allows for
FULL_RETRY_S = 10.0  # how long a disk that said "no space" is left alone, whatever its free bytes

_FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})
_BUSY_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})

log = get_logger(__name__)


def measure_space(path: Path) -> Space:
    """Return the space of the file system that holds `path`."""
    figures = os.statvfs(path)
    return Space(figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize)


class RecentSpace:
    """A probe that asks the file system anew at most every `SPACE_AGE_MAX_S`. Safe in any thread."""

    def __init__(self, probe: SpaceProbe = measure_space, clock: Clock = SYSTEM_CLOCK) -> None:
        self._probe = probe
        self._clock = clock
        self._seen: dict[Path, tuple[float, Space]] = {}

    def __call__(self, path: Path) -> Space:
        now_s = self._clock.monotonic()
        seen = self._seen.get(path)
        if seen is not None and now_s < seen[0]:
            return seen[1]
        space = self._probe(path)
        self._seen[path] = now_s + SPACE_AGE_MAX_S, space
        return space


class Disk:
    """One data directory in use. Safe in any thread; `on_failed` is called once, without any lock held."""

    def __init__(
        self,
        claimed: DataDirectory,
        *,
        reserve: int,
        probe: SpaceProbe,
        clock: Clock,
        on_failed: Callable[[Disk], None],
    ) -> None:
        self.path = claimed.path
        self.temporary = claimed.path / "tmp"
        self.damaged = Quarantine(claimed.path / "quarantine")
        self.chunks = claimed.path / "chunks"
        self.writers = 0  # replicas being written; the store's to count
        self.chunk_count = 0  # likewise
        self._claimed = claimed
        self._reserve = reserve
        self._probe = probe
        self._clock = clock
        self._on_failed = on_failed
        self._lock = threading.Lock()
        self._failure = claimed.failure
        self._full_until_s = 0.0
        self._place = self._look() if not claimed.failure else None

    # --- health ---------------------------------------------------------------------------------------

    @property
    def has_failed(self) -> bool:
        return bool(self._failure)

    def fail(self, reason: str) -> None:
        """Take the disk out of use until the next start."""
        with self._lock:
            if self._failure:
                return
            self._failure = reason
        log.error("disk_failed", disk=self.path, reason=reason, action="mend or mount it, then restart this server")
        self._on_failed(self)

    def judge(self, error: OSError, doing: str) -> DfsError:
        """Return what an error of the operating system means to a caller, and draw the consequence for the disk."""
        text = f"{doing} on disk {self.path} failed: {error.strerror or error}"
        if error.errno in _BUSY_ERRORS:
            return Overloaded(f"{text}; the server is out of memory or file descriptors (see ulimit -n)")
        if error.errno in _FULL_ERRORS:
            self._full_until_s = self._clock.monotonic() + FULL_RETRY_S
            return DiskFull(f"{text}; write elsewhere")
        self.check_place()  # a directory that is not there any more explains the error better than the error does
        self.fail(text)
        return DiskFailed(f"{text}; the disk is out of use")

    def is_in_place(self) -> bool:
        """Whether the disk works and its directory is the one that was claimed: only then may anything be put there."""
        self.check_place()
        return not self._failure

    def check_place(self) -> None:
        """Fail the disk when its directory is no longer the one that was claimed (unmounted, replaced, removed)."""
        if not self._failure and self._look() != self._place:
            self.fail(f"data directory {self.path} vanished or was replaced while in use")

    def _look(self) -> tuple[int, int] | None:
        try:
            seen = self.path.stat()
        except OSError:
            return None
        return seen.st_dev, seen.st_ino

    @property
    def device(self) -> int:
        """A number that data directories on the same file system share."""
        return self._place[0] if self._place else -1

    def space(self) -> Space:
        """Return the capacity and what chunks may still take; nothing when failed."""
        if self._failure:
            return Space(0, 0)
        try:
            whole = self._probe(self.path)
        except OSError as error:
            self.judge(error, "asking for the free space")
            return Space(0, 0)
        is_full = self._clock.monotonic() < self._full_until_s
        return Space(whole.capacity, 0 if is_full else max(0, whole.free - self._reserve))

    def check_room(self, size: int) -> None:
        """Raise `DiskFull` when `size` more bytes would use the reserve, `DiskFailed` when the disk is out."""
        free = self.space().free
        if self._failure:
            raise DiskFailed(f"disk {self.path} is out of use: {self._failure}")
        if free < size:
            raise DiskFull(f"disk {self.path} has {free} bytes above its reserve of {self._reserve}; write elsewhere")

    def report(self) -> DiskReport:
        space = self.space()
        state = "failed" if self._failure else "ok" if space.free else "full"
        reason = self._failure or ("" if space.free else f"less than the reserve of {self._reserve} bytes is free")
        kept = self.damaged.census
        return DiskReport(
            str(self.path), space.capacity, space.free, self.chunk_count, state, reason, kept.count, kept.size
        )

    # --- files ------------------------------------------------------------------------------------------

    def chunk_path(self, handle: ChunkHandle) -> Path:
        name = id_text(handle)
        return self.chunks / name[:2] / name

    def prepare(self) -> None:
        """Make the folders and remove what an earlier life was writing; a failure fails the disk."""
        try:
            for folder in (self.temporary, self.damaged.folder, self.chunks):
                folder.mkdir(mode=0o700, exist_ok=True)
            for number in range(FOLDER_COUNT):
                (self.chunks / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            sync_directory(self.chunks)
            sync_directory(self.path)
            for entry in os.scandir(self.temporary):
                if entry.is_dir(follow_symlinks=False):
                    self.quarantine(Path(entry.path), "a folder was found where replicas are written")
                else:
                    Path(entry.path).unlink()
        except OSError as error:
            self.fail(f"preparing data directory {self.path} failed: {error.strerror or error}")

    def scan_folder(self, number: int) -> Iterator[Replica]:
        """Yield the sound replicas of one of the folders; damaged and foreign files go to the quarantine."""
        folder = self.chunks / f"{number:02x}"
        try:
            entries = list(os.scandir(folder))
            if entries:
                sync_directory(folder)  # the process may have died before that; what is reported must be durable
        except OSError as error:
            self.judge(error, f"listing {folder}")
            return
        for entry in entries:
            if self._failure:
                return
            replica = self._examine(Path(entry.path), f"{number:02x}")
            if replica is not None:
                yield replica

    def _examine(self, path: Path, folder: str) -> Replica | None:
        try:
            handle = _handle_of(path.name, folder)
            tail, status = self.read_tail(path, handle)
            return Replica(handle, tail.length, tail.crc, status.st_mtime_ns // 1_000_000)
        except ChunkCorrupt as error:
            self.quarantine(path, error.message)
        except VersionMismatch as error:
            log.error("replica_ignored", path=path, reason=error.message)
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.quarantine(path, "it is a symbolic link")
            elif error.errno != errno.ENOENT:
                self.judge(error, f"reading {path}")
        return None

    def read_tail(self, path: Path, handle: ChunkHandle) -> tuple[Tail, os.stat_result]:
        """Open a replica's file and return its checked tail; raise as `decode_tail`, or `OSError`."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            return read_open_tail(fd, handle)
        finally:
            os.close(fd)

    def quarantine(self, path: Path, reason: str) -> None:
        """Move a damaged file out of the way; when even that fails the disk is failed."""
        try:
            target = self.damaged.take(path, self._clock.wall_ms() / 1000, self._probe(self.path).capacity)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
                return  # somebody has removed it
            self.judge(error, f"moving {path} to the quarantine")
            return
        log.warning("replica_quarantined", path=target, reason=reason)

    def tidy_quarantine(self) -> None:
        """Remove from the quarantine what is too old or too much."""
        if self._failure:
            return
        try:
            self.damaged.tidy(self._clock.wall_ms() / 1000, self._probe(self.path).capacity)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # somebody removed the folder: it comes back when it is needed
                self.judge(error, "tidying the quarantine")

    def release(self) -> None:
        """Give up the lock."""
        self._claimed.release()


def read_open_tail(fd: int, handle: ChunkHandle) -> tuple[Tail, os.stat_result]:
    """Return the checked tail and the status of an open replica; raise as `decode_tail`, or `OSError`."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size <= TRAILER_SIZE:
        raise ChunkCorrupt(f"the file of replica {id_text(handle)} ({status.st_size} bytes) is no sealed replica")
    length = data_length(status.st_size)
    return decode_tail(os.pread(fd, file_size(length) - length, length), length, handle), status


def _handle_of(name: str, folder: str) -> ChunkHandle:
    try:
        handle = bytes.fromhex(name)
    except ValueError:
        handle = b""
    if len(handle) != ID_SIZE or name != id_text(ChunkHandle(handle)) or name[:2] != folder:
        raise ChunkCorrupt(f"the file {name!r} in chunks/{folder} is not named like a chunk")
    return ChunkHandle(handle)
