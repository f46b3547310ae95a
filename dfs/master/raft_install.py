"""A received checkpoint on its way to being this master's state, in steps that never hold the loop for long.

Owns: reading and proving a checkpoint while its state is built beside the present one, and the exchange.
Refuses to know: pysyncobj, the journal, and whether the checkpoint is still wanted (dfs.master.raft_engine asks that).

The file is proved by the same pass that loads it: nothing is exchanged before its last byte was checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dfs.master.raft_checkpoint import CheckpointHead, open_checkpoint
from dfs.master.replicated_log import Loading, LoadsInSteps, StateMachine


class Installation:
    """One checkpoint; `step` until it returns True, then `install`, then `step` until it returns True again."""

    def __init__(self, draft: Path, machine: StateMachine) -> None:
        """Open the file; raise `StorageCorrupt` when not even its head can be read."""
        self.draft = draft
        self.head: CheckpointHead
        self.head, self._pieces = open_checkpoint(draft)
        self._loading = begin_load(machine, self._pieces)

    def step(self) -> bool:
        """Do some milliseconds of work; True when all is loaded and proved. Raise `StorageCorrupt`: nothing changed."""
        return self._loading.step()

    def install(self) -> None:
        """Exchange the state machine's state, at once."""
        self._loading.install()

    def close(self) -> None:
        """Give up."""
        self._pieces.close()


class _WholeLoading:
    """The loading of a state machine that can only load in one go."""

    def __init__(self, load: Callable[[list[bytes]], None], pieces: Iterator[bytes]) -> None:
        self._load, self._pieces = load, pieces
        self._loaded: list[bytes] = []

    def step(self) -> bool:
        piece = next(self._pieces, None)
        if piece is not None:
            self._loaded.append(piece)
        return piece is None

    def install(self) -> None:
        self._load(self._loaded)


def begin_load(machine: StateMachine, pieces: Iterator[bytes]) -> Loading:
    return machine.begin_load(pieces) if isinstance(machine, LoadsInSteps) else _WholeLoading(machine.load, pieces)
