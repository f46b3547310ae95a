"""Do the deltas for the heartbeats say the last word on each replica, until it is acknowledged?"""

from __future__ import annotations

from dfs.chunk.changes import ReplicaChanges
from dfs.chunk.replicas import Replica
from dfs.ids import ChunkHandle


def replica(number: int) -> Replica:
    return Replica(ChunkHandle(number.to_bytes(16, "big")), 1, 2, 3)


def test_batch_repeats_until_it_is_acknowledged() -> None:
    changes = ReplicaChanges()
    changes.published(replica(1))
    assert changes.batch(10) == changes.batch(10)
    changes.acknowledge(changes.batch(10))
    assert changes.batch(10).entries == ()


def test_only_the_last_state_of_a_replica_is_told() -> None:
    changes = ReplicaChanges()
    changes.published(replica(1))
    changes.removed(replica(1).handle)
    assert (changes.batch(10).added, changes.batch(10).removed) == ((), (replica(1).handle,))


def test_change_after_the_batch_was_sent_survives_its_acknowledgement() -> None:
    changes = ReplicaChanges()
    changes.published(replica(1))
    sent = changes.batch(10)
    changes.removed(replica(1).handle)
    changes.acknowledge(sent)
    assert changes.batch(10).removed == (replica(1).handle,)


def test_batches_are_bounded_and_go_in_order() -> None:
    changes = ReplicaChanges()
    for number in range(5):
        changes.published(replica(number))
    first = changes.batch(2)
    assert first.added == (replica(0), replica(1))
    changes.acknowledge(first)
    assert changes.batch(2).added == (replica(2), replica(3))


def test_overflow_asks_for_a_full_report_instead() -> None:
    changes = ReplicaChanges(changes_max=3)
    for number in range(3):
        changes.published(replica(number))
    assert not changes.must_report()
    changes.published(replica(3))
    assert changes.must_report()
    assert changes.batch(10).added == (replica(3),)
    changes.report_begins()
    assert not changes.must_report()
    changes.report_failed()
    assert changes.must_report()


def test_replica_found_bad_is_told_as_corrupt_until_it_is_acknowledged_or_comes_back() -> None:
    changes = ReplicaChanges()
    for number in range(3):
        changes.found_corrupt(replica(number).handle)
        changes.removed(replica(number).handle)
    changes.removed(replica(3).handle)
    assert changes.batch(10).corrupt == tuple(replica(number).handle for number in range(3))
    changes.acknowledge(changes.batch(1))
    changes.published(replica(1))
    assert changes.batch(10).corrupt == (replica(2).handle,)
    assert changes.corrupt_count == 3


def test_suspicion_that_ended_with_a_new_copy_says_nothing_about_its_deletion() -> None:
    changes = ReplicaChanges()
    changes.found_corrupt(replica(1).handle)
    changes.published(replica(1))
    changes.removed(replica(1).handle)
    assert (changes.batch(10).corrupt, changes.corrupt_count) == ((), 0)
