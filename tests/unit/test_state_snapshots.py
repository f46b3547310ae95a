"""Do snapshots, quotas and changes of ranges keep the promises that users rely on, said one by one?

Owns: semantics, costs and limits of these commands by example. Refuses to know: random histories (test_state_model).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, TypeVar

import msgspec
import pytest

from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.export import export_lines, import_pieces
from dfs.master.state import extents as packing
from dfs.master.state import quotas, sharing, snapshot_commands
from dfs.master.state.commands import ExpireTrash, PutServer
from dfs.master.state.machine import MasterState
from dfs.master.state.views import Extent
from dfs.net import messages as m
from dfs.net import parts

SERVERS = [ServerId(bytes([number]) * 16) for number in (1, 2, 3)]
SESSION = SessionId(b"s" * 16)
MessageT = TypeVar("MessageT", bound=m.Message)

# The dump of a state with /d/f, /d/e/g, /i (a copy of /d/f) and /h in the trash, made before there were snapshots.
OLD_DUMP = (
    "000000179a0001cd03e8ce0f731400030802cd03e800ce05265c000000005792019394c41001010101010101010101010101010101a26330a3"
    "683a30a17294c41002020202020202020202020202020202a26331a3683a31a17294c41003030303030303030303030303030303a26332a368"
    "3a32a172000000e792029394c410000000000000000000000000000000010a0793c41001010101010101010101010101010101c41002020202"
    "020202020202020202020202c4100303030303030303030303030303030394c410000000000000000000000000000000020a0793c410010101"
    "01010101010101010101010101c41002020202020202020202020202020202c4100303030303030303030303030303030394c4100000000000"
    "00000000000000000000030a0793c41001010101010101010101010101010101c41002020202020202020202020202020202c4100303030303"
    "03030303030303030303030000000b9205919301a22f68cd03e80000009c9204979800a001cd03e8000000c4009801a16402cd03e8000000c4"
    "009802a16503cd03e8000000c4009803a16705cd03e805030ac410000000000000000000000000000000029802a16604cd03e804030ac41000"
    "0000000000000000000000000000019801a16907cd03e807030ac410000000000000000000000000000000019800a006cd03e806030ac41000"
    "0000000000000000000000000000030000003292069194c4107373737373737373737373737373737306cd03e8919206c4130111919ba22f69"
    "010a1ecd03e80707030100000000000392070f"
)


class Master:
    """A state with three servers and a client that acknowledges each call."""

    def __init__(self) -> None:
        self.state = MasterState(replication=3)
        self.sequence = 0
        self.handles = itertools.count(1)
        for number, server_id in enumerate(SERVERS):
            self.apply(PutServer(server_id, f"c{number}", f"host:{number}", "r1"))

    def apply(self, command: m.Message) -> m.Message:
        return self.state.apply(1_000, command)

    def call(self, command: type[m.Mutation], *args: Any, **kwargs: Any) -> m.Message:
        self.sequence += 1
        make: Callable[..., m.Message] = command
        return self.apply(make(parts.CallId(SESSION, self.sequence, self.sequence), *args, **kwargs))

    def ok(self, reply_type: type[MessageT], command: type[m.Mutation], *args: Any, **kwargs: Any) -> MessageT:
        reply = self.call(command, *args, **kwargs)
        assert isinstance(reply, reply_type), reply
        self.state.check_invariants()
        return reply

    def refused(self, command: type[m.Mutation], *args: Any, **kwargs: Any) -> m.ErrorReply:
        reply = self.call(command, *args, **kwargs)
        assert isinstance(reply, m.ErrorReply), reply
        self.state.check_invariants()
        return reply

    def chunk(self, length: int = 10) -> parts.NewChunk:
        return parts.NewChunk(ChunkHandle(next(self.handles).to_bytes(16, "big")), length, 7, tuple(SERVERS))

    def put(self, path: str, length: int = 10, replication: int = 3) -> ChunkHandle:
        chunk = self.chunk(length)
        reply = self.call(m.CommitFile, path, (chunk,), (parts.NewExtent(0, 0, length),), replication, True, True)
        assert isinstance(reply, m.StatReply), reply
        return chunk.handle

    def write(self, path: str, offset: int, length: int, **kwargs: Any) -> parts.FileStatus:
        chunk, extent = self.chunk(length), parts.NewExtent(0, 0, length)
        return self.ok(m.StatReply, m.WriteRange, path, offset, (chunk,), (extent,), **kwargs).status

    def names(self, path: str = "/") -> list[str]:
        return [entry.path for entry in self.state.list_directory(path, "", 1000)[0]]

    def extents(self, path: str) -> list[Extent]:
        return list(self.state.extents(path, 0, 1000, 0).extents)


@pytest.fixture
def master() -> Master:
    return Master()


def rows_of(state: MasterState, tag: int) -> list[Any]:
    pieces: Iterable[Any] = (msgspec.msgpack.decode(piece) for piece in state.dump())
    return [row for piece in pieces if piece[0] == tag for row in piece[1]]


# --- snapshots


def test_a_snapshot_stays_as_it_was_whatever_happens_to_the_directory(master: Master) -> None:
    kept = master.put("/d/e/f")
    master.put("/d/gone")
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/d", "s")
    master.put("/d/e/f")
    master.ok(m.DeleteReply, m.Delete, "/d/gone", skip_trash=True)
    master.ok(m.StatReply, m.Rename, "/d/e", "/moved")
    master.ok(m.StatReply, m.Touch, "/moved/f", 77)
    master.ok(m.SetReplicationReply, m.SetReplication, "/moved", 1, recursive=True)
    assert master.names("/d") == []
    assert master.names("/d/.snapshot") == ["s"]
    assert master.names("/d/.snapshot/s") == ["e", "gone"]
    status = master.state.stat("/d/.snapshot/s/e/f")
    assert (status.size, status.replication, status.mtime_ms) == (10, 3, 1_000)
    assert master.extents("/d/.snapshot/s/e/f") == [Extent(kept, 0, 10)]


def test_chunks_go_when_the_last_of_file_snapshot_and_trash_goes(master: Master) -> None:
    handle = master.put("/d/f")
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/d", "s")
    master.ok(m.DeleteReply, m.Delete, "/d/f", skip_trash=True)
    assert master.state.chunk(handle) is not None
    master.ok(m.StatReply, m.Copy, "/d/.snapshot/s/f", "/copy")
    master.ok(m.SnapshotReply, m.RemoveSnapshot, "/d", "s")
    assert master.state.chunk(handle) is not None
    master.ok(m.DeleteReply, m.Delete, "/copy", skip_trash=True)
    assert master.state.chunk(handle) is None
    assert master.state.is_garbage(handle)


def calls_during(action: Callable[[], Any]) -> int:
    """Return how many Python functions ran: a measure of work that no other process can disturb."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_making_and_restoring_a_snapshot_takes_no_more_work_for_many_files_than_for_one() -> None:
    def work(files: int) -> tuple[int, int]:
        master = Master()
        for number in range(files):
            master.put(f"/d/{number:04}")
        made = calls_during(lambda: master.call(m.CreateSnapshot, "/d", "s"))
        return made, calls_during(lambda: master.call(m.RestoreSnapshot, "/d", "s", "", "before"))

    for one, many in zip(work(1), work(700), strict=True):
        assert many < one + 50  # a few more where a table of 700 is deeper; not one for each file


