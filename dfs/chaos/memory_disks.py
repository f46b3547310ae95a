"""Small disks in memory for the nodes of a throw-away cluster, so that filling one hurts nobody else.

Owns: mounting one. Refuses to know: what fills it, and who unmounts it (dfs.chaos.undoing). Needs root and Linux.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from dfs.errors import DfsError

SIZE_MIB = 256  # of one disk; memory that is taken only while it is full
COMMAND_TIMEOUT_S = 20.0


def is_permitted() -> bool:
    """Whether this process may mount file systems."""
    with tempfile.TemporaryDirectory(prefix="dfs-probe-") as folder:
        try:
            mount(Path(folder))
            _run("umount", "--lazy", folder)
        except DfsError:
            return False
        return True


def mount(folder: Path) -> None:
    """Mount a disk over a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=700", "dfs-chaos", str(folder))


def _run(*words: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - the words are ours
            words, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DfsError(f"cannot run {words[0]}: {error}") from None
    if done.returncode:
        raise DfsError(f"{' '.join(words)} failed: {done.stderr.strip()}")
