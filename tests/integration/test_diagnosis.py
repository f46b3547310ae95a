"""Do fsck, explain, doctor, admin report and the metrics tell the truth about real processes, whole and half dead?"""

from __future__ import annotations

import io
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dfs.config import load_config
from dfs.ids import id_text
from dfs.local.cluster import LocalCluster
from dfs.local.ports import free_ports
from dfs.testing.cluster import WAIT_S, ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(240)
SIZES = [150_000] * 11 + [2_500_000]  # chunks that share a file on the disk, and three with files of their own
CHUNKS = 14
OF_THE_CLUSTER = {"ports", "versions", "clocks", "quorum", "journal", "servers", "chunks"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterUnderTest]:
    """Return a cluster that shows metrics and repairs nothing while a test looks."""
    made = ClusterUnderTest(
        tmp_path,
        chunk_size=1 << 20,
        settings={"repair_after": "1 h", "heartbeat_interval": "500 ms", "dead_after": "5 s"},
    )
    ports = iter(free_ports(7))
    lines = [
        f"{line}\nmetrics_address = 127.0.0.1:{next(ports)}" if line.startswith(("[master:", "[chunk:")) else line
        for line in made.config_path.read_text().splitlines()
    ]
    made.config_path.write_text("\n".join(lines) + "\n")
    made.config = load_config(made.config_path)
    made.local = LocalCluster(made.config)
    with made as running:
        yield running


def run_json(cluster: ClusterUnderTest, *arguments: str) -> tuple[int, Any]:
    done = cluster.run_cli(*arguments, "--json")
    assert done.stdout, f"{arguments} said nothing but {done.stderr!r}"
    return done.returncode, json.loads(done.stdout)