def test_a_change_after_a_snapshot_copies_its_directory_once_and_no_other() -> None:
    master = Master()
    for number in range(300):
        master.put(f"/d/big/{number:04}")
    master.put("/d/small/f")
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/d", "s")
    small = calls_during(lambda: master.call(m.Touch, "/d/small/f", 5))
    first, second = (calls_during(lambda: master.call(m.Touch, "/d/big/0000", 5)) for _ in range(2))
    assert second < small < first
    assert first > 300 > second


@pytest.fixture
def large(master: Master, monkeypatch: pytest.MonkeyPatch) -> Master:
    """A snapshot of a directory of ten files, which is too large to be copied at once."""
    monkeypatch.setattr(sharing, "AT_ONCE_MAX", 3)
    monkeypatch.setattr(sharing, "STEP_MAX", 4)
    for number in range(10):
        master.put(f"/d/{number}")
    master.put("/other/f")
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/d", "s")
    return master


def test_a_large_directory_is_copied_in_steps_and_the_call_succeeds_when_it_is_sent_again(large: Master) -> None:
    large.sequence += 1
    touch = m.Touch(parts.CallId(SESSION, large.sequence, large.sequence), "/d/5", 77)
    replies: list[m.Message] = []
    while not replies or isinstance(replies[-1], m.ErrorReply):
        replies.append(large.apply(touch))
        large.state.check_invariants()
    told = [reply.text for reply in replies if isinstance(reply, m.ErrorReply)]
    assert [text[text.index("(") :] for text in told] == [
        f"({count} are done); try again in a moment" for count in (0, 4, 8)
    ]
    assert all(reply.code == "overloaded" for reply in replies if isinstance(reply, m.ErrorReply))
    assert large.apply(touch) == replies[-1], "the outcome is remembered as that of any call"
    assert large.state.stat("/d/5").mtime_ms == 77
    assert large.state.stat("/d/.snapshot/s/5").mtime_ms == 1_000


