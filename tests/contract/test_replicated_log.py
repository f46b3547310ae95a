"""The contract of `ReplicatedLog`, for every implementation: one test body, one harness per implementation.

A harness runs three masters in this process, each with a `Journal` as its state machine. To add an implementation,
write its harness and put it into `HARNESSES`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from dfs.errors import DfsError, InvalidArgument, NoQuorum, NotLeader, OutcomeUnknown, StorageCorrupt
from dfs.local.ports import free_ports
from dfs.master.memory_log import MemoryGroup
from dfs.master.raft_state import RaftLog
from dfs.master.replicated_log import ReplicatedLog
from dfs.net.auth import ClusterKey

NAMES = ("m1", "m2", "m3")
PATIENCE_S = 40.0  # how long a condition may take to come true on a busy machine
CALL_S = 20.0
SHORT_S = 0.5  # for calls that cannot succeed


class Journal:
    """A state machine that remembers commands in order and answers each with its place."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply_encoded(self, command: bytes) -> tuple[int, bytes]:
        self.commands.append(command)
        return len(self.commands), command

    def dump(self) -> Iterator[bytes]:
        yield from (len(command).to_bytes(4, "big") + command for command in self.commands)

    def load(self, pieces: Iterable[bytes]) -> None:
        commands = []
        for piece in pieces:
            if int.from_bytes(piece[:4], "big") != len(piece) - 4:
                raise StorageCorrupt("a piece of the journal dump is damaged")
            commands.append(piece[4:])
        self.commands = commands


class Harness(Protocol):
    """Three masters of one implementation. `logs` and `machines` hold those that run."""

    logs: dict[str, ReplicatedLog]
    machines: dict[str, Journal]
    leaderships: list[tuple[str, bool]]  # what on_leadership was told, in order

    async def start(self, name: str) -> None:
        """Start or restart a master with an empty machine, from what it has kept."""

    async def stop(self, name: str) -> None:
        """Close a master's log and forget its machine."""

    async def settle(self) -> None:
        """Give elections a chance: the condition waited for is looked at after each call."""


class MemoryHarness:
    """The in-memory twin; its elections are made by hand, so `settle` makes one when it is due."""

    def __init__(self, _folder: Path) -> None:
        self.group = MemoryGroup(NAMES)
        self.logs: dict[str, ReplicatedLog] = {}
        self.machines: dict[str, Journal] = {}
        self.leaderships: list[tuple[str, bool]] = []

    async def start(self, name: str) -> None:
        machine = Journal()
        log = self.group.join(name, machine, lambda is_leader: self.leaderships.append((name, is_leader)))
        self.machines[name], self.logs[name] = machine, log
        await log.start()

    async def stop(self, name: str) -> None:
        del self.machines[name]
        await self.logs.pop(name).close()

    async def settle(self) -> None:
        if self.group.leader is None and self.group.has_quorum:
            self.group.elect(self.group.reachable()[0])
        await asyncio.sleep(0)


class RaftHarness:
    """The real one: three nodes on loopback in one loop, their folders below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._peers = {name: f"127.0.0.1:{port}" for name, port in zip(NAMES, free_ports(len(NAMES)), strict=True)}
        self._key = ClusterKey.from_secret(b"0" * 64, "test")
        self.logs: dict[str, ReplicatedLog] = {}
        self.machines: dict[str, Journal] = {}
        self.leaderships: list[tuple[str, bool]] = []

    async def start(self, name: str) -> None:
        machine = Journal()
        log = RaftLog(
            name=name,
            peers=self._peers,
            data_dir=self._folder / name,
            key=self._key,
            machine=machine,
            election_timeout_s=(1.0, 2.0),
            fsync=True,
            on_leadership=lambda is_leader: self.leaderships.append((name, is_leader)),
        )
        self.machines[name], self.logs[name] = machine, log
        await log.start()

    async def stop(self, name: str) -> None:
        del self.machines[name]
        await self.logs.pop(name).close()

    async def settle(self) -> None:
        await asyncio.sleep(0.02)


HARNESSES: list[Callable[[Path], Harness]] = [MemoryHarness, RaftHarness]


@pytest.fixture(params=HARNESSES, ids=lambda harness: harness.__name__)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    made: Harness = request.param(tmp_path)
    return made


def run(harness: Harness, test: Callable[[], Awaitable[None]]) -> None:
    """Start all masters, run the test in one loop, and close what still runs."""

    async def body() -> None:
        try:
            for name in NAMES:
                await harness.start(name)
            await test()
        finally:
            for name in list(harness.logs):
                await harness.stop(name)

    asyncio.run(body())


async def until(harness: Harness, condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, f"waited {PATIENCE_S} s for: {what}"
        await harness.settle()


async def leader(harness: Harness) -> str:
    """Return the master that leads and can prove it, and that all running masters follow."""
    found: list[str] = []

    def is_agreed() -> bool:
        found[:] = [name for name, log in harness.logs.items() if log.is_leader]
        return len(found) == 1 and all(log.status().leader == found[0] for log in harness.logs.values())

    await until(harness, is_agreed, "one leader whom all follow")
    return found[0]


def distinct(commands: list[bytes]) -> list[bytes]:
    """Return the commands without repetitions: `propose` may do one twice when its outcome was unknown."""
    return list(dict.fromkeys(commands))


async def propose(harness: Harness, command: bytes) -> tuple[int, bytes]:
    """Propose until it succeeds, like a client without exactly-once sessions."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            result: tuple[int, bytes] = await harness.logs[await leader(harness)].propose(command, CALL_S)
        except DfsError:
            assert time.monotonic() < give_up, f"{command!r} never succeeded"
        else:
            return result


