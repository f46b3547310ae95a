"""Run one node of the stock pysyncobj as a process of its own, for comparison; bench/raft.py starts it.

As shipped and at its fastest: its own threads, sockets and journal, one message per command, nothing ever synced.
Lines in: `load K SECONDS SIZE`, `status`. Lines out: JSON, as of bench/raft_process.py.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated


class Counter(SyncObj):  # type: ignore[misc]  # the library has no types
    """Counts commands."""

    def __init__(self, name: str, peers: dict[str, str], journal: str) -> None:
        conf = SyncObjConf(journalFile=journal, appendEntriesUseBatch=False, commandsWaitLeader=False)
        self.count = 0
        super().__init__(peers[name], [address for peer, address in peers.items() if peer != name], conf)

    @replicated  # type: ignore[untyped-decorator]
    def add(self, command: bytes) -> int:
        del command
        self.count += 1
        return self.count


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def load(counter: Counter, outstanding: int, seconds: float, size: int) -> None:
    """Keep `outstanding` commands in flight: each answer asks for the next one, in the library's own thread."""
    command, times, errors = b"x" * size, [], []
    ended, running = threading.Event(), outstanding
    begun_s = time.monotonic()

    def next_one() -> None:
        sent_s = time.monotonic()

        def done(_result: Any, error: int) -> None:
            nonlocal running
            now_s = time.monotonic()
            times.append(now_s - sent_s)
            if error:
                errors.append(error)
            if error or now_s - begun_s >= seconds:
                running -= 1
                if not running:
                    ended.set()
            else:
                next_one()

        counter.add(command, callback=done)

    for _ in range(outstanding):
        next_one()
    ended.wait(seconds + 30)
    spent_s = time.monotonic() - begun_s
    times.sort()
    say(
        rate=round(len(times) / spent_s),
        p50_ms=round(times[len(times) // 2] * 1000, 2),
        p99_ms=round(times[int(len(times) * 0.99)] * 1000, 2),
        errors=errors[:1],
    )


def main(name: str, peers: str, folder: str, _timeouts: str) -> None:
    addresses = dict(pair.split("=", 1) for pair in peers.split(","))
    counter = Counter(name, addresses, folder + ".journal")
    say(started=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "load":
            load(counter, int(rest[0]), float(rest[1]), int(rest[2]))
        elif word == "status":
            say(role="leader" if counter._isLeader() else "follower", leader=bool(counter._isLeader()))


if __name__ == "__main__":
    logging.disable()  # under load it says again and again that it truncates entries that were applied
    main(*sys.argv[1:5])