def test_many_files_into_a_large_directory_wait_together_and_none_fails(large: Master) -> None:
    chunk, extent = large.chunk(10), parts.NewExtent(0, 0, 10)
    files = tuple(parts.PackedFile(path, (extent,)) for path in ("/other/x", "/d/x", "/d/y"))
    replies = [large.call(m.CommitMany, (chunk,), files, 3)]
    while isinstance(replies[-1], m.ErrorReply):
        assert replies[-1].code == "overloaded"
        assert large.names("/other") == ["f"]
        replies.append(large.call(m.CommitMany, (chunk,), files, 3))
    assert replies[-1] == m.CommitManyReply(())
    assert len(replies) == 4
    large.state.check_invariants()


def test_other_calls_and_the_leader_carry_the_copy_on(large: Master) -> None:
    assert large.state.next_trash_expiry_ms() is None
    assert large.refused(m.Touch, "/d/5").code == "overloaded"
    assert large.state.next_trash_expiry_ms() == large.state.clock_ms
    large.ok(m.StatReply, m.Touch, "/other/f")
    large.apply(ExpireTrash(1))
    assert large.state.next_trash_expiry_ms() is None
    large.ok(m.StatReply, m.Touch, "/d/5")


def test_a_copy_in_the_making_survives_a_dump_and_goes_on_alike(large: Master) -> None:
    assert large.refused(m.Touch, "/d/5").code == "overloaded"
    pieces = list(large.state.dump())
    assert list(import_pieces(list(export_lines(pieces, cluster="c", log_index=5)))) == pieces
    other = Master()
    other.state.load(pieces)
    other.state.check_invariants()
    other.sequence = large.sequence
    assert list(other.state.dump()) == pieces
    for _ in range(4):
        assert large.call(m.Touch, "/d/5", 77) == other.call(m.Touch, "/d/5", 77)
        assert list(large.state.dump()) == list(other.state.dump())
    assert other.state.stat("/d/5").mtime_ms == 77


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_copy_that_nobody_needs_any_more_is_given_up(large: Master, steps: int) -> None:
    assert large.refused(m.Touch, "/d/5").code == "overloaded"
    for _ in range(steps):
        large.ok(m.StatReply, m.Touch, "/other/f")
    large.ok(m.SnapshotReply, m.RemoveSnapshot, "/d", "s")
    handle = large.extents("/d/5")[0].handle
    large.ok(m.DeleteReply, m.Delete, "/d/5", skip_trash=True)
    assert large.state.chunk(handle) is None
    large.ok(m.DeleteReply, m.Delete, "/d", recursive=True, skip_trash=True)
    assert len(large.state.chunk_handles()) == 1


