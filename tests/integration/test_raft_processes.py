"""Do real master processes keep every acknowledged change through kill -9, of one and of all?"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 40.0


class Process:
    """One master's log as a child process (bench/raft_process.py)."""

    def __init__(self, name: str, peers: str, folder: Path) -> None:
        self.name = name
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._child = subprocess.Popen(
            [sys.executable, str(ROOT / "bench" / "raft_process.py"), name, peers, str(folder / name), "0.4,0.8"],
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

    def kill(self) -> None:
        self._child.send_signal(signal.SIGKILL)
        self._child.wait(20)
        self._reader.join(20)
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            pipe.close()


class Masters:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self._peers = ",".join(f"m{n}=127.0.0.1:{sock.getsockname()[1]}" for n, sock in enumerate(sockets, 1))
        for sock in sockets:
            sock.close()
        self.running: dict[str, Process] = {}

    def start(self, *names: str) -> None:
        for name in names:
            self.running[name] = Process(name, self._peers, self._folder)

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
            histories = []
            for process in masters.running.values():
                deadline = time.monotonic() + WAIT_S
                while "end" not in (texts := process.ask("dump", "texts")["texts"]):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                histories.append(texts)
        finally:
            masters.kill(*masters.running)
    assert histories[0] == histories[1] == histories[2]
    kept = [text for text in histories[0] if "lost" not in text]
    assert list(dict.fromkeys(kept)) == [*acknowledged, "end"]
