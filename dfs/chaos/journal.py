"""What a run has to undo, on disk before it is done: so that nothing stays broken, whoever kills the run.

Owns: the journal's file, its lock, and which steps are still open. Refuses to know: how a step is undone
(dfs.chaos.undoing) and why it was taken.

One file per run, JSON lines: a head, then `step` before each fault and `done` after its undoing. A step is synced
before its fault strikes; a torn last line therefore belongs to a fault that never struck. The run holds a lock on its
file, which the kernel takes from it when it dies. All undoings may be done again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import msgspec
import platformdirs

from dfs.decoders import json_decoder
from dfs.errors import ConfigError, Conflict

SUFFIX = ".undo"
FILE_SIZE_MAX = 16 << 20  # bytes; a run writes a few hundred per fault


class ResumeProcess(msgspec.Struct, frozen=True, tag="resume_process"):
    """SIGCONT to exactly this process (dfs.local.process)."""

    name: str
    pid: int
    start_ticks: int
    boot_id: str


class StartNode(msgspec.Struct, frozen=True, tag="start_node"):
    """Start a node of a cluster on this machine, unless it runs."""

    name: str
    config: str


class RunCommand(msgspec.Struct, frozen=True, tag="run_command"):
    """Run what starts or resumes a node again."""

    name: str
    words: tuple[str, ...]


class RemoveFile(msgspec.Struct, frozen=True, tag="remove_file"):
    """Remove the file that fills a disk."""

    path: str


class RemoveTree(msgspec.Struct, frozen=True, tag="remove_tree"):
    """Remove the working directory of the run from the cluster."""

    path: str
    config: str


class RemoveCluster(msgspec.Struct, frozen=True, tag="remove_cluster"):
    """End all nodes of a throw-away cluster, unmount its disks, and remove its folder."""

    folder: str
    config: str
    mounts: tuple[str, ...] = ()


Step = ResumeProcess | StartNode | RunCommand | RemoveFile | RemoveTree | RemoveCluster


class Head(msgspec.Struct, frozen=True, tag="head"):
    """The first line: which run, on which cluster. `masters`: addresses, they tell clusters of one name apart."""

    run_id: str
    cluster: str
    masters: tuple[str, ...]
    config: str
    begun_ms: int


class _Taken(msgspec.Struct, frozen=True, tag="step"):
    number: int
    step: Step


class _Done(msgspec.Struct, frozen=True, tag="done"):
    number: int


_Line = Head | _Taken | _Done
_DECODER: msgspec.json.Decoder[_Line] = json_decoder(_Line)


def state_folder() -> Path:
    """Return where journals are: below XDG_STATE_HOME, one folder per user."""
    return Path(platformdirs.user_state_dir("dfs")) / "chaos"


class Journal:
    """An open journal, locked. Used by one thread."""

    def __init__(self, path: Path, file: FileIO, head: Head, steps: dict[int, Step]) -> None:
        self.path, self.head = path, head
        self._file, self._open = file, dict(steps)
        self._next = max(steps, default=0) + 1

    @classmethod
    def begin(cls, folder: Path, head: Head) -> Journal:
        """Make the journal of a new run."""
        path = folder / f"{head.run_id}{SUFFIX}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(msgspec.json.encode(head) + b"\n")
            os.fsync(file.fileno())
            _sync_folder(folder)
        except OSError as error:
            raise ConfigError(f"cannot write the undo journal {path}: {error.strerror or error}") from None
        return cls(path, file, head, {})

    @classmethod
    def resume(cls, path: Path) -> Journal:
        """Take over the journal of a run that died; raise `Conflict` while it is alive."""
        try:
            file = path.open("r+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"cannot open the undo journal {path}: {error.strerror or error}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise Conflict(f"the run of {path} is still at work; end it with Ctrl-C, it undoes all by itself") from None
        head, steps, whole_size = _read(path)
        file.truncate(whole_size)  # a torn last line: what comes next must not be glued to it
        file.seek(0, os.SEEK_END)
        return cls(path, file, head, steps)

    @property
    def steps(self) -> list[tuple[int, Step]]:
        """What is still to be undone, the latest first."""
        return sorted(self._open.items(), reverse=True)

    def add(self, step: Step) -> int:
        """Note a step, durably; only then may it be taken. Return its number."""
        number, self._next = self._next, self._next + 1
        self._write(_Taken(number, step))
        self._open[number] = step
        return number

    def done(self, number: int) -> None:
        """Note that a step was undone."""
        self._write(_Done(number))
        self._open.pop(number, None)

    def close(self) -> None:
        """Let go of the file, and remove it when nothing is left to undo."""
        if not self._open:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _write(self, line: _Line) -> None:
        data, start = msgspec.json.encode(line) + b"\n", self._file.tell()
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # half a line would spoil the next one
                self._file.truncate(start)
                self._file.seek(start)
            raise ConfigError(f"cannot write the undo journal {self.path}: {error.strerror or error}") from None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A journal in the state folder: a run that is at work (`is_alive`), or one that died with `steps` to undo."""

    path: Path
    head: Head
    steps: tuple[Step, ...]
    is_alive: bool


def unfinished(folder: Path, damaged: dict[Path, str] | None = None) -> list[Unfinished]:
    """Return all journals of a folder, the oldest first. `damaged` gets why others cannot be read, or it is raised."""
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):  # it ended this very moment
            with path.open("rb") as file:
                is_alive = False
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    is_alive = True
                try:
                    head, steps, _ = _read(path)
                except ConfigError as error:
                    if damaged is None:
                        raise
                    damaged[path] = error.message
                    continue
            found.append(Unfinished(path, head, tuple(step for _, step in sorted(steps.items())), is_alive))
    return sorted(found, key=lambda one: one.head.begun_ms)


def _read(path: Path) -> tuple[Head, dict[int, Step], int]:
    """Return the head, the open steps, and the size of all whole lines."""
    try:
        size = path.stat().st_size
        if size > FILE_SIZE_MAX:
            raise ConfigError(f"the undo journal {path} has {size} bytes, over {FILE_SIZE_MAX}: it is not one of ours")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot read the undo journal {path}: {error.strerror or error}") from None
    whole = content[: content.rfind(b"\n") + 1]
    steps: dict[int, Step] = {}
    try:
        lines: Sequence[_Line] = [_DECODER.decode(line) for line in whole.splitlines()]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the undo journal {path} is damaged ({error}); undo by hand what it lists") from None
    if not lines or not isinstance(lines[0], Head):
        raise ConfigError(f"the undo journal {path} has no head; remove it: a run that began has written one")
    for line in lines[1:]:
        if isinstance(line, _Taken):
            steps[line.number] = line.step
        elif isinstance(line, _Done):
            steps.pop(line.number, None)
    return lines[0], steps, len(whole)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
