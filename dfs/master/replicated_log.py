"""The wall between the master and its consensus engine: what the master asks of a replicated log, and no more.

Owns: the interface and its contract. Refuses to know: pysyncobj, files and sockets (the raft_* modules beside it).
Implemented by `raft_state.RaftLog` (the real one) and `memory_log.MemoryLog` (its in-memory twin for tests); both pass
tests/contract/test_replicated_log.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol


class StateMachine(Protocol):
    """What is replicated. Deterministic; `apply` never raises."""

    def apply_encoded(self, command: bytes) -> Any:
        """Apply one command; return its result for the proposer."""

    def dump(self) -> Iterator[bytes]:
        """Yield the whole state in pieces of bounded size, each loadable in order."""

    def load(self, pieces: Iterable[bytes]) -> None:
        """Replace the whole state by a dumped one; raise `StorageCorrupt` and change nothing when it is damaged."""


@dataclass(frozen=True, slots=True)
class LogStatus:
    """`role`: leader, follower or candidate. `leader`: master name or None. Indexes are of the log."""

    role: str
    term: int
    commit_index: int
    applied_index: int
    leader: str | None


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

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads (a hint; only `read_barrier` proves it)."""

    def status(self) -> LogStatus: ...

    async def close(self) -> None:
        """Stop taking part; safe at any moment, as is a kill."""
