"""The wall between the master and its consensus engine: what the master asks of a replicated log, and no more.

Owns: the interface and its contract. Refuses to know: pysyncobj, files and sockets (the raft_* modules beside it).
Implemented by `raft_state.RaftLog` (the real one) and `memory_log.MemoryLog` (its in-memory twin for tests); both pass
tests/contract/test_replicated_log.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from dfs.errors import DfsError


class StateMachine(Protocol):
    """What is replicated. Deterministic; `apply` never raises."""

    def apply_encoded(self, command: bytes) -> Any:
        """Apply one command; return its result for the proposer."""

    def dump(self) -> Iterator[bytes]:
        """Yield the whole state in pieces of bounded size, each loadable in order."""

    def load(self, pieces: Iterable[bytes]) -> None:
        """Replace the whole state by a dumped one; raise `StorageCorrupt` and change nothing when it is damaged."""


class Loading(Protocol):
    """A state on its way into a state machine that goes on meanwhile with the one it has."""

    def step(self) -> bool:
        """Do milliseconds of work; return True when there is none. Raise `StorageCorrupt`: nothing has changed."""

    def install(self) -> None:
        """Replace the state, at once, after the last step. Further steps clear the old one away."""


@runtime_checkable
class LoadsInSteps(Protocol):
    """A state machine so large that loading it in one go would be taken for its death."""

    def begin_load(self, pieces: Iterable[bytes]) -> Loading:
        """Return the steps that do what `StateMachine.load` does; they take the pieces one by one."""


@dataclass(frozen=True, slots=True)
class LogStatus:
    """`role`: leader, follower, candidate, joining or stopped. `leader`: a name or None. Indexes are of the log."""

    role: str
    term: int
    commit_index: int
    applied_index: int
    leader: str | None


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A checkpoint on this master's disk; it holds the log up to and with `index`. `size` in bytes."""

    index: int
    size: int
    age_s: float
    path: Path


class Waiter(Protocol):
    """Who waits for the log without a task: told how it ended, once, in the step of the loop that knows it."""

    @property
    def deadline_s(self) -> float:
        """When the wait ends whatever comes, on time.monotonic()."""

    @property
    def is_known(self) -> bool:
        """Whether nobody waits any more: it was told, or has given up. A command not yet in the log never happens."""

    def ended(self, result: Any, error: DfsError | None) -> None:
        """Take the result, or the error; must neither raise nor call the log."""


class ReplicatedLog(Protocol):
    """A linearizable sequence of commands over a majority of masters. All calls from one asyncio loop."""

    async def start(self) -> None:
        """Load what is on disk and join the others; raise `StorageCorrupt` rather than start with less."""

    async def propose(self, command: bytes, timeout_s: float) -> Any:
        """Return the state machine's result once the command is committed and applied here.

        Raise `NotLeader` (nothing happened, ask the leader), or `OutcomeUnknown` (it may still happen).
        """

    async def read_barrier(self, timeout_s: float) -> None:
        """Return when the local state holds all that was acknowledged before the call; the caller then reads it
        without awaiting in between. Raise `NotLeader` or `NoQuorum`."""

    def submit(self, command: bytes, waiter: Waiter) -> None:
        """Do what `propose` does, without a task: raise what refuses it at once, and tell `waiter` all else."""

    def prove(self, waiter: Waiter) -> None:
        """Do what `read_barrier` does, likewise; the result is None."""

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads (a hint; only a proof shows it)."""

    def status(self) -> LogStatus: ...

    def staleness_s(self) -> float | None:
        """Return how old the local state is at most: it holds all that was acknowledged so long ago. None: unknown.

        Proved without the clock of another machine, and it goes on growing when there is no leader.
        """

    async def hand_over(self, target: str, timeout_s: float) -> None:
        """Let the master `target` lead; return when this one knows that it does. No change is lost or doubled.

        Raise `NotLeader`, `InvalidArgument` (no such master), or `NoQuorum` when it did not come to it in time; then
        this master leads on, or there is an election.
        """

    async def write_checkpoint(self, timeout_s: float) -> CheckpointFile:
        """Write the present state to disk and return when it is there; raise `DiskFailed` or `DeadlineExceeded`."""

    def checkpoint_file(self, index: int | None = None) -> CheckpointFile | None:
        """Return the checkpoint `index` on this master's disk, or the newest one; None when it is not there."""

    async def close(self) -> None:
        """Stop taking part; safe at any moment, as is a kill."""