def test_one_master_leads_and_all_know_which(harness: Harness) -> None:
    async def test() -> None:
        name = await leader(harness)
        statuses = {other: log.status() for other, log in harness.logs.items()}
        assert statuses[name].role == "leader"
        assert all(status.role == "follower" for other, status in statuses.items() if other != name)
        assert len({status.term for status in statuses.values()}) == 1
        assert dict(harness.leaderships)[name] is True, "the last that was told of it"

    run(harness, test)


def test_a_proposal_returns_the_machine_s_result_and_reaches_every_master(harness: Harness) -> None:
    async def test() -> None:
        first, second = await propose(harness, b"one"), await propose(harness, b"two")
        assert (first[1], second[1]) == (b"one", b"two")
        assert 1 <= first[0] < second[0], "each is answered with its place"
        await until(
            harness,
            lambda: all(distinct(machine.commands) == [b"one", b"two"] for machine in harness.machines.values()),
            "both commands at all masters",
        )
        status = harness.logs[await leader(harness)].status()
        assert status.applied_index <= status.commit_index

    run(harness, test)


def test_many_proposals_at_once_get_their_own_results_in_one_order(harness: Harness) -> None:
    async def test() -> None:
        log = harness.logs[await leader(harness)]
        commands = [b"%d" % number for number in range(200)]
        results = await asyncio.gather(*(log.propose(command, CALL_S) for command in commands))
        assert [command for _, command in results] == commands
        assert sorted(place for place, _ in results) == list(range(1, 201))
        await until(
            harness, lambda: all(len(machine.commands) == 200 for machine in harness.machines.values()), "all commands"
        )
        assert len({tuple(machine.commands) for machine in harness.machines.values()}) == 1

    run(harness, test)


def test_a_large_command_passes(harness: Harness) -> None:
    async def test() -> None:
        command = bytes(7) * 1_000_000
        assert (await propose(harness, command))[1] == command
        await until(
            harness,
            lambda: all(distinct(machine.commands) == [command] for machine in harness.machines.values()),
            "the large command at all masters",
        )

    run(harness, test)


def test_a_follower_refuses_and_nothing_happens(harness: Harness) -> None:
    async def test() -> None:
        name = await leader(harness)
        for other, log in harness.logs.items():
            if other != name:
                with pytest.raises(NotLeader):
                    await log.propose(b"no", CALL_S)
                with pytest.raises((NotLeader, NoQuorum)):
                    await log.read_barrier(CALL_S)
                assert not log.is_leader
        await propose(harness, b"yes")
        assert distinct(harness.machines[await leader(harness)].commands) == [b"yes"]

    run(harness, test)


def test_a_read_barrier_shows_what_was_acknowledged(harness: Harness) -> None:
    async def test() -> None:
        for number in range(20):
            await propose(harness, b"%d" % number)
            name = await leader(harness)
            await harness.logs[name].read_barrier(CALL_S)
            assert harness.machines[name].commands[-1] == b"%d" % number

    run(harness, test)


def test_a_new_leader_has_what_the_old_one_acknowledged(harness: Harness) -> None:
    async def test() -> None:
        acknowledged = [(await propose(harness, b"%d" % number))[1] for number in range(20)]
        old = await leader(harness)
        await harness.stop(old)
        new = await leader(harness)
        assert new != old
        await harness.logs[new].read_barrier(CALL_S)
        assert distinct(harness.machines[new].commands) == acknowledged
        assert (await propose(harness, b"after"))[0] > 20

    run(harness, test)