def test_a_part_of_a_large_directory_is_restored_after_the_present_was_kept_by_hand(large: Master) -> None:
    reply = large.refused(m.RestoreSnapshot, "/d", "s", "5", "before")
    assert (reply.code, "dfs snapshot create" in reply.text) == ("limit_exceeded", True)
    large.ok(m.SnapshotReply, m.CreateSnapshot, "/d", "before")
    replies = [large.call(m.RestoreSnapshot, "/d", "s", "5") for _ in range(4)]
    assert [isinstance(reply, m.StatReply) for reply in replies] == [False, False, False, True]


def test_a_dump_keeps_what_is_shared_and_loads_to_the_same_dump(master: Master) -> None:
    for number in range(50):
        master.put(f"/d/e/{number:04}")
    before = len(rows_of(master.state, 4))
    for name in ("s", "t", "u"):
        master.ok(m.SnapshotReply, m.CreateSnapshot, "/d", name)
    assert len(rows_of(master.state, 4)) == before + 3
    master.put("/d/new")
    assert len(rows_of(master.state, 4)) == before + 1 + 3 + 1  # the live /d has its own entries, /d/e is still shared
    pieces = list(master.state.dump())
    other = MasterState()
    other.load(pieces)
    other.check_invariants()
    assert list(other.dump()) == pieces
    lines = list(export_lines(pieces, cluster="c", log_index=5))
    assert list(import_pieces(lines)) == pieces


def test_a_dump_from_before_there_were_snapshots_loads() -> None:
    data, pieces = bytes.fromhex(OLD_DUMP), []
    while data:
        size = int.from_bytes(data[:4], "big")
        pieces.append(data[4 : 4 + size])
        data = data[4 + size :]
    state = MasterState()
    state.load(pieces)
    state.check_invariants()
    assert [entry.path for entry in state.list_directory("/d", "", 9)[0]] == ["e", "f"]
    assert state.list_snapshots("/", ("", ""))[0] == ()


def test_nothing_in_a_snapshot_can_be_changed_and_the_error_says_so(master: Master) -> None:
    master.put("/d/f")
    master.put("/x")
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/d", "s")
    inside = "/d/.snapshot/s/f"
    tries: list[tuple[type[m.Mutation], tuple[Any, ...]]] = [
        (m.Delete, (inside,)),
        (m.Touch, (inside,)),
        (m.Truncate, (inside, 1)),
        (m.Rename, (inside, "/y")),
        (m.Rename, ("/x", inside)),
        (m.Copy, ("/x", inside)),
        (m.SetReplication, (inside, 1)),
        (m.Concat, ("/x", (inside,))),
        (m.MakeDirectory, ("/d/.snapshot/s/new",)),
        (m.CommitFile, (inside, (), (), 3, True)),
        (m.SetQuota, ("/d/.snapshot/s", 5)),
        (m.CreateSnapshot, ("/d/.snapshot/s", "t")),
    ]
    for command, arguments in tries:
        reply = master.refused(command, *arguments)
        assert reply.code == "read_only", (command, reply)
        assert "never changes" in reply.text
    reply = master.refused(m.MakeDirectory, "/d/.snapshot")
    assert reply.code == "invalid_name"
    assert "reserved" in reply.text


def test_a_directory_with_snapshots_is_renamed_with_them_but_not_removed(master: Master) -> None:
    master.put("/a/d/f")
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/a/d", "s")
    for path in ("/a", "/a/d"):
        reply = master.refused(m.Delete, path, recursive=True)
        assert reply.code == "has_snapshots"
        assert "'/a/d'" in reply.text
    master.ok(m.StatReply, m.Rename, "/a", "/b")
    assert master.names("/b/d/.snapshot/s") == ["f"]
    master.ok(m.SnapshotReply, m.RemoveSnapshot, "/b/d", "s")
    master.ok(m.DeleteReply, m.Delete, "/b", recursive=True)


