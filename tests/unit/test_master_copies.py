"""Does every order to copy come to an end, whatever its server says or leaves unsaid?

Owns: the book of orders, the meter, and paces of servers. Refuses to know: the service around them.
"""

from __future__ import annotations

import pytest

from dfs.ids import ChunkHandle, ServerId
from dfs.master.healing import copies
from dfs.master.healing.copies import BACKOFF_BASE_S, BACKOFF_MAX_S, RESEND_BEATS, UNSEEN_MAX_S, CopyBook
from dfs.master.healing.pace import Pace, slow_ones
from dfs.master.healing.progress import UNKNOWN_S, WINDOW_S, CopyMeter
from dfs.master.healing.repair import CopyPlan
from dfs.master.healing.surplus import TRIMS_WAITING_MAX, TrimBook
from dfs.master.healing.survey import Work
from dfs.master.state.views import ChunkView
from dfs.net.parts import COPY_GAVE_WAY, CopyFailure

TARGET, SOURCE, OTHER = (ServerId(bytes([number]) * 16) for number in (1, 2, 3))
CHUNK = ChunkView(100, 5, 3, (SOURCE, OTHER), 1)


def handle(number: int) -> ChunkHandle:
    return ChunkHandle(number.to_bytes(16, "big"))


def plan(number: int = 1, *, target: ServerId = TARGET, is_urgent: bool = False) -> CopyPlan:
    return CopyPlan(handle(number), CHUNK, Work.COPY, target, (SOURCE, OTHER), is_urgent)


def test_urgent_orders_are_sent_first_and_each_once() -> None:
    book = CopyBook()
    for number in range(3):
        book.add(plan(number, is_urgent=number == 2), 0.0)
    assert [order.plan.handle for order in book.take_due(TARGET)] == [handle(2), handle(0), handle(1)]
    assert book.take_due(TARGET) == []
    assert book.take_due(OTHER) == []
    load = book.load()
    assert (load.incoming[TARGET], load.incoming_size[TARGET], load.outgoing[SOURCE], load.total) == (3, 300, 3, 3)
    book.check_invariants()


def test_a_server_that_has_an_order_hears_that_it_became_urgent_though_it_mentions_it() -> None:
    book = CopyBook()
    for number in (1, 2):
        book.add(plan(number), 0.0)
    book.take_due(TARGET)
    book.mention(TARGET, [handle(1), handle(2)], 1.0)
    book.hasten(next(order for order in book if order.plan.handle == handle(2)))
    for beat in range(3):  # an answer may be lost: it is told until the copy has ended
        book.mention(TARGET, [handle(1), handle(2)], 2.0 + beat)
        (order,) = book.take_due(TARGET)
        assert (order.plan.handle, order.plan.is_urgent) == (handle(2), True)
    book.finish(TARGET, [handle(2)])
    assert book.take_due(TARGET) == []


def test_an_order_that_is_not_mentioned_is_sent_again_and_lost_in_the_end() -> None:
    book = CopyBook()
    book.add(plan(), 0.0)
    assert len(book.take_due(TARGET)) == 1
    for beat in range(RESEND_BEATS):
        assert book.take_due(TARGET) == []
        book.mention(TARGET, (), float(beat))
    assert len(book.take_due(TARGET)) == 1
    book.mention(TARGET, [handle(1)], 10.0)
    (order,) = book
    assert not book.drop_if_lost(order, 10.0 + UNSEEN_MAX_S)
    assert book.drop_if_lost(order, 10.1 + UNSEEN_MAX_S)
    assert not book.drop_if_lost(order, 10.1 + UNSEEN_MAX_S), "it is gone already"
    assert handle(1) not in book
    setback = book.setback(handle(1))
    assert setback is not None
    assert setback.targets == {TARGET}
    book.check_invariants()


