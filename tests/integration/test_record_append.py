"""Is each acknowledged record in the file exactly once, in order and whole, for every reader, whatever else happens?

Owns: record append against services on real sockets, and a small chaos of real processes (dfs.testing.append_chaos runs
longer ones by hand). Refuses to know: every interleaving; tests/sim/test_tail_seeds.py looks for those.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.checksum import crc32c
from dfs.chunk.tails.reports import TailReports
from dfs.client import DfsClient
from dfs.client.appender import Appender
from dfs.errors import (
    AppenderUnknown,
    Conflict,
    ConnectionFailed,
    InvalidArgument,
    LimitExceeded,
    QuotaExceeded,
)
from dfs.ids import ChunkHandle
from dfs.master.chunk_report import Verdict
from dfs.master.state.commands import PutServer, SetServerMode
from dfs.master.state.tails import TailRecord
from dfs.master.tail_desk import TailDesk
from dfs.master.tail_duty import TailDuty
from dfs.net.messages import Message, OpenTail, OpenTailReply
from dfs.net.parts import ReplicaReport
from dfs.testing.append_chaos import AppendChaos, ChaosPlan
from dfs.testing.cluster import ClusterUnderTest, wait_until
from dfs.testing.memory_cluster import MemoryChunkServer, MemoryCluster
from dfs.testing.replicas import put

pytestmark = pytest.mark.timeout(240)
CHUNK_SIZE = 128 * 1024
APPENDERS = 4
RECORDS = 400


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MemoryCluster]:
    with MemoryCluster(tmp_path, chunk_servers=5, chunk_size=CHUNK_SIZE) as running:
        yield running


@pytest.fixture
def client(cluster: MemoryCluster) -> Iterator[DfsClient]:
    with cluster.client(timeout_s=30) as made:
        yield made


@pytest.mark.parametrize("what", ["renamed", "deleted"])
def test_closing_an_appender_does_not_bring_its_file_back(client: DfsClient, what: str) -> None:
    with client.appender("/log") as appender:
        appender.append(b"record").result(30)
        if what == "renamed":
            client.rename("/log", "/kept")
        else:
            client.delete("/log")
    assert not client.exists("/log")
    if what == "renamed":
        assert b"".join(client.read("/kept")) == b"record"


def tail_of(cluster: MemoryCluster, path: str = "/log") -> TailRecord:
    tail = cluster.masters[0].state.tails.at(path)
    assert tail is not None, f"{path} has no open tail"
    return tail


def server_of(cluster: MemoryCluster, position: int, path: str = "/log") -> MemoryChunkServer:
    wanted = tail_of(cluster, path).servers[position]
    return next(server for server in cluster.chunk_servers if server.store.server_id == wanted)


def content(client: DfsClient, path: str = "/log") -> bytes:
    return b"".join(client.read(path))


def append_all(client: DfsClient, number: int, told: list[Acknowledged]) -> None:
    with client.appender("/log") as appender:
        outcomes = [
            appender.append(make_record(number, sequence, 40 + sequence % 700)) for sequence in range(1, RECORDS + 1)
        ]
        told += [Acknowledged(number, index, outcome.result(60)) for index, outcome in enumerate(outcomes, 1)]


def in_threads(*targets: tuple[DfsClient, int, list[Acknowledged]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=append_all, args=target) for target in targets]
    for thread in threads:
        thread.start()
    return threads


def test_records_of_concurrent_appenders_roll_over_without_padding(cluster: MemoryCluster, client: DfsClient) -> None:
    told: list[Acknowledged] = []
    for thread in in_threads(*((client, number, told) for number in range(1, APPENDERS + 1))):
        thread.join()
    assert len(check_exactly_once(content(client), told)) == len(told) == APPENDERS * RECORDS
    assert client.stat("/log").extent_count >= 2, "tails were sealed and followed by others"
    cluster.masters[0].state.check_invariants()


def test_acknowledged_records_survive_servers_that_stop_and_restart(cluster: MemoryCluster, client: DfsClient) -> None:
    told: list[Acknowledged] = []
    threads = in_threads(*((client, number, told) for number in range(1, APPENDERS + 1)))
    wait_until(lambda: cluster.masters[0].state.tails.at("/log") is not None, 30, "a tail is open")
    for position in (0, 1, 2, 0):
        tail = cluster.masters[0].state.tails.at("/log")
        server_id = cluster.chunk_servers[position].store.server_id if tail is None else tail.servers[position]
        victim = next(server for server in cluster.chunk_servers if server.store.server_id == server_id)
        victim.stop()
        victim.start()
        with cluster.client() as other:
            seen = content(other)
            assert client.stat("/log").size >= len(seen)
            assert content(other)[: len(seen)] == seen, "what a reader saw once stays as it was"
    for thread in threads:
        thread.join()
    assert len(check_exactly_once(content(client), told)) == len(told) == APPENDERS * RECORDS


def test_a_restarted_server_refuses_its_old_tails(cluster: MemoryCluster, client: DfsClient) -> None:
    with client.appender("/log") as appender:
        appender.append(b"one").result(30)
        before, head = tail_of(cluster), server_of(cluster, 0)
        head.stop()
        head.start()
        assert appender.append(b"two").result(30) == 3
        assert tail_of(cluster).handle != before.handle
    assert content(client) == b"onetwo"


def test_readers_see_what_was_acknowledged_when_the_head_is_gone(cluster: MemoryCluster, client: DfsClient) -> None:
    client.append_record("/log", b"acknowledged")
    head = server_of(cluster, 0)
    with client.appender("/log") as appender:  # a reader that located before the head went away
        appender.append(b"!").result(30)
        head.stop()
        try:
            assert client.stat("/log").size == 13
            assert content(client) == b"acknowledged!"
            assert cluster.masters[0].state.tails.at("/log") is None, "the reader had it sealed"
        finally:
            head.start()


def test_whoever_still_reaches_a_head_cut_off_from_the_masters_makes_no_second_history(
    cluster: MemoryCluster, client: DfsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.append_record("/log", b"before ")
    head, first = server_of(cluster, 0), tail_of(cluster)
    reached = TailDesk.ask

    async def ask(desk: TailDesk, address: str, *args: object) -> Message:
        if address == head.address:
            raise ConnectionFailed(f"{address} is cut off from the masters", address=address)
        return await reached(desk, address, *args)  # type: ignore[arg-type]

    with cluster.client(timeout_s=30) as other, client.appender("/log") as appender:
        appender.append(b"cut ").result(30)
        monkeypatch.setattr(TailDesk, "ask", ask)
        message = OpenTail("/log", broken=first.handle, failed=(head.address,))
        opened = other._ask(message, OpenTailReply)
        assert opened.tail.handle != first.handle
        assert other.append_record("/log", b"after ") == 11
        assert appender.append(b"late ").result(30) == 17, "the old head, still reached, could acknowledge nothing"
        assert content(other) == content(client) == b"before cut after late "


def test_every_change_of_a_growing_file_has_what_was_acknowledged(cluster: MemoryCluster, client: DfsClient) -> None:
    client.make_directory("/d")
    with client.appender("/d/log") as first:
        first.append(b"1").result(30)
        client.copy("/d/log", "/d/copy")
        first.append(b"2").result(30)
        client.append(io.BytesIO(b"<file>"), "/d/log")
        first.append(b"3").result(30)
        client.rename("/d", "/e")
        client.make_directory("/d")
    with client.appender("/d/log") as second:
        second.append(b"4").result(30)
        client.rename("/e/log", "/d/moved")
        client.delete("/d", recursive=True)
        client.undelete("/d")
        assert content(client, "/e/copy") == b"1"
        assert content(client, "/d/moved") == b"12<file>3"
        assert content(client, "/d/log") == b"4"
        client.put(io.BytesIO(b"new"), "/d/log", overwrite=True)
        assert second.append(b"5").result(30) == 3
    assert content(client, "/d/log") == b"new5"
    cluster.masters[0].state.check_invariants()


def test_a_growing_file_reads_the_same_in_every_way(cluster: MemoryCluster, client: DfsClient, tmp_path: Path) -> None:
    written, position = b"", 0
    with client.appender("/log") as appender:
        for size in (1, 1000, CHUNK_SIZE // 4, 70_000, 5, CHUNK_SIZE // 4, CHUNK_SIZE // 4, 3):
            for data in (os.urandom(size)[:size], b"x"):
                for start in range(0, len(data), CHUNK_SIZE // 4):
                    record = data[start : start + CHUNK_SIZE // 4]
                    assert appender.append(record).result(30) == len(written)
                    written += record
            assert client.stat("/log").size == len(written)
            assert content(client) == written
            client.get("/log", tmp_path / "got")
            assert (tmp_path / "got").read_bytes() == written
            middle = len(written) // 2
            assert b"".join(client.read("/log", offset=middle, length=9000)) == written[middle : middle + 9000]
            assert client.checksum("/log").value == f"{crc32c(written):08x}"
            assert client.stat("/log").size >= position
            position = client.stat("/log").size


def test_a_reader_that_began_before_a_roll_over_ends_with_what_it_began(client: DfsClient) -> None:
    with client.appender("/log") as appender:
        first = os.urandom(CHUNK_SIZE // 4)
        for _ in range(3):
            appender.append(first).result(30)
        pieces = client.read("/log")
        began = bytes(next(pieces))
        for _ in range(9):
            appender.append(os.urandom(CHUNK_SIZE // 4)).result(30)
        assert began + b"".join(pieces) == first * 3


def test_follow_delivers_each_record_across_roll_overs_and_seals(cluster: MemoryCluster, client: DfsClient) -> None:
    client.put(io.BytesIO(b"start "), "/log")
    expected = b"start " + b"".join(make_record(1, number, 5000) for number in range(1, 101))
    got = bytearray()
    done = threading.Event()

    def follow() -> None:
        with cluster.client(timeout_s=30) as other:
            for piece in other.follow("/log", offset=3):
                got.extend(piece)
                if len(got) >= len(expected) - 3:
                    done.set()
                    return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    with client.appender("/log") as appender:
        for number in range(1, 101):
            outcome = appender.append(make_record(1, number, 5000))
            if number == 50:
                outcome.result(30)
                server_of(cluster, 0).stop()
    assert done.wait(60), f"{len(got)} of {len(expected) - 3} bytes came"
    follower.join()
    assert bytes(got) == expected[3:]
    assert client.stat("/log").extent_count > 3


def test_an_appender_goes_on_under_its_identity(cluster: MemoryCluster, client: DfsClient) -> None:
    first = client.appender("/log")
    for number in range(1, 6):
        first.append(b"%d" % number).result(30)
    tail = tail_of(cluster)
    with cluster.client(timeout_s=30) as other, other.appender("/log", identity=first.identity) as second:
        assert second.last_sequence == 5
        assert tail_of(cluster).handle != tail.handle, "what the first one has on its way is refused"
        assert second.append(b"6").result(30) == 5
        assert second.last_sequence == 6
    first.abandon()
    with pytest.raises(Exception, match="abandoned"):
        first.append(b"7")
    assert content(client) == b"123456"


def test_a_closed_or_unknown_identity_begins_at_nothing(client: DfsClient) -> None:
    with client.appender("/log") as first:
        first.append(b"one").result(30)
    client.rename("/log", "/sealed")  # the tail's own memory is gone now
    client.rename("/sealed", "/log")
    with client.appender("/log", identity=first.identity) as second:
        assert second.last_sequence == 0
    with pytest.raises(InvalidArgument):
        client.appender("/log", identity=b"short")


def test_a_forgotten_appender_is_told_so_and_nothing_is_appended(cluster: MemoryCluster, client: DfsClient) -> None:
    appender = client.appender("/log")
    appender.append(b"one").result(30)
    appender._acknowledged = 7  # as after a day of silence
    outcome = appender.append(b"eight")
    with pytest.raises(Conflict, match="its last one was 1"):
        outcome.result(30)
    assert content(client) == b"one"
    client.rename("/log", "/moved")
    unknown = client.appender("/log")  # another file, which knows nobody
    unknown._acknowledged = 7
    with pytest.raises(AppenderUnknown):
        unknown.append(b"eight").result(30)
    assert content(client) == b""


def test_a_record_in_doubt_never_reaches_another_file(
    cluster: MemoryCluster, client: DfsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, and the file was renamed away: sent again by path it would stand in two files."""
    attempt = Appender._attempt

    def losing(appender: Appender, *args: Any) -> Any:
        attempt(appender, *args)
        monkeypatch.setattr(Appender, "_attempt", attempt)
        client.rename("/log", "/log.1")
        client.append_record("/log", b"of the new file")
        raise ConnectionFailed("the answer was lost")

    monkeypatch.setattr(Appender, "_attempt", losing)
    with pytest.raises(Conflict, match="another file") as refusal:
        client.append_record("/log", b"once")
    assert refusal.value.may_have_happened
    assert (content(client, "/log.1"), content(client)) == (b"once", b"of the new file")


