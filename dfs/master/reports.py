"""What chunk servers tell the leader: registrations, heartbeats and full reports, and the corrections that follow.

Owns: the conversation with each chunk server, and the corrections of the chunk map and the delete orders it leads to.
Refuses to know: clients, and sockets. The judgements themselves are pure: dfs.master.chunk_report.

All of this is soft state of one leadership: a new leader asks every server to register and report again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from dfs.clock import Clock, Deadline
from dfs.config import DATA_DIRS_MAX, ClusterConfig, split_address
from dfs.errors import ConfigError, InvalidArgument
from dfs.ids import ID_SIZE, ChunkHandle, ServerId, id_text
from dfs.log import get_logger
from dfs.master.chunk_report import (
    CHANGE_MEMORY_S,
    HEARTBEATS_AWAITED,
    STALLED_AFTER_S,
    RecentChanges,
    ReportIntake,
    Verdict,
    check_handles,
    judge,
)
from dfs.master.healing.garbage import ORDERS_WAITING_MAX, OrderBook
from dfs.master.healing.liveness import ClusterView
from dfs.master.healing.orders import Healing
from dfs.master.leadership import Leadership
from dfs.master.state.commands import ChangeReplicas, ForgetGarbage, PutServer, ReplicaChange
from dfs.master.state.machine import MasterState
from dfs.net.messages import (
    COPIES_WAITING_MAX,
    HEARTBEAT_CHANGES_MAX,
    ORDERS_MAX,
    REPORT_PAGE_MAX,
    ChunkReport,
    ChunkReportReply,
    Heartbeat,
    HeartbeatReply,
    RegisterServer,
    RegisterServerReply,
)
from dfs.net.parts import DeleteReplica, ReplicaReport

SLICE_S = 0.005  # work on the loop between two breaths: below what a waiting call notices
SLICE_STEPS = 512  # handles looked up between two looks at the clock: about half a millisecond
JUDGED_PER_SLICE = 500  # reported replicas between two breaths: about 2 ms
CHANGES_PER_COMMAND = 1000  # corrections in one log entry: its apply stays short
REPORT_EVERY_S = 3600.0  # between full reports: what was young has become an orphan, what was missed is found
NAME_SIZE_MAX = 64  # characters of a server's name and rack

log = get_logger(__name__)
ItemT = TypeVar("ItemT")


class ServerDesk:
    """The leader's conversation with one incarnation of one chunk server."""

    def __init__(self) -> None:
        self.book = OrderBook()
        self.recent = RecentChanges()
        self.needs_report = True
        self.reported_s = 0.0  # when its last full report was complete
        self.intake: ReportIntake | None = None
        self.missing: deque[ChunkHandle] = deque()  # in the map, not in its last report
        self.heartbeats_awaited = 0  # before `missing` may be believed

    def must_report(self, now_s: float) -> bool:
        """Whether to ask for a full report: one is due, and none is on its way."""
        is_coming = self.intake is not None and now_s - self.intake.heard_s < STALLED_AFTER_S
        is_due = self.needs_report or now_s - self.reported_s > REPORT_EVERY_S
        return is_due and not is_coming

    @property
    def is_confirmed(self) -> bool:
        """Whether a full report of it was taken in, and what it proved missing is out of the map."""
        return not self.needs_report and self.is_settled

    @property
    def is_settled(self) -> bool:
        """Whether no report is being taken in, compared or carried out."""
        return self.intake is None and not self.missing


