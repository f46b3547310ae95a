"""Are replicas of the own machine let go of when there are no threads, when looking after them fails, after a fork?"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfs.checksum import block_checksums, crc32c
from dfs.client import local_replicas
from dfs.client.extent_table import ExtentTable
from dfs.client.held_file import OpenFile
from dfs.client.local_replicas import LocalReplica, LocalReplicas
from dfs.client.local_volumes import let_go
from dfs.client.open_file import DfsFile
from dfs.client.plan import ServerHealth
from dfs.client.pool import ChannelPool
from dfs.client.replica_reads import ReplicaReader
from dfs.clock import Deadline
from dfs.ids import ChunkHandle, ServerId
from dfs.net.auth import ClusterKey
from dfs.net.messages import STORE_SIZE_MAX, LocateReply, Message, OpenReplica, OpenReplicaReply
from dfs.net.parts import FileStatus, Kind, LocatedExtent, ServerInfo
from dfs.testing.chunk_server import wait_until
from dfs.testing.forks import is_refused_in_a_child

pytestmark = pytest.mark.usefixtures("all_fast_paths")

WAIT_S = 20.0
KEY = ClusterKey.from_secret(b"k" * 32, "test")
DATA = os.urandom(STORE_SIZE_MAX + 1)
SERVER = ServerInfo(ServerId(b"s" * 16), "c1", "127.0.0.1:1", "", is_alive=True)
EXTENT = LocatedExtent(ChunkHandle(b"h" * 16), 0, len(DATA), len(DATA), crc32c(DATA), b"token", (0,))


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalReplicas]:
    """Replicas of a server that hands over the one that it has, by a door that nobody has to enter."""
    path = tmp_path / "replica"
    path.write_bytes(DATA)

    def asked(_: LocalReplicas, __: ServerInfo, request: Message, ___: type) -> tuple[OpenReplicaReply, int]:
        assert isinstance(request, OpenReplica)
        reply = OpenReplicaReply(len(DATA), crc32c(DATA), block_checksums(memoryview(DATA)))
        return reply, os.open(path, os.O_RDONLY)

    monkeypatch.setattr(local_replicas, "WATCH_S", 0.01)
    monkeypatch.setattr(local_replicas, "READ_FLAGS", 0)
    monkeypatch.setattr(LocalReplicas, "_ask", asked)
    replicas = LocalReplicas(KEY)
    yield replicas
    replicas.close()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)


def found(local: LocalReplicas) -> LocalReplica:
    replica = local.find(SERVER, EXTENT)
    assert replica is not None
    return replica


def is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


def test_without_a_thread_a_replica_is_read_and_not_held(
    local: LocalReplicas, no_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = memoryview(bytearray(len(DATA)))
    assert found(local).read(0, buffer)
    assert buffer == DATA
    assert not local.holders(), "nobody would let go of it"
    monkeypatch.undo()


def test_what_is_held_is_looked_after_as_soon_as_there_are_threads(
    local: LocalReplicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    refusals = [RuntimeError("can't start new thread")]

    def refused(thread: threading.Thread) -> None:
        if refusals:
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    found(local)
    found(local)
    monkeypatch.setattr(local_replicas, "IDLE_S", 0.0)
    wait_until(lambda: not local.holders(), Deadline.after(WAIT_S))


def test_a_removed_file_is_let_go_of_without_a_thread(no_threads: None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    files = [OpenFile(fd)]
    path.unlink()
    let_go(files)
    assert is_closed(fd)


def test_one_look_that_fails_is_not_the_last(local: LocalReplicas, monkeypatch: pytest.MonkeyPatch) -> None:
    open_doors: Callable[[LocalReplicas], set[ServerId]] = LocalReplicas._open_doors
    bugs = [ZeroDivisionError()]

    def looked(replicas: LocalReplicas) -> set[ServerId]:
        if bugs:
            raise bugs.pop()
        return open_doors(replicas)

    monkeypatch.setattr(LocalReplicas, "_open_doors", looked)
    found(local)
    monkeypatch.setattr(local_replicas, "IDLE_S", 0.0)
    wait_until(lambda: not local.holders(), Deadline.after(WAIT_S))
    assert not bugs


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_an_open_file_is_not_shared_with_a_forked_child(local: LocalReplicas) -> None:
    """Whatever lock is held at the fork, by a thread that the child does not have, nobody waits for it there."""
    status = FileStatus("/f", Kind.FILE, len(DATA), len(DATA), 0, 1, 1, 1, 1)
    reader = ReplicaReader(ChannelPool(KEY), ServerHealth(), local, WAIT_S)
    table = ExtentTable(LocateReply(status, 0, (EXTENT,), (SERVER,), False), lambda _: pytest.fail("one page is all"))
    file = DfsFile(
        status,
        table,
        reader,
        sealed_size=len(DATA),
        stream=lambda _start, _end: pytest.fail("no stream"),
        relocate=lambda _plan, _deadline: pytest.fail("nothing has moved"),
        parallel=1,
    )
    assert file.read_at(5, 5) == DATA[5:10]
    with local._lock, table._lock, reader._lock:
        assert is_refused_in_a_child(
            (lambda: file.read_at(5, 5), lambda: file.read(5), lambda: reader.at_hand(EXTENT, (SERVER,))),
            (file.close,),
            wait_s=WAIT_S,
        )
    assert file.read_at(5, 5) == DATA[5:10]
