"""Do features that were made apart agree in the replicated state: tails, packs, snapshots, quotas, trims?

Owns: histories that mix all commands, on two masters one of which is dumped and loaded, and the cases found that way.
Refuses to know: the naive judge (tests/unit/test_state_model.py), which knows no tails.
"""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from dfs.errors import DfsError, InvalidName
from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.export import export_lines, import_pieces
from dfs.master.state import sharing, tails
from dfs.master.state.commands import (
    BeginTail,
    CommitTail,
    ExpireSessions,
    ExpireTrash,
    ForgetAppenders,
    PutServer,
    encode_command,
)
from dfs.master.state.machine import MasterState
from dfs.master.state.tails import named_paths
from dfs.net import messages as m
from dfs.net import parts
from dfs.paths import join
from dfs.testing.naive_state import NaiveFile
from dfs.testing.state_commands import KEEP_MS, SESSIONS, Chooser, tree_of, without_sessions
from dfs.testing.state_commands import SERVERS as MODEL_SERVERS

SERVERS = tuple(ServerId(bytes([number]) * 16) for number in (1, 2, 3))
SESSION = SessionId(b"s" * 16)


class Master:
    """A state with three servers, and one client."""

    def __init__(self) -> None:
        self.state = MasterState()
        self.sequence = 0
        for number, server_id in enumerate(SERVERS):
            self.apply(PutServer(server_id, f"c{number}", f"host:{number}", "r1"))

    def apply(self, command: m.Message) -> m.Message:
        reply = self.state.apply(1000, command)
        assert self.state.fault is None, self.state.fault
        self.state.check_invariants()
        return reply

    def call(self) -> parts.CallId:
        self.sequence += 1
        return parts.CallId(SESSION, self.sequence, self.sequence)


def chunk(number: int, length: int = 10) -> parts.NewChunk:
    return parts.NewChunk(ChunkHandle(number.to_bytes(16, "big")), length, 7, SERVERS)


def whole(length: int = 10) -> tuple[parts.NewExtent, ...]:
    return (parts.NewExtent(0, 0, length),)


def test_no_commit_takes_the_handle_of_an_open_tail() -> None:
    master, item = Master(), chunk(1)
    assert master.apply(BeginTail("/log", 0, 0, item.handle, SERVERS, 100)) == m.Done()
    taken = [
        m.CommitFile(master.call(), "/thief", (item,), whole(), 3),
        m.AppendExtents(master.call(), "/thief", (item,), whole(), True),
        m.CommitMany(master.call(), (item,), (parts.PackedFile("/thief", whole()),), 3),
    ]
    for command in taken:
        reply = master.apply(command)
        assert isinstance(reply, m.ErrorReply)
        assert reply.code == "chunk_exists"
    assert master.apply(CommitTail("/log", item.handle, 5, 9, SERVERS, (), ())) == m.Done()
    view = master.state.chunk(item.handle)
    assert view is not None
    assert (view.length, view.crc, view.reference_count) == (5, 9, 1)


def test_a_pack_waits_for_a_large_directory_that_two_live_trees_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "AT_ONCE_MAX", 1)
    monkeypatch.setattr(sharing, "STEP_MAX", 1)
    master = Master()
    for name in ("", "/a", "/b", "/c"):
        master.apply(m.MakeDirectory(master.call(), f"/d/sub{name}", True))
    master.apply(m.CreateSnapshot(master.call(), "/d", "s"))
    while isinstance(master.apply(rename := m.Rename(master.call(), "/d/sub", "/moved")), m.ErrorReply):
        pass
    assert rename.target == "/moved"
    assert isinstance(master.apply(m.RestoreSnapshot(master.call(), "/d", "s", "sub")), m.StatReply)
    master.apply(m.RemoveSnapshot(master.call(), "/d", "s"))
    while master.state.next_trash_expiry_ms() is not None:
        master.apply(ExpireTrash(1))
    pack = m.CommitMany(master.call(), (chunk(1),), (parts.PackedFile("/moved/f", whole()),), 3)
    codes = []
    while isinstance(reply := master.apply(pack), m.ErrorReply):
        codes.append(reply.code)
        assert len(codes) < 10
    assert set(codes) == {"overloaded"}
    assert reply == m.CommitManyReply(())
    assert master.state.stat("/moved/f").size == 10


@pytest.mark.parametrize("path", ["/log/", "/d//", "/d/../log"])
def test_a_path_that_can_be_none_waits_for_no_tail(path: str) -> None:
    master = Master()
    master.apply(m.MakeDirectory(master.call(), "/d"))
    for number, known in enumerate(("/log", "/d/log"), 1):
        assert master.apply(BeginTail(known, 0, 0, chunk(number).handle, SERVERS, 100)) == m.Done()
    reply = master.apply(m.Delete(master.call(), path, True))
    assert isinstance(reply, m.ErrorReply)
    assert reply.code == InvalidName.code, "no seal would help: the leader would try it for ever"


# --- all commands together ---------------------------------------------------------------------------


def scenery(state: MasterState) -> Any:
    """Return what a Chooser wants to know of a state."""
    snapshots: dict[str, dict[str, Any]] = {}
    for item in state.list_snapshots("/", ("", ""))[0]:
        tree = _nodes(state, join(join(item.directory, ".snapshot"), item.name))
        shelf = snapshots.setdefault(item.directory, {})
        shelf[item.name] = SimpleNamespace(tree={"" if path == "/" else path: node for path, node in tree.items()})
    trash = {entry.trash_id: entry for entry in state.list_trash(0, 1000)[0]}
    chunks = {handle: state.chunk(handle) for handle in state.chunk_handles()}
    return SimpleNamespace(tree=_nodes(state), snapshots=snapshots, trash=trash, chunks=chunks)


