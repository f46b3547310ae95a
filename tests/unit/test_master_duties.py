"""The leader's duties: one turn of each, and the loop that runs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from dfs.errors import NoQuorum
from dfs.master.duties import (
    LivenessDuty,
    OptionsDuty,
    ReportsDuty,
    SessionsDuty,
    TrashDuty,
    all_duties,
    run_duty,
)
from dfs.net.messages import Delete, MakeDirectory, Touch
from dfs.testing.masters import MasterTrio, PretendServer


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "dfs.master.duties"]


async def started(servers: int = 3, **settings: Any) -> tuple[MasterTrio, list[PretendServer]]:
    trio = await MasterTrio(**settings).start()
    found = [PretendServer(trio, number) for number in range(1, servers + 1)]
    for server in found:
        await server.join()
    return trio, found


def liveness(trio: MasterTrio) -> LivenessDuty:
    return LivenessDuty(trio.config, trio.leader.state, trio.leader.view, trio.clock)


def test_silence_and_return_of_a_server_are_told_with_what_they_mean(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        trio, servers = await started(3)
        await trio.store("/f")
        duty = liveness(trio)
        await duty.run_once()
        for _ in range(12):
            trio.clock.advance(1)
            for server in servers[1:]:
                await server.beat()
            await duty.run_once()
        dead = next(record for record in caplog.records if record.getMessage() == "server_dead")
        facts = dead.__dict__["dfs_fields"]
        assert facts["server"] == "c1"
        assert (facts["under_replicated"], facts["missing"]) == (1, 0)
        await servers[0].beat()
        await duty.run_once()

    run(test())
    assert events(caplog) == ["server_late", "server_dead", "server_back"]


def test_a_master_that_stood_still_does_not_bury_its_servers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        trio, _ = await started(3)
        duty = liveness(trio)
        await duty.run_once()
        trio.clock.advance(60)
        await duty.run_once()

    run(test())
    assert events(caplog) == ["master_stood_still"]


def test_a_long_time_as_follower_is_no_standing_still(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        trio, servers = await started(1)
        service = trio.services["m2"]
        duty = LivenessDuty(trio.config, service.state, service.view, trio.clock)
        trio.clock.advance(1000)
        trio.group.elect("m2")
        await servers[0].join()
        trio.clock.advance(1)
        await duty.run_once()

    run(test())
    assert events(caplog) == []


def test_the_options_follow_the_configuration_of_the_leader() -> None:
    async def test() -> None:
        trio = await MasterTrio(trash_keep_s=60.0, replication=2).start()
        duty = OptionsDuty(trio.config, trio.leader.state, trio.leader.leadership, trio.clock)
        await duty.run_once()
        await duty.run_once()
        assert len(trio.group.entries) == 1, "proposed once"
        state = trio.services["m3"].state
        assert (state.trash_keep_ms, state.replication) == (60_000, 2)

    run(test())


def test_trash_is_released_when_its_time_has_come() -> None:
    async def test() -> None:
        trio, _ = await started(3)
        await trio.store("/f")
        await trio.ask(Delete(trio.call(), "/f"))
        duty = TrashDuty(trio.leader.state, trio.leader.leadership, trio.clock)
        entries = len(trio.group.entries)
        trio.clock.advance(3 * 86400 - 1)
        await duty.run_once()
        assert len(trio.group.entries) == entries, "nothing is proposed before"
        trio.clock.advance(2)
        await duty.run_once()
        space = trio.leader.state.space(None)
        assert (space.trash_count, space.chunk_count, space.garbage_count) == (0, 0, 1)
        trio.check_invariants()

    run(test())


def test_a_large_released_tree_is_worked_off_without_other_commands() -> None:
    async def test() -> None:
        trio, _ = await started(3)
        for number in range(3):
            await trio.ask(MakeDirectory(trio.call(), f"/d/{number}", parents=True))
            for name in range(10):
                await trio.ask(Touch(trio.call(), f"/d/{number}/{name}"))
        await trio.ask(Delete(trio.call(), "/d", recursive=True, skip_trash=True))
        await TrashDuty(trio.leader.state, trio.leader.leadership, trio.clock).run_once()
        assert trio.leader.state.next_trash_expiry_ms() is None
        trio.check_invariants()

    run(test())


def test_idle_sessions_are_dropped() -> None:
    async def test() -> None:
        trio = await MasterTrio(session_expiry_s=100.0).start()
        await trio.ask(MakeDirectory(trio.call(), "/a"))
        duty = SessionsDuty(trio.config, trio.leader.state, trio.leader.leadership)
        await duty.run_once()
        assert len(trio.group.entries) == 1
        trio.clock.advance(101)
        other = await MasterTrio().start()
        await trio.ask(MakeDirectory(other.call(), "/b"))  # another session moves the state clock
        await duty.run_once()
        assert len(trio.group.entries) == 3
        assert not trio.leader.state.has_idle_sessions(100_000)

    run(test())


def test_all_finished_reports_are_compared_in_one_turn() -> None:
    async def test() -> None:
        trio, _ = await started(3)
        await ReportsDuty(trio.leader.reports).run_once()
        assert not await trio.leader.reports.compare_next()

    run(test())


class _Turns:
    """A duty that fails in every way before it succeeds."""

    name = "turns"
    interval_s = 0.0

    def __init__(self) -> None:
        self.taken = 0
        self.done = asyncio.Event()

    async def run_once(self) -> None:
        self.taken += 1
        if self.taken == 1:
            raise NoQuorum("nobody leads")
        if self.taken == 2:
            raise ValueError("a bug")
        self.done.set()


def test_a_failing_turn_does_not_end_a_duty(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        trio = await MasterTrio().start()
        duty = _Turns()
        task = asyncio.create_task(run_duty(duty, trio.leader.leadership))
        await asyncio.wait_for(duty.done.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(test())
    assert events(caplog) == ["duty_interrupted", "duty_crashed"]


def test_a_follower_takes_no_turns() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        duty = _Turns()
        task = asyncio.create_task(run_duty(duty, trio.services["m2"].leadership))
        for _ in range(20):
            await asyncio.sleep(0)
        assert duty.taken == 0
        trio.group.elect("m2")
        await asyncio.wait_for(duty.done.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(test())


def test_every_duty_has_a_name_and_an_interval() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        service = trio.leader
        duties = all_duties(
            config=trio.config,
            state=service.state,
            view=service.view,
            reports=service.reports,
            leadership=service.leadership,
            clock=trio.clock,
        )
        assert len({duty.name for duty in duties}) == len(duties) == 6
        for duty in duties:
            assert duty.interval_s > 0
            await duty.run_once()

    run(test())
