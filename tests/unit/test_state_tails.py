"""Does the replicated state keep tails and appenders right: opened, sealed, remembered, dumped, and in nobody's way?"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from dfs.errors import Conflict, InvalidArgument, LimitExceeded, NotFound, QuotaExceeded, TailOpen
from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.export import export_lines
from dfs.master.restore import load_export
from dfs.master.state import tails as limits
from dfs.master.state.commands import BeginTail, ChangeReplicas, CommitTail, ForgetAppenders, PutServer, ReplicaChange
from dfs.master.state.machine import MasterState
from dfs.net import messages as m
from dfs.net import parts
from dfs.net.parts import AppenderState

SERVERS = tuple(ServerId(bytes([number]) * 16) for number in (1, 2, 3))
A, B = b"a" * 16, b"b" * 16
DAY_MS = 24 * 60 * 60 * 1000
NOW_MS = 10 * DAY_MS


class Master:
    """A state with three servers, and one client."""

    def __init__(self) -> None:
        self.state = MasterState()
        self.now_ms = NOW_MS
        self.sequence = 0
        self._handles = itertools.count(1)
        for number, server_id in enumerate(SERVERS):
            self.apply(PutServer(server_id, f"c{number}", f"host:{number}", "r1"))

    def apply(self, command: m.Message) -> m.Message:
        reply = self.state.apply(self.now_ms, command)
        assert self.state.fault is None, self.state.fault
        self.state.check_invariants()
        return reply

    def call(self, command: type[m.Mutation], *args: Any, again: bool = False, **kwargs: Any) -> m.Message:
        self.sequence += not again
        make: Callable[..., m.Message] = command
        return self.apply(make(parts.CallId(SessionId(b"s" * 16), self.sequence, self.sequence), *args, **kwargs))

    def handle(self) -> ChunkHandle:
        return ChunkHandle(b"%010d" % next(self._handles) + self.now_ms.to_bytes(6, "big"))

    def begin(self, path: str = "/log", **changed: Any) -> m.Message:
        status = self.state.stat(path) if self.exists(path) else None
        inode, version = (status.inode, status.version) if status is not None else (0, 0)
        fields = {"path": path, "inode": inode, "version": version, "handle": self.handle(), "servers": SERVERS}
        return self.apply(BeginTail(**{**fields, "size_max": 100, "reserves": True, **changed}))

    def commit(self, length: int, *appenders: AppenderState, path: str = "/log", **changed: Any) -> m.Message:
        tail = self.state.tails.at(path)
        handle = tail.handle if tail is not None else self.handle()
        fields = {"path": path, "handle": handle, "length": length, "crc": 7 if length else 0}
        fields |= {"servers": SERVERS if length else (), "appenders": appenders, "closed": ()}
        return self.apply(CommitTail(**{**fields, **changed}))

    def exists(self, path: str) -> bool:
        try:
            self.state.stat(path)
        except NotFound:
            return False
        return True


@pytest.fixture
def master() -> Master:
    return Master()


def refusal(reply: m.Message) -> str:
    assert isinstance(reply, m.ErrorReply), reply
    return reply.code


def test_a_sealed_tail_is_the_new_end_of_its_file(master: Master) -> None:
    assert master.begin() == m.Done()
    assert master.commit(60) == m.Done()
    assert master.begin() == m.Done()
    assert master.commit(40) == m.Done()
    view = master.state.extents("/log", 0, 10, 0)
    assert [extent.length for extent in view.extents] == [60, 40]
    assert (view.status.size, view.status.extent_count) == (100, 2)


def test_a_tail_without_records_leaves_the_file_as_it_was(master: Master) -> None:
    master.begin()
    before = master.state.stat("/log")
    assert master.commit(0) == m.Done()
    assert master.state.stat("/log") == before
    assert master.state.tails.at("/log") is None


def test_a_file_has_one_tail_and_a_tail_is_sealed_once(master: Master) -> None:
    master.begin()
    assert refusal(master.begin()) == Conflict.code
    tail = master.state.tails.at("/log")
    assert tail is not None
    master.commit(10)
    assert refusal(master.commit(20, handle=tail.handle)) == Conflict.code
    master.begin()
    assert refusal(master.commit(20, handle=tail.handle)) == Conflict.code, "the next tail is not the last one"
    assert master.state.stat("/log").size == 10


def test_a_tail_begins_only_on_the_file_whose_appenders_were_read(master: Master) -> None:
    master.begin()
    master.commit(10)
    status = master.state.stat("/log")
    assert refusal(master.begin(version=status.version - 1)) == Conflict.code
    assert refusal(master.begin(inode=0, version=0)) == Conflict.code
    assert refusal(master.begin(path="/other", inode=status.inode, version=status.version)) == Conflict.code


def test_impossible_tails_and_seals_are_refused(master: Master) -> None:
    assert refusal(master.begin(handle=ChunkHandle(b"short"))) == InvalidArgument.code
    assert refusal(master.begin(servers=())) == InvalidArgument.code
    assert refusal(master.begin(servers=(SERVERS[0], SERVERS[0]))) == InvalidArgument.code
    assert refusal(master.begin(servers=(ServerId(b"?" * 16),))) == InvalidArgument.code
    master.begin(servers=SERVERS[:2])
    assert refusal(master.commit(10, servers=SERVERS)) == InvalidArgument.code, "one was not in the chain"
    assert refusal(master.commit(10, servers=())) == InvalidArgument.code
    assert master.commit(10, servers=SERVERS[1:2]) == m.Done()


def test_only_a_tail_from_before_an_import_is_sealed_outside_its_chain(master: Master) -> None:
    master.begin(servers=SERVERS[:2])
    assert refusal(master.commit(10, servers=SERVERS[2:])) == InvalidArgument.code
    tail = master.state.tails.at("/log")
    assert tail is not None
    imported = Master()
    imported.state = load_export(export_lines(master.state.dump(), cluster="demo", log_index=7), "file")
    imported.now_ms = NOW_MS + 1
    assert imported.commit(10, servers=SERVERS[2:]) == m.Done()
    chunk = imported.state.chunk(tail.handle)
    assert chunk is not None
    assert chunk.servers == SERVERS[2:]


def test_a_tail_allocated_before_the_horizon_is_refused_and_a_known_one_never_is(master: Master) -> None:
    old = master.handle()
    master.begin("/known", handle=master.handle())
    master.now_ms += 2 * DAY_MS
    assert refusal(master.begin(handle=old)) == Conflict.code
    assert master.commit(10, path="/known") == m.Done(), "what was acknowledged is taken in, however old its chunk is"


@pytest.mark.parametrize(
    ("command", "args"),
    [
        (m.Delete, ("/d/log",)),
        (m.Delete, ("/d", True)),
        (m.Rename, ("/d", "/e")),
        (m.Rename, ("/d/log", "/e")),
        (m.Rename, ("/other", "/d/log", True)),
        (m.Copy, ("/d/log", "/e")),
        (m.Copy, ("/d", "/e", True)),
        (m.CommitFile, ("/d/log", (), (), 3, True)),
        (m.AppendExtents, ("/d/log", (), ())),
        (m.CommitMany, ((), (parts.PackedFile("/d/log", ()),), 3, True)),
        (m.CreateSnapshot, ("/d", "s")),
        (m.Concat, ("/other", ("/d/log",))),
        (m.SetReplication, ("/d/log", 2)),
    ],
)
def test_what_needs_a_sealed_file_waits_for_the_seal_under_the_same_call(
    master: Master, command: type[m.Mutation], args: tuple[Any, ...]
) -> None:
    master.call(m.MakeDirectory, "/d")
    master.call(m.Touch, "/other")
    master.begin("/d/log")
    assert refusal(master.call(command, *args)) == TailOpen.code
    assert refusal(master.call(command, *args, again=True)) == TailOpen.code, "the refusal is not the call's outcome"
    master.commit(10, path="/d/log")
    reply = master.call(command, *args, again=True)
    assert not isinstance(reply, m.ErrorReply), reply
    assert master.call(command, *args, again=True) == reply, "and the outcome is remembered"


def test_a_growing_file_is_not_located_among_many(master: Master) -> None:
    master.call(m.MakeDirectory, "/d")
    master.call(m.Touch, "/d/still")
    master.begin("/d/log")
    for path, above in (("/d", ""), ("/", "d/")):
        located = {name: extents for name, _, extents in master.state.content_below(path, "")}
        assert located.pop("d", ()) == ()
        assert located == {f"{above}log": None, f"{above}still": ()}


def test_what_does_not_touch_the_content_goes_on(master: Master) -> None:
    master.call(m.MakeDirectory, "/d")
    master.begin("/d/log")
    for command, args in (
        (m.Touch, ("/d/log",)),
        (m.MakeDirectory, ("/d/e",)),
        (m.Copy, ("/d/e", "/d/f", True)),
        (m.Delete, ("/d/e", True)),
    ):
        assert not isinstance(reply := master.call(command, *args), m.ErrorReply), reply
    assert master.commit(10, path="/d/log") == m.Done()


def test_appenders_are_remembered_across_tails_renames_and_new_content(master: Master) -> None:
    master.begin()
    master.commit(10, AppenderState(A, 3, (4, 8)), AppenderState(B, 1, (0,)))
    inode = master.state.stat("/log").inode
    master.call(m.Rename, "/log", "/moved")
    master.begin("/moved")
    master.commit(10, AppenderState(A, 5, (18,)), path="/moved", closed=(B,))
    master.call(m.CommitFile, "/moved", (), (), 3, True)
    assert master.state.tails.seeds(inode) == (AppenderState(A, 5, (18,)),)


def test_silent_appenders_are_forgotten_after_their_time_and_others_are_not(master: Master) -> None:
    master.begin()
    master.commit(10, AppenderState(A, 3, ()))
    inode = master.state.stat("/log").inode
    master.now_ms += DAY_MS // 2
    master.begin()
    master.commit(10, AppenderState(B, 1, ()))
    master.now_ms += DAY_MS // 2
    master.apply(ForgetAppenders(DAY_MS, 10))
    assert master.state.tails.seeds(inode) == (AppenderState(B, 1, ()),)
    assert not master.state.tails.has_silent(DAY_MS, master.state.clock_ms)


def test_limits_of_tails_and_appenders_hold(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OPEN_TAILS_MAX", 1)
    master.begin("/a")
    assert refusal(master.begin("/b")) == LimitExceeded.code
    assert not master.exists("/b")
    master.commit(10, AppenderState(A, 1, ()), path="/a")
    monkeypatch.setattr(limits, "REMEMBERED_MAX", 1)
    assert refusal(master.begin("/b")) == LimitExceeded.code


def test_a_reader_of_an_earlier_version_goes_on_while_records_are_appended(master: Master) -> None:
    master.begin()
    master.commit(10)
    version = master.state.stat("/log").version
    master.begin()
    master.commit(10)
    master.begin()
    master.commit(10)
    assert len(master.state.extents("/log", 0, 10, version).extents) == 3
    master.call(m.CommitFile, "/log", (), (), 3, True)
    replaced = master.state.stat("/log").version
    master.begin()
    master.commit(10)
    with pytest.raises(Conflict):
        master.state.extents("/log", 0, 10, version)
    assert len(master.state.extents("/log", 0, 10, replaced).extents) == 1


def test_dumps_and_exports_keep_tails_and_appenders(master: Master) -> None:
    master.begin("/a")
    master.commit(10, AppenderState(A, 3, (4, 8)), AppenderState(B, 1, (0,)), path="/a")
    master.begin("/a")
    master.begin("/empty")
    master.commit(0, path="/empty")
    loaded = MasterState()
    loaded.load(master.state.dump())
    imported = load_export(export_lines(master.state.dump(), cluster="demo", log_index=7), "file")
    for other in (loaded, imported):
        other.check_invariants()
        assert list(other.dump())[1:] == list(master.state.dump())[1:], "all but when its life began"
        assert other.tails.all() == master.state.tails.all()
        assert other.tails.seeds(other.stat("/a").inode) == master.state.tails.seeds(master.state.stat("/a").inode)


def test_what_is_kept_of_files_without_appenders_is_bounded(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDLE_HISTORIES_MAX", 3)
    before = {}
    for path in ("/a", "/b", "/c", "/d", "/e"):
        master.begin(path)
        master.commit(5, path=path)
        before[path] = master.state.stat(path).version
        if path == "/d":
            loaded = MasterState()
            loaded.load(master.state.dump())
            master.state = loaded
        if path == "/c":  # longer unused than the others, but for this
            master.begin("/a")
            master.commit(5, AppenderState(A, 1, (5,)), path="/a")
            master.begin("/a")
            master.commit(5, path="/a", closed=(A,))
    assert [inode for inode, _ in master.state.tails.histories()] == [
        master.state.stat(path).inode for path in ("/a", "/d", "/e")
    ]
    assert master.state.extents("/a", 0, 10, before["/a"]).extents, "a reader that began before goes on"
    assert master.state.fault is None


# --- quotas


def test_a_tail_has_the_room_of_all_quotas_reserved(master: Master) -> None:
    """Whatever it comes to, sealing it passes no quota; nobody else gets what it may still take."""
    master.call(m.MakeDirectory, "/d/e", True)
    master.call(m.SetQuota, "/d", 0, 1000)
    master.call(m.SetQuota, "/d/e", 0, 900)
    assert refusal(master.begin("/d/e/log", size_max=301)) == QuotaExceeded.code
    assert master.begin("/d/e/log", size_max=300) == m.Done()
    assert (master.state.room_at("/d/e/x"), master.state.room_at("/d/x")) == ((0, "/d/e"), (100, "/d"))
    assert master.state.room_at("/x") == (0, "")
    assert refusal(master.begin("/d/other", size_max=34)) == QuotaExceeded.code
    assert master.begin("/d/other", size_max=33) == m.Done()
    master.commit(10, path="/d/other")
    assert master.state.room_at("/d/x") == (70, "/d")
    master.commit(300, path="/d/e/log")
    assert master.state.room_at("/d/e/x") == (0, "/d/e")
    assert refusal(master.begin("/d/e/log", size_max=1)) == QuotaExceeded.code


def test_a_command_of_an_earlier_version_reserves_nothing(master: Master) -> None:
    """It stands in the journal, and was carried out when it came: what was appended since must not be lost now."""
    master.call(m.MakeDirectory, "/d")
    master.call(m.SetQuota, "/d", 0, 200)
    assert refusal(master.begin("/d/log")) == QuotaExceeded.code
    assert master.begin("/d/log", reserves=False) == m.Done()
    assert master.state.room_at("/d/x") == (200, "/d")
    assert master.commit(100, path="/d/log") == m.Done()


def test_a_replication_that_an_earlier_version_set_on_an_open_tail_is_set_when_its_journal_is_read_again(
    master: Master,
) -> None:
    master.call(m.MakeDirectory, "/d")
    master.begin("/d/log", reserves=False)
    assert master.call(m.SetReplication, "/d/log", 2) == m.SetReplicationReply(1)
    master.commit(10, path="/d/log")
    assert master.state.stat("/d/log").replication == 2


def test_what_is_reserved_is_in_every_dump(master: Master) -> None:
    master.call(m.MakeDirectory, "/d")
    master.call(m.SetQuota, "/d", 0, 1000)
    master.begin("/d/log", size_max=300)
    loaded = MasterState()
    loaded.load(master.state.dump())
    imported = load_export(export_lines(master.state.dump(), cluster="demo", log_index=7), "file")
    for other in (loaded, imported):
        other.check_invariants()
        assert other.room_at("/d/x") == (100, "/d")


def test_a_chain_that_lost_its_last_server_gives_the_reserved_room_back(master: Master) -> None:
    master.call(m.MakeDirectory, "/d")
    master.call(m.SetQuota, "/d", 0, 1000)
    master.begin("/d/log", size_max=300)
    tail = master.state.tails.at("/d/log")
    assert tail is not None
    for server_id in SERVERS:
        assert master.state.room_at("/d/x") == (100, "/d")
        master.apply(ChangeReplicas(server_id, (ReplicaChange(tail.handle, is_added=False),)))
    assert master.state.room_at("/d/x") == (1000, "/d")
