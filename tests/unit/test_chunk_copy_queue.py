"""Are orders to copy carried out once, the urgent ones first, and are failures told until they are heard?"""

from __future__ import annotations

from dfs.chunk.copy_queue import (
    COPIERS,
    FAILURE_TEXT_MAX,
    GENTLE_LARGE_MAX,
    GENTLE_MAX,
    LARGE_MAX,
    LARGE_SIZE,
    LOW_WATER,
    ORDINARY_LARGE_MAX,
    ORDINARY_MAX,
    CopyJob,
    CopyQueue,
)
from dfs.ids import ChunkHandle
from dfs.net.messages import COPIES_WAITING_MAX
from dfs.net.parts import COPY_GAVE_WAY, CopyReplica


def order(number: int, *, urgent: bool = False, token: bytes = b"t", length: int = 1) -> CopyReplica:
    return CopyReplica(ChunkHandle(number.to_bytes(16, "big")), length, 0, ("127.0.0.1:1",), token, urgent)


def take(queue: CopyQueue) -> CopyJob:
    job = queue.take()
    assert job is not None
    return job


def numbers(handles: tuple[ChunkHandle, ...]) -> list[int]:
    return [int.from_bytes(handle, "big") for handle in handles]


def failures(queue: CopyQueue) -> dict[int, str]:
    return {int.from_bytes(failure.handle, "big"): failure.code for failure in queue.status().failures}


def test_urgent_orders_come_first_and_others_in_their_order() -> None:
    queue = CopyQueue()
    queue.add([order(1), order(2), order(3, urgent=True), order(4)])
    taken = []
    while (job := queue.take()) is not None:
        taken.append(job.order)
        queue.done(job)
    assert taken == [order(3, urgent=True), order(1), order(2), order(4)]
    assert queue.status().copying == ()


def test_repeated_order_is_no_second_but_brings_what_is_new() -> None:
    queue = CopyQueue()
    queue.add([order(1), order(2)])
    queue.add([order(2, urgent=True, token=b"fresh")])
    job = take(queue)
    assert (job.order.token, job.is_urgent) == (b"fresh", True)
    other = take(queue)
    urgency = [other.is_urgent]
    queue.add([order(1, urgent=True)])  # it is under way already
    urgency.append(other.is_urgent)
    assert urgency == [False, True]
    assert queue.take() is None
    assert numbers(queue.status().copying) == [2, 1]


def test_some_copiers_are_kept_for_urgent_orders() -> None:
    assert ORDINARY_MAX < COPIERS
    queue = CopyQueue()
    queue.add(map(order, range(COPIERS)))
    for _ in range(ORDINARY_MAX):
        take(queue)
    assert queue.take() is None
    queue.add([order(99, urgent=True)])
    assert numbers((take(queue).order.handle,)) == [99]


def test_few_large_copies_run_at_a_time_and_small_ones_pass_them() -> None:
    assert LARGE_MAX < COPIERS
    large = [order(number, length=LARGE_SIZE + 1) for number in range(COPIERS)]
    queue = CopyQueue()
    queue.add(large)
    running = [take(queue) for _ in range(ORDINARY_LARGE_MAX)]
    assert queue.take() is None
    queue.add([order(50, urgent=True, length=LARGE_SIZE + 1), order(51, urgent=True, length=LARGE_SIZE + 1)])
    assert numbers((take(queue).order.handle,)) == [50], "a place is kept for an urgent one"
    assert queue.take() is None, "no more than LARGE_MAX, however urgent"
    queue.add([order(60), order(61, urgent=True, length=LARGE_SIZE)])
    assert numbers((take(queue).order.handle, take(queue).order.handle)) == [61, 60]
    queue.done(running[0])
    assert numbers((take(queue).order.handle,)) == [51]


def test_full_queue_takes_only_urgent_orders_and_says_what_gave_way() -> None:
    queue = CopyQueue()
    queue.add(map(order, range(COPIES_WAITING_MAX + 1)))
    queue.add([order(1000, urgent=True)])
    copying = numbers(queue.status().copying)
    assert copying == [*range(COPIES_WAITING_MAX - 1), 1000]
    assert failures(queue) == {COPIES_WAITING_MAX - 1: COPY_GAVE_WAY}
    assert numbers((take(queue).order.handle,)) == [1000]


