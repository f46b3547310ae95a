"""Does memory stay the same however large a file is? Real processes, told apart by the kernel's high-water marks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.config import MIB
from dfs.testing.cluster import ClusterUnderTest
from dfs.testing.memory_use import peak_size

PROGRAM = (sys.executable, "-P", "-m", "dfs.testing.memory_use")
SMALL, LARGE = 32, 320  # MiB of the two files
GROWTH_MAX = 48 * MIB  # what the larger one may need more: allocators differ from run to run; it is 288 MiB larger
CLIENT_MAX = 96 * MIB  # of a transfer over an idle client


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    folder = tmp_path_factory.mktemp("memory")
    with ClusterUnderTest(
        folder, masters=1, chunk_servers=1, chunk_size=8 * MIB, settings={"replication": "1", "fsync": "no"}
    ) as running:
        yield running


def transfer(cluster: ClusterUnderTest, work: str, mib: int, local: Path, *options: str) -> int:
    """Do one transfer in a process of its own; return the bytes it needed over an idle client."""
    done = subprocess.run(
        [*PROGRAM, str(cluster.config_path), work, f"/file-{mib}", str(local), str(mib), *options],
        capture_output=True,
        check=True,
        timeout=120,
    )
    sizes = json.loads(done.stdout)
    return int(sizes["peak"] - sizes["idle"])


def test_neither_client_nor_chunk_server_needs_more_memory_for_a_larger_file(
    cluster: ClusterUnderTest, tmp_path: Path
) -> None:
    pid = cluster.local.pids()["c1"]
    local = tmp_path / "file"
    needed: dict[tuple[str, int], int] = {}
    served: dict[int, int] = {}
    for mib in (SMALL, LARGE):
        works = {"put stream": (), "get": ("--network",), "read": ("--network",)}
        for work, options in works.items():
            needed[work, mib] = transfer(cluster, work, mib, local, *options)
        needed["read locally", mib] = transfer(cluster, "read", mib, local)
        assert local.stat().st_size == mib * MIB
        local.unlink()
        served[mib] = peak_size(pid)
    for work in ("put stream", "get", "read", "read locally"):
        assert needed[work, LARGE] <= CLIENT_MAX, (work, needed)
        assert needed[work, LARGE] - needed[work, SMALL] <= GROWTH_MAX, (work, needed)
    assert served[LARGE] - served[SMALL] <= GROWTH_MAX, served