def test_restore_brings_back_a_directory_or_a_part_and_keeps_the_present(master: Master) -> None:
    kept = master.put("/d/e/f")
    master.put("/d/g")
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/d", "s")
    master.ok(m.DeleteReply, m.Delete, "/d/e", recursive=True, skip_trash=True)
    newer = master.put("/d/g")
    master.put("/d/h")
    master.ok(m.StatReply, m.RestoreSnapshot, "/d", "s", "e/f")
    assert master.names("/d") == ["e", "g", "h"]
    assert master.extents("/d/e/f") == [Extent(kept, 0, 10)]
    master.ok(m.StatReply, m.RestoreSnapshot, "/d", "s", "", "before")
    assert master.names("/d") == ["e", "g"]
    assert master.names("/d/.snapshot/before") == ["e", "g", "h"]
    assert master.extents("/d/.snapshot/before/g") == [Extent(newer, 0, 10)]
    assert master.refused(m.RestoreSnapshot, "/d", "s", "nope").code == "not_found"
    assert master.refused(m.RestoreSnapshot, "/d", "s", "", "before").code == "already_exists"


def test_the_number_of_snapshots_is_limited(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_commands, "SNAPSHOTS_MAX", 2)
    for name in ("s", "t"):
        master.ok(m.SnapshotReply, m.CreateSnapshot, "/", name)
    assert master.refused(m.CreateSnapshot, "/", "u").code == "limit_exceeded"


# --- quotas


def test_every_command_that_adds_is_stopped_by_a_full_quota_of_names(master: Master) -> None:
    master.put("/x/f")
    for path in ("/q/a", "/q/b"):
        master.put(path)
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/q", "s")
    master.ok(m.DeleteReply, m.Delete, "/q/b")
    master.put("/q/c")
    master.ok(m.QuotaReply, m.SetQuota, "/q", 2)
    tries: list[tuple[type[m.Mutation], tuple[Any, ...]]] = [
        (m.MakeDirectory, ("/q/new",)),
        (m.Touch, ("/q/new",)),
        (m.CommitFile, ("/q/new", (), (), 3)),
        (m.AppendExtents, ("/q/new", (), (), True)),
        (m.Copy, ("/x/f", "/q/new")),
        (m.Copy, ("/x", "/q/new", True)),
        (m.Rename, ("/x/f", "/q/new")),
        (m.Rename, ("/x", "/q/new")),
        (m.Undelete, ("/q/b",)),
        (m.RestoreSnapshot, ("/q", "s", "b")),
    ]
    for command, arguments in tries:
        reply = master.refused(command, *arguments)
        assert reply.code == "quota_exceeded", (command, reply)
        assert "'/q' is 2 files and directories; 2 are there" in reply.text
        assert reply.details == {"directory": "/q"}
    master.ok(m.StatReply, m.Rename, "/q/a", "/q/z")  # within the directory nothing is added
    master.ok(m.StatReply, m.Rename, "/x/f", "/q/z", True)  # one goes, one comes


def test_every_command_that_adds_is_stopped_by_a_full_quota_of_bytes(master: Master) -> None:
    master.put("/x/f", 10)
    master.put("/q/a", 10, replication=2)
    master.ok(m.QuotaReply, m.SetQuota, "/q", -1, 20)
    chunk, extent = master.chunk(1), parts.NewExtent(0, 0, 1)
    tries: list[tuple[type[m.Mutation], tuple[Any, ...]]] = [
        (m.CommitFile, ("/q/new", (chunk,), (extent,), 1)),
        (m.AppendExtents, ("/q/a", (chunk,), (extent,))),
        (m.WriteRange, ("/q/a", 10, (chunk,), (extent,))),
        (m.SetReplication, ("/q/a", 3)),
        (m.SetReplication, ("/", 3, True)),
        (m.Concat, ("/q/a", ("/x/f",))),
        (m.Copy, ("/x/f", "/q/new")),
    ]
    for command, arguments in tries:
        reply = master.refused(command, *arguments)
        assert reply.code == "quota_exceeded", (command, reply)
        assert "20 bytes with all replicas; 20 are used" in reply.text
    master.ok(m.StatReply, m.WriteRange, "/q/a", 9, (chunk,), (extent,))  # as long as before
    master.ok(m.StatReply, m.Truncate, "/q/a", 5)
    master.ok(m.SetReplicationReply, m.SetReplication, "/q/a", 3)


