"""Does a chunk arrive whole from whichever source has it, or not at all, and is the right one blamed?

The sources are real chunk services over memory stores, on loopback; each copy is one `run_once`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from dfs.checksum import BLOCK_SIZE, crc32c
from dfs.chunk.copy_queue import CopyJob
from dfs.chunk.memstore import MemoryReplicaWriter, MemoryStore
from dfs.chunk.replicator import IN_FLIGHT_MAX, PIECE_SIZE, Replicator
from dfs.clock import Deadline
from dfs.errors import DiskFailed, DiskFull
from dfs.ids import ChunkHandle, ServerId, new_chunk_handle
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.blocking import Channel, expect
from dfs.net.messages import ErrorReply, ReadChunk, ReadChunkReply
from dfs.net.parts import CopyReplica
from dfs.testing.chunk_server import soon, wait_until
from dfs.testing.memory_cluster import MemoryChunkServer
from dfs.testing.replicas import content, put

KEY = ClusterKey.from_secret(b"0" * 64, "test")
SIZES = [1, BLOCK_SIZE, BLOCK_SIZE + 1, PIECE_SIZE, (IN_FLIGHT_MAX + 2) * PIECE_SIZE + 12_345]
CAPACITY = 10**9
DATA = os.urandom(3 * BLOCK_SIZE + 5)
OWN = "127.0.0.1:9"


def order(
    handle: ChunkHandle,
    *sources: MemoryChunkServer,
    data: bytes = DATA,
    urgent: bool = False,
    lifetime_s: float = 60.0,
) -> CopyReplica:
    token = sign_token(KEY, handle, Rights.READ, int((time.time() + lifetime_s) * 1000))
    addresses = tuple(source.address for source in sources)
    return CopyReplica(handle, len(data), crc32c(data), addresses, token, urgent)


def noted(asked: list[str]) -> Callable[[Channel], bool]:
    """Return an intercept that writes down who connects, and lets everybody pass."""

    def note(channel: Channel) -> bool:
        asked.append(channel.address)
        return True

    return note


@pytest.fixture
def sources() -> Iterator[list[MemoryChunkServer]]:
    with ExitStack() as stack:
        made = []
        for name in ("a", "b"):
            made.append(MemoryChunkServer(name, KEY))
            stack.callback(made[-1].stop)
        yield made


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    made = MemoryStore(ServerId(bytes(16)), CAPACITY)
    yield made
    assert not made._being_written, "every writer has ended"
    made.close()


@pytest.fixture
def replicator(store: MemoryStore) -> Iterator[Replicator]:
    made = Replicator(store, KEY, OWN)
    yield made
    made.close()


def only_failure(replicator: Replicator) -> tuple[str, str]:
    (failure,) = replicator.queue.status().failures
    return failure.code, failure.text


def added(store: MemoryStore) -> list[ChunkHandle]:
    return [replica.handle for replica in store.changes.batch(100).added]


@pytest.mark.parametrize("size", SIZES)
def test_chunk_arrives_whole_and_is_reported(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer], size: int
) -> None:
    handle, data = new_chunk_handle(), os.urandom(size)
    put(sources[0].store, data, handle)
    replicator.queue.add([order(handle, sources[0], data=data)])
    assert replicator.queue.status().copying == (handle,)
    assert replicator.run_once() == 1
    assert content(store, handle) == data
    assert added(store) == [handle]
    assert replicator.queue.status() == type(replicator.queue.status())((), ())


def test_damaged_source_is_left_for_the_next_and_looks_at_its_replica(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer]
) -> None:
    handle = new_chunk_handle()
    for source in sources:
        put(source.store, DATA, handle)
    sources[0].damage(handle, offset=2 * BLOCK_SIZE)
    replicator.queue.add([order(handle, *sources)])
    assert replicator.run_once() == 1
    assert content(store, handle) == DATA
    assert sources[0].store.replica(handle) is None, "its own check found the damage"
    assert sources[1].store.replica(handle) is not None


@pytest.mark.parametrize("stale", [DATA[:-1], bytes(len(DATA))], ids=["other length", "other bytes"])
def test_sound_replica_of_other_bytes_than_ordered_is_not_taken(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer], stale: bytes
) -> None:
    handle = new_chunk_handle()
    put(sources[0].store, stale, handle)
    replicator.queue.add([order(handle, sources[0])])
    assert replicator.run_once() == 0
    assert only_failure(replicator)[0] == "stale_replica"
    put(sources[1].store, DATA, handle)
    replicator.queue.add([order(handle, *sources)])
    assert replicator.run_once() == 1
    assert content(store, handle) == DATA


def test_order_fails_with_every_reason_when_no_source_has_the_chunk(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer]
) -> None:
    handle = new_chunk_handle()
    sources[0].stop()
    replicator.queue.add([order(handle, *sources)])
    assert replicator.run_once() == 0
    code, text = only_failure(replicator)
    assert code == "chunk_not_found"
    assert all(source.address in text for source in sources)
    assert store.handles() == []
    sources[0].start()


def test_order_without_another_source_than_this_server_fails(store: MemoryStore, replicator: Replicator) -> None:
    token = sign_token(KEY, handle := new_chunk_handle(), Rights.READ, 1 << 50)
    replicator.queue.add([CopyReplica(handle, len(DATA), crc32c(DATA), (OWN,), token)])
    assert replicator.run_once() == 0
    assert only_failure(replicator)[0] == "chunk_not_found"


def test_expired_token_is_not_carried_from_source_to_source(
    replicator: Replicator, sources: list[MemoryChunkServer]
) -> None:
    handle = new_chunk_handle()
    asked: list[str] = []
    for source in sources:
        put(source.store, DATA, handle)
        source.intercept = noted(asked)
    replicator.queue.add([order(handle, *sources, lifetime_s=-1.0)])
    assert replicator.run_once() == 0
    assert only_failure(replicator)[0] == "token_expired"
    assert len(asked) == 1


def test_chunk_that_is_held_already_is_confirmed_without_a_source(store: MemoryStore, replicator: Replicator) -> None:
    handle = put(store, DATA).handle
    store.changes.acknowledge(store.changes.batch(100))
    replicator.queue.add([order(handle)])
    assert replicator.run_once() == 0
    assert added(store) == [handle]
    assert replicator.queue.status().failures == ()


def test_other_bytes_under_the_same_name_are_kept_and_told(store: MemoryStore, replicator: Replicator) -> None:
    put(store, b"other bytes", handle := new_chunk_handle())
    replicator.queue.add([order(handle)])
    assert replicator.run_once() == 0
    assert only_failure(replicator)[0] == "chunk_exists"
    assert content(store, handle) == b"other bytes"


@pytest.mark.parametrize("moment", ["create", "write", "publish"])
def test_own_disk_is_blamed_for_its_failure_and_no_other_source_is_asked(
    store: MemoryStore,
    replicator: Replicator,
    sources: list[MemoryChunkServer],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    handle = new_chunk_handle()
    put(sources[0].store, DATA, handle)
    asked: list[str] = []
    sources[1].intercept = noted(asked)
    if moment == "create":
        monkeypatch.setattr(store, "_capacity", 0)
    elif moment == "write":
        monkeypatch.setattr(store, "_capacity", 10)
    else:

        def publish(_writer: MemoryReplicaWriter) -> None:
            raise DiskFailed("it smokes")

        monkeypatch.setattr(MemoryReplicaWriter, "publish", publish)
    replicator.queue.add([order(handle, *sources)])
    assert replicator.run_once() == 0
    assert only_failure(replicator)[0] == ("disk_failed" if moment == "publish" else "disk_full")
    assert asked == []
    assert store.handles() == []
    assert store.space().free in (0, 10, CAPACITY), "what was written is given back"


def test_full_disk_of_a_source_is_not_taken_for_our_own(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer]
) -> None:
    handle = new_chunk_handle()
    put(sources[1].store, DATA, handle)

    def refuse(channel: Channel) -> bool:
        received = channel.receive(Deadline.after(30))
        channel.send(ErrorReply.of(DiskFull("mine")), Deadline.after(30), request_id=received.request_id)
        return False

    sources[0].intercept = refuse
    replicator.queue.add([order(handle, *sources)])
    assert replicator.run_once() == 1
    assert content(store, handle) == DATA


def test_bug_of_the_copier_is_reported_and_does_not_end_its_thread(
    store: MemoryStore,
    replicator: Replicator,
    sources: list[MemoryChunkServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handles = [new_chunk_handle() for _ in range(2)]
    for handle in handles:
        put(sources[0].store, DATA, handle)
    check = Replicator._check_wanted

    def stumble(self: Replicator, job: CopyJob) -> None:
        if job.order.handle == handles[0]:
            raise ZeroDivisionError
        check(self, job)

    monkeypatch.setattr(Replicator, "_check_wanted", stumble)
    replicator.queue.add([order(handle, sources[0]) for handle in handles])
    assert replicator.run_once() == 1
    assert only_failure(replicator)[0] == "internal"
    assert store.handles() == [handles[1]]


# --- while it runs ------------------------------------------------------------------------------------------


def in_thread(replicator: Replicator, stop: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=replicator.run, args=(stop,), daemon=True)
    thread.start()
    return thread


def test_chunk_that_is_deleted_meanwhile_is_not_published(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer]
) -> None:
    handle = put(sources[0].store, DATA).handle

    def delete(_channel: Channel) -> bool:
        replicator.queue.cancel([handle])
        return True

    sources[0].intercept = delete
    replicator.queue.add([order(handle, *sources)])
    assert replicator.run_once() == 0
    assert only_failure(replicator)[0] == "chunk_not_found"
    assert store.handles() == []


@pytest.mark.parametrize("how", ["silent source", "rate limit"])
def test_stop_in_the_middle_ends_soon_and_leaves_nothing(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer], how: str
) -> None:
    handle, data = new_chunk_handle(), os.urandom(2 * PIECE_SIZE)
    put(sources[0].store, data, handle)
    reached = threading.Event()

    def watch(channel: Channel) -> bool:
        reached.set()
        if how == "silent source":
            channel.wait_readable(Deadline.after(30))
            channel.receive(Deadline.after(30))  # and no answer
            channel.wait_readable(Deadline.after(30))
        return how != "silent source"

    sources[0].intercept = watch
    if how == "rate limit":
        replicator.limit_rate(1)  # one byte per second: the second piece comes in days
    replicator.queue.add([order(handle, sources[0], data=data)])
    thread = in_thread(replicator, threading.Event())
    assert reached.wait(30)
    replicator.close()
    thread.join(30)
    assert not thread.is_alive()
    assert store.handles() == []


def test_rate_limit_holds_ordinary_copies_and_lets_urgent_ones_pass(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer]
) -> None:
    handles = [new_chunk_handle() for _ in range(3)]
    for handle in handles:
        put(sources[0].store, DATA, handle)
    stop = threading.Event()
    replicator.limit_rate(1)
    replicator.queue.add([order(handles[0], sources[0])])
    assert replicator.run_once() == 1  # there was no debt yet
    replicator.queue.add([order(handles[1], sources[0])])
    thread = in_thread(replicator, stop)
    wait_until(lambda: replicator._channels != set(), soon())
    replicator.queue.add([order(handles[2], sources[0], urgent=True)])
    assert replicator.run_once() == 1, "the urgent one passes by"
    assert store.replica(handles[1]) is None
    replicator.queue.add([order(handles[1], sources[0], urgent=True)])  # it has become urgent itself
    wait_until(lambda: store.replica(handles[1]) is not None, soon())
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_lifted_rate_limit_frees_a_copy_that_waits(
    store: MemoryStore, replicator: Replicator, sources: list[MemoryChunkServer]
) -> None:
    handle, data = new_chunk_handle(), os.urandom(3 * PIECE_SIZE)
    put(sources[0].store, data, handle)
    stop = threading.Event()
    replicator.limit_rate(1)
    replicator.queue.add([order(handle, sources[0], data=data)])
    thread = in_thread(replicator, stop)
    wait_until(lambda: replicator._channels != set(), soon())
    replicator.limit_rate(0)
    wait_until(lambda: store.replica(handle) is not None, soon())
    stop.set()
    thread.join(30)
    assert content(store, handle) == data


def test_reads_for_copies_are_told_from_those_of_clients_and_give_way_to_them(
    store: MemoryStore, sources: list[MemoryChunkServer]
) -> None:
    handle = new_chunk_handle()
    data = os.urandom(3 * PIECE_SIZE)
    put(sources[0].store, data, handle)
    rests: list[float] = []

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rests.append(timeout or 0.0)
            return self.is_set()

    replicator = Replicator(store, KEY, OWN, is_serving_clients=lambda: True)
    replicator._closing = Closing()
    try:
        for urgent, count in ((True, 0), (False, 2)):  # an urgent copy does not rest, nor any after its last piece
            replicator.queue.add([order(handle, sources[0], data=data, urgent=urgent)])
            assert replicator.run_once() == 1
            assert len(rests) == count
            assert not sources[0].service.meter.is_serving_clients(), "a copy is no client"
            store.delete(handle)
    finally:
        replicator.close()
    with Channel.connect(sources[0].address, KEY, Deadline.after(30)) as channel:
        token = order(handle, sources[0], data=data).token
        channel.send(ReadChunk(handle, token, 0, BLOCK_SIZE), Deadline.after(30))
        expect(channel.receive(Deadline.after(30)).message, ReadChunkReply)
        channel.skip_payload(BLOCK_SIZE, Deadline.after(30))
        wait_until(sources[0].service.meter.is_serving_clients, soon())
