"""The master at its port: what each message asks for, and who may answer it.

Owns: the table from message type to handler, and what is filled in or refused before a call enters the log.
Refuses to know: sockets (dfs.net.aio), Raft (dfs.master.replicated_log), and the rules of names (dfs.master.state).

Reads are linearizable: a read barrier proves the leadership and the freshness of the local state, which is then read
without awaiting (dfs.master.read_gate). One that allows an age is answered by any master that can prove that age.
A mutation is the command: it goes through the log as it came, and its result is in the state.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import msgspec

import dfs
from dfs.clock import SYSTEM_CLOCK, Clock
from dfs.config import ClusterConfig
from dfs.errors import DfsError, InvalidArgument, ProtocolError
from dfs.log import get_logger, unexpected
from dfs.master.access import AccessDesk, server_info
from dfs.master.admin import AdminDesk
from dfs.master.administration import AdministrationDesk
from dfs.master.change_gate import ChangeGate
from dfs.master.diagnosis import DiagnosisDesk
from dfs.master.healing.duties import BalanceDuty, Ordering, RepairDuty, ReplacedDuty, SurplusDuty
from dfs.master.healing.liveness import ClusterView, Liveness
from dfs.master.healing.lookout import Lookout
from dfs.master.healing.orders import Healing
from dfs.master.healing.status import healing_status, server_mode
from dfs.master.leadership import Leadership
from dfs.master.meter import MasterMeter
from dfs.master.read_gate import ReadGate
from dfs.master.replicated_log import ReplicatedLog
from dfs.master.reports import Reports
from dfs.master.state.machine import MasterState
from dfs.master.state.views import RegisteredServer
from dfs.master.tail_desk import TailDesk
from dfs.net.aio import RequestContext
from dfs.net.auth import ClusterKey
from dfs.net.messages import (
    LIST_LIMIT_MAX,
    Allocate,
    AppendExtents,
    ChunkReport,
    CloseTail,
    CommitFile,
    CommitMany,
    Concat,
    Copy,
    CreateSnapshot,
    Delete,
    EmptyTrash,
    EndTail,
    ErrorReply,
    GetClusterStatus,
    GetClusterStatusReply,
    GetMasterStatus,
    GetMasterStatusReply,
    GetReport,
    Heartbeat,
    ListDirectory,
    ListDirectoryReply,
    ListQuotas,
    ListQuotasReply,
    ListSnapshots,
    ListSnapshotsReply,
    ListTrash,
    ListTrashReply,
    Locate,
    LocateMany,
    MakeDirectory,
    Message,
    Mutation,
    OpenTail,
    Ping,
    Pong,
    ReadCheckpoint,
    RegisterServer,
    RemoveDirectory,
    RemoveSnapshot,
    Rename,
    RestoreSnapshot,
    SetQuota,
    SetReplication,
    Stat,
    StatReply,
    SurveyFiles,
    TailReport,
    Touch,
    TransferLeadership,
    Truncate,
    Undelete,
    WriteCheckpoint,
    WriteRange,
)
from dfs.net.parts import MasterStatus, ServerStatus

MUTATIONS: frozenset[type[Mutation]] = frozenset(
    {
        MakeDirectory,
        RemoveDirectory,
        Delete,
        Rename,
        Copy,
        CommitFile,
        CommitMany,
        AppendExtents,
        Touch,
        SetReplication,
        Undelete,
        EmptyTrash,
        Truncate,
        Concat,
        WriteRange,
        CreateSnapshot,
        RemoveSnapshot,
        RestoreSnapshot,
        SetQuota,
    }
)
_TO_BE_FILLED_IN = frozenset({CommitFile, CommitMany})
Handler: TypeAlias = Callable[[Any, RequestContext], Awaitable[Message]]

log = get_logger(__name__)


class MasterService:
    """One master's answers. `handle` is safe to call for many requests at once on one loop."""

    def __init__(
        self,
        *,
        config: ClusterConfig,
        name: str,
        state: MasterState,
        replicated: ReplicatedLog,
        key: ClusterKey,
        clock: Clock = SYSTEM_CLOCK,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.state = state
        self._config = config
        self._clock = clock
        self._began_s = clock.monotonic()
        self.replicated = replicated
        self.meter = MasterMeter()
        self.leadership = Leadership(replicated, config, name, clock)
        self.view = ClusterView(heartbeat_interval_s=config.heartbeat_interval_s, dead_after_s=config.dead_after_s)
        self._rng = rng or random.Random()  # noqa: S311 - it spreads load; no secret is made of it
        self.healing = Healing(config=config, state=state, view=self.view, key=key, clock=clock)
        self.reports = Reports(
            config=config,
            state=state,
            view=self.view,
            leadership=self.leadership,
            healing=self.healing,
            clock=clock,
        )
        self.lookout = Lookout(config=config, state=state, view=self.view, reports=self.reports, clock=clock)
        self._access = AccessDesk(config=config, state=state, view=self.view, key=key, clock=clock, rng=self._rng)
        self.administration = AdministrationDesk(
            config=config,
            state=state,
            view=self.view,
            lookout=self.lookout,
            healing=self.healing,
            reports=self.reports,
            leadership=self.leadership,
            clock=clock,
        )
        self.tails = TailDesk(
            config=config,
            state=state,
            view=self.view,
            leadership=self.leadership,
            access=self._access,
            key=key,
            clock=clock,
        )
        self._diagnosis = DiagnosisDesk(
            config=config,
            state=state,
            view=self.view,
            reports=self.reports,
            leadership=self.leadership,
            key=key,
            clock=clock,
        )
        self._gate = ReadGate(self.leadership, self.meter)
        self._changes = ChangeGate(self.leadership, self.tails, state, self.meter)
        self._reads = self._make_reads()
        self._handlers = self._make_handlers(AdminDesk(replicated, self.leadership))

    def _make_reads(self) -> dict[type[Message], Callable[[Any], Message]]:
        """Return the table from message type to what takes its answer from the state, without awaiting."""
        return {
            GetClusterStatus: lambda _: self.cluster_view(),
            Stat: self._stat,
            ListDirectory: self._list_directory,
            ListTrash: lambda message: ListTrashReply(*self.state.list_trash(message.after, LIST_LIMIT_MAX)),
            ListSnapshots: self._list_snapshots,
            ListQuotas: self._list_quotas,
            Locate: self._locate,
            LocateMany: self._locate_many,
        }

    def _make_handlers(self, admin: AdminDesk) -> dict[type[Message], Handler]:
        """Return the table from message type to handler."""
        return {
            Ping: self._ping,
            GetMasterStatus: self._master_status,
            Allocate: self._allocate,
            OpenTail: self._open_tail,
            CloseTail: self._close_tail,
            EndTail: self._end_tail,
            TailReport: self._tail_report,
            RegisterServer: self._register,
            Heartbeat: self._heartbeat,
            ChunkReport: self._report,
            TransferLeadership: admin.transfer,
            WriteCheckpoint: admin.write,
            ReadCheckpoint: admin.read,
            **self.administration.handlers,
            SurveyFiles: self._diagnosis.survey,
            GetReport: self._diagnosis.report,
        }

    @property
    def allowed(self) -> frozenset[type[Message]]:
        """The messages that this port takes; everything else is a protocol error."""
        return frozenset((*self._reads, *MUTATIONS, *self._handlers))

    def on_leadership(self, is_leader: bool) -> None:
        """Hear that this master began or ceased to lead: what was known of chunk servers is of another time."""
        log.info("leadership_gained" if is_leader else "leadership_lost", term=self.leadership.status().term)
        self.meter.leaderships += is_leader
        self.view.reset(self._clock.monotonic())
        self.reports.reset()
        self.healing.reset()
        self.lookout.reset()

    def healing_duties(self) -> list[RepairDuty | SurplusDuty | BalanceDuty | ReplacedDuty]:
        """Return the duties that heal; they act while this master leads."""
        config, state, clock = self._config, self.state, self._clock
        lookout, healing, leadership = self.lookout, self.healing, self.leadership
        ordering = Ordering(lookout=lookout, healing=healing, state=state, rng=self._rng, clock=clock)
        return [
            RepairDuty(config=config, state=state, lookout=lookout, healing=healing, ordering=ordering, clock=clock),
            SurplusDuty(
                config=config,
                state=state,
                lookout=lookout,
                healing=healing,
                reports=self.reports,
                leadership=leadership,
                clock=clock,
            ),
            BalanceDuty(
                config=config,
                state=state,
                lookout=lookout,
                healing=healing,
                leadership=leadership,
                ordering=ordering,
            ),
            ReplacedDuty(config, state, self.view, self.administration.removal, clock),
        ]

    def handle(self, message: Message, context: RequestContext) -> Awaitable[Message]:
        """Return what will be the answer to one request, or a DfsError that tells its sender what to do."""
        read = self._reads.get(type(message))
        if read is not None:
            return self._gate.wait(message, read, context.deadline)
        if isinstance(message, Mutation) and type(message) in MUTATIONS:
            command = self._filled_in(message) if type(message) in _TO_BE_FILLED_IN else message
            return self._changes.wait(command, context.deadline)
        return self._act(message, context)

    async def _act(self, message: Message, context: RequestContext) -> Message:
        name, code = type(message).__name__, ""
        handler = self._handlers.get(type(message))
        if handler is None:
            raise ProtocolError(f"a master does not answer {name}; is this a chunk server's message?")
        begun_s = self.meter.begin(name)
        try:
            reply = await handler(message, context)
            if isinstance(reply, ErrorReply):
                code = reply.code
        except DfsError as error:
            code = error.code
            raise
        finally:
            self.meter.end(name, begun_s, code)
        return reply

    # --- any master -----------------------------------------------------------------------------------

    async def _ping(self, _message: Ping, _context: RequestContext) -> Message:
        return Pong(self.name, "master", dfs.__version__, self._clock.wall_ms())

    async def _master_status(self, _message: GetMasterStatus, _context: RequestContext) -> Message:
        status = self.leadership.status()
        uptime_s = self._clock.monotonic() - self._began_s
        checkpoint, stale_s = self.replicated.checkpoint_file(), self.replicated.staleness_s()
        return GetMasterStatusReply(
            MasterStatus(
                self.name,
                status.role,
                status.term,
                status.applied_index,
                status.commit_index,
                status.leader or "",
                dfs.__version__,
                uptime_s,
                checkpoint.index if checkpoint else 0,
                checkpoint.size if checkpoint else 0,
                checkpoint.age_s if checkpoint else -1.0,
                -1.0 if stale_s is None else stale_s,
                sum(unexpected().values()),
            ),
            self._config.name,
        )

    # --- reads --------------------------------------------------------------------------------------------

    def _stat(self, message: Stat) -> Message:
        return StatReply(self.state.stat(message.path), is_open=self.state.tails.at(message.path) is not None)

    def _list_directory(self, message: ListDirectory) -> Message:
        if not 1 <= message.limit <= LIST_LIMIT_MAX:
            raise InvalidArgument(f"{message.limit} entries were asked for; 1 to {LIST_LIMIT_MAX} go in one call")
        return ListDirectoryReply(*self.state.list_directory(message.path, message.after, message.limit))

    def _list_snapshots(self, message: ListSnapshots) -> Message:
        after = message.after_directory, message.after_name
        return ListSnapshotsReply(*self.state.list_snapshots(message.path, after))

    def _list_quotas(self, message: ListQuotas) -> Message:
        return ListQuotasReply(*self.state.list_quotas(message.path, message.after, is_effective=message.is_effective))

    def _locate(self, message: Locate) -> Message:
        if message.first_extent < 0 or message.version < 0:
            raise InvalidArgument(
                f"extent {message.first_extent} of version {message.version} cannot be: both count up"
            )
        return self._access.locate(message, hears_servers=self.leadership.is_leader)

    def _locate_many(self, message: LocateMany) -> Message:
        return self._access.locate_many(message, hears_servers=self.leadership.is_leader)

    def cluster_view(self) -> GetClusterStatusReply:
        """Return what this master knows of the cluster at this moment; it is worth something on the leader only."""
        now_s = self._clock.monotonic()
        servers = self.state.servers()
        live = self.view.offered((server.server_id for server in servers), now_s)
        statuses = tuple(self._server_status(server, now_s) for server in servers)
        return GetClusterStatusReply(
            statuses,
            self.state.space(live),
            self._config.replication,
            self._config.chunk_size,
            healing_status(self._config, self.state, self.lookout, self.healing, now_s),
        )

    def _server_status(self, server: RegisteredServer, now_s: float) -> ServerStatus:
        liveness = self.view.liveness(server.server_id, now_s)
        info = server_info(server, is_alive=liveness is not Liveness.DEAD)
        seen = self.view.get(server.server_id)
        age_s = self.view.age_s(server.server_id, now_s)
        survey, wall_ms = self.lookout.survey, max(self._clock.wall_ms(), self.state.clock_ms)
        mode = server_mode(self.state, server, survey, wall_ms)
        left_count, left_size = survey.left.get(server.server_id, (0, 0)) if survey is not None else (0, 0)
        is_slow = liveness is Liveness.ALIVE and self.view.is_slow(server.server_id)
        return ServerStatus(
            info,
            "slow" if is_slow else liveness.value,
            age_s,
            seen.capacity if seen is not None else 0,
            seen.free if seen is not None else 0,
            seen.chunk_count if seen is not None else 0,
            seen.disks if seen is not None else (),
            mode,
            server.maintenance_until_ms if mode == "maintenance" else 0,
            left_count,
            left_size,
            survey.stored[server.server_id] if survey is not None else 0,
            round(seen.pace.wait_ms) if seen is not None else 0,
            seen.unexpected_count if seen is not None else 0,
        )

    async def _open_tail(self, message: OpenTail, context: RequestContext) -> Message:
        return await self.tails.open(message, context.deadline)

    async def _close_tail(self, message: CloseTail, context: RequestContext) -> Message:
        return await self.tails.close(message, context.deadline)

    async def _end_tail(self, message: EndTail, context: RequestContext) -> Message:
        return await self.tails.end(message, context.deadline, asked_by=context.peer)

    async def _tail_report(self, message: TailReport, context: RequestContext) -> Message:
        return await self.tails.report(message, context.deadline)

    # --- writes ---------------------------------------------------------------------------------------------

    async def _allocate(self, message: Allocate, _context: RequestContext) -> Message:
        """Hand out chunks without a proof of leadership: an allocation promises nothing.

        A master that was deposed and does not know it yet may do this, with these consequences: its handles are random,
        so they clash with nobody's. Its tokens are signed with the key that all masters share. It places by what it
        heard of the servers within `dead_after`, as a true leader does; a chain that does not work is tried anew
        elsewhere. The chunks exist for nobody before a commit, which goes through the log of the true leader and is
        judged by *its* state: servers that are not registered there and chunks from before the horizon are refused
        (docs/adr/0009), whoever allocated them. So a round to the other masters would buy nothing.
        """
        self.leadership.require()
        return self._access.allocate(message)

    def _filled_in(self, message: Mutation) -> Mutation:
        """Return the command with what only the leader may decide: the state must not read a configuration."""
        if isinstance(message, (CommitFile, CommitMany)) and message.replication == 0:
            return msgspec.structs.replace(message, replication=self._config.replication)
        return message

    # --- chunk servers ------------------------------------------------------------------------------------------

    async def _register(self, message: RegisterServer, context: RequestContext) -> Message:
        return await self.reports.register(message, context.deadline)

    async def _heartbeat(self, message: Heartbeat, _context: RequestContext) -> Message:
        return await self.reports.heartbeat(message)

    async def _report(self, message: ChunkReport, context: RequestContext) -> Message:
        return await self.reports.report(message, context.deadline)