def test_a_quota_follows_a_rename_and_goes_with_its_directory(master: Master) -> None:
    master.put("/a/q/f")
    master.ok(m.QuotaReply, m.SetQuota, "/a/q", 1)
    master.ok(m.StatReply, m.Rename, "/a", "/b")
    assert [quota.path for quota in master.state.list_quotas("/", "", is_effective=False)[0]] == ["/b/q"]
    assert master.refused(m.Touch, "/b/q/new").code == "quota_exceeded"
    assert [q.path for q in master.state.list_quotas("/b/q/f", "", is_effective=True)[0]] == ["/b/q"]
    master.ok(m.DeleteReply, m.Delete, "/b", recursive=True)
    assert master.state.list_quotas("/", "", is_effective=False)[0] == ()


def test_what_is_deleted_or_in_a_snapshot_does_not_count(master: Master) -> None:
    master.put("/q/a")
    master.ok(m.QuotaReply, m.SetQuota, "/q", 1, 30)
    master.ok(m.SnapshotReply, m.CreateSnapshot, "/q", "s")
    master.ok(m.DeleteReply, m.Delete, "/q/a")
    master.put("/q/b")
    quota = master.state.list_quotas("/q", "", is_effective=False)[0][0]
    assert (quota.names_used, quota.stored_size_used) == (1, 30)


def test_a_limit_below_the_use_only_stops_growth(master: Master) -> None:
    for name in "abc":
        master.put(f"/q/{name}")
    master.ok(m.QuotaReply, m.SetQuota, "/q", 1, 1)
    master.ok(m.DeleteReply, m.Delete, "/q/a")
    master.ok(m.StatReply, m.Rename, "/q/b", "/q/z")
    assert master.refused(m.Touch, "/q/new").code == "quota_exceeded"
    cleared = master.ok(m.QuotaReply, m.SetQuota, "/q", 0, 0).quota
    assert (cleared.names, cleared.stored_size) == (0, 0)
    master.ok(m.StatReply, m.Touch, "/q/new")


