"""The in-memory twin of the replicated log: several masters share one list of commands in one process, for tests.

Owns: elections by hand, partitions, stops and restarts, held and lost commands, and checkpoints in a folder that a test
may give. Refuses to know: sockets, Raft.

It keeps the contract of `replicated_log.ReplicatedLog` (tests/contract/test_replicated_log.py): committed commands are
applied in one order everywhere, only a leader that a majority reaches commits, and every proposal ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from dfs.errors import DfsError, DiskFailed, InvalidArgument, NoQuorum, NotLeader, OutcomeUnknown
from dfs.master.raft_checkpoint import CheckpointFolder, CheckpointHead, write_checkpoint
from dfs.master.replicated_log import CheckpointFile, LogStatus, StateMachine, Waiter


class MemoryGroup:
    """What the masters of one cluster share: the committed commands, and who leads. Elections are made by the test."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = tuple(names)
        self.entries: list[bytes] = []
        self.term = 0
        self.leader: str | None = None
        self.running: dict[str, MemoryLog] = {}
        self._cut_off: set[str] = set()

    def join(
        self, name: str, machine: StateMachine, on_leadership: Callable[[bool], None] = lambda _is_leader: None
    ) -> MemoryLog:
        """Return a log for a master that is not started yet; a fresh machine is a restart and replays all entries."""
        return MemoryLog(self, name, machine, on_leadership)

    def reachable(self) -> list[str]:
        return [name for name in self.names if name in self.running and name not in self._cut_off]

    @property
    def has_quorum(self) -> bool:
        return len(self.reachable()) > len(self.names) // 2

    def elect(self, name: str) -> None:
        """Make `name` the leader of a new term; the old one hears of it at once, as far as it can be reached."""
        assert name in self.reachable(), f"{name} cannot lead: it is stopped or cut off"
        assert self.has_quorum, f"{name} cannot lead: only {self.reachable()} of {self.names} reach each other"
        old, self.leader = self.leader, name
        self.term += 1
        self.deliver()
        if old is not None and old != name and old in self.running:
            self.running[old].step_down()
        self.running[name].lead()

    def cut_off(self, name: str) -> None:
        """Partition one master away from the others; a leader without a majority stops leading."""
        self._cut_off.add(name)
        self.settle()

    def heal(self, name: str) -> None:
        self._cut_off.discard(name)
        self.settle()

    def settle(self) -> None:
        """Take the leadership away from a leader that no majority reaches, and catch the reachable masters up."""
        if self.leader is not None and (self.leader not in self.reachable() or not self.has_quorum):
            old, self.leader = self.leader, None
            if old in self.running:
                self.running[old].step_down()
        self.deliver()

    def commit(self, command: bytes) -> int:
        """Append a command for ever, apply it at all reachable masters, and return its index."""
        self.entries.append(command)
        self.deliver()
        return len(self.entries) - 1

    def deliver(self) -> None:
        for name in self.reachable():
            self.running[name].catch_up()


