"""Does a read that failed say what it failed of?"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dfs.client.discovery import Masters
from dfs.client.pool import ChannelPool
from dfs.clock import Deadline
from dfs.errors import DeadlineExceeded, DfsError
from dfs.net.auth import ClusterKey
from dfs.net.messages import Stat, StatReply
from dfs.testing.memory_cluster import MemoryCluster


def test_a_read_whose_time_is_over_blames_no_master(tmp_path: Path) -> None:
    with MemoryCluster(tmp_path) as cluster, cluster.client(timeout_s=1) as client:
        client.put(io.BytesIO(b"data"), "/file")
        for server in cluster.chunk_servers:
            server.stop()
        with pytest.raises(DfsError, match="cannot be read") as caught:
            b"".join(client.read("/file"))
        for server in cluster.chunk_servers:
            assert server.address in str(caught.value)
        assert "the masters" not in str(caught.value)


def test_a_call_without_time_does_not_say_that_masters_cannot_be_reached() -> None:
    pool = ChannelPool(ClusterKey.from_secret(b"0" * 64, "test"))
    with pytest.raises(DeadlineExceeded, match="no time was left"):
        Masters("test", ("127.0.0.1:1",), pool).call(Stat("/"), StatReply, Deadline(0.0))
    pool.close()
