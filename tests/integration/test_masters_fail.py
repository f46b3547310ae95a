"""Do names and files survive the death of masters? Real processes, kill -9."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.clock import Deadline
from dfs.errors import DfsError, NoQuorum
from dfs.testing.cluster import ClusterUnderTest

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path, chunk_size=8 << 20) as running:
        yield running


def random_file(path: Path, size: int) -> str:
    """Write `size` random bytes; return their SHA-256."""
    digest, seed = hashlib.sha256(), random.Random(size)
    with path.open("wb") as file:
        while size:
            piece = seed.randbytes(min(size, 4 << 20))
            digest.update(piece)
            size -= file.write(piece)
    return digest.hexdigest()


def sha256_of(pieces: Iterator[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def test_leader_killed_in_the_middle_of_a_1_gib_put_loses_nothing(cluster: ClusterUnderTest, tmp_path: Path) -> None:
    source = tmp_path / "big"
    expected = random_file(source, 1 << 30)
    half_way = threading.Event()
    sent = 0

    def progress(count: int) -> None:
        nonlocal sent
        sent += count
        if sent >= 1 << 29:
            half_way.set()

    def kill_leader() -> None:
        half_way.wait(120)
        cluster.kill(cluster.leader())

    killer = threading.Thread(target=kill_leader)
    killer.start()
    with cluster.client() as client:
        status = client.put(source, "/big", progress=progress)
        killer.join()
        assert half_way.is_set()
        assert status.size == 1 << 30
        assert sha256_of(client.read("/big")) == expected


def test_leader_killed_during_1000_small_calls_loses_and_doubles_nothing(cluster: ClusterUnderTest) -> None:
    """Every acknowledged call took effect exactly once, though each fifth of them sees a leader die."""
    killed: list[str] = []
    with cluster.client() as client:
        client.make_directory("/calls")
        for number in range(1000):
            if number in (200, 500, 800):
                killed.append(cluster.leader())
                cluster.kill(killed[-1])
            if number in (350, 650, 950):
                cluster.start(killed[-1])
            # Neither call forgives a doubled effect: mkdir would say AlreadyExists, a second rename NotFound.
            client.make_directory(f"/calls/{number}")
            client.rename(f"/calls/{number}", f"/calls/renamed-{number}")
        names = [entry.path for entry in client.list("/calls")]
    assert sorted(names) == sorted(f"renamed-{number}" for number in range(1000))


def test_calls_resume_after_the_death_of_any_one_master(cluster: ClusterUnderTest) -> None:
    for name in ("m1", "m2", "m3"):
        cluster.kill(name)
        with cluster.client() as client:
            client.make_directory(f"/without-{name}")
        cluster.start(name)
        cluster.wait_healthy(60)
    with cluster.client() as client:
        assert [entry.path for entry in client.list("/")] == ["without-m1", "without-m2", "without-m3"]


def test_two_masters_dead_is_a_clear_error_and_heals_when_one_is_back(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        client.make_directory("/before")
    cluster.kill("m1")
    cluster.kill("m2")
    with cluster.client(timeout_s=6) as client:
        with pytest.raises(DfsError) as failure:
            client.make_directory("/during")
        assert isinstance(failure.value, NoQuorum) or "quorum" in str(failure.value)
        with pytest.raises(NoQuorum):
            client.stat("/before")
    cluster.start("m1")
    with cluster.client(timeout_s=60) as client:
        assert client.stat("/before").path == "/before"
        client.make_directory("/after")


def test_a_paused_leader_is_replaced_and_its_return_is_harmless(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        client.make_directory("/first")
        paused = cluster.leader()
        cluster.kill(paused, signal.SIGSTOP)
        client.make_directory("/second")
        cluster.kill(paused, signal.SIGCONT)
        client.make_directory("/third")
        assert [entry.path for entry in client.list("/")] == ["first", "second", "third"]


def test_everything_killed_at_once_loses_nothing_acknowledged(cluster: ClusterUnderTest, tmp_path: Path) -> None:
    content = os.urandom(20 << 20)
    with cluster.client() as client:
        client.put(io.BytesIO(content), "/file")
        for number in range(100):
            client.put(io.BytesIO(str(number).encode()), f"/small-{number}")
    for name in cluster.names():
        cluster.kill(name)
    for name in cluster.names():
        cluster.start(name)
    cluster.wait_healthy(60)
    with cluster.client() as client:
        assert b"".join(client.read("/file")) == content
        assert [b"".join(client.read(f"/small-{n}")) for n in range(100)] == [str(n).encode() for n in range(100)]


def test_all_masters_restarted_politely_serve_the_same_tree(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        client.make_directory("/a/b/c", parents=True)
    for name in ("m1", "m2", "m3"):
        cluster.stop(name)
    for name in ("m1", "m2", "m3"):
        cluster.start(name)
    with cluster.client(timeout_s=60) as client:
        assert client.stat("/a/b/c").path == "/a/b/c"


def test_a_leader_is_found_again_within_the_deadline_of_one_call(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        client.make_directory("/x")
        cluster.kill(cluster.leader())
        deadline = Deadline.after(30)
        client.stat("/x")
        assert not deadline.has_passed
