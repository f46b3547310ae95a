"""Room that a disk keeps back for its own relief: on a full one even a deletion has to write first.

Owns: the file that takes the room, and giving it away in steps. Refuses to know: what the room is used for.

`disk_reserve` keeps dfs itself from filling a disk. Whatever else fills it (logs, another program, a quota) knows
nothing of that, so a little is really taken.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from dfs.chunk.disk import Disk
from dfs.errors import DfsError
from dfs.log import get_logger

BALLAST_NAME: Final = "ballast"
BALLAST_SIZE: Final = 1024 * 1024  # bytes
STEP_SIZE: Final = (
    64 * 1024
)  # given away at a time: about a thousand deletions, and whoever fills the disk gets no more

log = get_logger(__name__)


class Ballast:
    """The file `ballast` of a data directory. One thread at a time may use it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._path: Path = disk.path / BALLAST_NAME

    def release(self) -> bool:
        """Give a step of the room away; whether there was any left."""
        try:
            size = self._path.stat().st_size
            if not size:
                return False
            os.truncate(self._path, max(0, size - STEP_SIZE))
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._disk.judge(error, f"giving way with {self._path}")
            return False
        log.warning("ballast_released", disk=self._disk.path, left=max(0, size - STEP_SIZE))
        return True

    def restore(self) -> None:
        """Take the room again, once the disk has more of it than its reserve."""
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            if size >= BALLAST_SIZE or self._disk.space().free < BALLAST_SIZE or not self._disk.is_in_place():
                return
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(fd, bytes(BALLAST_SIZE - size), size)  # written, not only set aside: some systems lie there
            finally:
                os.close(fd)
        except OSError as error:
            failure: DfsError = self._disk.judge(error, f"writing {self._path}")
            log.warning("ballast_not_restored", disk=self._disk.path, reason=failure.message)
