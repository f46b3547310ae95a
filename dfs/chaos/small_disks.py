"""Small disks of their own for the nodes of a cluster under test, so that filling one hurts nobody else.

Owns: mounting a file system in memory over each node's folder. Refuses to know: what fills it. Needs root and Linux.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from dfs.errors import DfsError

SIZE_MIB = 256  # of one disk; memory that is taken only while it is full
COMMAND_TIMEOUT_S = 20.0


def is_permitted() -> bool:
    """Whether this process may mount file systems."""
    with tempfile.TemporaryDirectory(prefix="dfs-probe-") as folder:
        try:
            with SmallDisks([Path(folder)]):
                return True
        except DfsError:
            return False


class SmallDisks:
    """A disk over each of `folders`, which are made; a context manager that unmounts them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._mounted: list[Path] = []

    def __enter__(self) -> SmallDisks:
        try:
            for folder in self._folders:
                mount(folder)
                self._mounted.append(folder)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Unmount all, whoever still uses them."""
        while self._mounted:
            _run("umount", "--lazy", str(self._mounted.pop()))


def mount(folder: Path) -> None:
    """Mount a disk over one folder, which is made; whoever calls this unmounts it."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "dfs-test", str(folder))


def _run(*words: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the words are ours
            words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise DfsError(f"cannot run {words[0]}: {error.strerror or error}") from None
    if done.returncode:
        raise DfsError(f"{' '.join(words)} failed: {done.stderr.strip()}")
