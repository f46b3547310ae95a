"""Get the bytes of a chunk from whichever replica gives them right, and soon.

Owns: the choice of the replica, the nearest good one first, second requests to another when one is slow, stall limits,
and what becomes of a replica that failed. Refuses to know: files, what is asked for and how it is verified
(dfs.client.readings), and how a descriptor comes to this process (dfs.client.local_replicas).

There is no limit on the whole time of a read: it may go on as long as it makes progress.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

from dfs.client.hedging import Hedging
from dfs.client.local_replicas import LocalReplica, LocalReplicas
from dfs.client.ownership import Owner
from dfs.client.parallel import Cancellation
from dfs.client.plan import ReadPlan, ServerHealth, backoff_s
from dfs.client.pool import ChannelPool, exchange
from dfs.client.readings import Reading
from dfs.clock import Deadline
from dfs.errors import (
    ChunkCorrupt,
    ChunkNotFound,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    LocalFileError,
    NoQuorum,
    ProtocolError,
    Retry,
    StaleReplica,
)
from dfs.fast_paths import FastPath, is_on
from dfs.ids import id_text
from dfs.jitter import draw
from dfs.log import get_logger
from dfs.net.blocking import Channel, expect, first_readable
from dfs.net.messages import VerifyReplica, VerifyReplicaReply
from dfs.net.parts import LocatedExtent, ServerInfo
from dfs.net.sockets import is_own_address

CONNECT_TIMEOUT_S = 2.0  # to a chunk server; there are others
READ_STALL_S = 5.0  # a replica that gives nothing for so long is left for another one; doubles when all are slow
READ_STALL_GROWTH_MAX = 8
READ_TIME_S = 600.0  # told to the server as our patience with a whole read; ours is the stall limit
VERIFY_TIMEOUT_S = 5.0  # for a suspected replica to check itself; it goes on alone after that

Relocate = Callable[[ReadPlan, Deadline], tuple[LocatedExtent, tuple[ServerInfo, ...]]]

log = get_logger(__name__)


@dataclass(slots=True)
class ReadCounts:
    """How reads were served: wholly by an open file of this machine, over the network, and of those by a second request
    (`hedged`: sent, `hedges_won`: answered first)."""

    local: int = 0
    remote: int = 0
    hedged: int = 0
    hedges_won: int = 0


class _Asked:
    """A channel over which a server was asked, for the length of one block."""

    __slots__ = ("_address", "_cancellation", "_channel", "_pool", "_reading", "_stall_s")

    def __init__(
        self, pool: ChannelPool, server: ServerInfo, reading: Reading, cancellation: Cancellation, stall_s: float
    ) -> None:
        self._pool, self._address, self._reading = pool, server.address, reading
        self._cancellation, self._stall_s = cancellation, stall_s

    def __enter__(self) -> Channel:
        now_s = time.monotonic()
        connect = Deadline(now_s + min(CONNECT_TIMEOUT_S, self._stall_s))
        channel = self._channel = self._pool.take(self._address, connect, bulk=True)
        try:
            self._cancellation.watch(channel)
            channel.send(self._reading.request(), Deadline(now_s + READ_TIME_S))
        except BaseException:
            self._end(is_good=False)
            raise
        return channel

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(is_good=kind is None)

    def _end(self, *, is_good: bool) -> None:
        self._cancellation.unwatch(self._channel)
        if is_good:
            self._pool.give(self._address, self._channel, bulk=True)
        else:
            self._channel.close()


class ReplicaReader:
    """Thread-safe; shared by all reads of a client, so that they learn of bad and slow servers from each other."""

    def __init__(
        self,
        pool: ChannelPool,
        health: ServerHealth,
        local: LocalReplicas,
        timeout_s: float,
        *,
        rack: str = "",
        is_hedged: bool = True,
    ) -> None:
        """`rack`: where this client is ("": not known); `is_hedged`: whether slow replicas get a rival."""
        self._pool = pool
        self._health = health
        self._local = local
        self._timeout_s = timeout_s
        self._rack = rack
        self._hedging = Hedging() if is_hedged and is_on(FastPath.HEDGED_READS) else None
        self._lock = threading.Lock()
        self._owner = Owner()
        self.counts = ReadCounts()

    def read(self, reading: Reading, cancellation: Cancellation, *, relocate: Relocate, path: str) -> None:
        """Bring all bytes of a reading, verified, from any replica.

        When all fail, `relocate` asks the masters for present places and tokens, until nothing was got for the timeout.
        """
        self._owner.check()
        deadline = Deadline.after(self._timeout_s)
        rounds = 0
        while True:
            before = reading.left
            may_get_better = self._read_round(
                reading, cancellation, READ_STALL_S * min(2**rounds, READ_STALL_GROWTH_MAX)
            )
            if not reading.left:
                return
            if reading.left < before:
                deadline = Deadline.after(self._timeout_s)
            if not may_get_better:
                raise _unreadable(reading, path)
            rounds += 1
            time.sleep(min(backoff_s(rounds, draw()), deadline.remaining_s()))
            cancellation.check()
            if deadline.has_passed:  # before, or while we slept
                raise _unreadable(reading, path)
            try:
                reading.extent, reading.replicas = relocate(reading.plan, deadline)
            except (ConnectionFailed, NoQuorum, DeadlineExceeded) as error:
                reading.reasons.setdefault("the masters", error.message)
                raise _unreadable(reading, path) from None

    def at_hand(self, extent: LocatedExtent, replicas: Sequence[ServerInfo]) -> LocalReplica | None:
        """Return an open replica of this machine at a server that did not fail lately, None when there is none.

        A small one whose place is known needs no server, be it alive or not.
        """
        self._owner.check()
        if (replica := self._local.known(extent, replicas)) is not None:
            return replica
        bad = self._health.bad(time.monotonic())
        for server in replicas:
            if server.server_id not in bad and is_own_address(server.address):
                replica = self._local.find(server, extent)
                if replica is not None:
                    return replica
        return None

    def refute(self, extent: LocatedExtent, replica: LocalReplica) -> None:
        """Forget a replica from `at_hand` that had wrong bytes, and make its server check it."""
        self._local.drop(replica.server, extent)
        self._report_replica(replica.server, extent)

    def note_local(self) -> None:
        """Count a read that was served by what `at_hand` gave."""
        self._count(local=1)

    def _read_round(self, reading: Reading, cancellation: Cancellation, stall_s: float) -> bool:
        """Ask each replica once, until all is read; return whether asking again later may help.

        One that was overtaken by another that then failed has not failed itself: it is asked once more, at the end.
        """
        may_get_better = not reading.replicas
        now_s, turn = time.monotonic(), reading.plan.extent_index
        order = self._health.order(reading.replicas, now_s, turn, self._distance)
        for number, server in enumerate(order):
            cancellation.check()
            reading.server = server
            try:
                self._read_from(server, order[number + 1 :], reading, cancellation, stall_s)
            except LocalFileError:
                raise
            except DfsError as error:
                cancellation.check()
                failure = self._note_failure(reading, error, stall_s)
                may_get_better = may_get_better or failure.retry is not Retry.NEVER
                if reading.server is not server and order.count(server) == 1:
                    order.append(server)
            else:
                self._health.worked(reading.server)
                return True
        return may_get_better

    def _distance(self, server: ServerInfo) -> int:
        """Return 0 for this machine, 1 for this rack, 2 for the rest."""
        if is_own_address(server.address):
            return 0
        return 1 if self._rack and server.rack == self._rack else 2

    def _read_from(
        self,
        server: ServerInfo,
        rivals: Sequence[ServerInfo],
        reading: Reading,
        cancellation: Cancellation,
        stall_s: float,
    ) -> None:
        """Read on at one replica: what its open file has in memory first, then over the network."""
        self._read_locally(server, reading, cancellation)
        if not reading.left:
            self._count(local=1)
            return
        while reading.left:
            with _Asked(self._pool, server, reading, cancellation, stall_s) as channel:
                rival = self._rival(channel, rivals, reading, stall_s)
                if rival is None:
                    reading.receive(channel, stall_s, cancellation)
                else:
                    self._race(channel, rival, reading, cancellation, stall_s)
            server = reading.server or server  # a rival that won is asked for the rest, too
        self._count(remote=1)

    def _read_locally(self, server: ServerInfo, reading: Reading, cancellation: Cancellation) -> None:
        replica = self._local.find(server, reading.extent)
        if replica is None:
            return
        try:
            reading.read_local(replica, cancellation)
        except ChunkCorrupt as error:
            self._local.drop(server, reading.extent)
            handle = id_text(reading.extent.handle)
            raise ChunkCorrupt(
                f"the replica of chunk {handle} at {server.address}: {error.message}",
                handle=handle,
                server=server.address,
            ) from None

    def _rival(
        self, channel: Channel, rivals: Sequence[ServerInfo], reading: Reading, stall_s: float
    ) -> ServerInfo | None:
        """Wait for the answer as long as is usual; return who is to be asked, too, when it is late then."""
        if self._hedging is None:
            return None
        begun_s, size = time.monotonic(), reading.left
        is_late = not channel.wait_readable(Deadline(begun_s + min(stall_s, self._hedging.patience_s(size))))
        self._hedging.answered(size, time.monotonic() - begun_s)
        if not is_late:
            return None
        rival = next((rival for rival in rivals if rival.is_alive), None)
        return rival if rival is not None and self._hedging.take() else None

    def _race(
        self, channel: Channel, rival: ServerInfo, reading: Reading, cancellation: Cancellation, stall_s: float
    ) -> None:
        """Ask another replica, too, and take the answer of the one that says the first word.

        The loser is closed: its answer would be in the way of the next one.
        """
        self._count(hedged=1)
        with ExitStack() as stack:
            try:
                other = stack.enter_context(_Asked(self._pool, rival, reading, cancellation, stall_s))
            except DfsError as error:
                cancellation.check()
                log.debug("second_request_failed", server=rival.address, reason=error.message)
                reading.receive(channel, stall_s, cancellation)
                return
            if first_readable((channel, other), Deadline.after(stall_s)) is other:
                channel.close()
                self._note_won(channel, rival, reading)
                reading.receive(other, stall_s, cancellation)
            else:
                other.close()
                reading.receive(channel, stall_s, cancellation)

    def _note_won(self, slow: Channel, rival: ServerInfo, reading: Reading) -> None:
        server, reading.server = reading.server, rival
        self._count(hedges_won=1)
        log.info("slow_replica_overtaken", handle=reading.extent.handle, rival=rival.address, slow=slow.address)
        if server is not None:
            self._health.slowed(server, time.monotonic())

    def _count(self, *, local: int = 0, remote: int = 0, hedged: int = 0, hedges_won: int = 0) -> None:
        counts = self.counts
        with self._lock:
            counts.local += local
            counts.remote += remote
            counts.hedged += hedged
            counts.hedges_won += hedges_won

    def _note_failure(self, reading: Reading, error: DfsError, stall_s: float) -> DfsError:
        """Note what a replica failed with, and return it: a passed stall limit means that this server failed."""
        server, handle = reading.server, reading.extent.handle
        assert server is not None
        if isinstance(error, DeadlineExceeded):
            text = f"{server.address} made no progress within {stall_s:g} s ({error.message})"
            error = ConnectionFailed(text, address=server.address)
        reading.reasons[f"{server.name} ({server.address})"] = error.message
        reading.last_error = error
        log.warning("replica_read_failed", handle=handle, server=server.address, code=error.code, reason=error.message)
        if isinstance(error, (ConnectionFailed, ProtocolError)):
            self._health.failed(server, time.monotonic())
        elif isinstance(error, (ChunkCorrupt, StaleReplica)) and server.address not in reading.verified:
            reading.verified.add(server.address)
            self._report_replica(server, reading.extent)
        return error

    def _report_replica(self, server: ServerInfo, extent: LocatedExtent) -> None:
        """Make a server check its replica: the way by which damage that a reader met is repaired."""
        deadline = Deadline.after(VERIFY_TIMEOUT_S)
        try:
            with self._pool.channel(server.address, deadline) as channel:
                reply = expect(
                    exchange(channel, VerifyReplica(extent.handle, extent.token), deadline), VerifyReplicaReply
                )
        except DfsError as error:
            log.warning("replica_not_reported", handle=extent.handle, server=server.address, reason=error.message)
        else:
            log.warning("replica_reported", handle=extent.handle, server=server.address, is_good=reply.is_good)


def _unreadable(reading: Reading, path: str) -> DfsError:
    plan = reading.plan
    reasons = "; ".join(f"{server}: {reason}" for server, reason in reading.reasons.items())
    text = (
        f"bytes {plan.file_offset} to {plan.file_offset + plan.length} of {path!r} (chunk "
        f"{id_text(plan.extent.handle)}) cannot be read: {reasons or 'no chunk server holds a replica of it'}; see "
        "`dfs fsck` and `dfs status`"
    )
    error = reading.last_error
    cls: type[DfsError] = type(error) if error is not None and reading.reasons else ChunkNotFound
    return cls(text, handle=id_text(plan.extent.handle))
