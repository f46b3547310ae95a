"""Does the undo journal survive whoever writes it: torn lines, a dead owner, steps undone twice?"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfs.chaos.journal import (
    Head,
    Journal,
    RemoveCluster,
    RemoveFile,
    ResumeProcess,
    RunCommand,
    StartNode,
    Step,
    unfinished,
)
from dfs.chaos.nodes import Node, Way
from dfs.chaos.run import ChaosRun
from dfs.chaos.scenario import KINDS, Action, Fault
from dfs.chaos.undoing import describe, undo, undo_all
from dfs.errors import ConfigError, Conflict

HEAD = Head("run-1", "test", ("127.0.0.1:1",), "/etc/cluster.ini", 5)


def test_what_was_not_undone_is_found_again(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, HEAD)
    steps: list[Step] = [
        StartNode("m1", "/etc/cluster.ini"),
        ResumeProcess("c1", 1, 2, "boot"),
        RunCommand("c2", ("true", "a b")),
    ]
    numbers = [journal.add(step) for step in steps]
    journal.done(numbers[1])
    (found,) = unfinished(tmp_path)
    assert found.is_alive, "its owner holds the lock"
    with pytest.raises(Conflict):
        Journal.resume(found.path)
    journal.close()
    (found,) = unfinished(tmp_path)
    assert (found.head, found.steps, found.is_alive) == (HEAD, (steps[0], steps[2]), False)
    assert found.path.stat().st_mode & 0o077 == 0
    again = Journal.resume(found.path)
    assert [step for _, step in again.steps] == [steps[2], steps[0]], "the latest first"
    assert again.add(RemoveFile("/x")) not in numbers
    again.close()


def test_a_finished_run_leaves_no_journal(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, HEAD)
    journal.done(journal.add(RemoveFile("/nowhere")))
    journal.close()
    assert unfinished(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_every_prefix_of_a_journal_is_understood(tmp_path: Path) -> None:
    """A crash may cut the file anywhere: a step is there wholly or it never struck."""
    journal = Journal.begin(tmp_path, HEAD)
    head_size = journal.path.stat().st_size
    sizes = []
    for number in range(3):
        journal.add(RemoveFile(f"/file{number}"))
        sizes.append(journal.path.stat().st_size)
    content = journal.path.read_bytes()
    for size in range(head_size, len(content) + 1):
        path = tmp_path / "cut" / f"run-{size}.undo"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content[:size])
        (found,) = unfinished(path.parent)
        assert len(found.steps) == sum(whole <= size for whole in sizes)
        resumed = Journal.resume(path)
        resumed.add(RemoveFile("/later"))
        resumed.close()
        (found,) = unfinished(path.parent)
        assert found.steps[-1] == RemoveFile("/later"), "what comes after a torn line is not glued to it"
        path.unlink()
    journal.close()


@pytest.mark.parametrize(
    "content", [b"", b"{}\n", b'{"type":"done","number":1}\n', b"\xff\xfe\n", b'{"type":"head"}\n']
)
def test_a_damaged_journal_is_told_and_never_guessed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.undo").write_bytes(content)
    with pytest.raises(ConfigError, match="undo journal"):
        unfinished(tmp_path)


def test_a_step_is_on_disk_before_add_returns_even_if_its_owner_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from dfs.chaos.journal import *;"
        "j = Journal.begin(Path(sys.argv[1]), Head('r', 'c', (), '', 1)); j.add(RemoveFile('/x'));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -9
    (found,) = unfinished(tmp_path)
    assert (found.steps, found.is_alive) == ((RemoveFile("/x"),), False)


def test_undoing_goes_on_after_a_failure_and_keeps_what_failed(tmp_path: Path) -> None:
    filler = tmp_path / "filler"
    filler.write_bytes(b"x")
    journal = Journal.begin(tmp_path / "state", HEAD)
    journal.add(RemoveFile(str(filler)))
    journal.add(RunCommand("c1", ("false",)))
    journal.add(ResumeProcess("c2", os.getpid(), 1, "another boot"))  # not this process: another start time
    failures = undo_all(journal)
    assert len(failures) == 1
    assert "false ended with 1" in failures[0]
    assert not filler.exists()
    assert [step for _, step in journal.steps] == [RunCommand("c1", ("false",))]
    undo(RemoveFile(str(filler)))  # again is harmless
    journal.close()
    assert len(unfinished(tmp_path / "state")) == 1


def test_a_journal_that_cannot_be_written_keeps_nothing_from_being_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the journal may be full by then; what is not noted as undone is undone once more."""
    fillers = [tmp_path / name for name in ("one", "two")]
    journal = Journal.begin(tmp_path / "state", HEAD)
    for filler in fillers:
        filler.write_bytes(b"x")
        journal.add(RemoveFile(str(filler)))

    def is_full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as within:
        within.setattr(os, "fsync", is_full)
        failures = undo_all(journal)
    assert not any(filler.exists() for filler in fillers)
    assert len(failures) == 2
    assert all("cannot write the undo journal" in words for words in failures)
    journal.close()
    (left,) = unfinished(tmp_path / "state")
    again = Journal.resume(left.path)
    assert undo_all(again) == []
    again.close()
    assert unfinished(tmp_path / "state") == []


def test_a_line_that_does_not_fit_on_the_disk_is_refused_and_spoils_no_other(
    tmp_path: Path,
) -> None:
    journal = Journal.begin(tmp_path, HEAD)
    journal.add(RemoveFile("/one"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(ConfigError, match="cannot write the undo journal"):
            journal.add(RemoveFile("/two"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    journal.add(RemoveFile("/three"))
    (found,) = unfinished(tmp_path)
    assert found.steps == (RemoveFile("/one"), RemoveFile("/three"))
    journal.close()


def test_a_target_that_cannot_be_healed_does_not_keep_the_others_of_its_fault_broken(tmp_path: Path) -> None:
    mark = tmp_path / "c1"
    fault = Fault(0.0, 1.0, KINDS["kill-server"], 0.0, 2)
    ways = {"c1": ("touch", str(mark)), "c2": ("false",)}
    nodes = [Node(name, False, "", {Action.KILL: _way(name, words)}) for name, words in ways.items()]
    journal = Journal.begin(tmp_path / "state", HEAD)
    run = ChaosRun(nodes, [fault], 10.0, 2, journal=journal, say=lambda _at_s, _words: None)
    side = run._sides[1]
    run._strike(side, fault, ("c1", "c2"))
    run._undo()
    assert mark.exists()
    assert ["false ended with 1" in words for words in run.story.left] == [True]
    assert [step for _, step in journal.steps] == [RunCommand("c2", ("false",))]
    journal.close()


def _way(name: str, words: tuple[str, ...]) -> Way:
    return Way("", lambda: (RunCommand(name, words),), lambda: None)


def test_a_throw_away_cluster_goes_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "data").write_bytes(b"x")
    journal = Journal.begin(tmp_path / "state", HEAD)
    journal.add(RemoveCluster(str(folder), str(folder / "cluster.ini")))
    journal.add(StartNode("m1", str(folder / "cluster.ini")))  # would fail: there is no such file
    assert undo_all(journal) == []
    assert not folder.exists()
    journal.close()
    assert unfinished(tmp_path / "state") == []


def test_every_step_says_in_words_what_undoing_it_does() -> None:
    assert "c1" in describe(ResumeProcess("c1", 1, 2, "b"))
    assert "systemctl start dfs-chunk@c1" in describe(RunCommand("c1", ("systemctl", "start", "dfs-chunk@c1")))
