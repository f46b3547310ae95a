"""The client's decisions: how a source becomes chunks, extents become reads, and a failure becomes a next step.

Owns: the arithmetic of chunks and blocks, the order in which masters and replicas are asked, back-off. Pure: time and
noise are arguments. Refuses to know: sockets, threads, clocks and files.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from dfs.checksum import BLOCK_SIZE
from dfs.errors import DfsError, Retry
from dfs.ids import ServerId
from dfs.net.parts import LocatedExtent, ServerInfo

MASTERS_MAX = 16  # addresses a client keeps, given ones and those it was pointed to
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 0.25  # short: an election is over in about a second, and nobody should wait for long after it
SERVER_BAD_S = 10.0  # a chunk server that failed is asked last for so long; by then the master knows, if it is dead
SERVER_SLOW_S = 2.0  # one that was overtaken is not read from first for so long
SERVERS_REMEMBERED_MAX = 1024
ATTEMPT_GROWTH_MAX = 8  # a silent master gets up to so many times the first attempt's time


# --- sources into chunks ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Bytes [`offset`, +`length`) of a source; they become one chunk."""

    index: int
    offset: int
    length: int


def split_source(size: int, chunk_size: int) -> Iterator[ChunkRange]:
    """Yield the ranges that cover `size` bytes, all of `chunk_size` but the last; none for an empty source."""
    for index, offset in enumerate(range(0, size, chunk_size)):
        yield ChunkRange(index, offset, min(chunk_size, size - offset))