def test_the_number_of_quotas_is_limited(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs.master.state.quota_commands.QUOTAS_MAX", 1)
    master.put("/a/f")
    master.ok(m.QuotaReply, m.SetQuota, "/", 50)
    assert master.refused(m.SetQuota, "/a", 5).code == "limit_exceeded"
    assert quotas.QUOTAS_MAX > 1


# --- ranges


def test_an_overwrite_in_place_splits_an_extent_and_frees_what_it_covers(master: Master) -> None:
    old = master.put("/f", 10)
    status = master.write("/f", 3, 4)
    found = master.extents("/f")
    assert [(extent.handle == old, extent.chunk_offset, extent.length) for extent in found] == [
        (True, 0, 3),
        (False, 0, 4),
        (True, 7, 3),
    ]
    assert (status.size, status.extent_count) == (10, 3)
    master.write("/f", 0, 12)
    assert master.state.chunk(old) is None
    assert [extent.length for extent in master.extents("/f")] == [12]


def test_an_overwrite_of_another_version_or_beyond_the_end_is_refused(master: Master) -> None:
    master.put("/f", 10)
    version = master.state.stat("/f").version
    master.write("/f", 0, 5, version=version)
    chunk, extent = master.chunk(5), parts.NewExtent(0, 0, 5)
    assert master.refused(m.WriteRange, "/f", 0, (chunk,), (extent,), version).code == "conflict"
    reply = master.refused(m.WriteRange, "/f", 11, (chunk,), (extent,))
    assert (reply.code, "no holes" in reply.text) == ("invalid_argument", True)


def test_merging_extents_keeps_the_time_and_needs_the_version(master: Master) -> None:
    master.put("/f", 10)
    master.ok(m.StatReply, m.Touch, "/f", 77)
    status = master.write("/f", 0, 10, version=master.state.stat("/f").version, is_same_content=True)
    assert (status.mtime_ms, status.extent_count) == (77, 1)
    chunk, extent = master.chunk(5), parts.NewExtent(0, 0, 5)
    for version, offset in ((0, 0), (status.version, 6)):
        reply = master.refused(m.WriteRange, "/f", offset, (chunk,), (extent,), version, True)
        assert reply.code == "invalid_argument"


def test_truncate_cuts_at_any_byte_and_never_makes_longer(master: Master) -> None:
    first, second = master.put("/f", 10), None
    chunk = master.chunk(6)
    second = chunk.handle
    master.ok(m.StatReply, m.AppendExtents, "/f", (chunk,), (parts.NewExtent(0, 0, 6),))
    reply = master.refused(m.Truncate, "/f", 17)
    assert (reply.code, "no holes" in reply.text) == ("invalid_argument", True)
    assert master.ok(m.StatReply, m.Truncate, "/f", 13).status.size == 13
    assert master.extents("/f") == [Extent(first, 0, 10), Extent(second, 0, 3)]
    master.ok(m.StatReply, m.Truncate, "/f", 10)
    assert master.state.chunk(second) is None
    assert master.ok(m.StatReply, m.Truncate, "/f", 0).status.extent_count == 0
    assert master.state.chunk(first) is None


def test_concat_joins_in_order_and_the_sources_vanish_or_stay(master: Master) -> None:
    one, two, three = (master.put(path, 10) for path in ("/1", "/2", "/3"))
    status = master.ok(m.StatReply, m.Concat, "/1", ("/3", "/2"), True).status
    assert (status.size, master.names()) == (30, ["1", "2", "3"])
    assert [extent.handle for extent in master.extents("/1")] == [one, three, two]
    master.ok(m.StatReply, m.Concat, "/2", ("/1",))
    assert master.names() == ["2", "3"]
    assert [extent.handle for extent in master.extents("/2")] == [two, one, three, two]
    assert master.refused(m.Concat, "/2", ("/2",)).code == "invalid_argument"
    assert master.refused(m.Concat, "/2", ("/3", "/nope")).code == "not_found"
    assert master.names() == ["2", "3"]


@pytest.mark.parametrize("seed", range(20))
def test_a_cut_at_any_range_puts_together_again_to_the_same_bytes(seed: int) -> None:
    rng = Random(seed)
    lengths = [rng.randint(1, 9) for _ in range(rng.randint(1, 12))]
    extents = [Extent(ChunkHandle(bytes([number]) * 16), rng.randint(0, 5), n) for number, n in enumerate(lengths)]
    packed, size = packing.pack(extents), sum(lengths)
    start = rng.randint(0, size)
    stop = rng.randint(start, size)
    cut = packing.cut(packed, size, start, stop)
    whole = [byte for handle, offset, length in extents for byte in ((handle, offset + n) for n in range(length))]

    def bytes_of(found: Iterable[Extent | None]) -> list[tuple[bytes, int]]:
        return [(e.handle, e.chunk_offset + n) for e in found if e is not None for n in range(e.length)]

    head_size = packing.end(cut.head) if cut.head else 0
    head = packing.window(cut.head, head_size, 0, 99)[1]
    assert bytes_of([*head, cut.before]) == whole[:start]
    tail = packing.window(packed, size, len(extents) - len(cut.tail) // packing.RECORD.size, 99)[1]
    assert bytes_of([cut.after, *tail]) == whole[stop:]
    assert cut.head + packing.pack(cut.removed, head_size) + cut.tail == packed
