"""Does a leader drain, excuse, forget, fill and spare chunk servers as administrators and their pace ask for?

Owns: the real service and its duties over pretended chunk servers and a fake clock. Refuses to know: processes.
"""

from __future__ import annotations

import pytest

from dfs.errors import Conflict, InvalidArgument, NotEnoughServers, NotFound, Overloaded, Retry
from dfs.ids import ServerId
from dfs.net.messages import (
    Allocate,
    AllocateReply,
    BalanceServers,
    BalanceServersReply,
    DecommissionServer,
    DecommissionServerReply,
    Locate,
    LocateReply,
    RemoveServer,
    RemoveServerReply,
    SetMaintenance,
    SetMaintenanceReply,
)
from dfs.testing.healing_scene import Scene, run
from dfs.testing.masters import MIB, PretendServer

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


def test_a_server_in_maintenance_gets_no_copies_while_it_still_runs() -> None:
    """Once it is silent they would count for the goal, and nobody could read them."""

    async def test() -> None:
        scene = await Scene.begin(5)
        handles = await scene.store("/f", 10)
        await scene.pass_time(2)
        held = {handle: scene.holders(handle) for handle in handles}
        await scene.trio.expect(SetMaintenanceReply, SetMaintenance("c5", 3600.0))
        scene.away = {"c1"}
        await scene.pass_time(60)
        assert scene.fetched(["c5"]) == 0
        assert any("c1" in holders for holders in held.values())
        for handle in handles:
            assert len(scene.alive_holders(handle)) == 3
        assert isinstance(await scene.trio.refused(DecommissionServer("c4")), Conflict), "two are left that can take"
        await scene.trio.expect(SetMaintenanceReply, SetMaintenance("c5", 0.0))
        await scene.trio.expect(DecommissionServerReply, DecommissionServer("c4"))

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


def test_a_new_leader_lets_the_removal_of_a_dead_server_wait_until_it_knows() -> None:
    """It has heard nobody yet: to say that the server runs would be a guess, and a caller would give up for good."""

    async def test() -> None:
        scene = await Scene.begin(3)
        scene.away = {"c1"}
        await scene.pass_time(5)
        scene.trio.leader.view.reset(scene.trio.clock.monotonic())
        error = await scene.trio.refused(RemoveServer("c1"))
        assert isinstance(error, Overloaded)
        assert error.retry is Retry.SAME
        await scene.pass_time(5)
        assert (await scene.trio.expect(RemoveServerReply, RemoveServer("c1"))).name == "c1"

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
