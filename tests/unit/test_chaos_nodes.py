"""Are daemons reached exactly as the user said, and is what cannot be undone never begun?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.chaos.journal import ResumeProcess, RunCommand
from dfs.chaos.nodes import SYSTEMD, Commands, Node, Way, command_nodes, local_nodes, process_node
from dfs.chaos.scenario import Action
from dfs.chaos.undoing import undo
from dfs.config import ClusterConfig, load_config
from dfs.errors import DfsError, InvalidArgument
from dfs.local.loopback import cluster_ini
from dfs.local.process import ProcessMark
from dfs.testing.cluster import wait_until


@pytest.fixture
def config(tmp_path: Path) -> ClusterConfig:
    path = tmp_path / "cluster.ini"
    path.write_text(cluster_ini(3, 2, 1, {"replication": "2"}, {"c1": "10.0.0.7"}))
    return load_config(path)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def strike(node: Node, action: Action) -> Way:
    way = node.ways[action]
    way.strike()
    return way


def test_templates_are_filled_word_by_word(config: ClusterConfig) -> None:
    commands = Commands(stop="ssh {host} 'systemctl stop dfs-{role}@{name}'", start="ssh {host} start {name}")
    (node,) = command_nodes(config, commands, ["c1"])
    assert set(node.ways) == {Action.RESTART}, "what no command was given for is not done"
    assert node.ways[Action.RESTART].steps() == (RunCommand("c1", ("ssh", "10.0.0.7", "start", "c1")),)
    assert "'systemctl stop dfs-chunk@c1'" in node.ways[Action.RESTART].words
    (master,) = command_nodes(config, SYSTEMD, ["m1"])
    assert set(master.ways) == {Action.KILL, Action.PAUSE, Action.RESTART}
    assert master.is_master
    assert master.ways[Action.PAUSE].words == (
        "`systemctl kill --signal=SIGSTOP dfs-master@m1`, then `systemctl kill --signal=SIGCONT dfs-master@m1`"
    )


def test_commands_are_run_without_a_shell_and_their_failure_is_told(config: ClusterConfig, tmp_path: Path) -> None:
    mark = tmp_path / "a;b"
    commands = Commands(kill=f"touch '{mark}-{{name}}'", start="false")
    (node,) = command_nodes(config, commands, ["m2"])
    way = strike(node, Action.KILL)
    assert Path(f"{mark}-m2").exists()
    with pytest.raises(DfsError, match="false ended with 1"):
        undo(way.steps()[0])
    (gone,) = command_nodes(config, Commands(kill="/nowhere/at/all", start="true"), ["m2"])
    with pytest.raises(DfsError, match="cannot run /nowhere/at/all"):
        strike(gone, Action.KILL)


@pytest.mark.parametrize(
    "commands",
    [Commands(stop="a"), Commands(kill="a"), Commands(pause="a"), Commands(resume="a"), Commands(start="a")],
)
def test_what_could_not_be_undone_is_not_accepted(commands: Commands, config: ClusterConfig) -> None:
    with pytest.raises(InvalidArgument):
        command_nodes(config, commands, ["m1"])


def test_a_wrong_template_or_name_is_told(config: ClusterConfig) -> None:
    with pytest.raises(InvalidArgument, match="role"):
        command_nodes(config, Commands(stop="stop {nam}", start="start"), ["m1"])
    with pytest.raises(InvalidArgument, match="no node 'm9'"):
        command_nodes(config, Commands(stop="stop", start="start"), ["m9"])


def test_a_process_is_paused_and_resumed_and_never_its_successor(
    config: ClusterConfig, sleeper: subprocess.Popen[bytes]
) -> None:
    node = process_node(config, "c1", sleeper.pid)
    assert set(node.ways) == {Action.PAUSE}, "it could not be started again"
    (step,) = node.ways[Action.PAUSE].steps()
    assert isinstance(step, ResumeProcess)
    strike(node, Action.PAUSE)
    wait_until(lambda: state_of(sleeper.pid) == "T", 30, "it is paused")
    undo(ResumeProcess("c1", step.pid, step.start_ticks + 1, step.boot_id))
    assert state_of(sleeper.pid) == "T", "a process that only has the number is not touched"
    undo(step)
    wait_until(lambda: state_of(sleeper.pid) != "T", 30, "it runs again")
    undo(step)
    sleeper.kill()
    sleeper.wait()
    undo(step)
    with pytest.raises(InvalidArgument, match="gone"):
        node.ways[Action.PAUSE].strike()


def test_the_run_never_pauses_itself_or_who_started_it(config: ClusterConfig) -> None:
    for pid in (os.getpid(), os.getppid()):
        with pytest.raises(InvalidArgument, match="runs this command"):
            process_node(config, "c1", pid)


def test_a_process_is_shown_with_what_it_runs(config: ClusterConfig, sleeper: subprocess.Popen[bytes]) -> None:
    words = Path(f"/proc/{sleeper.pid}/cmdline")
    wait_until(lambda: bool(words.read_bytes()), 20, "it has begun: before that there are no words")
    assert "import time" in process_node(config, "c1", sleeper.pid).where


def test_processes_that_are_not_there_cannot_be_named(config: ClusterConfig, sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(InvalidArgument, match="no process"):
        process_node(config, "c1", sleeper.pid)
    with pytest.raises(InvalidArgument, match="no node"):
        process_node(config, "c9", os.getpid())


def test_only_daemons_that_run_here_are_found(config: ClusterConfig) -> None:
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "m1.pid").write_text(f"{os.getpid()} 1 another-boot\n")
    assert local_nodes(config) == []


def test_the_process_that_is_paused_is_the_one_that_was_noted(
    config: ClusterConfig, sleeper: subprocess.Popen[bytes]
) -> None:
    """Somebody may start the daemon again between the two: nobody would resume the new one."""
    config.run_dir.mkdir(parents=True)
    mark = ProcessMark.of(sleeper.pid)
    assert mark is not None
    mark.save(config.run_dir / "c1.pid")
    (node,) = local_nodes(config)
    (step,) = node.ways[Action.PAUSE].steps()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as successor:
        try:
            later = ProcessMark.of(successor.pid)
            assert later is not None
            later.save(config.run_dir / "c1.pid")
            node.ways[Action.PAUSE].strike()
            wait_until(lambda: state_of(sleeper.pid) == "T", 30, "it is paused")
            assert state_of(successor.pid) != "T"
            undo(step)
            wait_until(lambda: state_of(sleeper.pid) != "T", 30, "it runs again")
        finally:
            successor.kill()
