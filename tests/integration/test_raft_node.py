"""Do masters on the hardened log keep every acknowledged change and one history, whatever happens to them?

Three nodes in one event loop over loopback. Kills of real processes are in test_raft_processes.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.errors import (
    ConfigError,
    DfsError,
    DiskFailed,
    LimitExceeded,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
)
from dfs.master import raft_engine, raft_node
from dfs.master.raft_node import COMMAND_SIZE_MAX, HardenedRaftLog
from dfs.net.auth import ClusterKey

KEY = ClusterKey.from_secret(b"a secret of thirty-two bytes, ok", "test")
OTHER_KEY = ClusterKey.from_secret(b"another secret with enough bytes", "test")
WAIT_S = 30.0


class Machine:
    """The list of applied commands."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply_encoded(self, command: bytes) -> int:
        if command == b"poison":
            raise ValueError(command)
        self.commands.append(command)
        return len(self.commands)

    def dump(self) -> Iterator[bytes]:
        yield from self.commands

    def load(self, pieces: Iterable[bytes]) -> None:
        self.commands = list(pieces)


def free_addresses(names: Iterable[str]) -> dict[str, str]:
    sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
    addresses = {name: f"127.0.0.1:{sock.getsockname()[1]}" for name, sock in sockets.items()}
    for sock in sockets.values():
        sock.close()
    return addresses


async def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.01)


class Cluster:
    """Nodes by name, each with its machine; `isolate` drops all messages of one, both ways."""

    ELECTION_TIMEOUT_S = (0.3, 0.6)

    def __init__(self, folder: Path, size: int = 3) -> None:
        self.folder = folder
        self.peers = free_addresses(f"m{number}" for number in range(1, size + 1))
        self.nodes: dict[str, HardenedRaftLog] = {}
        self.machines: dict[str, Machine] = {}
        self.failures: dict[str, DfsError] = {}
        self.leaderships: list[tuple[str, bool]] = []

    async def start(self, *names: str, key: ClusterKey = KEY) -> None:
        for name in names or tuple(self.peers):
            machine = self.machines[name] = Machine()
            node = HardenedRaftLog(
                name=name,
                peers=self.peers,
                data_dir=self.folder / name,
                key=key,
                machine=machine,
                election_timeout_s=self.ELECTION_TIMEOUT_S,
                fsync=False,
                on_leadership=lambda leads, name=name: self.leaderships.append((name, leads)),  # type: ignore[misc]
                on_failure=lambda error, name=name: self.failures.__setitem__(name, error),  # type: ignore[misc]
            )
            await node.start()
            self.nodes[name] = node

    async def stop(self, *names: str) -> None:
        for name in names or tuple(self.nodes):
            await self.nodes.pop(name).close()

    async def leader(self, *, apart_from: str = "") -> tuple[str, HardenedRaftLog]:
        def found() -> list[str]:
            return [name for name, node in self.nodes.items() if node.is_leader and name != apart_from]

        await wait_until(lambda: bool(found()), "a leader")
        return found()[0], self.nodes[found()[0]]

    async def propose(self, command: bytes) -> Any:
        """Propose at whoever leads, until it is acknowledged."""
        deadline = time.monotonic() + WAIT_S
        while True:
            _, node = await self.leader()
            try:
                return await node.propose(command, 5)
            except (NotLeader, OutcomeUnknown):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    async def agree(self) -> list[bytes]:
        """Wait until all machines are equal and return their commands."""
        machines = [self.machines[name] for name in self.nodes]
        await wait_until(
            lambda: all(machine.commands == machines[0].commands for machine in machines), "all masters agree"
        )
        return machines[0].commands

    def isolate(self, name: str) -> None:
        transport = self.nodes[name]._transport
        transport.__dict__.update(flush=lambda: None, link_messages=lambda *_: None)

    def heal(self, name: str) -> None:
        transport = self.nodes[name]._transport
        del transport.__dict__["flush"], transport.__dict__["link_messages"]


def run(scenario: Callable[[Cluster], Awaitable[None]], *, size: int = 3) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            cluster = Cluster(Path(folder), size)
            try:
                await scenario(cluster)
            finally:
                await cluster.stop()

    asyncio.run(main())


