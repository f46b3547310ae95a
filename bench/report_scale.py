"""Measure four chunk servers that hold 200,000 chunks: their start, their report pages at the leader, how they idle.

Owns: a cluster whose chunks are written straight into the servers' disks and made known by real commits. Refuses to
know: how reports are compared.
Usage: python -m bench.report_scale [chunks of each server] [bytes of each] [volumes | files]
"""

from __future__ import annotations

import os
import re
import tempfile
import time
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.chunk_server_scale import IDLE_S, WAIT_S, cpu_s, fill, read_words
from dfs.checksum import crc32c
from dfs.client import DfsClient
from dfs.clock import Deadline
from dfs.config import load_config
from dfs.ids import ChunkHandle, ServerId
from dfs.local.cluster import LocalCluster
from dfs.local.ports import free_ports
from dfs.net.messages import REPORT_PAGE_MAX, CommitFile, StatReply
from dfs.net.parts import NewChunk, NewExtent
from dfs.testing.cluster import ClusterUnderTest, wait_until

NAMES = ("c1", "c2", "c3", "c4")
CHUNKS_PER_FILE = 1000
SETTINGS = {"heartbeat_interval": "1 s", "dead_after": "10 s", "repair_after": "1 h", "scrub_period": "0 s"}


def cluster_with_metrics(folder: Path) -> ClusterUnderTest:
    """Return a cluster, not yet started, whose masters show their metrics."""
    made = ClusterUnderTest(folder, masters=3, chunk_servers=len(NAMES), settings=SETTINGS)
    ports = iter(free_ports(3))
    lines = [
        f"{line}\nmetrics_address = 127.0.0.1:{next(ports)}" if line.startswith("[master:") else line
        for line in made.config_path.read_text().splitlines()
    ]
    made.config_path.write_text("\n".join(lines) + "\n")
    made.config = load_config(made.config_path)
    made.local = LocalCluster(made.config)
    return made


def commit(client: DfsClient, server: ServerId, name: str, handles: list[ChunkHandle], data: bytes) -> None:
    """Make the chunks of one server known, as files of many chunks with one replica."""
    crc = crc32c(data)
    for start in range(0, len(handles), CHUNKS_PER_FILE):
        chunks = tuple(
            NewChunk(handle, len(data), crc, (server,)) for handle in handles[start : start + CHUNKS_PER_FILE]
        )
        extents = tuple(NewExtent(number, 0, len(data)) for number in range(len(chunks)))
        path = f"/{name}-{start}"
        client._calls.call(  # no client commits chunks that it has not written
            lambda call, path=path, chunks=chunks, extents=extents: CommitFile(call, path, chunks, extents, 1),  # type: ignore[misc]
            StatReply,
            Deadline.after(WAIT_S),
        )


def pages_at(address: str) -> tuple[int, float]:
    """Return how many report pages a master has answered, and the seconds from their arrival to their answer."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        found = {
            sample.name: sample.value
            for family in families
            for sample in family.samples
            if sample.labels.get("message") == "ChunkReport" or sample.labels.get("request") == "ChunkReport"
        }
    return int(found.get("dfs_master_request_seconds_count", 0)), found.get("dfs_master_request_seconds_sum", 0.0)


def life(cluster: ClusterUnderTest, name: str) -> str:
    """Return what the present life of a chunk server has logged."""
    return cluster.log_of(name).rpartition("stopped")[2]


def measure(cluster: ClusterUnderTest, count: int, size: int, kind: str) -> None:
    data = os.urandom(size)
    with cluster, cluster.client(timeout_s=60) as client:
        ids = {server.info.name: server.info.server_id for server in client.cluster_status().servers}
        leader = cluster.leader()
        for name in NAMES:
            cluster.stop(name)
            handles = fill(cluster.config.chunk_server(name).data_dirs[0], count, data, kind)
            commit(client, ids[name], name, handles, data)
        print(
            f"{len(NAMES) * count:,} chunks of {size:,} bytes written into {kind} of {len(NAMES)} servers", flush=True
        )
        pids, address = cluster.local.pids(), cluster.config.master(leader).metrics_address
        before, before_cpu_s, began_s = pages_at(address), cpu_s(pids[leader]), time.perf_counter()
        for name in NAMES:
            cluster.start(name)
        for name in NAMES:
            wait_until(lambda name=name: "store_opened" in life(cluster, name), WAIT_S, f"{name} is open")  # type: ignore[misc]
        print(f"all {len(NAMES)} started at once; open after {time.perf_counter() - began_s:.2f} s")
        reported = re.compile(rf"reported .*replicas={count}\b")
        for name in NAMES:
            wait_until(lambda name=name: bool(reported.search(life(cluster, name))), WAIT_S, f"{name} has reported")  # type: ignore[misc]
        lasted_s, used_s = time.perf_counter() - began_s, cpu_s(pids[leader]) - before_cpu_s
        pages, spent_s = (after - earlier for after, earlier in zip(pages_at(address), before, strict=True))
        print(f"all reports are through after {lasted_s:.2f} s: {pages} pages of at most {REPORT_PAGE_MAX:,} replicas")
        print(f"leader: {1000 * used_s / pages:.1f} ms of processor a page with all it did meanwhile; from the arrival")
        print(f"  of a page to its answer {1000 * spent_s / pages:.1f} ms, all four servers reporting at once")
        status = client.cluster_status()
        print(
            f"known as kept: {sum(server.chunk_count for server in status.servers):,} replicas; missing: "
            f"{status.space.missing}"
        )
        compared = re.compile(rf"report_compared .*replicas={count}\b")
        wait_until(
            lambda: len(compared.findall(cluster.log_of(leader))) >= len(NAMES), WAIT_S, "the leader has compared all"
        )
        pids = cluster.local.pids()
        watched = [leader, *NAMES]
        began_s, begun = time.perf_counter(), {name: cpu_s(pids[name]) for name in watched}
        time.sleep(IDLE_S)
        lasted_s = time.perf_counter() - began_s
        shares = (f"{name} {(cpu_s(pids[name]) - begun[name]) / lasted_s:.2%}" for name in watched)
        print("idle, of a core: " + "  ".join(shares))


def main() -> None:
    count, size, kind = read_words()
    with tempfile.TemporaryDirectory(prefix="dfs-bench-") as folder:
        measure(cluster_with_metrics(Path(folder)), count, size, kind)


if __name__ == "__main__":
    main()
