"""The leader's duties: what it does by itself, now and then, without being asked.

Owns: one class per duty with `run_once`, and the loops that run them while this master leads.
Refuses to know: clients and the wire. What to do is decided by the pure planners; a duty carries it out and logs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from dfs.clock import Clock
from dfs.config import ClusterConfig
from dfs.errors import DfsError, NoQuorum, NotLeader, OutcomeUnknown
from dfs.log import get_logger
from dfs.master.healing.garbage import plan_garbage
from dfs.master.healing.liveness import ClusterView, Liveness, Transition
from dfs.master.leadership import Leadership
from dfs.master.reports import Reports
from dfs.master.state.commands import ExpireSessions, ExpireTrash, SetOptions
from dfs.master.state.machine import MasterState
from dfs.net.parts import ReplicaReport

TRASH_BATCH = 100  # trash entries released by one command; a directory may hold many files
TRASH_ROUNDS_MAX = 20  # commands in one turn; the next turn goes on
SESSIONS_BATCH = 1000  # sessions dropped by one command
CLOCK_LATE_MAX_MS = 3_600_000  # that the clock of a state without commands may be late
STOOD_STILL_FACTOR = 3  # turns of the liveness duty that may be missed before this master itself stood still

log = get_logger(__name__)


class Duty(Protocol):
    """Something the leader does every `interval_s`. `run_once` is one turn, bounded in work."""

    name: str
    interval_s: float

    async def run_once(self) -> None: ...


class LivenessDuty:
    """Notice servers that fall silent or come back, and tell what that means for the chunks."""

    name = "liveness"

    def __init__(self, config: ClusterConfig, state: MasterState, view: ClusterView, clock: Clock) -> None:
        self.interval_s = config.heartbeat_interval_s
        self._state, self._view, self._clock = state, view, clock
        self._last_turn_s = clock.monotonic()

    async def run_once(self) -> None:
        now_s = self._clock.monotonic()
        last_turn_s = max(self._last_turn_s, self._view.began_s)  # no turns are taken while another master leads
        self._last_turn_s = now_s
        pause_s = now_s - last_turn_s - self.interval_s
        if pause_s > STOOD_STILL_FACTOR * self.interval_s:
            log.warning("master_stood_still", seconds=pause_s)
            self._view.forgive(pause_s, now_s)
        server_ids = [server.server_id for server in self._state.servers()]
        for transition in self._view.transitions(server_ids, now_s):
            self._tell(transition, now_s)
        slower, recovered = self._view.judge_paces(now_s)
        for event, changed in (("server_slow", slower), ("server_prompt_again", recovered)):
            for server_id in changed:
                if (server := self._state.server(server_id)) is not None:
                    log.warning(event, server=server.name, address=server.address)

    def _tell(self, transition: Transition, now_s: float) -> None:
        server = self._state.server(transition.server_id)
        if server is None:
            return
        facts = {"server": server.name, "address": server.address}
        silent_s = self._view.age_s(server.server_id, now_s)
        match (transition.before, transition.after):
            case (_, Liveness.DEAD):
                live = self._view.offered((other.server_id for other in self._state.servers()), now_s)
                space = self._state.space(live)
                log.error(
                    "server_dead",
                    **facts,
                    silent_s=silent_s,
                    under_replicated=space.under_replicated_live,
                    missing=space.missing,
                )
            case (Liveness.ALIVE, Liveness.LATE):
                log.warning("server_late", **facts, silent_s=silent_s)
            case (Liveness.DEAD, _) | (Liveness.LATE, Liveness.ALIVE):
                log.info("server_back", **facts)
            case _:  # first judged alive, or still presumed: nothing to tell
                log.debug("server_judged", **facts, state=transition.after.value)


class OptionsDuty:
    """Bring the replicated options in line with this leader's configuration, and an idle state's clock up to date."""

    name = "options"
    interval_s = 2.0

    def __init__(self, config: ClusterConfig, state: MasterState, leadership: Leadership, clock: Clock) -> None:
        self._wanted = SetOptions(
            trash_keep_ms=round(config.trash_keep_s * 1000),
            replication=config.replication,
            orphan_grace_ms=round(config.orphan_grace_s * 1000),
        )
        self._clock_late_max_ms = min(CLOCK_LATE_MAX_MS, self._wanted.orphan_grace_ms // 4)
        self._state, self._leadership, self._clock = state, leadership, clock

    async def run_once(self) -> None:
        state, wanted = self._state, self._wanted
        if SetOptions(state.trash_keep_ms, state.replication, state.orphan_grace_ms) != wanted:
            await self._leadership.decree(wanted)
            log.info("options_set", **{field: getattr(wanted, field) for field in wanted.__struct_fields__})
        elif self._clock.wall_ms() - state.clock_ms > self._clock_late_max_ms:
            await self._leadership.decree(wanted)  # any command brings the time along, and with it the horizon


class TrashDuty:
    """Release trash whose time has come, and what is left of large subtrees that were released before."""

    name = "trash"
    interval_s = 1.0

    def __init__(self, state: MasterState, leadership: Leadership, clock: Clock) -> None:
        self._state, self._leadership, self._clock = state, leadership, clock

    async def run_once(self) -> None:
        before = self._state.trash_count
        for _ in range(TRASH_ROUNDS_MAX):
            due_ms = self._state.next_trash_expiry_ms()
            if due_ms is None or due_ms > max(self._clock.wall_ms(), self._state.clock_ms):
                break
            await self._leadership.decree(ExpireTrash(TRASH_BATCH))
        expired = before - self._state.trash_count
        if expired > 0:
            log.info("trash_expired", entries=expired)


class SessionsDuty:
    """Drop the sessions of clients that went away."""

    name = "sessions"
    interval_s = 30.0

    def __init__(self, config: ClusterConfig, state: MasterState, leadership: Leadership) -> None:
        self._idle_ms = round(config.session_expiry_s * 1000)
        self._state, self._leadership = state, leadership

    async def run_once(self) -> None:
        if self._state.has_idle_sessions(self._idle_ms):
            await self._leadership.decree(ExpireSessions(self._idle_ms, SESSIONS_BATCH))


class GarbageDuty:
    """Fill the order books of live servers with released chunks whose grace period is over."""

    name = "garbage"

    def __init__(
        self, config: ClusterConfig, state: MasterState, view: ClusterView, reports: Reports, clock: Clock
    ) -> None:
        self.interval_s = config.heartbeat_interval_s
        self._grace_ms = round(config.garbage_grace_s * 1000)
        self._state, self._view, self._reports, self._clock = state, view, reports, clock
        self._resume_at = 0

    async def run_once(self) -> None:
        now_s = self._clock.monotonic()
        books = self._reports.books()
        plan = plan_garbage(
            self._state.garbage(self._resume_at),
            books,
            self._view.offered(books, now_s),
            collect_until_ms=max(self._clock.wall_ms(), self._state.clock_ms) - self._grace_ms,
            start_at=self._resume_at,
        )
        self._resume_at = plan.resume_at
        for server_id, handles in plan.orders.items():
            for handle in handles:
                books[server_id].add(ReplicaReport(handle, 0, 0), now_s)


class ReportsDuty:
    """Compare the chunk map with full reports that came to their end, one after the other."""

    name = "reports"
    interval_s = 0.5

    def __init__(self, reports: Reports) -> None:
        self._reports = reports

    async def run_once(self) -> None:
        is_more = True
        while is_more:
            is_more = await self._reports.compare_next()


def all_duties(
    *,
    config: ClusterConfig,
    state: MasterState,
    view: ClusterView,
    reports: Reports,
    leadership: Leadership,
    clock: Clock,
    healers: Sequence[Duty] = (),
) -> list[Duty]:
    """Return every duty of a leader; `healers` are those of dfs.master.healing.duties."""
    return [
        LivenessDuty(config, state, view, clock),
        OptionsDuty(config, state, leadership, clock),
        TrashDuty(state, leadership, clock),
        SessionsDuty(config, state, leadership),
        GarbageDuty(config, state, view, reports, clock),
        ReportsDuty(reports),
        *healers,
    ]


async def run_duty(duty: Duty, leadership: Leadership) -> None:
    """Run a duty for ever, in turns, whenever this master leads. A failed turn is logged and tried again."""
    while True:
        await asyncio.sleep(duty.interval_s)
        if not leadership.is_leader:
            continue
        try:
            await duty.run_once()
        except (NotLeader, NoQuorum, OutcomeUnknown) as error:  # the next leader, or the next turn, does it
            log.info("duty_interrupted", duty=duty.name, reason=error.message)
        except DfsError as error:
            log.warning("duty_failed", duty=duty.name, code=error.code, reason=error.message)
        except Exception:  # a task root: one bad turn must not end the duty
            log.exception("duty_crashed", duty=duty.name)