def scraped(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {
            sample.name + "".join(f"|{value}" for _, value in sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }


def test_the_tools_tell_of_a_cluster_that_is_whole_then_damaged_then_half_dead(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        client.make_directory("/d")
        for number, size in enumerate(SIZES):
            client.put(io.BytesIO(bytes([number]) * size), f"/d/f{number:02}")
        client.put(io.BytesIO(b"old"), "/old")
        client.delete("/old")
    check_whole(cluster)
    check_metrics(cluster)
    check_damage_is_found(cluster)
    check_a_dead_server_is_explained(cluster)
    check_without_a_majority(cluster)


def check_whole(cluster: ClusterUnderTest) -> None:
    code, fsck = run_json(cluster, "fsck", "/", "--files", "--locations")
    assert (code, fsck["summary"]["is_healthy"]) == (0, True)
    assert (fsck["summary"]["file_count"], fsck["summary"]["chunk_count"]) == (len(SIZES), CHUNKS)
    assert all(len(chunk["replicas"]) == 3 for file in fsck["files"] for chunk in file["chunks"])
    told: list[dict[str, str]] = []

    def is_nothing_wrong() -> bool:
        told[:] = run_json(cluster, "doctor")[1]["findings"]
        return all(finding["level"] == "OK" for finding in told if finding["topic"] in OF_THE_CLUSTER)

    wait_until(is_nothing_wrong, WAIT_S, "the doctor finds nothing wrong (heartbeats are late on a busy machine)")
    assert {finding["topic"] for finding in told} >= OF_THE_CLUSTER | {"config", "secret", "disk"}
    report = cluster.run_cli("admin", "report").stdout.decode()
    assert f"in {len(SIZES)} files, 1 directory\n" in report
    assert len(re.findall(r"State: +(?:alive|late|slow), heartbeat", report)) == 4
    deleted = cluster.run_cli("explain", "/old")
    assert b"`dfs undelete /old` brings it back until" in deleted.stdout


def check_metrics(cluster: ClusterUnderTest) -> None:
    """What was done is counted; on a busy machine some of it is done twice, or another master has come to lead."""
    page: dict[str, float] = {}

    def is_told() -> bool:
        page.update(scraped(cluster.config.master(cluster.leader()).metrics_address))
        told = (page["dfs_files"], page.get("dfs_chunks_by_live_replicas|3+"), page.get("dfs_chunk_servers|dead"))
        return told == (len(SIZES), CHUNKS + 1, 0)

    wait_until(is_told, WAIT_S, "the leader tells of all files, chunks and servers")
    assert page["dfs_master_journal_sync_seconds_count"] > 0
    pages = [scraped(master.metrics_address) for master in cluster.config.masters]
    commits = sum(found.get("dfs_master_request_seconds_count|CommitFile", 0) for found in pages)
    assert len(SIZES) + 1 <= commits < 2 * len(SIZES)
    wait_until(
        lambda: sum(scraped(m.metrics_address)["dfs_master_is_leader"] for m in cluster.config.masters) == 1,
        WAIT_S,
        "one master says that it leads",
    )
    servers = [scraped(server.metrics_address) for server in cluster.config.chunk_servers]
    received, stored = sum(found["dfs_chunk_received_bytes_total"] for found in servers), 3 * (sum(SIZES) + 3)
    assert stored <= received < 2 * stored
    writes, wanted = sum(found["dfs_chunk_write_seconds_count"] for found in servers), 3 * (CHUNKS + 1)
    assert wanted <= writes < 2 * wanted
    assert all(found["dfs_chunk_heartbeat_age_seconds"] < WAIT_S for found in servers)


def check_damage_is_found(cluster: ClusterUnderTest) -> None:
    _, before = run_json(cluster, "fsck", "/", "--files", "--locations")
    used = {chunk["handle"] for file in before["files"] for chunk in file["chunks"]}
    replica = next(replica for replica in cluster.replicas("c1") if id_text(replica.handle) in used)
    replica.damage()
    code, fsck = run_json(cluster, "fsck", "/", "--verify")
    assert (code, fsck["summary"]["corrupt_replicas"]) == (1, 1)
    (file,) = fsck["files"]
    (chunk,) = [chunk for chunk in file["chunks"] if "corrupt" in chunk["problems"]]
    assert chunk["handle"] == id_text(replica.handle)
    assert [found["state"] for found in chunk["replicas"] if found["server"] == "c1"] == ["corrupt"]
    assert (fsck["summary"]["is_readable"], fsck["summary"]["verified_replicas"]) == (True, 3 * CHUNKS)


def check_a_dead_server_is_explained(cluster: ClusterUnderTest) -> None:
    cluster.kill("c4")

    def is_dead() -> bool:
        return b"c4" in cluster.run_cli("admin", "report", "--dead").stdout

    wait_until(is_dead, WAIT_S, "c4 counts as dead", interval_s=0.5)
    code, fsck = run_json(cluster, "fsck", "/d")
    assert (code, fsck["summary"]["is_healthy"], fsck["summary"]["is_readable"]) == (1, False, True)
    path = next(
        file["path"]
        for file in fsck["files"]
        if any(
            chunk["live"] == 2 and found["server"] == "c4" for chunk in file["chunks"] for found in chunk["replicas"]
        )
    )
    text = cluster.run_cli("explain", path).stdout.decode()
    assert re.search(r"c4 \(rack r4, 127\.0\.0\.1:\d+\) is dead: silent for ", text)
    assert re.search(r"Next: c4 is silent for \S+; its replicas are copied to \S+ from 1h00m on, in about \S+\.", text)
    findings = run_json(cluster, "doctor")[1]["findings"]
    dead = [f for f in findings if f["topic"] == "servers" and f["level"] == "FAIL"]
    assert len(dead) == 1
    assert dead[0]["where"].startswith("c4 (")


def check_without_a_majority(cluster: ClusterUnderTest) -> None:
    leader = cluster.leader()
    for name in [master.name for master in cluster.config.masters if master.name != leader]:
        cluster.kill(name)
    assert cluster.run_cli("fsck", "/", "--timeout", "3").returncode == 4
    code, doctor = run_json(cluster, "doctor", "--timeout", "5")
    assert code == 1
    levels = {(finding["topic"], finding["level"]) for finding in doctor["findings"]}
    assert ("quorum", "FAIL") in levels
    assert ("config", "OK") in levels
    assert sum(f["topic"] == "ports" and f["level"] == "FAIL" for f in doctor["findings"]) == 3
