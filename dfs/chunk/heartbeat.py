"""Keeps the leader informed: registers, sends heartbeats with what changed, reports in full when asked.

Owns: the order in which things are told, and what is told again. Refuses to know: where the leader is
(dfs.chunk.leader), and files.

One thread says everything, in order. A change is dropped only after a heartbeat with it was acknowledged; a full report
lists the replicas after it has begun, so whatever changes meanwhile stands in a heartbeat after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dfs.chunk.leader import REPLY_TIMEOUT_S, LeaderConnection
from dfs.chunk.orders import DeletionOrders
from dfs.chunk.replicas import ChunkStore
from dfs.chunk.replicator import Replicator
from dfs.clock import SYSTEM_CLOCK, Clock
from dfs.errors import DfsError, InvalidArgument, NoQuorum
from dfs.log import get_logger, unexpected
from dfs.net.messages import (
    HEARTBEAT_CHANGES_MAX,
    REPORT_PAGE_MAX,
    ChunkReport,
    ChunkReportReply,
    Heartbeat,
    HeartbeatReply,
    RegisterServer,
    RegisterServerReply,
)
from dfs.net.parts import DeleteReplica, ScrubStatus

REPORT_TIMEOUT_S = 15.0  # for one page: the leader may have thousands of corrections to replicate
SEARCH_PAUSE_MAX_S = 0.25  # between two searches for a leader: a new one should hear from us at once
REFUSED_PAUSE_MAX_S = 10.0  # between two registrations that were refused: an operator has to act
HURRIED_SHARE = 0.2  # of the interval: so soon after a beat the next may come when the copiers have little left to do
STEPS_MAX = 8  # exchanges in one beat (register, report, more changes…); the rest waits for the next one

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerCard:
    """How this server introduces itself. `incarnation` is drawn at each start of the daemon."""

    name: str
    address: str
    rack: str
    incarnation: bytes


class Heartbeats:
    """The conversation with the leader; `run` is the root of a thread, `beat` one round of it."""

    def __init__(
        self,
        *,
        store: ChunkStore,
        leader: LeaderConnection,
        orders: DeletionOrders,
        replicator: Replicator,
        card: ServerCard,
        interval_s: float,
        active_streams: Callable[[], int],
        disk_wait_ms: Callable[[], int],
        scrub: Callable[[], ScrubStatus],
        clock: Clock = SYSTEM_CLOCK,
        page_max: int = REPORT_PAGE_MAX,
        changes_max: int = HEARTBEAT_CHANGES_MAX,
    ) -> None:
        self._store = store
        self._leader = leader
        self._orders = orders
        self._replicator = replicator
        self._card = card
        self._interval_s = interval_s
        self._active_streams = active_streams
        self._disk_wait_ms = disk_wait_ms
        self._scrub = scrub
        self._clock = clock
        self._page_max = page_max
        self._changes_max = changes_max
        self._hurried = threading.Event()
        self._report_id = 0
        replicator.queue.when_low(self.hurry)
        self._refusals = 0

    def run(self, stop: threading.Event) -> None:
        """Beat until `stop`, at the interval, or sooner while no leader is known or copies come to their end.

        Whoever sets `stop` calls `hurry`."""
        pause_s = 0.0
        while not self._rest(stop, pause_s):
            begun_s = self._clock.monotonic()
            try:
                pause_s = self.beat()
            except Exception:
                log.exception("heartbeat_failed")
                pause_s = self._interval_s
            pause_s = max(0.0, pause_s - (self._clock.monotonic() - begun_s))

    def hurry(self) -> None:
        """Let the next beat come soon: copies have ended, and the leader may have more to order."""
        self._hurried.set()

    def _rest(self, stop: threading.Event, pause_s: float) -> bool:
        """Wait for the next beat; return whether to stop."""
        shortest_s = min(pause_s, HURRIED_SHARE * self._interval_s)
        if not stop.wait(shortest_s):
            self._hurried.wait(pause_s - shortest_s)
            self._hurried.clear()
        return stop.is_set()

    def beat(self) -> float:
        """Tell the leader what there is to tell; return the seconds from now until the next beat is due."""
        try:
            self._converse()
        except NoQuorum:
            return min(SEARCH_PAUSE_MAX_S, self._interval_s)
        except _RegistrationRefusedError as refused:
            return self._refused(refused)
        except DfsError as error:
            log.warning("heartbeat_refused", code=error.code, reason=error.message)
        return self._interval_s

    def _converse(self) -> None:
        has_reported = False
        for _ in range(STEPS_MAX):
            reply, is_all_told = self._heartbeat()
            if reply.must_register:
                self._register()
            elif (reply.must_report or self._store.changes.must_report()) and not has_reported:
                self._report()
                has_reported = True  # the next heartbeat follows at once: the leader waits for it
            elif is_all_told:
                return

    def _heartbeat(self) -> tuple[HeartbeatReply, bool]:
        """Return the leader's answer, and whether it knows all changes now."""
        disks, space = self._store.disks(), self._store.space()
        copies = self._replicator.queue.status()  # before the changes: a copy that has ended meanwhile stands in both
        batch = self._store.changes.batch(self._changes_max)
        reply = self._leader.call(
            Heartbeat(
                server_id=self._store.server_id,
                incarnation=self._card.incarnation,
                capacity=space.capacity,
                free=space.free,
                chunk_count=sum(disk.chunk_count for disk in disks),
                active_streams=self._active_streams(),
                disks=disks,
                added=tuple(replica.report() for replica in batch.added),
                removed=batch.removed,
                copying=copies.copying,
                copy_failures=copies.failures,
                corrupt=batch.corrupt,
                disk_wait_ms=self._disk_wait_ms(),
                scrub=self._scrub(),
                unexpected_count=sum(unexpected().values()),
            ),
            HeartbeatReply,
            max(REPLY_TIMEOUT_S, self._interval_s),
        )
        if not reply.must_register:
            self._store.changes.acknowledge(batch)
            self._replicator.queue.acknowledge(copies.failures)
            self._replicator.limit_rate(reply.copy_rate_max)
        self._delete(reply.orders)
        self._orders.cancel(order.handle for order in reply.copies)
        self._replicator.queue.add(reply.copies)
        return reply, len(batch.entries) < self._changes_max

    def _delete(self, orders: Iterable[DeleteReplica]) -> None:
        handles = [order.handle for order in orders]
        self._replicator.queue.cancel(handles)
        self._orders.add(handles)

    def _register(self) -> None:
        try:
            self._leader.call(
                RegisterServer(
                    server_id=self._store.server_id,
                    name=self._card.name,
                    address=self._card.address,
                    rack=self._card.rack,
                    incarnation=self._card.incarnation,
                    capacity=self._store.space().capacity,
                ),
                RegisterServerReply,
            )
        except InvalidArgument as error:
            raise _RegistrationRefusedError(error.message) from error
        self._refusals = 0
        self._orders.clear()  # before the report: a replica that is listed must not go by the order of a leader before
        log.info("registered", server=self._store.server_id)

    def _refused(self, refused: _RegistrationRefusedError) -> float:
        """Say so, the more seldom the longer it lasts."""
        self._refusals += 1
        patience_s = self._interval_s * (1 << min(self._refusals, 16))
        pause_s = min(patience_s, max(REFUSED_PAUSE_MAX_S, self._interval_s))
        log.error(
            "registration_refused",
            reason=refused,
            server=self._store.server_id,
            retry_in_s=pause_s,
            action="this server stays out of the cluster until that is mended; it goes on asking",
        )
        return pause_s

    def _report(self) -> None:
        """Send a full report; when a page fails, the whole of it is due again."""
        self._report_id += 1
        self._store.changes.report_begins()
        try:
            count = self._send_pages()
        except BaseException:
            self._store.changes.report_failed()
            raise
        log.info("reported", report=self._report_id, replicas=count)

    def _send_pages(self) -> int:
        handles = self._store.handles()
        starts = range(0, max(1, len(handles)), self._page_max)
        for page, start in enumerate(starts):
            held = map(self._store.replica, handles[start : start + self._page_max])
            reply = self._leader.call(
                ChunkReport(
                    server_id=self._store.server_id,
                    incarnation=self._card.incarnation,
                    report_id=self._report_id,
                    page=page,
                    is_last=page == len(starts) - 1,
                    replicas=tuple(replica.report() for replica in held if replica is not None),
                ),
                ChunkReportReply,
                REPORT_TIMEOUT_S,
            )
            self._delete(reply.orders)
        return len(handles)


class _RegistrationRefusedError(Exception):
    """The leader will not have this server; its words say why."""
