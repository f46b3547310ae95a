"""The daemons that a run can reach, and how each fault is done to one of them.

Owns: signals, commands, wiped and filled disks; for each its words and the steps that undo it. Refuses to know: whether
it is safe (dfs.chaos.guard) and when (dfs.chaos.scenario).

A daemon is reached in one of three ways: by the pid files of `dfs up` on this machine, as one process that may be
paused, or by commands of the user that stop and start it wherever it runs.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from dfs.chaos.journal import RemoveFile, ResumeProcess, RunCommand, StartNode, Step
from dfs.chaos.scenario import Action
from dfs.chaos.undoing import run_words
from dfs.config import ChunkServerConfig, ClusterConfig, MasterConfig
from dfs.errors import ConfigError, InvalidArgument
from dfs.local.cluster import LocalCluster
from dfs.local.process import ProcessMark

FILLER_PIECE_SIZE = 1 << 20  # bytes
FILLER = "filler"
SYSTEMD_UNIT = "dfs-{role}@{name}"  # as in deploy/
COMMAND_LINE_SHOWN = 120  # characters of what a process runs
_PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Way:
    """How one fault is done to one daemon. `steps` are noted before `strike`, and undone in reverse."""

    words: str  # for the plan
    steps: Callable[[], tuple[Step, ...]]
    strike: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon with the faults that can be done to it; `where`: how it is reached, for the summary."""

    name: str
    is_master: bool
    where: str
    ways: Mapping[Action, Way] = field(default_factory=dict)


# --- by the pid files of `dfs up`


def local_nodes(
    config: ClusterConfig, *, may_destroy: bool = False, disks: Mapping[str, Path] = MappingProxyType({})
) -> list[Node]:
    """Return the daemons of `dfs up` that run on this machine and that this user may signal.

    `may_destroy`: all of the cluster may be lost, so disks can be wiped. `disks`: where the small disks of their own
    are mounted that can be filled.
    """
    local = LocalCluster(config)
    found = []
    for name, pid in local.pids().items():
        if not _is_ours(pid):
            continue
        ways = _process_ways(local, name)
        if may_destroy:
            ways[Action.WIPE] = _wipe(local, name)
            if name in disks:
                ways[Action.FILL] = _fill(local, name, disks[name])
        found.append(Node(name, _is_master(config, name), f"process {pid} of dfs up", ways))
    return found


def _process_ways(local: LocalCluster, name: str) -> dict[Action, Way]:
    start = StartNode(name, str(local.config.source))
    noted: list[ResumeProcess] = []  # the one that is resumed is the one to be paused, whoever starts another meanwhile

    def pause_steps() -> tuple[Step, ...]:
        noted[:] = [_resume(name, ProcessMark.load(local.pid_path(name)))]
        return tuple(noted)

    def pause() -> None:
        if not noted or not ProcessMark(noted[0].pid, noted[0].start_ticks, noted[0].boot_id).send(signal.SIGSTOP):
            raise InvalidArgument(f"the process of {name} that was to be paused is gone")

    return {
        Action.KILL: Way(f"SIGKILL to {name}, then start it again", lambda: (start,), lambda: local.kill(name)),
        Action.RESTART: Way(f"SIGTERM to {name}, then start it again", lambda: (start,), lambda: local.stop(name)),
        Action.PAUSE: Way(f"SIGSTOP to {name}, then SIGCONT", pause_steps, pause),
    }


def _resume(name: str, mark: ProcessMark | None) -> ResumeProcess:
    if mark is None or not mark.is_running:
        raise InvalidArgument(f"{name} does not run, so it cannot be paused")
    return ResumeProcess(name, mark.pid, mark.start_ticks, mark.boot_id)


def _wipe(local: LocalCluster, name: str) -> Way:
    folders = _folders(local.config, name)

    def strike() -> None:
        local.kill(name)
        for path in (path for folder in folders for path in folder.iterdir()):  # the folders stay: disks may be mounted
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    words = f"SIGKILL to {name}, empty {', '.join(map(str, folders))}, then start it again"
    return Way(words, lambda: (StartNode(name, str(local.config.source)),), strike)


def _fill(local: LocalCluster, name: str, disk: Path) -> Way:
    filler = disk / FILLER

    def strike() -> None:
        if not disk.is_mount():
            raise InvalidArgument(f"{disk} is not a disk of its own: filling it would fill this machine's")
        for size in (FILLER_PIECE_SIZE, 1):
            with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:  # until no byte more fits
                while True:
                    file.write(bytes(size))

    steps = (StartNode(name, str(local.config.source)), RemoveFile(str(filler)))  # it may have stopped for lack of room
    return Way(f"fill the disk of {name} by {filler}, then remove that", lambda: steps, strike)


def _folders(config: ClusterConfig, name: str) -> tuple[Path, ...]:
    return (config.master(name).data_dir,) if _is_master(config, name) else config.chunk_server(name).data_dirs


# --- by process ids


def process_node(config: ClusterConfig, name: str, pid: int) -> Node:
    """Return a daemon that is known by its process id alone: it can be paused, not started again."""
    _section(config, name)
    mark = ProcessMark.of(pid)
    if mark is None:
        raise InvalidArgument(f"there is no process {pid} for {name}")
    if pid in _own_line():
        raise InvalidArgument(f"process {pid} is no {name}: it runs this command, and nobody would resume it")
    if not _is_ours(pid):
        raise InvalidArgument(f"process {pid} of {name} belongs to another user; run as that user, or as root")

    def strike() -> None:
        if not mark.send(signal.SIGSTOP):
            raise InvalidArgument(f"process {pid} of {name} is gone")

    way = Way(f"SIGSTOP to process {pid} ({name}), then SIGCONT", lambda: (_resume(name, mark),), strike)
    return Node(name, _is_master(config, name), f"process {pid}, {_command_line(pid)}", {Action.PAUSE: way})


