"""Does the doctor find what is wrong, say why and what to do, and stay silent about what is right? By transcript."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from dfs.client.inspection import NodeAnswer
from dfs.config import ClusterConfig, parse_config
from dfs.errors import AuthenticationFailed, ConfigError, ConnectionFailed, DfsError
from dfs.ids import ServerId
from dfs.local.cluster_findings import judge_cluster, judge_masters, judge_nodes
from dfs.local.findings import Finding, Level
from dfs.local.machine import is_local, is_writable_by_others, look_at_machine, measure_sync
from dfs.local.machine_findings import FolderFacts, MachineFacts, judge_config, judge_machine, judge_secret
from dfs.net.messages import GetClusterStatusReply, GetReportReply
from dfs.net.parts import (
    DiskReport,
    HealingRules,
    HealingStatus,
    MasterStatus,
    ScrubStatus,
    ServerInfo,
    ServerLoad,
    ServerStatus,
    SpaceStatus,
)

GIB = 1 << 30
RULES = HealingRules(1.0, 10.0, 60.0, 600.0, 86_400.0)


def config_of(hosts: str = "ABC", racks: str = "1123", *, masters: str = "MNO", **settings: str) -> ClusterConfig:
    """Return a cluster with one chunk server for each letter of `hosts`; a letter is a machine, "." is loopback."""
    ports = iter(range(7400, 7500))

    def address(letter: str) -> str:
        return f"127.0.0.1:{next(ports)}" if letter == "." else f"10.0.0.{ord(letter)}:{next(ports)}"

    lines = ["[cluster]", "name = t", "secret_file = s", "run_dir = r", *(f"{k} = {v}" for k, v in settings.items())]
    for number, letter in enumerate(masters, 1):
        lines += [f"[master:m{number}]", f"address = {address(letter)}", f"raft_address = {address(letter)}"]
        lines += [f"data_dir = /m{number}"]
    for number, (letter, rack) in enumerate(zip(hosts, racks, strict=False), 1):
        lines += [f"[chunk:c{number}]", f"address = {address(letter)}", f"data_dirs = /c{number}", f"rack = r{rack}"]
    return parse_config("\n".join(lines), Path("/x/cluster.ini"))


def told(findings: Iterable[Finding]) -> list[str]:
    """Return what is not OK, short; each must say why and what to do."""
    bad = [finding for finding in findings if finding.level is not Level.OK]
    assert all(finding.why and finding.todo for finding in bad)
    return [f"{finding.level.value} {finding.topic}: {finding.what}" for finding in bad]


# --- configuration ------------------------------------------------------------------------------------


def test_a_well_laid_out_cluster_has_nothing_to_complain_of() -> None:
    assert told(judge_config(config_of("ABCD", "1122"))) == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (config_of("ABCD", "1111"), ["WARN layout: all 4 chunk servers are in one rack (r1)"]),
        (config_of("ABC", "123"), ["WARN layout: replication 3 with 3 chunk servers"]),
        (
            config_of("AB", "12"),
            ["WARN config: replication = 3, but only 2 chunk servers: every file stays under-replicated"],
        ),
        (
            config_of("AAAB", "1122"),
            ["WARN layout: 4 chunk servers are on 2 machines, replication is 3"],
        ),
        (
            config_of("ABCD", "1122", masters="MMO"),
            [f"WARN layout: a majority of the masters is on one machine (10.0.0.{ord('M')})"],
        ),
        (
            config_of("ABCD", "1122", masters="MN"),
            ["WARN config: 2 masters survive no more failures than 1; use an odd number"],
        ),
        (config_of("ABCD", "1122", fsync="no"), ["WARN fsync: fsync = no"]),
        (config_of("....", "1122", masters="..."), []),
    ],
)
def test_what_is_legal_and_unwise_is_told(config: ClusterConfig, expected: list[str]) -> None:
    assert told(judge_config(config)) == expected


def test_secret_file_is_judged_with_its_folder() -> None:
    assert told(judge_secret("/s", None)) == []
    assert told(judge_secret("/s", ConfigError("/s has mode 0644"))) == ["FAIL secret: /s has mode 0644"]
    assert told(judge_secret("/s", None, is_folder_open=True)) == ["WARN secret: its folder can be written by others"]


# --- this machine -------------------------------------------------------------------------------------

SOUND = FolderFacts(
    "/d", "c1", False, True, True, 1, 1000 * GIB, 500 * GIB, 1 << 30, "ext4", frozenset({"rw"}), False, 2e-4
)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        (SOUND, []),
        (replace(SOUND, exists=False, sync_s=None), []),
        (replace(SOUND, is_writable=False), ["FAIL disk: this user cannot write there"]),
        (replace(SOUND, error="Input/output error"), ["FAIL disk: Input/output error"]),
        (
            replace(SOUND, free=GIB),
            ["FAIL disk: full: 1.0 GiB of 1000.0 GiB free (ext4), 1.0 GiB of it kept (disk_reserve)"],
        ),
        (replace(SOUND, free=40 * GIB), ["WARN disk: nearly full: 40.0 GiB of 1000.0 GiB free (ext4)"]),
        (replace(SOUND, is_master=True, free=GIB // 2), ["WARN disk: 512.0 MiB of 1000.0 GiB free (ext4)"]),
        (replace(SOUND, is_master=True, free=GIB // 16), ["FAIL disk: 64.0 MiB of 1000.0 GiB free (ext4)"]),
        (replace(SOUND, files_left=500), ["WARN disk: 500 more files fit on the file system"]),
        (replace(SOUND, file_system="tmpfs"), ["FAIL fsync: it lies in memory (tmpfs)"]),
        (replace(SOUND, file_system="nfs4"), ["WARN fsync: it is on a network (nfs4)"]),
        (replace(SOUND, mount_options=frozenset({"rw", "barrier=0"})), ["FAIL fsync: mounted with barrier=0"]),
        (replace(SOUND, sync_s=2e-6), ["WARN fsync: a synced write takes 2 µs: too fast for any medium"]),
        (
            replace(SOUND, sync_s=3e-4, is_spinning=True),
            [
                "WARN fsync: a synced write takes 300 µs: too fast for a spinning disk, which turns once in 4 to 11 ms",
            ],
        ),
        (replace(SOUND, sync_s=8e-3, is_spinning=True), []),
        (replace(SOUND, sync_s=0.2), ["WARN fsync: a synced write takes 200.0 ms: slow"]),
        (replace(SOUND, sync_s=None), []),
    ],
)
def test_a_data_directory_is_judged(folder: FolderFacts, expected: list[str]) -> None:
    assert told(judge_machine(MachineFacts((folder,)), config_of("ABCD", "1122"))) == expected


def test_folders_of_one_server_on_one_disk_are_told_and_a_disk_is_judged_once() -> None:
    folders = (SOUND, replace(SOUND, path="/e", sync_s=1e-6), replace(SOUND, node="c2", path="/f"))
    assert told(judge_machine(MachineFacts(folders), config_of())) == ["WARN disk: /d, /e are on one disk"]


def test_limits_and_memory_are_judged_where_they_matter() -> None:
    config = config_of()
    facts = MachineFacts((), {"m1": 1024, "c1": 65536}, 4 * GIB, 60, 2, has_master=True)
    assert told(judge_machine(facts, config)) == [
        "WARN limits: at most 1024 open files",
        "WARN memory: 2: the kernel promises no memory that it does not have",
        "WARN memory: 60, with 4096 MiB of swap",
    ]
    assert told(judge_machine(replace(facts, has_master=False, descriptors={}), config)) == []
    assert told(judge_machine(replace(facts, swappiness=1, overcommit=0, descriptors={}), config)) == []


def test_this_machine_is_looked_at_without_leaving_a_trace(tmp_path: Path) -> None:
    config = config_of("....", "1122", masters=".")
    folder = tmp_path / "m1"
    folder.mkdir()
    config = replace(config, run_dir=tmp_path / "run", masters=(replace(config.masters[0], data_dir=folder),))
    facts = look_at_machine(config)
    assert [(fact.node, fact.exists) for fact in facts.folders] == [
        ("m1", True),
        *[(f"c{number}", False) for number in range(1, 5)],
    ]
    assert facts.folders[0].capacity > facts.folders[0].free > 0
    assert facts.has_master
    assert facts.descriptors["this shell"] > 0
    assert list(folder.iterdir()) == []
    measured = measure_sync(folder)
    assert measured is None or measured > 0
    assert measure_sync(tmp_path / "nowhere") is None


def test_only_addresses_of_this_machine_are_local() -> None:
    assert is_local("127.0.0.1:7401")
    assert not is_local("192.0.2.1:7401")  # reserved for documentation
    assert not is_local("no.such.host.invalid:1")


def test_a_folder_that_others_may_write_to_is_seen(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert not is_writable_by_others(tmp_path)
    tmp_path.chmod(0o777)
    assert is_writable_by_others(tmp_path)
    tmp_path.chmod(0o1777)
    assert not is_writable_by_others(tmp_path), "in a sticky folder only owners replace files"


# --- nodes --------------------------------------------------------------------------------------------


def answer(name: str, *, version: str = "1.0", offset_s: float = 0.0, node: str = "") -> NodeAnswer:
    return NodeAnswer(f"{name}:1", node or name, "chunk", version, offset_s, 0.001)


def silent(name: str, error: DfsError) -> NodeAnswer:
    return NodeAnswer(f"{name}:1", error=error)


def nodes(*answers: NodeAnswer) -> dict[str, NodeAnswer]:
    return {one.address.partition(":")[0]: one for one in answers}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (nodes(answer("m1"), answer("c1", offset_s=0.4)), []),
        (nodes(answer("m1"), silent("c1", ConnectionFailed("nobody listens"))), ["FAIL ports: nobody listens"]),
        (nodes(silent("c1", AuthenticationFailed("wrong secret"))), ["FAIL ports: wrong secret"]),
        (nodes(answer("m1", node="m2")), ["FAIL ports: chunk m2 answers there"]),
        (
            nodes(answer("m1"), answer("c1", version="0.9")),
            ["WARN versions: this program is 1.0, nodes are 0.9: c1; 1.0: m1"],
        ),
        (
            nodes(answer("m1"), answer("m2"), answer("c1", offset_s=-5.0)),
            ["WARN clocks: 5.0 s behind the others"],
        ),
        (
            nodes(answer("m1", offset_s=90.0), answer("m2"), answer("c1")),
            ["FAIL clocks: 90.0 s ahead of the others"],
        ),
        (
            nodes(answer("m1", offset_s=9.0), answer("m2", offset_s=9.0), answer("c1", offset_s=9.0)),
            ["WARN clocks: 9.0 s behind the others"],  # it is this machine that is wrong
        ),
        ({}, []),
    ],
)
def test_nodes_are_judged(answers: dict[str, NodeAnswer], expected: list[str]) -> None:
    assert told(judge_nodes(answers, "1.0")) == expected


def test_the_clock_of_this_machine_is_one_of_the_clocks() -> None:
    answers = nodes(answer("m1", offset_s=9.0), answer("m2", offset_s=9.0))
    (bad,) = [finding for finding in judge_nodes(answers, "1.0") if finding.level is not Level.OK]
    assert (bad.where, bad.what) == ("this machine", "9.0 s behind the others")


# --- masters ------------------------------------------------------------------------------------------


def master(name: str, role: str = "follower", *, applied: int = 500, checkpoint: int = 0) -> MasterStatus:
    return MasterStatus(name, role, 3, applied, applied, "m1", "1.0", 60.0, checkpoint)


def test_a_whole_quorum_is_ok() -> None:
    masters = [master("m1", "leader"), master("m2"), master("m3")]
    findings = list(judge_masters(masters, {}, {"m1": None}))
    assert told(findings) == []
    assert findings[0].what == "3 of 3 masters take part, 2 are needed; m1 leads"


def test_what_is_wrong_with_masters_is_told() -> None:
    down = ConnectionFailed("nobody listens")
    two = [master("m1", "leader"), master("m2")]
    (lost,) = [finding for finding in judge_masters(two, {"m3": down}, {}) if finding.level is not Level.OK]
    assert lost.why == "one more loss stops every change"
    assert told(judge_masters([master("m2", "candidate")], {"m1": down, "m3": down}, {})) == [
        "FAIL quorum: 1 of 3 masters take part, 2 are needed; none leads"
    ]
    assert told(judge_masters([*two, master("m3", "joining")], {}, {})) == [
        "WARN quorum: 2 of 3 masters take part, 2 are needed; m1 leads",
        "WARN journal: it is joining",
    ]
    lagging = [master("m1", "leader", applied=3_000_000, checkpoint=2_900_000), master("m2", applied=10), master("m3")]
    assert told(judge_masters(lagging, {}, {})) == [
        "WARN journal: 2999990 log entries behind the leader",
        "WARN journal: 2999500 log entries behind the leader",
    ]
    stuck = [master("m1", "leader", applied=3_000_000), master("m2", applied=3_000_000, checkpoint=2_900_000)]
    assert told(judge_masters(stuck, {}, {})) == ["WARN journal: 3000000 log entries since its last checkpoint"]
    assert told(judge_masters(two, {}, {"m2": down})) == ["WARN ports: nobody listens"]


# --- chunk servers ------------------------------------------------------------------------------------


def status(*servers: ServerStatus, missing: int = 0, under: int = 0) -> GetClusterStatusReply:
    return GetClusterStatusReply(servers, SpaceStatus(0, 0, 0, 0, 0, 9, 0, 0, 0, under, under, missing), 3, 64 << 20)


def chunk_server(number: int, state: str = "alive", disk: str = "ok") -> ServerStatus:
    info = ServerInfo(ServerId(bytes([number]) * 16), f"c{number}", f"10.0.0.{number}:1", "r1", state != "dead")
    reports = (DiskReport("/d", 10, 5, 1, disk, "why" if disk != "ok" else ""),)
    return ServerStatus(info, state, 31.0, 10, 5, 1, reports)


def report(*loads: ServerLoad) -> GetReportReply:
    return GetReportReply(0, 60.0, RULES, loads)


def test_what_the_leader_knows_is_judged() -> None:
    config = config_of("AB", "12", replication="2")
    assert told(judge_cluster(status(chunk_server(1), chunk_server(2)), report(), config)) == []
    sick = status(chunk_server(1, "dead"), chunk_server(3, "late", "failed"), missing=2, under=3)
    assert told(judge_cluster(sick, report(), config)) == [
        "WARN servers: in cluster.ini, and never registered",
        "FAIL servers: dead: silent for 31 s",
        "WARN servers: late: silent for 31 s",
        "FAIL disk: failed: why",
        "FAIL chunks: 2 of 9 chunks have no live replica",
    ]
    full = status(chunk_server(1, disk="full"), under=3)
    assert told(judge_cluster(full, report(), None)) == [
        "WARN disk: full: why",
        "WARN chunks: 3 of 9 chunks are under-replicated",
    ]


def test_errors_that_a_node_did_not_expect_are_told() -> None:
    odd = msgspec.structs.replace(chunk_server(1), unexpected_count=3)
    assert told(judge_cluster(status(odd), report(), None)) == [
        "WARN errors: 3 errors since its start that its code did not expect"
    ]
    masters = [master("m1", "leader"), msgspec.structs.replace(master("m2"), unexpected_count=1), master("m3")]
    (found,) = [finding for finding in judge_masters(masters, {}, {}) if finding.level is not Level.OK]
    assert (found.where, found.topic) == ("m2", "errors")


def test_servers_that_are_away_as_wanted_are_no_failure_and_blocked_repair_is_one() -> None:
    away = msgspec.structs.replace(chunk_server(1, "dead"), mode="maintenance")
    slow = msgspec.structs.replace(chunk_server(2, "slow"), disk_wait_ms=700)
    blocked = msgspec.structs.replace(
        status(away, slow), healing=HealingStatus(blocked_count=4, blocked_reason="nobody has room")
    )
    assert told(judge_cluster(blocked, report(), None)) == [
        "WARN servers: dead, as is wanted: maintenance",
        "WARN servers: slow: a small synced write takes 700 ms there",
        "FAIL repair: 4 chunks cannot be copied: nobody has room",
    ]


def test_slow_disks_and_found_damage_are_told() -> None:
    one = chunk_server(1)
    load = ServerLoad(one.info.server_id, 0, 900, 0, 0, ScrubStatus(corrupt_count=3))
    assert told(judge_cluster(status(one), report(load), None)) == [
        "WARN disk: a small synced write takes 900 ms on its slowest disk",
        "WARN disk: 3 replicas were found damaged since it started",
    ]
