"""Does a master that lost its disk come back without undoing anything? Three real logs on loopback in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

import pytest

from dfs.errors import DfsError, NoQuorum, NotLeader, OutcomeUnknown, StorageCorrupt
from dfs.local.ports import free_ports
from dfs.master import raft_engine
from dfs.master.raft_node import HardenedRaftLog
from dfs.net.auth import ClusterKey

KEY = ClusterKey.from_secret(b"a secret of thirty-two bytes, ok", "test")
WAIT_S = 30.0
QUIET_S = 2.5  # several election timeouts: an election that can happen does


class Machine:
    """The list of applied commands."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []

    def apply_encoded(self, command: bytes) -> int:
        self.commands.append(command)
        return len(self.commands)

    def dump(self) -> Iterator[bytes]:
        yield from self.commands

    def load(self, pieces: Iterable[bytes]) -> None:
        self.commands = list(pieces)


class Masters:
    """Logs by name, each with its machine and its folder."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.peers = {f"m{n}": f"127.0.0.1:{port}" for n, port in enumerate(free_ports(size), 1)}
        self.logs: dict[str, HardenedRaftLog] = {}
        self.machines: dict[str, Machine] = {}

    async def start(self, *names: str) -> None:
        for name in names or tuple(self.peers):
            self.machines[name] = Machine()
            log = HardenedRaftLog(
                name=name,
                peers=self.peers,
                data_dir=self.folder / name,
                key=KEY,
                machine=self.machines[name],
                election_timeout_s=(0.3, 0.6),
                fsync=False,
                on_leadership=lambda _leads: None,
            )
            await log.start()
            self.logs[name] = log

    async def stop(self, *names: str) -> None:
        """Stop as a crash does: without handing the leadership over first."""
        for name in names or tuple(self.logs):
            log = self.logs.pop(name)
            log._transport.close()
            log._transport._links.clear()
            await log.close()

    async def lose_disk(self, name: str) -> None:
        """Stop a master and empty its folder."""
        if name in self.logs:
            await self.stop(name)
        shutil.rmtree(self.folder / name)

    async def leader(self) -> str:
        await until(lambda: any(log.is_leader for log in self.logs.values()), "a leader")
        return next(name for name, log in self.logs.items() if log.is_leader)

    async def propose(self, command: bytes) -> None:
        give_up = time.monotonic() + WAIT_S
        while True:
            try:
                await self.logs[await self.leader()].propose(command, 5)
            except (NotLeader, OutcomeUnknown):
                assert time.monotonic() < give_up
                await asyncio.sleep(0.01)
            else:
                return

    async def agree(self, wanted: list[bytes]) -> None:
        await until(lambda: all(self.machines[name].commands == wanted for name in self.logs), f"all have {wanted}")

    async def until_members(self) -> None:
        await until(lambda: all(log.status().role != "joining" for log in self.logs.values()), "all are members")


async def until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, f"never happened: {what}"
        await asyncio.sleep(0.01)


def run(scenario: Callable[[Masters], Awaitable[None]], size: int = 3) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            masters = Masters(Path(folder), size)
            try:
                await scenario(masters)
            finally:
                with contextlib.suppress(KeyError):
                    await masters.stop()

    asyncio.run(main())


def test_a_new_cluster_waits_for_all_its_masters_and_then_for_a_majority_only() -> None:
    async def scenario(masters: Masters) -> None:
        await masters.start("m1", "m2")
        await asyncio.sleep(QUIET_S)
        assert [log.status().role for log in masters.logs.values()] == ["joining", "joining"]
        await masters.start("m3")
        await masters.propose(b"one")
        await masters.until_members()
        await masters.stop()
        await masters.start("m1", "m3")
        await masters.propose(b"two")
        await masters.agree([b"one", b"two"])

    run(scenario)


def test_a_master_that_lost_its_disk_comes_back_and_counts_again() -> None:
    async def scenario(masters: Masters) -> None:
        await masters.start()
        commands = [b"%d" % number for number in range(50)]
        for command in commands:
            await masters.propose(command)
        await masters.lose_disk("m2")
        await masters.propose(b"meanwhile")
        await masters.start("m2")
        await masters.until_members()
        await masters.agree([*commands, b"meanwhile"])
        await masters.stop("m1")
        await masters.propose(b"after")
        await masters.agree([*commands, b"meanwhile", b"after"])

    run(scenario)


def test_it_comes_back_from_a_checkpoint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_engine, "KEEP_ENTRIES", 5)

    async def scenario(masters: Masters) -> None:
        await masters.start()
        commands = [b"%d" % number for number in range(40)]
        for command in commands:
            await masters.propose(command)
        await masters.agree(commands)
        for log in masters.logs.values():
            written = await log.write_checkpoint(20)
            assert written.index >= 40
            assert log.checkpoint_file() is not None
        await until(lambda: all(log._journal.first_index > 30 for log in masters.logs.values()), "the logs are cut")
        await masters.lose_disk("m3")
        await masters.start("m3")
        assert masters.logs["m3"].checkpoint_file() is None
        await masters.until_members()
        await masters.agree(commands)
        assert masters.logs["m3"].checkpoint_file() is not None

    run(scenario)


def test_an_empty_master_does_not_elect_a_leader_that_lacks_acknowledged_changes() -> None:
    """m1 and m2 acknowledged a change that m3 never saw. m2 loses its disk and m1 its life: m3 must not lead."""

    async def scenario(masters: Masters) -> None:
        await masters.start()
        await masters.propose(b"known to all")
        await masters.agree([b"known to all"])
        await masters.stop("m3")
        await masters.propose(b"known to m1 and m2")
        await masters.agree([b"known to all", b"known to m1 and m2"])
        await masters.stop("m1")
        await masters.lose_disk("m2")
        await masters.start("m2", "m3")
        await asyncio.sleep(QUIET_S)
        assert not any(log.is_leader for log in masters.logs.values())
        assert masters.logs["m2"].status().role == "joining"
        assert masters.machines["m2"].commands == []
        await masters.start("m1")
        await masters.propose(b"all are back")
        await masters.until_members()
        await masters.agree([b"known to all", b"known to m1 and m2", b"all are back"])

    run(scenario)


def test_two_empty_masters_of_three_do_not_found_a_new_cluster_over_the_third() -> None:
    async def scenario(masters: Masters) -> None:
        await masters.start()
        await masters.propose(b"dear")
        await masters.agree([b"dear"])
        await masters.until_members()
        await masters.stop()
        await masters.lose_disk("m1")
        await masters.lose_disk("m2")
        await masters.start()
        await asyncio.sleep(QUIET_S)
        assert [masters.logs[name].status().role for name in ("m1", "m2")] == ["joining", "joining"]
        assert not any(log.is_leader for log in masters.logs.values())
        assert masters.machines["m3"].commands in ([], [b"dear"])  # what is committed is known with a leader only

    run(scenario)


def test_a_kill_while_it_catches_up_makes_no_member_of_it() -> None:
    async def scenario(masters: Masters) -> None:
        await masters.start()
        for number in range(20):
            await masters.propose(b"%d" % number)
        await masters.lose_disk("m2")
        await masters.start("m2")
        await until(lambda: masters.logs["m2"]._journal.last_index > 1, "it takes entries")
        (masters.folder / "m2" / "raft" / "member").unlink(missing_ok=True)  # as if it had died before
        await masters.stop("m2")
        await masters.stop("m1")
        await masters.start("m2")
        await asyncio.sleep(1)
        assert masters.logs["m2"].status().role == "joining", "m1 has not told its term"
        await masters.start("m1")
        await masters.until_members()
        await masters.propose(b"end")
        await masters.agree([*(b"%d" % number for number in range(20)), b"end"])

    run(scenario)


def test_a_journal_that_vanished_from_under_the_marker_is_refused() -> None:
    async def scenario(masters: Masters) -> None:
        await masters.start()
        await masters.propose(b"one")
        await masters.until_members()
        await masters.stop("m2")
        shutil.rmtree(masters.folder / "m2" / "raft" / "log")
        with pytest.raises(StorageCorrupt, match="there is none any more"):
            await masters.start("m2")

    run(scenario)


def test_the_leadership_goes_to_the_named_master_and_nothing_is_lost() -> None:
    async def scenario(masters: Masters) -> None:
        await masters.start()
        await masters.propose(b"begin")
        written: list[bytes] = [b"begin"]
        is_over = False

        async def writer() -> None:
            while not is_over:
                await masters.propose(b"%d" % len(written))
                written.append(b"%d" % len(written))

        task = asyncio.ensure_future(writer())
        await masters.until_members()
        for _ in range(4):
            old = await masters.leader()
            target = next(name for name in masters.logs if name != old)
            with contextlib.suppress(NoQuorum):  # a busy machine: the cluster goes on as it was
                await masters.logs[old].hand_over(target, 5)
                assert masters.logs[old].status().leader == target
        is_over = True
        await task
        with pytest.raises(DfsError, match="no other master"):
            await masters.logs[await masters.leader()].hand_over("m9", 5)
        history = [command for name in masters.logs for command in masters.machines[name].commands]
        assert set(written) <= set(history)

    run(scenario)


def test_followers_know_their_age_also_when_there_is_no_leader() -> None:
    async def scenario(masters: Masters) -> None:
        await masters.start()
        await masters.propose(b"one")
        await until(
            lambda: all((log.staleness_s() or 99) < 2 for log in masters.logs.values()), "all states are proved young"
        )
        leader = await masters.leader()
        follower = next(name for name in masters.logs if name != leader)
        await masters.propose(b"two")
        asked_s = time.monotonic()
        await until(
            lambda: (masters.logs[follower].staleness_s() or 99) < time.monotonic() - asked_s, "a younger proof"
        )
        assert masters.machines[follower].commands == [b"one", b"two"]
        await masters.stop(*(name for name in masters.logs if name != follower))
        age_s = masters.logs[follower].staleness_s()
        assert age_s is not None
        await asyncio.sleep(0.5)
        assert (masters.logs[follower].staleness_s() or 0) >= age_s + 0.5

    run(scenario)