def test_commands_reach_all_masters_in_one_order() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        _, node = await cluster.leader()
        results = await asyncio.gather(*(node.propose(b"%d" % number, 10) for number in range(300)))
        assert results == list(range(1, 301))
        assert await cluster.agree() == [b"%d" % number for number in range(300)]
        status = node.status()
        assert (status.role, status.leader) == ("leader", next(n for n in cluster.nodes if cluster.nodes[n] is node))

    run(scenario)


def test_it_runs_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            cluster = Cluster(Path(folder))
            await cluster.start()
            assert await cluster.propose(b"x") == 1
            _, node = await cluster.leader()
            await node.read_barrier(5)
            node.checkpoint()
            await wait_until(lambda: node._engine.checkpoint_index > 0, "a checkpoint begins")
            await wait_until(lambda: not node._engine.checkpoints.writer.is_writing, "the checkpoint is written")
            assert await cluster.propose(b"y") == 2
            await cluster.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_single_master_works_alone_and_restarts() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        for number in range(20):
            await cluster.propose(b"%d" % number)
        _, node = await cluster.leader()
        await node.read_barrier(5)
        await cluster.stop()
        await cluster.start()
        assert await cluster.propose(b"more") == 21

    run(scenario, size=1)


def test_restarting_all_masters_loses_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        for number in range(50):
            await cluster.propose(b"%d" % number)
        terms = [node.status().term for node in cluster.nodes.values()]
        await cluster.stop()
        await cluster.start()
        await cluster.propose(b"after")
        assert await cluster.agree() == [*(b"%d" % number for number in range(50)), b"after"]
        assert min(node.status().term for node in cluster.nodes.values()) > min(terms)

    run(scenario)


def test_a_leader_that_stops_hands_over_and_keeps_its_word() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        await cluster.propose(b"one")
        name, _ = await cluster.leader()
        await cluster.stop(name)
        assert (name, False) in cluster.leaderships
        assert await cluster.propose(b"two") == 2
        await cluster.start(name)
        assert await cluster.agree() == [b"one", b"two"]

    run(scenario)


def test_fault_f2_an_isolated_leader_steps_down_and_serves_no_stale_read() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        await cluster.propose(b"before")
        old_name, old = await cluster.leader()
        cluster.isolate(old_name)
        lost = asyncio.ensure_future(old.propose(b"lost", 20))
        read = asyncio.ensure_future(old.read_barrier(20))
        _, new = await cluster.leader(apart_from=old_name)
        await new.propose(b"after", 10)
        with pytest.raises((NotLeader, NoQuorum)):
            await read
        with pytest.raises(OutcomeUnknown):
            await lost
        await wait_until(lambda: not old.is_leader, "the isolated leader steps down")
        with pytest.raises(NotLeader):
            await old.read_barrier(5)
        term = new.status().term
        await asyncio.sleep(1.0)  # long enough for many campaigns, were it not for the pre-vote
        assert old.status().term <= term
        cluster.heal(old_name)
        await wait_until(lambda: cluster.machines[old_name].commands == [b"before", b"after"], "the old leader follows")
        assert await cluster.propose(b"more") == 3
        assert await cluster.agree() == [b"before", b"after", b"more"]

    run(scenario)


def test_a_read_waits_for_what_was_acknowledged_before_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        for number in range(30):
            await cluster.propose(b"%d" % number)
            _, node = await cluster.leader()
            await node.read_barrier(5)
            machine = next(cluster.machines[name] for name in cluster.nodes if cluster.nodes[name] is node)
            assert machine.commands[-1] == b"%d" % number

    run(scenario)


def test_fault_e3_without_a_quorum_every_wait_ends() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        name, node = await cluster.leader()
        await cluster.propose(b"one")
        for other in [other for other in cluster.nodes if other != name]:
            cluster.isolate(other)
        with pytest.raises((NoQuorum, NotLeader)):
            await node.read_barrier(0.2)
        if node.is_leader:
            with pytest.raises((OutcomeUnknown, NotLeader)):
                await node.propose(b"two", 0.2)
        await wait_until(lambda: not node.is_leader, "the leader steps down")
        with pytest.raises(NotLeader):
            await node.propose(b"three", 5)

    run(scenario)


