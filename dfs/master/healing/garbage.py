"""Decide which replicas go, and keep count of the orders to delete them.

Owns: the order book of each chunk server, and the plan that fills the books from the state's garbage, oldest first.
Refuses to know: clocks (moments are arguments), the log, and how orders travel (heartbeat replies).

An order stands until the server confirms it (`Heartbeat.removed`); unconfirmed ones are sent again after a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from dfs.ids import ChunkHandle, ServerId
from dfs.master.state.views import GarbageChunk
from dfs.net.parts import ReplicaReport

ORDERS_WAITING_MAX = 5_000  # in the book of one server; the rest stays garbage in the state until there is room
RESEND_AFTER_S = 10.0  # a confirmation travels in one of the next heartbeats; a busy disk may need a few
SCAN_MAX = 10_000  # garbage chunks looked at in one turn of the duty: about 5 ms


@dataclass(slots=True)
class _Order:
    replica: ReplicaReport
    not_before_s: float  # when it may be sent (again)
    is_sent: bool = False


class OrderBook:
    """The delete orders of one chunk server. Rule 1: only the methods below change it."""

    def __init__(self) -> None:
        self._orders: dict[ChunkHandle, _Order] = {}

    def __len__(self) -> int:
        return len(self._orders)

    def __contains__(self, handle: ChunkHandle) -> bool:
        """Whether an order stands; it may have to wait for its time, which a later `add` can only bring forward."""
        return handle in self._orders

    def was_sent(self, handle: ChunkHandle) -> bool:
        """Whether the server may have read an order to delete this, and has not confirmed it yet."""
        order = self._orders.get(handle)
        return order is not None and order.is_sent

    @property
    def room(self) -> int:
        return ORDERS_WAITING_MAX - len(self._orders)

    def add(self, replica: ReplicaReport, not_before_s: float) -> None:
        """Take an order in; when the book is full it is dropped, and the next report or turn brings it again."""
        order = self._orders.get(replica.handle)
        if order is None and self.room > 0:
            self._orders[replica.handle] = _Order(replica, not_before_s)
        elif order is not None and not order.is_sent:
            order.not_before_s = min(order.not_before_s, not_before_s)

    def confirm(self, handles: Iterable[ChunkHandle]) -> None:
        for handle in handles:
            self._orders.pop(handle, None)

    def take_due(
        self, now_s: float, limit: int, is_still_wanted: Callable[[ReplicaReport], bool]
    ) -> tuple[ChunkHandle, ...]:
        """Return at most `limit` orders to send now. Those no longer wanted by the state of this moment are dropped."""
        due = list(islice((order for order in self._orders.values() if order.not_before_s <= now_s), limit))
        sent = []
        for order in due:
            handle = order.replica.handle
            if is_still_wanted(order.replica):
                order.not_before_s = now_s + RESEND_AFTER_S
                order.is_sent = True
                sent.append(handle)
            else:
                del self._orders[handle]
        return tuple(sent)


@dataclass(frozen=True, slots=True)
class GarbagePlan:
    """`orders`: what to put into the books. `resume_at`: where the next turn goes on; 0 = from the oldest again."""

    orders: Mapping[ServerId, list[ChunkHandle]]
    resume_at: int


def plan_garbage(
    garbage: Iterable[GarbageChunk],
    books: Mapping[ServerId, OrderBook],
    live: Collection[ServerId],
    *,
    collect_until_ms: int,
    start_at: int,
) -> GarbagePlan:
    """Plan deletes for live servers, of garbage (oldest first) from before `collect_until_ms` (now minus grace).

    `garbage` begins at entry number `start_at`. A turn looks at `SCAN_MAX` entries, so that the garbage of servers that
    are gone for good never keeps younger garbage of the others waiting.
    """
    orders: dict[ServerId, list[ChunkHandle]] = {}
    seen = 0
    for entry in islice(garbage, SCAN_MAX):
        if entry.since_ms > collect_until_ms:
            return GarbagePlan(orders, 0)
        seen += 1
        for server_id in entry.servers:
            book = books.get(server_id)
            if book is None or server_id not in live:
                continue
            waiting = orders.setdefault(server_id, [])
            if entry.handle in book or len(waiting) < book.room:
                waiting.append(entry.handle)
    return GarbagePlan(orders, start_at + SCAN_MAX if seen == SCAN_MAX else 0)
