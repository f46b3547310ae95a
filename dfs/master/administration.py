"""What administrators want of chunk servers: drain, maintenance, removal, balance; and how far each is.

Owns: the answers to these messages, and the refusals in words. Refuses to know: how chunks are copied.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from dfs.clock import Clock
from dfs.config import ClusterConfig
from dfs.errors import Conflict, InvalidArgument, NotFound, Overloaded
from dfs.ids import ServerId, id_text
from dfs.log import get_logger
from dfs.master.healing.balance import plan_balance
from dfs.master.healing.duties import fills_of
from dfs.master.healing.liveness import NEVER_HEARD_S, ClusterView, Liveness
from dfs.master.healing.lookout import Lookout
from dfs.master.healing.orders import Healing
from dfs.master.healing.removal import Removal
from dfs.master.healing.standing import Roster, Standing
from dfs.master.healing.status import balance_status, seconds, server_mode
from dfs.master.leadership import Leadership
from dfs.master.reports import Reports
from dfs.master.state.commands import BALANCE_ASKED, BALANCE_STOPPED, SetBalance, SetServerMode
from dfs.master.state.machine import MasterState
from dfs.master.state.views import RegisteredServer
from dfs.net.aio import RequestContext
from dfs.net.messages import (
    MAINTENANCE_MAX_S,
    MOVES_SHOWN_MAX,
    BalanceServers,
    BalanceServersReply,
    DecommissionServer,
    DecommissionServerReply,
    Message,
    RemoveServer,
    RemoveServerReply,
    SetMaintenance,
    SetMaintenanceReply,
)
from dfs.net.parts import PlannedMove

log = get_logger(__name__)


class AdministrationDesk:
    """The leader's answers about its chunk servers."""

    def __init__(
        self,
        *,
        config: ClusterConfig,
        state: MasterState,
        view: ClusterView,
        lookout: Lookout,
        healing: Healing,
        reports: Reports,
        leadership: Leadership,
        clock: Clock,
    ) -> None:
        self._config, self._state, self._view = config, state, view
        self._lookout, self._healing, self._reports = lookout, healing, reports
        self._leadership, self._clock = leadership, clock
        self.removal = Removal(state, leadership, lambda server: self._is_dead(server, clock.monotonic()))
        self.handlers: dict[type[Message], Callable[[Any, RequestContext], Awaitable[Message]]] = {
            DecommissionServer: self.decommission,
            SetMaintenance: self.maintenance,
            RemoveServer: self.remove,
            BalanceServers: self.balance,
        }

    # --- draining -----------------------------------------------------------------------------------------

    async def decommission(self, message: DecommissionServer, context: RequestContext) -> Message:
        """Drain a server, or plan it, or let it stay; asked twice, the second time finds it done."""
        await self._leadership.barrier(context.deadline)
        server = self._find(message.name)
        roster = self._lookout.roster()
        left = [member for member in roster if member.room > 0 and member.server_id != server.server_id]
        count, size = self._to_copy(server.server_id, roster)
        if not message.is_cancel and not server.is_leaving:
            self._refuse_too_few(server, len(left))
            self._refuse_too_full(server, size, sum(member.free for member in left))
        if not message.is_plan and server.is_leaving == message.is_cancel:
            await self._leadership.decree(
                SetServerMode(server.server_id, not message.is_cancel, server.maintenance_until_ms)
            )
            event = "draining_cancelled" if message.is_cancel else "draining_begins"
            log.info(event, server=server.name, chunks=count, size=size, asked_by=context.peer)
        survey = await self._lookout.look()
        mode = server_mode(self._state, self._find(id_text(server.server_id)), survey, self._wall_ms())
        eta_s = seconds(size, self._config.repair_rate * len(left))
        return DecommissionServerReply(server.name, mode, count, size, len(left), eta_s)

    def _to_copy(self, server_id: ServerId, roster: Roster) -> tuple[int, int]:
        """Count the chunks that would miss a replica without this server, and their bytes."""
        count = size = 0
        for row in self._state.tallies_on(server_id):
            others = [m for m in roster.members_of(row.servers) if m.server_id != server_id]
            if sum(member.standing is Standing.PRESENT for member in others) < row.goal:
                count, size = count + row.chunk_count, size + row.size
        return count, size

    def _refuse_too_few(self, server: RegisteredServer, left: int) -> None:
        """Raise unless the others can hold every chunk of this server that all together could hold."""
        present = left + 1
        goals = [row.goal for row in self._state.tallies_on(server.server_id) if row.goal <= present]
        goal = max([*goals, min(self._config.replication, present)])
        if left < goal:
            raise Conflict(
                f"without chunk server {server.name} {left} are left that can take chunks, and chunks want {goal}"
                " replicas each; add a server first, or lower the replication of their files (dfs setrep)"
            )

    @staticmethod
    def _refuse_too_full(server: RegisteredServer, size: int, free: int) -> None:
        if size > free:
            raise Conflict(
                f"chunk server {server.name} holds {size} bytes that need a place elsewhere, and the others have {free}"
                " bytes free; add disks or servers, or delete files, first"
            )

    # --- maintenance ----------------------------------------------------------------------------------------

    async def maintenance(self, message: SetMaintenance, context: RequestContext) -> Message:
        if not 0 <= message.duration_s <= MAINTENANCE_MAX_S:
            raise InvalidArgument(
                f"a maintenance of {message.duration_s:g} s is not between 0 and {MAINTENANCE_MAX_S:g} s; a server that"
                " is away for longer should be drained (dfs admin decommission)"
            )
        await self._leadership.barrier(context.deadline)
        server = self._find(message.name)
        until_ms = self._wall_ms() + round(message.duration_s * 1000) if message.duration_s else 0
        await self._leadership.decree(SetServerMode(server.server_id, server.is_leaving, until_ms))
        log.info("maintenance_set", server=server.name, until_ms=until_ms, asked_by=context.peer)
        roster = self._lookout.roster()
        single = 0
        for row in self._state.tallies_on(server.server_id):
            others = [member for member in roster.members_of(row.servers) if member.server_id != server.server_id]
            single += 0 if any(member.standing.is_live for member in others) else row.chunk_count
        return SetMaintenanceReply(server.name, until_ms, single)

    # --- removal ----------------------------------------------------------------------------------------------

    async def remove(self, message: RemoveServer, context: RequestContext) -> Message:
        await self._leadership.barrier(context.deadline)
        now_s = self._clock.monotonic()
        dead = [server for server in self._named(message.name) if self._is_dead(server, now_s)]
        server = dead[0] if len(dead) == 1 else self._find(message.name)
        if not self._is_dead(server, now_s):
            if self._view.age_s(server.server_id, now_s) == NEVER_HEARD_S:
                raise Overloaded(
                    f"this leader is new, and knows {self._config.dead_after_s:g} s after its begin at the latest "
                    f"whether chunk server {server.name} runs; ask again then"
                )
            raise Conflict(
                f"chunk server {server.name} runs, and would register again at once; drain it (dfs admin decommission "
                f"{server.name}), stop it, and remove it when it counts as dead ({self._config.dead_after_s:g} s later)"
            )
        try:
            count, lost = await self.removal.forget(server.server_id, is_forced=message.is_forced)
        except Conflict as error:
            raise Conflict(f"chunk server {server.name} cannot be removed: {error.message} (--force)") from None
        self._view.forget(server.server_id)
        self._reports.forget(server.server_id)
        return RemoveServerReply(server.name, id_text(server.server_id), count, lost)

    def _is_dead(self, server: RegisteredServer, now_s: float) -> bool:
        return self._view.liveness(server.server_id, now_s) is Liveness.DEAD

    # --- balance ------------------------------------------------------------------------------------------------

    async def balance(self, message: BalanceServers, context: RequestContext) -> Message:
        """Plan, start or stop; a start of what runs already changes its threshold only."""
        if message.action not in ("plan", "start", "stop"):
            raise InvalidArgument(f"balance cannot {message.action!r}; it can plan, start and stop")
        if not 0 < message.threshold <= 1:
            raise InvalidArgument(f"a threshold of {message.threshold:g} is not a share between 0 and 1")
        await self._leadership.barrier(context.deadline)
        threshold_ppm = max(1, round(message.threshold * 1_000_000))
        if message.action != "plan":
            mode = BALANCE_ASKED if message.action == "start" else BALANCE_STOPPED
            await self._leadership.decree(SetBalance(mode, threshold_ppm if mode == BALANCE_ASKED else 0))
            log.info("balance_set", action=message.action, threshold=message.threshold, asked_by=context.peer)
        survey = await self._lookout.look()
        flows = plan_balance(fills_of(survey, self._lookout.roster(), self._healing, self._state), message.threshold)
        moves = tuple(
            PlannedMove(self._name(flow.source), self._name(flow.target), flow.size) for flow in flows[:MOVES_SHOWN_MAX]
        )
        targets = len({flow.target for flow in flows})
        eta_s = seconds(sum(flow.size for flow in flows), self._config.balance_rate * targets)
        status = balance_status(self._config, self._state, self._lookout, self._healing, self._clock.monotonic())
        return BalanceServersReply(status, moves, eta_s)

    # --- names --------------------------------------------------------------------------------------------------

    def _named(self, name: str) -> list[RegisteredServer]:
        return [server for server in self._state.servers() if name in (server.name, id_text(server.server_id))]

    def _find(self, name: str) -> RegisteredServer:
        """Return the server of this name or id; of several with one name, the one that does not count as dead."""
        found = self._named(name)
        now_s = self._clock.monotonic()
        if len(found) > 1:
            found = [server for server in found if not self._is_dead(server, now_s)] or found
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{id_text(server.server_id)} at {server.address}" for server in found)
            raise InvalidArgument(f"{len(found)} chunk servers are called {name!r}; name one by its id: {listed}")
        known = ", ".join(sorted({server.name for server in self._state.servers()})[:20])
        raise NotFound(f"no chunk server is called {name!r}; known names: {known or 'none'}")

    def _name(self, server_id: ServerId) -> str:
        server = self._state.server(server_id)
        return id_text(server_id) if server is None else server.name

    def _wall_ms(self) -> int:
        return max(self._clock.wall_ms(), self._state.clock_ms)
