"""Does a leader heal its cluster by what heartbeats say: copies, trims, drains, balances, and stops when all is well?

Owns: the real service and its duties over pretended chunk servers and a fake clock. Refuses to know: processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

import pytest

from dfs.errors import Conflict, InvalidArgument, NotEnoughServers, NotFound
from dfs.ids import ChunkHandle, ServerId
from dfs.master import repair as repair_module
from dfs.master.commands import ChangeReplicas
from dfs.master.duties import LivenessDuty, ReportsDuty
from dfs.net.messages import (
    Allocate,
    AllocateReply,
    BalanceServers,
    BalanceServersReply,
    DecommissionServer,
    DecommissionServerReply,
    Delete,
    GetClusterStatus,
    GetClusterStatusReply,
    Locate,
    LocateReply,
    Message,
    RemoveServer,
    RemoveServerReply,
    SetMaintenance,
    SetMaintenanceReply,
    SetReplication,
)
from dfs.net.parts import CopyFailure, HealingStatus, ServerStatus
from dfs.testing.masters import MIB, MasterTrio, PretendServer

QUICK: dict[str, Any] = {"dead_after_s": 3.0, "repair_after_s": 10.0, "garbage_grace_s": 5.0, "balance": False}


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


class Scene:
    """Three masters and pretended servers; `pass_time` lets those that are not in `away` beat and the duties run."""

    def __init__(self, trio: MasterTrio, servers: list[PretendServer]) -> None:
        self.trio = trio
        self.servers = {server.name: server for server in servers}
        self.away: set[str] = set()

    @classmethod
    async def begin(cls, servers: int, *, racks: str = "", **settings: Any) -> Scene:
        trio = await MasterTrio(**{**QUICK, **settings}).start()
        scene = cls(trio, [])
        for number in range(1, servers + 1):
            await scene.join(number, rack=racks[number - 1 : number])
        await scene.pass_time(3)  # their first reports are compared
        return scene

    async def join(self, number: int, *, rack: str = "", free: int = 1000 * MIB) -> PretendServer:
        server = PretendServer(self.trio, number, rack=rack, free=free)
        await server.join()
        self.servers[server.name] = server
        return server

    async def store(self, path: str, count: int = 1, replication: int = 0) -> list[ChunkHandle]:
        handles = await self.trio.store(path, count * MIB, replication=replication)
        for handle in handles:
            chunk = self.trio.leader.state.chunk(handle)
            assert chunk is not None
            for server in self.servers.values():
                if server.server_id in chunk.servers:
                    server.put(handle, chunk.length, chunk.crc)
        return handles

    async def pass_time(self, seconds: int) -> None:
        service = self.trio.leader
        liveness = LivenessDuty(self.trio.config, service.state, service.view, self.trio.clock)
        duties = [liveness, ReportsDuty(service.reports), *service.healing_duties()]
        for _ in range(seconds):
            self.trio.clock.advance(1)
            for name, server in self.servers.items():
                if name not in self.away:
                    await server.work()
            for duty in duties:
                await duty.run_once()
            service.healing.copies.check_invariants()
        self.trio.check_invariants()

    def holders(self, handle: ChunkHandle) -> set[str]:
        chunk = self.trio.leader.state.chunk(handle)
        assert chunk is not None
        names = {server.server_id: name for name, server in self.servers.items()}
        return {names.get(server, "?") for server in chunk.servers}

    def alive_holders(self, handle: ChunkHandle) -> set[str]:
        return self.holders(handle) - self.away

    def fetched(self, names: Collection[str] = ()) -> int:
        return sum(len(server.fetched) for name, server in self.servers.items() if not names or name in names)

    async def status(self) -> tuple[HealingStatus, dict[str, ServerStatus]]:
        reply = await self.trio.expect(GetClusterStatusReply, GetClusterStatus())
        return reply.healing, {server.info.name: server for server in reply.servers}


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


# --- draining, maintenance, removal -----------------------------------------------------------------


def test_a_drained_server_is_not_safe_to_power_off_while_others_that_have_its_chunks_are_dead() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handles = await scene.store("/f", 20)
        held = sum("c1" in scene.holders(handle) for handle in handles)
        await scene.trio.expect(DecommissionServerReply, DecommissionServer("c1"))
        await scene.pass_time(20)
        assert (await scene.status())[1]["c1"].mode == "drained"
        for away in ({"c2"}, {"c2", "c3"}, {"c2", "c3", "c4"}):
            scene.away = away
            await scene.pass_time(20)
            _, servers = await scene.status()
            assert (servers["c1"].mode, servers["c1"].left_count) == ("draining", held), f"without {away}"
        scene.away = set()
        await scene.pass_time(20)
        assert (await scene.status())[1]["c1"].mode == "drained"

    run(test())


def test_a_drained_server_can_be_taken_away_and_forgotten() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handles = await scene.store("/f", 20)
        await scene.pass_time(2)
        held = sum("c1" in scene.holders(handle) for handle in handles)
        plan = await scene.trio.expect(DecommissionServerReply, DecommissionServer("c1", is_plan=True))
        assert (plan.mode, plan.left_count, plan.left_size, plan.servers_left) == ("", held, held * MIB, 3)
        reply = await scene.trio.expect(DecommissionServerReply, DecommissionServer("c1"))
        assert reply.mode == "draining"
        allocated = await scene.trio.expect(AllocateReply, Allocate(5))
        assert "c1" not in {allocated.servers[place].name for chunk in allocated.chunks for place in chunk.chain}
        await scene.pass_time(8)
        _, servers = await scene.status()
        assert (servers["c1"].mode, servers["c1"].left_count) == ("drained", 0)
        assert all(len(scene.holders(handle) - {"c1"}) == 3 for handle in handles)
        scene.away = {"c1"}
        await scene.pass_time(20)
        removed = await scene.trio.expect(RemoveServerReply, RemoveServer("c1"))
        assert (removed.replica_count, removed.lost_count) == (held, 0)
        _, servers = await scene.status()
        assert "c1" not in servers
        assert all(len(scene.holders(handle)) == 3 for handle in handles)
        scene.trio.check_invariants()

    run(test())


def test_a_cancelled_draining_leaves_everything_at_its_goal() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handles = await scene.store("/f", 10)
        await scene.pass_time(2)
        await scene.trio.ask(DecommissionServer("c1"))
        await scene.pass_time(8)
        reply = await scene.trio.expect(DecommissionServerReply, DecommissionServer("c1", is_cancel=True))
        assert reply.mode == ""
        await scene.pass_time(10)
        assert all(len(scene.holders(handle)) == 3 for handle in handles)

    run(test())


def test_draining_is_refused_when_too_few_servers_or_too_little_room_would_be_left() -> None:
    async def test() -> None:
        scene = await Scene.begin(3)
        await scene.store("/f", 3)
        error = await scene.trio.refused(DecommissionServer("c1"))
        assert isinstance(error, Conflict), "nothing that waiting would change"
        assert "2 are left" in error.message
        assert "3 replicas" in error.message
        narrow = await Scene.begin(4)
        await narrow.store("/f", 20)
        for name in ("c2", "c3", "c4"):
            narrow.servers[name].free = MIB
        await narrow.pass_time(1)
        assert "bytes free" in (await narrow.trio.refused(DecommissionServer("c1"))).message
        assert isinstance(await narrow.trio.refused(DecommissionServer("c9")), NotFound)

    run(test())


def test_maintenance_suppresses_repair_until_it_ends_by_itself() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handles = await scene.store("/f", 10)
        await scene.pass_time(2)
        reply = await scene.trio.expect(SetMaintenanceReply, SetMaintenance("c1", 60.0))
        assert (reply.until_ms > 0, reply.single_count) == (True, 0)
        scene.away = {"c1"}
        await scene.pass_time(50)
        healing, servers = await scene.status()
        assert (scene.fetched(), servers["c1"].mode) == (0, "maintenance")
        assert healing.deferred_count > 0
        await scene.pass_time(25)
        assert all(len(scene.alive_holders(handle)) == 3 for handle in handles)
        assert isinstance(await scene.trio.refused(SetMaintenance("c1", 1e9)), InvalidArgument)

    run(test())


def test_a_server_that_runs_or_has_only_replicas_is_not_removed() -> None:
    async def test() -> None:
        scene = await Scene.begin(3)
        await scene.store("/one", 4, replication=1)
        await scene.pass_time(2)
        holder = next(name for name, server in scene.servers.items() if server.replicas)
        held = len(scene.servers[holder].replicas)
        assert isinstance(await scene.trio.refused(RemoveServer(holder)), Conflict)
        scene.away = {holder}
        await scene.pass_time(5)
        error = await scene.trio.refused(RemoveServer(holder))
        assert f"{held} chunks have their only registered replica" in error.message
        removed = await scene.trio.expect(RemoveServerReply, RemoveServer(holder, is_forced=True))
        assert (removed.replica_count, removed.lost_count) == (held, held)
        await scene.pass_time(1)
        scene.away = set()
        await scene.pass_time(4)
        assert (await scene.status())[0].waiting == (0, 0, 0), "it came back with what it held"

    run(test())


def test_a_wiped_server_under_its_old_name_is_filled_and_its_old_identity_forgotten() -> None:
    async def test() -> None:
        scene = await Scene.begin(3)
        handles = await scene.store("/f", 6)
        await scene.pass_time(2)
        old = scene.servers.pop("c1")
        new = PretendServer(scene.trio, 9)
        new.name, new.address, new.rack = old.name, old.address, old.rack
        await new.join()
        scene.servers["c1"] = new
        await scene.pass_time(25)
        assert len(new.replicas) == len(handles)
        assert [server.name for server in scene.trio.leader.state.servers()] == ["c2", "c3", "c1"]

    run(test())


# --- balance, slow servers ----------------------------------------------------------------------------


def test_a_new_server_is_filled_until_the_spread_is_within_the_threshold() -> None:
    async def test() -> None:
        scene = await Scene.begin(3, balance=True)
        for server in scene.servers.values():
            server.free = 60 * MIB
        handles = await scene.store("/f", 60)
        await scene.pass_time(2)
        fourth = await scene.join(4, free=120 * MIB)
        plan = await scene.trio.expect(BalanceServersReply, BalanceServers("plan", 0.1))
        assert {move.target for move in plan.moves} == {"c4"}
        assert fourth.fetched == []
        for _ in range(60):
            await scene.pass_time(1)
            for server in scene.servers.values():
                server.free = 120 * MIB - len(server.replicas) * MIB
        healing, servers = await scene.status()
        assert healing.balance.state == "even"
        assert healing.balance.spread <= 0.1
        assert servers["c4"].stored_size >= 30 * MIB
        assert all(len(scene.holders(handle)) == 3 for handle in handles)
        assert sum(len(server.fetched) for server in scene.servers.values()) < 60, "nothing went to and fro"

    run(test())


def test_balance_runs_when_asked_and_stops_when_told() -> None:
    async def test() -> None:
        scene = await Scene.begin(3)
        for server in scene.servers.values():
            server.free = 60 * MIB
        await scene.store("/f", 60)
        await scene.pass_time(2)
        fourth = await scene.join(4, free=120 * MIB)
        await scene.pass_time(5)
        assert not fourth.fetched, "it is off in this configuration"
        started = await scene.trio.expect(BalanceServersReply, BalanceServers("start", 0.05))
        assert started.status.state == "running"
        await scene.pass_time(3)
        assert fourth.fetched
        stopped = await scene.trio.expect(BalanceServersReply, BalanceServers("stop"))
        assert stopped.status.state == "stopped"
        await scene.pass_time(2)
        count = len(fourth.fetched)
        await scene.pass_time(5)
        assert len(fourth.fetched) == count
        assert isinstance(await scene.trio.refused(BalanceServers("dance")), InvalidArgument)

    run(test())


def test_balance_waits_while_chunks_need_repair() -> None:
    async def test() -> None:
        scene = await Scene.begin(4, repair_rate=5, balance_rate=7)
        for server in scene.servers.values():
            server.free = 60 * MIB
        await scene.store("/f", 40)
        await scene.pass_time(2)
        await scene.join(5, free=500 * MIB)
        scene.away = {"c1"}
        await scene.pass_time(11)
        await scene.trio.ask(BalanceServers("start", 0.01))
        service = scene.trio.leader
        await service.healing_duties()[0].run_once()
        orders = list(service.healing.copies)
        assert orders
        assert {order.plan.work.name for order in orders} == {"COPY"}
        rates = {(await server.work()).copy_rate_max for name, server in scene.servers.items() if name != "c1"}
        assert rates == {5}

    run(test())


def test_a_slow_server_gets_no_new_chunks_and_is_read_last() -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        await scene.store("/f", 8)
        scene.servers["c2"].disk_wait_ms = 4000
        for server in scene.servers.values():
            server.disk_wait_ms = server.disk_wait_ms or 10
        await scene.pass_time(12)
        _, servers = await scene.status()
        assert {name: server.state for name, server in servers.items() if server.state != "alive"} == {"c2": "slow"}
        allocated = await scene.trio.expect(AllocateReply, Allocate(20))
        assert "c2" not in {allocated.servers[place].name for chunk in allocated.chunks for place in chunk.chain}
        located = await scene.trio.expect(LocateReply, Locate("/f"))
        for extent in located.extents:
            names = [located.servers[place].name for place in extent.replicas]
            assert "c2" not in names[:-1]
        scene.servers["c2"].disk_wait_ms = 10
        await scene.pass_time(40)
        assert (await scene.status())[1]["c2"].state == "alive"

    run(test())


@pytest.mark.parametrize("state", ["full", "failed"])
def test_disks_that_take_nothing_get_no_copies(state: str) -> None:
    async def test() -> None:
        scene = await Scene.begin(4)
        handles = await scene.store("/f", 6)
        await scene.pass_time(2)
        for name in scene.holders(handles[0]):
            scene.servers[name].disk_state = state
        scene.away = {min(scene.holders(handles[0]))}
        spare = next(name for name in scene.servers if name not in scene.holders(handles[0]))
        scene.servers[spare].disk_state = state
        await scene.pass_time(20)
        healing, _ = await scene.status()
        assert scene.fetched() == 0
        assert healing.blocked_count > 0
        assert "takes nothing" in healing.blocked_reason
        error = await scene.trio.refused(Allocate(1))
        assert isinstance(error, NotEnoughServers)
        assert "free space" in error.message

    run(test())


def test_ids_of_servers_can_be_named_where_names_are_not_unique() -> None:
    async def test() -> None:
        scene = await Scene.begin(3)
        other = PretendServer(scene.trio, 7)
        other.name = "c1"
        await other.join()
        error = await scene.trio.refused(SetMaintenance("c1", 5.0))
        assert isinstance(error, InvalidArgument)
        assert "name one by its id" in error.message
        reply = await scene.trio.expect(SetMaintenanceReply, SetMaintenance(ServerId(bytes([7]) * 16).hex(), 5.0))
        assert reply.name == "c1"

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
