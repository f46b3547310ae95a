"""Name a process so surely that no other one is ever signalled in its place.

Owns: process marks (pid + start time + boot), their files, spawning, signalling and waiting. Refuses to know: daemons.

A pid alone is recycled. A mark holds the start time from /proc as well, and signals go through a pidfd that is opened
before the mark is checked, so that the process meant and the process signalled are one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfs.errors import ConfigError, InternalError

_PROC = Path("/proc")
_DEAD_STATES = frozenset("ZX")  # a zombie, and one that is vanishing
_MARK_SIZE_MAX = 256  # bytes of a pid file
_DEFAULT_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)


@dataclass(frozen=True, slots=True)
class ProcessMark:
    """One process of one boot of this machine. `start_ticks`: field 22 of /proc/<pid>/stat."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """Return the mark of the process that has `pid` now, None when there is none (or only its zombie)."""
        found = _state_and_start(pid)
        return None if found is None or found[0] in _DEAD_STATES else cls(pid, found[1], _boot_id())

    @classmethod
    def load(cls, path: Path) -> ProcessMark | None:
        """Return the mark in a pid file, None when the file is missing or is not one of ours."""
        try:
            with path.open(encoding="ascii") as file:
                words = file.read(_MARK_SIZE_MAX).split()
            return cls(int(words[0]), int(words[1]), words[2])
        except (FileNotFoundError, ValueError, IndexError):
            return None
        except OSError as error:
            raise ConfigError(f"cannot read the pid file {path}: {error.strerror or error}") from None

    def save(self, path: Path) -> None:
        """Write the pid file at once or not at all."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(f"{self.pid} {self.start_ticks} {self.boot_id}\n")
            draft.replace(path)
        except OSError as error:
            raise ConfigError(f"cannot write the pid file {path}: {error.strerror or error}") from None

    @property
    def is_running(self) -> bool:
        """Whether this very process still runs; also collects its exit status when it was our child."""
        found = _state_and_start(self.pid)
        if found is None or found[1] != self.start_ticks or self.boot_id != _boot_id():
            return False
        if found[0] in _DEAD_STATES:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
            return False
        return True

    def send(self, number: signal.Signals) -> bool:
        """Signal this very process; return False when it is gone. Never reaches a successor of its pid."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_running:
                return False
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise ConfigError(f"process {self.pid} belongs to another user; stop it as that user, or as root") from None
        finally:
            os.close(pidfd)
        return True

    def wait_ended(self, timeout_s: float) -> bool:
        """Return whether the process has ended, waiting for it at most `timeout_s`."""
        until = time.monotonic() + timeout_s
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            while self.is_running:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                select.select([pidfd], [], [], left)
        finally:
            os.close(pidfd)
        return True


def spawn(command: Sequence[str], environ: Mapping[str, str], output: Path) -> ProcessMark:
    """Start a process in a session of its own, stdin empty, stdout and stderr appended to `output`.

    It outlives this process. Signal mask and handlers start clean; no descriptor of ours is inherited.
    """
    try:
        pid = os.posix_spawn(
            command[0],
            list(command),
            dict(environ),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]} with output to {output}: {error.strerror or error}") from None
    mark = ProcessMark.of(pid)
    if mark is None:  # it ended before we looked, and is our zombie
        os.waitpid(pid, 0)
        raise InternalError(f"{' '.join(command)} ended at once; see {output}")
    return mark


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """Return the state letter and the start time of a process, None for a missing one."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise ConfigError(
            f"cannot read /proc/{pid}/stat: {error.strerror or error}; local clusters need /proc"
        ) from None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything, even ")"
    return fields[0], int(fields[19])


def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"cannot read the boot id: {error.strerror or error}; local clusters need Linux") from None