def _own_line() -> list[int]:
    """Return this process, its parent, and so on."""
    line, pid = list[int](), os.getpid()
    while pid > 0:
        line.append(pid)
        pid = 0
        with contextlib.suppress(OSError):
            pid = int(Path(f"/proc/{line[-1]}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return line


def _command_line(pid: int) -> str:
    """Return what a process runs, as much as tells people whether it is the one that they meant."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0")
        return shlex.join(words)[:COMMAND_LINE_SHOWN]
    return "gone"


def _is_ours(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.geteuid() in (0, Path(f"/proc/{pid}").stat().st_uid)
    return False


# --- by commands


@dataclass(frozen=True, slots=True)
class Commands:
    """Templates of commands; {name}, {role} and {host} of a daemon are put into their words. "" = not possible."""

    stop: str = ""
    start: str = ""
    kill: str = ""
    pause: str = ""
    resume: str = ""

    def check(self) -> None:
        """Raise `InvalidArgument` when something could be done that could not be undone."""
        if (self.stop or self.kill) and not self.start:
            raise InvalidArgument("a command that stops or kills needs --start-command, which undoes it")
        if bool(self.pause) != bool(self.resume):
            raise InvalidArgument("--pause-command and --resume-command belong together")
        if self.start and not (self.stop or self.kill):
            raise InvalidArgument("--start-command alone breaks nothing; give --stop-command or --kill-command, too")


SYSTEMD = Commands(
    stop=f"systemctl stop {SYSTEMD_UNIT}",
    start=f"systemctl start {SYSTEMD_UNIT}",
    kill=f"systemctl kill --signal=SIGKILL {SYSTEMD_UNIT}",
    pause=f"systemctl kill --signal=SIGSTOP {SYSTEMD_UNIT}",
    resume=f"systemctl kill --signal=SIGCONT {SYSTEMD_UNIT}",
)


def command_nodes(config: ClusterConfig, commands: Commands, names: Iterable[str]) -> list[Node]:
    """Return daemons that are reached by the user's commands."""
    commands.check()
    return [_command_node(config, commands, name, "the given commands") for name in names]


def systemd_nodes(config: ClusterConfig) -> list[Node]:
    """Return the daemons of the units in deploy/ that are active on this machine."""
    names = names_of(config)
    active = [name for name in names if _is_active(_filled(SYSTEMD_UNIT, config, name)[0])]
    return [_command_node(config, SYSTEMD, name, "systemd on this machine") for name in active]


def _command_node(config: ClusterConfig, commands: Commands, name: str, where: str) -> Node:
    ways = {}
    for action, strike, undo in (
        (Action.RESTART, commands.stop, commands.start),
        (Action.KILL, commands.kill, commands.start),
        (Action.PAUSE, commands.pause, commands.resume),
    ):
        if strike:
            ways[action] = _command_way(name, _filled(strike, config, name), _filled(undo, config, name))
    return Node(name, _is_master(config, name), where, ways)


def _command_way(name: str, strike: tuple[str, ...], undo: tuple[str, ...]) -> Way:
    words = f"`{shlex.join(strike)}`, then `{shlex.join(undo)}`"
    return Way(words, lambda: (RunCommand(name, undo),), lambda: run_words(strike))


def _filled(template: str, config: ClusterConfig, name: str) -> tuple[str, ...]:
    """Return the words of a command. They are split first and filled then: no name can add a word."""
    node = _section(config, name)
    values = {"name": name, "role": _role(config, name), "host": node.address.rpartition(":")[0].strip("[]")}
    try:
        return tuple(word.format(**values) for word in shlex.split(template))
    except (KeyError, IndexError, ValueError) as error:
        raise InvalidArgument(
            f"the command {template!r} is not understood ({error}); it may use {{name}}, {{role}} and {{host}}"
        ) from None


def _is_active(unit: str) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 - the unit's name comes from cluster.ini
            ["systemctl", "is-active", "--quiet", unit],  # noqa: S607 - where it is differs between distributions
            timeout=_PROBE_TIMEOUT_S,
            check=False,
            capture_output=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"cannot ask systemctl for {unit}: {error}") from None
    return done.returncode == 0


# --- the sections of cluster.ini


def names_of(config: ClusterConfig) -> list[str]:
    """Return all nodes of a cluster.ini, masters first."""
    return [*(master.name for master in config.masters), *(server.name for server in config.chunk_servers)]


def _section(config: ClusterConfig, name: str) -> MasterConfig | ChunkServerConfig:
    for master in config.masters:
        if master.name == name:
            return master
    for server in config.chunk_servers:
        if server.name == name:
            return server
    raise InvalidArgument(f"{config.source} has no node {name!r}; it has {', '.join(names_of(config))}")


def _is_master(config: ClusterConfig, name: str) -> bool:
    return isinstance(_section(config, name), MasterConfig)


def _role(config: ClusterConfig, name: str) -> str:
    return "master" if _is_master(config, name) else "chunk"
