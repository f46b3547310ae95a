"""The orders to copy that chunk servers have: who fetches what, what became of it, and what failed before.

Owns: each order from its planning to its end, resending, time-outs, and the back-off of chunks that failed.
Refuses to know: clocks (moments are arguments), why a chunk is copied, and how orders travel (heartbeat replies).

All of this is soft state of one leadership: a new leader plans anew from the map. An order ends when the server reports
the replica or a failure, when it dies or starts anew, or when it stops mentioning the order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from dfs.ids import ChunkHandle, ServerId
from dfs.master.healing.repair import CopyLoad, CopyPlan
from dfs.net.parts import COPY_GAVE_WAY, CopyFailure

RESEND_BEATS = 2  # heartbeats that do not mention an order before it is sent again
UNSEEN_MAX_S = 15.0  # an order that is not mentioned for so long is lost
BACKOFF_BASE_S = 2.0  # after the first failure of a chunk; doubles with each more
BACKOFF_MAX_S = 300.0
SETBACKS_MAX = 50_000  # chunks whose failures are remembered
TARGET_FAULTS = frozenset({"disk_full", "disk_failed", "internal", "chunk_exists"})  # its own, not a source's


@dataclass(slots=True)
class CopyOrder:
    """A plan under way. `seen_s`: when its server last showed that it knows it, or when it was sent first.

    `is_hastened`: it became urgent afterwards. That its server mentions it does not say that the server knows that.
    """

    plan: CopyPlan
    ordered_s: float
    is_sent: bool = False
    is_hastened: bool = False
    seen_s: float = 0.0
    beats_unseen: int = 0


@dataclass(slots=True)
class Setback:
    """What failed about a chunk. Forgotten when a copy of it succeeds."""

    count: int = 0
    until_s: float = 0.0
    targets: set[ServerId] = field(default_factory=set)
    sources: set[ServerId] = field(default_factory=set)
    text: str = ""


class CopyBook:
    """All orders. Rule 1: only the methods below change it. A chunk has one order at a time."""

    def __init__(self) -> None:
        self._orders: dict[ServerId, dict[ChunkHandle, CopyOrder]] = {}
        self._by_handle: dict[ChunkHandle, CopyOrder] = {}
        self._setbacks: dict[ChunkHandle, Setback] = {}

    def __len__(self) -> int:
        return len(self._by_handle)

    def __contains__(self, handle: ChunkHandle) -> bool:
        return handle in self._by_handle

    def __iter__(self) -> Iterator[CopyOrder]:
        return iter(self._by_handle.values())

    def of(self, server_id: ServerId) -> Collection[CopyOrder]:
        """Return the orders of one server."""
        return self._orders.get(server_id, {}).values()

    def load(self) -> CopyLoad:
        """Return what servers have to do with these orders."""
        load = CopyLoad()
        for order in self:
            load.add(order.plan.target, order.plan.sources[0], order.plan.chunk.length)
        return load

    def setback(self, handle: ChunkHandle) -> Setback | None:
        return self._setbacks.get(handle)

    def is_barred(self, handle: ChunkHandle, now_s: float) -> bool:
        """Whether it failed so recently that it has to wait."""
        setback = self._setbacks.get(handle)
        return setback is not None and now_s < setback.until_s

    # --- the life of an order ---------------------------------------------------------------------------

    def add(self, plan: CopyPlan, now_s: float) -> None:
        order = CopyOrder(plan, now_s, seen_s=now_s)
        self._orders.setdefault(plan.target, {})[plan.handle] = order
        self._by_handle[plan.handle] = order

    def take_due(self, server_id: ServerId) -> list[CopyOrder]:
        """Return the orders to send now, urgent ones first: new ones, those that the server seems not to know, and
        those that became urgent."""
        due = [
            order
            for order in self.of(server_id)
            if order.is_hastened or not order.is_sent or order.beats_unseen >= RESEND_BEATS
        ]
        for order in due:
            order.is_sent, order.beats_unseen = True, 0
        return sorted(due, key=lambda order: not order.plan.is_urgent)

    def mention(self, server_id: ServerId, copying: Collection[ChunkHandle], now_s: float) -> None:
        """Hear which orders a server has."""
        known = frozenset(copying)
        for order in self.of(server_id):
            if order.plan.handle in known:
                order.seen_s, order.beats_unseen, order.is_sent = now_s, 0, True
            elif order.is_sent:
                order.beats_unseen += 1

    def finish(self, server_id: ServerId, handles: Iterable[ChunkHandle]) -> list[CopyOrder]:
        """Hear which replicas a server has got; return the orders that are done with that."""
        done = [order for handle in handles if (order := self._pop(server_id, handle)) is not None]
        for order in done:
            self._setbacks.pop(order.plan.handle, None)
        return done

    def fail(self, server_id: ServerId, failures: Iterable[CopyFailure], now_s: float) -> list[CopyOrder]:
        """Hear which orders came to nothing; return those that failed."""
        failed = []
        for failure in failures:
            order = self._pop(server_id, failure.handle)
            if order is None:
                continue
            if failure.code == COPY_GAVE_WAY:
                continue
            failed.append(order)
            setback = self._note(failure.handle, failure.text, now_s)
            if failure.code in TARGET_FAULTS:
                setback.targets.add(server_id)
            else:
                setback.sources.add(order.plan.sources[0])
        return failed

    def hasten(self, order: CopyOrder) -> None:
        """Tell its server that the chunk has become urgent, with every answer until the order ends: one may be lost."""
        order.plan = replace(order.plan, is_urgent=True)
        order.is_hastened = True

    def drop_target(self, server_id: ServerId) -> int:
        """Forget the orders of a server that died or started anew; return how many there were."""
        orders = list(self._orders.get(server_id, {}))
        for handle in orders:
            self._pop(server_id, handle)
        return len(orders)

    def drop(self, order: CopyOrder) -> None:
        """Forget an order that is no longer wanted."""
        self._pop(order.plan.target, order.plan.handle)

    def drop_if_lost(self, order: CopyOrder, now_s: float) -> bool:
        """Forget an order that its server has not mentioned for too long, and note that; return whether it was so."""
        if now_s - order.seen_s <= UNSEEN_MAX_S:
            return False
        if self._pop(order.plan.target, order.plan.handle) is None:
            return False
        text = "its server does not speak of the order"
        self._note(order.plan.handle, text, now_s).targets.add(order.plan.target)
        return True

    def _pop(self, server_id: ServerId, handle: ChunkHandle) -> CopyOrder | None:
        orders = self._orders.get(server_id, {})
        order = orders.pop(handle, None)
        if order is not None:
            del self._by_handle[handle]
            if not orders:
                del self._orders[server_id]
        return order

    def _note(self, handle: ChunkHandle, text: str, now_s: float) -> Setback:
        setback = self._setbacks.pop(handle, None) or Setback()
        self._setbacks[handle] = setback  # the latest last
        setback.count += 1
        setback.until_s = now_s + min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2 ** min(setback.count - 1, 16))
        setback.text = text
        while len(self._setbacks) > SETBACKS_MAX:
            del self._setbacks[next(iter(self._setbacks))]
        return setback

    def check_invariants(self) -> None:
        """Raise AssertionError unless both tables say the same. For tests."""
        listed = {handle: order for orders in self._orders.values() for handle, order in orders.items()}
        assert listed == self._by_handle, "the orders by server are not those by chunk"
        assert all(self._orders.values()), "a server without orders is kept"
