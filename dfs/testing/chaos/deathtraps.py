"""Let a chunk server die by SIGKILL at a named step of its work: before it, or when it is done and nobody knows yet.

Owns: the steps where it can die, and setting the traps. Refuses to know: who starts the servers, and what is promised.

Run as `python -m dfs.testing.chaos.deathtraps FOLDER dfs chunk --name c1`. A trap is a file in FOLDER; the first server
that comes to its step takes the file away and dies, so each trap kills once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfs.chunk.chain import ChunkTransfer
from dfs.chunk.replicator import Replicator
from dfs.chunk.service import ChunkService
from dfs.chunk.store import FileReplicaWriter
from dfs.chunk.tails.log import TailFile
from dfs.chunk.tails.open_tail import OpenTail
from dfs.chunk.tails.service import TailService
from dfs.chunk.volumes.volumes import VolumeSet
from dfs.testing.chaos.wrapping import run_dfs, words_before, wrapped

_STEPS: dict[str, tuple[type, str]] = {
    "chunk taken": (ChunkTransfer, "run"),
    "piece written": (FileReplicaWriter, "write"),
    "chunk published": (FileReplicaWriter, "publish"),
    "small chunk taken": (ChunkTransfer, "store"),
    "small chunk synced": (VolumeSet, "append"),
    "tail made": (TailService, "_create"),
    "records taken": (OpenTail, "append"),
    "records passed on": (OpenTail, "replicate"),
    "records synced": (TailFile, "append"),
    "tail fenced": (TailService, "_fence"),
    "tail published": (TailService, "_publish"),
    "copy made": (Replicator, "_copy_from"),
    "copy received": (Replicator, "_fetch"),
    "replica read": (ChunkService, "_read"),
}
WRITE = ("chunk taken", "piece written", "chunk published")
SMALL_WRITE = ("small chunk taken", "small chunk synced")
APPEND = ("records taken", "records passed on", "records synced")
SEAL = ("tail fenced", "tail published", "tail made")
COPY = ("copy made", "copy received", "replica read")
MOMENTS = ("before", "after")


def launcher(folder: Path) -> tuple[str, ...]:
    """Return the words before a chunk server's command that let it fall into the traps in `folder`."""
    return wrapped("dfs.testing.chaos.deathtraps", str(folder))


class Traps:
    """The traps of a cluster, as a test sets them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def set(self, moment: str, step: str) -> None:
        """Let the first chunk server that comes there die."""
        assert moment in MOMENTS, moment
        assert step in _STEPS, step
        self._path(moment, step).touch()

    def is_sprung(self, moment: str, step: str) -> bool:
        return not self._path(moment, step).exists()

    def fall(self, moment: str, step: str) -> None:
        """Die here if a trap is set; for the server."""
        with contextlib.suppress(FileNotFoundError):
            self._path(moment, step).unlink()  # by one server alone
            os.kill(os.getpid(), signal.SIGKILL)

    def _path(self, moment: str, step: str) -> Path:
        return self._folder / f"{moment} {step}"


def _trapped(traps: Traps, step: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def work(*given: Any, **named: Any) -> Any:
        traps.fall("before", step)
        result = method(*given, **named)
        traps.fall("after", step)
        return result

    return work


def main() -> None:
    """Run `dfs` with all traps in place."""
    folder, *_ = words_before()
    traps = Traps(Path(folder))
    for step, (cls, name) in _STEPS.items():
        setattr(cls, name, _trapped(traps, step, getattr(cls, name)))
    run_dfs()


if __name__ == "__main__":
    main()
