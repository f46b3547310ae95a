"""Do bytes survive the death of chunk servers in the middle of transfers? Real processes, kill -9."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.testing.cluster import ClusterUnderTest

pytestmark = pytest.mark.timeout(240)
SIZE = 192 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path, chunk_size=4 << 20) as running:
        yield running


class KillAt:
    """A progress callback that runs `action` once, when `size` bytes have moved."""

    def __init__(self, size: int, action: object) -> None:
        self._left = size
        self._action = action
        self._lock = threading.Lock()
        self.has_fired = False

    def __call__(self, count: int) -> None:
        with self._lock:
            self._left -= count
            is_due = self._left <= 0 and not self.has_fired
            self.has_fired |= is_due
        if is_due:
            assert callable(self._action)
            self._action()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "paused"])
def test_a_chunk_server_lost_during_put_costs_no_byte(
    cluster: ClusterUnderTest, tmp_path: Path, how: signal.Signals
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(SIZE))
    progress = KillAt(SIZE // 3, lambda: cluster.kill("c2", how))
    with cluster.client() as client:
        client.put(source, "/file", progress=progress)
        assert progress.has_fired
        assert b"".join(client.read("/file")) == source.read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "paused"])
def test_a_chunk_server_lost_during_get_costs_no_byte(
    cluster: ClusterUnderTest, tmp_path: Path, how: signal.Signals
) -> None:
    content = os.urandom(SIZE)
    target = tmp_path / "target"
    progress = KillAt(SIZE // 3, lambda: cluster.kill("c1", how))
    with cluster.client() as client:
        client.put(io.BytesIO(content), "/file")
        client.get("/file", target, progress=progress)
    assert progress.has_fired
    assert target.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_two_of_four_chunk_servers_dead_still_read_everything(cluster: ClusterUnderTest) -> None:
    content = os.urandom(24 << 20)
    with cluster.client() as client:
        client.put(io.BytesIO(content), "/file")
        cluster.kill("c1")
        cluster.kill("c4")
        assert b"".join(client.read("/file")) == content


def test_a_restarted_chunk_server_serves_its_chunks_again(cluster: ClusterUnderTest) -> None:
    content = os.urandom(24 << 20)
    with cluster.client() as client:
        client.put(io.BytesIO(content), "/file", replication=1)
        for name in ("c1", "c2", "c3", "c4"):
            cluster.kill(name)
        for name in ("c1", "c2", "c3", "c4"):
            cluster.start(name)
        cluster.wait_healthy(60)
        assert b"".join(client.read("/file")) == content


def test_a_flipped_byte_on_disk_is_never_served(cluster: ClusterUnderTest) -> None:
    """One replica of each chunk is damaged; the reader gets the right bytes and the bad replica is quarantined."""
    content = os.urandom(12 << 20)
    with cluster.client() as client:
        client.put(io.BytesIO(content), "/file")
        damaged = 0
        for replica in cluster.replicas("c1"):
            replica.damage()
            damaged += 1
        for _ in range(6):  # whichever replica is asked first
            assert b"".join(client.read("/file")) == content
    assert damaged > 0
