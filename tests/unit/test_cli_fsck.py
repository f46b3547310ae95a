"""Does fsck tell healthy from not, name what is wrong, and end as documented?"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from click.testing import Result

from dfs.client.fsck import Problem, Totals, judge_chunk
from dfs.client.inspection import Finding, Findings
from dfs.errors import NoQuorum
from dfs.ids import ChunkHandle, ServerId
from dfs.net.parts import ServerInfo, SpaceStatus, SurveyedChunk
from dfs.testing.memory_client import MemoryClient, healthy_status
from dfs.testing.memory_inspection import handle_of

Run = Callable[..., Result]
NO_SPACE = SpaceStatus(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def filled(client: MemoryClient) -> MemoryClient:
    for path in ("/d/a", "/d/b", "/e"):
        client.put(io.BytesIO(path.encode() * 10), path, parents=True)
    client.touch("/d/none")
    return client


def kill(client: MemoryClient, *names: str) -> None:
    """Let servers be dead in the leader's view."""
    status = healthy_status(NO_SPACE)
    servers = tuple(
        msgspec.structs.replace(
            server, state="dead", heartbeat_age_s=31.0, info=msgspec.structs.replace(server.info, is_alive=False)
        )
        if server.info.name in names
        else server
        for server in status.servers
    )
    client.status_reply = msgspec.structs.replace(status, servers=servers)


# --- the verdict ------------------------------------------------------------------------------------


def server(number: int, rack: str, *, is_alive: bool = True) -> ServerInfo:
    return ServerInfo(ServerId(bytes([number]) * 16), f"c{number}", f"10.0.0.{number}:1", rack, is_alive)


HANDLE = ChunkHandle(bytes(16))


@pytest.mark.parametrize(
    ("replicas", "words"),
    [
        ("1r1 2r1 3r2", "OK"),
        ("1r1 2r1 3r2 4r2", "OK"),
        ("1r1 2r1 3r1", "misplaced: 3 of 3 replicas (c1, c2, c3)"),
        ("1r1 3r2", "under-replicated: 2 of 3 replicas (c1, c3)"),
        ("1r1", "under-replicated: 1 of 3 replicas (c1)"),
        ("1r1 2r1 3r2!", "under-replicated: 2 of 3 replicas (c1, c2; c3 is dead)"),
        ("1r1! 2r1! 3r2!", "missing: 0 of 3 replicas (c1 is dead, c2 is dead, c3 is dead)"),
        ("", "missing: 0 of 3 replicas (no server is registered for it)"),
        ("1r1 2r2 3r2x", "corrupt, under-replicated: 2 of 3 replicas (c1, c2; c3 has a corrupt one)"),
        ("1r1x 2r2x", "missing, corrupt: 0 of 3 replicas (c1 has a corrupt one, c2 has a corrupt one)"),
        ("1r1 2r2 3r2-", "under-replicated: 2 of 3 replicas (c1, c2; c3 does not have it)"),
        ("1r1 2r2 3r2?", "OK"),
    ],
)
def test_verdict_on_a_chunk(replicas: str, words: str) -> None:
    """`!` dead, `x` corrupt, `-` absent, `?` could not be asked."""
    servers: list[ServerInfo] = []
    findings: Findings = {}
    for text in replicas.split():
        mark = text.lstrip("0123456789r")
        info = server(int(text[0]), text[1:3], is_alive=mark != "!")
        servers.append(info)
        kinds = {"x": Finding.CORRUPT, "-": Finding.ABSENT, "?": Finding.UNASKED}
        if mark in kinds:
            findings[HANDLE, info.server_id] = kinds[mark]
    chunk = SurveyedChunk(HANDLE, 10, 7, 3, tuple(range(len(servers))))
    verdict = judge_chunk(chunk, servers, findings, frozenset({"r1", "r2"}))
    assert verdict.words() == words


def test_one_rack_is_no_misplacement_when_there_is_only_one() -> None:
    servers = [server(1, "r1"), server(2, "r1")]
    chunk = SurveyedChunk(HANDLE, 10, 7, 2, (0, 1))
    assert judge_chunk(chunk, servers, {}, frozenset({"r1"})).problems == ()
    assert judge_chunk(chunk, servers, {}, frozenset({"r1", "r2"})).problems == (Problem.MISPLACED,)


def test_only_what_is_misplaced_leaves_a_tree_healthy() -> None:
    totals = Totals()
    assert totals.is_healthy
    totals.problems[Problem.MISPLACED] = 3
    assert totals.is_healthy
    for problem in (Problem.MISSING, Problem.CORRUPT, Problem.UNDER_REPLICATED):
        one = replace(totals, problems={**totals.problems, problem: 1})
        assert not one.is_healthy
        assert one.is_readable is (problem is not Problem.MISSING)