class Reports:
    """Takes in what chunk servers say. Call `reset` when leadership begins or ends."""

    def __init__(
        self,
        *,
        config: ClusterConfig,
        state: MasterState,
        view: ClusterView,
        leadership: Leadership,
        healing: Healing,
        clock: Clock,
    ) -> None:
        self._healing = healing
        self._config, self._state, self._view = config, state, view
        self._leadership, self._clock = leadership, clock
        self._desks: dict[ServerId, ServerDesk] = {}

    def reset(self) -> None:
        self._desks.clear()

    def books(self) -> dict[ServerId, OrderBook]:
        return {server_id: desk.book for server_id, desk in self._desks.items()}

    def confirmed(self) -> frozenset[ServerId]:
        """Return the servers of which this leader knows for sure what they hold."""
        return frozenset(server_id for server_id, desk in self._desks.items() if desk.is_confirmed)

    def forget(self, server_id: ServerId) -> None:
        """Drop the desk of a server that was taken out of the registry."""
        self._desks.pop(server_id, None)
        self._healing.registered(server_id)

    # --- registration -------------------------------------------------------------------------------

    async def register(self, message: RegisterServer, deadline: Deadline) -> RegisterServerReply:
        """Take a chunk server in; raise `InvalidArgument` for nonsense and for the twin of a live server."""
        self._leadership.require()
        _check_registration(message)
        self._refuse_twin(message)
        known = self._state.server(message.server_id)
        wanted = (message.name, message.address, message.rack)
        if known is None or (known.name, known.address, known.rack) != wanted:
            await self._leadership.barrier(deadline)  # a deposed leader must not answer from an old registry
            await self._leadership.decree(PutServer(message.server_id, *wanted))
            self._leadership.require()  # leadership may have moved meanwhile, and with it the soft view
            self._refuse_twin(message)
        self._view.register(
            message.server_id, message.incarnation, message.address, message.capacity, self._clock.monotonic()
        )
        self._desks[message.server_id] = ServerDesk()
        self._healing.registered(message.server_id)
        log.info("server_registered", server=message.name, address=message.address, id=message.server_id)
        return RegisterServerReply(self._config.name)

    def _refuse_twin(self, message: RegisterServer) -> None:
        twin = self._view.twin_of(message.server_id, message.incarnation, message.address, self._clock.monotonic())
        if twin is None:
            return
        log.error("server_twin_refused", server=message.name, address=message.address, runs_at=twin.address)
        raise InvalidArgument(
            f"chunk server {message.name} at {message.address} has the id {id_text(message.server_id)} of a server that"
            f" is alive at {twin.address}: a data directory was copied, or one server was started twice. Stop one of"
            " them; a copied data directory must be emptied before it can serve"
        )

    # --- heartbeats -----------------------------------------------------------------------------------

    async def heartbeat(self, message: Heartbeat) -> HeartbeatReply:
        """Take a heartbeat in, carry its changes into the map, and answer with orders."""
        self._leadership.require()
        if len(message.added) + len(message.removed) > HEARTBEAT_CHANGES_MAX:
            raise InvalidArgument(f"a heartbeat carries at most {HEARTBEAT_CHANGES_MAX} changes; send the rest later")
        if len(message.disks) > DATA_DIRS_MAX:
            raise InvalidArgument(
                f"a chunk server has at most {DATA_DIRS_MAX} data directories, not {len(message.disks)}"
            )
        check_handles(replica.handle for replica in message.added)
        check_handles(message.removed)
        if max(len(message.copying), len(message.copy_failures)) > COPIES_WAITING_MAX:
            raise InvalidArgument(f"a heartbeat tells of at most {COPIES_WAITING_MAX} copies; send the rest later")
        now_s = self._clock.monotonic()
        desk = self._desks.get(message.server_id)
        if desk is None or not self._view.heard(message, now_s):
            return HeartbeatReply(must_register=True, must_report=False)
        desk.recent.note((replica.handle for replica in message.added), now_s, is_held=True)
        desk.recent.note(message.removed, now_s, is_held=False)
        if desk.is_settled:
            desk.recent.forget_before(now_s - CHANGE_MEMORY_S)
        gone = self._gone(message.server_id, desk)
        changes = [
            *self._additions(message.server_id, desk, message.added),
            *self._removals(message.server_id, [*message.removed, *gone]),
        ]
        missing = desk.missing
        try:
            await self.correct(message.server_id, changes)
        except BaseException:
            missing.extendleft(reversed(gone))  # the next heartbeat settles them
            raise
        await self._forget_garbage(message.server_id, message.removed)
        desk.book.confirm(message.removed)
        if self._healing.heard(message):
            await self._healing.refill(message.server_id)
        copies, rate_max = self._healing.orders_for(message.server_id) if self._leadership.is_leader else ((), 0)
        return HeartbeatReply(
            must_register=False,
            must_report=desk.must_report(now_s),
            orders=self._orders(message.server_id, desk),
            copies=copies,
            copy_rate_max=rate_max,
        )

    def _additions(self, server_id: ServerId, desk: ServerDesk, added: Iterable[ReplicaReport]) -> list[ReplicaChange]:
        """Judge replicas that a server holds: return corrections, and put what must go into its order book."""
        changes = []
        foreign = 0
        for replica in added:
            verdict = self._judge(server_id, replica)
            foreign += verdict is Verdict.FOREIGN
            if verdict is Verdict.LIST and self._healing.trims.holds(server_id, replica.handle):
                continue  # it was unlisted as surplus, and is listed again when it is needed
            if verdict in (Verdict.KEEP, Verdict.LIST):
                desk.book.confirm((replica.handle,))  # an order that stands was for a bad one, which has gone
            if verdict is Verdict.LIST and not desk.recent.was_removed(replica.handle):
                changes.append(ReplicaChange(replica.handle, True, replica.length, replica.crc))
            elif verdict.is_delete:
                self._order_deletion(desk, replica, verdict)
                changes += self._removals(server_id, [replica.handle])  # a stale one no longer counts from now on
        if foreign:
            log.error("foreign_replicas_kept", server_id=server_id, count=foreign, born_ms=self._state.born_ms)
        return changes

    def _removals(self, server_id: ServerId, handles: Iterable[ChunkHandle]) -> list[ReplicaChange]:
        chunks = ((handle, self._state.chunk(handle)) for handle in handles)
        return [
            ReplicaChange(handle, False) for handle, chunk in chunks if chunk is not None and server_id in chunk.servers
        ]

    def _gone(self, server_id: ServerId, desk: ServerDesk) -> list[ChunkHandle]:
        """Take the replicas that its last report proved missing, as many as one heartbeat may settle.

        What a heartbeat added meanwhile is not missing.
        """
        if desk.heartbeats_awaited > 0:
            desk.heartbeats_awaited -= 1
        if desk.heartbeats_awaited > 0 or not desk.missing:
            return []
        taken = [desk.missing.popleft() for _ in range(min(len(desk.missing), HEARTBEAT_CHANGES_MAX))]
        gone = [handle for handle in taken if not desk.recent.was_added(handle)]
        if gone:
            log.warning("replicas_missing", server_id=server_id, count=len(gone))
        return gone

    async def _forget_garbage(self, server_id: ServerId, removed: Iterable[ChunkHandle]) -> None:
        garbage = [handle for handle in removed if self._state.is_garbage(handle)]
        for batch in _batches(garbage):
            await self._leadership.decree(ForgetGarbage(server_id, tuple(batch)))

    async def correct(self, server_id: ServerId, changes: list[ReplicaChange]) -> None:
        """Carry corrections into the map.

        A replica may go while its listing is on the way: the heartbeat that tells so finds nothing to unlist yet.
        """
        desk = self._desks.get(server_id)
        try:
            for batch in _batches(changes):
                await self._leadership.decree(ChangeReplicas(server_id, tuple(batch)))
        except BaseException:
            if desk is not None and any(change.is_added for change in changes):
                desk.needs_report = True  # some may be listed late, when nobody looks
            raise
        listed = (change.handle for change in changes if change.is_added)
        gone = [] if desk is None else [handle for handle in listed if desk.recent.was_removed(handle)]
        for batch in _batches(self._removals(server_id, gone)):
            await self._leadership.decree(ChangeReplicas(server_id, tuple(batch)))

    # --- judging and ordering ----------------------------------------------------------------------------

    def _judge(self, server_id: ServerId, replica: ReplicaReport) -> Verdict:
        if self._state.tails.of_handle(replica.handle) is not None:
            return Verdict.YOUNG  # made of a tail that is being sealed: its commit is on the way
        return judge(
            replica,
            server_id,
            self._state.chunk(replica.handle),
            is_garbage=self._state.is_garbage(replica.handle),
            born_ms=self._state.born_ms,
            horizon_ms=self._state.horizon_ms,
        )

    def _order_deletion(self, desk: ServerDesk, replica: ReplicaReport, verdict: Verdict) -> None:
        wait_s = self._config.garbage_grace_s if verdict is Verdict.GARBAGE else 0.0
        if wait_s and desk.book.room < ORDERS_WAITING_MAX // 2:
            return  # orders that must wait leave room for those that need not; the garbage duty brings them again
        desk.book.add(replica, self._clock.monotonic() + wait_s)

    def _orders(self, server_id: ServerId, desk: ServerDesk) -> tuple[DeleteReplica, ...]:
        """Return the orders due now. Each is judged again: what was committed meanwhile must not go."""
        if not self._leadership.is_leader:
            return ()
        confirmed = self.confirmed()
        due = desk.book.take_due(
            self._clock.monotonic(),
            ORDERS_MAX,
            lambda replica: (
                self._judge(server_id, replica).is_delete
                or self._healing.may_delete(server_id, replica.handle, confirmed)
            ),
        )
        return tuple(DeleteReplica(handle) for handle in due)

    # --- full reports ----------------------------------------------------------------------------------------

    async def report(self, message: ChunkReport, deadline: Deadline) -> ChunkReportReply:
        """Take a page of a full report in: correct the map where the server holds more, order what must go."""
        self._leadership.require()
        if len(message.replicas) > REPORT_PAGE_MAX:
            raise InvalidArgument(f"a page of a chunk report holds at most {REPORT_PAGE_MAX} replicas")
        server = self._view.known(message.server_id, message.incarnation)
        desk = self._desks.get(message.server_id)
        if server is None or desk is None:
            raise InvalidArgument("this chunk server is not registered with the leader; register, then report")
        now_s = self._clock.monotonic()
        self._view.touch(server, now_s)
        if message.page == 0 and (desk.intake is None or desk.intake.report_id != message.report_id):
            desk.intake = ReportIntake(message.report_id, now_s)
        if desk.intake is None:
            raise InvalidArgument(f"chunk report {message.report_id} did not begin at page 0; start it again")
        try:
            desk.intake.accept(message, now_s)
        except InvalidArgument:
            desk.intake, desk.needs_report = None, True
            raise
        await self._leadership.barrier(deadline)  # an unknown chunk is judged an orphan by the newest state only
        changes: list[ReplicaChange] = []
        for start in range(0, len(message.replicas), JUDGED_PER_SLICE):
            changes += self._additions(message.server_id, desk, message.replicas[start : start + JUDGED_PER_SLICE])
            await asyncio.sleep(0)
        await self.correct(message.server_id, changes)
        if message.is_last:
            desk.needs_report, desk.reported_s = False, now_s
        return ChunkReportReply(self._orders(message.server_id, desk))

    async def compare_next(self) -> bool:
        """Compare the map with one report that came to its end; False when there is none.

        The map is walked in slices. What it names and the report does not is a candidate, believed 2 heartbeats later.
        """
        ready = [
            (server_id, desk, desk.intake)
            for server_id, desk in self._desks.items()
            if desk.intake is not None and desk.intake.is_complete
        ]
        if not ready:
            return False
        server_id, desk, intake = ready[0]
        missing: deque[ChunkHandle] = deque()
        pause_at = self._clock.monotonic() + SLICE_S
        for handles in self._state.handles_on(server_id):  # of a million chunks, a piece takes half a millisecond
            for start in range(0, len(handles) or 1, SLICE_STEPS):
                part = handles[start : start + SLICE_STEPS]
                missing.extend(handle for handle in part if handle not in intake.handles)
                if self._clock.monotonic() >= pause_at:
                    await asyncio.sleep(0)
                    pause_at = self._clock.monotonic() + SLICE_S
        if desk.intake is intake:  # no newer report began meanwhile
            desk.intake = None
            desk.missing = missing
            desk.heartbeats_awaited = HEARTBEATS_AWAITED
            log.info("report_compared", server_id=server_id, replicas=len(intake.handles), not_found=len(missing))
        return True


def _batches(items: list[ItemT]) -> Iterator[list[ItemT]]:
    for start in range(0, len(items), CHANGES_PER_COMMAND):
        yield items[start : start + CHANGES_PER_COMMAND]


def _check_registration(message: RegisterServer) -> None:
    """Raise `InvalidArgument` unless this can be a chunk server of ours."""
    if len(message.server_id) != ID_SIZE or not message.incarnation:
        raise InvalidArgument(f"chunk server {message.name!r} sent no valid id; check its data directories")
    for what, text in (("name", message.name), ("rack", message.rack)):
        if not 0 < len(text) <= NAME_SIZE_MAX or not text.isprintable():
            raise InvalidArgument(f"the {what} {text[:NAME_SIZE_MAX]!r} of a chunk server is not 1 to 64 characters")
    if message.capacity <= 0:
        raise InvalidArgument(
            f"chunk server {message.name} has no working data directory (capacity 0); check its data_dirs and its log"
        )
    try:
        split_address(message.address)
    except ConfigError as error:
        raise InvalidArgument(f"chunk server {message.name} registers with a bad address: {error}") from None
