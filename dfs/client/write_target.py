"""A chunk that is to be written: where to, from what, how long it may take, and how one attempt fails.

Owns: these records and limits, for every way of writing. Refuses to know: the ways (dfs.client.transfer,
dfs.client.lent_writes), and where chunks come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from dfs.clock import Deadline
from dfs.errors import DfsError
from dfs.ids import ChunkHandle
from dfs.net.parts import ServerInfo

WRITE_STALL_S = 15.0  # a server that takes nothing for so long is given up; longer than a chain's own patience
FINISH_TIMEOUT_S = 10.0  # for fsync and publishing, and in addition:
FINISH_SPEED_MIN = 4 * 1024 * 1024  # bytes per second that the slowest disk is expected to sync


@dataclass(frozen=True, slots=True)
class WriteTarget:
    """An allocated chunk: who is to store it, in chain order."""

    handle: ChunkHandle
    token: bytes
    chain: tuple[ServerInfo, ...]


class ChunkSource(Protocol):
    """The bytes of a chunk; they can be had as often as they are asked for."""

    @property
    def length(self) -> int: ...

    def pieces(self) -> Iterator[memoryview]:
        """Yield all bytes in pieces of whole blocks, but for the last; each is valid until the next."""

    def fill(self, position: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `position` on."""


class ChunkNotWritten(Exception):
    """One attempt at writing a chunk failed; `failed` are the servers to leave out. Never leaves dfs.client."""

    def __init__(self, error: DfsError, failed: tuple[ServerInfo, ...]) -> None:
        super().__init__(str(error))
        self.error = error
        self.failed = failed


def finish_deadline(length: int) -> Deadline:
    """Return when a chunk of which all bytes were sent is to be on all disks."""
    return Deadline.after(FINISH_TIMEOUT_S + length / FINISH_SPEED_MIN)
