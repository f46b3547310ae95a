"""Does `dfs chaos` break a real cluster within its bounds, judge it, and leave nothing broken, whatever ends it?

One cluster of `dfs up` for what users do to their own; a throw-away cluster for the whole scenario at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.chaos.guard import troubles
from dfs.chaos.watch import Watch
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(240)
CLEAN, REFUSED = 0, 2
SETTINGS = {"replication": "2", "dead_after": "8 s", "repair_after": "10 s"}  # a busy machine is no dead one


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path_factory.mktemp("own"), settings=SETTINGS, chunk_servers=3) as made:
        yield made


@pytest.fixture
def environ(cluster: ClusterUnderTest, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DFS_CONFIG": str(cluster.config_path),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TMPDIR": str(tmp_path),
    }


def begin(environ: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "dfs", "chaos", *arguments]
    return subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )


def chaos(environ: dict[str, str], code: int, *arguments: str) -> str:
    process = begin(environ, *arguments)
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, (out.decode(), err.decode())
    return out.decode() + err.decode()


def names_below_root(cluster: ClusterUnderTest) -> list[str]:
    with cluster.client() as client:
        return [entry.path for entry in client.list("/")]


def wait_whole(cluster: ClusterUnderTest) -> None:
    watch = Watch(cluster.config)
    try:
        wait_until(lambda: not troubles(watch.look()), 60, "the cluster is whole")
    finally:
        watch.close()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_throw_away_cluster_is_broken_judged_and_gone(environ: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "report"
    kinds = [word for kind in ("kill-leader", "pause-server", "wipe-server") for word in ("--fault", kind)]
    run = ["run", "--throw-away", "--yes", "--seed", "4", "--for", "9s", "--outage-max", "1500ms", *kinds]
    text = chaos(environ, CLEAN, *run, "--report", str(report))
    assert "CLEAN" in text
    found: dict[str, Any] = json.loads((report / "report.json").read_text())
    assert found["outcome"] == "clean"
    assert len(found["moments"]) >= 2, text
    assert all(promise["broken"] == [] for promise in found["verdict"]["promises"])
    assert all(found["verdict"]["calls"].get(f"{name} done", 0) > 5 for name in ("touch", "put", "read", "append"))
    assert (report / "timeline.svg").read_text().count("<polyline") >= 3
    assert not list(tmp_path.glob("dfs-chaos-*")), "the cluster's folder is gone"
    assert not list((tmp_path / "state").rglob("*.undo")), "nothing is left to undo"
    assert chaos(environ, CLEAN, "report", str(report)).startswith("CLEAN")


def test_a_run_that_is_killed_is_undone_and_blocks_the_next_one(
    cluster: ClusterUnderTest, environ: dict[str, str]
) -> None:
    """Killed with -9 while a daemon of the user's cluster is paused: `dfs chaos undo` resumes it and cleans up."""
    wait_whole(cluster)
    before = cluster.local.pids()
    run = ["run", "--yes", "--seed", "1", "--for", "100s", "--outage-min", "90s", "--outage-max", "90s"]
    process = begin(environ, *run, "--fault", "pause-server")
    try:
        wait_until(lambda: any(state_of(pid) == "T" for pid in before.values()), 60, "a chunk server is paused")
    finally:
        process.kill()
        process.communicate()
    assert "dfs chaos undo" in chaos(environ, REFUSED, "run", "--yes", "--fault", "kill-leader")
    assert "SIGCONT" in chaos(environ, CLEAN, "undo", "--list")
    assert any(state_of(pid) == "T" for pid in before.values()), "a list changes nothing"
    chaos(environ, CLEAN, "undo")
    assert cluster.local.pids() == before
    assert all(state_of(pid) != "T" for pid in before.values())
    wait_whole(cluster)
    assert names_below_root(cluster) == []
    assert "nothing is left" in chaos(environ, CLEAN, "undo")


def test_a_run_that_is_told_to_end_undoes_all_and_concludes_nothing(
    cluster: ClusterUnderTest, environ: dict[str, str], tmp_path: Path
) -> None:
    wait_whole(cluster)
    run = ["run", "--yes", "--seed", "1", "--for", "100s", "--outage-min", "90s", "--outage-max", "90s"]
    process = begin(environ, *run, "--fault", "kill-follower", "--report", str(tmp_path / "report"))
    wait_until(lambda: len(cluster.local.pids()) == 5, 60, "a follower is killed")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == REFUSED, (out.decode(), err.decode())
    assert "SIGTERM" in out.decode()
    assert len(cluster.local.pids()) == 6
    wait_whole(cluster)
    assert names_below_root(cluster) == []
    assert json.loads((tmp_path / "report" / "report.json").read_text())["outcome"] == "inconclusive"


def test_a_plan_touches_nothing_and_names_exact_targets(cluster: ClusterUnderTest, environ: dict[str, str]) -> None:
    wait_whole(cluster)
    before = cluster.local.pids()
    plan = json.loads(chaos(environ, CLEAN, "plan", "--seed", "3", "--for", "60s", "--json"))
    again = json.loads(chaos(environ, CLEAN, "run", "--dry-run", "--seed", "3", "--for", "60s", "--json"))
    assert [(s["begin_s"], s["fault"]) for s in plan["steps"]] == [(s["begin_s"], s["fault"]) for s in again["steps"]]
    assert {node["name"] for node in plan["nodes"]} == set(before)
    assert any("SIGKILL to m" in step["action"] for step in plan["steps"])
    assert all(step["targets"] in before for step in plan["steps"])
    assert cluster.local.pids() == before


def test_a_run_is_refused_where_a_users_file_is_at_risk(cluster: ClusterUnderTest, environ: dict[str, str]) -> None:
    wait_whole(cluster)
    with cluster.client(replication=1) as client, tempfile.TemporaryFile() as file:
        file.write(b"precious" * 100_000)
        file.seek(0)
        client.put(file, "/precious")
        try:
            assert "/precious" in chaos(environ, REFUSED, "run", "--yes", "--fault", "kill-server")
        finally:
            client.delete("/precious", skip_trash=True)
    assert "destroy" in chaos(environ, REFUSED, "run", "--yes", "--fault", "wipe-server")
    assert "nobody is there to be asked" in chaos(environ, REFUSED, "run", "--fault", "kill-leader")
