"""What the leader has ordered to heal the cluster, and the words of it in heartbeats.

Owns: the orders to copy, the unlisted surplus replicas, the meters, and their part of each heartbeat and its reply.
Refuses to know: when something is ordered (dfs.master.healing.duties), and the chunk map's corrections.

All of this is soft state of one leadership.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from dfs.clock import Clock
from dfs.config import ClusterConfig
from dfs.ids import ChunkHandle, ServerId
from dfs.log import get_logger
from dfs.master.healing.copies import CopyBook, CopyOrder
from dfs.master.healing.liveness import ClusterView, Liveness
from dfs.master.healing.progress import CopyMeter
from dfs.master.healing.surplus import TrimBook
from dfs.master.healing.survey import Work
from dfs.master.state.machine import MasterState
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.messages import Heartbeat
from dfs.net.parts import CopyReplica

LOW_WATER = 128  # orders of a server below which more are planned before its heartbeat is answered
RELIEFS_MAX = 10_000  # moves that arrived and whose old replica is not trimmed yet

log = get_logger(__name__)


class Healing:
    """Orders under way. Call `reset` when leadership begins or ends."""

    def __init__(
        self, *, config: ClusterConfig, state: MasterState, view: ClusterView, key: ClusterKey, clock: Clock
    ) -> None:
        self._config, self._state, self._view, self._key, self._clock = config, state, view, key, clock
        self.plan_more: Callable[[], Awaitable[object]] | None = None  # orders what waits for repair, if anything does
        self.reset()

    def reset(self) -> None:
        self.copies = CopyBook()
        self.trims = TrimBook()
        self.repairs = CopyMeter()
        self.moves = CopyMeter()
        self.is_settled = False  # balance can move nothing more, though fills differ
        self.reliefs: dict[ChunkHandle, ServerId] = {}  # which replica of a moved chunk shall go

    # --- what chunk servers say ---------------------------------------------------------------------------

    def registered(self, server_id: ServerId) -> None:
        """Hear that a daemon began: it knows no orders, and will report what it holds."""
        self.copies.drop_target(server_id)
        self.trims.drop_server(server_id)

    def heard(self, message: Heartbeat) -> bool:
        """Take in how orders went; the chunk map knows of the changes already. Return whether any order ended."""
        server_id, now_s = message.server_id, self._clock.monotonic()
        finished = self.copies.finish(server_id, (replica.handle for replica in message.added))
        for order in finished:
            self._finished(order, now_s)
        failed = self.copies.fail(server_id, message.copy_failures, now_s)
        for order in failed:
            self.meter(order).failed_count += 1
            text = next((f.text for f in message.copy_failures if f.handle == order.plan.handle), "")
            log.warning("copy_failed", handle=order.plan.handle, server=self._name(server_id), reason=text)
        self.copies.mention(server_id, message.copying, now_s)
        for handle in message.removed:
            self.trims.drop(server_id, handle)
        return bool(finished or failed)

    def _finished(self, order: CopyOrder, now_s: float) -> None:
        self.meter(order).note(order.plan.chunk.length, now_s)
        if order.plan.relieved is not None and len(self.reliefs) < RELIEFS_MAX:
            self.reliefs[order.plan.handle] = order.plan.relieved
        log.debug("copy_done", handle=order.plan.handle, server=self._name(order.plan.target))

    def meter(self, order: CopyOrder) -> CopyMeter:
        return self.repairs if order.plan.work is Work.COPY else self.moves

    # --- what chunk servers are told ------------------------------------------------------------------------

    async def refill(self, server_id: ServerId) -> None:
        """Plan more for a server that has done most of its orders: until the next turn of the duty it would idle."""
        if self.plan_more is not None and len(self.copies.of(server_id)) < LOW_WATER:
            await self.plan_more()

    def orders_for(self, server_id: ServerId) -> tuple[tuple[CopyReplica, ...], int]:
        """Return the orders to copy that go into the next reply, and how many bytes per second may be fetched."""
        orders = self.copies.of(server_id)
        if not orders:
            return (), self._config.repair_rate
        has_repairs = any(order.plan.work is Work.COPY for order in orders)
        rate = self._config.repair_rate if has_repairs else self._config.balance_rate
        expires_ms = self._clock.wall_ms() + round(self._config.token_lifetime_s * 1000)
        return tuple(self._message(order, expires_ms) for order in self.copies.take_due(server_id)), rate

    def _message(self, order: CopyOrder, expires_ms: int) -> CopyReplica:
        plan = order.plan
        known = (self._state.server(source) for source in plan.sources)
        return CopyReplica(
            plan.handle,
            plan.chunk.length,
            plan.chunk.crc,
            tuple(server.address for server in known if server is not None),
            sign_token(self._key, plan.handle, Rights.READ, expires_ms),
            plan.is_urgent,
        )

    # --- surplus replicas -----------------------------------------------------------------------------------

    def may_delete(self, server_id: ServerId, handle: ChunkHandle, confirmed: Iterable[ServerId]) -> bool:
        """Whether an unlisted replica is due, and enough others are there at this very moment."""
        if not self.trims.is_due(server_id, handle, self._clock.monotonic()):
            return False
        return self.is_spare(server_id, handle, confirmed)

    def is_spare(self, server_id: ServerId, handle: ChunkHandle, confirmed: Iterable[ServerId]) -> bool:
        """Whether the chunk has its goal of live, confirmed replicas without this server's."""
        chunk = self._state.chunk(handle)
        if chunk is None:
            return False  # it has become garbage, or never was: other rules hold
        known, now_s = frozenset(confirmed), self._clock.monotonic()
        good = 0
        for other in chunk.servers:
            server = self._state.server(other)
            is_kept = server is not None and not server.is_leaving and other != server_id and other in known
            good += is_kept and self._view.liveness(other, now_s) is not Liveness.DEAD
        return good >= chunk.goal

    def _name(self, server_id: ServerId) -> str:
        server = self._state.server(server_id)
        return "?" if server is None else server.name
