"""Where the tails of a chunk server are: a folder on each disk that works.

Owns: which folder takes the next tail, what is found in them at start, and telling a disk of its errors. Refuses to
know: what is in a tail, and who appends.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from dfs.chunk.disk import Disk
from dfs.chunk.identity import sync_directory
from dfs.chunk.tails.log import TAIL_SUFFIX
from dfs.chunk.tails.seal import SEAL_SUFFIX
from dfs.errors import DfsError, DiskFailed, DiskFull
from dfs.ids import ID_SIZE, ChunkHandle
from dfs.log import get_logger

TAIL_FOLDER = "tails"  # in each data directory

log = get_logger(__name__)


class TailFolders:
    """The folders by turns. Safe in any thread."""

    def __init__(self, folders: Sequence[Path], disks: Sequence[Disk] = ()) -> None:
        """`disks`: those whose health and room count for the folders in them; others are always in use."""
        self._folders = list(folders)
        self._disks = {disk.path / TAIL_FOLDER: disk for disk in disks}
        self._turns = itertools.count(1)
        self._unread: list[Path] = []

    @classmethod
    def on(cls, disks: Sequence[Disk]) -> TailFolders:
        """Return the folders of a store's disks; one that failed takes no part, whatever its directory is now."""
        return cls([disk.path / TAIL_FOLDER for disk in disks if disk.is_in_place()], disks)

    def load(self) -> Iterator[Path]:
        """Make what is missing, durably, and yield the files of tails; a folder that cannot be read is left out."""
        for folder in list(self._folders):
            try:
                if not folder.exists():
                    folder.mkdir(mode=0o700)
                    sync_directory(folder.parent)
                found = [path for path in folder.iterdir() if tail_handle(path) is not None]
            except OSError as error:
                log.error("tails_unreadable", folder=folder, reason=error.strerror or str(error))
                self._folders.remove(folder)
                self._unread.append(folder)
                continue
            yield from found

    def unseen(self) -> list[Path]:
        """Return the folders of disks that do not work, and those that could not be read: tails may be in them."""
        return [*(folder for folder, disk in self._disks.items() if not disk.is_in_place()), *self._unread]

    def choose(self, size: int) -> Path:
        """Return a folder whose disk works and has `size` bytes above its reserve; raise `DiskFailed` or `DiskFull`."""
        is_any_in_use = False
        turn = next(self._turns)
        for number in range(len(self._folders)):
            folder = self._folders[(turn + number) % len(self._folders)]
            disk = self._disks.get(folder)
            if disk is None:
                return folder
            if disk.is_in_place():
                is_any_in_use = True
                if disk.space().free >= size:
                    return folder
        if is_any_in_use:
            raise DiskFull(f"no disk of this server has {size} bytes for another tail; write elsewhere")
        raise DiskFailed("no disk of this server can keep tails; write elsewhere")

    def check_room(self, path: Path, size: int) -> None:
        """Raise `DiskFull` or `DiskFailed` when the disk of a tail is not to take `size` bytes more."""
        disk = self._disks.get(path.parent)
        if disk is not None:
            disk.check_room(size)

    def judge(self, path: Path, error: OSError, doing: str) -> DfsError:
        """Return what an error at a tail means, and let its disk draw the consequence."""
        disk = self._disks.get(path.parent)
        if disk is not None and not isinstance(error, FileNotFoundError | FileExistsError):
            return disk.judge(error, doing)
        return DiskFailed(f"{doing} failed: {error.strerror or error}; write elsewhere")


def tail_handle(path: Path) -> ChunkHandle | None:
    """Return whose file this is, None when it is not named like one of a tail."""
    if path.suffix not in ("", TAIL_SUFFIX, SEAL_SUFFIX):
        return None
    try:
        handle = bytes.fromhex(path.stem)
    except ValueError:
        return None
    return ChunkHandle(handle) if len(handle) == ID_SIZE else None
