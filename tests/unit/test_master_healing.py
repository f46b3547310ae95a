"""Does a leader heal its cluster by what heartbeats say: copies, trims, drains, balances, and stops when all is well?

Owns: the real service and its duties over pretended chunk servers and a fake clock. Refuses to know: processes.
"""

from __future__ import annotations

import pytest

from dfs.ids import ChunkHandle
from dfs.master.healing import repair as repair_module
from dfs.master.state.commands import ChangeReplicas
from dfs.net.messages import (
    Delete,
    Message,
    SetReplication,
)
from dfs.net.parts import CopyFailure
from dfs.testing.healing_scene import Scene, run
from dfs.testing.masters import MIB, PretendServer

# --- repair ---------------------------------------------------------------------------------------


def test_a_dead_server_is_repaired_after_its_time_and_not_before() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handles = await scene.store("/f", 20)
        await scene.pass_time(2)
        scene.away = {"c1"}
        await scene.pass_time(8)
        healing, _ = await scene.status()
        assert scene.fetched() == 0, "it may come back"
        assert healing.deferred_count == sum("c1" in scene.holders(handle) for handle in handles) > 0
        await scene.pass_time(10)
        assert all(len(scene.alive_holders(handle)) == 3 for handle in handles)
        healing, _ = await scene.status()
        assert (healing.waiting, healing.copied_count) == ((0, 0, 0), scene.fetched())
        assert healing.copied_size == scene.fetched() * MIB

    run(test())


def test_a_chunk_with_one_live_replica_is_copied_at_once_and_urgently() -> None:
    async def test() -> None:
        scene = await Scene.begin(5)
        handles = await scene.store("/f", 10)
        await scene.pass_time(2)
        alone = handles[0]
        scene.away = set(sorted(scene.holders(alone))[:2])
        await scene.pass_time(6)
        assert len(scene.alive_holders(alone)) >= 2
        orders = [order for server in scene.servers.values() for order in server.fetched]
        assert orders[0].is_urgent
        assert all(order.is_urgent for order in orders), "the others wait for repair_after"

    run(test())


def test_a_returning_server_ends_the_waiting_and_its_surplus_is_trimmed_after_the_grace() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handles = await scene.store("/f", 12)
        await scene.pass_time(2)
        scene.away = {"c1"}
        await scene.pass_time(20)
        assert all(len(scene.alive_holders(handle)) == 3 for handle in handles)
        scene.away = set()
        await scene.pass_time(4)
        assert all(len(scene.holders(handle)) == 3 for handle in handles), "surplus is unlisted at once"
        kept = sum(len(server.replicas) for server in scene.servers.values())
        assert kept > 36, "readers may be on their way to what was unlisted"
        await scene.pass_time(20)
        assert sum(len(server.replicas) for server in scene.servers.values()) == 36
        for handle in handles:
            assert all(handle in scene.servers[name].replicas for name in scene.holders(handle))

    run(test())


async def unlisted(scene: Scene) -> tuple[ChunkHandle, PretendServer]:
    """Store a chunk with a replica too many; return it, and the server whose replica was unlisted."""
    (handle,) = await scene.store("/f")
    spare = next(server for name, server in scene.servers.items() if name not in scene.holders(handle))
    await spare.beat(added=[spare.put(handle, MIB, 7)])
    await scene.pass_time(3)
    assert len(scene.holders(handle)) == 3
    (name,) = {name for name, server in scene.servers.items() if handle in server.replicas} - scene.holders(handle)
    return handle, scene.servers[name]


def test_an_unlisted_replica_is_listed_again_when_its_chunk_needs_it() -> None:
    async def test() -> None:
        scene = await Scene.begin(4, garbage_grace_s=1000.0)
        handle, server = await unlisted(scene)
        scene.away = {min(scene.holders(handle))}
        await scene.pass_time(14)
        assert server.name in scene.holders(handle)
        assert scene.fetched() == 0, "no byte had to move"

    run(test())


def test_a_replica_whose_order_to_go_is_on_its_way_is_not_listed_again_but_copied() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handle, server = await unlisted(scene)
        scene.away = {server.name}
        for _ in range(12):  # its heartbeats come, but it has not carried the order out yet
            reply = await server.beat()
            if handle in [order.handle for order in reply.orders]:
                break
            await scene.pass_time(1)
        else:
            raise AssertionError("the surplus replica was to be deleted")
        lost = next(scene.servers[name] for name in sorted(scene.holders(handle)))
        scene.away |= {lost.name}
        for _ in range(16):
            await scene.pass_time(1)
            reply = await server.beat()
            assert server.name not in scene.holders(handle), "what is about to go must not count"
            if handle in [order.handle for order in reply.copies]:
                break
        else:
            raise AssertionError("a copy was to be ordered to the only server without a listed one")
        await server.beat(added=[server.replicas[handle]])  # the order to copy it keeps it
        assert server.name in scene.holders(handle)

    run(test())


def test_an_unlisted_replica_that_goes_while_it_is_listed_again_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        scene = await Scene.begin(4, garbage_grace_s=1000.0)
        handle, server = await unlisted(scene)
        decree = scene.trio.leader.leadership.decree

        async def decree_late(command: Message) -> Message:
            if isinstance(command, ChangeReplicas) and not scene.fetched() and handle in server.replicas:
                del server.replicas[handle]
                await server.beat(removed=[handle])
            return await decree(command)

        monkeypatch.setattr(scene.trio.leader.leadership, "decree", decree_late)
        scene.away = {min(scene.holders(handle))}
        await scene.pass_time(20)
        assert scene.fetched() == 1, "a copy was made instead"
        assert all(handle in scene.servers[name].replicas for name in scene.holders(handle))

    run(test())