def test_a_done_order_forgets_earlier_failures() -> None:
    book = CopyBook()
    book.add(plan(), 0.0)
    book.fail(TARGET, [CopyFailure(handle(1), "chunk_corrupt", "bad")], 5.0)
    setback = book.setback(handle(1))
    assert setback is not None
    assert (setback.sources, setback.targets, setback.text) == ({SOURCE}, set(), "bad")
    assert book.is_barred(handle(1), 5.0 + BACKOFF_BASE_S - 0.1)
    assert not book.is_barred(handle(1), 5.0 + BACKOFF_BASE_S)
    book.add(plan(target=OTHER), 8.0)
    assert book.finish(TARGET, [handle(1)]) == [], "another server's word does not end it"
    assert [order.plan.target for order in book.finish(OTHER, [handle(1), handle(9)])] == [OTHER]
    assert book.setback(handle(1)) is None
    assert len(book) == 0


def test_backing_off_doubles_up_to_its_limit() -> None:
    book = CopyBook()
    pauses = []
    for _ in range(12):
        book.add(plan(), 0.0)
        book.fail(TARGET, [CopyFailure(handle(1), "disk_full", "")], 0.0)
        setback = book.setback(handle(1))
        assert setback is not None
        pauses.append(setback.until_s)
    assert pauses[:3] == [BACKOFF_BASE_S, 2 * BACKOFF_BASE_S, 4 * BACKOFF_BASE_S]
    assert pauses[-1] == BACKOFF_MAX_S


def test_an_order_that_gave_way_to_an_urgent_one_did_not_fail() -> None:
    book = CopyBook()
    book.add(plan(), 0.0)
    assert book.fail(TARGET, [CopyFailure(handle(1), COPY_GAVE_WAY, "gave way")], 0.0) == []
    assert handle(1) not in book
    assert book.setback(handle(1)) is None


def test_a_source_that_has_too_much_to_do_is_a_failure() -> None:
    """Taken for an order that gave way it would be ordered again at once, for ever, and counted nowhere."""
    book = CopyBook()
    book.add(plan(1), 0.0)
    assert len(book.fail(TARGET, [CopyFailure(handle(1), "overloaded", "busy; try again later")], 0.0)) == 1
    assert book.is_barred(handle(1), 1.0)


def test_orders_end_with_their_server_and_with_their_sense() -> None:
    book = CopyBook()
    book.add(plan(1), 0.0)
    book.add(plan(2), 0.0)
    book.add(plan(3, target=OTHER), 0.0)
    book.drop(next(iter(book.of(OTHER))))
    assert handle(3) not in book
    assert book.drop_target(TARGET) == 2
    assert book.drop_target(TARGET) == 0
    assert len(book) == 0
    book.check_invariants()


def test_an_order_that_became_urgent_is_told_again() -> None:
    book = CopyBook()
    book.add(plan(), 0.0)
    (order,) = book.take_due(TARGET)
    book.hasten(order)
    assert [order.plan.is_urgent for order in book.take_due(TARGET)] == [True]


def test_remembered_failures_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "SETBACKS_MAX", 10)
    book = CopyBook()
    for number in range(30):
        book.add(plan(number), 0.0)
        book.fail(TARGET, [CopyFailure(handle(number), "chunk_not_found", "")], 0.0)
    assert [number for number in range(30) if book.setback(handle(number))] == list(range(20, 30))


# --- progress -------------------------------------------------------------------------------------


def test_the_rate_is_of_the_last_seconds_and_the_rest_follows_from_it() -> None:
    meter = CopyMeter()
    assert (meter.rate(0.0), meter.eta_s(5, 0.0), meter.eta_s(0, 0.0)) == (0.0, UNKNOWN_S, 0.0)
    for second in range(10):
        meter.note(100, float(second))
    assert meter.rate(10.0) == 100.0
    assert meter.eta_s(1000, 10.0) == 10.0
    assert meter.rate(10.0 + WINDOW_S) == 0.0
    assert (meter.count, meter.size) == (10, 1000)


# --- surplus --------------------------------------------------------------------------------------


