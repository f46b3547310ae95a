"""Can deleting an orphan ever meet a commit of the same chunk? Races of orders, commits, leaders and clocks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from dfs.errors import Conflict, InvalidArgument, NotEnoughServers
from dfs.ids import ChunkHandle, allocated_ms, new_chunk_handle
from dfs.master.duties import OptionsDuty
from dfs.master.reports import REPORT_EVERY_S
from dfs.master.state import parts as limits
from dfs.master.state.machine import MasterState
from dfs.net.messages import Allocate, AllocateReply, CommitFile, Delete, EmptyTrash, MakeDirectory, Touch, Undelete
from dfs.net.parts import AllocatedChunk, NewChunk, NewExtent
from dfs.testing.masters import MasterTrio, PretendServer

GRACE_S = 1000.0


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def started(**settings: Any) -> tuple[MasterTrio, PretendServer]:
    """Return masters whose options are set, and one chunk server that has reported."""
    trio = await MasterTrio(**{"orphan_grace_s": GRACE_S, **settings}).start()
    server = PretendServer(trio, 1)
    await server.join()
    await trio.leader.reports.compare_next()
    await bring_options(trio)
    return trio, server


async def bring_options(trio: MasterTrio) -> None:
    """Let the leader bring options and clock of the state up to date."""
    await OptionsDuty(trio.config, trio.leader.state, trio.leader.leadership, trio.clock).run_once()


async def written(trio: MasterTrio, server: PretendServer) -> ChunkHandle:
    """Allocate a chunk and write it."""
    reply = await trio.expect(AllocateReply, Allocate(1))
    handle = reply.chunks[0].handle
    server.put(handle, 1000, 7)
    await server.beat(added=[server.replicas[handle]])
    return handle


def commit_of(trio: MasterTrio, server: PretendServer, handle: ChunkHandle) -> CommitFile:
    chunk = NewChunk(handle, 1000, 7, (server.server_id,))
    return CommitFile(trio.call(), "/f", (chunk,), (NewExtent(0, 0, 1000),), 1)


async def ordered_away(server: PretendServer) -> set[ChunkHandle]:
    """Return what a full report leads to."""
    return {order.handle for reply in await server.report() for order in reply.orders}


def test_a_chunk_that_was_ordered_away_can_never_be_committed() -> None:
    async def test() -> None:
        trio, server = await started()
        handle = await written(trio, server)
        trio.clock.advance(GRACE_S + 1)
        await bring_options(trio)
        assert await ordered_away(server) == {handle}
        error = await trio.refused(commit_of(trio, server, handle))
        assert isinstance(error, Conflict)
        assert "store the bytes again" in error.message
        await server.beat(removed=[handle])
        assert isinstance(await trio.refused(commit_of(trio, server, handle)), Conflict), "nor after it is gone"
        trio.check_invariants()

    run(test())


def test_a_chunk_that_can_be_committed_is_never_ordered_away() -> None:
    async def test() -> None:
        trio, server = await started()
        handle = await written(trio, server)
        server.put(handle, 1000, 7)
        trio.clock.advance(GRACE_S - 1)
        assert await ordered_away(server) == set()
        await trio.ask(commit_of(trio, server, handle))
        trio.clock.advance(2 * GRACE_S)
        await bring_options(trio)
        assert await ordered_away(server) == set(), "a committed chunk may be as old as it likes"

    run(test())


def test_a_deposed_leader_orders_nothing_away_that_the_new_one_may_have_committed() -> None:
    async def test() -> None:
        trio, server = await started()
        handle = await written(trio, server)
        old = trio.leader.state
        trio.clock.advance(10 * GRACE_S)  # no command came: the old state knows no later time than it has proof of
        assert allocated_ms(handle) >= old.horizon_ms
        assert await ordered_away(server) == set()
        await trio.ask(commit_of(trio, server, new_chunk_handle(trio.clock.wall_ms())))
        assert await ordered_away(server) == {handle}, "a command has brought the time along"

    run(test())


def test_a_deposed_leader_may_allocate_because_the_true_one_judges_the_commit() -> None:
    async def test() -> None:
        trio, server = await started()
        depose_unnoticed(trio)
        late, good = await allocate_at(trio, "m1"), await allocate_at(trio, "m1")
        assert late.handle != good.handle
        stranger = PretendServer(trio, 9)
        refused = await trio.refused(commit_of(trio, stranger, late.handle))
        assert isinstance(refused, InvalidArgument), "a server that is not registered with the true leader"
        await trio.ask(commit_of(trio, server, good.handle))  # the bytes are where it says: nothing is wrong with it
        await trio.ask(Delete(trio.call(), "/f", skip_trash=True))
        trio.clock.advance(GRACE_S + 1)
        await bring_options(trio)
        assert isinstance(await trio.refused(commit_of(trio, server, late.handle)), Conflict)
        assert isinstance(await trio.refused(Allocate(1), to="m1"), NotEnoughServers), "it hears nobody any more"

    run(test())


def depose_unnoticed(trio: MasterTrio) -> None:
    """Let m2 lead while m1, cut off, has not noticed yet."""
    trio.group._cut_off.add("m1")
    trio.group.leader = None
    trio.group.elect("m2")
    assert trio.logs["m1"].is_leader


async def allocate_at(trio: MasterTrio, name: str) -> AllocatedChunk:
    return (await trio.expect(AllocateReply, Allocate(1), to=name)).chunks[0]


def test_a_longer_grace_does_not_bring_back_what_was_given_up() -> None:
    async def test() -> None:
        trio, server = await started()
        handle = await written(trio, server)
        trio.clock.advance(GRACE_S + 1)
        await bring_options(trio)
        before = trio.leader.state.horizon_ms
        assert await ordered_away(server) == {handle}
        longer = MasterTrio(orphan_grace_s=100 * GRACE_S)
        await OptionsDuty(longer.config, trio.leader.state, trio.leader.leadership, trio.clock).run_once()
        assert trio.leader.state.orphan_grace_ms == 100_000 * GRACE_S
        assert trio.leader.state.horizon_ms == before
        assert isinstance(await trio.refused(commit_of(trio, server, handle)), Conflict)

    run(test())


def test_a_leader_whose_clock_is_late_allocates_chunks_that_can_be_committed() -> None:
    async def test() -> None:
        trio, server = await started()
        trio.clock.step_wall(-100 * GRACE_S)
        handle = await written(trio, server)
        await trio.ask(commit_of(trio, server, handle))
        assert await ordered_away(server) == set()

    run(test())


def test_masters_that_lost_their_state_delete_nothing_of_the_old_one(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        old, server = await started()
        handle = await written(old, server)
        await old.ask(commit_of(old, server, handle))
        trio = MasterTrio(orphan_grace_s=GRACE_S)  # the same cluster, begun anew with empty data directories
        trio.clock.advance(10 * GRACE_S)
        await trio.start()
        server.trio = trio
        await server.join()
        trio.clock.advance(10 * GRACE_S)
        await bring_options(trio)
        assert await ordered_away(server) == set()
        assert any("foreign_replicas_kept" in record.getMessage() for record in caplog.records)

    run(test())


def test_orphans_are_collected_without_a_restart_of_anybody() -> None:
    async def test() -> None:
        trio, server = await started()
        handle = await written(trio, server)
        assert not (await server.beat()).must_report
        trio.clock.advance(REPORT_EVERY_S + 1)
        await bring_options(trio)
        assert (await server.beat()).must_report, "a full report is asked for now and then"
        assert await ordered_away(server) == {handle}
        await trio.leader.reports.compare_next()
        assert not (await server.beat()).must_report

    run(test())


def test_birth_and_horizon_survive_a_checkpoint() -> None:
    async def test() -> None:
        trio, _ = await started()
        trio.clock.advance(5 * GRACE_S)
        await bring_options(trio)
        state, loaded = trio.leader.state, MasterState()
        loaded.load(list(state.dump()))
        assert 0 < state.born_ms < state.horizon_ms
        assert (loaded.born_ms, loaded.horizon_ms) == (state.born_ms, state.horizon_ms)
        assert loaded.orphan_grace_ms == state.orphan_grace_ms == GRACE_S * 1000

    run(test())


def test_the_trash_counts_against_the_limit_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        trio, _ = await started()
        monkeypatch.setattr(limits, "NODES_MAX", 3)
        await trio.ask(MakeDirectory(trio.call(), "/d"))
        for name in "ab":
            await trio.ask(Touch(trio.call(), f"/d/{name}"))
        await trio.ask(Delete(trio.call(), "/d", recursive=True))
        assert "trash" in (await trio.refused(Touch(trio.call(), "/c"))).message
        await trio.ask(Undelete(trio.call(), "/d"))
        await trio.ask(Delete(trio.call(), "/d", recursive=True))
        await trio.ask(EmptyTrash(trio.call()))
        await trio.ask(Touch(trio.call(), "/c"))
        trio.check_invariants()

    run(test())
