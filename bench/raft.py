"""Measure the hardened Raft log: three processes on loopback, every acknowledged command fdatasynced.

Prints commands/s and latency by outstanding commands, linearizable reads/s, the disk's own fdatasync rate, and the
time from a kill -9 of the leader to the next acknowledged command.

    python bench/raft.py [--seconds 3] [--kills 20] [--timeouts 0.5,1.0] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("raft_process.py")
ROOT = PROGRAM.resolve().parents[1]


class Master:
    """A child process, and the queue of its answers."""

    def __init__(self, name: str, peers: str, folder: Path, timeouts: str) -> None:
        self.name = name
        self.answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.child = subprocess.Popen(
            [sys.executable, str(PROGRAM), name, peers, str(folder / name), timeouts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.ask("", "started")

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.answers.put(json.loads(line))

    def ask(self, line: str, key: str) -> dict[str, Any]:
        """Send a line and return the next answer that holds `key`."""
        assert self.child.stdin is not None
        if line:
            self.child.stdin.write(line + "\n")
            self.child.stdin.flush()
        while key not in (answer := self.answers.get(timeout=60)):
            pass
        return answer

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def leader_of(masters: dict[str, Master]) -> Master:
    while True:
        for master in masters.values():
            if master.ask("status", "role")["leader"]:
                return master
        time.sleep(0.002)


def measure_disk(folder: Path, seconds: float) -> float:
    """Return fdatasyncs per second of 4 KiB overwrites."""
    with (folder / "probe").open("wb") as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        count, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            os.pwrite(file.fileno(), os.urandom(4096), count % 256 * 4096)
            os.fdatasync(file.fileno())
            count += 1
    return count / seconds


def measure_failover(masters: dict[str, Master], peers: str, folder: Path, arguments: argparse.Namespace) -> None:
    times: list[float] = []
    for turn in range(arguments.kills):
        leader = leader_of(masters)
        leader.ask(f"append before{turn}", "text")
        time.sleep(0.3)
        leader.child.send_signal(signal.SIGKILL)
        begun = time.monotonic()
        del masters[leader.name]
        while "done" not in leader_of(masters).ask(f"append after{turn}", "text"):
            pass
        times.append(time.monotonic() - begun)
        leader.child.wait()
        masters[leader.name] = Master(leader.name, peers, folder, arguments.timeouts)
    if times:
        print(
            f"failover after kill -9, {len(times)} kills: median {statistics.median(times):.2f} s, max {max(times):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--timeouts", default="0.5,1.0", help="election timeout, shortest and longest, in seconds")
    parser.add_argument("--folder", default=None, help="where the journals are written (its disk is measured)")
    arguments = parser.parse_args()
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    peers = ",".join(f"m{number}=127.0.0.1:{sock.getsockname()[1]}" for number, sock in enumerate(sockets, 1))
    for sock in sockets:
        sock.close()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        print(f"fdatasync of 4 KiB: {measure_disk(folder, 1.0):.0f}/s")
        masters = {f"m{n}": Master(f"m{n}", peers, folder, arguments.timeouts) for n in (1, 2, 3)}
        try:
            leader = leader_of(masters)
            for outstanding in (1, 16, 128, 1000):
                found = leader.ask(f"load {outstanding} {arguments.seconds} 200", "rate")
                print(f"commands, {outstanding:4} outstanding: {found}")
            for outstanding in (1, 16, 128):
                found = leader.ask(f"reads {outstanding} {arguments.seconds}", "rate")
                print(f"reads, {outstanding:7} outstanding: {found}")
            before = {master.name: master.cpu_s() for master in masters.values()}
            time.sleep(3)
            for master in masters.values():
                print(f"idle {master.name}: {(master.cpu_s() - before[master.name]) / 3:.1%} of a CPU")
            measure_failover(masters, peers, folder, arguments)
        finally:
            for master in masters.values():
                master.child.kill()
                master.child.wait()


if __name__ == "__main__":
    main()