# --- extents into reads -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Read blocks [`block_offset`, +`block_length`) of a chunk; wanted are [`chunk_offset`, +`length`) of them.

    The wanted bytes stand at `file_offset`. Blocks are whole, but for the last one of the chunk.
    """

    extent_index: int
    extent: LocatedExtent
    file_offset: int
    chunk_offset: int
    length: int
    block_offset: int
    block_length: int

    @property
    def block_end(self) -> int:
        return self.block_offset + self.block_length

    def after(self, position: int) -> ReadPlan:
        """Return what is left of this read from chunk byte `position` on, which is the first of one of its blocks."""
        start = max(position, self.chunk_offset)
        skipped = start - self.chunk_offset
        return replace(
            self,
            file_offset=self.file_offset + skipped,
            chunk_offset=start,
            length=self.length - skipped,
            block_offset=position,
            block_length=self.block_end - position,
        )

    def wanted(self, position: int, size: int) -> tuple[int, int, int]:
        """Return (skip, length, file offset) of what is wanted of `size` chunk bytes at `position`; length may be 0."""
        start = max(position, self.chunk_offset)
        end = min(position + size, self.chunk_offset + self.length)
        return start - position, max(0, end - start), self.file_offset + start - self.chunk_offset


def plan_reads(
    extents: Iterable[LocatedExtent], first_index: int, first_offset: int, *, start: int, end: int, piece_size: int
) -> Iterator[ReadPlan]:
    """Yield the reads of file bytes [`start`, `end`) that lie in `extents`, which begin at `first_offset`.

    Each read lies within one extent and covers at most `piece_size` chunk bytes (a multiple of the block size).
    """
    offset = first_offset
    for index, extent in enumerate(extents, first_index):
        low, high = max(start, offset), min(end, offset + extent.length)
        position, last = extent.chunk_offset + low - offset, extent.chunk_offset + high - offset
        while position < last:
            block_offset = position - position % BLOCK_SIZE
            stop = min(last, block_offset + piece_size)
            block_end = min(stop + -stop % BLOCK_SIZE, extent.chunk_length)
            yield ReadPlan(
                index,
                extent,
                file_offset=offset + position - extent.chunk_offset,
                chunk_offset=position,
                length=stop - position,
                block_offset=block_offset,
                block_length=block_end - block_offset,
            )
            position = stop
        offset += extent.length


def clip_range(size: int, offset: int, length: int | None) -> tuple[int, int]:
    """Return the [start, end) that a request for `length` bytes (None: all) at `offset` gets of `size` bytes."""
    start = min(offset, size)
    return start, size if length is None else min(size, start + length)


# --- retries --------------------------------------------------------------------------------------------


class Step(enum.Enum):
    """What follows a failed attempt at a master."""

    FAIL = "fail"  # the answer is final: hand it to the caller
    AGAIN = "again"  # back off, then ask the same master
    NEXT = "next"  # ask the next master


def step_after(retry: Retry) -> Step:
    """Decide by what the error says of itself, and by nothing else."""
    match retry:
        case Retry.NEVER:
            return Step.FAIL
        case Retry.SAME | Retry.UNKNOWN:  # a call id makes the resend of an unknown outcome safe
            return Step.AGAIN
        case Retry.REFRESH | Retry.OTHER:
            return Step.NEXT


def backoff_s(attempt: int, noise: float) -> float:
    """Return the pause before attempt `attempt` (1 = first repetition), spread by `noise` in [0, 1)."""
    longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * (1 << min(attempt - 1, 30)))
    return longest * (0.5 + noise / 2)


def attempt_timeout_s(first_s: float, silences: int) -> float:
    """Return how long to wait for a master that was silent `silences` times in this call already.

    Short at first, so that a paused master does not eat the call's time; longer then, so that a slow one succeeds.
    """
    return first_s * min(1 << min(silences, 30), ATTEMPT_GROWTH_MAX)


class MasterRound:
    """One round of asking: each master at most once, the presumed leader first, silent ones last.

    A hint moves its master to the front, unless it was asked in this round already: a loop of hints ends by itself.
    Nothing is sorted before a second master is to be asked, which is seldom.
    """

    __slots__ = ("_asked", "_known", "_leader", "_silent", "_waiting")

    def __init__(self, known: Sequence[str], leader: str | None, silent: Collection[str]) -> None:
        self._known, self._leader, self._silent = known, leader, silent
        self._waiting: list[str] | None = None  # whom to ask next, in order; None: not looked at yet
        self._asked: set[str] = set()

    def next(self) -> str | None:
        """Return the master to ask now, `None` when the round is over."""
        leader = self._leader
        if self._waiting is None and leader is not None and not self._asked and leader not in self._silent:
            address = leader
        elif waiting := self._ordered():
            address = waiting.pop(0)
        else:
            return None
        self._asked.add(address)
        return address

    def hint(self, address: str) -> None:
        """Note that the last one asked takes `address` for the leader."""
        waiting = self._ordered()
        if address in self._asked or address in self._silent or len(self._asked) >= MASTERS_MAX:
            return
        if address in waiting:
            waiting.remove(address)
        waiting.insert(0, address)

    def _ordered(self) -> list[str]:
        """Return whom to ask, in order, without the leader when that was asked at once."""
        if self._waiting is None:
            order = sorted(self._known, key=lambda address: (address in self._silent, address != self._leader))
            talking = [address for address in order if address not in self._silent]
            self._silent = frozenset(self._silent if talking else ())
            self._waiting = [address for address in talking or order if address not in self._asked]
        return self._waiting


# --- chunk servers ----------------------------------------------------------------------------------------


def blamed(error: DfsError, chain: Sequence[ServerInfo]) -> tuple[ServerInfo, ...]:
    """Return the servers of a chain that a failed write is to leave out next time.

    Those that the error names; the head, which we talk to, when it names none; nobody when only a token was too old.
    """
    if error.retry is Retry.REFRESH:
        return ()
    named = error.details.get("failed", "").split(",")
    return tuple(server for server in chain if server.address in named) or tuple(chain[:1])


def _nowhere(_server: ServerInfo) -> int:
    return 0


class ServerHealth:
    """Which chunk servers failed lately. Each change is one dict operation, so that threads may share it."""

    def __init__(self, bad_s: float = SERVER_BAD_S) -> None:
        self._bad_s = bad_s
        self._bad_until_s: dict[ServerId, float] = {}
        self._slow_until_s: dict[ServerId, float] = {}

    def failed(self, server: ServerInfo, now_s: float) -> None:
        if len(self._bad_until_s) >= SERVERS_REMEMBERED_MAX:
            self._bad_until_s = {key: until for key, until in self._bad_until_s.copy().items() if until > now_s}
        if len(self._bad_until_s) < SERVERS_REMEMBERED_MAX:
            self._bad_until_s[server.server_id] = now_s + self._bad_s

    def worked(self, server: ServerInfo) -> None:
        self._bad_until_s.pop(server.server_id, None)

    def bad(self, now_s: float) -> set[ServerId]:
        """Return the servers to be left out of new chunks."""
        return {key for key, until in self._bad_until_s.copy().items() if until > now_s}

    def slowed(self, server: ServerInfo, now_s: float) -> None:
        """Note that a server was overtaken by another one: for a while it is not read from first."""
        if server.server_id in self._slow_until_s or len(self._slow_until_s) < SERVERS_REMEMBERED_MAX:
            self._slow_until_s[server.server_id] = now_s + SERVER_SLOW_S

    def order(
        self, servers: Sequence[ServerInfo], now_s: float, turn: int, distance: Callable[[ServerInfo], int] = _nowhere
    ) -> list[ServerInfo]:
        """Return all of `servers`: good live ones first, near ones before far ones (`distance`), equally near ones
        rotated by `turn` to spread load; then those that were slow, those that failed lately, and those that the
        master holds for dead."""
        good: dict[int, list[ServerInfo]] = {}
        rest: tuple[list[ServerInfo], list[ServerInfo], list[ServerInfo]] = ([], [], [])
        bad = self.bad(now_s) if self._bad_until_s else ()
        for server in servers:
            if not server.is_alive:
                rest[2].append(server)
            elif server.server_id in bad:
                rest[1].append(server)
            elif self._slow_until_s.get(server.server_id, 0.0) > now_s:
                rest[0].append(server)
            else:
                good.setdefault(distance(server), []).append(server)
        ordered = []
        for _, group in sorted(good.items()):
            cut = turn % len(group)
            ordered += [*group[cut:], *group[:cut]]
        return [*ordered, *rest[0], *rest[1], *rest[2]]
