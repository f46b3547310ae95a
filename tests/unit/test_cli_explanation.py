"""Do the sentences of `dfs explain` tell where bytes are, why, and what happens next and when? By transcript."""

# ruff: noqa: E501 - transcripts are as wide as the lines they quote

from __future__ import annotations

import dataclasses
import textwrap

import msgspec
import pytest

from dfs.cli.explanation import Facts, explain_absent, explain_directory, explain_file, group_chunks
from dfs.client.fsck import ChunkVerdict, Problem, Totals, judge_chunk
from dfs.ids import ChunkHandle, ServerId
from dfs.net.parts import (
    DiskReport,
    FileStatus,
    HealingRules,
    HealingStatus,
    Kind,
    ServerInfo,
    ServerStatus,
    SurveyedChunk,
    TrashEntry,
)

NOW_MS = 1_700_000_600_000
MIB = 1 << 20
RACKS = {1: "r1", 2: "r1", 3: "r2", 4: "r2"}


def server(number: int, state: str = "alive", age_s: float = 0.4, *, free: int = 1 << 40) -> ServerStatus:
    info = ServerInfo(
        ServerId(bytes([number]) * 16), f"c{number}", f"10.0.0.{number}:7421", RACKS[number], state != "dead"
    )
    disk = DiskReport("/disk", 1 << 41, free, 1, "ok" if free else "full")
    return ServerStatus(info, state, age_s, 1 << 41, free, 1, (disk,))


def facts(*changed: ServerStatus) -> Facts:
    servers = {number: server(number) for number in RACKS}
    servers.update({int(status.info.name[1:]): status for status in changed})
    rules = HealingRules(1.0, 10.0, 60.0, 600.0, 3 * 86_400.0)
    by_id = {status.info.server_id: status for status in servers.values()}
    return Facts(by_id, rules, NOW_MS, 7.0, 64 * MIB, 3, 0, 0)


def verdict(known: Facts, *numbers: int, goal: int = 3) -> ChunkVerdict:
    infos = [known.servers[ServerId(bytes([number]) * 16)].info for number in numbers]
    chunk = SurveyedChunk(ChunkHandle(bytes(16)), 64 * MIB, 7, goal, tuple(range(len(infos))))
    racks = frozenset(status.info.rack for status in known.servers.values() if status.state != "dead")
    return judge_chunk(chunk, infos, {}, racks)


def story(known: Facts, *verdicts: ChunkVerdict, replication: int = 3) -> str:
    status = FileStatus("/f", Kind.FILE, len(verdicts) * MIB, 0, NOW_MS - 7_200_000, 1, 1, replication, len(verdicts))
    groups = group_chunks([(number, MIB, one) for number, one in enumerate(verdicts)])
    return "\n".join(explain_file(status, groups, known))


def transcript(text: str) -> str:
    return textwrap.dedent(text).strip("\n")


def test_a_whole_file_needs_nothing() -> None:
    known = facts()
    assert story(known, verdict(known, 1, 2, 3), verdict(known, 1, 2, 3)) == transcript("""
        /f is a file of 2.0 MiB in 2 chunks, last changed 2h00m ago. Each chunk shall have 3 replicas (the cluster's default).

        All 2 chunks (2.0 MiB): each 3 live replicas in 2 racks
          c1 (rack r1, 10.0.0.1:7421) is alive
          c2 (rack r1, 10.0.0.2:7421) is alive
          c3 (rack r2, 10.0.0.3:7421) is alive
          Next: nothing is to be done.
    """)