def test_a_failed_copy_is_tried_elsewhere_after_a_pause() -> None:
    async def test() -> None:
        scene = await Scene.begin(5)
        (handle,) = await scene.store("/f")
        await scene.pass_time(2)
        service = scene.trio.leader
        scene.away = {min(scene.holders(handle))}
        for _ in range(14):
            await scene.pass_time(1)
            if len(service.healing.copies) == 1:
                break
        (order,) = service.healing.copies
        target = next(server for server in scene.servers.values() if server.server_id == order.plan.target)
        await target.beat(copy_failures=[CopyFailure(handle, "disk_full", "no room")])
        assert not len(service.healing.copies)
        assert service.healing.copies.is_barred(handle, scene.trio.clock.monotonic())
        await scene.pass_time(8)
        assert len(scene.alive_holders(handle)) == 3
        assert not target.fetched
        assert (await scene.status())[0].failed_count == 1

    run(test())


def test_an_order_that_its_server_never_mentions_is_sent_again_and_then_given_to_another() -> None:
    async def test() -> None:
        scene = await Scene.begin(5)
        (handle,) = await scene.store("/f")
        await scene.pass_time(2)
        deaf = next(server for name, server in scene.servers.items() if name not in scene.holders(handle))
        others = [name for name in scene.servers if name not in scene.holders(handle) and name != deaf.name]
        scene.away = {min(scene.holders(handle)), deaf.name, *others}
        service = scene.trio.leader
        heard = 0
        for _ in range(40):
            heard += len((await deaf.beat()).copies)
            await scene.pass_time(1)
        assert heard >= 3
        scene.away = {min(scene.holders(handle)), deaf.name}
        await scene.pass_time(20)
        assert len(scene.holders(handle) - scene.away) == 3
        assert deaf.server_id not in {order.plan.target for order in service.healing.copies}

    run(test())


def test_setrep_is_carried_out_in_both_directions() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        (handle,) = await scene.store("/f")
        await scene.trio.ask(SetReplication(scene.trio.call(), "/f", 4))
        await scene.pass_time(5)
        assert len(scene.holders(handle)) == 4
        await scene.trio.ask(SetReplication(scene.trio.call(), "/f", 2))
        await scene.pass_time(5)
        assert len(scene.holders(handle)) == 2

    run(test())


def test_a_new_leader_starts_no_storm_for_servers_that_it_has_not_heard() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        await scene.store("/f", 20)
        await scene.pass_time(3)
        scene.trio.group.elect("m2")
        scene.away = {"c2", "c3", "c4"}
        await scene.pass_time(3)
        assert scene.fetched() == 0
        scene.away = set()
        await scene.pass_time(20)
        assert scene.fetched() == 0
        assert (await scene.status())[0].waiting == (0, 0, 0)

    run(test())


def test_repair_goes_on_after_a_change_of_leader() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handles = await scene.store("/f", 30)
        await scene.pass_time(2)
        scene.away = {"c1"}
        await scene.pass_time(12)
        scene.trio.group.elect("m3")
        await scene.pass_time(30)
        assert all(len(scene.alive_holders(handle)) == 3 for handle in handles)

    run(test())


def test_chunks_in_one_rack_are_spread_when_another_rack_comes() -> None:
    async def test() -> None:
        scene = await Scene.begin(3, racks="aaa")
        handles = await scene.store("/f", 5)
        await scene.pass_time(2)
        await scene.join(4, rack="b")
        await scene.pass_time(12)
        for handle in handles:
            assert len(scene.holders(handle)) == 3
            assert "c4" in scene.holders(handle)
        assert (await scene.status())[0].misplaced_count == 0

    run(test())


def test_a_deleted_chunk_is_no_longer_repaired() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        await scene.store("/f", 5)
        await scene.pass_time(2)
        scene.away = {"c1", "c2"}
        await scene.pass_time(1)
        await scene.trio.ask(Delete(scene.trio.call(), "/f", skip_trash=True))
        await scene.pass_time(20)
        assert scene.fetched() == 0
        assert not len(scene.trio.leader.healing.copies)

    run(test())


def test_a_server_that_has_done_its_copies_gets_more_with_the_answer_and_the_end_is_noticed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair_module, "COPIES_WAITING_MAX", 4)  # of one server at a time

    async def test() -> None:
        scene = await Scene.begin(4)
        await scene.store("/f", 60)
        await scene.pass_time(2)
        scene.away = {"c1"}
        for _ in range(30):
            await scene.pass_time(1)
            if scene.fetched():
                break
        lookout = scene.trio.leader.lookout
        survey = lookout.survey
        assert survey is not None
        assert sum(survey.waiting) > 3 * 4, "there is more to do than the orders of one turn"
        for _ in range(40):  # no duty has a turn from here on
            for name in ("c2", "c3", "c4"):
                await scene.servers[name].work()
        assert lookout.survey is not None
        assert (sum(lookout.survey.waiting), len(scene.trio.leader.healing.copies)) == (0, 0)

    run(test())
