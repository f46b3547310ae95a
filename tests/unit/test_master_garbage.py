"""Order books of chunk servers, and the plan that fills them from the garbage of the state."""

from __future__ import annotations

from dfs.ids import ChunkHandle, ServerId
from dfs.master.healing import garbage
from dfs.master.healing.garbage import ORDERS_WAITING_MAX, RESEND_AFTER_S, SCAN_MAX, OrderBook, plan_garbage
from dfs.master.state.views import GarbageChunk
from dfs.net.parts import ReplicaReport

A, B = ServerId(b"a" * 16), ServerId(b"b" * 16)


def handle(number: int) -> ChunkHandle:
    return ChunkHandle(number.to_bytes(16, "big"))


def replica(number: int) -> ReplicaReport:
    return ReplicaReport(handle(number), 1, 2)


def always(_replica: ReplicaReport) -> bool:
    return True


def test_an_order_is_sent_again_only_after_a_pause_and_until_it_is_confirmed() -> None:
    book = OrderBook()
    book.add(replica(1), 10.0)
    assert book.take_due(9.9, 10, always) == ()
    assert book.take_due(10.0, 10, always) == (handle(1),)
    assert book.take_due(10.0 + RESEND_AFTER_S - 0.1, 10, always) == ()
    assert book.take_due(10.0 + RESEND_AFTER_S, 10, always) == (handle(1),)
    book.confirm([handle(1), handle(2)])
    assert len(book) == 0
    assert book.take_due(1000.0, 10, always) == ()


def test_orders_of_one_reply_are_limited() -> None:
    book = OrderBook()
    for number in range(5):
        book.add(replica(number), 0.0)
    assert book.take_due(0.0, 3, always) == (handle(0), handle(1), handle(2))
    assert book.take_due(0.0, 3, always) == (handle(3), handle(4))


def test_an_order_that_the_state_no_longer_wants_is_dropped() -> None:
    book = OrderBook()
    book.add(replica(1), 0.0)
    assert book.take_due(0.0, 10, lambda _replica: False) == ()
    assert len(book) == 0


def test_an_order_can_be_brought_forward_but_never_back() -> None:
    book = OrderBook()
    book.add(replica(1), 600.0)
    book.add(replica(1), 0.0)
    book.add(replica(1), 900.0)
    assert book.take_due(0.0, 10, always) == (handle(1),)
    book.add(replica(1), 0.0)
    assert book.take_due(1.0, 10, always) == (), "adding it again does not undo the pause"


def test_a_full_book_takes_no_more() -> None:
    book = OrderBook()
    for number in range(ORDERS_WAITING_MAX + 5):
        book.add(replica(number), 0.0)
    assert len(book) == ORDERS_WAITING_MAX
    assert book.room == 0


def chunk(number: int, since_ms: int, *servers: ServerId) -> GarbageChunk:
    return GarbageChunk(handle(number), 1, servers or (A,), since_ms)


def test_only_garbage_past_its_grace_is_planned_and_only_for_live_known_servers() -> None:
    items = [chunk(1, 10, A, B), chunk(2, 20, B), chunk(3, 31, A)]
    books = {A: OrderBook(), B: OrderBook()}
    plan = plan_garbage(items, books, {A, B}, collect_until_ms=30, start_at=0)
    assert plan.orders == {A: [handle(1)], B: [handle(1), handle(2)]}
    assert plan.resume_at == 0
    assert plan_garbage(items, books, {A}, collect_until_ms=30, start_at=0).orders == {A: [handle(1)]}
    assert plan_garbage(items, {}, {A, B}, collect_until_ms=30, start_at=0).orders == {}


def test_a_plan_leaves_what_a_book_has_no_room_for() -> None:
    book = OrderBook()
    for number in range(ORDERS_WAITING_MAX - 1):
        book.add(replica(number + 100), 0.0)
    plan = plan_garbage([chunk(1, 0), chunk(2, 0)], {A: book}, {A}, collect_until_ms=30, start_at=0)
    assert plan.orders == {A: [handle(1)]}


def test_garbage_of_a_server_that_is_gone_does_not_keep_the_rest_waiting() -> None:
    items = [chunk(number, 0, B) for number in range(SCAN_MAX)] + [chunk(SCAN_MAX, 0, A)]
    books = {A: OrderBook()}
    first = plan_garbage(items, books, {A}, collect_until_ms=30, start_at=0)
    assert first.orders == {}
    assert first.resume_at == SCAN_MAX
    second = plan_garbage(items[SCAN_MAX:], books, {A}, collect_until_ms=30, start_at=first.resume_at)
    assert second.orders == {A: [handle(SCAN_MAX)]}
    assert second.resume_at == 0, "the next turn begins with the oldest again"
    beyond = plan_garbage([], books, {A}, collect_until_ms=30, start_at=10 * SCAN_MAX)
    assert (beyond.orders, beyond.resume_at) == ({}, 0)


def test_limits_leave_room_for_a_reply() -> None:
    assert garbage.ORDERS_WAITING_MAX >= 1000
