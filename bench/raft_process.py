"""Run one master's Raft log as a process of its own, driven by lines on stdin; bench/raft.py and a test start it.

Lines in: `load K SECONDS SIZE`, `reads K SECONDS`, `append TEXT`, `dump`, `status`. Lines out: JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dfs.errors import DfsError
from dfs.log import configure
from dfs.master.raft_state import RaftLog
from dfs.net.auth import ClusterKey

KEY = ClusterKey.from_secret(b"bench secret of thirty-two bytes!", "bench")


class Machine:
    """Counts what it applies, and keeps what is not the filling of a benchmark."""

    def __init__(self) -> None:
        self.count = 0
        self.texts: list[str] = []

    def apply_encoded(self, command: bytes) -> int:
        self.count += 1
        if command[:1] == b"=":
            self.texts.append(command[1:].decode())
        return self.count

    def dump(self) -> Iterator[bytes]:
        yield json.dumps([self.count, self.texts]).encode()

    def load(self, pieces: Iterable[bytes]) -> None:
        self.count, self.texts = json.loads(b"".join(pieces))


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


async def measure(call: Callable[[], Awaitable[Any]], outstanding: int, seconds: float) -> None:
    """Keep `outstanding` calls in flight and tell rate and latency."""
    times: list[float] = []
    errors: list[str] = []
    end = time.monotonic() + seconds

    async def worker() -> None:
        while (begun := time.monotonic()) < end and not errors:
            try:
                await call()
            except DfsError as error:
                errors.append(str(error))
                return
            times.append(time.monotonic() - begun)

    begun = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(outstanding)))
    rate = len(times) / (time.monotonic() - begun)
    say(
        rate=round(rate),
        p50_ms=round(quantile(times, 0.5) * 1000, 2),
        p99_ms=round(quantile(times, 0.99) * 1000, 2),
        errors=errors[:1],
    )


async def obey(log: RaftLog, machine: Machine, line: str) -> None:
    word, *rest = line.split()
    if word == "load":
        command = b"x" * int(rest[2])
        await measure(lambda: log.propose(command, 10), int(rest[0]), float(rest[1]))
    elif word == "reads":
        await measure(lambda: log.read_barrier(10), int(rest[0]), float(rest[1]))
    elif word == "append":
        try:
            say(done=await log.propose(b"=" + rest[0].encode(), 5), text=rest[0])
        except DfsError as error:
            say(error=error.code, text=rest[0])
    elif word == "dump":
        say(count=machine.count, texts=machine.texts)
    elif word == "status":
        status = log.status()
        say(role=status.role, term=status.term, commit=status.commit_index, leader=log.is_leader)


async def main(name: str, peers: str, folder: str, timeouts: str) -> None:
    machine = Machine()
    low, high = (float(part) for part in timeouts.split(","))
    log = RaftLog(
        name=name,
        peers=dict(pair.split("=", 1) for pair in peers.split(",")),
        data_dir=Path(folder),
        key=KEY,
        machine=machine,
        election_timeout_s=(low, high),
        fsync=True,
        on_leadership=lambda leads: say(leads=leads),
    )
    await log.start()
    say(started=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    while line := (await reader.readline()).decode():
        task = loop.create_task(obey(log, machine, line))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await log.close()


if __name__ == "__main__":
    configure("master", sys.argv[1], "warning", None)
    try:
        import uvloop

        uvloop.run(main(*sys.argv[1:5]))
    except ImportError:
        asyncio.run(main(*sys.argv[1:5]))
