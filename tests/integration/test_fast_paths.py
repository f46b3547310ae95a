"""Do files survive everything on the fast paths, on the plain ways, and on one after the other?"""

from __future__ import annotations

import io
import random
import socket
from functools import partial
from pathlib import Path

import pytest

from dfs.client import DfsClient
from dfs.config import split_address
from dfs.fast_paths import VARIABLE, FastPath
from dfs.testing.cluster import WAIT_S, ClusterUnderTest, wait_until


def put_some(client: DfsClient, held: dict[str, bytes], name: str) -> None:
    """Store, replace and delete small files; `held` is what has to be there."""
    rng = random.Random(name)
    client.make_directory(f"/{name}")
    for number in range(40):
        path, data = f"/{name}/{number % 25}", rng.randbytes(rng.choice([1, 4096, 65536, 70_000, 300_000]))
        client.put(io.BytesIO(data), path, overwrite=True)
        held[path] = data
    for number in range(0, 25, 5):
        client.delete(f"/{name}/{number}", skip_trash=True)
        del held[f"/{name}/{number}"]


def check(client: DfsClient, held: dict[str, bytes]) -> None:
    assert {path: b"".join(client.read(path)) for path in held} == held


def kill_all_and_start(cluster: ClusterUnderTest) -> None:
    """Kill all chunk servers and start them again, with what the environment says now."""
    names = [server.name for server in cluster.config.chunk_servers]
    for name in names:
        cluster.kill(name)
    cluster.up()
    for server in cluster.config.chunk_servers:  # the leader takes them for alive for a while
        wait_until(partial(listens, server.address), WAIT_S, f"{server.name} listens again")


def listens(address: str) -> bool:
    try:
        socket.create_connection(split_address(address), timeout=5).close()
    except OSError:
        return False
    return True


def test_small_files_outlive_kills_and_a_change_of_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[str, bytes] = {}
    monkeypatch.setenv(VARIABLE, ",".join(FastPath))
    with ClusterUnderTest(tmp_path, chunk_servers=3) as cluster:
        for name, without in (("plain", list(FastPath)), ("fast", []), ("plain-again", list(FastPath))):
            monkeypatch.setenv(VARIABLE, ",".join(without))
            kill_all_and_start(cluster)
            with cluster.client() as client:
                check(client, held)
                put_some(client, held, name)
        kill_all_and_start(cluster)
        with cluster.client() as client:
            check(client, held)
