"""The masters of one replicated log in one event loop, over loopback: started, stopped, crashed, cut off, wiped.

Owns: `CommandList`, the state machine that keeps what it was told, and `RaftGroup`, which waits for what comes about.
Refuses to know: what a test expects, and processes (bench/raft_process.py).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dfs.errors import DfsError, NotLeader, OutcomeUnknown
from dfs.local.ports import free_ports
from dfs.master.raft_state import RaftLog
from dfs.net.auth import ClusterKey

KEY = ClusterKey.from_secret(b"a secret of thirty-two bytes, ok", "test")
WAIT_S = 120.0  # processor time is scarce where many tests run at once
POLL_S = 0.01


class CommandList:
    """The list of applied commands; the result of one is its place, from 1. `poison` raises."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.attempts = 0

    def apply_encoded(self, command: bytes) -> int:
        self.attempts += 1
        if command == b"poison":
            raise ValueError(command)
        self.commands.append(command)
        return len(self.commands)

    def dump(self) -> Iterator[bytes]:
        yield from self.commands

    def load(self, pieces: Iterable[bytes]) -> None:
        self.commands = list(pieces)


class RaftGroup:
    """`size` masters called m1, m2…; `logs` has those that run, `machines` the last life of each."""

    ELECTION_TIMEOUT_S = (1.0, 2.0)  # all masters stand still when this process has to wait for a processor
    MACHINE: type[CommandList] = CommandList

    def __init__(self, folder: Path, size: int = 3) -> None:
        self.folder = folder
        self.peers = {f"m{number}": f"127.0.0.1:{port}" for number, port in enumerate(free_ports(size), 1)}
        self.logs: dict[str, RaftLog] = {}
        self.machines: dict[str, CommandList] = {}
        self.failures: dict[str, DfsError] = {}
        self.leaderships: list[tuple[str, bool]] = []

    def make(self, name: str, *, key: ClusterKey = KEY) -> RaftLog:
        """Return a log of this name on its folder, with a new machine."""
        machine = self.machines[name] = self.MACHINE()
        return RaftLog(
            name=name,
            peers=self.peers,
            data_dir=self.folder / name,
            key=key,
            machine=machine,
            election_timeout_s=self.ELECTION_TIMEOUT_S,
            fsync=False,
            on_leadership=lambda leads: self.leaderships.append((name, leads)),
            on_failure=lambda error: self.failures.__setitem__(name, error),
        )

    async def start(self, *names: str, key: ClusterKey = KEY) -> None:
        for name in names or tuple(self.peers):
            log = self.make(name, key=key)
            await log.start()
            self.logs[name] = log

    async def stop(self, *names: str) -> None:
        """Stop cleanly: a leader hands over first."""
        for name in names or tuple(self.logs):
            await self.logs.pop(name).close()

    async def crash(self, *names: str) -> None:
        """Stop as a crash does: nothing is handed over, nothing more is said."""
        for name in names or tuple(self.logs):
            log = self.logs.pop(name)
            log.node.transport.close()
            log.node.transport._links.clear()
            await log.close()

    async def lose_disk(self, name: str) -> None:
        """Crash a master, if it runs, and empty its folder."""
        if name in self.logs:
            await self.crash(name)
        shutil.rmtree(self.folder / name)

    def isolate(self, name: str) -> None:
        """Drop all that a master would send, and all that it would hear."""
        transport = self.logs[name].node.transport
        transport.__dict__.update(flush=lambda: None, link_messages=lambda *_: None)

    def heal(self, name: str) -> None:
        transport = self.logs[name].node.transport
        del transport.__dict__["flush"], transport.__dict__["link_messages"]

    async def leader(self, *, apart_from: str = "") -> tuple[str, RaftLog]:
        def found() -> list[str]:
            return [name for name, log in self.logs.items() if log.is_leader and name != apart_from]

        await wait_until(lambda: bool(found()), "a leader")
        return found()[0], self.logs[found()[0]]

    async def propose(self, command: bytes) -> Any:
        """Propose at whoever leads, until it is acknowledged."""
        deadline_s = time.monotonic() + WAIT_S
        while True:
            _, log = await self.leader()
            try:
                return await log.propose(command, 5)
            except (NotLeader, OutcomeUnknown):
                assert time.monotonic() < deadline_s
                await asyncio.sleep(POLL_S)

    async def agree(self) -> list[bytes]:
        """Wait until all running machines are equal, and return their commands."""
        machines = [self.machines[name] for name in self.logs]
        await wait_until(
            lambda: all(machine.commands == machines[0].commands for machine in machines), "all masters agree"
        )
        return machines[0].commands

    async def check_all_have(self, wanted: list[bytes]) -> None:
        """Wait until all running machines have applied these commands and no others."""
        await wait_until(
            lambda: all(self.machines[name].commands == wanted for name in self.logs), f"all masters have {wanted}"
        )

    async def until_members(self) -> None:
        await wait_until(
            lambda: all(log.status().role != "joining" for log in self.logs.values()), "all masters are members"
        )


async def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never happened: {what}"
        await asyncio.sleep(POLL_S)


def run_group(scenario: Callable[[RaftGroup], Awaitable[None]], *, size: int = 3) -> None:
    """Run a scenario on masters that are not started yet, in a loop of its own; end them like a crash."""

    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            group = RaftGroup(Path(folder), size)
            try:
                await scenario(group)
            finally:
                await group.crash()

    asyncio.run(main())
