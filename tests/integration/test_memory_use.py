"""Does memory stay the same however large a file is? Real processes, told apart by the kernel's high-water marks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.client import ReadRules, local_replicas
from dfs.config import MIB
from dfs.testing.cluster import ClusterUnderTest
from dfs.testing.memory_use import peak_size

PROGRAM = (sys.executable, "-P", "-m", "dfs.testing.memory_use")
SMALL, LARGE = 32, 320  # MiB of the two files
GROWTH_MAX = 48 * MIB  # what the larger one may need more: allocators differ from run to run; it is 288 MiB larger
CLIENT_MAX = 96 * MIB  # of a transfer over an idle client

pytestmark = pytest.mark.usefixtures("all_fast_paths")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    folder = tmp_path_factory.mktemp("memory")
    with ClusterUnderTest(
        folder, masters=1, chunk_servers=1, chunk_size=8 * MIB, settings={"replication": "1", "fsync": "no"}
    ) as running:
        yield running


def transfer(cluster: ClusterUnderTest, work: str, mib: int, local: Path, *options: str) -> dict[str, int]:
    """Do one transfer in a process of its own; return what it tells of itself."""
    done = subprocess.run(
        [*PROGRAM, str(cluster.config_path), work, f"/file-{mib}", str(local), str(mib), *options],
        capture_output=True,
        check=True,
        timeout=120,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_neither_client_nor_chunk_server_needs_more_memory_for_a_larger_file(
    cluster: ClusterUnderTest, tmp_path: Path
) -> None:
    pid = cluster.local.pids()["c1"]
    local = tmp_path / "file"
    needed: dict[tuple[str, int], int] = {}
    served: dict[int, int] = {}
    for mib in (SMALL, LARGE):
        for work, options in (("put stream", ()), ("get", ("--network",)), ("read", ("--network",)), ("read", ())):
            told = transfer(cluster, work, mib, local, *options)
            needed[f"{work} {options}", mib] = told["peak"] - told["idle"]
            if options:
                assert (told["local"], bool(told["remote"])) == (0, True)
        assert local.stat().st_size == mib * MIB
        local.unlink()
        served[mib] = peak_size(pid)
    for work in {work for work, _ in needed}:
        assert needed[work, LARGE] <= CLIENT_MAX, (work, needed)
        assert needed[work, LARGE] - needed[work, SMALL] <= GROWTH_MAX, (work, needed)
    assert served[LARGE] - served[SMALL] <= GROWTH_MAX, served


def test_readers_of_a_real_chunk_server_are_handed_its_open_files_unless_they_do_not_want_them(
    cluster: ClusterUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_replicas, "DOOR_TIMEOUT_S", 60.0)  # also where a busy machine is slow to open it
    data = os.urandom(8 * MIB)
    with cluster.client() as client:
        client.put(io.BytesIO(data), "/handed-over")
        assert b"".join(client.read("/handed-over")) == data
        with client.open("/handed-over") as file:
            assert file.read_at(5 * MIB, 1000) == data[5 * MIB : 5 * MIB + 1000]
        assert client.read_counts.local, "what was written a moment ago is in memory"
    with cluster.client(reads=ReadRules(local=False)) as client:
        assert b"".join(client.read("/handed-over")) == data
        assert client.read_counts.local == 0
