"""Measure the hardened Raft log: three processes on loopback, every acknowledged command fdatasynced.

Prints commands/s and latency by outstanding commands, linearizable reads/s, the disk's own fdatasync rate, the same
load on stock pysyncobj (which syncs nothing), the ratios to both, and the time from a kill -9 of the leader to the
next acknowledged command.

    python bench/raft.py [--parts load,reads,idle,stock,kills] [--seconds 3] [--kills 20] [--folder /tmp]
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

HARDENED = Path(__file__).with_name("raft_process.py")
STOCK = Path(__file__).with_name("raft_stock_process.py")
ROOT = HARDENED.resolve().parents[1]
PARTS = ("load", "reads", "idle", "stock", "kills")
OUTSTANDING = (1, 16, 128, 1000)
COMMAND_SIZE = 200  # bytes


class Master:
    """A child process, and the queue of its answers."""

    def __init__(self, name: str, peers: str, folder: Path, timeouts: str, program: Path = HARDENED) -> None:
        self.name = name
        self.answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.child = subprocess.Popen(
            [sys.executable, str(program), name, peers, str(folder / name), timeouts],
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

    def end(self) -> None:
        self.child.kill()
        self.child.wait()

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


def measure_load(leader: Master, seconds: float) -> dict[int, float]:
    rates: dict[int, float] = {}
    for outstanding in OUTSTANDING:
        found = leader.ask(f"load {outstanding} {seconds} {COMMAND_SIZE}", "rate")
        rates[outstanding] = found["rate"]
        print(f"  {outstanding:4} outstanding: {told(found)}", flush=True)
    return rates


def told(found: dict[str, Any]) -> str:
    errors = f", errors: {found['errors']}" if found["errors"] else ""
    return f"{found['rate']:7,}/s, p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms{errors}"


def measure_idle(masters: dict[str, Master]) -> None:
    before = {master.name: master.cpu_s() for master in masters.values()}
    time.sleep(3)
    shares = [f"{master.name} {(master.cpu_s() - before[master.name]) / 3:.1%}" for master in masters.values()]
    print(f"idle masters, of a CPU: {', '.join(shares)}")


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
        times.sort()
        print(
            f"failover after kill -9, {len(times)} kills: median {statistics.median(times):.2f} s, max {times[-1]:.2f}"
        )
        print("  all, in s: " + " ".join(f"{one:.2f}" for one in times))


def free_peers() -> str:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    peers = ",".join(f"m{number}=127.0.0.1:{sock.getsockname()[1]}" for number, sock in enumerate(sockets, 1))
    for sock in sockets:
        sock.close()
    return peers


def start(folder: Path, peers: str, timeouts: str, program: Path) -> dict[str, Master]:
    folder.mkdir()
    return {name: Master(name, peers, folder, timeouts, program) for name in ("m1", "m2", "m3")}


def measure_hardened(folder: Path, parts: set[str], arguments: argparse.Namespace) -> dict[int, float]:
    peers = free_peers()
    masters = start(folder, peers, arguments.timeouts, HARDENED)
    rates: dict[int, float] = {}
    try:
        leader = leader_of(masters)
        if "load" in parts:
            print(f"hardened, fdatasync on, commands of {COMMAND_SIZE} bytes:")
            rates = measure_load(leader, arguments.seconds)
        for outstanding in OUTSTANDING if "reads" in parts else ():
            found = leader.ask(f"reads {outstanding} {arguments.seconds}", "rate")
            print(f"linearizable reads, {outstanding:4} outstanding: {told(found)}", flush=True)
        if "idle" in parts:
            measure_idle(masters)
        if "kills" in parts:
            measure_failover(masters, peers, folder, arguments)
    finally:
        for master in masters.values():
            master.end()
    return rates


def measure_stock(folder: Path, arguments: argparse.Namespace) -> dict[int, float]:
    masters = start(folder, free_peers(), arguments.timeouts, STOCK)
    try:
        print("stock pysyncobj, nothing synced:")
        return measure_load(leader_of(masters), arguments.seconds)
    finally:
        for master in masters.values():
            master.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--timeouts", default="0.5,1.0", help="election timeout, shortest and longest, in seconds")
    parser.add_argument("--folder", default=None, help="where the journals are written (its disk is measured)")
    arguments = parser.parse_args()
    parts = set(arguments.parts.split(","))
    if unknown := parts - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        syncs = measure_disk(folder, 1.0)
        print(f"fdatasync of 4 KiB: {syncs:.0f}/s")
        rates = measure_hardened(folder / "hardened", parts, arguments)
        stock = measure_stock(folder / "stock", arguments) if "stock" in parts else {}
        for outstanding, rate in rates.items():
            against = f", {rate / stock[outstanding]:.2f} x stock pysyncobj" if stock else ""
            print(f"{outstanding:4} outstanding: {rate / syncs:6.2f} x the disk's fdatasync rate{against}")


if __name__ == "__main__":
    main()
