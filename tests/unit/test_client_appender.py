"""Does an appender keep its word when those who hear of outcomes are slow, when there are no threads, after a fork?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import cast

import pytest

from dfs.client.appender import Appender
from dfs.client.discovery import Masters
from dfs.client.pool import ChannelPool
from dfs.errors import DeadlineExceeded, DfsError, DiskFailed, InvalidArgument, Overloaded
from dfs.ids import ChunkHandle, ServerId
from dfs.net.messages import AppendRecords, AppendRecordsReply, OpenTailReply
from dfs.net.parts import LocatedTail, ServerInfo
from dfs.testing.forks import is_refused_in_a_child

WAIT_S = 20.0
SHORT_S = 0.2  # for what must not happen
TAIL = LocatedTail(ChunkHandle(b"h" * 16), 0, b"token", (0,))
SERVER = ServerInfo(ServerId(b"s" * 16), "c1", "127.0.0.1:1", "", is_alive=True)


class Cluster:
    """Masters and chunk server in one: takes every record when it may, or fails."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.failure: DfsError | None = None
        self.length = 0
        self._request: AppendRecords | None = None

    def call(self, *_: object) -> OpenTailReply:
        return OpenTailReply(TAIL, (SERVER,), 1024 * 1024)

    @contextmanager
    def channel(self, *_: object, bulk: bool) -> Iterator[Cluster]:
        assert bulk
        yield self

    def send(self, request: AppendRecords, *_: object, payload: bytes) -> None:
        assert sum(request.group.lengths) == len(payload)
        self._request = request

    def receive(self, _: object) -> Cluster:
        assert self.may_answer.wait(WAIT_S)
        if self.failure is not None:
            raise self.failure
        return self

    @property
    def message(self) -> AppendRecordsReply:
        assert self._request is not None
        offsets = []
        for length in self._request.group.lengths:
            offsets.append(self.length)
            self.length += length
        return AppendRecordsReply(tuple(offsets), 0)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def appender(cluster: Cluster) -> Appender:
    return Appender(cast(Masters, cluster), cast(ChannelPool, cluster), "/log", timeout_s=WAIT_S)


def two_in_one_batch(appender: Appender, cluster: Cluster) -> tuple[Future[int], Future[int]]:
    """Return two records that are sent together, behind one that holds them up until `may_answer`."""
    cluster.may_answer.clear()
    appender.append(b"first")
    while appender._waiting:  # it is on its way
        pass
    return appender.append(b"second"), appender.append(b"third")


def test_flush_returns_when_all_outcomes_are_known_however_slow_who_hears_of_them_is(
    appender: Appender, cluster: Cluster
) -> None:
    second, third = two_in_one_batch(appender, cluster)
    is_heard, may_go_on, is_flushed = threading.Event(), threading.Event(), threading.Event()

    def hear(_: Future[int]) -> None:
        is_heard.set()
        may_go_on.wait(WAIT_S)

    def flush() -> None:
        appender.flush()
        is_flushed.set()

    second.add_done_callback(hear)
    cluster.may_answer.set()
    assert is_heard.wait(WAIT_S)
    flusher = threading.Thread(target=flush)
    flusher.start()
    assert not is_flushed.wait(SHORT_S), "the outcome of the third is not known yet"
    assert not third.done()
    may_go_on.set()
    flusher.join(WAIT_S)
    assert (second.result(0), third.result(0)) == (5, 11)
    appender.close()


def test_who_hears_of_an_outcome_may_flush(appender: Appender, cluster: Cluster) -> None:
    second, third = two_in_one_batch(appender, cluster)
    is_flushed = threading.Event()

    def flush(_: Future[int]) -> None:
        appender.flush()
        is_flushed.set()

    second.add_done_callback(flush)
    cluster.may_answer.set()
    assert is_flushed.wait(WAIT_S)
    assert third.result(WAIT_S) == 11
    appender.close()


def test_a_cancelled_record_takes_no_other_ones_offset(appender: Appender, cluster: Cluster) -> None:
    second, third = two_in_one_batch(appender, cluster)
    assert second.cancel()
    cluster.may_answer.set()
    assert third.result(WAIT_S) == 11
    appender.close()


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_who_hears_of_a_failure_may_wait_for_somebody_who_appends(
    appender: Appender, cluster: Cluster, is_abandoned: bool
) -> None:
    second, _ = two_in_one_batch(appender, cluster)
    accounts = threading.Lock()  # of a program that counts what it has appended
    is_hearing, is_appending, counted = threading.Event(), threading.Event(), threading.Event()

    def hear(_: Future[int]) -> None:
        is_hearing.set()
        is_appending.wait(WAIT_S)
        if accounts.acquire(timeout=WAIT_S):
            accounts.release()
            counted.set()

    def append() -> None:
        with accounts:
            is_appending.set()
            with pytest.raises(DfsError):
                appender.append(b"too late")

    second.add_done_callback(hear)
    cluster.failure = DiskFailed("it smokes") if is_abandoned else InvalidArgument("no")
    teller = threading.Thread(target=appender.abandon if is_abandoned else cluster.may_answer.set)
    teller.start()
    assert is_hearing.wait(WAIT_S)
    other = threading.Thread(target=append)
    other.start()
    other.join(WAIT_S / 4)
    assert not other.is_alive(), "one waits for the other"
    assert counted.wait(WAIT_S)
    cluster.may_answer.set()
    teller.join(WAIT_S)
    assert type(second.exception(0)) is (DeadlineExceeded if is_abandoned else InvalidArgument)


def length_of(trace: TracebackType | None) -> int:
    count = 0
    while trace is not None:
        count, trace = count + 1, trace.tb_next
    return count


def test_a_program_that_goes_on_after_a_failure_does_not_fill_the_memory(appender: Appender) -> None:
    appender.abandon()
    for _ in range(10):
        with pytest.raises(DeadlineExceeded) as caught:
            appender.append(b"x" * 1000)
    assert length_of(caught.value.__traceback__) < 10, "each call would be kept, with its record"


def test_an_appender_without_a_thread_takes_nothing_and_may_have_one_later(
    appender: Appender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(Overloaded, match="ulimit -u"):
        appender.append(b"first")
    appender.flush()
    monkeypatch.undo()
    assert appender.append(b"second").result(WAIT_S) == 0
    appender.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_appender_is_not_shared_with_a_forked_child(appender: Appender) -> None:
    assert appender.append(b"first").result(WAIT_S) == 0
    with appender._changed:  # as it may be when another thread forks
        assert is_refused_in_a_child(
            (lambda: appender.append(b"second"), lambda: appender.last_sequence, appender.flush),
            (appender.close, appender.abandon),
            wait_s=WAIT_S,
        )
    assert appender.append(b"second").result(WAIT_S) == 5
    appender.close()
