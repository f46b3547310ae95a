"""Would `dfs chaos` notice? Against daemons with one safety taken out, its verdict must name the promise that broke."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dfs.testing.chaos.sabotage import SMALL_PAGES, launcher
from dfs.testing.cluster import ClusterUnderTest

pytestmark = pytest.mark.timeout(240)
BROKEN = 1
CHUNK_SIZE = 128 * 1024  # bytes: the larger files of a run have three chunks
SETTINGS = {"dead_after": "8 s", "repair_after": "10 s"}  # a busy machine is no dead one
MASTERS, SERVERS = ("m1", "m2", "m3"), ("c1", "c2", "c3")
RUN = ("--yes", "--seed", "5", "--outage-min", "500ms", "--outage-max", "1s")
POWER = """
import sys
from pathlib import Path
from dfs.config import load_config
from dfs.local.cluster import LocalCluster
from dfs.testing.chaos.sabotage import launcher

local = LocalCluster(load_config(Path(sys.argv[2])), {name: launcher("fsync_gate") for name in ("m1", "m2", "m3")})
for name in ("m1", "m2", "m3"):
    if sys.argv[1] == "on":
        local.start(name)
    elif name in local.pids():
        local.kill(name)
"""


def cluster_of(folder: Path, launchers: Mapping[str, Sequence[str]]) -> ClusterUnderTest:
    return ClusterUnderTest(
        folder, chunk_size=CHUNK_SIZE, settings=SETTINGS, chunk_servers=len(SERVERS), launchers=launchers
    )


def broken_by(cluster: ClusterUnderTest, folder: Path, *arguments: str) -> dict[str, str]:
    """Run `dfs chaos run` as a user; return what it says of each broken promise."""
    report = folder / "report"
    environ = {**os.environ, "DFS_CONFIG": str(cluster.config_path), "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-P", "-m", "dfs", "chaos", "run", *RUN, *arguments, "--report", str(report)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == BROKEN, (done.stdout, done.stderr)
    assert "BROKEN: " in done.stdout
    found: dict[str, Any] = json.loads((report / "report.json").read_text())
    assert found["outcome"] == "broken"
    assert not list((folder / "state").rglob("*.undo")), "all was undone nevertheless"
    broken = {one["name"]: one["broken"][0] for one in found["verdict"]["promises"] if one["broken"]}
    assert all(f"BROKEN  {name}" in done.stdout for name in broken)
    return broken


def test_records_lost_by_a_seal_and_files_mixed_of_two_versions_are_both_found(tmp_path: Path) -> None:
    """The servers go on appending after a seal, the masters tell pages of a file of any version: two promises."""
    launchers = dict.fromkeys(MASTERS, launcher(SMALL_PAGES, "version_pin"))
    launchers |= dict.fromkeys(SERVERS, launcher("sealing_fence"))
    with cluster_of(tmp_path, launchers) as cluster:
        broken = broken_by(cluster, tmp_path, "--for", "12s", "--fault", "pause-follower")
    assert "was acknowledged at" in broken["each acknowledged append is there exactly once"]
    mixed = " -1" in broken.get("contents are whole and linearizable", "")  # or the client itself saw the mixture:
    assert mixed or "contradict themselves" in broken.get("every read is answered", ""), broken


def test_names_that_a_lying_disk_lost_with_the_power_are_missed(tmp_path: Path) -> None:
    """The user's command takes the power of all masters where it should kill one: only synced journals survive that."""
    power = tmp_path / "power.py"
    power.write_text(POWER)
    with cluster_of(tmp_path, dict.fromkeys(MASTERS, launcher("fsync_gate"))) as cluster:
        words = shlex.join([sys.executable, "-P", str(power)])
        config = shlex.quote(str(cluster.config_path))
        commands = ["--kill-command", f"{words} off {config}", "--start-command", f"{words} on {config}"]
        broken = broken_by(cluster, tmp_path, "--for", "12s", "--fault", "kill-leader", *commands)
    assert broken.keys() & {"names are linearizable", "contents are whole and linearizable"}, broken
