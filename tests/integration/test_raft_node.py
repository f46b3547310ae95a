"""Do masters on the hardened log keep every acknowledged change and one history, whatever happens to them?

Three nodes in one event loop over loopback. Kills of real processes are in test_raft_processes.py.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

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
from dfs.master import raft_engine, raft_state
from dfs.master.raft_state import COMMAND_SIZE_MAX
from dfs.master.raft_wire import ReadRound
from dfs.net.auth import ClusterKey
from dfs.testing.raft_group import CommandList, RaftGroup, run_group, wait_until

OTHER_KEY = ClusterKey.from_secret(b"another secret with enough bytes", "test")


def test_commands_reach_all_masters_in_one_order() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        _, log = await group.leader()
        results = await asyncio.gather(*(log.propose(b"%d" % number, 10) for number in range(300)))
        assert results == list(range(1, 301))
        assert await group.agree() == [b"%d" % number for number in range(300)]
        status = log.status()
        assert (status.role, status.leader) == ("leader", next(n for n in group.logs if group.logs[n] is log))

    run_group(scenario)


def test_it_runs_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            group = RaftGroup(Path(folder))
            await group.start()
            assert await group.propose(b"x") == 1
            _, log = await group.leader()
            await log.read_barrier(5)
            log.checkpoint()
            await wait_until(lambda: log.node.engine.checkpoint_index > 0, "a checkpoint begins")
            await wait_until(lambda: not log.node.engine.checkpoints.writer.is_writing, "the checkpoint is written")
            assert await group.propose(b"y") == 2
            await group.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_a_single_master_works_alone_and_restarts() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        for number in range(20):
            await group.propose(b"%d" % number)
        _, log = await group.leader()
        await log.read_barrier(5)
        await group.stop()
        await group.start()
        assert await group.propose(b"more") == 21

    run_group(scenario, size=1)


def test_restarting_all_masters_loses_nothing() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        for number in range(50):
            await group.propose(b"%d" % number)
        terms = [log.status().term for log in group.logs.values()]
        await group.stop()
        await group.start()
        await group.propose(b"after")
        assert await group.agree() == [*(b"%d" % number for number in range(50)), b"after"]
        assert min(log.status().term for log in group.logs.values()) > min(terms)

    run_group(scenario)


def test_a_leader_that_stops_hands_over_and_keeps_its_word() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"one")
        name, _ = await group.leader()
        await group.stop(name)
        assert (name, False) in group.leaderships
        assert await group.propose(b"two") == 2
        await group.start(name)
        assert await group.agree() == [b"one", b"two"]

    run_group(scenario)


def test_fault_f2_an_isolated_leader_steps_down_and_serves_no_stale_read() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"before")
        old_name, old = await group.leader()
        group.isolate(old_name)
        lost = asyncio.ensure_future(old.propose(b"lost", 20))
        read = asyncio.ensure_future(old.read_barrier(20))
        _, new = await group.leader(apart_from=old_name)
        await new.propose(b"after", 10)
        with pytest.raises((NotLeader, NoQuorum)):
            await read
        with pytest.raises(OutcomeUnknown):
            await lost
        await wait_until(lambda: not old.is_leader, "the isolated leader steps down")
        with pytest.raises(NotLeader):
            await old.read_barrier(5)
        term = new.status().term
        await asyncio.sleep(2 * RaftGroup.ELECTION_TIMEOUT_S[1])  # enough for campaigns, were it not for the pre-vote
        assert old.status().term <= term
        group.heal(old_name)
        await wait_until(lambda: group.machines[old_name].commands == [b"before", b"after"], "the old leader follows")
        assert await group.propose(b"more") == 3
        assert await group.agree() == [b"before", b"after", b"more"]

    run_group(scenario)


def test_a_read_waits_for_what_was_acknowledged_before_it() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        for number in range(30):
            await group.propose(b"%d" % number)
            _, log = await group.leader()
            await log.read_barrier(5)
            machine = next(group.machines[name] for name in group.logs if group.logs[name] is log)
            assert machine.commands[-1] == b"%d" % number

    run_group(scenario)


def test_changes_that_come_while_an_entry_is_on_its_way_share_the_next_one() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"before")
        _, log = await group.leader()
        before = log.status().applied_index
        proposals = []
        for number in range(200):
            proposals.append(asyncio.ensure_future(log.propose(b"%d" % number, 10)))
            await asyncio.sleep(0)  # a turn of the loop: each would be an entry of its own
        assert await asyncio.gather(*proposals) == list(range(2, 202))
        assert log.status().applied_index - before < 100

    run_group(scenario)


def test_a_full_entry_does_not_wait_for_the_one_before_it() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"before")
        name, log = await group.leader()
        journal = log.node.journal
        for other in [other for other in group.logs if other != name]:
            group.isolate(other)
        ended = journal.last_index
        proposals = [asyncio.ensure_future(log.propose(b"first", 10))]
        await wait_until(lambda: journal.last_index == ended + 1, "an entry is on its way")
        for number in range(raft_state.ENTRY_COMMANDS_GOAL - 1):
            proposals.append(asyncio.ensure_future(log.propose(b"%d" % number, 10)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not log.is_leader or journal.last_index == ended + 1
        proposals.append(asyncio.ensure_future(log.propose(b"last", 10)))
        await wait_until(lambda: not log.is_leader or journal.last_index == ended + 2, "the full one follows")
        await group.stop()
        await asyncio.gather(*proposals, return_exceptions=True)

    run_group(scenario)


def test_what_has_waited_for_its_entry_till_its_time_was_over_never_happens() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"before")
        name, log = await group.leader()
        followers = [other for other in group.logs if other != name]
        for other in followers:
            group.isolate(other)
        first = asyncio.ensure_future(log.propose(b"first", 10))
        await asyncio.sleep(0.05)
        with pytest.raises((OutcomeUnknown, NotLeader)):
            await log.propose(b"late", 0.1)
        for other in followers:
            group.heal(other)
        await asyncio.gather(first, return_exceptions=True)
        await group.propose(b"after")
        commands = await group.agree()
        assert commands[0] == b"before"
        assert commands[-1] == b"after"
        assert b"late" not in commands

    run_group(scenario)


def test_callers_that_come_back_share_an_entry_and_nobody_is_waited_for_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"before")
        _, log = await group.leader()
        journal = log.node.journal

        async def together(count: int) -> list[asyncio.Future[int]]:
            """Let so many be decided, and count as slow: then as many are expected again."""
            log._company.entry_made(time.monotonic() - 1)
            return [asyncio.ensure_future(log.propose(b"%d" % number, 10)) for number in range(count)]

        monkeypatch.setattr(raft_state, "COMPANY_WAIT_S", 30.0)
        await asyncio.gather(*await together(3))
        ended = journal.last_index
        again = [asyncio.ensure_future(log.propose(b"again", 10)) for _ in range(2)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert journal.last_index == ended
        await asyncio.gather(*again, log.propose(b"the third", 10))
        assert journal.last_index == ended + 1
        monkeypatch.setattr(raft_state, "COMPANY_WAIT_S", 0.01)
        await asyncio.gather(*await together(3))
        await log.propose(b"alone", 10)

    run_group(scenario)


def test_reads_are_proved_by_those_who_are_prompt_and_by_others_when_they_fall_silent() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"one")
        name, log = await group.leader()
        questions = dict.fromkeys(group.logs, 0)
        silent: set[str] = set()

        def watch(peer: str) -> None:
            gate = group.logs[peer].node.gate
            answer = gate._handlers[ReadRound]

            def asked(leader: str, message: ReadRound) -> None:
                questions[peer] += 1
                if peer not in silent:
                    answer(leader, message)

            gate._handlers[ReadRound] = asked

        followers = [peer for peer in group.logs if peer != name]
        for peer in followers:
            watch(peer)
        for _ in range(50):
            await log.read_barrier(5)
        assert sum(questions.values()) < 90  # each of the two would have been asked 50 times
        silent.add(max(followers, key=questions.__getitem__))
        for _ in range(5):
            await log.read_barrier(5)
        silent.update(followers)
        with pytest.raises(NoQuorum):
            await log.read_barrier(0.5)

    run_group(scenario)


class Caller:
    """One who waits without a task, and notes what it is told."""

    def __init__(self, seconds: float, *, is_broken: bool = False) -> None:
        self.deadline_s = time.monotonic() + seconds
        self.told: list[tuple[object, DfsError | None]] = []
        self._is_broken = is_broken

    @property
    def is_known(self) -> bool:
        return bool(self.told)

    def ended(self, result: object, error: DfsError | None) -> None:
        self.told.append((result, error))
        if self._is_broken:
            raise ZeroDivisionError


def test_each_caller_is_told_once_also_beside_one_that_fails() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        _, log = await group.leader()
        callers = [Caller(20, is_broken=number == 1) for number in range(4)]
        for caller in callers[:2]:
            log.submit(b"change", caller)
        for caller in callers[2:]:
            log.prove(caller)
        await wait_until(lambda: all(caller.told for caller in callers), "all are told")
        assert [caller.told[0] for caller in callers] == [(1, None), (2, None), (None, None), (None, None)]
        for other in [other for other in group.logs if group.logs[other] is not log]:
            group.isolate(other)
        late = [Caller(0.1), Caller(0.1)]
        log.submit(b"late", late[0])
        log.prove(late[1])
        await wait_until(lambda: all(caller.told for caller in late), "both waits end")
        await wait_until(lambda: not log.is_leader, "the leader steps down")
        await asyncio.sleep(0)
        assert [len(caller.told) for caller in (*callers, *late)] == [1] * 6
        assert isinstance(late[0].told[0][1], OutcomeUnknown)
        assert isinstance(late[1].told[0][1], (NoQuorum, NotLeader))

    run_group(scenario)


def test_fault_e3_without_a_quorum_every_wait_ends() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        name, log = await group.leader()
        await group.propose(b"one")
        for other in [other for other in group.logs if other != name]:
            group.isolate(other)
        with pytest.raises((NoQuorum, NotLeader)):
            await log.read_barrier(0.2)
        if log.is_leader:
            with pytest.raises((OutcomeUnknown, NotLeader)):
                await log.propose(b"two", 0.2)
        await wait_until(lambda: not log.is_leader, "the leader steps down")
        with pytest.raises(NotLeader):
            await log.propose(b"three", 5)

    run_group(scenario)


def test_followers_refuse_proposals_and_reads() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        name, _ = await group.leader()
        follower = next(node for other, node in group.logs.items() if other != name)
        with pytest.raises(NotLeader):
            await follower.propose(b"x", 5)
        with pytest.raises(NotLeader):
            await follower.read_barrier(5)
        await wait_until(lambda: follower.status().leader == name, "the follower knows the leader")

    run_group(scenario)


def test_limits_on_proposals_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine 8 MiB through three masters in one process may take longer than the usual time-out here.
    monkeypatch.setattr(RaftGroup, "ELECTION_TIMEOUT_S", (3.0, 6.0))

    async def scenario(group: RaftGroup) -> None:
        await group.start()
        _, log = await group.leader()
        with pytest.raises(LimitExceeded, match="split it"):
            await log.propose(bytes(COMMAND_SIZE_MAX + 1), 5)
        assert await log.propose(bytes(COMMAND_SIZE_MAX), 30) == 1
        monkeypatch.setattr(raft_state, "PENDING_COMMANDS_MAX", 3)
        outcomes = await asyncio.gather(*(log.propose(b"x", 10) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [int, int, int, Overloaded, Overloaded]
        assert await log.propose(b"y", 10) == 5

    run_group(scenario)


def test_a_follower_that_was_away_catches_up_from_the_log() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        name, _ = await group.leader()
        away = next(other for other in group.logs if other != name)
        await group.stop(away)
        for number in range(200):
            await group.propose(b"%d" % number)
        await group.start(away)
        assert len(await group.agree()) == 200

    run_group(scenario)


class SlowMachine(CommandList):
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
    monkeypatch.setattr(SlowMachine, "install_s", 2.5 * RaftGroup.ELECTION_TIMEOUT_S[1])
    monkeypatch.setattr(RaftGroup, "MACHINE", SlowMachine)

    async def scenario(group: RaftGroup) -> None:
        await group.start()
        name, log = await group.leader()
        away, dead = (other for other in group.logs if other != name)
        await group.stop(away)
        for number in range(20):
            await group.propose(b"%d" % number)
        log.checkpoint()
        await wait_until(lambda: log.node.journal.first_index > 10, "the leader's log is cut behind its checkpoint")
        term = log.status().term
        await group.stop(dead)
        await group.start(away)
        late = group.logs[away]
        await wait_until(lambda: late.node.engine.is_installing, "the checkpoint is being installed")
        await log.read_barrier(5)  # the late one answers while it installs
        assert late.node.engine.is_installing
        assert late.status().leader == name
        assert len(await group.agree()) == 20
        assert (log.is_leader, log.status().term) == (True, term), "there was no election"
        await group.propose(b"goes on")
        assert len(await group.agree()) == 21

    run_group(scenario)


def test_a_follower_that_was_away_too_long_gets_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_engine, "KEEP_ENTRIES", 5)
    blob = os.urandom(300_000)

    async def scenario(group: RaftGroup) -> None:
        await group.start()
        name, log = await group.leader()
        away = next(other for other in group.logs if other != name)
        await group.propose(b"known to all")
        await group.agree()
        await group.stop(away)
        for number in range(40):
            await group.propose(b"%d" % number + blob)
        assert log.is_leader
        log.checkpoint()
        await wait_until(lambda: log.node.journal.first_index > 30, "the leader's log is cut behind its checkpoint")
        await group.start(away)
        assert len(await group.agree()) == 41
        await group.propose(b"goes on")
        assert len(await group.agree()) == 42
        assert group.logs[away].node.engine.checkpoints.folder.indexes()
        await group.stop(away)
        await group.start(away)
        assert len(await group.agree()) == 42

    run_group(scenario)


def test_fault_g2_a_master_with_another_secret_is_left_out() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.leader()
        await group.until_members()
        await group.stop("m3")
        shutil.rmtree(group.folder / "m3")
        await group.start("m3", key=OTHER_KEY)
        name, _ = await group.leader()
        assert name != "m3"
        await group.propose(b"x")
        await asyncio.sleep(0.5)
        assert group.logs["m3"].status().term == 0
        assert group.logs["m3"].node.transport.connected == ()
        assert group.machines["m3"].commands == []

    run_group(scenario)


def test_fault_g1_a_stranger_is_dropped_before_anything_is_interpreted() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"x")
        host, port = group.peers["m1"].split(":")
        for rubbish in (b"\x80\x04K\x01.", b"DFSr" + bytes(600), os.urandom(5000)):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(rubbish.ljust(600, b"!"))
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        assert await group.propose(b"y") == 2

    run_group(scenario)


def test_fault_e5_a_poisonous_command_stops_the_masters_loudly() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        name, log = await group.leader()
        with pytest.raises(OutcomeUnknown):
            await log.propose(b"poison", 5)
        await wait_until(lambda: name in group.failures, "the failure is reported")
        assert not log.is_leader
        with pytest.raises(NotLeader, match="has stopped"):
            await log.propose(b"x", 5)

    run_group(scenario)


def test_fault_b6_a_leader_whose_disk_fails_stops_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"one")
        name, log = await group.leader()
        journal = log.node.journal

        def broken(_data: bytes) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(journal, "_append", broken)
        with pytest.raises(OutcomeUnknown):
            await log.propose(b"two", 20)
        await wait_until(lambda: name in group.failures, "the failure is reported")
        assert isinstance(group.failures[name], DiskFailed)
        await wait_until(lambda: (name, False) in group.leaderships, "the end of leadership is announced")
        await group.leader(apart_from=name)
        await group.propose(b"three")

    run_group(scenario)


def test_one_data_directory_serves_one_process() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        twin = group.make("m1")
        with pytest.raises(ConfigError, match="in use by another process"):
            await twin.start()
        await twin.close()

    run_group(scenario)


def test_an_address_in_use_is_a_clear_error() -> None:
    async def scenario(group: RaftGroup) -> None:
        host, port = group.peers["m1"].split(":")
        with (
            socket.create_server((host, int(port))),
            pytest.raises(ConfigError, match="another process uses it"),
        ):
            await group.start("m1")

    run_group(scenario)


def test_one_history_through_leader_changes() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        acknowledged: list[bytes] = []
        numbers = itertools.count()
        is_over = False

        async def writer() -> None:
            while not is_over:
                command = b"%d" % next(numbers)
                for log in list(group.logs.values()):
                    if log.is_leader:
                        try:
                            await log.propose(command, 2)
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
            name, _ = await group.leader()
            group.isolate(name)
            await group.leader(apart_from=name)
            group.heal(name)
        is_over = True
        await asyncio.gather(*writers)
        history = await group.agree()
        assert set(acknowledged) <= set(history)
        assert len(set(history)) == len(history)

    run_group(scenario)