def test_a_silent_server_is_waited_for_until_repair_after() -> None:
    known = facts(server(2, "dead", 31.0))
    assert story(known, verdict(known, 1, 3, 4), verdict(known, 1, 2, 3)) == transcript("""
        /f is a file of 2.0 MiB in 2 chunks, last changed 2h00m ago. Each chunk shall have 3 replicas (the cluster's default).

        Chunk 0 (1.0 MiB): 3 live replicas in 2 racks
          c1 (rack r1, 10.0.0.1:7421) is alive
          c3 (rack r2, 10.0.0.3:7421) is alive
          c4 (rack r2, 10.0.0.4:7421) is alive
          Next: nothing is to be done.

        Chunk 1 (1.0 MiB): 2 of 3 replicas can be read
          c1 (rack r1, 10.0.0.1:7421) is alive
          c2 (rack r1, 10.0.0.2:7421) is dead: silent for 31s
          c3 (rack r2, 10.0.0.3:7421) is alive
          Next: c2 is silent for 31s; its replicas are copied to c4 from 1m00s on, in about 29s. When it comes back before, its replica counts again at once.
    """)


NEXT = {
    "given up": (
        (server(2, "dead", 95.0),),
        (1, 2, 3),
        "c2 is silent for 1m35s, longer than 1m00s (repair_after): its replica is copied to c4, in its turn.",
    ),
    "one left": (
        (server(2, "dead", 12.0), server(3, "dead", 12.0)),
        (1, 2, 3),
        "one live replica is left, so 2 copies are made at once, before all others, to c4.",
    ),
    "nobody left to copy to": (
        (server(2, "dead", 95.0),),
        (1, 2, 3, 4),
        "nothing is to be done.",
    ),
    "no server has room": (
        (server(2, "dead", 95.0), server(4, free=0)),
        (1, 2, 3),
        "nothing can be done: 3 servers are alive, and none of them without it has room. Bring c2 back, or add a chunk server: then 1 copy is made.",
    ),
    "written with fewer": (
        (),
        (1, 3),
        "1 copy is made to c2 or c4, in its turn.",
    ),
    "one rack": (
        (),
        (1, 2),
        "1 copy is made to c3 or c4, in its turn.",
    ),
    "too many": (
        (),
        (1, 2, 3, 4),
        "1 replica more than wanted; what is too much is removed, from the fullest server first.",
    ),
}


@pytest.mark.parametrize("case", NEXT)
def test_what_happens_next(case: str) -> None:
    changed, numbers, expected = NEXT[case]
    known = facts(*changed)
    assert story(known, verdict(known, *numbers)).splitlines()[-1] == f"  Next: {expected}"


def test_bytes_without_a_live_replica_wait_for_their_servers() -> None:
    known = facts(server(1, "dead", 95.0), server(2, "dead", -1.0))
    text = story(known, verdict(known, 1, 2))
    assert "Chunk 0 (1.0 MiB): NO live replica of 3" in text
    assert "c1 (rack r1, 10.0.0.1:7421) is dead: silent for 1m35s" in text
    assert "c2 (rack r1, 10.0.0.2:7421) is dead: this leader, 7.0s in office, has not heard it yet" in text
    assert "cannot be read until c1 or c2 comes back: nobody else has them" in text
    assert "these bytes are lost, unless a server that has them comes back" in story(known, verdict(known))


def test_replicas_in_one_rack_are_told_and_moved_last() -> None:
    known = facts()
    text = story(known, verdict(known, 1, 2, goal=2), replication=2)
    assert "(set for this file)" in text
    assert text.endswith(
        "Next: all replicas are in rack r1, though there are others: one is moved to another rack when nothing more"
        " urgent is left and a server there has room."
    )


def test_a_shared_chunk_follows_the_higher_wish() -> None:
    known = facts()
    assert "Another file shares it and wants 3 replicas, this one 2: the higher one counts." in story(
        known, verdict(known, 1, 2, 3), replication=2
    )


def test_a_server_in_maintenance_is_waited_for_whatever_its_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs.cli.output.local_time", lambda time_ms: f"@{time_ms}")
    away = msgspec.structs.replace(server(2, "dead", 95.0), mode="maintenance", mode_until_ms=7)
    text = story(known := facts(away), verdict(known, 1, 2, 3))
    assert "c2 (rack r1, 10.0.0.2:7421) is dead: silent for 1m35s, in maintenance until @7\n" in text
    assert text.endswith(
        "Next: c2 is in maintenance until @7: until then its replica counts, though it is silent, and is not copied."
    )


