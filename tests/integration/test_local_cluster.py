"""Does a local cluster start, stop, and never touch a process that is not its own?"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.clock import Deadline
from dfs.config import ClusterConfig, load_config
from dfs.errors import ConfigError, DeadlineExceeded, DfsError, InvalidArgument, Overloaded
from dfs.local.cluster import LocalCluster
from dfs.local.loopback import cluster_ini
from dfs.local.ports import free_ports
from dfs.local.process import ProcessMark, spawn
from dfs.testing.cluster import ClusterUnderTest, wait_until

SLEEPER = [sys.executable, "-c", "import time; print('awake', flush=True); time.sleep(600)"]
DEAF_SLEEPER = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('awake', flush=True); time.sleep(600)",
]


@pytest.fixture
def config(tmp_path: Path) -> ClusterConfig:
    """Return a configuration whose daemons are not started."""
    path = tmp_path / "cluster.ini"
    path.write_text(cluster_ini(1, 1, 1, {"replication": "1"}))
    (tmp_path / "run").mkdir()
    return load_config(path)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that no cluster started."""
    process = subprocess.Popen(SLEEPER, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def is_alive(pid: int) -> bool:
    return ProcessMark.of(pid) is not None


def spawn_ready(command: list[str], output: Path) -> ProcessMark:
    mark = spawn(command, os.environ, output)
    wait_until(lambda: output.exists() and "awake" in output.read_text(), 30, "the process runs")
    return mark


def test_cluster_comes_up_healthy_and_goes_down_without_a_trace(tmp_path: Path) -> None:
    with ClusterUnderTest(tmp_path) as cluster:
        pids = cluster.local.pids()
        assert set(pids) == {"m1", "m2", "m3", "c1", "c2", "c3", "c4"}
        assert cluster.local.up() == [], "what runs is not started twice"
        assert cluster.local.pids() == pids
        assert stat.S_IMODE(cluster.config.secret_file.stat().st_mode) == 0o600
        with cluster.client() as client:
            assert client.make_directory("/a").path == "/a"
        assert set(cluster.local.down()) == set(pids)
        assert not any(is_alive(pid) for pid in pids.values())
        assert not list(cluster.config.run_dir.glob("*.pid"))
        assert cluster.local.down() == []


def test_everything_killed_and_started_again_is_healthy_and_has_its_files(tmp_path: Path) -> None:
    with ClusterUnderTest(tmp_path) as cluster:
        with cluster.client() as client:
            client.make_directory("/kept")
        for name in cluster.names():
            cluster.kill(name)
        assert cluster.local.pids() == {}
        cluster.up()
        with cluster.client() as client:
            assert client.exists("/kept")


def test_node_that_died_by_itself_is_told_from_one_that_was_stopped(tmp_path: Path) -> None:
    with ClusterUnderTest(tmp_path, masters=1, chunk_servers=2, settings={"replication": "1"}) as cluster:
        cluster.stop("c2")
        assert cluster.local.died() == []
        cluster.wait_healthy()
        os.kill(cluster.local.pids()["c1"], signal.SIGKILL)
        wait_until(lambda: cluster.local.died() == ["c1"], 30, "the death of c1 is seen")
        with pytest.raises(DfsError, match=r"c1 ended"):
            cluster.wait_healthy()
        assert cluster.local.up() == ["c1", "c2"]


def test_daemon_that_cannot_start_is_told_with_its_last_words(config: ClusterConfig) -> None:
    config.masters[0].data_dir.write_text("a file where a folder belongs")
    cluster = LocalCluster(config)
    cluster.log_path("m1").write_text("what an earlier run said\n")
    try:
        with pytest.raises(DfsError, match=r"(?s)m1 ended.*m1\.log.*\n") as caught:
            cluster.up(wait_s=30)
        assert "data directory" in caught.value.message
        assert "earlier run" not in caught.value.message
    finally:
        cluster.down()
    assert cluster.pids() == {}


def test_a_master_does_not_start_empty_in_a_folder_that_something_else_uses(config: ClusterConfig) -> None:
    folder = config.masters[0].data_dir
    folder.mkdir()
    (folder / "journal").write_text("of another version")
    cluster = LocalCluster(config)
    try:
        with pytest.raises(DfsError, match=r"m1 ended[^\n]*\n.*holds 'journal' and no state"):
            cluster.up(wait_s=30)
    finally:
        cluster.down()
    assert [path.name for path in folder.iterdir()] == ["journal"]


def test_recycled_pid_is_never_signalled(config: ClusterConfig, stranger: subprocess.Popen[bytes]) -> None:
    cluster = LocalCluster(config)
    mark = ProcessMark.of(stranger.pid)
    assert mark is not None
    ProcessMark(mark.pid, mark.start_ticks - 1, mark.boot_id).save(cluster.pid_path("m1"))
    ProcessMark(mark.pid, mark.start_ticks, "another-boot").save(cluster.pid_path("c1"))
    assert cluster.pids() == {}
    assert cluster.died() == ["m1", "c1"]
    for name in ("m1", "c1"):
        with pytest.raises(InvalidArgument, match="does not run"):
            cluster.kill(name)
    assert cluster.down() == []
    assert stranger.poll() is None
    assert not cluster.pid_path("m1").exists()


@pytest.mark.parametrize("content", ["", "12", "abc def ghi", "1 2", "\0\0\0"])
def test_damaged_pid_file_means_nobody(config: ClusterConfig, content: str) -> None:
    cluster = LocalCluster(config)
    cluster.pid_path("m1").write_text(content)
    assert ProcessMark.load(cluster.pid_path("m1")) is None
    assert cluster.pids() == {}
    assert cluster.down() == []


def test_process_that_ignores_sigterm_is_killed_after_the_grace(config: ClusterConfig, tmp_path: Path) -> None:
    cluster = LocalCluster(config)
    mark = spawn_ready(DEAF_SLEEPER, tmp_path / "out")
    mark.save(cluster.pid_path("c1"))
    assert cluster.pids() == {"c1": mark.pid}
    assert cluster.down(grace_s=0.2) == ["c1"]
    assert not mark.is_running


def test_paused_process_is_ended_as_well(config: ClusterConfig, tmp_path: Path) -> None:
    cluster = LocalCluster(config)
    mark = spawn_ready(SLEEPER, tmp_path / "out")
    mark.save(cluster.pid_path("c1"))
    cluster.kill("c1", signal.SIGSTOP)
    assert cluster.pids() == {"c1": mark.pid}
    assert cluster.down(grace_s=0.2) == ["c1"]
    assert not mark.is_running


def test_spawned_process_has_a_session_of_its_own_and_no_input(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; print('awake', os.getsid(0) == os.getpid(), repr(sys.stdin.read()), flush=True)"
        "; time.sleep(2)"  # a process that ends before its mark is taken is another case
    )
    mark = spawn([sys.executable, "-c", program], os.environ, tmp_path / "out")
    assert mark.wait_ended(30)
    assert (tmp_path / "out").read_text() == "awake True ''\n"


def test_two_starters_at_once_are_kept_apart(config: ClusterConfig) -> None:
    cluster = LocalCluster(config)
    with cluster._locked(), pytest.raises(Overloaded, match="another dfs up or down"):
        LocalCluster(config).down()
    assert LocalCluster(config).down() == []


def test_unknown_node_is_told_with_the_known_ones(config: ClusterConfig) -> None:
    with pytest.raises(InvalidArgument, match="m1, c1"):
        LocalCluster(config).start("m9")


def test_missing_health_is_told_by_name(config: ClusterConfig, stranger: subprocess.Popen[bytes]) -> None:
    cluster = LocalCluster(config)
    cluster.config.secret_file.touch(mode=0o600)
    cluster.config.secret_file.write_text("0" * 64)
    mark = ProcessMark.of(stranger.pid)
    assert mark is not None
    mark.save(cluster.pid_path("m1"))  # runs, but is no master
    try:
        with pytest.raises(DeadlineExceeded, match="master m1 does not answer"):
            cluster.wait_healthy(Deadline.after(0.2))
    finally:
        cluster.pid_path("m1").unlink()


def test_free_ports_are_different_and_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20


def test_nothing_is_started_when_an_address_is_taken_and_the_error_names_node_and_address(
    config: ClusterConfig,
) -> None:
    server = config.chunk_servers[0]
    host, _, port = server.address.rpartition(":")
    cluster = LocalCluster(config)
    with (
        socket.create_server((host, int(port))),
        pytest.raises(ConfigError, match=f"c1 of .*{server.address}") as caught,
    ):
        cluster.up(wait_s=30)
    assert "\n" not in caught.value.message
    assert cluster.pids() == {}


def test_a_lost_secret_is_not_replaced_while_daemons_run_with_it(
    config: ClusterConfig, stranger: subprocess.Popen[bytes]
) -> None:
    cluster = LocalCluster(config)
    mark = ProcessMark.of(stranger.pid)
    assert mark is not None
    mark.save(cluster.pid_path("m1"))
    with pytest.raises(ConfigError, match=r"secret file .* is gone, and m1 still run"):
        cluster.up(wait_s=30)
    assert not config.secret_file.exists()
    cluster.pid_path("m1").unlink()