# --- the verb -----------------------------------------------------------------------------------------


def test_a_healthy_tree_is_summed_up_and_ends_with_0(filled: MemoryClient, run: Run) -> None:
    result = run("fsck")
    assert result.exit_code == 0
    assert result.output == (
        "Status:                     healthy\n"
        "Directories:                0\n"
        "Files:                      4\n"
        "Files with problems:        0\n"
        "Size:                       100 B (100 B)\n"
        "Chunks:                     3 (3.00 live replicas on average)\n"
        "Missing chunks:             0\n"
        "Under-replicated chunks:    0\n"
        "Misplaced chunks:           0\n"
        "Corrupt replicas:           not looked for (--verify does)\n"
        "\n"
        "/ is healthy\n"
    )


def test_a_dead_server_makes_it_under_replicated_and_ends_with_1(filled: MemoryClient, run: Run) -> None:
    kill(filled, "c2")
    result = run("fsck", "/d")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == (
        f"/d/a: chunk 0 ({handle_of('/d/a').hex()}) under-replicated: 2 of 3 replicas (c1, c3; c2 is dead)"
    )
    assert len([line for line in lines if "/d/" in line]) == 2
    assert "Files with problems:        2" in lines
    assert lines[-1] == "/d is NOT healthy"


def test_bytes_that_nobody_has_end_with_7(filled: MemoryClient, run: Run) -> None:
    kill(filled, "c1", "c2", "c3")
    result = run("fsck", "/e")
    assert result.exit_code == 7
    assert "missing: 0 of 3 replicas (c1 is dead, c2 is dead, c3 is dead)" in result.output
    assert result.output.endswith("/e is NOT healthy: bytes cannot be read\n")


def test_files_blocks_and_locations_are_told_as_hdfs_users_ask_for_them(filled: MemoryClient, run: Run) -> None:
    result = run("fsck", "/d", "-files", "-blocks", "-locations")
    assert result.exit_code == 0
    assert result.output.startswith(
        f"/d/a 40 bytes, replication 3, 1 chunk: OK\n  0. {handle_of('/d/a').hex()} len=40 crc="
    )
    assert "live=3 goal=3 [c1(127.0.0.1:7421, r1, live), c2(127.0.0.1:7422, r0, live), c3(" in result.output
    assert "/d/none 0 bytes, replication 3, 0 chunks: OK\n" in result.output
    plain = run("fsck", "/d", "--files")
    assert "  0. " not in plain.output
    assert "/d/b 40 bytes, replication 3, 1 chunk: OK\n" in plain.output


def test_verify_asks_for_every_replica_and_names_the_corrupt_one(filled: MemoryClient, run: Run) -> None:
    filled.inspection.found = {("/e", "c1"): Finding.CORRUPT, ("/e", "c2"): Finding.UNASKED}
    result = run("fsck", "--verify")
    assert result.exit_code == 1
    assert "corrupt, under-replicated: 2 of 3 replicas (c2, c3; c1 has a corrupt one)" in result.output
    assert "Corrupt replicas:           1 of 8 verified; 1 could not be asked" in result.output
    assert "survey with tokens and tails /" in filled.calls


def test_json_is_one_document_with_every_page_in_it(filled: MemoryClient, run: Run) -> None:
    kill(filled, "c2")
    value: dict[str, Any] = json.loads(run("fsck", "--json").output)
    assert [file["path"] for file in value["files"]] == ["/d/a", "/d/b", "/e"]
    assert value["files"][0]["chunks"][0]["replicas"][1]["state"] == "dead"
    assert value["summary"]["under_replicated_chunks"] == 3
    assert (value["summary"]["is_healthy"], value["summary"]["is_readable"]) == (False, True)
    whole = json.loads(run("fsck", "--json", "--files").output)
    assert [file["path"] for file in whole["files"]] == ["/d/a", "/d/b", "/d/none", "/e"]


def test_json_of_a_walk_that_broke_off_says_that_it_is_not_whole(filled: MemoryClient, run: Run) -> None:
    filled.inspection.broken = NoQuorum("no master leads")
    result = run("fsck", "--json", "--files")
    assert result.exit_code == 4
    value = json.loads(result.stdout)
    assert (len(value["files"]), value["summary"]) == (2, None)


def test_a_path_that_does_not_exist_ends_with_3(filled: MemoryClient, run: Run) -> None:
    assert run("fsck", "/nope").exit_code == 3
    assert run("fsck", "/d/[ab]").exit_code == 1
