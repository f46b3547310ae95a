"""Are metrics right, all documented, and can nobody at their port hurt the daemon?"""

from __future__ import annotations

import ast
import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dfs.chunk.leader import Acknowledged, LeaderConnection
from dfs.chunk.memstore import MemoryStore
from dfs.chunk.metrics import ChunkMetrics
from dfs.chunk.service import ChunkService
from dfs.config import parse_config
from dfs.errors import ConfigError, NotFound
from dfs.ids import ChunkHandle, new_server_id
from dfs.log import get_logger, unexpected
from dfs.master.metrics import MasterMetrics, healing_families
from dfs.measures import BOUNDS_S, LABELS_MAX, OTHER, Times, TimesByLabel, Totals
from dfs.net.auth import ClusterKey
from dfs.net.exposition import CONTENT_TYPE, page_of
from dfs.net.messages import Heartbeat, Stat
from dfs.net.metrics_port import CONNECTIONS_MAX, REQUEST_SIZE_MAX, MetricsPort, open_metrics_port
from dfs.net.parts import DiskReport, HealingStatus, ScrubStatus
from dfs.testing.cluster import wait_until
from dfs.testing.masters import MIB, MasterTrio, PretendServer

ROOT = Path(__file__).parent.parent.parent
Samples = dict[str, float]


def samples(page: bytes) -> Samples:
    """Return the samples of a page by name and labels, read by the official parser."""
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def master_page(trio: MasterTrio, name: str) -> Samples:
    metrics = MasterMetrics(
        name=name,
        cluster="test",
        service=trio.services[name],
        connection_count=lambda: 5,
    )
    return samples(page_of(metrics.families)())


# --- what is counted ----------------------------------------------------------------------------------


def test_times_fall_into_the_buckets_that_hold_them() -> None:
    times = Times()
    for seconds in (0.0, BOUNDS_S[0], 0.003, 99.0):
        times.observe(seconds)
    snapshot = times.snapshot()
    assert snapshot.counts[:3] == (2, 2, 2)
    assert snapshot.counts[BOUNDS_S.index(0.005)] == 3
    assert snapshot.counts[-2:] == (3, 4)
    assert snapshot.sum_s == pytest.approx(99.0035)


def test_labels_are_bounded_whatever_is_counted() -> None:
    totals, by_label = Totals(), TimesByLabel()
    for number in range(2 * LABELS_MAX):
        totals.add(f"code{number}", 2)
        by_label.observe(f"message{number}", 0.1)
    assert len(totals.values()) == LABELS_MAX + 1
    assert totals.values()[OTHER] == 2 * LABELS_MAX
    assert by_label.snapshots()[OTHER].counts[-1] == LABELS_MAX


def test_nothing_is_lost_when_many_threads_count() -> None:
    times, totals = Times(), Totals()

    def work() -> None:
        for _ in range(5000):
            times.observe(0.001)
            totals.add("x")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (times.snapshot().counts[-1], totals.values()) == (20_000, {"x": 20_000})


# --- a master's page ----------------------------------------------------------------------------------


def test_the_leader_shows_files_durability_servers_and_times() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        for number in range(1, 4):
            await PretendServer(trio, number).join()
        await trio.store("/a", 2 * MIB)
        await trio.store("/b", 10, replication=1)
        with pytest.raises(NotFound):
            await trio.ask(Stat("/nope"))
        trio.clock.advance(100)  # all are dead by then
        await PretendServer(trio, 4).join()
        page = master_page(trio, "m1")
        assert page["dfs_build_info{cluster=test,node=m1,role=master,version=0.1.0}"] == 1
        assert (page["dfs_master_is_leader"], page["dfs_master_role{role=leader}"]) == (1, 1)
        assert page["dfs_master_leaderships_total"] == 1
        assert (page["dfs_files"], page["dfs_chunks"]) == (2, 3)
        assert page["dfs_stored_bytes"] == 6 * MIB + 10
        assert page["dfs_chunks_by_live_replicas{replicas=0}"] == 3
        assert page["dfs_chunks_missing"] == 3
        assert page["dfs_chunk_servers{state=dead}"] == 3
        assert page["dfs_chunk_servers{state=alive}"] == 1
        assert page["dfs_chunk_server_heartbeat_age_seconds{server=c1}"] == 100
        assert page["dfs_master_request_seconds_count{message=CommitFile}"] == 2
        assert page["dfs_master_request_seconds_bucket{le=+Inf,message=Stat}"] == 1
        assert page["dfs_master_request_errors_total{code=not_found}"] == 1
        assert page["dfs_master_requests_in_progress{message=Stat}"] == 0
        assert (page["dfs_master_sessions"], page["dfs_master_connections"]) == (1, 5)

    asyncio.run(test())


