"""Undo one step of a run: bring a daemon back, or remove what the run made; in the run and after it alike.

Owns: how each kind of step is undone; every undoing may be done again. Refuses to know: the journal's file, and plans.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from functools import singledispatch
from pathlib import Path

from dfs.chaos.journal import (
    Journal,
    RemoveCluster,
    RemoveFile,
    RemoveTree,
    ResumeProcess,
    RunCommand,
    StartNode,
    Step,
)
from dfs.client import ClusterAccess, DfsClient
from dfs.clock import Deadline
from dfs.config import load_config
from dfs.errors import DfsError, InternalError, NotFound, Overloaded
from dfs.local.cluster import LocalCluster
from dfs.local.process import ProcessMark

COMMAND_TIMEOUT_S = 120.0  # of a stop or start command of the user
LOCK_WAIT_S = 20.0  # somebody else's `dfs up` or `dfs down` may be at work
TREE_TIMEOUT_S = 60.0  # the cluster may just have come back
_POLL_S = 0.2


def undo_all(journal: Journal) -> list[str]:
    """Undo every open step, the latest first; return what could not be undone, in words. Those steps stay open.

    A throw-away cluster goes as a whole: its daemons need not be brought back before.
    """
    failures = []
    steps = journal.steps
    goes_whole = [number for number, step in steps if isinstance(step, RemoveCluster)]
    for number, step in steps:
        try:
            if not goes_whole or number in goes_whole:
                undo(step)
            journal.done(number)
        except (DfsError, OSError) as error:  # the journal's own, too: its disk may be full
            words = f"for {step.name}" if isinstance(step, RunCommand) else describe(step)  # a command's error names it
            failures.append(f"{words}: {error}")
    return failures


def run_words(words: tuple[str, ...]) -> None:
    """Run a command of the user's; raise `DfsError` with its last words when it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the user said so
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise Overloaded(f"{' '.join(words)} did not end within {COMMAND_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise DfsError(f"cannot run {words[0]}: {error.strerror or error}") from None
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise DfsError(f"{' '.join(words)} ended with {done.returncode}: {' / '.join(told)}")


@singledispatch
def undo(step: Step) -> None:
    """Undo a step; raise `DfsError` or `OSError` when that is not possible now."""
    raise InternalError(f"nobody knows how to undo {step!r}")


@undo.register
def _(step: ResumeProcess) -> None:
    ProcessMark(step.pid, step.start_ticks, step.boot_id).send(signal.SIGCONT)  # False: it is gone, nothing is paused


@undo.register
def _(step: StartNode) -> None:
    local = LocalCluster(load_config(Path(step.config)))
    deadline = Deadline.after(LOCK_WAIT_S)
    while True:
        try:
            local.start(step.name)
            return
        except Overloaded:
            if deadline.has_passed:
                raise
            time.sleep(_POLL_S)


@undo.register
def _(step: RunCommand) -> None:
    run_words(step.words)


@undo.register
def _(step: RemoveFile) -> None:
    Path(step.path).unlink(missing_ok=True)


@undo.register
def _(step: RemoveTree) -> None:
    access = ClusterAccess.from_config(load_config(Path(step.config)))
    with DfsClient(access, timeout_s=TREE_TIMEOUT_S) as client, contextlib.suppress(NotFound):
        client.delete(step.path, recursive=True, skip_trash=True)


@undo.register
def _(step: RemoveCluster) -> None:
    config = Path(step.config)
    if config.exists():
        local = LocalCluster(load_config(config))
        for name in local.names:
            with contextlib.suppress(DfsError):  # most often: it does not run
                local.kill(name)
        if running := local.pids():
            raise Overloaded(f"{', '.join(running)} of {config} still run after SIGKILL; is a disk hanging?")
    for mount in step.mounts:
        if Path(mount).is_mount():
            run_words(("umount", "--lazy", mount))
    shutil.rmtree(step.folder, ignore_errors=True)
    if Path(step.folder).exists():
        raise DfsError(f"the folder {step.folder} cannot be removed")


@singledispatch
def describe(step: Step) -> str:
    """Return what undoing a step does, for people."""
    raise InternalError(f"nobody knows what {step!r} is")


@describe.register
def _(step: ResumeProcess) -> str:
    return f"SIGCONT to {step.name}, process {step.pid}"


@describe.register
def _(step: StartNode) -> str:
    return f"start {step.name} of {step.config}"


@describe.register
def _(step: RunCommand) -> str:
    return f"for {step.name}: {' '.join(step.words)}"


@describe.register
def _(step: RemoveFile) -> str:
    return f"remove the file {step.path}"


@describe.register
def _(step: RemoveTree) -> str:
    return f"remove the directory {step.path} of the cluster of {step.config}"


@describe.register
def _(step: RemoveCluster) -> str:
    return f"end the throw-away cluster and remove {step.folder}"
