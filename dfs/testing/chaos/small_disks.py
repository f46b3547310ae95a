"""Small disks of their own for the nodes of a cluster under test, which can be filled, fail, and lose their power.

Owns: a file system in an image for each node's folder. Refuses to know: who uses it. Needs root, Linux, loop devices
and ext4.

`cut_power` is the kernel's own switch for tests of crashes (EXT4_IOC_SHUTDOWN, as in xfstests): from that moment every
call on the disk is an error (EIO), and when it is mounted again it holds what had been synced and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from dfs.clock import Deadline
from dfs.errors import DfsError

SIZE_MIB = 256  # of one disk; taken only as far as it is used
COMMAND_TIMEOUT_S = 60.0
UNMOUNT_S = 20.0  # how long somebody may still look into a disk that is to be unmounted
MEMORY = Path("/dev/shm")  # noqa: S108 - where images lie if it is there: the machine's own disk has rest
_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_WITHOUT_A_LOG_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: what is not on disk yet never comes there


def is_permitted() -> bool:
    """Whether this process may mount such disks and cut their power."""
    with tempfile.TemporaryDirectory(prefix="dfs-probe-") as folder:
        disk = Path(folder) / "disk"  # what is above it is mounted anew, too: that must not be a folder of others
        try:
            with SmallDisks([disk]) as disks:
                disks.cut_power(disk)
                return True
        except (DfsError, OSError):
            return False


class SmallDisks:
    """A disk over each of `folders`, which are made; a context manager that unmounts and removes them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._images: dict[Path, Path] = {}
        self._mounted: set[Path] = set()
        self._shared: list[Path] = []
        self._store = Path()

    def __enter__(self) -> SmallDisks:
        self._store = Path(tempfile.mkdtemp(prefix="dfs-disks-", dir=MEMORY if MEMORY.is_dir() else None))
        try:
            for parent in {folder.parent for folder in self._folders}:
                self._share(parent)
            for number, folder in enumerate(self._folders):
                folder.mkdir(parents=True, exist_ok=True)
                image = self._images[folder] = self._store / str(number)
                with image.open("wb") as file:
                    file.truncate(SIZE_MIB << 20)
                _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
                self._mount(folder)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    def cut_power(self, folder: Path) -> None:
        """Let every call on this disk fail from now on; what was not synced is lost."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_A_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def restore_power(self, folder: Path) -> None:
        """Mount it again, as after a crash. Its users must have ended."""
        deadline = Deadline.after(UNMOUNT_S)
        while True:
            try:
                _run("umount", str(folder))
                break
            except DfsError:
                if deadline.has_passed:
                    raise
                time.sleep(0.05)
        self._mounted.discard(folder)
        self._mount(folder)

    def _share(self, parent: Path) -> None:
        """Let what is unmounted below `parent` be unmounted for processes in namespaces, too (`ip netns exec`).

        A disk that any of them still saw would not be mounted anew, but would stay the one that has no power.
        """
        parent.mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", str(parent), str(parent))
        self._shared.append(parent)
        _run("mount", "--make-private", str(parent))
        _run("mount", "--make-shared", str(parent))

    def _mount(self, folder: Path) -> None:
        _run("mount", "-t", "ext4", "-o", "loop,discard", str(self._images[folder]), str(folder))
        self._mounted.add(folder)
        folder.chmod(0o700)

    def close(self) -> None:
        """Unmount all, whoever still uses them, and forget their bytes."""
        while self._mounted:
            with contextlib.suppress(DfsError):
                _run("umount", "--lazy", str(self._mounted.pop()))
        while self._shared:
            with contextlib.suppress(DfsError):
                _run("umount", "--lazy", str(self._shared.pop()))
        shutil.rmtree(self._store, ignore_errors=True)


def _run(*words: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the words are ours
            words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DfsError(f"cannot run {words[0]}: {error}") from None
    if done.returncode:
        raise DfsError(f"{' '.join(words)} failed: {done.stderr.strip()}")
