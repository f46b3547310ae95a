"""Chunks allocated ahead, so that a small put asks the masters once: for its commit.

Owns: the reserve of each replication, its growth with use, and when a reserved chunk is too old. Refuses to know: how
a chunk is written, and what for.

A program that puts one file reserves nothing; one that puts many soon has a batch at hand. What is left over was
promised to nobody: handles cost nothing, and a token that is not used expires.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field

from dfs.client.discovery import Masters
from dfs.client.plan import ServerHealth
from dfs.client.transfer import targets_of
from dfs.client.write_target import WriteTarget
from dfs.clock import Deadline, boot_s
from dfs.errors import NotEnoughServers
from dfs.net.messages import ALLOCATE_COUNT_MAX, EXCLUDE_MAX, Allocate, AllocateReply

RESERVE_MAX = 32  # chunks set aside for one replication
AGE_MAX_S = 20.0  # an older one may be on servers that filled or died since
TOKEN_SHARE = 0.5  # of the life of a token, after which it is not worth starting with
COMMIT_SHARE = 0.25  # of the time until the commit, which may pass before the bytes are even sent
assert RESERVE_MAX <= ALLOCATE_COUNT_MAX


@dataclass(frozen=True, slots=True)
class Reserved:
    """A chunk to write, and until when its file must be committed."""

    target: WriteTarget
    commit_until_s: float  # of `boot_s`: the masters count on while this computer sleeps


@dataclass(slots=True)
class _Shelf:
    ready: deque[tuple[float, Reserved]] = field(default_factory=deque)  # with the moment of its going bad
    batch: int = 1
    chunk_size: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ChunkReserve:
    """Shared by all puts of a client. Thread-safe."""

    def __init__(self, masters: Masters, health: ServerHealth) -> None:
        self._masters = masters
        self._health = health
        self._lock = threading.Lock()
        self._shelves: dict[int, _Shelf] = {}  # by replication

    def chunk_size(self, replication: int, deadline: Deadline) -> int:
        """Return the cluster's chunk size."""
        shelf = self._shelf(replication)
        with shelf.lock:
            if not shelf.chunk_size:
                self._refill(shelf, replication, deadline)
            return shelf.chunk_size

    def take(self, replication: int, deadline: Deadline) -> Reserved:
        """Return a chunk that is not on servers which failed lately, if possible."""
        shelf = self._shelf(replication)
        with shelf.lock:
            now_s = boot_s()
            bad = self._health.bad(time.monotonic())
            had_any = bool(shelf.ready)
            while shelf.ready:
                until_s, reserved = shelf.ready.popleft()
                if now_s < until_s and not any(server.server_id in bad for server in reserved.target.chain):
                    return reserved
            if had_any:
                shelf.batch = 1  # what was set aside was of no use: begin modestly again
            self._refill(shelf, replication, deadline)
            return shelf.ready.popleft()[1]

    def forget(self) -> None:
        """Hear that the masters did not take a chunk any more: what was set aside with it is as old."""
        with self._lock:
            shelves = [*self._shelves.values()]
        for shelf in shelves:
            with shelf.lock:
                shelf.ready.clear()
                shelf.batch = 1

    def _shelf(self, replication: int) -> _Shelf:
        with self._lock:
            return self._shelves.setdefault(replication, _Shelf())

    def _refill(self, shelf: _Shelf, replication: int, deadline: Deadline) -> None:
        """Ask for a batch, twice as many as the last time; raise as the masters do."""
        asked_s = boot_s()
        reply: AllocateReply | None = None
        if bad := tuple(self._health.bad(time.monotonic()))[:EXCLUDE_MAX]:
            try:
                request = Allocate(shelf.batch, replication, bad)
                reply = self._masters.call(request, AllocateReply, deadline, is_patient=False)
            except NotEnoughServers:
                pass  # better a server that failed a moment ago than none
        if reply is None:
            reply = self._masters.call(Allocate(shelf.batch, replication), AllocateReply, deadline)
        shelf.batch = min(RESERVE_MAX, shelf.batch * 2)
        shelf.chunk_size = reply.chunk_size
        age_max_s = min(AGE_MAX_S, COMMIT_SHARE * reply.commit_within_s, TOKEN_SHARE * reply.write_within_s)
        for target in targets_of(reply):
            shelf.ready.append((asked_s + age_max_s, Reserved(target, asked_s + reply.commit_within_s)))
