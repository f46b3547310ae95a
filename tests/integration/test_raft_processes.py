"""Do real masters keep every acknowledged change through kill -9, of one and of all, and through power cuts?"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from dfs.local.ports import free_ports
from dfs.testing.synced_disk import lose_power

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "bench" / "raft_process.py"
WAIT_S = 60.0
MIRRORED = """
import runpy, sys
from pathlib import Path
from dfs.master import raft_checkpoint, raft_join, raft_journal, raft_node
from dfs.testing.synced_disk import install
mirror, program = sys.argv[1:3]
del sys.argv[:2]
raft_node.CHECKPOINT_ENTRIES = 100  # some in each round
install(Path(sys.argv[3]), Path(mirror), [raft_checkpoint, raft_join, raft_journal])
runpy.run_path(program, run_name="__main__")
"""


class Process:
    """One master's log as a child process (bench/raft_process.py), with a `mirror` of what it has synced or without."""

    def __init__(self, name: str, peers: str, folder: Path, mirror: Path | None = None) -> None:
        self.name = name
        program = [str(PROGRAM)] if mirror is None else ["-c", MIRRORED, str(mirror), str(PROGRAM)]
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._child = subprocess.Popen(
            [sys.executable, *program, name, peers, str(folder / name), "0.4,0.8"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait("started")

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._answers.put(json.loads(line))

    def tell(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def wait(self, key: str) -> dict[str, Any]:
        """Return the next answer that holds `key`; others (changes of leadership) are dropped."""
        deadline = time.monotonic() + WAIT_S
        while True:
            answer = self._answers.get(timeout=max(0.1, deadline - time.monotonic()))
            if key in answer:
                return answer

    def ask(self, line: str, key: str) -> dict[str, Any]:
        self.tell(line)
        return self.wait(key)

    def answered(self) -> list[dict[str, Any]]:
        """Return the answers that are there, also those of a process that is dead."""
        answers = []
        with contextlib.suppress(queue.Empty):
            while True:
                answers.append(self._answers.get_nowait())
        return answers

    def strike(self) -> None:
        self._child.send_signal(signal.SIGKILL)

    def kill(self) -> None:
        self.strike()
        self._child.wait(20)
        self._reader.join(20)
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            pipe.close()


class Masters:
    def __init__(self, folder: Path, *, has_mirrors: bool = False) -> None:
        self._folder, self._has_mirrors = folder, has_mirrors
        self._peers = ",".join(f"m{number}=127.0.0.1:{port}" for number, port in enumerate(free_ports(3), 1))
        self.running: dict[str, Process] = {}

    def start(self, *names: str) -> None:
        for name in names:
            (self._folder / name).mkdir(exist_ok=True)
            self.running[name] = Process(name, self._peers, self._folder, self._mirror(name))

    def _mirror(self, name: str) -> Path | None:
        return self._folder / f"mirror of {name}" if self._has_mirrors else None

    def cut_power(self) -> list[Process]:
        """Kill all at once and leave on their disks only what was synced; return the dead, for their last words."""
        dead = list(self.running.values())
        for process in dead:
            process.strike()
        self.kill(*self.running)
        for process in dead:
            mirror = self._mirror(process.name)
            assert mirror is not None
            lose_power(self._folder / process.name, mirror)
        return dead

    def kill(self, *names: str) -> None:
        for name in names:
            self.running.pop(name).kill()

    def leader(self) -> Process:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for process in self.running.values():
                if process.ask("status", "role")["leader"]:
                    return process
            time.sleep(0.02)
        raise AssertionError("no leader")

    def append(self, text: str) -> None:
        """Append until it is acknowledged; a text may be there twice after an unknown outcome."""
        deadline = time.monotonic() + WAIT_S
        while "done" not in self.leader().ask(f"append {text}", "text"):
            assert time.monotonic() < deadline


def test_kill_minus_nine_of_one_and_of_all_loses_nothing_acknowledged() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        masters = Masters(Path(folder))
        try:
            masters.start("m1", "m2", "m3")
            acknowledged: list[str] = []
            for turn in range(3):
                for number in range(20):
                    masters.append(f"{turn}.{number}")
                    acknowledged.append(f"{turn}.{number}")
                name = masters.leader().name
                for number in range(10):  # in flight while the leader dies
                    masters.leader().tell(f"append {turn}.lost.{number}")
                masters.kill(name)
                masters.append(f"{turn}.after")
                acknowledged.append(f"{turn}.after")
                masters.kill(*masters.running)
                masters.start("m1", "m2", "m3")
            masters.append("end")
            deadline = time.monotonic() + WAIT_S
            while True:
                histories = [process.ask("dump", "texts")["texts"] for process in masters.running.values()]
                if "end" in histories[0] and histories[0] == histories[1] == histories[2]:
                    break
                assert time.monotonic() < deadline, "they never agree"
                time.sleep(0.02)
        finally:
            masters.kill(*masters.running)
    kept = [text for text in histories[0] if "lost" not in text]
    assert list(dict.fromkeys(kept)) == [*acknowledged, "end"]


def cut_power_in_mid_load(rounds: int, seed: int) -> None:
    """Cut the power of all masters at random moments under load; raise `AssertionError` when something is lost."""
    rng = random.Random(seed)
    acknowledged: list[str] = []
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        masters = Masters(Path(folder), has_mirrors=True)
        try:
            masters.start("m1", "m2", "m3")
            for turn in range(rounds):
                leader = masters.leader()
                for number in range(300):
                    leader.tell(f"append {turn}.{number}")
                enough = rng.randrange(1, 250)
                for _ in range(enough):
                    acknowledged += told_done([leader.wait("text")])
                acknowledged += told_done([answer for dead in masters.cut_power() for answer in dead.answered()])
                masters.start("m1", "m2", "m3")
                masters.append(f"end of {turn}".replace(" ", "_"))
                held = masters.leader().ask("dump", "texts")["texts"]
                missing = [text for text in acknowledged if text not in set(held)]
                assert missing == [], f"acknowledged before the power failed in round {turn}, and lost"
        finally:
            masters.kill(*masters.running)
    assert len(acknowledged) > rounds, "there was load"


def told_done(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["text"] for answer in answers if "done" in answer]


def test_a_power_cut_of_all_masters_in_mid_load_loses_nothing_acknowledged() -> None:
    cut_power_in_mid_load(rounds=2, seed=1)