def test_open_tails_never_pass_a_quota_and_take_all_of_it(cluster: MemoryCluster, client: DfsClient) -> None:
    """16 files grow in a directory with room for 40 records in all: exactly those get in, at once or one by one."""
    size, room = 1000, 40 * 1000
    client.make_directory("/q")
    client.quotas.set("/q", stored_size=3 * room + 2)
    appenders = [client.appender(f"/q/{number}") for number in range(16)]
    refusals: list[str] = []
    for turn in range(4):
        for appender in list(appenders):
            try:
                appender.append(bytes([turn]) * size).result(60)
            except QuotaExceeded as error:
                refusals.append(error.message)
                appenders.remove(appender)
    for appender in appenders:
        appender.close()
    held = sum(len(content(client, f"/q/{number}")) for number in range(16) if client.exists(f"/q/{number}"))
    assert held == room
    assert len(refusals) == 16 - len(appenders) > 0
    assert all("dfs quota set --bytes" in message for message in refusals)
    with pytest.raises(QuotaExceeded):
        client.append_record("/q/0", b"???")
    client.append_record("/elsewhere", b"???")


def test_impossible_records_are_refused_before_they_are_sent(client: DfsClient) -> None:
    with client.appender("/log") as appender:
        with pytest.raises(InvalidArgument):
            appender.append(b"")
        appender.append(b"x" * (CHUNK_SIZE // 4)).result(30)
        with pytest.raises(LimitExceeded):
            appender.append(b"x" * (CHUNK_SIZE // 4 + 1))
    assert client.stat("/log").size == CHUNK_SIZE // 4


def test_tails_are_dropped_once_their_chunk_is_known_and_not_before(cluster: MemoryCluster, client: DfsClient) -> None:
    client.append_record("/log", b"one")
    tail, head = tail_of(cluster), server_of(cluster, 0)
    reports = TailReports(head.service.tails, head.store.server_id, [cluster.config.masters[0].address], cluster.key)
    reports.report()
    assert [held.handle for held in head.service.tails.held()] == [tail.handle]
    client.rename("/log", "/sealed")
    reports.report()
    reports.close()
    assert head.service.tails.held() == ()
    assert not list(head.tail_folders[0].iterdir())
    assert content(client, "/sealed") == b"one"


def test_a_tail_that_no_server_has_is_given_up_at_an_administrators_word_only(
    cluster: MemoryCluster, client: DfsClient
) -> None:
    client.append_record("/log", b"one")
    assert client.servers.end_tail("/log").outcome == "sealed"
    assert client.servers.end_tail("/log").outcome == "none"
    client.append_record("/log", b"lost")
    tail = tail_of(cluster)
    for position in range(3):
        server_of(cluster, position).service.tails.drop(tail.handle)
    with pytest.raises(Conflict, match=r"/log.*there is no tail.*--give-up"):
        client.servers.end_tail("/log")
    assert cluster.masters[0].state.tails.at("/log") == tail
    ended = client.servers.end_tail("/log", gives_up=True)
    assert (ended.outcome, ended.length, len(ended.servers)) == ("given_up", 0, 3)
    client.append_record("/log", b"two")
    assert content(client) == b"onetwo"


def test_a_tail_that_a_silent_server_may_have_is_given_up_by_force_only(
    cluster: MemoryCluster, client: DfsClient
) -> None:
    client.append_record("/log", b"one")
    tail, silent = tail_of(cluster), server_of(cluster, 1)
    silent.stop()
    for position in (0, 2):
        server_of(cluster, position).service.tails.drop(tail.handle)
    with pytest.raises(Conflict, match=rf"{silent.name} \({silent.address}\)"):
        client.servers.end_tail("/log", gives_up=True)
    assert cluster.masters[0].state.tails.at("/log") == tail
    silent.start()
    assert client.servers.end_tail("/log", gives_up=True).outcome == "sealed", "nothing is given up that is there"
    assert content(client) == b"one"
    client.append_record("/log", b"lost")
    holder, tail = silent, tail_of(cluster)  # the holder has the only replica of the first record
    away = next(position for position in range(3) if server_of(cluster, position) is not holder)
    for position in {0, 1, 2} - {away}:
        server_of(cluster, position).service.tails.drop(tail.handle)
    server_of(cluster, away).stop()
    assert client.servers.end_tail("/log", gives_up=True, is_forced=True).outcome == "given_up"
    assert content(client) == b"one"


def test_a_tail_on_a_disk_that_its_server_lost_from_view_is_not_given_up(
    cluster: MemoryCluster, client: DfsClient
) -> None:
    client.append_record("/log", b"one")
    tail, blind = tail_of(cluster), server_of(cluster, 1)
    for position in (0, 2):
        server_of(cluster, position).service.tails.drop(tail.handle)
    folder = blind.tail_folders[0]
    kept = folder.rename(folder.with_name("unmounted"))
    folder.touch()  # whatever is there now is no folder of tails
    blind.stop()
    blind.start()
    with pytest.raises(Conflict, match=rf"may still.*{blind.name} \({blind.address}\).*disks"):
        client.servers.end_tail("/log", gives_up=True)
    folder.unlink()
    kept.rename(folder)
    blind.stop()
    blind.start()
    assert client.servers.end_tail("/log", gives_up=True).outcome == "sealed"
    assert content(client) == b"one"


def test_another_server_at_the_address_does_not_speak_for_one_that_may_have_a_tail(
    cluster: MemoryCluster, client: DfsClient
) -> None:
    client.append_record("/log", b"one")
    tail, away = tail_of(cluster), server_of(cluster, 1)
    for position in (0, 2):
        server_of(cluster, position).service.tails.drop(tail.handle)
    other = next(server for server in cluster.chunk_servers if server.store.server_id not in tail.servers)
    put_at = cluster.masters[0].service.leadership
    cluster.run(put_at.decree(PutServer(away.store.server_id, away.name, other.address, "")))
    with pytest.raises(Conflict, match=rf"may still.*{away.name} \({other.address}\).*another server"):
        client.servers.end_tail("/log", gives_up=True)
    cluster.run(put_at.decree(PutServer(away.store.server_id, away.name, away.address, "")))
    assert client.servers.end_tail("/log", gives_up=True).outcome == "sealed"
    assert content(client) == b"one"


def test_a_replica_is_sealed_only_on_the_server_that_said_it_has_it(cluster: MemoryCluster, client: DfsClient) -> None:
    client.append_record("/log", b"one")
    tail, state, service = tail_of(cluster), cluster.masters[0].state, cluster.masters[0].service
    for position in range(3):
        server_of(cluster, position).service.tails.drop(tail.handle)
    others = [server for server in cluster.chunk_servers if server.store.server_id not in tail.servers]
    has_it, gone = others[0], others[1]
    put(has_it.store, b"one", tail.handle)
    gone.stop()
    cluster.run(service.leadership.decree(PutServer(gone.store.server_id, gone.name, has_it.address, "")))
    cluster.run(_born_now(cluster))
    assert client.servers.end_tail("/log").outcome == "sealed"
    chunk = state.chunk(tail.handle)
    assert chunk is not None
    assert chunk.servers == (has_it.store.server_id,)
    gone.start()


def test_an_imported_tail_is_sealed_where_its_replica_was_moved_after_the_export(
    cluster: MemoryCluster, client: DfsClient
) -> None:
    client.append_record("/log", b"one")
    tail, state, service = tail_of(cluster), cluster.masters[0].state, cluster.masters[0].service
    for position in range(3):
        server_of(cluster, position).service.tails.drop(tail.handle)
    elsewhere = next(server for server in cluster.chunk_servers if server.store.server_id not in tail.servers)
    put(elsewhere.store, b"one", tail.handle)
    with pytest.raises(Conflict, match="cannot be sealed"):
        client.servers.end_tail("/log")  # it cannot be that tail's: no export was imported
    cluster.run(_born_now(cluster))
    cluster.run(TailDuty(service.tails, state, service.leadership).run_once())
    assert state.tails.at("/log") is None
    chunk = state.chunk(tail.handle)
    assert chunk is not None
    assert chunk.servers == (elsewhere.store.server_id,)
    assert content(client) == b"one"


def test_an_imported_tail_that_a_silent_server_outside_of_its_chain_may_have_is_not_given_up(
    cluster: MemoryCluster, client: DfsClient
) -> None:
    client.append_record("/log", b"one")
    tail = tail_of(cluster)
    for position in range(3):
        server_of(cluster, position).service.tails.drop(tail.handle)
    elsewhere = next(server for server in cluster.chunk_servers if server.store.server_id not in tail.servers)
    put(elsewhere.store, b"one", tail.handle)
    cluster.run(_born_now(cluster))
    elsewhere.stop()
    with pytest.raises(Conflict, match=rf"may still.*{elsewhere.name} \({elsewhere.address}\).*--force"):
        client.servers.end_tail("/log", gives_up=True)
    elsewhere.start()
    assert client.servers.end_tail("/log", gives_up=True).outcome == "sealed"
    assert content(client) == b"one"


async def _born_now(cluster: MemoryCluster) -> None:
    """Let the state be that of an import, as far as chunks are concerned: all of them are from before."""
    state = cluster.masters[0].state
    state._parts.born_ms = state.clock_ms + 1


def test_a_tail_leaves_a_server_that_is_being_drained(cluster: MemoryCluster, client: DfsClient) -> None:
    client.append_record("/log", b"one")
    before, service, state = tail_of(cluster), cluster.masters[0].service, cluster.masters[0].state
    assert service.tails.due() == []
    cluster.run(service.leadership.decree(SetServerMode(before.servers[2], True, 0)))
    assert [tail for tail, _ in service.tails.due()] == [before]
    cluster.run(TailDuty(service.tails, state, service.leadership).run_once())
    assert state.tails.at("/log") is None
    client.append_record("/log", b"two")
    assert before.servers[2] not in tail_of(cluster).servers
    assert content(client) == b"onetwo"


def test_a_replica_made_of_a_tail_is_no_orphan_before_its_commit(cluster: MemoryCluster, client: DfsClient) -> None:
    client.append_record("/log", b"one")
    state, reports = cluster.masters[0].state, cluster.masters[0].service.reports
    tail = tail_of(cluster)
    late_ms = state.clock_ms + 10 * state.orphan_grace_ms
    cluster.run(_applied(cluster, late_ms))
    assert reports._judge(tail.servers[0], ReplicaReport(tail.handle, 3, 7)) is Verdict.YOUNG
    other = ChunkHandle(b"?" * 10 + tail.handle[10:])
    assert reports._judge(tail.servers[0], ReplicaReport(other, 3, 7)) is Verdict.ORPHAN


async def _applied(cluster: MemoryCluster, now_ms: int) -> None:
    server = cluster.masters[0].state.servers()[0]
    cluster.masters[0].state.apply(now_ms, PutServer(server.server_id, server.name, server.address, server.rack))


def test_everything_is_killed_again_and_again_and_each_record_is_there_once(tmp_path: Path) -> None:
    with ClusterUnderTest(tmp_path, chunk_servers=5, chunk_size=1 << 20) as cluster:
        plan = ChaosPlan(appenders=4, records=2500, seed=5, kill_every_s=0.5, size_max=20_000)
        chaos = AppendChaos(cluster, plan, tmp_path)
        assert chaos.run(150) == []
        assert chaos.judge() == plan.appenders * plan.records
        assert chaos.kills, "something was killed meanwhile"
        check_everything_killed_at_once(cluster)


def check_everything_killed_at_once(cluster: ClusterUnderTest) -> None:
    """With an open tail, all nodes die in the same moment: what was acknowledged is there, and appending goes on."""
    records = [make_record(1, number, 3000) for number in range(1, 21)]
    with cluster.client() as client, client.appender("/all") as appender:
        outcomes = [appender.append(record) for record in records]
        told = [Acknowledged(1, number, outcome.result(60)) for number, outcome in enumerate(outcomes, 1)]
        for name in cluster.names():
            cluster.kill(name)
        cluster.up()
        check_exactly_once(b"".join(client.read("/all")), told)
        last = appender.append(make_record(1, 21, 3000)).result(60)
        check_exactly_once(b"".join(client.read("/all")), [*told, Acknowledged(1, 21, last)])