def test_an_unlisted_replica_is_due_at_its_time_only() -> None:
    book = TrimBook()
    book.add(TARGET, handle(1), 5.0)
    assert book.holds(TARGET, handle(1))
    assert not book.holds(OTHER, handle(1))
    assert [book.is_due(TARGET, handle(1), now_s) for now_s in (4.9, 5.0)] == [False, True]
    assert book.room(TARGET) == TRIMS_WAITING_MAX - 1
    assert list(book) == [(TARGET, handle(1), 5.0)]
    book.drop(TARGET, handle(1))
    book.drop(TARGET, handle(1))
    assert len(book) == 0
    book.add(TARGET, handle(2), 5.0)
    book.drop_server(TARGET)
    assert not book.is_due(TARGET, handle(2), 9.0)


def test_those_that_are_due_are_the_oldest_and_a_second_look_does_not_make_one_older() -> None:
    book = TrimBook()
    for number in range(1, 6):
        book.add(TARGET, handle(number), float(number))
    book.add(TARGET, handle(2), 9.0)
    book.add(OTHER, handle(7), 3.0)
    assert sorted(book.due(3.0)) == sorted(
        [(TARGET, handle(1), 1.0), (TARGET, handle(3), 3.0), (OTHER, handle(7), 3.0)]
    )
    for server_id, due, _ in book.due(100.0):
        book.drop(server_id, due)  # a look is at a snapshot
    assert len(book) == 0


# --- paces ----------------------------------------------------------------------------------------


def paces(*waits_ms: int, beats: int = 30) -> dict[ServerId, Pace]:
    found = {ServerId(bytes([number]) * 16): Pace() for number in range(1, len(waits_ms) + 1)}
    for beat in range(beats):
        for pace, wait_ms in zip(found.values(), waits_ms, strict=True):
            pace.note(wait_ms, float(beat), 1.0)
    return found


def test_a_server_is_slow_by_comparison_with_the_others_only() -> None:
    assert slow_ones(paces(10, 12, 900, 11), ()) == {OTHER}
    assert slow_ones(paces(900, 800, 900, 1000), ()) == frozenset(), "all are alike"
    assert slow_ones(paces(1, 1, 90, 1), ()) == frozenset(), "quick enough for anybody"
    assert slow_ones(paces(1, 5000), ()) == frozenset(), "two cannot tell which of them is slow"
    assert len(slow_ones(paces(1, 1, 1, 1, 9000, 9000, 9000), ())) == 2, "the others have to carry the rest"


def test_a_slow_server_must_come_close_to_the_others_to_be_trusted() -> None:
    halfway = paces(100, 100, 350, 100)
    assert slow_ones(halfway, ()) == frozenset()
    assert slow_ones(halfway, {OTHER}) == {OTHER}
    assert slow_ones(paces(100, 100, 150, 100), {OTHER}) == frozenset()


def test_late_heartbeats_are_slowness_but_an_absence_is_none() -> None:
    found = paces(1, 1, 1, 1)
    now_s = dict.fromkeys(found, 29.0)
    for _ in range(20):
        for server_id, pace in found.items():
            now_s[server_id] += 2.9 if server_id == OTHER else 1.0
            pace.note(1, now_s[server_id], 1.0)
    assert slow_ones(found, ()) == {OTHER}
    absent = paces(1, 1, 1, 1)
    absent[OTHER].note(1, 1000.0, 1.0)
    assert slow_ones(absent, ()) == frozenset()


def test_many_early_heartbeats_of_a_busy_server_weigh_no_more_than_one_in_time() -> None:
    calm, busy = Pace(), Pace()
    for pace in (calm, busy):
        pace.note(0, 0.0, 1.0)
    for beat in range(1, 101):
        busy.note(1000, beat / 100, 1.0)
    calm.note(1000, 1.0, 1.0)
    assert calm.wait_ms * 0.8 < busy.wait_ms <= calm.wait_ms