def test_full_queue_of_urgent_orders_takes_no_other() -> None:
    queue = CopyQueue()
    queue.add(order(number, urgent=True) for number in range(COPIES_WAITING_MAX))
    queue.add([order(1000, urgent=True)])
    assert 1000 not in numbers(queue.status().copying)
    assert failures(queue) == {}


def test_failure_is_told_until_exactly_it_is_acknowledged() -> None:
    queue = CopyQueue()
    queue.add([order(1)])
    queue.done(take(queue), "disk_full", "x" * 10 * FAILURE_TEXT_MAX)
    first = queue.status().failures
    assert queue.status().failures == first
    assert len(first[0].text) == FAILURE_TEXT_MAX
    queue.add([order(1)])
    assert failures(queue) == {}, "a new order has not failed yet"
    queue.done(take(queue), "connection_failed", "no")
    queue.acknowledge(first)  # a late word about the first failure
    assert failures(queue) == {1: "connection_failed"}
    queue.acknowledge(queue.status().failures)
    assert failures(queue) == {}


def test_failures_that_nobody_hears_do_not_pile_up() -> None:
    queue = CopyQueue()
    for number in range(3 * COPIES_WAITING_MAX):
        queue.add([order(number)])
        queue.done(take(queue), "connection_failed", "no")
    assert list(failures(queue)) == list(range(2 * COPIES_WAITING_MAX, 3 * COPIES_WAITING_MAX))


def test_deleted_chunk_is_not_copied_and_its_next_order_waits_for_the_end_of_the_first() -> None:
    queue = CopyQueue()
    queue.add([order(1), order(2)])
    running = take(queue)
    queue.cancel([order(1).handle, order(2).handle, order(3).handle])
    assert running.is_cancelled
    assert failures(queue) == {2: "chunk_not_found"}
    queue.add([order(1)])
    assert queue.take() is None
    queue.done(running, "chunk_not_found", "cancelled")
    again = take(queue)
    assert again is not running
    assert not again.is_cancelled


def test_a_large_copy_that_is_only_being_synced_keeps_no_other_from_being_fetched() -> None:
    queue = CopyQueue()
    queue.add(order(number, length=LARGE_SIZE + 1) for number in range(COPIERS))
    running = [take(queue) for _ in range(ORDINARY_LARGE_MAX)]
    assert queue.take() is None
    queue.fetched(running[0])
    assert numbers((take(queue).order.handle,)) == [ORDINARY_LARGE_MAX]
    assert queue.take() is None


def test_the_end_of_a_copy_is_told_when_few_orders_wait_and_not_before() -> None:
    told: list[str] = []
    queue = CopyQueue()
    queue.when_low(lambda: told.append("low"))
    queue.add(map(order, range(LOW_WATER + 1)))
    queue.done(take(queue))
    assert told == [], "as many as LOW_WATER wait"
    queue.done(take(queue))
    queue.done(take(queue), "connection_failed", "no")
    assert told == ["low", "low"]


def test_while_clients_are_served_few_ordinary_copies_run_and_urgent_ones_as_ever() -> None:
    serving = [True]
    queue = CopyQueue(lambda: serving[0])
    queue.add(order(number, length=LARGE_SIZE + 1) for number in range(COPIERS))
    for _ in range(GENTLE_LARGE_MAX):
        take(queue)
    assert queue.take() is None
    queue.add(order(50 + number) for number in range(COPIERS))
    for _ in range(GENTLE_MAX - GENTLE_LARGE_MAX):
        take(queue)
    assert queue.take() is None
    queue.add(order(90 + number, urgent=True) for number in range(ORDINARY_MAX))
    for _ in range(ORDINARY_MAX):
        assert take(queue).is_urgent
    assert queue.take() is None
    serving[0] = False
    assert not take(queue).is_urgent