def test_chunks_are_told_by_live_replicas() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        for number in range(1, 6):
            await PretendServer(trio, number).join()
        await trio.store("/five", 10, replication=5)
        await trio.store("/two", 3 * MIB, replication=2)
        page = master_page(trio, "m1")
        told = [page[f"dfs_chunks_by_live_replicas{{replicas={count}}}"] for count in ("0", "1", "2", "3+")]
        assert told == [0, 0, 3, 1]

    asyncio.run(test())


def test_time_to_safe_is_absent_while_it_cannot_be_told() -> None:
    busy = HealingStatus((1, 2, 3), 600, 4, 1, copying_count=5, copied_count=7, rate=100, eta_s=6.0, is_surveyed=True)
    page = samples(page_of(lambda: healing_families(busy))())
    assert [page[f"dfs_repair_waiting_chunks{{replicas={count}}}"] for count in ("0", "1", "2+")] == [1, 2, 3]
    assert (page["dfs_repair_copied_chunks_total"], page["dfs_time_to_healed_seconds"]) == (7, 6.0)
    assert "dfs_time_to_safe_seconds" not in page


def test_a_follower_says_nothing_of_what_only_the_leader_hears() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        await PretendServer(trio, 1).join()
        page = master_page(trio, "m2")
        assert page["dfs_master_is_leader"] == 0
        assert "dfs_files" in page
        assert not [name for name in page if name.startswith(("dfs_chunks_missing", "dfs_chunk_servers"))]

    asyncio.run(test())


def test_the_lag_of_a_loop_that_stands_still_is_seen() -> None:
    async def test() -> None:
        trio = await MasterTrio().start()
        watch = asyncio.create_task(trio.leader.meter.watch_loop())
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - the fault that is to be seen
        while not trio.leader.meter.loop_lag.snapshot().counts[-1]:  # noqa: ASYNC110 - a histogram sets no event
            await asyncio.sleep(0.01)
        watch.cancel()
        assert trio.leader.meter.loop_lag.snapshot().sum_s > 0.1

    asyncio.run(test())


# --- a chunk server's page ----------------------------------------------------------------------------


def chunk_metrics() -> tuple[ChunkMetrics, ChunkService, LeaderConnection]:
    key = ClusterKey.from_secret(b"0" * 64, "test")
    service = ChunkService(store=MemoryStore(new_server_id(), 1000), key=key, name="c1", address="127.0.0.1:1")
    leader = LeaderConnection(["127.0.0.1:2"], key)
    metrics = ChunkMetrics(
        name="c1", cluster="test", service=service, syncs=Times(), leader=leader, now_s=lambda: 107.0
    )
    return metrics, service, leader


def test_a_chunk_server_shows_its_work_and_what_its_last_heartbeat_told() -> None:
    metrics, service, leader = chunk_metrics()
    before = samples(page_of(metrics.families)())
    assert "dfs_chunk_heartbeat_age_seconds" not in before
    service.meter.read(4096, time.perf_counter())
    service.meter.wrote(100, time.perf_counter())
    service.meter.refused.add("disk_full")
    disks = (DiskReport('/disk "1"\n', 1000, 400, 7, "ok"), DiskReport("/disk2", 0, 0, 0, "failed", "gone"))
    scrub = ScrubStatus(5, 500, 2, 0.5, 1_700_000_000_000)
    copying = (ChunkHandle(b"x" * 16),)
    heartbeat = Heartbeat(new_server_id(), b"", 1000, 400, 7, 3, disks, copying=copying, disk_wait_ms=15, scrub=scrub)
    leader.acknowledged = Acknowledged(100.0, "127.0.0.1:2", heartbeat)
    page = samples(page_of(metrics.families)())
    assert page["dfs_chunk_sent_bytes_total"] == 4096
    assert page["dfs_chunk_received_bytes_total"] == 100
    assert page["dfs_chunk_read_seconds_count"] == 1
    assert page["dfs_chunk_request_errors_total{code=disk_full}"] == 1
    assert page["dfs_chunk_heartbeat_age_seconds"] == 7
    assert page["dfs_chunk_leader_info{leader=127.0.0.1:2}"] == 1
    assert page['dfs_chunk_disk_free_bytes{disk=/disk "1"\n}'] == 400
    assert page["dfs_chunk_disk_state{disk=/disk2,state=failed}"] == 1
    assert page["dfs_chunk_quarantined_replicas_total"] == 2
    assert page["dfs_chunk_disk_wait_seconds"] == 0.015
    assert page["dfs_chunk_copies_waiting"] == 1
    assert page["process_open_fds"] > 0


