"""Fresh chunks to write: asked for in batches, away from servers that failed.

Owns: the batches of one upload, what is left out of them, and how long they may stay uncommitted. Refuses to know: how
a chunk is written, and what for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Sequence

from dfs.client.discovery import Masters
from dfs.client.plan import ServerHealth
from dfs.client.reserve import ChunkReserve
from dfs.client.transfer import targets_of
from dfs.client.write_target import WriteTarget
from dfs.clock import Deadline, boot_s
from dfs.errors import DeadlineExceeded, DfsError, NotEnoughServers
from dfs.ids import ServerId
from dfs.net.messages import ALLOCATE_COUNT_MAX, EXCLUDE_MAX, Allocate, AllocateReply

BATCH_MAX = 16  # chunks asked for at once: few enough that their tokens are young when they are used
assert BATCH_MAX <= ALLOCATE_COUNT_MAX


class Allocator:
    """The source of chunks of one upload. Thread-safe."""

    def __init__(
        self,
        masters: Masters,
        health: ServerHealth,
        replication: int,
        timeout_s: float,
        reserve: ChunkReserve | None = None,
    ) -> None:
        """With a `reserve` the first chunk comes from there: a small put needs no other."""
        self._masters = masters
        self._health = health
        self._replication = replication
        self._timeout_s = timeout_s
        self._reserve = reserve
        self._lock = threading.Lock()
        self._ready: deque[WriteTarget] = deque()
        self._batch = 1
        self._expected: int | None = None  # chunks that will still be asked for, when known
        self._asked = 0
        self._chunk_size = 0
        self._commit_until_s = 0.0  # of `boot_s`: the masters count on while this computer sleeps
        self._failure: DfsError | None = None  # of the last one that asked: whoever waited for it hears the same

    def chunk_size(self) -> int:
        """Return the cluster's chunk size."""
        deadline = Deadline.after(self._timeout_s)
        with self._lock:
            if not self._chunk_size and self._reserve is not None:
                self._chunk_size = self._reserve.chunk_size(self._replication, deadline)
            if not self._chunk_size:
                self._refill((), deadline)
            return self._chunk_size

    def expect(self, count: int) -> None:
        """Note that `count` chunks will be needed in all: no more than that are set aside for this upload."""
        with self._lock:
            self._expected = count

    def take(self, failed: Collection[ServerId] = ()) -> WriteTarget:
        """Return a chunk, if possible not on the servers in `failed` and not on those that failed lately."""
        deadline = Deadline.after(self._timeout_s)  # covers the wait for another thread that asks already
        with self._lock:
            if self._failure is not None and deadline.has_passed:
                raise self._failure
            if self._reserve is not None and not self._asked and not failed:
                return self._take_reserved(self._reserve, deadline)
            excluded = self._health.bad(time.monotonic()) | set(failed)
            while self._ready:
                target = self._ready.popleft()
                if not any(server.server_id in excluded for server in target.chain):
                    return target
            try:
                self._refill(([*failed, *(excluded - set(failed))], [*failed]), deadline)
            except DfsError as error:
                self._failure = error
                raise
            return self._ready.popleft()

    def _take_reserved(self, reserve: ChunkReserve, deadline: Deadline) -> WriteTarget:
        try:
            reserved = reserve.take(self._replication, deadline)
        except DfsError as error:
            self._failure = error
            raise
        self._asked += 1
        self._commit_until_s = reserved.commit_until_s
        return reserved.target

    def check_commit_time(self) -> None:
        """Raise `DeadlineExceeded` when the masters may hold the first chunks for garbage by now."""
        if self._commit_until_s and boot_s() >= self._commit_until_s:
            raise DeadlineExceeded(
                "storing took longer than the masters keep chunks that belong to no file; nothing was stored: try "
                "again over a faster connection, or in smaller files"
            )

    def _refill(self, exclusions: Sequence[Sequence[ServerId]], deadline: Deadline) -> None:
        """Ask for chunks without the first of `exclusions` that leaves enough servers, else for any."""
        count = self._batch if self._expected is None else max(1, min(self._batch, self._expected - self._asked))
        self._batch = min(BATCH_MAX, self._batch * 2)
        asked_s = boot_s()
        reply: AllocateReply | None = None
        for excluded in dict.fromkeys(tuple(servers[:EXCLUDE_MAX]) for servers in exclusions if servers):
            try:
                request = Allocate(count, self._replication, excluded)
                reply = self._masters.call(request, AllocateReply, deadline, is_patient=False)
                break
            except NotEnoughServers:
                pass  # better a server that failed a moment ago than none; one that failed for this chunk comes last
        if reply is None:
            reply = self._masters.call(Allocate(count, self._replication), AllocateReply, deadline)
        self._ready.extend(targets_of(reply))
        self._asked += len(reply.chunks)
        self._chunk_size = reply.chunk_size
        if not self._commit_until_s:
            self._commit_until_s = asked_s + reply.commit_within_s
