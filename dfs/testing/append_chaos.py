"""Appenders against a cluster that is being killed: real processes, each acknowledgement written down.

Owns: appenders that may be killed with -9 and go on under their identity, the killing of nodes, and the final look.
Refuses to know: what is promised (dfs.chaos.records judges).

Run it by hand for longer: `python -m dfs.testing.append_chaos --rounds 5 --appenders 16 --records 5000`.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.client import ClusterAccess, DfsClient
from dfs.config import load_config
from dfs.errors import DfsError
from dfs.net.messages import Locate, LocateReply
from dfs.testing.cluster import ClusterUnderTest, wait_until

PATH = "/log"
SIZE_MIN, SIZE_MAX = 100, 64 * 1024
OUTSTANDING_MAX = 64  # records of one appender that wait for their offset
APPENDER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """How much is appended, and how often something is killed."""

    appenders: int
    records: int  # of each appender
    seed: int
    kill_every_s: float
    size_max: int = SIZE_MAX

    def size(self, appender: int, sequence: int) -> int:
        """Return the size of a record: mostly small, now and then large."""
        draw = random.Random(self.seed << 40 | appender << 24 | sequence)  # noqa: S311 - the same in each process
        return draw.randrange(SIZE_MIN, self.size_max if draw.random() < 0.1 else SIZE_MIN * 5)


# --- one appender, a process of its own ---------------------------------------------------------------------


def run_appender(config: Path, number: int, plan: ChaosPlan, journal: Path) -> None:
    """Append all records of one appender, going on where an earlier process of it was killed.

    The journal gets a line `sequence offset` for each acknowledged record, before the next one is waited for.
    """
    identity = number.to_bytes(16, "big")
    access = ClusterAccess.from_config(load_config(config))
    with DfsClient(access, timeout_s=APPENDER_TIMEOUT_S) as client, journal.open("a", encoding="ascii") as acks:
        appender = client.appender(PATH, identity=identity)
        waiting = []
        for sequence in range(appender.last_sequence + 1, plan.records + 1):
            waiting.append((sequence, appender.append(make_record(number, sequence, plan.size(number, sequence)))))
            if len(waiting) >= OUTSTANDING_MAX:
                _note(acks, *waiting.pop(0))
        for item in waiting:
            _note(acks, *item)
        appender.flush()


def _note(acks: TextIO, sequence: int, outcome: Future[int]) -> None:
    acks.write(f"{sequence} {outcome.result()}\n")
    acks.flush()


def read_journal(path: Path, number: int) -> list[Acknowledged]:
    """Return what an appender was told; a line that a kill cut off was not heard."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").split("\n")[:-1]
    return [Acknowledged(number, *map(int, line.split())) for line in lines]


# --- the chaos ---------------------------------------------------------------------------------------------