def test_without_a_majority_calls_end_and_nothing_is_acknowledged(harness: Harness) -> None:
    async def test() -> None:
        await propose(harness, b"before")
        name = await leader(harness)
        for other in NAMES:
            if other != name:
                await harness.stop(other)
        began = time.monotonic()
        with pytest.raises((OutcomeUnknown, NotLeader)):
            await harness.logs[name].propose(b"lonely", SHORT_S)
        with pytest.raises((NoQuorum, NotLeader)):
            await harness.logs[name].read_barrier(SHORT_S)
        assert time.monotonic() - began < PATIENCE_S
        for other in NAMES:
            if other != name:
                await harness.start(other)
        await propose(harness, b"after")
        commands = harness.machines[await leader(harness)].commands
        assert [command for command in distinct(commands) if command != b"lonely"] == [b"before", b"after"]
        assert commands.count(b"lonely") <= 1, "an unknown outcome happens once or never"

    run(harness, test)


def test_a_master_that_comes_back_catches_up(harness: Harness) -> None:
    async def test() -> None:
        await propose(harness, b"one")
        name = await leader(harness)
        other = next(candidate for candidate in NAMES if candidate != name)
        await harness.stop(other)
        await propose(harness, b"two")
        await harness.start(other)
        await propose(harness, b"three")
        await until(
            harness,
            lambda: distinct(harness.machines[other].commands) == [b"one", b"two", b"three"],
            f"{other} catches up",
        )

    run(harness, test)


def test_when_all_masters_restart_nothing_acknowledged_is_lost(harness: Harness) -> None:
    async def test() -> None:
        acknowledged = [(await propose(harness, b"%d" % number))[1] for number in range(10)]
        for name in NAMES:
            await harness.stop(name)
        for name in NAMES:
            await harness.start(name)
        name = await leader(harness)
        await harness.logs[name].read_barrier(CALL_S)
        assert distinct(harness.machines[name].commands) == acknowledged

    run(harness, test)


def test_leadership_is_told_when_it_comes_and_when_it_goes(harness: Harness) -> None:
    async def test() -> None:
        old = await leader(harness)
        for other in NAMES:
            if other != old:
                await harness.stop(other)
        await until(harness, lambda: not harness.logs[old].is_leader, "a leader without a majority steps down")
        await until(harness, lambda: harness.leaderships[-1] == (old, False), "its end is told")
        assert [told for told in harness.leaderships if told[0] == old] == [(old, True), (old, False)]

    run(harness, test)


def test_a_proposal_in_progress_ends_when_the_log_is_closed(harness: Harness) -> None:
    async def test() -> None:
        name = await leader(harness)
        pending = [asyncio.create_task(harness.logs[name].propose(b"%d" % n, PATIENCE_S)) for n in range(10)]
        await asyncio.sleep(0)
        await harness.stop(name)
        results = await asyncio.wait_for(asyncio.gather(*pending, return_exceptions=True), PATIENCE_S)
        assert all(isinstance(result, (tuple, OutcomeUnknown, NotLeader)) for result in results), results

    run(harness, test)


def test_a_closed_log_refuses_politely(harness: Harness) -> None:
    async def test() -> None:
        name = await leader(harness)
        log = harness.logs[name]
        await harness.stop(name)
        assert not log.is_leader
        with pytest.raises((NotLeader, OutcomeUnknown)):
            await log.propose(b"late", SHORT_S)
        assert log.status().leader is None
        await log.close()

    run(harness, test)


def test_the_leader_hands_over_to_the_one_that_is_named(harness: Harness) -> None:
    async def test() -> None:
        await propose(harness, b"one")
        old = await leader(harness)
        new = next(name for name in NAMES if name != old)
        with pytest.raises(NotLeader):
            await harness.logs[new].hand_over(old, CALL_S)
        with pytest.raises(InvalidArgument, match=r"no .*master 'm9'"):
            await harness.logs[old].hand_over("m9", CALL_S)
        await until(harness, lambda: harness.logs[new].status().applied_index > 0, "the successor is there")
        await harness.logs[old].hand_over(new, CALL_S)
        assert not harness.logs[old].is_leader
        assert await leader(harness) == new
        assert (await propose(harness, b"two"))[1] == b"two"
        assert distinct(harness.machines[new].commands) == [b"one", b"two"]

    run(harness, test)


def test_nobody_hands_over_to_a_master_that_is_away(harness: Harness) -> None:
    async def test() -> None:
        await propose(harness, b"one")
        old = await leader(harness)
        away = next(name for name in NAMES if name != old)
        await harness.stop(away)
        with pytest.raises(NoQuorum, match=away):
            await harness.logs[old].hand_over(away, SHORT_S)
        await propose(harness, b"two")

    run(harness, test)


def test_a_leader_knows_that_its_state_is_young(harness: Harness) -> None:
    async def test() -> None:
        name = await leader(harness)
        log = harness.logs[name]
        await log.read_barrier(CALL_S)
        age_s = log.staleness_s()
        assert age_s is not None
        assert 0 <= age_s < PATIENCE_S

    run(harness, test)