class MemoryLog:
    """One master's `ReplicatedLog`. The fault switches are for tests and each lasts for one proposal."""

    def __init__(
        self, group: MemoryGroup, name: str, machine: StateMachine, on_leadership: Callable[[bool], None]
    ) -> None:
        self.name = name
        self.machine = machine
        self._group = group
        self._on_leadership = on_leadership
        self._applied = 0
        self._results: dict[int, Any] = {}  # of entries proposed here, until their proposers take them
        self._awaited: set[int] = set()
        self._is_leader = False
        self._in_flight: set[asyncio.Event] = set()  # one per waiting proposal, set when the leadership goes
        self._tasks: set[asyncio.Task[None]] = set()  # of waiters
        self._gate = asyncio.Event()
        self._gate.set()
        self.lose_next_reply = False  # the command is committed, its proposer hears OutcomeUnknown
        self.lose_next_command = False  # the command is gone, its proposer hears OutcomeUnknown
        self.proposals = 0
        self.age_s: float | None = None  # what `staleness_s` says of a follower
        self.disk: Path | None = None  # where checkpoints go; without one writing them fails

    # --- the test's hands --------------------------------------------------------------------------

    def hold(self) -> None:
        """Let proposals wait on their way to the majority until `release`."""
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def lead(self) -> None:
        if not self._is_leader:
            self._is_leader = True
            self._on_leadership(True)

    def step_down(self) -> None:
        if self._is_leader:
            self._is_leader = False
            for lost in self._in_flight:
                lost.set()
            self._on_leadership(False)

    def catch_up(self) -> None:
        while self._applied < len(self._group.entries):
            index = self._applied
            self._applied += 1
            result = self.machine.apply_encoded(self._group.entries[index])
            if index in self._awaited:
                self._results[index] = result

    # --- ReplicatedLog ---------------------------------------------------------------------------------

    async def start(self) -> None:
        self._group.running[self.name] = self
        self._group.settle()
        await asyncio.sleep(0)

    async def propose(self, command: bytes, timeout_s: float) -> Any:
        if not self._is_leader:
            raise NotLeader(f"master {self.name} does not lead")
        self.proposals += 1
        lose_command, self.lose_next_command = self.lose_next_command, False
        lose_reply, self.lose_next_reply = self.lose_next_reply, False
        await self._travel(timeout_s)
        if lose_command:
            raise OutcomeUnknown("the command was lost on its way")
        index = len(self._group.entries)
        self._awaited.add(index)
        try:
            self._group.commit(command)
            result = self._results.pop(index)
        finally:
            self._awaited.discard(index)
        if lose_reply:
            raise OutcomeUnknown("the answer to the command was lost")
        return result

    async def _travel(self, timeout_s: float) -> None:
        """Give others a turn, wait at the gate, and end as OutcomeUnknown when time or leadership runs out."""
        lost = asyncio.Event()
        self._in_flight.add(lost)
        waits = [asyncio.ensure_future(lost.wait()), asyncio.ensure_future(self._gate.wait())]
        try:
            await asyncio.sleep(0)
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._in_flight.discard(lost)
            for wait in waits:
                wait.cancel()
        if lost.is_set():
            raise OutcomeUnknown("leadership was lost while the command was on its way")
        if not self._gate.is_set():
            raise OutcomeUnknown(f"no majority of the masters confirmed the command within {timeout_s:.1f} s")

    async def read_barrier(self, timeout_s: float) -> None:
        if not self._is_leader:
            raise NotLeader(f"master {self.name} does not lead")
        try:
            await self._travel(timeout_s)
        except OutcomeUnknown:
            raise NoQuorum(f"master {self.name} could not prove within {timeout_s:.1f} s that it leads") from None

    def submit(self, command: bytes, waiter: Waiter) -> None:
        if not self._is_leader:
            raise NotLeader(f"master {self.name} does not lead")
        self._tell_later(waiter, self.propose(command, waiter.deadline_s - time.monotonic()))

    def prove(self, waiter: Waiter) -> None:
        if not self._is_leader:
            raise NotLeader(f"master {self.name} does not lead")
        self._tell_later(waiter, self.read_barrier(waiter.deadline_s - time.monotonic()))

    def _tell_later(self, waiter: Waiter, work: Coroutine[Any, Any, Any]) -> None:
        async def tell() -> None:
            result, failure = None, None
            try:
                result = await work
            except DfsError as error:
                failure = error
            if not waiter.is_known:
                waiter.ended(result, failure)

        task = asyncio.get_running_loop().create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def is_leader(self) -> bool:
        return self._is_leader

    def status(self) -> LogStatus:
        if self.name not in self._group.running:
            return LogStatus("stopped", 0, 0, 0, None)
        is_reachable = self.name in self._group.reachable()
        role = "leader" if self._is_leader else "follower" if is_reachable and self._group.leader else "candidate"
        commit = len(self._group.entries) if is_reachable else self._applied
        return LogStatus(role, self._group.term, commit, self._applied, self._group.leader if is_reachable else None)

    def staleness_s(self) -> float | None:
        return 0.0 if self._is_leader else self.age_s

    async def hand_over(self, target: str, timeout_s: float) -> None:
        if not self._is_leader:
            raise NotLeader(f"master {self.name} does not lead")
        if target not in self._group.names:
            raise InvalidArgument(f"there is no master {target!r}")
        await asyncio.sleep(0)
        if target not in self._group.reachable():
            raise NoQuorum(f"master {target} did not take over within {timeout_s:.1f} s")
        self._group.elect(target)

    async def write_checkpoint(self, timeout_s: float) -> CheckpointFile:
        if self.disk is None:
            raise DiskFailed(f"master {self.name} has no disk to write a checkpoint to ({timeout_s:.1f} s)")
        folder = CheckpointFolder(self.disk, fsync=False)
        index = self._applied + 1
        draft = folder.path(index).with_suffix(".tmp")
        head = CheckpointHead((b"", index - 1, self._group.term), (b"", index, self._group.term))
        write_checkpoint(draft, head, self.machine.dump(), fsync=False)
        folder.publish(draft, index)
        await asyncio.sleep(0)
        return CheckpointFile(index, folder.path(index).stat().st_size, 0.0, folder.path(index))

    def checkpoint_file(self, index: int | None = None) -> CheckpointFile | None:
        found = None if self.disk is None else CheckpointFolder(self.disk, fsync=False).find(index)
        return None if found is None else CheckpointFile(found.index, found.size, 0.0, found.path)

    async def close(self) -> None:
        if self._group.running.get(self.name) is self:
            del self._group.running[self.name]
            self.step_down()
            self._group.settle()
        await asyncio.sleep(0)
