"""The master's answers to clients: every verb and refusal, leadership, and calls whose outcome is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from dfs.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    InvalidName,
    IsADirectory,
    NoQuorum,
    NotEnoughServers,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    ProtocolError,
    Retry,
    TokenInvalid,
)
from dfs.ids import ServerId, new_session_id
from dfs.net.auth import Rights, check_token
from dfs.net.messages import (
    LIST_LIMIT_MAX,
    Allocate,
    AllocateReply,
    AppendExtents,
    Copy,
    Delete,
    DeleteReply,
    Done,
    EmptyTrash,
    EmptyTrashReply,
    GetClusterStatus,
    GetClusterStatusReply,
    GetMasterStatus,
    GetMasterStatusReply,
    ListDirectory,
    ListDirectoryReply,
    ListTrash,
    ListTrashReply,
    Locate,
    LocateReply,
    MakeDirectory,
    Message,
    Ping,
    Pong,
    RemoveDirectory,
    Rename,
    SetReplication,
    SetReplicationReply,
    Stat,
    StatReply,
    Touch,
    Undelete,
)
from dfs.net.parts import CallId, NewChunk, NewExtent
from dfs.testing.masters import MIB, MasterTrio, PretendServer


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def started(servers: int = 4, **settings: Any) -> tuple[MasterTrio, list[PretendServer]]:
    trio = await MasterTrio(**settings).start()
    return trio, [await joined(trio, number) for number in range(1, servers + 1)]


async def joined(trio: MasterTrio, number: int, **facts: Any) -> PretendServer:
    server = PretendServer(trio, number, **facts)
    await server.join()
    return server


# --- any master -----------------------------------------------------------------------------------


def test_every_master_answers_ping_and_its_status() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        trio.clock.advance(5)
        for name, role in (("m1", "leader"), ("m2", "follower"), ("m3", "follower")):
            pong = await trio.expect(Pong, Ping(), to=name)
            assert (pong.node, pong.role) == (name, "master")
            status = (await trio.expect(GetMasterStatusReply, GetMasterStatus(), to=name)).master
            assert (status.name, status.role, status.leader, status.term) == (name, role, "m1", 1)
            assert status.uptime_s == 5.0

    run(test())


def test_a_follower_names_the_leader_for_every_other_message() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        requests: list[Message] = [
            Stat("/"),
            ListDirectory("/", "", 10),
            ListTrash(),
            Locate("/f"),
            Allocate(1),
            GetClusterStatus(),
            MakeDirectory(trio.call(), "/d"),
        ]
        for request in requests:
            error = await trio.refused(request, to="m2")
            assert isinstance(error, NotLeader), request
            assert error.details == {"leader": "10.0.0.1:7400"}
            assert "m1" in error.message
        assert trio.logs["m2"].proposals == 0

    run(test())


def test_without_a_leader_the_error_says_how_many_masters_are_needed_and_which_exist() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        await trio.logs["m1"].close()
        for request in (Stat("/"), MakeDirectory(trio.call(), "/d")):
            error = await trio.refused(request, to="m2")
            assert isinstance(error, NoQuorum)
            assert "2 of the 3 masters" in error.message
            assert "m1 (10.0.0.1:7400), m3 (10.0.0.3:7400)" in error.message
            assert error.retry is Retry.REFRESH

    run(test())


def test_a_message_for_others_is_a_protocol_error() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        assert isinstance(await trio.refused(Done()), ProtocolError)
        assert Done not in trio.leader.allowed
        assert Ping in trio.leader.allowed

    run(test())


# --- mutations ------------------------------------------------------------------------------------


def test_every_mutation_goes_through_the_log_to_all_masters() -> None:
    async def test() -> None:
        trio, _ = await started()
        made = await trio.expect(StatReply, MakeDirectory(trio.call(), "/d"))
        assert made.status.path == "/d"
        assert made.status.mtime_ms == trio.clock.wall_ms(), "the leader's clock travels inside the command"
        await trio.store("/d/f", 3 * MIB)
        await trio.expect(StatReply, Touch(trio.call(), "/d/empty"))
        await trio.expect(StatReply, Rename(trio.call(), "/d/f", "/d/g"))
        await trio.expect(StatReply, Copy(trio.call(), "/d/g", "/d/h"))
        assert (await trio.expect(SetReplicationReply, SetReplication(trio.call(), "/d/h", 2))).file_count == 1
        assert (await trio.expect(DeleteReply, Delete(trio.call(), "/d/g"))).size == 3 * MIB
        assert (await trio.expect(StatReply, Undelete(trio.call(), "/d/g"))).status.size == 3 * MIB
        await trio.expect(DeleteReply, Delete(trio.call(), "/d/g"))
        trash = await trio.expect(ListTrashReply, ListTrash())
        assert [entry.path for entry in trash.entries] == ["/d/g"]
        assert (await trio.expect(EmptyTrashReply, EmptyTrash(trio.call()))).entry_count == 1
        await trio.expect(StatReply, MakeDirectory(trio.call(), "/d/sub"))
        await trio.expect(Done, RemoveDirectory(trio.call(), "/d/sub"))
        listed = await trio.expect(ListDirectoryReply, ListDirectory("/d", "", LIST_LIMIT_MAX))
        assert [entry.path for entry in listed.entries] == ["empty", "h"]
        dumps = {b"".join(service.state.dump()) for service in trio.services.values()}
        assert len(dumps) == 1
        trio.check_invariants()

    run(test())


def test_append_adds_to_a_file() -> None:
    async def test() -> None:
        trio, _ = await started()
        await trio.store("/f", 1000)
        allocated = await trio.expect(AllocateReply, Allocate(1))
        servers = tuple(allocated.servers[place].server_id for place in allocated.chunks[0].chain)
        chunk = NewChunk(allocated.chunks[0].handle, 500, 9, servers)
        reply = await trio.expect(StatReply, AppendExtents(trio.call(), "/f", (chunk,), (NewExtent(0, 0, 500),)))
        assert reply.status.size == 1500
        located = await trio.expect(LocateReply, Locate("/f", 1))
        assert (located.first_offset, [extent.chunk_crc for extent in located.extents]) == (1000, [9])

    run(test())


def test_errors_of_the_state_reach_the_client() -> None:
    async def test() -> None:
        trio, _ = await started()
        await trio.store("/f")
        assert isinstance(await trio.refused(MakeDirectory(trio.call(), "/f")), AlreadyExists)
        assert isinstance(await trio.refused(Stat("/none")), NotFound)
        assert isinstance(await trio.refused(Locate("/")), IsADirectory)
        assert isinstance(await trio.refused(Locate("/f", 0, 999)), Conflict)
        assert isinstance(await trio.refused(Locate("/f", -1)), InvalidArgument)
        assert isinstance(await trio.refused(ListDirectory("/", "", 0)), InvalidArgument)
        assert isinstance(await trio.refused(ListDirectory("/", "", LIST_LIMIT_MAX + 1)), InvalidArgument)

    run(test())


def test_the_leader_fills_in_the_default_replication() -> None:
    async def test() -> None:
        trio, _ = await started(replication=2)
        await trio.store("/f")
        assert (await trio.expect(StatReply, Stat("/f"))).status.replication == 2
        await trio.store("/g", replication=4)
        assert (await trio.expect(StatReply, Stat("/g"))).status.replication == 4

    run(test())


def test_a_bad_path_is_refused_before_the_log_but_never_costs_a_client_its_session() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        session = new_session_id()
        before = trio.logs["m1"].proposals
        first = MakeDirectory(CallId(session, 1, 1), "relative")
        assert isinstance(await trio.refused(first), InvalidName)
        assert trio.logs["m1"].proposals == before + 1, "the first call makes the session"
        assert isinstance(await trio.refused(MakeDirectory(CallId(session, 2, 2), "/" + "x" * 256)), InvalidName)
        assert isinstance(await trio.refused(Rename(CallId(session, 3, 3), "/a", "no")), InvalidName)
        assert trio.logs["m1"].proposals == before + 1
        await trio.expect(StatReply, MakeDirectory(CallId(session, 4, 4), "/d"))

    run(test())


def test_a_lost_reply_is_an_unknown_outcome_and_the_resent_call_happens_once() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        request = MakeDirectory(trio.call(), "/d")
        trio.logs["m1"].lose_next_reply = True
        error = await trio.refused(request)
        assert isinstance(error, OutcomeUnknown)
        assert error.retry is Retry.UNKNOWN
        assert (await trio.expect(StatReply, request)).status.path == "/d", "its own work is not `already exists`"

    run(test())


def test_a_lost_command_is_an_unknown_outcome_and_the_resent_call_happens_once() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        request = MakeDirectory(trio.call(), "/d")
        trio.logs["m1"].lose_next_command = True
        assert isinstance(await trio.refused(request), OutcomeUnknown)
        assert isinstance(await trio.refused(Stat("/d")), NotFound)
        await trio.expect(StatReply, request)

    run(test())


def test_a_leader_change_in_the_middle_of_a_call_leaves_its_outcome_unknown() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        request = MakeDirectory(trio.call(), "/d")
        trio.logs["m1"].hold()
        pending = asyncio.create_task(trio.refused(request, to="m1"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert trio.logs["m1"].proposals == 1, "it is on its way"
        trio.group.elect("m2")
        assert isinstance(await pending, OutcomeUnknown)
        assert isinstance(await trio.refused(request, to="m1"), NotLeader)
        await trio.expect(StatReply, request, to="m2")

    run(test())


def test_a_call_without_a_majority_ends_within_its_deadline() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        trio.logs["m1"].hold()
        assert isinstance(await trio.refused(MakeDirectory(trio.call(), "/d"), timeout_s=0.5), OutcomeUnknown)
        assert isinstance(await trio.refused(Stat("/"), timeout_s=0.5), NoQuorum)
        assert isinstance(await trio.refused(MakeDirectory(trio.call(), "/d"), timeout_s=0), DeadlineExceeded)
        assert isinstance(await trio.refused(Stat("/"), timeout_s=0), DeadlineExceeded)

    run(test())


def test_a_new_leader_has_all_that_was_acknowledged() -> None:
    async def test() -> None:
        trio, _ = await started()
        await trio.store("/f", 2 * MIB)
        await trio.logs["m1"].close()
        trio.group.elect("m3")
        assert (await trio.expect(StatReply, Stat("/f"))).status.size == 2 * MIB
        await trio.start_master("m1")
        assert (await trio.expect(GetMasterStatusReply, GetMasterStatus(), to="m1")).master.leader == "m3"
        trio.check_invariants()

    run(test())


# --- locating -------------------------------------------------------------------------------------


def test_locate_gives_every_extent_with_its_replicas_and_a_read_token() -> None:
    async def test() -> None:
        trio, _ = await started()
        handles = await trio.store("/f", 2 * MIB + 5)
        reply = await trio.expect(LocateReply, Locate("/f"))
        assert [extent.handle for extent in reply.extents] == handles
        assert [extent.length for extent in reply.extents] == [MIB, MIB, 5]
        assert not reply.has_more
        now_ms = trio.clock.wall_ms()
        for extent in reply.extents:
            assert len({reply.servers[place].server_id for place in extent.replicas}) == 3
            assert (extent.chunk_length, extent.chunk_crc) == (extent.length, 7)
            check_token(trio.key, extent.token, extent.handle, Rights.READ, now_ms)
            with pytest.raises(TokenInvalid):
                check_token(trio.key, extent.token, extent.handle, Rights.WRITE, now_ms)

    run(test())


def test_locate_turns_the_replicas_so_that_readers_spread() -> None:
    async def test() -> None:
        trio, _ = await started(3)
        await trio.store("/f")
        firsts = set()
        for _ in range(6):
            reply = await trio.expect(LocateReply, Locate("/f"))
            firsts.add(reply.servers[reply.extents[0].replicas[0]].name)
        assert firsts == {"c1", "c2", "c3"}

    run(test())


def test_dead_servers_come_last_and_are_marked() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        await trio.store("/f")
        for _ in range(11):
            trio.clock.advance(1)
            await servers[0].beat()
            await servers[1].beat()
        for _ in range(4):
            reply = await trio.expect(LocateReply, Locate("/f"))
            names = [reply.servers[place].name for place in reply.extents[0].replicas]
            assert names[2] == "c3"
            assert {info.name: info.is_alive for info in reply.servers} == {"c1": True, "c2": True, "c3": False}

    run(test())


def test_a_chunk_that_lost_all_replicas_is_located_with_none() -> None:
    async def test() -> None:
        trio, servers = await started(1)
        (handle,) = await trio.store("/f")
        await servers[0].beat(removed=[handle])
        reply = await trio.expect(LocateReply, Locate("/f"))
        assert reply.extents[0].replicas == ()
        assert reply.servers == ()

    run(test())


def test_a_new_leader_locates_before_it_heard_any_chunk_server() -> None:
    async def test() -> None:
        trio, _ = await started(3)
        await trio.store("/f")
        trio.group.elect("m2")
        reply = await trio.expect(LocateReply, Locate("/f"))
        assert len(reply.extents[0].replicas) == 3
        assert all(info.is_alive for info in reply.servers), "presumed alive"
        trio.clock.advance(11)
        reply = await trio.expect(LocateReply, Locate("/f"))
        assert not any(info.is_alive for info in reply.servers)

    run(test())


# --- allocating -----------------------------------------------------------------------------------


def test_allocate_gives_fresh_handles_full_chains_and_write_tokens() -> None:
    async def test() -> None:
        trio, _ = await started(4)
        reply = await trio.expect(AllocateReply, Allocate(64))
        assert len({chunk.handle for chunk in reply.chunks}) == 64
        assert (reply.chunk_size, reply.replication) == (MIB, 3)
        assert 0 < reply.commit_within_s < trio.config.orphan_grace_s
        now_ms = trio.clock.wall_ms()
        for chunk in reply.chunks:
            assert len({reply.servers[place].server_id for place in chunk.chain}) == 3
            check_token(trio.key, chunk.token, chunk.handle, Rights.WRITE, now_ms)
            with pytest.raises(TokenInvalid):
                check_token(trio.key, chunk.token, chunk.handle, Rights.READ, now_ms)
        assert len(trio.group.entries) == 4, "allocations are not logged (only the four servers are)"

    run(test())


def test_allocate_leaves_out_dead_late_full_failed_and_excluded_servers() -> None:
    async def test() -> None:
        trio, servers = await started(5)
        late, full, failed = servers[0], servers[1], servers[2]
        full.free = MIB - 1
        failed.disk_state = "failed"
        for _ in range(4):
            trio.clock.advance(1)
            for server in servers:
                if server is not late:
                    await server.beat()
        reply = await trio.expect(AllocateReply, Allocate(8, 1, (servers[3].server_id,)))
        assert {info.name for info in reply.servers} == {"c5"}

    run(test())


def test_with_fewer_servers_than_the_goal_chains_are_shorter() -> None:
    async def test() -> None:
        trio, _ = await started(2)
        reply = await trio.expect(AllocateReply, Allocate(1))
        assert len(reply.chunks[0].chain) == 2
        assert reply.replication == 3

    run(test())


def test_too_few_servers_are_an_error_that_names_each_and_its_reason() -> None:
    async def test() -> None:
        trio, servers = await started(4, replicas_min=2)
        servers[1].free = 5
        for _ in range(20):
            trio.clock.advance(1)
            for server in servers[1:]:
                await server.beat()
        error = await trio.refused(Allocate(1, 0, (servers[2].server_id,)))
        assert isinstance(error, NotEnoughServers)
        assert error.retry is Retry.SAME
        assert "1 of 4 chunk servers" in error.message
        assert "3 are wanted and at least 2 needed" in error.message
        assert "c1 (10.0.1.1:7500) is dead: silent for 20 s" in error.message
        assert "c2 (10.0.1.2:7500) is full" in error.message
        assert "c3 (10.0.1.3:7500) just failed this client" in error.message
        assert "c4" not in error.message
        single = await trio.expect(AllocateReply, Allocate(1, 1, (servers[2].server_id,)))
        assert len(single.chunks[0].chain) == 1, "who asks for one replica needs no more"

    run(test())


def test_without_any_server_the_error_says_so() -> None:
    async def test() -> None:
        trio, _ = await started(0)
        error = await trio.refused(Allocate(1))
        assert isinstance(error, NotEnoughServers)
        assert "no chunk server ever registered" in error.message

    run(test())


def test_a_new_leader_does_not_write_short_chains_because_it_has_not_heard_the_others_yet() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        trio.group.elect("m2")
        error = await trio.refused(Allocate(1))
        assert isinstance(error, NotEnoughServers)
        assert "has not been heard by this leader yet" in error.message
        await servers[0].join()
        assert isinstance(await trio.refused(Allocate(1)), NotEnoughServers)
        await servers[1].join()
        await servers[2].join()
        assert len((await trio.expect(AllocateReply, Allocate(1))).chunks[0].chain) == 3
        trio.group.elect("m1")
        await servers[0].join()
        trio.clock.advance(4)
        await servers[0].beat()
        assert len((await trio.expect(AllocateReply, Allocate(1))).chunks[0].chain) == 1, "the others had their time"

    run(test())


@pytest.mark.parametrize(
    "request_",
    [
        Allocate(0),
        Allocate(65),
        Allocate(1, 17),
        Allocate(1, -1),
        Allocate(1, 0, tuple(ServerId(bytes([n]) * 16) for n in range(65))),
    ],
)
def test_impossible_allocations_are_refused(request_: Allocate) -> None:
    async def test() -> None:
        trio, _ = await started(3)
        assert isinstance(await trio.refused(request_), InvalidArgument)

    run(test())


def test_allocations_follow_racks() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        for number, rack in enumerate(("a", "a", "a", "b"), 1):
            await joined(trio, number, rack=rack)
        reply = await trio.expect(AllocateReply, Allocate(20))
        for chunk in reply.chunks:
            assert {reply.servers[place].rack for place in chunk.chain} == {"a", "b"}

    run(test())


# --- status ---------------------------------------------------------------------------------------


def test_cluster_status_shows_servers_space_and_what_is_missing() -> None:
    async def test() -> None:
        trio, servers = await started(3)
        await trio.store("/f", 1000)
        for _ in range(12):
            trio.clock.advance(1)
            await servers[0].beat()
            await servers[1].beat()
        reply = await trio.expect(GetClusterStatusReply, GetClusterStatus())
        states = {server.info.name: (server.state, server.heartbeat_age_s) for server in reply.servers}
        assert states == {"c1": ("alive", 0.0), "c2": ("alive", 0.0), "c3": ("dead", 12.0)}
        assert (reply.space.file_count, reply.space.live_size) == (1, 1000)
        assert (reply.space.under_replicated, reply.space.under_replicated_live, reply.space.missing) == (0, 1, 0)
        assert (reply.replication, reply.chunk_size) == (3, MIB)
        assert reply.servers[0].free == 1000 * MIB
        trio.group.elect("m2")
        reply = await trio.expect(GetClusterStatusReply, GetClusterStatus())
        assert {(server.state, server.heartbeat_age_s) for server in reply.servers} == {("late", -1.0)}

    run(test())
