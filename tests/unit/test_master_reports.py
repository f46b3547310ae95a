"""What chunk servers say to the leader: registration, heartbeats, full reports, and the races between them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from dfs.config import DATA_DIRS_MAX
from dfs.errors import InvalidArgument, NotLeader, OutcomeUnknown
from dfs.ids import ChunkHandle, ServerId, new_chunk_handle
from dfs.master import reports
from dfs.master.duties import GarbageDuty, OptionsDuty
from dfs.master.healing.garbage import RESEND_AFTER_S
from dfs.net.messages import (
    ORDERS_MAX,
    CommitFile,
    Delete,
    Heartbeat,
    HeartbeatReply,
    RegisterServer,
    RegisterServerReply,
)
from dfs.net.parts import DeleteReplica, DiskReport, NewChunk, NewExtent
from dfs.testing.masters import MIB, MasterTrio, PretendServer


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def started(servers: int = 3, **settings: Any) -> tuple[MasterTrio, list[PretendServer]]:
    trio = await MasterTrio(**settings).start()
    found = [PretendServer(trio, number) for number in range(1, servers + 1)]
    for server in found:
        await server.join()
        await settle(trio, server)
    return trio, found


async def settle(trio: MasterTrio, server: PretendServer, beats: int = 2) -> None:
    """Let the leader compare the last report, and the heartbeats pass that it waits for."""
    await trio.leader.reports.compare_next()
    for _ in range(beats):
        await server.beat()


async def stored(trio: MasterTrio, servers: list[PretendServer], path: str, size: int = 1000) -> list[ChunkHandle]:
    """Store a file, and let the pretended servers hold its replicas."""
    handles = await trio.store(path, size)
    for handle in handles:
        chunk = trio.leader.state.chunk(handle)
        assert chunk is not None
        for server in servers:
            if server.server_id in chunk.servers:
                server.put(handle, chunk.length, chunk.crc)
    return handles


def settled(trio: MasterTrio, *, must_report: bool = False) -> HeartbeatReply:
    """Return the reply that orders nothing."""
    return HeartbeatReply(False, must_report, copy_rate_max=trio.config.repair_rate)


def holders(trio: MasterTrio, handle: ChunkHandle) -> set[str]:
    chunk = trio.leader.state.chunk(handle)
    assert chunk is not None
    return {f"c{server_id[0]}" for server_id in chunk.servers}


# --- registration ---------------------------------------------------------------------------------


def test_a_server_is_put_into_the_registry_once_and_again_only_when_it_changed() -> None:
    async def test() -> None:
        trio, (server,) = await started(1)
        entries = len(trio.group.entries)
        await server.register()
        assert len(trio.group.entries) == entries
        server.rack = "elsewhere"
        await server.register()
        assert len(trio.group.entries) == entries + 1
        known = trio.services["m3"].state.server(server.server_id)
        assert known is not None
        assert (known.name, known.address, known.rack) == ("c1", "10.0.1.1:7500", "elsewhere")

    run(test())


def test_a_heartbeat_of_an_unknown_server_asks_it_to_register() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        server = PretendServer(trio, 1)
        assert await server.beat() == HeartbeatReply(must_register=True, must_report=False)
        await server.register()
        assert await server.beat() == settled(trio, must_report=True)
        await server.report()
        assert await server.beat() == settled(trio)

    run(test())


def test_a_new_leader_asks_for_registration_and_a_report() -> None:
    async def test() -> None:
        trio, (server,) = await started(1)
        trio.group.elect("m2")
        assert (await server.beat()).must_register
        await server.register()
        assert (await server.beat()).must_report
        error = await trio.refused(RegisterServer(server.server_id, "c1", server.address, "r", b"1", 1), to="m1")
        assert isinstance(error, NotLeader)
        assert error.details["leader"] == "10.0.0.2:7400"

    run(test())


def test_a_restart_at_the_same_address_is_taken_in_at_once_and_reports() -> None:
    async def test() -> None:
        trio, (server,) = await started(1)
        server.incarnation = b"second"
        assert (await server.beat()).must_register
        reply = await trio.ask(RegisterServer(server.server_id, "c1", server.address, "r1", b"second", 5))
        assert reply == RegisterServerReply("test")
        assert (await server.beat()).must_report

    run(test())


def test_a_copied_data_directory_is_refused_with_advice_until_the_first_server_is_silent() -> None:
    async def test() -> None:
        trio, (server,) = await started(1)
        twin = PretendServer(trio, 1)
        twin.incarnation, twin.address = b"twin", "10.0.9.9:7500"
        trio.clock.advance(1.5)
        with pytest.raises(InvalidArgument, match=r"alive at 10\.0\.1\.1:7500.*copied"):
            await twin.register()
        known = trio.leader.state.server(server.server_id)
        assert known is not None
        assert known.address == server.address, "the registry still sends clients to the first one"
        assert not (await server.beat()).must_register, "the first one is left alone"
        trio.clock.advance(2.5)
        await twin.register()
        assert (await server.beat()).must_register
        with pytest.raises(InvalidArgument, match="copied"):
            await server.register()

    run(test())


@pytest.mark.parametrize(
    "nonsense",
    [
        RegisterServer(ServerId(b"short"), "c1", "h:1", "r", b"1", 1),
        RegisterServer(ServerId(b"x" * 16), "c1", "h:1", "r", b"", 1),
        RegisterServer(ServerId(b"x" * 16), "c1", "h:1", "r", b"1", 0),
        RegisterServer(ServerId(b"x" * 16), "", "h:1", "r", b"1", 1),
        RegisterServer(ServerId(b"x" * 16), "c1\n", "h:1", "r", b"1", 1),
        RegisterServer(ServerId(b"x" * 16), "c1", "h:1", "r" * 65, b"1", 1),
        RegisterServer(ServerId(b"x" * 16), "c1", "nowhere", "r", b"1", 1),
    ],
)
def test_nonsense_is_not_registered(nonsense: RegisterServer) -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        assert isinstance(await trio.refused(nonsense), InvalidArgument)
        assert trio.leader.state.servers() == ()

    run(test())


# --- heartbeats -----------------------------------------------------------------------------------


def test_a_replica_that_came_is_listed_and_one_that_went_is_not() -> None:
    async def test() -> None:
        trio, servers = await started(4)
        (handle,) = await stored(trio, servers, "/f")
        (other,) = [server for server in servers if server.name not in holders(trio, handle)]
        await other.beat(added=[other.put(handle, 1000, 7)])
        assert holders(trio, handle) == {"c1", "c2", "c3", "c4"}
        await other.beat(removed=[handle])
        assert other.name not in holders(trio, handle)
        trio.check_invariants()

    run(test())


def test_a_replica_of_a_put_in_progress_is_left_alone() -> None:
    async def test() -> None:
        trio, (server,) = await started(1)
        entries = len(trio.group.entries)
        reply = await server.beat(added=[server.put(ChunkHandle(b"n" * 16), 5, 5)])
        assert reply.orders == ()
        assert len(trio.group.entries) == entries

    run(test())


def test_a_replica_with_other_bytes_is_unlisted_and_ordered_away() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        (handle,) = await stored(trio, servers, "/f")
        reply = await servers[0].beat(added=[servers[0].put(handle, 999, 7)])
        assert reply.orders == (DeleteReplica(handle),)
        assert holders(trio, handle) == {"c2", "c3"}

    run(test())


def test_a_good_replica_does_not_go_by_an_old_order_for_a_bad_one() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        (handle,) = await stored(trio, servers, "/f")
        assert (await servers[0].beat(added=[servers[0].put(handle, 999, 7)])).orders == (DeleteReplica(handle),)
        trio.clock.advance(
            RESEND_AFTER_S + 1
        )  # it deleted that one and fetched a good one: only the last state is told
        reply = await servers[0].beat(added=[servers[0].put(handle, 1000, 7)])
        assert reply.orders == ()
        assert holders(trio, handle) == {"c1", "c2", "c3"}

    run(test())


def test_a_heartbeat_that_fails_half_way_can_be_sent_again() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        (handle,) = await stored(trio, servers, "/f")
        trio.logs["m1"].lose_next_command = True
        with pytest.raises(OutcomeUnknown):
            await servers[0].beat(removed=[handle])
        assert holders(trio, handle) == {"c1", "c2", "c3"}
        await servers[0].beat(removed=[handle])
        assert holders(trio, handle) == {"c2", "c3"}

    run(test())


def test_too_many_changes_or_malformed_handles_are_refused() -> None:
    async def test() -> None:
        trio, (server,) = await started(1)
        with pytest.raises(InvalidArgument, match="16 bytes"):
            await server.beat(removed=[ChunkHandle(b"short")])
        many = tuple(ChunkHandle(number.to_bytes(16, "big")) for number in range(5001))
        with pytest.raises(InvalidArgument, match="at most 5000"):
            await server.beat(removed=many)
        disks = (DiskReport("/d", 1, 1, 0, "ok"),) * (DATA_DIRS_MAX + 1)
        with pytest.raises(InvalidArgument, match="data directories"):
            await trio.ask(Heartbeat(server.server_id, server.incarnation, 1, 1, 0, 0, disks))
        assert isinstance(
            await trio.refused(Heartbeat(server.server_id, server.incarnation, 1, 1, 0, 0, ()), to="m2"), NotLeader
        )

    run(test())


# --- garbage --------------------------------------------------------------------------------------


async def released(trio: MasterTrio, path: str) -> None:
    await trio.ask(Delete(trio.call(), path, skip_trash=True))


def garbage_duty(trio: MasterTrio) -> GarbageDuty:
    service = trio.leader
    return GarbageDuty(trio.config, service.state, service.view, service.reports, trio.clock)


async def rest(trio: MasterTrio, servers: list[PretendServer], seconds: int) -> None:
    """Let time pass with heartbeats."""
    for _ in range(seconds):
        trio.clock.advance(1)
        for server in servers:
            await server.beat()


def test_garbage_is_ordered_away_after_its_grace_until_its_servers_confirm() -> None:
    async def test() -> None:
        trio, servers = await started(3, garbage_grace_s=5.0)
        (handle,) = await stored(trio, servers, "/f")
        await released(trio, "/f")
        duty = garbage_duty(trio)
        await duty.run_once()
        assert (await servers[0].beat()).orders == (), "readers may still be at work"
        await rest(trio, servers, 6)
        await duty.run_once()
        assert (await servers[0].beat()).orders == (DeleteReplica(handle),)
        assert (await servers[0].beat()).orders == (), "it has been told"
        trio.clock.advance(RESEND_AFTER_S)
        assert (await servers[0].beat()).orders == (DeleteReplica(handle),), "it did not confirm: again"
        for server in servers:
            await server.beat(removed=[handle])
        assert trio.leader.state.space(None).garbage_count == 0
        trio.clock.advance(RESEND_AFTER_S)
        assert (await servers[0].beat()).orders == ()
        trio.check_invariants()

    run(test())


def test_reported_garbage_keeps_its_grace_after_a_leader_change() -> None:
    async def test() -> None:
        trio, servers = await started(3, garbage_grace_s=5.0)
        (handle,) = await stored(trio, servers, "/f")
        await released(trio, "/f")
        trio.group.elect("m2")
        await servers[0].register()
        assert [reply.orders for reply in await servers[0].report()] == [()]
        assert (await servers[0].beat()).orders == ()
        await rest(trio, servers[:1], 5)
        trio.clock.advance(RESEND_AFTER_S)
        assert (await servers[0].beat()).orders == (DeleteReplica(handle),)

    run(test())


# --- full reports -----------------------------------------------------------------------------------


def test_a_report_lists_what_the_map_did_not_know() -> None:
    async def test() -> None:
        trio, servers = await started(4)
        handles = await stored(trio, servers, "/f", 3 * MIB)
        for handle in handles:
            for server in servers:
                server.put(handle, MIB, 7)
        for server in servers:
            await server.report(page_size=2)
            await settle(trio, server)
        assert all(holders(trio, handle) == {"c1", "c2", "c3", "c4"} for handle in handles)
        trio.check_invariants()

    run(test())


def test_a_report_orders_stale_and_orphaned_replicas_away_and_spares_young_ones() -> None:
    async def test() -> None:
        trio, servers = await started(3, orphan_grace_s=100.0)
        (handle,) = await stored(trio, servers, "/f")
        server = servers[0]
        orphan = new_chunk_handle(trio.clock.wall_ms())
        trio.clock.advance(50)
        young = new_chunk_handle(trio.clock.wall_ms())
        trio.clock.advance(51)
        await OptionsDuty(trio.config, trio.leader.state, trio.leader.leadership, trio.clock).run_once()
        server.put(handle, 1000, 8)
        server.put(orphan, 1, 1)
        server.put(young, 1, 1)
        await server.register()
        (reply,) = await server.report()
        assert {order.handle for order in reply.orders} == {handle, orphan}
        assert holders(trio, handle) == {"c2", "c3"}

    run(test())


def test_a_reply_carries_a_bounded_number_of_orders() -> None:
    async def test() -> None:
        trio, (server,) = await started(1, orphan_grace_s=100.0)
        for _ in range(ORDERS_MAX + 1):
            server.put(new_chunk_handle(trio.clock.wall_ms()), 1, 1)
        trio.clock.advance(101)
        await OptionsDuty(trio.config, trio.leader.state, trio.leader.leadership, trio.clock).run_once()
        await server.register()
        (reply,) = await server.report()
        assert len(reply.orders) == ORDERS_MAX
        assert len((await server.beat()).orders) == 1

    run(test())


async def commit(trio: MasterTrio, server: PretendServer, handle: ChunkHandle) -> None:
    """Commit a chunk of 1000 bytes that `server` holds."""
    chunk = NewChunk(handle, 1000, 7, (server.server_id,))
    await trio.ask(CommitFile(trio.call(), f"/{handle.hex()}", (chunk,), (NewExtent(0, 0, 1000),), 1))


def test_a_lost_replica_is_unlisted_two_heartbeats_after_the_comparison() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        handles = await stored(trio, servers, "/f", 4 * MIB)
        server = servers[0]
        lost = handles[:2]
        for handle in lost:
            del server.replicas[handle]
        await server.report(page_size=1)
        await server.beat()
        assert all("c1" in holders(trio, handle) for handle in lost), "not compared yet"
        assert await trio.leader.reports.compare_next()
        assert not await trio.leader.reports.compare_next()
        await server.beat()
        assert all("c1" in holders(trio, handle) for handle in lost), "this one may be older than the comparison"
        await server.beat()
        assert all(holders(trio, handle) == {"c2", "c3"} for handle in lost)
        assert all("c1" in holders(trio, handle) for handle in handles[2:])
        assert (await server.beat()) == settled(trio)

    run(test())


@pytest.mark.parametrize("when", ["before the pages", "between the pages", "after the pages", "after the comparison"])
def test_a_chunk_published_and_committed_during_a_report_is_not_taken_for_lost(when: str) -> None:
    async def test() -> None:
        trio, servers = await started(3)
        await stored(trio, servers, "/old", 3 * MIB)
        server, handle = servers[0], ChunkHandle(b"n" * 16)
        pages = server.pages(page_size=2)  # the disks are read here, before the chunk is published

        async def publish(*, is_heard: bool) -> None:
            replica = server.put(handle, 1000, 7)
            await commit(trio, server, handle)
            if is_heard:
                await server.beat(added=[replica])

        if when == "before the pages":
            await publish(is_heard=True)
        for page in pages:
            if when == "between the pages" and page.is_last:
                await publish(is_heard=True)
            await trio.ask(page)
        if when == "after the pages":
            await publish(is_heard=False)
        await trio.leader.reports.compare_next()
        if when == "after the comparison":
            await publish(is_heard=False)
        await server.beat()  # collected before the comparison ended, perhaps
        await server.beat(added=[server.replicas[handle]])
        for _ in range(3):
            await server.beat()
            assert holders(trio, handle) == {"c1"}

    run(test())


def test_a_replica_that_went_during_a_report_is_not_listed_again_by_it() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        (handle,) = await stored(trio, servers, "/f")
        pages = servers[0].pages()
        await servers[0].beat(removed=[handle])
        for page in pages:
            await trio.ask(page)
        assert holders(trio, handle) == {"c2", "c3"}

    run(test())


def test_a_replica_that_goes_while_its_listing_is_on_its_way_is_not_listed() -> None:
    async def test() -> None:
        trio, servers = await started(4)
        (handle,) = await stored(trio, servers, "/f")
        (fourth,) = (server for server in servers if server.name not in holders(trio, handle))
        before = holders(trio, handle)
        trio.logs["m1"].hold()
        listing = asyncio.create_task(fourth.beat(added=[fourth.put(handle, 1000, 7)]))
        await asyncio.sleep(0)
        await asyncio.wait_for(fourth.beat(removed=[handle]), 5)  # an old leader's order, carried out late
        trio.logs["m1"].release()
        await listing
        assert holders(trio, handle) == before

    run(test())


def test_many_lost_replicas_are_settled_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "HEARTBEAT_CHANGES_MAX", 3)

    async def test() -> None:
        trio, servers = await started(1)
        server = servers[0]
        handles = await stored(trio, servers, "/f", 8 * MIB)
        server.replicas.clear()
        await server.report()
        await settle(trio, server, beats=2)
        left = [sum("c1" in holders(trio, handle) for handle in handles)]
        trio.logs["m1"].lose_next_command = True
        with pytest.raises(OutcomeUnknown):
            await server.beat()
        for _ in range(2):
            await server.beat()
            left.append(sum("c1" in holders(trio, handle) for handle in handles))
        assert left == [5, 2, 0]
        assert trio.leader.state.space(None).missing == 8
        trio.check_invariants()

    run(test())


def test_a_report_that_begins_during_a_comparison_replaces_the_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "SLICE_S", 0.0)
    monkeypatch.setattr(reports, "SLICE_STEPS", 1)

    async def test() -> None:
        trio, servers = await started(1)
        server = servers[0]
        handles = await stored(trio, servers, "/f", 8 * MIB)
        held = dict(server.replicas)
        server.replicas.clear()
        await server.report()
        comparison = asyncio.create_task(trio.leader.reports.compare_next())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not comparison.done(), "it gives way to other work"
        server.replicas.update(held)
        await server.report(page_size=3)
        await comparison
        await settle(trio, server, beats=4)
        assert all(holders(trio, handle) == {"c1"} for handle in handles)

    run(test())


def test_pages_out_of_order_end_the_report_and_another_is_asked_for() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        await stored(trio, servers, "/f", 3 * MIB)
        server = servers[0]
        pages = server.pages(page_size=1)
        await trio.ask(pages[0])
        assert isinstance(await trio.refused(pages[2]), InvalidArgument)
        assert (await server.beat()).must_report
        assert isinstance(await trio.refused(pages[1]), InvalidArgument)
        await server.report()
        assert not (await server.beat()).must_report

    run(test())


def test_a_page_is_answered_again_when_its_reply_was_lost() -> None:
    async def test() -> None:
        trio, servers = await started(4)
        (handle,) = await stored(trio, servers, "/f")
        server = next(server for server in servers if server.name not in holders(trio, handle))
        server.put(handle, 1000, 7)
        (page,) = server.pages()
        trio.logs["m1"].lose_next_command = True
        assert isinstance(await trio.refused(page), OutcomeUnknown)
        await trio.ask(page)
        assert len(holders(trio, handle)) == 4

    run(test())


def test_a_report_that_stalls_is_asked_for_again() -> None:
    async def test() -> None:
        trio, servers = await started(1)
        server = servers[0]
        await stored(trio, servers, "/f", 3 * MIB)
        server.incarnation = b"next"
        await server.register()
        await trio.ask(server.pages(page_size=1)[0])
        assert not (await server.beat()).must_report, "it is on its way"
        trio.clock.advance(31)
        assert (await server.beat()).must_report

    run(test())


def test_reports_of_strangers_are_refused() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        server = PretendServer(trio, 1)
        error = await trio.refused(server.pages()[0])
        assert isinstance(error, InvalidArgument)
        assert "not registered" in error.message
        await server.register()
        server.incarnation = b"other"
        assert isinstance(await trio.refused(server.pages()[0]), InvalidArgument)

    run(test())


def test_a_restart_in_the_middle_of_a_report_begins_a_new_one() -> None:
    async def test() -> None:
        trio, servers = await started(1)
        server = servers[0]
        handles = await stored(trio, servers, "/f", 3 * MIB)
        pages = server.pages(page_size=1)
        await trio.ask(pages[0])
        server.incarnation = b"again"
        await server.register()
        assert (await server.beat()).must_report
        assert isinstance(await trio.refused(pages[1]), InvalidArgument)
        await server.report()
        await settle(trio, server)
        assert all(holders(trio, handle) == {"c1"} for handle in handles)

    run(test())
