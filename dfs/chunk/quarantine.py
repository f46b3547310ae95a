"""The damaged files of one data directory: kept for an operator to look at, never served, and not for ever.

Owns: the folder `quarantine/`, its limits and its census. Refuses to know: why a file is damaged.

The oldest files go first; a file counts as old by when it came here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dfs.log import get_logger

QUARANTINE_FILES_MAX = 1000  # damaged files kept on a disk
QUARANTINE_SIZE_MAX = 4 * 1024 * 1024 * 1024  # bytes of them
QUARANTINE_KEEP_S = 30 * 86400.0  # how long one is kept
QUARANTINE_SHARE_MAX = 0.05  # of a small disk's capacity

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Census:
    """How many files, and bytes, are in a quarantine."""

    count: int
    size: int


class _Kept(NamedTuple):
    came_s: float  # time of day; a rename sets it
    size: int
    path: Path


class Quarantine:
    """One such folder. `take` and `tidy` raise `OSError`; `census` is what they last saw. Safe in any thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._census = Census(0, 0)

    @property
    def census(self) -> Census:
        return self._census

    def take(self, path: Path, now_s: float, capacity: int) -> Path:
        """Move a file here and return its new place; `capacity`: bytes of the disk."""
        with self._lock:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            number = 0
            while os.path.lexists(target := self.folder / f"{path.name}.{number}"):
                number += 1
            path.rename(target)
            self._tidy(now_s, capacity)
        return target

    def tidy(self, now_s: float, capacity: int) -> None:
        """Remove what is too old or too much; `now_s`: seconds since 1970."""
        with self._lock:
            self._tidy(now_s, capacity)

    def _tidy(self, now_s: float, capacity: int) -> None:
        """Keep the youngest files within the limits, the very youngest of them whatever its size."""
        size_max = min(QUARANTINE_SIZE_MAX, int(capacity * QUARANTINE_SHARE_MAX))
        kept_count = kept_size = gone = 0
        for kept in sorted(self._list(), reverse=True):
            has_room = kept_count < QUARANTINE_FILES_MAX and kept_size + kept.size <= size_max
            if now_s - kept.came_s <= QUARANTINE_KEEP_S and (has_room or not kept_count):
                kept_count += 1
                kept_size += kept.size
                continue
            _remove(kept.path)
            gone += 1
        self._census = Census(kept_count, kept_size)
        if gone:
            log.info("quarantine_tidied", folder=self.folder, removed=gone, kept=kept_count, size=kept_size)

    def _list(self) -> list[_Kept]:
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # an operator took it
                status = path.lstat()
                found.append(_Kept(status.st_ctime, status.st_size, path))
        return found


def _remove(path: Path) -> None:
    """Remove what lies in a quarantine: mostly files; a folder is somebody's mistake."""
    with contextlib.suppress(OSError):  # the next time, then
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()