def test_what_is_on_a_server_that_is_drained_is_copied_away_and_repair_tells_how_far_it_is() -> None:
    leaving = msgspec.structs.replace(server(2), mode="draining", left_count=12)
    healing = HealingStatus((0, 0, 12), 12 * MIB, copying_count=3, rate=2 * MIB, eta_s=6.0, is_surveyed=True)
    known = dataclasses.replace(facts(leaving), healing=healing)
    lines = story(known, verdict(known, 1, 2, 3)).splitlines()
    assert lines[-4] == "  c2 (rack r1, 10.0.0.2:7421) is alive, being drained (12 chunks left)"
    assert lines[-2:] == [
        "  Next: c2 is being drained: what is there is copied to another server, and counts until then.",
        "  Repair: 12 chunks of the cluster wait for copies (12.0 MiB), 3 under way at 2.0 MiB/s, done in about 6.0s.",
    ]
    short = story(known, verdict(known, 1, 3))
    assert "to c4, in its turn." in short, "a server that is drained takes nothing"


def test_an_empty_file_has_nothing_to_keep() -> None:
    assert story(facts()) == "/f is an empty file: it has no bytes, so there is nothing to keep."


def test_a_long_file_is_told_in_few_lines() -> None:
    known = facts(server(4, "dead", 20.0))
    many = [verdict(known, 1, 2, 3) if number % 2 else verdict(known, 1, 3, 4) for number in range(40)]
    text = story(known, *many)
    assert "Chunks 0, 2, 4, 6, 8, 10, 12, 14, … (20.0 MiB): each 2 of 3 replicas can be read" in text
    assert len(text.splitlines()) == 13


def test_a_directory_is_summed_up_with_the_files_in_danger() -> None:
    known = facts(server(2, "dead", 31.0))
    totals = Totals(file_count=10, directory_count=2, size=5 * MIB, chunk_count=12, bad_files=2)
    totals.problems[Problem.UNDER_REPLICATED] = 3
    status = FileStatus("/d", Kind.DIRECTORY, 5 * MIB, 0, NOW_MS, 1, 1, 0, 0, 10, 2)
    assert "\n".join(explain_directory(status, totals, ["/d/a", "/d/b"], known)) == transcript("""
        /d is a directory with 10 files (5.0 MiB) in 12 chunks.
        3 chunks can be read, with fewer live replicas than wanted.
        It concerns 2 files: /d/a, /d/b.
        Chunk server c2 (rack r1) is dead: silent for 31s.
        `dfs explain FILE` tells what happens to one of them, `dfs fsck` lists all.
    """)
    whole = explain_directory(status, Totals(file_count=10, size=5, chunk_count=12), [], known)
    assert whole[-1] == "Every chunk has all its replicas on live servers: nothing is to be done."


def test_what_was_deleted_can_be_brought_back_until_a_time_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs.cli.output.local_time", lambda time_ms: f"@{(time_ms - NOW_MS) // 1000}")
    entry = TrashEntry(1, "/d", Kind.DIRECTORY, 3 * MIB, NOW_MS - 7_200_000, NOW_MS + 200_000_000)
    assert "\n".join(explain_absent("/d", [entry], facts())) == transcript("""
        /d does not exist.
        A directory of 3.0 MiB was deleted from here 2h00m ago (@-7200).
        Next: `dfs undelete /d` brings it back until @200000, for another 2d07h. Then its chunks are released, and the space is free 10m00s (garbage_grace) later.
    """)
    below = explain_absent("/d/x", [entry], facts())
    assert below[1] == "The directory /d above it was deleted, with whatever was in it, 2h00m ago (@-7200)."
    late = TrashEntry(1, "/d", Kind.FILE, 1, NOW_MS - 10, NOW_MS - 5)
    assert explain_absent("/d", [late], facts())[-1] == "Next: its time is over; it is released at any moment."


def test_what_was_never_there_is_told_from_what_is_in_the_trash() -> None:
    first, second = explain_absent("/d", [], facts())
    assert first == "/d does not exist, and nothing that was deleted from there is in the trash."
    assert "leave the disks 10m00s later" in second
