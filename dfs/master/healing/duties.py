"""The duties that heal: repair (re-replication), surplus, balance, and forgetting servers that were replaced.

Owns: one class per duty with `run_once`; each asks the pure planners and records the orders.
Refuses to know: how orders reach chunk servers (.orders), and how chunks are found (.lookout).
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

from dfs.clock import Clock, Deadline
from dfs.config import ClusterConfig
from dfs.errors import Conflict
from dfs.ids import ChunkHandle, ServerId
from dfs.log import get_logger
from dfs.master.healing.balance import THRESHOLD_DEFAULT, Filled, MoveBudget, plan_balance
from dfs.master.healing.copies import CopyOrder, Setback
from dfs.master.healing.liveness import ClusterView, Liveness
from dfs.master.healing.lookout import Lookout
from dfs.master.healing.orders import RELIEFS_MAX, Healing
from dfs.master.healing.removal import Removal
from dfs.master.healing.repair import CopyCandidate, plan_repairs
from dfs.master.healing.standing import Roster, Standing
from dfs.master.healing.survey import Bucket, Survey, Work, judge, victim_of
from dfs.master.leadership import Leadership
from dfs.master.reports import Reports
from dfs.master.state.commands import (
    BALANCE_ASKED,
    BALANCE_AUTOMATIC,
    BALANCE_STOPPED,
    ReplicaChange,
    SetBalance,
    TrimReplicas,
)
from dfs.master.state.machine import MasterState
from dfs.net.parts import ReplicaReport

PLANNED_PER_SLICE = 100  # chunks planned between two breaths: about 3 ms
PLANNED_MAX = 2_000  # chunks looked at in one turn of a duty
REFILLED_MAX = 300  # chunks looked at for a heartbeat of a server that has little left to copy
SWEPT_PER_SLICE = 200  # orders and unlisted replicas judged between two breaths: about 3 ms
TRIMS_PER_TURN = 500  # surplus replicas unlisted in one turn
IDLE_TURNS_MAX = 5  # turns of balance without a move that could be made, before it is as even as it gets
TRIM_WAIT_BEATS = 5  # heartbeats that an unlisted replica is kept at the least, whatever the grace of garbage

NO_SETBACK = Setback()

log = get_logger(__name__)


class Ordering:
    """Turns what waits into orders, as far as servers have places."""

    def __init__(
        self, *, lookout: Lookout, healing: Healing, state: MasterState, rng: random.Random, clock: Clock
    ) -> None:
        self._lookout, self._healing, self._state = lookout, healing, state
        self._rng, self._clock = rng, clock
        self._lock = asyncio.Lock()  # two plans at once would not see each other's load

    async def refill(self) -> int:
        """Order some of the copies that wait for repair; return how many. Nothing, while others are being planned."""
        if self._lock.locked():
            return 0
        return await self.order(Work.COPY, seen_max=REFILLED_MAX)

    async def order(self, *works: Work, budget: MoveBudget | None = None, seen_max: int = PLANNED_MAX) -> int:
        """Plan copies for chunks that wait for these works, the most important first; return how many were ordered.

        At most `seen_max` chunks are looked at.
        """
        async with self._lock:
            return await self._order(works, budget, seen_max)

    async def _order(self, works: Iterable[Work], budget: MoveBudget | None, seen_max: int) -> int:
        roster, load = self._lookout.roster(), self._healing.copies.load()
        seen = count = 0
        for bucket in self._lookout.waiting(*works):
            postponed: list[ChunkHandle] = []
            while seen < seen_max and (handles := self._lookout.take(bucket, PLANNED_PER_SLICE)):
                seen += len(handles)
                candidates = self._candidates(handles, bucket, budget, postponed)
                plans, waiting = plan_repairs(candidates, roster, load, self._rng.random)
                for plan in plans:
                    self._healing.copies.add(plan, self._clock.monotonic())
                count += len(plans)
                postponed += [candidate.handle for candidate in waiting]
                await asyncio.sleep(0)
            self._lookout.give_back(bucket, postponed)
        return count

    def _candidates(
        self, handles: Iterable[ChunkHandle], bucket: Bucket, budget: MoveBudget | None, postponed: list[ChunkHandle]
    ) -> Iterator[CopyCandidate]:
        """Yield what may be ordered now; what has to wait is `postponed`."""
        copies = self._healing.copies
        for handle in handles:
            chunk = self._state.chunk(handle)
            if chunk is None or handle in copies:
                continue  # gone, or under way: if more is needed then, the next walk finds it
            is_too_much = bucket.work is Work.MOVE and not (
                budget is not None and budget.take(bucket.source, bucket.target, chunk.length)
            )
            if is_too_much or copies.is_barred(handle, self._clock.monotonic()):
                postponed.append(handle)
                continue
            setback = copies.setback(handle) or NO_SETBACK
            yield CopyCandidate(
                handle,
                chunk,
                bucket.work,
                bucket.source or None,
                bucket.target or None,
                setback.targets | self._healing.trims.servers_of(handle),  # listed again rather than fetched
                setback.sources,
            )


class RepairDuty:
    """Bring every chunk to its goal again, the most endangered first."""

    name = "repair"

    def __init__(
        self,
        *,
        config: ClusterConfig,
        state: MasterState,
        lookout: Lookout,
        healing: Healing,
        ordering: Ordering,
        clock: Clock,
    ) -> None:
        self.interval_s = config.heartbeat_interval_s
        self._state, self._clock = state, clock
        self._lookout, self._healing, self._ordering = lookout, healing, ordering
        self._was_waiting = False
        self._turn = asyncio.Lock()
        healing.plan_more = self.refill

    async def refill(self) -> None:
        """Order more for servers that have little left; look again at once when nobody has anything left."""
        if self._turn.locked():
            return
        if self._lookout.waiting(Work.COPY):
            await self._ordering.refill()
        elif self._was_waiting and not len(self._healing.copies):
            await self.run_once()

    async def run_once(self) -> None:
        async with self._turn:
            await self._run_once()

    async def _run_once(self) -> None:
        copies = self._healing.copies
        await self._sweep()
        survey = await self._lookout.look([order.plan.handle for order in copies])
        await self._ordering.order(Work.COPY)
        self._tell(survey)

    async def _sweep(self) -> None:
        """End orders that lost their server or their sense; tell servers what has become urgent."""
        roster, copies = self._lookout.roster(), self._healing.copies
        for number, order in enumerate(list(copies), 1):
            chunk = self._state.chunk(order.plan.handle)
            if not self._is_wanted(order, roster):
                copies.drop(order)
            elif copies.drop_if_lost(order, self._clock.monotonic()):
                self._healing.meter(order).failed_count += 1
                log.warning("copy_lost", handle=order.plan.handle, server=roster[order.plan.target].name)
            elif not order.plan.is_urgent and chunk and judge(chunk.servers, chunk.goal, roster).is_urgent:
                copies.hasten(order)
            if number % SWEPT_PER_SLICE == 0:
                await asyncio.sleep(0)

    def _is_wanted(self, order: CopyOrder, roster: Roster) -> bool:
        chunk, target = self._state.chunk(order.plan.handle), roster.get(order.plan.target)
        if chunk is None or target is None or order.plan.target in chunk.servers:
            return False
        return target.standing is Standing.PRESENT

    def _tell(self, survey: Survey) -> None:
        """Log the begin and the end of a repair, not every turn of it."""
        is_waiting = sum(survey.waiting) > 0
        if is_waiting != self._was_waiting:
            none, one, more = survey.waiting
            event = "repair_begins" if is_waiting else "repair_done"
            log.info(event, missing=none, single=one, more=more, size=survey.waiting_size)
        self._was_waiting = is_waiting


class SurplusDuty:
    """Unlist replicas above the goal, and have them deleted when nobody can be reading them any more."""

    name = "surplus"

    def __init__(
        self,
        *,
        config: ClusterConfig,
        state: MasterState,
        lookout: Lookout,
        healing: Healing,
        reports: Reports,
        leadership: Leadership,
        clock: Clock,
    ) -> None:
        self.interval_s = config.heartbeat_interval_s
        self._wait_s = max(config.garbage_grace_s, TRIM_WAIT_BEATS * config.heartbeat_interval_s)
        self._state, self._lookout, self._healing = state, lookout, healing
        self._reports, self._leadership, self._clock = reports, leadership, clock

    async def run_once(self) -> None:
        await self._settle()
        await self._unlist()

    async def _unlist(self) -> None:
        chosen: dict[ServerId, list[ChunkHandle]] = defaultdict(list)
        roster, survey = self._lookout.roster(), self._lookout.survey
        fills = (
            {}
            if survey is None
            else {item.server_id: item.fill for item in fills_of(survey, roster, self._healing, self._state)}
        )
        for bucket in self._lookout.waiting(Work.TRIM):
            for handle in self._lookout.take(bucket, TRIMS_PER_TURN):
                chunk = self._state.chunk(handle)
                if chunk is None or handle in self._healing.copies:
                    continue
                relieved = self._healing.reliefs.get(handle)
                victim = victim_of(judge(chunk.servers, chunk.goal, roster), fills, relieved)
                if victim is not None and len(chosen[victim.server_id]) < self._healing.trims.room(victim.server_id):
                    chosen[victim.server_id].append(handle)
                    self._healing.reliefs.pop(handle, None)
        for server_id, handles in chosen.items():
            if not handles:
                continue
            await self._leadership.decree(TrimReplicas(server_id, tuple(handles)))
            due_s = self._clock.monotonic() + self._wait_s
            for handle in handles:
                chunk = self._state.chunk(handle)
                if chunk is not None and server_id not in chunk.servers:
                    self._healing.trims.add(server_id, handle, due_s)
            log.info("surplus_unlisted", server=roster[server_id].name, count=len(handles))

    async def _settle(self) -> None:
        """List again what is needed after all; hand on what is due."""
        now_s, trims = self._clock.monotonic(), self._healing.trims
        if not len(trims):
            return
        await self._leadership.barrier(Deadline.after(self._wait_s))  # a deposed leader must not have replicas deleted
        confirmed = self._reports.confirmed()
        books = self._reports.books()
        needed: dict[ServerId, list[ReplicaChange]] = defaultdict(list)
        survey = self._lookout.survey
        is_short = survey is not None and sum(survey.waiting) + survey.deferred_count > 0
        looked_at = trims if is_short else trims.due(now_s)
        for number, (server_id, handle, due_s) in enumerate(looked_at, 1):
            if number % SWEPT_PER_SLICE == 0:
                await asyncio.sleep(0)
            book = books.get(server_id)
            if book is not None and not (is_short or book.room or handle in book):
                continue  # as many orders as it may have are on their way: no need to judge this one yet
            chunk = self._state.chunk(handle)
            if chunk is None or server_id in chunk.servers:
                trims.drop(server_id, handle)
            elif self._healing.is_spare(server_id, handle, confirmed):
                if due_s <= now_s and book is not None:
                    book.add(ReplicaReport(handle, chunk.length, chunk.crc), now_s)
            elif book is not None and book.was_sent(handle):
                trims.drop(server_id, handle)  # it may be gone by now: an order to copy it there keeps or fetches it
            elif server_id in confirmed:
                needed[server_id].append(ReplicaChange(handle, True, chunk.length, chunk.crc))
        for server_id, changes in needed.items():
            for start in range(0, len(changes), TRIMS_PER_TURN):
                batch = changes[start : start + TRIMS_PER_TURN]
                for change in batch:
                    trims.drop(server_id, change.handle)  # first: an order to delete it must not go out meanwhile
                await self._reports.correct(server_id, batch)
            log.info("surplus_listed_again", server_id=server_id, count=len(changes))


class BalanceDuty:
    """Move chunks from the fullest servers to the emptiest, and out of crowded racks, while nothing needs repair."""

    name = "balance"

    def __init__(
        self,
        *,
        config: ClusterConfig,
        state: MasterState,
        lookout: Lookout,
        healing: Healing,
        leadership: Leadership,
        ordering: Ordering,
    ) -> None:
        self.interval_s = max(1.0, config.heartbeat_interval_s)
        self._config, self._state, self._lookout, self._healing = config, state, lookout, healing
        self._leadership, self._ordering = leadership, ordering
        self._idle_turns = 0

    async def run_once(self) -> None:
        survey = self._lookout.survey
        if survey is None:
            return
        roster = self._lookout.roster()
        self._forget_reliefs(roster)
        threshold = wanted_threshold(self._config, self._state)
        fills = fills_of(survey, roster, self._healing, self._state)
        flows = [] if threshold is None else plan_balance(fills, threshold)
        flows_by_source: dict[ServerId, list[ServerId]] = defaultdict(list)
        for flow in flows:
            flows_by_source[flow.source].append(flow.target)
        self._lookout.flows = flows_by_source
        if not is_repairing(survey) and len(self._healing.reliefs) < RELIEFS_MAX // 2:
            works = (Work.SPREAD, Work.MOVE) if flows else (Work.SPREAD,)
            count = await self._ordering.order(*works, budget=MoveBudget(fills, flows))
            self._idle_turns = 0 if count or not flows or self._is_moving() else self._idle_turns + 1
        self._healing.is_settled = bool(flows) and self._idle_turns >= IDLE_TURNS_MAX
        await self._end(bool(flows))

    async def _end(self, has_flows: bool) -> None:
        """A balance that was asked for ends when nothing is left to move, or nothing can be moved."""
        mode, _ = self._state.balance
        if mode == BALANCE_ASKED and not self._is_moving() and (not has_flows or self._healing.is_settled):
            await self._leadership.decree(SetBalance(BALANCE_AUTOMATIC))
            log.info("balance_done", is_even=not has_flows)

    def _is_moving(self) -> bool:
        return bool(self._healing.reliefs) or any(order.plan.work is Work.MOVE for order in self._healing.copies)

    def _forget_reliefs(self, roster: Roster) -> None:
        """Drop the notes on moved chunks that have no replica to spare (any more)."""
        for handle, server_id in list(self._healing.reliefs.items()):
            chunk = self._state.chunk(handle)
            is_open = chunk and server_id in chunk.servers and judge(chunk.servers, chunk.goal, roster).surplus
            if not is_open:
                del self._healing.reliefs[handle]


def is_repairing(survey: Survey) -> bool:
    """Whether chunks wait for copies that could be made."""
    return any(bucket.work is Work.COPY for bucket in survey.counts)


def wanted_threshold(config: ClusterConfig, state: MasterState) -> float | None:
    """Return the spread of fills that is to be left, None when nothing is to be balanced."""
    mode, threshold_ppm = state.balance
    if mode == BALANCE_ASKED:
        return threshold_ppm / 1_000_000
    return THRESHOLD_DEFAULT if config.balance and mode != BALANCE_STOPPED else None


def fills_of(survey: Survey, roster: Roster, healing: Healing, state: MasterState) -> list[Filled]:
    """Return how full each server is that takes part in balance, as if all copies and moves under way had ended."""
    stored = {m.server_id: survey.stored[m.server_id] for m in roster if m.standing is Standing.PRESENT}
    shifted = dict.fromkeys(stored, 0)

    def shift(server_id: ServerId | None, size: int) -> None:
        if server_id is not None and server_id in shifted:
            shifted[server_id] += size

    for order in healing.copies:
        shift(order.plan.target, order.plan.chunk.length)
        shift(order.plan.relieved, -order.plan.chunk.length)
    for handle, server_id in healing.reliefs.items():
        chunk = state.chunk(handle)
        shift(server_id, -chunk.length if chunk else 0)
    return [
        Filled(server_id, max(0, size + shifted[server_id]), max(0, roster[server_id].free - shifted[server_id]))
        for server_id, size in stored.items()
    ]


class ReplacedDuty:
    """Forget servers that another identity has replaced at their address, once no chunk needs them."""

    name = "replaced"

    def __init__(
        self, config: ClusterConfig, state: MasterState, view: ClusterView, removal: Removal, clock: Clock
    ) -> None:
        self.interval_s = config.dead_after_s
        self._state, self._view, self._removal, self._clock = state, view, removal, clock

    async def run_once(self) -> None:
        now_s = self._clock.monotonic()
        alive = {
            server.address
            for server in self._state.servers()
            if self._view.liveness(server.server_id, now_s) is Liveness.ALIVE
        }
        for server in self._state.servers():
            is_dead = self._view.liveness(server.server_id, now_s) is Liveness.DEAD
            if is_dead and server.address in alive:
                try:
                    await self._removal.forget(server.server_id, is_forced=False)
                except Conflict:  # some chunk has no other replica yet: repair first
                    continue
                log.info("replaced_server_forgotten", server=server.name, address=server.address)
