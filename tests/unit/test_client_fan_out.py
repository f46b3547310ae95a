"""Does a small chunk reach all its servers, and is the right one blamed when it does not? Both ways, real sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dfs.client.fan_out import FAN_OUT_SIZE_MAX
from dfs.client.lanes import Lanes
from dfs.client.local_replicas import LocalReplicas
from dfs.client.parallel import Cancellation
from dfs.client.plan import ServerHealth
from dfs.client.pool import ChannelPool
from dfs.client.replica_reads import ReplicaReader
from dfs.client.transfer import Transfer
from dfs.client.write_target import ChunkNotWritten, WriteTarget
from dfs.errors import Retry, TokenExpired
from dfs.fast_paths import VARIABLE
from dfs.ids import ChunkHandle
from dfs.testing.chunk_server import KEY, LoopbackChunkServer, soon, target_on, wait_until


@pytest.fixture
def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LoopbackChunkServer]]:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # power cuts are not in question here
    with ExitStack() as stack:
        made = []
        for name in ("a", "b", "c"):
            made.append(LoopbackChunkServer(tmp_path / name))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture(params=["", "fan-out"])
def transfer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Transfer]:
    """The fast way, and the one along the chain."""
    monkeypatch.setenv(VARIABLE, request.param)
    pool, health = ChannelPool(KEY), ServerHealth()
    yield Transfer(pool, health, ReplicaReader(pool, health, LocalReplicas(KEY, is_used=False), 10.0), Lanes(KEY))
    pool.close()


def store(transfer: Transfer, target: WriteTarget, data: bytes) -> ChunkHandle:
    chunk = transfer.store_chunk(target, memoryview(data), Cancellation())
    assert chunk.servers == tuple(server.server_id for server in target.chain)
    assert chunk.length == len(data)
    return chunk.handle


@pytest.mark.parametrize("size", [1, 4096, FAN_OUT_SIZE_MAX, FAN_OUT_SIZE_MAX + 1])
def test_all_servers_have_the_chunk_when_it_is_acknowledged(
    transfer: Transfer, servers: list[LoopbackChunkServer], size: int
) -> None:
    for count in (1, 3):
        handle = store(transfer, target_on(servers[:count]), os.urandom(size))
        assert all(server.store.verify(handle) for server in servers[:count])


@pytest.mark.parametrize("full", [0, 1, 2])
def test_the_server_that_refuses_is_the_one_to_leave_out(
    transfer: Transfer, servers: list[LoopbackChunkServer], full: int
) -> None:
    store(transfer, target_on(servers), b"before")
    servers[full].free = 0
    with pytest.raises(ChunkNotWritten) as failure:
        store(transfer, target_on(servers), b"in vain")
    assert "no disk of this chunk server has room" in failure.value.error.message
    assert failure.value.error.retry is Retry.OTHER
    assert [server.address for server in failure.value.failed] == [servers[full].address]
    others = [server for server in servers if server is not servers[full]]
    for text in (b"first", b"second"):  # no answer of the chunk that failed is taken for one of these
        handle = store(transfer, target_on(others), text)
        assert all(server.store.verify(handle) for server in others)


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_server_that_died_is_named(transfer: Transfer, servers: list[LoopbackChunkServer], dead: int) -> None:
    store(transfer, target_on(servers), b"before")
    servers[dead].close()
    with pytest.raises(ChunkNotWritten) as failure:
        store(transfer, target_on(servers), b"in vain")
    assert [server.address for server in failure.value.failed] == [servers[dead].address]


def test_a_token_that_is_too_old_is_nobodys_fault(transfer: Transfer, servers: list[LoopbackChunkServer]) -> None:
    with pytest.raises(ChunkNotWritten) as failure:
        store(transfer, target_on(servers, lifetime_s=-5.0), b"late")
    assert isinstance(failure.value.error, TokenExpired)
    assert failure.value.failed == ()


def test_connections_are_used_again(transfer: Transfer, servers: list[LoopbackChunkServer]) -> None:
    for _ in range(20):
        store(transfer, target_on(servers), b"again")
    wait_until(lambda: all(server.connections == 1 for server in servers), soon())