def _nodes(state: MasterState, root: str = "") -> dict[str, NaiveFile | int]:
    return {
        path: shape if isinstance(shape, int) else NaiveFile(*shape)  # type: ignore[misc]  # as tree_of makes them
        for path, shape in tree_of(state, root).items()
    }


class TailChooser(Chooser):
    """Draws commands of tails, too."""

    def __init__(self, rng: Random, state: MasterState) -> None:
        super().__init__(rng, scenery(state))
        self.state = state

    def tail(self) -> m.Message:
        rng, opened = self.rng, self.state.tails.all()
        what = rng.randrange(12)
        if what == 0:
            return ForgetAppenders(rng.choice([0, 1, 900, 5_000]), rng.choice([0, 1, 9]))
        if what == 1:
            return ExpireSessions(rng.choice([0, 60_000]), 1)
        if what < 7 or not opened:
            return self.begin()
        return self.seal(rng.choice(opened).path, is_sound=rng.random() < 0.9)

    def begin(self) -> BeginTail:
        rng, path = self.rng, self.path(fresh=self.rng.random() < 0.3)
        try:
            status = self.state.stat(path)
            inode, version = status.inode, status.version
        except DfsError:
            inode = version = 0
        handle = ChunkHandle(self.next_number.to_bytes(16, "big"))
        self.next_number += 1
        servers = rng.sample(MODEL_SERVERS[:3], rng.randint(1, 3))
        return BeginTail(
            path, inode, version + (rng.random() < 0.05), rng.choice([handle] * 9 + [self.handle()]), (*servers,), 9
        )

    def seal(self, path: str, *, is_sound: bool = True) -> CommitTail:
        """Seal an open tail in a way that must succeed, or one that may not."""
        rng, tail = self.rng, self.state.tails.at(path)
        assert tail is not None
        length = rng.choice([0, 1, 5, 9])
        servers = tail.servers[rng.randrange(len(tail.servers)) :] if length else ()
        ids = [bytes([number]) * 16 for number in range(4)]
        known = [parts.AppenderState(name, rng.randrange(9), (rng.randrange(9),)) for name in rng.sample(ids, 2)]
        handle = tail.handle if is_sound else self.handle()
        return CommitTail(path, handle, length, 5 if length else 0, servers, (*known,), (*rng.sample(ids, 2),))


class Mixture:
    """Two masters fed the same commands; the second is dumped and loaded at times."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.reloads_always = rng.random() < 0.2
        self.first, self.second = (MasterState(trash_keep_ms=KEEP_MS, replication=2) for _ in range(2))
        self.chooser = TailChooser(rng, self.first)
        self.now_ms = 1_000
        self.sequences = dict.fromkeys(SESSIONS, 0)
        for server_id in MODEL_SERVERS[:3]:
            self.apply_once(PutServer(server_id, "c", "h:1", "rack"))

    def apply_once(self, command: m.Message) -> m.Message:
        reply = self.first.apply(self.now_ms, command)
        assert self.first.fault is None, self.first.fault
        assert self.second.apply_encoded(encode_command(self.now_ms, command)) == reply
        if self.reloads_always:
            self.reload()
        return reply

    def reload(self) -> None:
        pieces = list(self.second.dump())
        assert list(import_pieces(list(export_lines(pieces, cluster="c", log_index=1)))) == pieces
        self.second = MasterState()
        self.second.load(pieces)
        assert list(self.second.dump()) == pieces

    def step(self) -> None:
        chooser, first = self.chooser, self.first
        chooser.judge = scenery(first)
        what, session, passed_ms, extra = chooser.step()
        if self.rng.random() < 0.35:
            what = chooser.tail()
        self.now_ms += passed_ms
        if isinstance(what, m.Message):
            command = what
        else:
            self.sequences[session] += 1
            sequence = self.sequences[session]
            command = what(parts.CallId(session, sequence, max(1, sequence - 3)))
        before = without_sessions(first)
        has_waited = self.waits
        reply = self.apply(command)
        if isinstance(reply, m.ErrorReply):
            assert self.waits > has_waited or without_sessions(first) == before, "an error changed something"
        elif isinstance(command, m.Mutation):
            after = list(first.dump())
            assert self.apply_once(command) == reply
            assert list(first.dump()) == after, "a replay changed something"
        if extra == "reload":
            self.reload()
        first.check_invariants()
        self.second.check_invariants()

    waits = 0

    def apply(self, command: m.Message) -> m.Message:
        """Apply a command as a leader does: tails in its way are sealed, and it comes again."""
        first = self.first
        reply = self.apply_once(command)
        for _ in range(1000):
            code = reply.code if isinstance(reply, m.ErrorReply) else ""
            if code == "tail_open":
                assert isinstance(command, m.Mutation)
                for tail in [tail for path in named_paths(command) for tail in first.tails.below(path)]:
                    if first.tails.at(tail.path) == tail:
                        assert self.apply(self.chooser.seal(tail.path)) == m.Done(), "a seal was refused"
            elif code != "overloaded":
                return reply
            self.waits += 1
            first.check_invariants()
            reply = self.apply_once(command)
        raise AssertionError(f"{command} never came through")


def _mix(rng: Random, count: int) -> None:
    mixture = Mixture(rng)
    for _ in range(count):
        mixture.step()
    assert list(mixture.first.dump()) == list(mixture.second.dump())


@pytest.mark.parametrize("seed", range(12))
def test_all_commands_mixed_give_the_same_on_a_master_that_was_loaded(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:
        monkeypatch.setattr(sharing, "AT_ONCE_MAX", 1)
        monkeypatch.setattr(sharing, "STEP_MAX", 1)
    monkeypatch.setattr(tails, "IDLE_HISTORIES_MAX", 2)
    _mix(Random(seed), 80)
