"""Verdicts on reported replicas, the pages of a full report, and what is remembered of recent changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.errors import InvalidArgument
from dfs.ids import ChunkHandle, ServerId, new_chunk_handle
from dfs.master import chunk_report
from dfs.master.chunk_report import HandleColumn, RecentChanges, ReportIntake, Verdict, judge
from dfs.master.state.views import ChunkView
from dfs.net.messages import ChunkReport
from dfs.net.parts import ReplicaReport

A, B = ServerId(b"a" * 16), ServerId(b"b" * 16)
BORN_MS, HORIZON_MS = 5_000, 9_000


def handle(number: int) -> ChunkHandle:
    return ChunkHandle(number.to_bytes(16, "big"))


def replica(number: int, length: int = 10, crc: int = 7) -> ReplicaReport:
    return ReplicaReport(handle(number), length, crc)


def allocated(time_ms: int) -> ReplicaReport:
    return ReplicaReport(new_chunk_handle(time_ms), 10, 7)


@pytest.mark.parametrize(
    ("reported", "chunk", "is_garbage", "verdict"),
    [
        (replica(1), ChunkView(10, 7, 3, (A, B), 1), False, Verdict.KEEP),
        (replica(1), ChunkView(10, 7, 3, (B,), 1), False, Verdict.LIST),
        (replica(1, length=9), ChunkView(10, 7, 3, (A, B), 1), False, Verdict.STALE),
        (replica(1, crc=8), ChunkView(10, 7, 3, (B,), 1), False, Verdict.STALE),
        (replica(1), None, True, Verdict.GARBAGE),
        (allocated(HORIZON_MS - 1), None, False, Verdict.ORPHAN),
        (allocated(HORIZON_MS), None, False, Verdict.YOUNG),
        (allocated(BORN_MS), None, False, Verdict.ORPHAN),
        (allocated(BORN_MS - 1), None, False, Verdict.FOREIGN),
        (replica(1, length=0, crc=0), ChunkView(10, 7, 3, (A, B), 1), False, Verdict.KEEP),
    ],
)
def test_the_verdict_on_a_replica(
    reported: ReplicaReport, chunk: ChunkView | None, is_garbage: bool, verdict: Verdict
) -> None:
    assert judge(reported, A, chunk, is_garbage=is_garbage, born_ms=BORN_MS, horizon_ms=HORIZON_MS) is verdict


def test_only_stale_garbage_and_orphaned_replicas_are_deleted() -> None:
    assert {verdict for verdict in Verdict if verdict.is_delete} == {Verdict.STALE, Verdict.GARBAGE, Verdict.ORPHAN}


HANDLES = st.one_of(st.binary(min_size=16, max_size=16), st.integers(0, 40).map(lambda n: bytes(15) + bytes([n])))


@given(st.sets(HANDLES), st.sets(HANDLES))
def test_a_handle_column_holds_exactly_what_was_put_in(held: set[bytes], others: set[bytes]) -> None:
    column = HandleColumn()
    column.extend(sorted(held))
    assert list(column) == sorted(held)
    assert (len(column), column.last) == (len(held), max(held, default=None))
    assert all(one in column for one in held)
    assert not any(one in column for one in others - held)


def page(number: int, handles: range, *, is_last: bool = False, report_id: int = 5) -> ChunkReport:
    return ChunkReport(A, b"1", report_id, number, is_last, tuple(replica(n) for n in handles))


def test_pages_in_order_make_a_report() -> None:
    intake = ReportIntake(5, 0.0)
    intake.accept(page(0, range(3)), 1.0)
    completed = [intake.is_complete]
    intake.accept(page(1, range(3, 5), is_last=True), 2.0)
    completed.append(intake.is_complete)
    assert completed == [False, True]
    assert list(intake.handles) == [handle(n) for n in range(5)]
    assert intake.heard_s == 2.0


def test_a_page_sent_again_changes_nothing() -> None:
    intake = ReportIntake(5, 0.0)
    intake.accept(page(0, range(3)), 1.0)
    intake.accept(page(0, range(3)), 1.0)
    intake.accept(page(1, range(3, 5), is_last=True), 1.0)
    intake.accept(page(1, range(3, 5), is_last=True), 1.0)
    assert list(intake.handles) == [handle(n) for n in range(5)]
    assert intake.is_complete


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (page(2, range(9, 10)), "does not follow"),
        (page(1, range(9, 10), report_id=6), "does not follow"),
        (page(1, range(2, 4)), "ascending"),
        (ChunkReport(A, b"1", 5, 1, False, (replica(9), replica(8))), "ascending"),
        (ChunkReport(A, b"1", 5, 1, False, (ReplicaReport(ChunkHandle(b"short"), 1, 1),)), "16 bytes"),
    ],
)
def test_a_page_that_does_not_fit_is_refused(wrong: ChunkReport, words: str) -> None:
    intake = ReportIntake(5, 0.0)
    intake.accept(page(0, range(3)), 1.0)
    with pytest.raises(InvalidArgument, match=words):
        intake.accept(wrong, 2.0)
    assert len(intake.handles) == 3


def test_nothing_follows_the_last_page() -> None:
    intake = ReportIntake(5, 0.0)
    intake.accept(page(0, range(3), is_last=True), 1.0)
    with pytest.raises(InvalidArgument, match="does not follow"):
        intake.accept(page(1, range(3, 4)), 1.0)


def test_the_last_change_of_a_chunk_counts() -> None:
    recent = RecentChanges()
    assert not recent.was_added(handle(1))
    assert not recent.was_removed(handle(1))
    recent.note([handle(1)], 1.0, is_held=True)
    recent.note([handle(2)], 2.0, is_held=False)
    recent.note([handle(1)], 3.0, is_held=False)
    assert recent.was_removed(handle(1))
    assert not recent.was_added(handle(1))
    recent.forget_before(2.5)
    assert len(recent) == 1
    assert not recent.was_removed(handle(2))
    assert recent.was_removed(handle(1))


def test_recent_changes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_report, "CHANGES_KEPT_MAX", 3)
    recent = RecentChanges()
    recent.note([handle(n) for n in range(5)], 1.0, is_held=True)
    assert len(recent) == 3
    assert not recent.was_added(handle(1))
    assert recent.was_added(handle(4))
