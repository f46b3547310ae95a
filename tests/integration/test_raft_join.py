"""Does a master that lost its disk come back without undoing anything? Three real logs on loopback in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time

import pytest

from dfs.errors import DfsError, NoQuorum, StorageCorrupt
from dfs.master import raft_engine
from dfs.testing.raft_group import RaftGroup, run_group, wait_until

QUIET_S = 2.5 * RaftGroup.ELECTION_TIMEOUT_S[1]  # an election that can happen does


def test_a_new_cluster_waits_for_all_its_masters_and_then_for_a_majority_only() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start("m1", "m2")
        await asyncio.sleep(QUIET_S)
        assert [log.status().role for log in group.logs.values()] == ["joining", "joining"]
        await group.start("m3")
        await group.propose(b"one")
        await group.until_members()
        await group.crash()
        await group.start("m1", "m3")
        await group.propose(b"two")
        await group.check_all_have([b"one", b"two"])

    run_group(scenario)


def test_a_master_that_lost_its_disk_comes_back_and_counts_again() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        commands = [b"%d" % number for number in range(50)]
        for command in commands:
            await group.propose(command)
        await group.lose_disk("m2")
        await group.propose(b"meanwhile")
        await group.start("m2")
        await group.until_members()
        await group.check_all_have([*commands, b"meanwhile"])
        await group.crash("m1")
        await group.propose(b"after")
        await group.check_all_have([*commands, b"meanwhile", b"after"])

    run_group(scenario)


def test_it_comes_back_from_a_checkpoint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_engine, "KEEP_ENTRIES", 5)

    async def scenario(group: RaftGroup) -> None:
        await group.start()
        commands = [b"%d" % number for number in range(40)]
        for command in commands:
            await group.propose(command)
        await group.check_all_have(commands)
        for log in group.logs.values():
            written = await log.write_checkpoint(20)
            assert written.index >= 40
            assert log.checkpoint_file() is not None
        await wait_until(
            lambda: all(log.node.journal.first_index > 30 for log in group.logs.values()), "the logs are cut"
        )
        await group.lose_disk("m3")
        await group.start("m3")
        assert group.logs["m3"].checkpoint_file() is None
        await group.until_members()
        await group.check_all_have(commands)
        assert group.logs["m3"].checkpoint_file() is not None

    run_group(scenario)


def test_an_empty_master_does_not_elect_a_leader_that_lacks_acknowledged_changes() -> None:
    """m1 and m2 acknowledged a change that m3 never saw. m2 loses its disk and m1 its life: m3 must not lead."""

    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"known to all")
        await group.check_all_have([b"known to all"])
        await group.crash("m3")
        await group.propose(b"known to m1 and m2")
        await group.check_all_have([b"known to all", b"known to m1 and m2"])
        await group.crash("m1")
        await group.lose_disk("m2")
        await group.start("m2", "m3")
        await asyncio.sleep(QUIET_S)
        assert not any(log.is_leader for log in group.logs.values())
        assert group.logs["m2"].status().role == "joining"
        assert group.machines["m2"].commands == []
        await group.start("m1")
        await group.propose(b"all are back")
        await group.until_members()
        await group.check_all_have([b"known to all", b"known to m1 and m2", b"all are back"])

    run_group(scenario)


def test_two_empty_masters_of_three_do_not_found_a_new_cluster_over_the_third() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"dear")
        await group.check_all_have([b"dear"])
        await group.until_members()
        await group.crash()
        await group.lose_disk("m1")
        await group.lose_disk("m2")
        await group.start()
        await asyncio.sleep(QUIET_S)
        assert [group.logs[name].status().role for name in ("m1", "m2")] == ["joining", "joining"]
        assert not any(log.is_leader for log in group.logs.values())
        assert group.machines["m3"].commands in ([], [b"dear"])  # what is committed is known with a leader only

    run_group(scenario)


def test_a_kill_while_it_catches_up_makes_no_member_of_it() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        for number in range(20):
            await group.propose(b"%d" % number)
        await group.lose_disk("m2")
        await group.start("m2")
        await wait_until(lambda: group.logs["m2"].node.journal.last_index > 1, "it takes entries")
        (group.folder / "m2" / "raft" / "member").unlink(missing_ok=True)  # as if it had died before
        await group.crash("m2")
        await group.crash("m1")
        await group.start("m2")
        await asyncio.sleep(QUIET_S)
        assert group.logs["m2"].status().role == "joining", "m1 has not told its term"
        await group.start("m1")
        await group.until_members()
        await group.propose(b"end")
        await group.check_all_have([*(b"%d" % number for number in range(20)), b"end"])

    run_group(scenario)


def test_a_journal_that_vanished_from_under_the_marker_is_refused() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"one")
        await group.until_members()
        await group.crash("m2")
        shutil.rmtree(group.folder / "m2" / "raft" / "log")
        with pytest.raises(StorageCorrupt, match="there is none any more"):
            await group.start("m2")

    run_group(scenario)


def test_the_leadership_goes_to_the_named_master_and_nothing_is_lost() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"begin")
        written: list[bytes] = [b"begin"]
        is_over = False

        async def writer() -> None:
            while not is_over:
                await group.propose(b"%d" % len(written))
                written.append(b"%d" % len(written))

        task = asyncio.ensure_future(writer())
        await group.until_members()
        for _ in range(4):
            old, _ = await group.leader()
            target = next(name for name in group.logs if name != old)
            with contextlib.suppress(NoQuorum):  # a busy machine: the cluster goes on as it was
                await group.logs[old].hand_over(target, 5)
                assert group.logs[old].status().leader == target
        is_over = True
        await task
        with pytest.raises(DfsError, match="no other master"):
            await (await group.leader())[1].hand_over("m9", 5)
        history = [command for name in group.logs for command in group.machines[name].commands]
        assert set(written) <= set(history)

    run_group(scenario)


def test_followers_know_their_age_also_when_there_is_no_leader() -> None:
    async def scenario(group: RaftGroup) -> None:
        await group.start()
        await group.propose(b"one")
        await wait_until(
            lambda: all((log.staleness_s() or 99) < 2 for log in group.logs.values()), "all states are proved young"
        )
        leader, _ = await group.leader()
        follower = next(name for name in group.logs if name != leader)
        await group.propose(b"two")
        asked_s = time.monotonic()
        await wait_until(
            lambda: (group.logs[follower].staleness_s() or 99) < time.monotonic() - asked_s, "a younger proof"
        )
        assert group.machines[follower].commands == [b"one", b"two"]
        await group.crash(*(name for name in group.logs if name != follower))
        age_s = group.logs[follower].staleness_s()
        assert age_s is not None
        await asyncio.sleep(0.5)
        assert (group.logs[follower].staleness_s() or 0) >= age_s + 0.5

    run_group(scenario)