class AppendChaos:
    """One round: appenders, and a hand that kills them and the nodes that they depend on."""

    def __init__(self, cluster: ClusterUnderTest, plan: ChaosPlan, folder: Path) -> None:
        self.kills: list[str] = []
        self._cluster = cluster
        self._plan = plan
        self._folder = folder
        self._rng = random.Random(plan.seed)  # noqa: S311 - to be repeated
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._failures: list[str] = []

    def run(self, wait_s: float) -> list[str]:
        """Append everything under kills; return what went wrong. The cluster is whole again afterwards."""
        for number in range(1, self._plan.appenders + 1):
            self._start(number)
        until_s = time.monotonic() + wait_s
        spare_from_s = until_s - wait_s / 2  # on a busy machine more would be killed than is done in between
        victims = self._victims()
        try:
            while self._processes and time.monotonic() < until_s:
                time.sleep(self._plan.kill_every_s)  # the kills are the clock of a round
                self._reap()
                if self._processes and time.monotonic() < spare_from_s:
                    self._kill(next(victims))
        finally:
            for process in self._processes.values():
                process.kill()
                process.communicate()
        self._failures += [f"appender {number} did not finish" for number in self._processes]
        for name in self._cluster.names():
            if name not in self._cluster.local.pids():
                self._cluster.start(name)
        self._cluster.wait_healthy()
        return self._failures

    def _victims(self) -> Iterator[str]:
        while True:
            kinds = ["head", "middle", "last", "leader", "appender"]
            self._rng.shuffle(kinds)
            yield from kinds

    def _start(self, number: int) -> None:
        plan = self._plan
        command = [sys.executable, "-m", "dfs.testing.append_chaos", "--appender", str(number)]
        command += ["--config", str(self._cluster.config_path), "--journal", str(self._journal(number))]
        command += ["--records", str(plan.records), "--seed", str(plan.seed), "--size-max", str(plan.size_max)]
        self._processes[number] = subprocess.Popen(command, stderr=subprocess.PIPE)  # noqa: S603 - ourselves

    def _journal(self, number: int) -> Path:
        return self._folder / f"acks-{number}"

    def _reap(self) -> None:
        for number, process in list(self._processes.items()):
            if process.poll() is None:
                continue
            del self._processes[number]
            _, errors = process.communicate()
            if process.returncode < 0:
                self._start(number)  # it was killed: it goes on
            elif process.returncode:
                self._failures.append(f"appender {number}: {errors.decode()[-600:]}")

    def _kill(self, kind: str) -> None:
        if kind == "appender":
            number = self._rng.choice(list(self._processes))
            self._processes[number].kill()
            self.kills.append(f"appender {number}")
            return
        name = self._cluster.leader() if kind == "leader" else self._chain_server(kind)
        if name is None:
            return
        self.kills.append(f"{kind} {name}")
        with contextlib.suppress(DfsError):
            self._cluster.kill(name)
        self._cluster.start(name)

    def _chain_server(self, kind: str) -> str | None:
        """Return the node that is the head, the middle or the last server of the present tail."""
        with self._cluster.client(timeout_s=5) as client, contextlib.suppress(DfsError):
            reply = locate(client, PATH)
            if reply.tail:
                chain = reply.tail[0].chain
                index = {"head": 0, "middle": len(chain) // 2, "last": len(chain) - 1}[kind]
                return reply.servers[chain[index]].name
        return None

    def judge(self) -> int:
        """Seal, then check every promise about the file; return how many records it holds."""
        acknowledged = [
            one for number in range(1, self._plan.appenders + 1) for one in read_journal(self._journal(number), number)
        ]
        with self._cluster.client() as client:
            growing = b"".join(client.read(PATH))
            found = check_exactly_once(growing, acknowledged)
            client.rename(PATH, PATH + ".done")  # seals
            content = b"".join(client.read(PATH + ".done"))
            assert content == growing, "the sealed file is another one than the growing one was"
            check_replicas_alike(self._cluster, client)
        expected = dict.fromkeys(range(1, self._plan.appenders + 1), self._plan.records)
        actual = {number: sum(one.appender == number for one in found) for number in expected}
        assert actual == expected, f"records in the file by appender: {actual}"
        return len(found)


def locate(client: DfsClient, path: str) -> LocateReply:
    """Ask the leader where a file is."""
    return client._ask(Locate(path), LocateReply)


def check_replicas_alike(cluster: ClusterUnderTest, client: DfsClient) -> None:
    """Raise AssertionError unless all replicas of each chunk of the file, as the masters know them, are identical."""
    reply = locate(client, PATH + ".done")
    names = {server.server_id: server.name for server in reply.servers}
    assert not reply.has_more, "more than one page of extents; look at all of them"
    for extent in reply.extents:
        files = set()
        for index in extent.replicas:
            name = names[reply.servers[index].server_id]
            files |= {replica.data() for replica in cluster.replicas(name) if replica.handle == extent.handle}
        assert len(files) == 1, f"replicas of {extent.handle.hex()} differ: {len(files)} contents"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--appenders", type=int, default=16)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size-max", type=int, default=SIZE_MAX)
    parser.add_argument("--kill-every", type=float, default=2.0)
    parser.add_argument("--appender", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.appender is not None:
        plan = ChaosPlan(0, given.records, given.seed, 0.0, given.size_max)
        run_appender(given.config, given.appender, plan, given.journal)
        return
    for turn in range(given.rounds):
        plan = ChaosPlan(given.appenders, given.records, given.seed + turn, given.kill_every, given.size_max)
        began_s = time.monotonic()
        with ClusterUnderTest(chunk_servers=5, chunk_size=4 << 20) as cluster:
            chaos = AppendChaos(cluster, plan, cluster.folder)
            failures = chaos.run(600)
            assert not failures, failures
            wait_until(lambda c=cluster: bool(c.leader()), 60, "a master leads")  # type: ignore[misc]
            count = chaos.judge()
        print(  # noqa: T201 - a tool for people
            f"round {turn + 1}, seed {plan.seed}: {count} records exactly once, {len(chaos.kills)} kills, "
            f"{time.monotonic() - began_s:.0f} s: {', '.join(chaos.kills)}"
        )


if __name__ == "__main__":
    main()
