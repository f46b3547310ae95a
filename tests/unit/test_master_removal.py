"""Are chunk servers taken out of the map without forgetting what only they hold, whatever happens at the same time?"""

from __future__ import annotations

import asyncio

import pytest

from dfs.errors import Conflict
from dfs.ids import ServerId, new_chunk_handle
from dfs.master.state.commands import BeginTail, SetServerMode
from dfs.testing.masters import MIB, MasterTrio, PretendServer


async def start() -> tuple[MasterTrio, list[PretendServer]]:
    trio = await MasterTrio().start()
    servers = [PretendServer(trio, number) for number in (1, 2)]
    for server in servers:
        await server.join()
    return trio, servers


def test_two_removals_at_once_do_not_forget_both_replicas_of_a_chunk() -> None:
    async def test() -> None:
        trio, servers = await start()
        handles = await trio.store("/two", 3 * MIB, replication=2)
        state, removal = trio.leader.state, trio.leader.administration.removal
        removals = (removal.forget(server.server_id, is_forced=False) for server in servers)
        found = await asyncio.gather(*removals, return_exceptions=True)
        assert [item for item in found if not isinstance(item, Conflict)] == [(3, 0)], "one of them was refused"
        assert all((chunk := state.chunk(handle)) and len(chunk.servers) == 1 for handle in handles)

    asyncio.run(test())


def test_a_replica_that_became_the_last_during_a_removal_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        trio, (one, two) = await start()
        handles = await trio.store("/two", 3 * MIB, replication=2)
        state, removal = trio.leader.state, trio.leader.administration.removal
        counted = removal.only_there(one.server_id)
        await two.beat(removed=handles[:1])  # between the count and the first command
        monkeypatch.setattr(removal, "only_there", lambda _server_id: counted)
        with pytest.raises(Conflict):
            await removal.forget(one.server_id, is_forced=False)
        assert [len(chunk.servers) for handle in handles if (chunk := state.chunk(handle))] == [1, 1, 1]
        assert await removal.forget(one.server_id, is_forced=True) == (1, counted)

    asyncio.run(test())


async def begin_tail(trio: MasterTrio, servers: tuple[ServerId, ...]) -> None:
    handle = new_chunk_handle(trio.clock.wall_ms())
    await trio.leader.leadership.decree(BeginTail("/log", 0, 0, handle, servers, MIB))


def test_a_tail_on_a_draining_server_ends_so_that_the_draining_can() -> None:
    async def test() -> None:
        trio, (one, two) = await start()
        await begin_tail(trio, (one.server_id, two.server_id))
        assert trio.leader.tails.due() == []
        await trio.leader.leadership.decree(SetServerMode(two.server_id, True, 0))
        assert [reason for _, reason in trio.leader.tails.due()] == ["a server of its chain is dead, or leaves"]

    asyncio.run(test())


def test_a_forced_removal_gives_up_a_tail_that_nobody_can_seal_and_no_other() -> None:
    async def test() -> None:
        trio, (one, two) = await start()
        await begin_tail(trio, (one.server_id, two.server_id))
        state, removal = trio.leader.state, trio.leader.administration.removal
        with pytest.raises(Conflict, match="1 open tail"):
            await removal.forget(one.server_id, is_forced=False)
        with pytest.raises(Conflict, match="1 open tail"):  # the other one lives, and seals it with all there is
            await removal.forget(one.server_id, is_forced=True)
        trio.clock.advance(trio.config.dead_after_s + 1)
        assert await removal.forget(one.server_id, is_forced=True) == (0, 0)
        (tail,) = state.tails.all()
        assert tail.servers == (two.server_id,), "it holds all that was acknowledged, and may come back"
        with pytest.raises(Conflict):
            await removal.forget(two.server_id, is_forced=False)
        assert await removal.forget(two.server_id, is_forced=True) == (0, 1)
        assert state.tails.all() == []
        assert (state.stat("/log").size, state.servers()) == (0, ())
        trio.check_invariants()

    asyncio.run(test())
