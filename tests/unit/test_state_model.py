"""Does the replicated state do, on any sequence of commands, exactly what the naive judge does?

Owns: random histories with replays, interleaved sessions, dumps and loads. Refuses to know: the state's insides.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfs.ids import ServerId, SessionId
from dfs.master.export import export_lines, import_pieces
from dfs.master.state import sharing
from dfs.master.state.commands import PutServer, encode_command
from dfs.master.state.machine import MasterState
from dfs.net import messages as m
from dfs.net import parts
from dfs.paths import join
from dfs.testing.naive_snapshots import NaiveWholeState
from dfs.testing.naive_state import NaiveFile
from dfs.testing.state_commands import KEEP_MS, SERVERS, SESSIONS, Chooser, tree_of, without_sessions


class History:
    """Two masters and the judge, fed the same commands; one of the masters is dumped and loaded at times."""

    def __init__(self, *, reloads_always: bool = False) -> None:
        self.reloads_always = reloads_always
        self.first, self.second = (MasterState(trash_keep_ms=KEEP_MS, replication=2) for _ in range(2))
        self.judge = NaiveWholeState(trash_keep_ms=KEEP_MS, replication=2)
        self.now_ms = 1_000
        self.sequences = dict.fromkeys(SESSIONS, 0)
        for server_id in SERVERS[:3]:
            self.apply(PutServer(server_id, "c", "h:1", "rack"))

    def apply(self, command: m.Message) -> m.Message:
        reply = self.apply_once(command)
        while isinstance(reply, m.ErrorReply) and reply.code == "overloaded":  # a large directory is being copied
            self.first.check_invariants()
            reply = self.apply_once(command)
        expected = self.judge.apply(self.now_ms, command)
        assert (reply.code if isinstance(reply, m.ErrorReply) else "") == expected, (command, reply)
        assert self.first.fault is None
        if isinstance(reply, m.CommitManyReply):
            assert [(failure.index, failure.code) for failure in reply.failures] == self.judge.failures
        return reply

    def apply_once(self, command: m.Message) -> m.Message:
        reply = self.first.apply(self.now_ms, command)
        assert self.second.apply_encoded(encode_command(self.now_ms, command)) == reply
        if self.reloads_always:
            self.reload()
        return reply

    def reload(self) -> None:
        pieces = list(self.second.dump())
        assert list(import_pieces(list(export_lines(pieces, cluster="c", log_index=1)))) == pieces
        loading = self.second.begin_load(pieces)
        while not loading.step():
            pass
        loading.install()
        while not loading.step():
            pass  # the old state is taken apart, shared subtrees and all
        assert list(self.second.dump()) == pieces

    def step(self, make: Any, session: SessionId, passed_ms: int, extra: str) -> None:
        self.now_ms += passed_ms
        before = without_sessions(self.first)
        if isinstance(make, m.Message):
            command = make
            self.apply(command)
        else:
            self.sequences[session] += 1
            sequence = self.sequences[session]
            command = make(parts.CallId(session, sequence, max(1, sequence - 3)))
            reply = self.apply(command)
            if isinstance(reply, m.ErrorReply):
                assert without_sessions(self.first) == before, "an error changed something"
            if extra == "replay":
                after = list(self.first.dump())
                assert self.first.apply(self.now_ms, command) == reply
                assert self.second.apply(self.now_ms, command) == reply
                assert list(self.first.dump()) == after, "a replay changed something"
        if extra == "reload":
            self.reload()
        self.first.check_invariants()
        self.second.check_invariants()
        self.compare()

    def compare(self) -> None:
        state, judge = self.first, self.judge
        tree = tree_of(state)
        assert tree == {path: _shape(node) for path, node in judge.tree.items()}
        entries, _ = state.list_trash(0, 1000)
        assert [(e.trash_id, e.path, e.size, e.deleted_ms, e.expires_ms) for e in entries] == [
            (number, e.path, judge.size_of(e.tree), e.deleted_ms, e.deleted_ms + judge.trash_keep_ms)
            for number, e in judge.trash.items()
        ]
        used = judge.references()
        assert set(state.chunk_handles()) == set(judge.chunks)
        for handle, chunk in judge.chunks.items():
            view = state.chunk(handle)
            assert view is not None
            assert (view.length, view.crc, view.servers) == (chunk.length, chunk.crc, tuple(sorted(chunk.servers)))
            assert view.goal == max(used[handle])
            if judge.snapshots:  # files that trees share count once
                assert 1 <= view.reference_count <= len(used[handle])
            else:
                assert view.reference_count == len(used[handle])
        assert {item.handle: set(item.servers) for item in state.garbage()} == judge.garbage
        modes = {server.server_id: (server.is_leaving, server.maintenance_until_ms) for server in state.servers()}
        assert modes == {server_id: judge.modes.get(server_id, (False, 0)) for server_id in judge.servers}
        assert state.balance == judge.balance
        tallies: dict[tuple[tuple[ServerId, ...], int], list[int]] = {}
        for handle, chunk in judge.chunks.items():
            tally = tallies.setdefault((tuple(sorted(chunk.servers)), max(used[handle])), [0, 0])
            tally[0] += 1
            tally[1] += chunk.length
        rows = [row for piece in state.replica_tallies() for row in piece]
        assert {(row.servers, row.goal): [row.chunk_count, row.size] for row in rows} == tallies
        self.compare_space()
        self.compare_snapshots()

    def compare_snapshots(self) -> None:
        state, judge = self.first, self.judge
        for path, shelf in judge.snapshots.items():
            for name, snapshot in shelf.items():
                expected = {known or "/": _shape(node) for known, node in snapshot.tree.items()}
                assert tree_of(state, join(join(path, ".snapshot"), name)) == expected
        listed, _ = state.list_snapshots("/", ("", ""))
        assert [(item.directory, item.name, item.created_ms, item.size) for item in listed] == [
            (path, name, snapshot.created_ms, judge.size_of(snapshot.tree))
            for path, shelf in sorted(judge.snapshots.items())
            for name, snapshot in sorted(shelf.items())
        ]
        quotas, _ = state.list_quotas("/", "", is_effective=False)
        assert [(q.path, q.names, q.stored_size, (q.names_used, q.stored_size_used)) for q in quotas] == [
            (path, quota.names, quota.stored_size, judge.used(path)) for path, quota in sorted(judge.quotas.items())
        ]

    def compare_space(self) -> None:
        judge = self.judge
        live = set(SERVERS[:2])
        space = self.first.space(live)
        files = [node for node in judge.tree.values() if isinstance(node, NaiveFile)]
        used = judge.references()
        short = [len(c.servers) < max(used[h]) for h, c in judge.chunks.items()]
        short_live = [len(c.servers & live) < max(used[h]) for h, c in judge.chunks.items()]
        assert space.file_count == len(files)
        assert space.directory_count == len(judge.tree) - len(files) - 1
        assert space.live_size == sum(file.size for file in files)
        assert (space.trash_count, space.trash_size) == (
            len(judge.trash),
            sum(judge.size_of(entry.tree) for entry in judge.trash.values()),
        )
        assert space.chunk_count == len(judge.chunks)
        assert space.chunk_stored_size == sum(c.length * len(c.servers) for c in judge.chunks.values())
        assert (space.under_replicated, space.under_replicated_live) == (sum(short), sum(short_live))
        assert space.missing == sum(not c.servers & live for c in judge.chunks.values())
        assert space.garbage_count == len(judge.garbage)
        kept = [snapshot for shelf in judge.snapshots.values() for snapshot in shelf.values()]
        assert space.snapshot_count == len(kept)
        assert space.snapshot_size == sum(judge.size_of(snapshot.tree) for snapshot in kept)


def _shape(node: NaiveFile | int) -> object:
    return (node.extents, node.replication, node.mtime_ms) if isinstance(node, NaiveFile) else node


def _run(rng: Random, count: int, *, reloads_always: bool = False) -> None:
    history = History(reloads_always=reloads_always)
    chooser = Chooser(rng, history.judge)
    for _ in range(count):
        history.step(*chooser.step())
    assert list(history.first.dump()) == list(history.second.dump())


@pytest.mark.parametrize("seed", range(20))
def test_any_history_gives_what_the_naive_judge_gives(seed: int) -> None:
    _run(Random(seed), 100)


@pytest.mark.parametrize("seed", range(12))
def test_histories_in_which_shared_directories_are_copied_step_by_step_give_the_same(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "AT_ONCE_MAX", 1)
    monkeypatch.setattr(sharing, "STEP_MAX", 1)
    _run(Random(1000 + seed), 100, reloads_always=True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_short_histories_agree_too_and_shrink_when_not(rng: Random, count: int) -> None:
    _run(rng, count)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.binary(max_size=80), st.tuples(st.integers(0, 1 << 63), st.integers(0, 0x900), st.binary(max_size=60)))
)
def test_garbage_in_the_log_is_answered_and_changes_nothing(entry: Any) -> None:
    state = MasterState()
    data = entry if isinstance(entry, bytes) else msgspec.msgpack.encode(entry)
    before = list(state.dump())
    assert isinstance(state.apply_encoded(data), m.Message)
    assert state.fault is None
    state.check_invariants()
    assert list(state.dump())[1:] == before[1:]
