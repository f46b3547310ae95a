"""Does a master hand over, write checkpoints and answer old reads only as it may? The service over the in-memory log.

Owns: administrators' messages and reads that allow an age. Refuses to know: Raft and sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dfs.clock import Deadline
from dfs.errors import Conflict, DiskFailed, InvalidArgument, NoQuorum, NotFound, NotLeader
from dfs.master.raft_checkpoint import read_pieces
from dfs.master.state.machine import MasterState
from dfs.net import messages
from dfs.net.messages import (
    GetMasterStatus,
    GetMasterStatusReply,
    ListDirectory,
    ListDirectoryReply,
    Locate,
    LocateReply,
    MakeDirectory,
    ReadCheckpoint,
    ReadCheckpointReply,
    Stat,
    StatReply,
    TransferLeadership,
    TransferLeadershipReply,
    WriteCheckpoint,
    WriteCheckpointReply,
)
from dfs.testing.masters import MasterTrio, PretendServer


def run(test: Callable[[MasterTrio], Awaitable[None]]) -> None:
    async def body() -> None:
        await test(await MasterTrio().start())

    asyncio.run(body())


def test_the_leader_hands_over_to_the_master_that_is_named() -> None:
    async def test(trio: MasterTrio) -> None:
        for _ in range(2):  # asked twice, it is done already
            reply = await trio.expect(TransferLeadershipReply, TransferLeadership("m2"))
            assert (reply.leader, trio.group.leader) == ("m2", "m2")
        refused = await trio.refused(TransferLeadership("m3"), to="m1")
        assert isinstance(refused, NotLeader)
        assert refused.details["leader"] == trio.config.master("m2").address

    run(test)


def test_nobody_leads_who_is_unknown_or_out_of_reach() -> None:
    async def test(trio: MasterTrio) -> None:
        refused = await trio.refused(TransferLeadership("m9"))
        assert isinstance(refused, InvalidArgument)
        assert "it has m1, m2, m3" in refused.message
        trio.group.cut_off("m3")
        assert isinstance(await trio.refused(TransferLeadership("m3")), NoQuorum)
        assert trio.group.leader == "m1"

    run(test)


def test_a_leader_that_stops_hands_over_to_a_master_that_can_lead_and_sends_callers_there() -> None:
    async def test(trio: MasterTrio) -> None:
        trio.group.cut_off("m2")
        await trio.services["m1"].leadership.retire(Deadline.after(5))
        assert trio.group.leader == "m3"
        refused = await trio.refused(TransferLeadership("m1"), to="m1")
        assert refused.details["leader"] == trio.config.master("m3").address

    run(test)


def test_a_leader_that_nobody_can_follow_and_a_follower_stop_without_handing_over() -> None:
    async def test(trio: MasterTrio) -> None:
        await trio.services["m2"].leadership.retire(Deadline.after(5))
        assert trio.group.leader == "m1"
        trio.group.cut_off("m3")
        await trio.services["m1"].leadership.retire(Deadline(0.0))
        assert trio.group.leader == "m1"

    run(test)


def test_any_master_writes_a_checkpoint_and_gives_it_away_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.master.admin.CHECKPOINT_PIECE_MAX", 100)

    async def test(trio: MasterTrio) -> None:
        trio.logs["m2"].disk = tmp_path
        await trio.ask(MakeDirectory(trio.call(), "/a"))
        written = (await trio.expect(WriteCheckpointReply, WriteCheckpoint(), to="m2")).checkpoint
        pieces: list[bytes] = []
        while True:
            offset = sum(map(len, pieces))
            reply = await trio.expect(ReadCheckpointReply, ReadCheckpoint(written.index, offset), to="m2")
            pieces.append(reply.data)
            if reply.is_last:
                break
        assert len(pieces) > 2
        copy = tmp_path / "copy"
        copy.write_bytes(b"".join(pieces))
        assert copy.stat().st_size == written.size
        state = MasterState()
        state.load(read_pieces(copy))
        assert state.stat("/a").path == "/a"
        status = (await trio.expect(GetMasterStatusReply, GetMasterStatus(), to="m2")).master
        assert (status.checkpoint_index, status.checkpoint_size) == (written.index, written.size)

    run(test)


def test_a_checkpoint_for_an_export_is_the_leaders_alone(tmp_path: Path) -> None:
    async def test(trio: MasterTrio) -> None:
        trio.logs["m2"].disk = tmp_path
        assert isinstance(await trio.refused(WriteCheckpoint(is_current=True), to="m2"), NotLeader)
        assert isinstance(await trio.refused(WriteCheckpoint(is_current=True)), DiskFailed)

    run(test)


def test_a_checkpoint_that_was_replaced_is_told_apart_from_its_end(tmp_path: Path) -> None:
    async def test(trio: MasterTrio) -> None:
        trio.logs["m1"].disk = tmp_path
        first = (await trio.expect(WriteCheckpointReply, WriteCheckpoint())).checkpoint
        assert isinstance(await trio.refused(ReadCheckpoint(first.index, first.size + 1)), InvalidArgument)
        assert isinstance(await trio.refused(ReadCheckpoint(first.index, -1)), InvalidArgument)
        for number in range(3):
            await trio.ask(MakeDirectory(trio.call(), f"/{number}"))
            await trio.ask(WriteCheckpoint())
        assert isinstance(await trio.refused(ReadCheckpoint(first.index, 0)), Conflict)

    run(test)


def test_a_piece_of_a_checkpoint_fits_into_a_frame() -> None:
    assert messages.CHECKPOINT_PIECE_MAX < 8 * 1024 * 1024 - 1024


# --- reads that allow an age


def test_a_follower_answers_only_within_the_age_that_it_can_prove() -> None:
    async def test(trio: MasterTrio) -> None:
        await trio.ask(MakeDirectory(trio.call(), "/a"))
        log = trio.logs["m2"]
        for age_s, stale_ms in ((None, 60_000), (2.0, 1999), (2.0, 0)):
            log.age_s = age_s
            refused = await trio.refused(Stat("/a", stale_ms), to="m2")
            assert isinstance(refused, NotLeader)
        log.age_s = 2.0
        assert (await trio.expect(StatReply, Stat("/a", 2000), to="m2")).status.path == "/a"
        listed = await trio.expect(ListDirectoryReply, ListDirectory("/", "", 10, 2000), to="m2")
        assert [entry.path for entry in listed.entries] == ["a"]
        assert isinstance(await trio.refused(Stat("/b", 2000), to="m2"), NotFound)
        assert isinstance(await trio.refused(Stat("/a", -1), to="m2"), InvalidArgument)

    run(test)


def test_old_reads_are_answered_while_nobody_leads() -> None:
    async def test(trio: MasterTrio) -> None:
        await trio.ask(MakeDirectory(trio.call(), "/a"))
        trio.logs["m2"].age_s = 1.0
        trio.group.cut_off("m1")
        assert trio.group.leader is None
        assert (await trio.expect(StatReply, Stat("/a", 5000), to="m2")).status.path == "/a"
        assert isinstance(await trio.refused(Stat("/a"), to="m2"), NoQuorum)

    run(test)


def test_a_follower_takes_no_server_for_dead_only_because_it_hears_none() -> None:
    async def test(trio: MasterTrio) -> None:
        servers = [PretendServer(trio, number) for number in (1, 2, 3)]
        for server in servers:
            await server.join()
        await trio.store("/f")
        trio.clock.advance(1000.0)
        trio.logs["m2"].age_s = 1.0
        found = await trio.expect(LocateReply, Locate("/f", stale_ms=5000), to="m2")
        assert len(found.extents[0].replicas) == 3
        assert all(server.is_alive for server in found.servers)
        assert not any(server.is_alive for server in (await trio.expect(LocateReply, Locate("/f"))).servers)

    run(test)