def test_errors_that_nobody_expected_are_counted_by_event_on_every_node() -> None:
    before = unexpected().get("scrub_failed", 0)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        get_logger("dfs.test").exception("scrub_failed")
    page = samples(page_of(chunk_metrics()[0].families)())
    assert page["dfs_unexpected_errors_total{event=scrub_failed}"] == before + 1


def test_every_root_of_a_thread_or_task_counts_what_it_did_not_expect() -> None:
    """A broad `except` logs with `exception`, which counts, or hands the error on."""
    roots, silent = 0, []
    for path in sorted((ROOT / "dfs" / "chunk").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception":
                roots += 1
                calls = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
                if not any(isinstance(call, ast.Attribute) and call.attr == "exception" for call in calls):
                    silent.append(f"{path}:{node.lineno}")
    assert silent == []
    assert roots >= 7, "the threads of a chunk server"


# --- the document -------------------------------------------------------------------------------------


def all_names() -> set[str]:
    """Return the names of all families that masters and chunk servers show."""
    names: set[str] = set()

    async def collect() -> None:
        trio = await MasterTrio().start()
        await PretendServer(trio, 1).join()
        metrics = MasterMetrics(name="m1", cluster="test", service=trio.leader, connection_count=lambda: 0)
        names.update(family.name for family in metrics.families())

    asyncio.run(collect())
    names.update(family.name for family in healing_families(HealingStatus(eta_s=1.0, safe_eta_s=1.0)))
    metrics, _, leader = chunk_metrics()
    disks = (DiskReport("/d", 1, 1, 1, "ok"),)
    leader.acknowledged = Acknowledged(0.0, "x:1", Heartbeat(new_server_id(), b"", 1, 1, 1, 1, disks))
    return names | {family.name for family in metrics.families()}


OF_THE_LOG = {  # an in-memory log has none
    "dfs_master_checkpoint_age_seconds",
    "dfs_master_checkpoint_size_bytes",
    "dfs_master_checkpoint_index",
}


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(dfs_\w+?)(?:_total)?`", text, re.MULTILINE))
    assert documented == all_names() | OF_THE_LOG


def test_alert_rules_ask_for_metrics_that_exist() -> None:
    text = (ROOT / "deploy" / "alert-rules.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"\b(dfs_\w+)", "\n".join(re.findall(r"^\s+expr: (.*)$", text, re.MULTILINE))))
    assert len(used) > 10
    known = all_names() | OF_THE_LOG
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in used} <= known


# --- the port -----------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[MetricsPort]:
    opened = MetricsPort("127.0.0.1:0", lambda: b"x 1\n", CONTENT_TYPE)
    yield opened
    opened.close()


def ask(port: MetricsPort, request: bytes) -> bytes:
    host, _, number = port.address.rpartition(":")
    with socket.create_connection((host, int(number)), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:  # it did not read all of what was sent
            pass
        return answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"GET /metrics?name[]=x HTTP/1.0\r\n\r\n", b"200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"GET /metrics/../etc/passwd HTTP/1.1\r\n\r\n", b"404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405 Method Not Allowed"),
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\xff\r\n\r\n", b"400 Bad Request"),
        (b"GET /" + b"x" * REQUEST_SIZE_MAX, b"431 Request Header Fields Too Large"),
    ],
)
def test_only_the_page_is_served(port: MetricsPort, request_: bytes, status: bytes) -> None:
    answer = ask(port, request_)
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert (body == b"x 1\n") == (status == b"200 OK")


def test_head_gives_no_body(port: MetricsPort) -> None:
    answer = ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"Connection: close\r\n\r\n")
    assert b"Content-Length: 4\r\n" in answer


def test_silent_connections_do_not_keep_others_out(port: MetricsPort) -> None:
    host, _, number = port.address.rpartition(":")
    of_others = set(threading.enumerate())
    with ExitStack() as stack:
        for _ in range(2 * CONNECTIONS_MAX):
            stack.enter_context(socket.create_connection((host, int(number)), timeout=20))
        assert ask(port, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
        names = [thread.name for thread in threading.enumerate() if thread not in of_others]
        assert names.count("dfs metrics reader") <= CONNECTIONS_MAX


def test_a_flood_makes_one_page_a_second() -> None:
    made: list[float] = []

    def make_page() -> bytes:
        made.append(time.monotonic())
        return b"x 1\n"

    begun_s = time.monotonic()
    with (
        closing(MetricsPort("127.0.0.1:0", make_page, CONTENT_TYPE)) as port,
        ThreadPoolExecutor(CONNECTIONS_MAX // 2) as executor,  # more could let go of each other on a busy machine
    ):
        answers = [*executor.map(lambda _: ask(port, b"GET /metrics HTTP/1.1\r\n\r\n"), range(40))]
    took_s = time.monotonic() - begun_s
    assert all(answer.endswith(b"\r\n\r\nx 1\n") for answer in answers)
    assert len(made) <= took_s + 1


def test_a_page_that_cannot_be_made_costs_nothing_but_that_page(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bytes:
        raise ZeroDivisionError

    with closing(MetricsPort("127.0.0.1:0", broken, CONTENT_TYPE)) as port:
        assert ask(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
        assert ask(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404")
        wait_until(lambda: "metrics_failed" in caplog.text, 20, "it is told")  # behind the end of the connection


def test_a_reader_without_a_thread_costs_the_others_nothing(
    port: MetricsPort, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    refusals = [RuntimeError("can't start new thread")]

    def refused(thread: threading.Thread) -> None:
        if refusals and thread.name == "dfs metrics reader":
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert ask(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
    assert ask(port, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
    assert "metrics_reader_failed" in caplog.text


def test_a_port_that_is_taken_stops_no_daemon(port: MetricsPort, caplog: pytest.LogCaptureFixture) -> None:
    assert open_metrics_port(port.address, lambda: b"", CONTENT_TYPE) is None
    assert "metrics_port_failed" in caplog.text
    assert open_metrics_port("", lambda: b"", CONTENT_TYPE) is None


# --- the key ------------------------------------------------------------------------------------------

INI = """
[cluster]
name = t
secret_file = s
run_dir = r
replication = 1
[master:m1]
address = 10.0.0.1:7401
raft_address = 10.0.0.1:7411
data_dir = m1
{master}
[chunk:c1]
address = 10.0.0.1:7421
data_dirs = c1
{chunk}
"""


def test_metrics_are_off_unless_an_address_is_given() -> None:
    config = parse_config(INI.format(master="", chunk=""), Path("/x/cluster.ini"))
    assert (config.masters[0].metrics_address, config.chunk_servers[0].metrics_address) == ("", "")
    text = INI.format(master="metrics_address = 10.0.0.1:9401", chunk="metrics_address = 10.0.0.1:9421")
    config = parse_config(text, Path("/x/cluster.ini"))
    assert (config.masters[0].metrics_address, config.chunk_servers[0].metrics_address) == (
        "10.0.0.1:9401",
        "10.0.0.1:9421",
    )


@pytest.mark.parametrize(
    ("master", "chunk", "complaint"),
    [
        ("metrics_address = 9401", "", r"cluster\.ini: \[master:m1\] metrics_address: .* is not an address"),
        ("", "metrics_address = 0.0.0.0:9421", r"\[chunk:c1\] metrics_address: .*cannot be connected to by others"),
        ("", "metrics_address = 10.0.0.1:7401", r"metrics_address: .*taken by \[master:m1\] address"),
        ("metrics_adress = 10.0.0.1:1", "", r"unknown key 'metrics_adress'; did you mean 'metrics_address'"),
    ],
)
def test_a_wrong_metrics_address_is_named_with_its_section_and_key(master: str, chunk: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_config(INI.format(master=master, chunk=chunk), Path("/x/cluster.ini"))