def test_followers_refuse_proposals_and_reads() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        name, _ = await cluster.leader()
        follower = next(node for other, node in cluster.nodes.items() if other != name)
        with pytest.raises(NotLeader):
            await follower.propose(b"x", 5)
        with pytest.raises(NotLeader):
            await follower.read_barrier(5)
        await wait_until(lambda: follower.status().leader == name, "the follower knows the leader")

    run(scenario)


def test_limits_on_proposals_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine 8 MiB through three masters in one process may take longer than the usual time-out here.
    monkeypatch.setattr(Cluster, "ELECTION_TIMEOUT_S", (2.0, 4.0))

    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        _, node = await cluster.leader()
        with pytest.raises(LimitExceeded, match="split it"):
            await node.propose(bytes(COMMAND_SIZE_MAX + 1), 5)
        assert await node.propose(bytes(COMMAND_SIZE_MAX), 30) == 1
        monkeypatch.setattr(raft_node, "PENDING_COMMANDS_MAX", 3)
        outcomes = await asyncio.gather(*(node.propose(b"x", 10) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [int, int, int, Overloaded, Overloaded]
        assert await node.propose(b"y", 10) == 5

    run(scenario)


def test_a_follower_that_was_away_catches_up_from_the_log() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        name, _ = await cluster.leader()
        away = next(other for other in cluster.nodes if other != name)
        await cluster.stop(away)
        for number in range(200):
            await cluster.propose(b"%d" % number)
        await cluster.start(away)
        assert len(await cluster.agree()) == 200

    run(scenario)


class SlowMachine(Machine):
    """Takes `install_s` to load a dump in steps, as a state of millions of files would."""

    install_s = 0.0

    def begin_load(self, pieces: Iterable[bytes]) -> SlowMachine:
        self.loaded, self.ready_at_s = list(pieces), time.monotonic() + self.install_s
        return self

    def step(self) -> bool:
        return time.monotonic() >= self.ready_at_s

    def install(self) -> None:
        self.load(self.loaded)


def test_nobody_loses_patience_while_the_only_follower_installs_a_large_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(raft_engine, "KEEP_ENTRIES", 5)
    monkeypatch.setattr(Cluster, "ELECTION_TIMEOUT_S", (1.0, 2.0))
    monkeypatch.setattr(SlowMachine, "install_s", 5.0)
    monkeypatch.setattr(sys.modules[__name__], "Machine", SlowMachine)

    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        name, node = await cluster.leader()
        away, dead = (other for other in cluster.nodes if other != name)
        await cluster.stop(away)
        for number in range(20):
            await cluster.propose(b"%d" % number)
        node.checkpoint()
        await wait_until(lambda: node._journal.first_index > 10, "the leader's log is cut behind its checkpoint")
        term = node.status().term
        await cluster.stop(dead)
        await cluster.start(away)
        late = cluster.nodes[away]
        await wait_until(lambda: late._engine.is_installing, "the checkpoint is being installed")
        await node.read_barrier(5)  # the late one answers while it installs
        assert late._engine.is_installing
        assert late.status().leader == name
        assert len(await cluster.agree()) == 20
        assert (node.is_leader, node.status().term) == (True, term), "there was no election"
        await cluster.propose(b"goes on")
        assert len(await cluster.agree()) == 21

    run(scenario)


def test_a_follower_that_was_away_too_long_gets_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_engine, "KEEP_ENTRIES", 5)
    blob = os.urandom(300_000)

    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        name, node = await cluster.leader()
        away = next(other for other in cluster.nodes if other != name)
        await cluster.propose(b"known to all")
        await cluster.agree()
        await cluster.stop(away)
        for number in range(40):
            await cluster.propose(b"%d" % number + blob)
        assert node.is_leader
        node.checkpoint()
        await wait_until(lambda: node._journal.first_index > 30, "the leader's log is cut behind its checkpoint")
        await cluster.start(away)
        assert len(await cluster.agree()) == 41
        await cluster.propose(b"goes on")
        assert len(await cluster.agree()) == 42
        assert cluster.nodes[away]._engine.checkpoints.folder.indexes()
        await cluster.stop(away)
        await cluster.start(away)
        assert len(await cluster.agree()) == 42

    run(scenario)


def test_fault_g2_a_master_with_another_secret_is_left_out() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        await cluster.leader()
        await cluster.stop("m3")
        shutil.rmtree(cluster.folder / "m3")
        await cluster.start("m3", key=OTHER_KEY)
        name, _ = await cluster.leader()
        assert name != "m3"
        await cluster.propose(b"x")
        await asyncio.sleep(0.5)
        assert cluster.nodes["m3"].status().term == 0
        assert cluster.nodes["m3"]._transport.connected == ()
        assert cluster.machines["m3"].commands == []

    run(scenario)


def test_fault_g1_a_stranger_is_dropped_before_anything_is_interpreted() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        await cluster.propose(b"x")
        host, port = cluster.peers["m1"].split(":")
        for rubbish in (b"\x80\x04K\x01.", b"DFSr" + bytes(600), os.urandom(5000)):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(rubbish.ljust(600, b"!"))
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        assert await cluster.propose(b"y") == 2

    run(scenario)


def test_fault_e5_a_poisonous_command_stops_the_masters_loudly() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        name, node = await cluster.leader()
        with pytest.raises(OutcomeUnknown):
            await node.propose(b"poison", 5)
        await wait_until(lambda: name in cluster.failures, "the failure is reported")
        assert not node.is_leader
        with pytest.raises(NotLeader, match="has stopped"):
            await node.propose(b"x", 5)

    run(scenario)


def test_fault_b6_a_leader_whose_disk_fails_stops_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        await cluster.propose(b"one")
        name, node = await cluster.leader()
        journal = node._journal

        def broken(_data: bytes) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(journal, "_append", broken)
        with pytest.raises(OutcomeUnknown):
            await node.propose(b"two", 20)
        await wait_until(lambda: name in cluster.failures, "the failure is reported")
        assert isinstance(cluster.failures[name], DiskFailed)
        await wait_until(lambda: (name, False) in cluster.leaderships, "the end of leadership is announced")
        await cluster.leader(apart_from=name)
        await cluster.propose(b"three")

    run(scenario)


def test_one_data_directory_serves_one_process() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        twin = HardenedRaftLog(
            name="m1",
            peers=cluster.peers,
            data_dir=cluster.folder / "m1",
            key=KEY,
            machine=Machine(),
            election_timeout_s=(0.3, 0.6),
            fsync=False,
            on_leadership=lambda _: None,
        )
        with pytest.raises(ConfigError, match="in use by another process"):
            await twin.start()
        await twin.close()

    run(scenario)


def test_an_address_in_use_is_a_clear_error() -> None:
    async def scenario(cluster: Cluster) -> None:
        host, port = cluster.peers["m1"].split(":")
        with (
            socket.create_server((host, int(port))),
            pytest.raises(ConfigError, match="another process uses it"),
        ):
            await cluster.start("m1")

    run(scenario)


def test_one_history_through_leader_changes() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.start()
        acknowledged: list[bytes] = []
        numbers = itertools.count()
        is_over = False

        async def writer() -> None:
            while not is_over:
                command = b"%d" % next(numbers)
                for node in list(cluster.nodes.values()):
                    if node.is_leader:
                        try:
                            await node.propose(command, 2)
                        except NotLeader:
                            continue
                        except OutcomeUnknown:
                            break  # it may have happened: without a session it must not be sent again
                        acknowledged.append(command)
                        break
                await asyncio.sleep(0)

        writers = [asyncio.ensure_future(writer()) for _ in range(8)]
        for _ in range(3):
            count = len(acknowledged)
            await wait_until(lambda count=count: len(acknowledged) > count + 50, "progress")  # type: ignore[misc]
            name, _ = await cluster.leader()
            cluster.isolate(name)
            await cluster.leader(apart_from=name)
            cluster.heal(name)
        is_over = True
        await asyncio.gather(*writers)
        history = await cluster.agree()
        assert set(acknowledged) <= set(history)
        assert len(set(history)) == len(history)

    run(scenario)
