"""Is a run of dfs chaos undone when its terminal goes away before or after the faults?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfs.chaos import session
from dfs.chaos.journal import Head, Journal, RemoveFile, state_folder
from dfs.cli.wall import EXIT_TERMINATED
from dfs.local.loopback import cluster_ini

PROGRAM = """
import os, signal, sys
from pathlib import Path
from dfs.chaos import session
from dfs.chaos.journal import RemoveFile
from dfs.cli.main import _terminate
from dfs.config import load_config

def break_it(wishes, planned, config, journal, about, say):
    journal.add(RemoveFile(sys.argv[2]))
    Path(sys.argv[2]).write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGHUP)
    raise AssertionError("it goes on")

session._break = break_it
signal.signal(signal.SIGTERM, _terminate)
wishes = session.Wishes(config=load_config(Path(sys.argv[1])), duration_s=1.0)
planned = session.Planned(wishes, 1, (), (), (), (), ())
session.run(wishes, planned, None, print)
"""


def test_a_terminal_that_goes_away_ends_the_run_through_its_undoing(tmp_path: Path) -> None:
    config = tmp_path / "cluster.ini"
    config.write_text(cluster_ini(3, 2, 1, {"replication": "2"}))
    made, state = tmp_path / "made", tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(config), str(made)],
        env={**os.environ, "XDG_STATE_HOME": str(state)},
        cwd=tmp_path,
        check=False,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert done.returncode == EXIT_TERMINATED
    assert not made.exists()
    assert list((state / "dfs" / "chaos").iterdir()) == []


def test_a_damaged_journal_does_not_keep_other_runs_from_being_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = tmp_path / "made"
    made.write_bytes(b"x")
    journal = Journal.begin(state_folder(), Head("run-2", "test", (), "", 5))
    journal.add(RemoveFile(str(made)))
    journal.close()
    (state_folder() / "run-1.undo").write_bytes(b"rubbish\n")
    bad, good = session.undo_unfinished()
    assert (bad.run_id, bad.undone) == ("run-1", [])
    assert "is damaged" in bad.failed[0]
    assert (good.run_id, good.failed) == ("run-2", [])
    assert not made.exists()
