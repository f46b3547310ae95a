"""Run every daemon of a cluster.ini on this machine; what `dfs up`, `dfs down` and the tests stand on.

Owns: the run directory (pid files, logs), the secret's creation, starting and stopping in order. Refuses to know: what
the daemons say to each other, and what health means (dfs.local.health).

A pid file says that a node shall run: `start` writes it, `stop` and a fatal `kill` remove it. So a node that died by
itself is told from one that was stopped, also by another process than the one that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from dfs.clock import Deadline
from dfs.config import ClusterConfig
from dfs.errors import AlreadyExists, ConfigError, DfsError, InvalidArgument, Overloaded
from dfs.local.health import wait_until_healthy
from dfs.local.process import ProcessMark, spawn
from dfs.log import FILE_SIZE_MAX, FILE_VARIABLE
from dfs.net.auth import make_secret
from dfs.net.sockets import listening_socket

UP_WAIT_S = 60.0  # a cluster that is not healthy by then has a problem that waiting does not solve
STOP_GRACE_S = 10.0  # between SIGTERM and SIGKILL
ADDRESS_WAIT_S = 3.0  # a killed process is dead before the last of its threads has let go of its port
_ADDRESS_POLL_S = 0.05
KILL_WAIT_S = 10.0  # the kernel needs that long at most to end a process after SIGKILL
LOG_TAIL_LINES = 12  # of a daemon that died, shown in the error
_LOG_TAIL_SIZE_MAX = 16 * 1024  # bytes
_FATAL_SIGNALS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT})


class LocalCluster:
    """The daemons of one cluster.ini on this machine. Names are those of its sections: m1, c1, …

    Not for several threads at once; several processes are kept apart by a lock file. `launchers`: words before the
    command of a node, for one that shall run in surroundings of its own (a network namespace).
    """

    def __init__(self, config: ClusterConfig, launchers: Mapping[str, Sequence[str]] | None = None) -> None:
        self.config = config
        self._launchers = launchers or {}
        self._roles = {node.name: "master" for node in config.masters}
        self._roles |= {node.name: "chunk" for node in config.chunk_servers}
        self._log_starts: dict[str, int] = {}  # where the lines of the latest start begin

    @property
    def names(self) -> tuple[str, ...]:
        """All nodes: masters first, in the order of the file."""
        return tuple(self._roles)

    def log_path(self, name: str) -> Path:
        return self.config.run_dir / f"{name}.log"

    def pid_path(self, name: str) -> Path:
        return self.config.run_dir / f"{name}.pid"

    def pids(self) -> dict[str, int]:
        """Return the process ids of the nodes that run now."""
        marks = {name: ProcessMark.load(self.pid_path(name)) for name in self.names}
        return {name: mark.pid for name, mark in marks.items() if mark is not None and mark.is_running}

    def died(self) -> list[str]:
        """Return the nodes that shall run and do not."""
        running = self.pids()
        return [name for name in self.names if name not in running and self.pid_path(name).exists()]

    def up(self, wait_s: float = UP_WAIT_S) -> list[str]:
        """Make the secret if there is none, start what does not run, wait until all is healthy; return the started.

        Raise `DfsError` with the last words of a daemon that died. What was started keeps running then: look, or down.
        """
        deadline = Deadline.after(wait_s)
        self._make_folders()
        with self._locked():
            running = self.pids()
            self._make_secret(running)
            started = [name for name in self.names if name not in running]
            self._check_addresses([name for name in started if name not in self._launchers])
            for name in started:
                self._start(name)
        self.wait_healthy(deadline)
        return started

    def down(self, grace_s: float = STOP_GRACE_S) -> list[str]:
        """Stop every node: SIGTERM, and after `grace_s` SIGKILL; return the names of those that ran."""
        if not self.config.run_dir.exists():
            return []
        with self._locked():
            return self._stop(reversed(self.names), grace_s)

    def start(self, name: str) -> int:
        """Start one node and return its pid, that of the running one if it runs already. Does not wait for health."""
        self._check(name)
        self._make_folders()
        with self._locked():
            running = self.pids().get(name)
            return running if running is not None else self._start(name)

    def stop(self, name: str, grace_s: float = STOP_GRACE_S) -> None:
        """Stop one node in good order and wait for its end."""
        self._check(name)
        with self._locked():
            self._stop([name], grace_s)

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one node; when it is one that ends processes, wait for the end. Never hits a stranger."""
        self._check(name)
        mark = ProcessMark.load(self.pid_path(name))
        if mark is None or not mark.send(number):
            raise InvalidArgument(f"{name} does not run, so it cannot be signalled; see {self.log_path(name)}")
        if number in _FATAL_SIGNALS:
            if not mark.wait_ended(KILL_WAIT_S if number == signal.SIGKILL else STOP_GRACE_S):
                raise Overloaded(f"{name} (pid {mark.pid}) still runs after {number.name}; see {self.log_path(name)}")
            self.pid_path(name).unlink(missing_ok=True)

    def wait_healthy(self, deadline: Deadline) -> None:
        """Return when all nodes that shall run agree that all is well; raise `DfsError` that says what is missing."""
        wanted = [name for name in self.names if self.pid_path(name).exists()]
        wait_until_healthy(self.config, wanted, deadline, self._raise_if_died)

    def log_tail(self, name: str, lines: int = LOG_TAIL_LINES, *, since: int = 0) -> str:
        """Return the last lines of a node's log, none from before the offset `since`."""
        try:
            with self.log_path(name).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(since if since < end else 0, end - _LOG_TAIL_SIZE_MAX))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError as error:
            return f"(no log: {error.strerror or error})"

    def _raise_if_died(self) -> None:
        for name in self.died():
            words = self.log_tail(name, since=self._log_starts.get(name, 0))
            raise DfsError(f"{name} ended while the cluster started; the end of {self.log_path(name)}:\n{words}")

    def _check(self, name: str) -> None:
        if name not in self._roles:
            raise InvalidArgument(f"{self.config.source} has no node {name!r}; it has {', '.join(self.names)}")

    def _make_folders(self) -> None:
        for folder in (self.config.run_dir, self.config.secret_file.parent):
            try:
                missing = [known for known in (folder, *folder.parents) if not known.exists()]
                for known in reversed(missing):  # `parents=True` would make these by the umask
                    known.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"cannot make the folder {folder}: {error.strerror or error}") from None

    def _make_secret(self, running: Collection[str]) -> None:
        if running and not self.config.secret_file.exists():  # a new one would not open the doors of what runs
            raise ConfigError(
                f"the secret file {self.config.secret_file} is gone, and {', '.join(running)} still run with it; put it"
                " back, or stop them with `dfs down` and start afresh"
            )
        with contextlib.suppress(AlreadyExists):
            make_secret(self.config.secret_file)

    def _check_addresses(self, names: Collection[str]) -> None:
        """Raise `ConfigError` before anything is started when a node cannot listen where it should."""
        masters, servers = self.config.masters, self.config.chunk_servers
        wanted = [(m.name, address) for m in masters for address in (m.address, m.raft_address)]
        wanted += [(server.name, server.address) for server in servers]
        wanted += [(node.name, node.metrics_address) for node in masters if node.metrics_address]
        wanted += [(node.name, node.metrics_address) for node in servers if node.metrics_address]
        deadline = Deadline.after(ADDRESS_WAIT_S)
        for name, address in wanted:
            while name in names:
                try:
                    listening_socket(address, is_bulk=False).close()
                    break
                except ConfigError as error:
                    if deadline.has_passed:
                        raise ConfigError(f"{name} of {self.config.source} {error.message}") from None
                    time.sleep(_ADDRESS_POLL_S)

    def _start(self, name: str) -> int:
        log = self.log_path(name)
        self._log_starts[name] = 0
        with contextlib.suppress(FileNotFoundError):
            self._log_starts[name] = log.stat().st_size
            if self._log_starts[name] > FILE_SIZE_MAX:
                log.replace(log.with_suffix(".log.1"))
                self._log_starts[name] = 0
        # -P: a module in the user's current folder must not be taken for one of the standard library
        command = [*self._launchers.get(name, ()), sys.executable, "-P", "-m", "dfs", self._roles[name], "--name", name]
        command += ["--config", str(self.config.source)]
        with _uninterrupted():
            mark = spawn(command, {**os.environ, FILE_VARIABLE: str(log)}, log)
            mark.save(self.pid_path(name))
        return mark.pid

    def _stop(self, names: Iterator[str] | list[str], grace_s: float) -> list[str]:
        marks = {name: mark for name in names if (mark := ProcessMark.load(self.pid_path(name))) is not None}
        stopped = [name for name, mark in marks.items() if mark.send(signal.SIGTERM)]
        deadline = Deadline.after(grace_s)
        for name, mark in marks.items():
            if not mark.wait_ended(deadline.remaining_s()):
                mark.send(signal.SIGCONT)  # a stopped process could be killed, too, but not by SIGTERM
                mark.send(signal.SIGKILL)
                if not mark.wait_ended(KILL_WAIT_S):
                    raise Overloaded(f"{name} (pid {mark.pid}) still runs after SIGKILL; is its disk hanging?")
            self.pid_path(name).unlink(missing_ok=True)
        return stopped

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.config.run_dir / "lock"
        try:
            file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "w")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Overloaded(f"another dfs up or down is at work in {self.config.run_dir}; try again") from None
            yield


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back signals that end programs: a daemon that was started and not noted down would never be found again."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
