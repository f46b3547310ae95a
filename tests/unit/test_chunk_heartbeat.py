"""Does the leader learn everything, in order, once and for all, wherever it moves?

The masters are scripted ones behind real listeners; each beat is one call, so no test waits for an interval.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from dfs.checksum import crc32c
from dfs.chunk import heartbeat as heartbeat_module
from dfs.chunk import leader as leader_module
from dfs.chunk.heartbeat import REFUSED_PAUSE_MAX_S, Heartbeats, ServerCard
from dfs.chunk.leader import LeaderConnection
from dfs.chunk.memstore import MemoryStore
from dfs.chunk.orders import ORDERS_WAITING_MAX, DeletionOrders
from dfs.chunk.replicator import Replicator
from dfs.clock import Deadline
from dfs.errors import DfsError, InvalidArgument, NoQuorum, NotLeader, OutcomeUnknown
from dfs.ids import ChunkHandle, ServerId, new_chunk_handle
from dfs.log import unexpected
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel
from dfs.net.listener import Listener, ServeLimits, serve_forever
from dfs.net.messages import (
    ChunkReport,
    ChunkReportReply,
    ErrorReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    RegisterServer,
    RegisterServerReply,
)
from dfs.net.parts import CopyReplica, DeleteReplica, ScrubStatus
from dfs.testing.cluster import wait_until
from dfs.testing.replicas import DATA, put

KEY = ClusterKey.from_secret(b"0" * 64, "test")
SERVER = ServerId(bytes(range(16)))
CARD = ServerCard("c1", "127.0.0.1:7421", "r1", b"incarnation 1")
INTERVAL_S = 1.0
SCRUB = ScrubStatus(verified_count=1, verified_size=2, corrupt_count=3, lap_progress=0.5, last_lap_ms=4)
ALIVE = HeartbeatReply(must_register=False, must_report=False)


class Master:
    """Answers as a leader would, keeps what it heard, and can be told to answer otherwise."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.is_leader = True
        self.leader_hint = ""
        self.registered: set[bytes] = set()
        self.reported: set[bytes] = set()
        self.orders: list[DeleteReplica] = []
        self.copies: list[CopyReplica] = []
        self.copy_rate_max = 0
        self.refuse: Callable[[Message], DfsError | None] = lambda _message: None
        self.connections = 0
        self._stop = threading.Event()
        self._start("127.0.0.1:0")

    def _start(self, address: str) -> None:
        self._stop = threading.Event()
        self._listener = Listener.bind(address, bulk=False)
        self.address = self._listener.address
        self._thread = threading.Thread(
            target=serve_forever,
            args=(self._listener, KEY, self._serve, ServeLimits(drain_s=0.0), self._stop),
            daemon=True,
        )
        self._thread.start()

    def _serve(self, channel: Channel) -> None:
        self.connections += 1
        while True:
            received = channel.receive(Deadline.after(60))
            try:
                reply = self._reply(received.message)
            except DfsError as error:
                reply = ErrorReply.of(error)
            channel.send(reply, Deadline.after(10), request_id=received.request_id)

    def _reply(self, message: Message) -> Message:
        if not self.is_leader:
            raise NotLeader("not I", **({"leader": self.leader_hint} if self.leader_hint else {}))
        self.heard.append(message)
        if (error := self.refuse(message)) is not None:
            raise error
        match message:
            case RegisterServer():
                self.registered.add(message.incarnation)
                return RegisterServerReply("test")
            case Heartbeat():
                if message.incarnation not in self.registered:
                    return HeartbeatReply(must_register=True, must_report=False)
                orders, self.orders = tuple(self.orders), []
                copies, self.copies = tuple(self.copies), []
                return HeartbeatReply(
                    must_register=False,
                    must_report=message.incarnation not in self.reported,
                    orders=orders,
                    copies=copies,
                    copy_rate_max=self.copy_rate_max,
                )
            case ChunkReport():
                if message.is_last:
                    self.reported.add(message.incarnation)
                return ChunkReportReply()
        raise AssertionError(message)

    def take(self) -> list[Message]:
        heard, self.heard = self.heard, []
        return heard

    def stop(self) -> None:
        self._stop.set()
        self._listener.close()
        self._thread.join(20)


