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


STUB = """#!{python}
# `ssh HOST systemctl VERB … UNIT` and `systemctl VERB … UNIT` for daemons of `dfs up`; each call is written down.
import signal, sys
from pathlib import Path

words = [Path(sys.argv[0]).name, *sys.argv[1:]]
folder = Path(__file__).parent
calls, failures = folder / "calls", folder / "failures"
with calls.open("a") as file:
    print(*words, file=file)
words = words[2:] if words[0] == "ssh" else words
verb, name = words[1], words[-1].partition("@")[2]
if verb == "is-active":
    sys.exit(0)
if verb == "start" and failures.exists():
    left = int(failures.read_text()) - 1
    failures.write_text(str(left)) if left else failures.unlink()
    sys.exit(f"Job for {{words[-1]}}.service failed.")
from dfs.config import load_config
from dfs.local.cluster import LocalCluster

local = LocalCluster(load_config(Path({config!r})))
if verb == "start":
    local.start(name)
elif verb == "stop":
    local.stop(name)
else:
    local.kill(name, signal.Signals[words[2].partition("=")[2]])
"""


@pytest.fixture
def tools(cluster: ClusterUnderTest, environ: dict[str, str], tmp_path: Path) -> Path:
    """Put `ssh` and `systemctl` first on PATH; return their folder, with the file `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ssh", "systemctl"):
        (folder / name).write_text(STUB.format(python=sys.executable, config=str(cluster.config_path)))
        (folder / name).chmod(0o755)
    environ["PATH"] = f"{folder}{os.pathsep}{environ['PATH']}"
    return folder


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
    run = ["run", "--throw-away", "--yes", "--seed", "4", "--for", "18s", "--outage-max", "1500ms", *kinds]
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
    try:
        wait_until(lambda: len(cluster.local.pids()) == 5, 60, "a follower is killed")
    finally:
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


def test_daemons_are_broken_through_systemd_by_the_commands_that_the_plan_shows(
    cluster: ClusterUnderTest, environ: dict[str, str], tools: Path
) -> None:
    wait_whole(cluster)
    options = ["--seed", "3", "--for", "100s", "--outage-max", "1s", "--systemd"]
    options += ["--fault", "restart-follower", "--fault", "pause-server"]
    plan = json.loads(chaos(environ, CLEAN, "plan", *options, "--json"))
    assert all(node["where"] == "systemd on this machine" for node in plan["nodes"])
    (tools / "calls").unlink()
    process = begin(environ, "run", "--yes", *options, "--report", str(tools / "report"))

    def calls() -> str:
        return (tools / "calls").read_text() if (tools / "calls").exists() else ""

    try:
        wait_until(lambda: all(word in calls() for word in (" start ", "SIGSTOP", "SIGCONT")), 90, "both kinds struck")
    finally:
        process.send_signal(signal.SIGTERM)  # a busy machine may need long until each of them may strike
        out, err = process.communicate(timeout=120)
    assert process.returncode == REFUSED, (out.decode(), err.decode())
    called = [line.split() for line in (tools / "calls").read_text().splitlines() if "is-active" not in line]
    done = {(line[1], line[2].partition("@")[0]) for line in called}
    assert {("stop", "dfs-master"), ("start", "dfs-master")} <= done
    assert {line[2] for line in called if line[1] == "kill"} == {"--signal=SIGSTOP", "--signal=SIGCONT"}
    assert all(line[-1].partition("@")[0] in ("dfs-master", "dfs-chunk") for line in called)
    wait_whole(cluster)


def test_a_start_command_that_fails_ends_the_run_in_its_words_and_is_tried_again(
    cluster: ClusterUnderTest, environ: dict[str, str], tools: Path
) -> None:
    wait_whole(cluster)
    over = "ssh {host} systemctl"
    commands = ["--stop-command", f"{over} stop dfs-{{role}}@{{name}}"]
    commands += ["--start-command", f"{over} start dfs-{{role}}@{{name}}"]
    (tools / "failures").write_text("2")  # when the fault is over, and once more when the run stops for that
    run = ("run", "--yes", "--seed", "3", "--for", "90s", "--outage-max", "1s", "--fault", "restart-follower")
    text = chaos(environ, REFUSED, *run, *commands, "--report", str(tools / "report"))
    assert "INCONCLUSIVE" in text
    assert "ended with 1: Job for dfs-master@m" in text
    called = [line.split() for line in (tools / "calls").read_text().splitlines()]
    assert [words[3] for words in called] == ["stop", "start", "start", "start"]
    assert all(words[:3] == ["ssh", "127.0.0.1", "systemctl"] for words in called)
    assert "nothing is left" in chaos(environ, CLEAN, "undo")
    wait_whole(cluster)
    assert names_below_root(cluster) == []
