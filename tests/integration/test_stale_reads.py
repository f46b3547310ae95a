"""Do reads that allow an age go on without a leader, and never beyond that age? Real processes."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.errors import InvalidArgument, NoQuorum, NotFound
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(240)
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path, chunk_servers=2, settings={"replication": "2"}) as running:
        yield running


def test_one_master_alone_answers_old_reads_until_they_are_too_old(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        client.put(io.BytesIO(CONTENT), "/d/file", parents=True)
        leader = cluster.leader()
        left = next(name for name in ("m1", "m2", "m3") if name != leader)

        def is_known() -> bool:
            return any(a.name == left and a.status and 0 <= a.status.stale_s < 5 for a in client.admin.masters())

        written_s = time.monotonic()
        wait_until(lambda: is_known() and time.monotonic() - written_s > 1, 30, f"{left} knows its age")
    for name in ("m1", "m2", "m3"):
        if name != left:
            cluster.kill(name)
    with cluster.client(stale_s=3600) as client:
        assert client.stat("/d/file").size == len(CONTENT)
        assert [entry.path for entry in client.list("/d")] == ["file"]
        assert b"".join(client.read("/d/file")) == CONTENT
        with pytest.raises(NotFound):
            client.stat("/nowhere")
    for arguments in (["ls", "/d"], ["stat", "/d/file"], ["cat", "/d/file"], ["find", "/"], ["tree", "/"], ["du", "/"]):
        done = cluster.run_cli(*arguments, "--stale", "3600")
        assert done.returncode == 0, done.stderr
    with cluster.client(stale_s=0.5, timeout_s=5) as client, pytest.raises(NoQuorum):
        client.stat("/d/file")
    with cluster.client(timeout_s=5) as client, pytest.raises(NoQuorum):
        client.stat("/d/file")


def test_old_reads_are_never_older_than_they_may_be(cluster: ClusterUnderTest) -> None:
    """After waiting for the allowed age, every master's answer holds the change."""
    stale_s = 1.0
    with cluster.client() as writer, cluster.client(stale_s=stale_s) as reader:
        for number in range(5):
            writer.make_directory(f"/{number}")
            acknowledged_s = time.monotonic()
            wait_until(lambda then=acknowledged_s: time.monotonic() - then > stale_s, 30, "the age has passed")  # type: ignore[misc]
            for _ in range(9):  # three times at each master
                assert reader.exists(f"/{number}")


def test_an_age_that_cannot_be_is_refused(cluster: ClusterUnderTest) -> None:
    for wrong in (-1.0, 1e9):
        with pytest.raises(InvalidArgument, match="cannot be allowed"):
            cluster.client(stale_s=wrong)
    assert cluster.run_cli("ls", "--stale", "-1", "/").returncode == 2