@contextmanager
def masters(count: int) -> Iterator[list[Master]]:
    with ExitStack() as stack:
        made = [Master() for _ in range(count)]
        for master in made:
            stack.callback(master.stop)
        yield made


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master that a busy machine keeps from greeting at once is asked all the same."""
    monkeypatch.setattr(leader_module, "CONNECT_TIMEOUT_S", 60.0)


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    made = MemoryStore(SERVER, 10**9)
    yield made
    made.close()


@contextmanager
def talking(
    store: MemoryStore,
    *addresses: str,
    page_max: int = 100,
    changes_max: int = 100,
    replicator: Replicator | None = None,
    interval_s: float = INTERVAL_S,
) -> Iterator[tuple[Heartbeats, DeletionOrders]]:
    orders = DeletionOrders(store)
    leader = LeaderConnection(addresses, KEY)
    heartbeats = Heartbeats(
        store=store,
        leader=leader,
        orders=orders,
        replicator=replicator or Replicator(store, KEY, CARD.address),
        card=CARD,
        interval_s=interval_s,
        active_streams=lambda: 5,
        disk_wait_ms=lambda: 17,
        scrub=lambda: SCRUB,
        page_max=page_max,
        changes_max=changes_max,
    )
    try:
        yield heartbeats, orders
    finally:
        leader.close()


def kinds(heard: list[Message]) -> list[str]:
    return [type(message).__name__ for message in heard]


def heartbeats_of(heard: list[Message]) -> list[Heartbeat]:
    return [message for message in heard if isinstance(message, Heartbeat)]


def test_first_beat_registers_reports_and_says_so_in_that_order(store: MemoryStore) -> None:
    handle = put(store).handle
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, _):
        assert heartbeats.beat() == INTERVAL_S
        heard = master.take()
        assert kinds(heard) == ["Heartbeat", "RegisterServer", "Heartbeat", "ChunkReport", "Heartbeat"]
        register, beat, report = heard[1], heard[2], heard[3]
        assert isinstance(register, RegisterServer)
        assert (register.server_id, register.name) == (SERVER, "c1")
        assert (register.address, register.rack) == ("127.0.0.1:7421", "r1")
        assert isinstance(beat, Heartbeat)
        assert (beat.capacity, beat.chunk_count, beat.active_streams) == (10**9, 1, 5)
        assert (beat.disk_wait_ms, beat.scrub) == (17, SCRUB)
        assert [replica.handle for replica in beat.added] == [handle]
        assert isinstance(report, ChunkReport)
        assert (report.page, report.is_last) == (0, True)
        assert [(replica.handle, replica.length, replica.crc) for replica in report.replicas] == [
            (handle, len(DATA), crc32c(DATA))
        ]
        heartbeats.beat()
        assert kinds(master.take()) == ["Heartbeat"]
        assert master.connections == 1


def test_full_report_goes_in_ascending_pages(store: MemoryStore) -> None:
    handles = sorted(put(store).handle for _ in range(25))
    with masters(1) as (master,), talking(store, master.address, page_max=10) as (heartbeats, _):
        heartbeats.beat()
        pages = [message for message in master.take() if isinstance(message, ChunkReport)]
        shapes = [(page.page, page.is_last, len(page.replicas)) for page in pages]
        assert shapes == [(0, False, 10), (1, False, 10), (2, True, 5)]
        assert [replica.handle for page in pages for replica in page.replicas] == handles
        assert len({page.report_id for page in pages}) == 1


def test_empty_server_reports_one_empty_page(store: MemoryStore) -> None:
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, _):
        heartbeats.beat()
        (report,) = [message for message in master.take() if isinstance(message, ChunkReport)]
        assert (report.page, report.is_last, report.replicas) == (0, True, ())


def test_changes_are_told_until_they_are_acknowledged(store: MemoryStore) -> None:
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, _):
        heartbeats.beat()
        master.take()
        kept, gone = put(store).handle, put(store).handle
        store.delete(gone)
        master.refuse = lambda _message: OutcomeUnknown("the log is slow")
        assert heartbeats.beat() == INTERVAL_S
        master.refuse = lambda _message: None
        heartbeats.beat()
        first, second = heartbeats_of(master.take())
        for beat in (first, second):
            assert [replica.handle for replica in beat.added] == [kept]
            assert beat.removed == (gone,)
        heartbeats.beat()
        (third,) = heartbeats_of(master.take())
        assert (third.added, third.removed) == ((), ())


def test_many_changes_go_in_bounded_heartbeats_at_once(store: MemoryStore) -> None:
    with masters(1) as (master,), talking(store, master.address, changes_max=10) as (heartbeats, _):
        heartbeats.beat()
        master.take()
        handles = [put(store).handle for _ in range(25)]
        heartbeats.beat()
        beats = heartbeats_of(master.take())
        assert [len(beat.added) for beat in beats] == [10, 10, 5]
        assert [replica.handle for beat in beats for replica in beat.added] == handles


def test_too_many_unacknowledged_changes_become_a_full_report(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.changes, "_changes_max", 5)
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, _):
        heartbeats.beat()
        master.take()
        handles = sorted(put(store).handle for _ in range(8))
        heartbeats.beat()
        heard = master.take()
        assert kinds(heard) == ["Heartbeat", "ChunkReport", "Heartbeat"]
        assert isinstance(heard[1], ChunkReport)
        assert [replica.handle for replica in heard[1].replicas] == handles


def test_report_that_failed_is_sent_again_from_its_start(store: MemoryStore) -> None:
    for _ in range(25):
        put(store)
    with masters(1) as (master,), talking(store, master.address, page_max=10) as (heartbeats, _):
        master.refuse = lambda message: (
            InvalidArgument("does not follow") if isinstance(message, ChunkReport) and message.page == 1 else None
        )
        assert heartbeats.beat() == INTERVAL_S
        master.refuse = lambda _message: None
        heartbeats.beat()
        pages = [(message.report_id, message.page) for message in master.take() if isinstance(message, ChunkReport)]
        assert pages == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]


def test_orders_are_carried_out_and_confirmed(store: MemoryStore) -> None:
    handle, unknown = put(store).handle, new_chunk_handle()
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, orders):
        heartbeats.beat()
        master.take()
        master.orders = [DeleteReplica(handle), DeleteReplica(unknown)]
        heartbeats.beat()
        assert orders.run_once() == 1
        assert store.handles() == []
        master.take()
        heartbeats.beat()
        (beat,) = heartbeats_of(master.take())
        assert set(beat.removed) == {handle, unknown}


def test_orders_of_a_leader_before_are_not_carried_out_for_the_next_one_counts_anew(store: MemoryStore) -> None:
    kept = put(store).handle
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, orders):
        heartbeats.beat()
        master.orders = [DeleteReplica(kept)]
        heartbeats.beat()
        master.registered.clear()  # another one leads: it lists the replica, and may have others deleted for it
        master.reported.clear()
        heartbeats.beat()
        assert any(isinstance(message, ChunkReport) for message in master.take())
        assert orders.run_once() == 0
        assert store.handles() == [kept]


def test_an_order_to_copy_a_chunk_ends_a_waiting_one_to_delete_it(store: MemoryStore) -> None:
    held = put(store)
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, orders):
        heartbeats.beat()
        master.orders = [DeleteReplica(held.handle)]
        heartbeats.beat()
        master.copies = [CopyReplica(held.handle, held.length, held.crc, (), b"token")]
        heartbeats.beat()
        assert orders.run_once() == 0
        assert store.handles() == [held.handle]


def test_waiting_orders_are_bounded_and_stand_once(store: MemoryStore) -> None:
    orders = DeletionOrders(store)
    handles = [ChunkHandle(number.to_bytes(16, "big")) for number in range(ORDERS_WAITING_MAX + 5)]
    orders.add(handles)
    orders.add(handles[:10])
    orders.run_once()
    assert len(store.changes) == ORDERS_WAITING_MAX


def test_leader_is_found_by_the_word_of_another_master(store: MemoryStore) -> None:
    with masters(3) as group:
        for master in group[:2]:
            master.is_leader = False
            master.leader_hint = group[2].address
        with talking(store, *(master.address for master in group)) as (heartbeats, _):
            heartbeats.beat()
            assert kinds(group[2].take())[:2] == ["Heartbeat", "RegisterServer"]
            assert [master.connections for master in group] == [1, 0, 1]


def test_leader_that_dies_is_left_within_the_same_beat(store: MemoryStore) -> None:
    with masters(3) as group, talking(store, *(master.address for master in group)) as (heartbeats, _):
        group[1].is_leader = group[2].is_leader = False
        heartbeats.beat()
        handle = put(store).handle
        group[0].stop()
        group[2].is_leader = True
        assert heartbeats.beat() == INTERVAL_S
        heard = group[2].take()
        assert kinds(heard) == ["Heartbeat", "RegisterServer", "Heartbeat", "ChunkReport", "Heartbeat"]
        assert [replica.handle for replica in heartbeats_of(heard)[1].added] == [handle]


def test_leader_that_is_deposed_is_left_within_the_same_beat(store: MemoryStore) -> None:
    with masters(2) as group, talking(store, *(master.address for master in group)) as (heartbeats, _):
        group[1].is_leader = False
        heartbeats.beat()
        group[0].is_leader, group[1].is_leader = False, True
        assert heartbeats.beat() == INTERVAL_S
        assert "RegisterServer" in kinds(group[1].take())


def test_leader_that_hangs_is_left_after_a_short_wait(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_module, "CONNECT_TIMEOUT_S", 1.0)
    hanging = Listener.bind("127.0.0.1:0")  # the kernel accepts, nobody greets
    try:
        with masters(1) as (master,), talking(store, hanging.address, master.address) as (heartbeats, _):
            assert heartbeats.beat() == INTERVAL_S
            assert "RegisterServer" in kinds(master.take())
    finally:
        hanging.close()


def test_without_any_leader_the_search_goes_on_at_a_fast_pace(store: MemoryStore) -> None:
    with masters(2) as group, talking(store, *(master.address for master in group)) as (heartbeats, _):
        for master, other in zip(group, reversed(group), strict=True):
            master.is_leader, master.leader_hint = False, other.address  # each believes in the other
        assert heartbeats.beat() < INTERVAL_S
        leader = LeaderConnection([master.address for master in group], KEY)
        with pytest.raises(NoQuorum, match="no master leads"):
            leader.call(Heartbeat(SERVER, b"", 1, 1, 0, 0, ()), HeartbeatReply)
        leader.close()


def test_orders_to_copy_are_confirmed_and_their_failures_told_until_heard(store: MemoryStore) -> None:
    replicator = Replicator(store, KEY, CARD.address)
    order = CopyReplica(new_chunk_handle(), 1, 0, (), b"token")
    with masters(1) as (master,), talking(store, master.address, replicator=replicator) as (heartbeats, _):
        heartbeats.beat()
        master.copies, master.copy_rate_max = [order], 1_000_000
        heartbeats.beat()
        master.take()
        assert replicator._bucket.rate == 1_000_000
        heartbeats.beat()
        (told,) = heartbeats_of(master.take())
        assert (told.copying, told.copy_failures) == ((order.handle,), ())
        assert replicator.run_once() == 0  # it names no source
        master.refuse = lambda _message: OutcomeUnknown("no quorum just now")
        heartbeats.beat()
        (told,) = heartbeats_of(master.take())
        assert (told.copying, [failure.handle for failure in told.copy_failures]) == ((), [order.handle])
        master.refuse = lambda _message: None
        for heard in ([order.handle], []):
            heartbeats.beat()
            (told,) = heartbeats_of(master.take())
            assert [failure.handle for failure in told.copy_failures] == heard


def test_the_leader_hears_of_the_last_copies_before_the_next_beat_is_due(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "HURRIED_SHARE", 0.0)
    replicator = Replicator(store, KEY, CARD.address)
    held, stop = put(store), threading.Event()
    order = CopyReplica(held.handle, held.length, held.crc, (), b"token")
    with masters(1) as (master,), talking(store, master.address, replicator=replicator, interval_s=1e6) as (talker, _):
        thread = threading.Thread(target=talker.run, args=(stop,), daemon=True)
        master.copies = [order]
        thread.start()
        wait_until(lambda: replicator.queue.status().copying == (held.handle,), 30, "the order is here")
        heard = len(master.heard)
        assert replicator.run_once() == 0  # it is held already, which the leader is to hear
        wait_until(
            lambda: any(not beat.copying for beat in heartbeats_of(master.heard[heard:])),
            30,
            "a beat that tells it came long before it was due",
        )
        stop.set()
        talker.hurry()
        thread.join(30)
        assert not thread.is_alive(), "whoever stops it need not wait either"


def test_chunk_that_is_to_be_deleted_is_not_copied_any_more(store: MemoryStore) -> None:
    replicator = Replicator(store, KEY, CARD.address)
    order = CopyReplica(new_chunk_handle(), 1, 0, (), b"token")
    with masters(1) as (master,), talking(store, master.address, replicator=replicator) as (heartbeats, _):
        heartbeats.beat()
        master.copies = [order]
        heartbeats.beat()
        master.orders = [DeleteReplica(order.handle)]
        heartbeats.beat()
        assert replicator.queue.take() is None


def test_replica_found_bad_is_told_as_corrupt_and_a_deleted_one_is_not(store: MemoryStore) -> None:
    bad, deleted = put(store).handle, put(store).handle
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, _):
        heartbeats.beat()
        master.take()
        with store.open(bad) as opened:
            os.pwrite(opened.fd, b"\xff", 0)
        assert not store.verify(bad)
        store.delete(deleted)
        heartbeats.beat()
        (beat,) = heartbeats_of(master.take())
        assert (set(beat.removed), beat.corrupt) == ({bad, deleted}, (bad,))
        heartbeats.beat()
        (beat,) = heartbeats_of(master.take())
        assert (beat.removed, beat.corrupt) == ((), ())


def test_copied_data_directory_is_refused_loudly_and_retried_ever_more_slowly(
    store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, _):
        master.refuse = lambda message: (
            InvalidArgument("a data directory was copied") if isinstance(message, RegisterServer) else None
        )
        pauses = [heartbeats.beat() for _ in range(8)]
        assert pauses == sorted(pauses)
        assert pauses[-1] == REFUSED_PAUSE_MAX_S
        assert "registration_refused" in [record.message for record in caplog.records if record.levelname == "ERROR"]
        master.refuse = lambda _message: None
        assert heartbeats.beat() == INTERVAL_S


def test_thread_beats_until_it_is_stopped(store: MemoryStore) -> None:
    stop = threading.Event()
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, orders):
        seen = threading.Event()

        def see(message: Message) -> DfsError | None:
            if isinstance(message, ChunkReport):
                seen.set()
            return None

        master.refuse = see
        threads = [threading.Thread(target=worker.run, args=(stop,), daemon=True) for worker in (heartbeats, orders)]
        for thread in threads:
            thread.start()
        assert seen.wait(20)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)


def test_an_error_that_nobody_expected_is_counted_told_and_the_beating_goes_on(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, disks, before = threading.Event(), store.disks, unexpected()
    failures = iter([ZeroDivisionError("a bug")])

    def fail_once() -> object:
        for failure in failures:
            raise failure
        return disks()

    monkeypatch.setattr(store, "disks", fail_once)
    with masters(1) as (master,), talking(store, master.address) as (heartbeats, _):
        thread = threading.Thread(target=heartbeats.run, args=(stop,), daemon=True)
        thread.start()
        wait_until(lambda: any(isinstance(message, Heartbeat) for message in master.heard), 20, "it beats on")
        stop.set()
        heartbeats.hurry()
        thread.join(20)
        told = [message.unexpected_count for message in master.heard if isinstance(message, Heartbeat)]
    assert unexpected()["heartbeat_failed"] == before.get("heartbeat_failed", 0) + 1
    assert sum(before.values()) < told[0] <= sum(unexpected().values()), "others in this process may count, too"
