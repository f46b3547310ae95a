"""Is an exported state complete, readable, and refused whole when a byte of it is wrong?

Owns: lines and back, and an imported data directory. Refuses to know: how a cluster is asked for its state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from dfs.errors import AlreadyExists, StorageCorrupt
from dfs.ids import ChunkHandle, ServerId, SessionId, new_chunk_handle
from dfs.master.chunk_report import Verdict, judge
from dfs.master.export import export_lines, import_pieces
from dfs.master.raft_checkpoint import read_pieces, verify_checkpoint
from dfs.master.raft_journal import Journal
from dfs.master.restore import check_empty, install, load_export
from dfs.master.state.commands import PutServer
from dfs.master.state.machine import MasterState
from dfs.net import messages as m
from dfs.net import parts
from dfs.net.parts import ReplicaReport


@pytest.fixture(scope="module")
def state() -> MasterState:
    """Return a state with something in every table, names that are hard to print among it."""
    made, rng = MasterState(), Random(2)
    servers = [ServerId(bytes([number]) * 16) for number in range(1, 5)]
    for server_id in servers:
        made.apply(1_000, PutServer(server_id, f"c{server_id[0]}", "host:1", "r"))
    calls: Iterator[parts.CallId] = (parts.CallId(SessionId(rng.randbytes(16)), 1, 1) for _ in range(1000))
    paths = ["/a/one", "/a/two", '/a/b\n"c"/\u202e', "/ä/файл", "/d/x", "/d/e/y", "/empty"]
    for number, path in enumerate(paths):
        lengths = (10,) if number % 2 else (10, 20, 5)
        chunks = tuple(parts.NewChunk(ChunkHandle(rng.randbytes(16)), size, 5, tuple(servers[:3])) for size in lengths)
        extents = tuple(parts.NewExtent(index, 0, size) for index, size in enumerate(lengths))
        if path == "/empty":
            chunks, extents = (), ()
        made.apply(2_000 + number, m.CommitFile(next(calls), path, chunks, extents, 2, parents=True))
    part = (parts.NewChunk(ChunkHandle(rng.randbytes(16)), 10, 5, tuple(servers[:2])),)
    made.apply(2_500, m.CommitFile(next(calls), "/part", part, (parts.NewExtent(0, 2, 5),), 2))
    made.apply(3_000, m.MakeDirectory(next(calls), "/a/empty directory"))
    made.apply(3_001, m.Delete(next(calls), "/d", recursive=True))
    made.apply(3_002, m.Delete(next(calls), "/a/one"))
    made.apply(3_003, m.Delete(next(calls), "/a/two", skip_trash=True))
    made.apply(3_004, m.Copy(next(calls), "/a", "/copy", recursive=True))
    assert made.fault is None
    made.check_invariants()
    return made


def exported(state: MasterState) -> list[bytes]:
    return list(export_lines(state.dump(), cluster="demo", log_index=7))


def test_an_imported_state_is_the_exported_one(state: MasterState) -> None:
    other = MasterState()
    other.load(import_pieces(exported(state)))
    other.check_invariants()
    assert exported(other) == exported(state)
    assert list(other.dump()) == list(state.dump())


def test_what_was_stored_after_an_export_is_foreign_to_the_imported_state_and_never_an_orphan(
    state: MasterState,
) -> None:
    stored_ms, imported_ms = 10_000_000, 900_000_000  # days later
    server = ServerId(bytes([1]) * 16)
    other = load_export(exported(state), "file")
    assert other.chunk(ChunkHandle(bytes(16))) is None

    def verdict(allocated_ms: int) -> Verdict:
        handle = new_chunk_handle(allocated_ms)
        return judge(
            ReplicaReport(handle, 10, 5),
            server,
            other.chunk(handle),
            is_garbage=False,
            born_ms=other.born_ms,
            horizon_ms=other.horizon_ms,
        )

    assert not verdict(stored_ms).is_delete, "a leader may hear reports before its first command"
    other.apply(imported_ms, PutServer(server, "c1", "host:2", "r"))
    assert other.horizon_ms > stored_ms, "to a state that was not imported it would be an orphan"
    assert verdict(stored_ms) is Verdict.FOREIGN
    assert verdict(imported_ms + 1) is Verdict.YOUNG


def test_what_was_foreign_to_an_imported_state_is_foreign_to_its_own_import(state: MasterState) -> None:
    """A leader may hear full reports before the first command of the new life."""
    first = load_export(exported(state), "file")
    stored_ms = first.clock_ms + 1
    server = ServerId(bytes([1]) * 16)
    first.apply(first.clock_ms + 1000, PutServer(server, "c1", "host:1", "r"))
    first.apply(first.clock_ms + 2 * first.orphan_grace_ms, PutServer(server, "c1", "host:2", "r"))
    assert stored_ms < first.born_ms < first.horizon_ms
    second = load_export(exported(first), "file")
    report = ReplicaReport(new_chunk_handle(stored_ms), 10, 5)
    for known in (first, second):
        found = judge(report, server, None, is_garbage=False, born_ms=known.born_ms, horizon_ms=known.horizon_ms)
        assert found is Verdict.FOREIGN


def test_every_line_is_json_and_the_last_one_counts_them(state: MasterState) -> None:
    lines = exported(state)
    records = [json.loads(line) for line in lines]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    assert (records[0]["type"], records[0]["cluster"], records[0]["log_index"]) == ("header", "demo", 7)
    assert records[-1]["type"] == "end"
    assert sum(records[-1]["counts"].values()) == len(lines) - 1
    assert {record["type"] for record in records[1:-1]} == {
        "server", "chunk", "garbage", "trash", "directory", "file", "session",
    }  # fmt: skip
    files = {(record["tree"], record["path"]): record for record in records if record["type"] == "file"}
    assert files["live", "/ä/файл"]["size"] == 10
    assert len(files["live", '/a/b\n"c"/\u202e']["extents"]) == 3
    assert ("trash:1", "/e/y") in files
    assert ("trash:2", "/") in files


def test_a_large_state_goes_through_in_pieces_of_bounded_size(state: MasterState) -> None:
    pieces = list(import_pieces(exported(state)))
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 1 << 20


def test_a_damaged_export_is_refused_whole(state: MasterState) -> None:
    lines = exported(state)
    rng = Random(3)
    for _ in range(150):
        number = rng.randrange(len(lines))
        line = bytearray(lines[number])
        position = rng.randrange(len(line) - 1)
        line[position] ^= 1 << rng.randrange(8)
        with pytest.raises(StorageCorrupt, match="nothing was changed"):
            load_export([*lines[:number], bytes(line), *lines[number + 1 :]], "file")


def test_missing_added_and_swapped_lines_are_refused(state: MasterState) -> None:
    lines = exported(state)
    for number in range(len(lines)):
        with pytest.raises(StorageCorrupt):
            load_export([*lines[:number], *lines[number + 1 :]], "file")
    for wrong in (
        [],
        lines[:1],
        [*lines, lines[-1]],
        [lines[0], *lines],
        [lines[0], *reversed(lines[1:-1]), lines[-1]],
    ):
        with pytest.raises(StorageCorrupt, match="nothing was changed"):
            load_export(wrong, "file")
    with pytest.raises(StorageCorrupt, match="line 1 of the export is damaged or not of one"):
        load_export([b"hello\n"], "file")
    number = next(number for number, line in enumerate(lines) if json.loads(line).get("extents"))
    record = json.loads(lines[number])
    record["extents"][0][1] = 1 << 40
    with pytest.raises(StorageCorrupt, match=f"line {number + 1} of the export is damaged or not of one"):
        load_export([*lines[:number], json.dumps(record).encode() + b"\n", *lines[number + 1 :]], "file")


def test_an_installed_state_is_what_a_master_starts_from(state: MasterState, tmp_path: Path) -> None:
    size = install(state, tmp_path / "m1", "m1")
    (checkpoint,) = (tmp_path / "m1" / "raft" / "checkpoints").iterdir()
    assert checkpoint.stat().st_size == size
    head = verify_checkpoint(checkpoint)
    other = MasterState()
    other.load(read_pieces(checkpoint))
    assert exported(other) == exported(state)
    journal = Journal(tmp_path / "m1" / "raft" / "log", name="m1", fsync=False)
    journal.close()
    assert (journal.term, journal.vote, journal.entries) == (1, None, [head.previous, head.last])


def test_masters_get_the_same_checkpoint_byte_for_byte(state: MasterState, tmp_path: Path) -> None:
    for name in ("m1", "m2"):
        install(load_export(exported(state), "file"), tmp_path / name, name)
    first, second = (next((tmp_path / name / "raft" / "checkpoints").iterdir()) for name in ("m1", "m2"))
    assert first.read_bytes() == second.read_bytes()


def test_a_data_directory_in_use_is_never_touched(state: MasterState, tmp_path: Path) -> None:
    install(state, tmp_path / "m1", "m1")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlreadyExists, match="move every data_dir of theirs away first"):
        install(state, tmp_path / "m1", "m1")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_import_left_does_not_stand_in_the_way(state: MasterState, tmp_path: Path) -> None:
    (tmp_path / "m1" / "raft.import" / "log").mkdir(parents=True)
    check_empty(tmp_path / "m1", "m1")
    install(state, tmp_path / "m1", "m1")
    assert [path.name for path in (tmp_path / "m1").iterdir()] == ["raft"]
