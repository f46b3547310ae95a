"""Do the commands keep the promises that users rely on, said one by one?

Owns: semantics, limits and counters of the replicated state by example. Refuses to know: random histories.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from dfs.errors import Conflict, IsADirectory, NotFound
from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.state import extents as packing
from dfs.master.state import parts as limits
from dfs.master.state.commands import (
    ChangeReplicas,
    ExpireTrash,
    ForgetGarbage,
    PutServer,
    ReplicaChange,
    SetOptions,
)
from dfs.master.state.machine import MasterState
from dfs.master.state.trash import RELEASE_STEP_MAX
from dfs.net import messages as m
from dfs.net import parts
from dfs.paths import PATH_SIZE_MAX

SERVERS = [ServerId(bytes([number]) * 16) for number in (1, 2, 3, 4)]
MessageT = TypeVar("MessageT", bound=m.Message)


class Master:
    """A state with four servers and a client that acknowledges each call."""

    def __init__(self) -> None:
        self.state = MasterState()
        self.now_ms = 1_000
        self.sequence = 0
        self.handles = itertools.count(1)
        for number, server_id in enumerate(SERVERS):
            self.duty(PutServer(server_id, f"c{number}", f"host:{number}", "r1"))

    def duty(self, command: m.Message) -> m.Message:
        reply = self.state.apply(self.now_ms, command)
        self.state.check_invariants()
        return reply

    def call(self, command: type[m.Mutation], *args: Any, **kwargs: Any) -> m.Message:
        self.sequence += 1
        make: Callable[..., m.Message] = command
        return self.duty(make(parts.CallId(SessionId(b"s" * 16), self.sequence, self.sequence), *args, **kwargs))

    def ok(self, reply_type: type[MessageT], command: type[m.Mutation], *args: Any, **kwargs: Any) -> MessageT:
        reply = self.call(command, *args, **kwargs)
        assert isinstance(reply, reply_type), reply
        return reply

    def refused(self, command: type[m.Mutation], *args: Any, **kwargs: Any) -> str:
        reply = self.call(command, *args, **kwargs)
        assert isinstance(reply, m.ErrorReply), reply
        return reply.code

    def chunk(self, length: int = 10, servers: tuple[ServerId, ...] = tuple(SERVERS[:3])) -> parts.NewChunk:
        return parts.NewChunk(ChunkHandle(next(self.handles).to_bytes(16, "big")), length, 7, servers)

    def put(self, path: str, length: int = 10, replication: int = 3, **kwargs: Any) -> ChunkHandle:
        """Put a file of one chunk; return the chunk."""
        chunk = self.chunk(length)
        self.ok(m.StatReply, m.CommitFile, path, (chunk,), (parts.NewExtent(0, 0, length),), replication, **kwargs)
        return chunk.handle

    def names(self, path: str = "/") -> list[str]:
        return [entry.path for entry in self.state.list_directory(path, "", 1000)[0]]


@pytest.fixture
def master() -> Master:
    return Master()


def test_put_makes_missing_parents_only_when_asked(master: Master) -> None:
    assert master.refused(m.CommitFile, "/a/b/f", (), (), 3) == "not_found"
    assert master.ok(m.StatReply, m.CommitFile, "/a/b/f", (), (), 3, parents=True).status.size == 0
    assert master.state.stat("/a").directory_count == 1


def test_overwriting_releases_the_old_content_at_once_and_keeps_the_inode(master: Master) -> None:
    first = master.put("/f", 10)
    before = master.state.stat("/f")
    assert master.refused(m.CommitFile, "/f", (), (), 3) == "already_exists"
    second = master.put("/f", 20, overwrite=True)
    after = master.state.stat("/f")
    assert (after.inode, after.size, after.stored_size) == (before.inode, 20, 60)
    assert after.version > before.version
    assert (master.state.chunk(first), master.state.is_garbage(first)) == (None, True)
    assert master.state.chunk(second) is not None
    assert master.state.list_trash(0, 10) == ((), False)


def test_a_path_never_shows_two_contents_under_one_version(master: Master) -> None:
    """A reader that pages through extents must notice any replacement, also by delete and put, or by rename."""
    seen = set()
    for change in range(4):
        if change == 1:
            master.ok(m.DeleteReply, m.Delete, "/f")
        if change == 3:
            master.put("/g")
            master.ok(m.StatReply, m.Rename, "/g", "/f", True)
        else:
            master.put("/f", overwrite=True)
        seen.add(master.state.stat("/f").version)
    assert len(seen) == 4
    with pytest.raises(Conflict, match="changed"):
        master.state.extents("/f", 0, 10, min(seen))


def test_append_adds_to_the_end_and_changes_the_version(master: Master) -> None:
    first = master.put("/f", 10)
    version = master.state.stat("/f").version
    chunk = master.chunk(8)
    extents = (parts.NewExtent(0, 4, 4), parts.NewExtent(0, 0, 2))
    master.ok(m.StatReply, m.AppendExtents, "/f", (chunk,), extents)
    view = master.state.extents("/f", 0, 10, 0)
    assert view.extents == ((first, 0, 10), (chunk.handle, 4, 4), (chunk.handle, 0, 2))
    assert view.status.size == 16
    assert view.status.version > version
    assert master.state.extents("/f", 2, 1, 0).first_offset == 14


def test_append_of_nothing_changes_nothing(master: Master) -> None:
    master.put("/f")
    before = master.state.stat("/f")
    master.now_ms += 50
    assert master.ok(m.StatReply, m.AppendExtents, "/f", (), ()).status == before


def test_append_beyond_the_extents_of_a_file_is_refused(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "EXTENTS_MAX", 2)
    master.put("/f")
    chunk = master.chunk()
    extents = (parts.NewExtent(0, 0, 1), parts.NewExtent(0, 0, 10))
    assert master.refused(m.AppendExtents, "/f", (chunk,), extents) == "limit_exceeded"
    assert master.ok(m.StatReply, m.AppendExtents, "/f", (chunk,), extents[1:]).status.extent_count == 2


def test_a_chunk_on_an_unregistered_server_is_refused(master: Master) -> None:
    chunk = master.chunk(10, (ServerId(b"?" * 16),))
    assert master.refused(m.CommitFile, "/f", (chunk,), (parts.NewExtent(0, 0, 10),), 3) == "invalid_argument"
    assert master.names() == []


def test_a_handle_is_never_taken_twice_not_even_from_the_garbage(master: Master) -> None:
    handle = master.put("/f")
    chunk = parts.NewChunk(handle, 10, 7, (SERVERS[0],))
    content = ((chunk,), (parts.NewExtent(0, 0, 10),))
    assert master.refused(m.CommitFile, "/g", *content, 3) == "chunk_exists"
    master.ok(m.DeleteReply, m.Delete, "/f", skip_trash=True)
    assert master.refused(m.CommitFile, "/g", *content, 3) == "chunk_exists"


def test_too_many_chunks_in_one_call_are_refused(master: Master) -> None:
    extents = (parts.NewExtent(0, 0, 1),) * (m.COMMIT_CHUNKS_MAX + 1)
    assert master.refused(m.CommitFile, "/f", (master.chunk(),), extents, 3) == "limit_exceeded"


def test_mkdir_with_parents_is_content_with_what_exists(master: Master) -> None:
    made = master.ok(m.StatReply, m.MakeDirectory, "/a/b/c", parents=True).status
    assert master.ok(m.StatReply, m.MakeDirectory, "/a/b/c", parents=True).status == made
    assert master.refused(m.MakeDirectory, "/a/b/c") == "already_exists"
    assert master.ok(m.StatReply, m.MakeDirectory, "/", parents=True).status.directory_count == 3


def test_a_file_in_the_way_is_named_as_such(master: Master) -> None:
    master.put("/f")
    assert master.refused(m.MakeDirectory, "/f/a/b", parents=True) == "not_a_directory"
    assert master.refused(m.Touch, "/f/a") == "not_a_directory"
    assert master.refused(m.RemoveDirectory, "/f") == "not_a_directory"


@pytest.mark.parametrize("command", [m.RemoveDirectory, m.Delete])
def test_the_root_cannot_be_removed(master: Master, command: type[m.Mutation]) -> None:
    assert master.refused(command, "/") == "invalid_argument"


def test_the_root_cannot_be_moved_copied_or_replaced(master: Master) -> None:
    master.ok(m.StatReply, m.MakeDirectory, "/a")
    assert master.refused(m.Rename, "/", "/b") == "invalid_argument"
    assert master.refused(m.Copy, "/", "/b", recursive=True) == "invalid_argument"
    assert master.refused(m.Rename, "/a", "/", overwrite=True) == "already_exists"


def test_a_directory_cannot_move_or_copy_into_itself_but_beside_a_like_named_one(master: Master) -> None:
    master.ok(m.StatReply, m.MakeDirectory, "/a/b", parents=True)
    assert master.refused(m.Rename, "/a", "/a/b/c") == "invalid_argument"
    assert master.refused(m.Copy, "/a", "/a/b/c", recursive=True) == "invalid_argument"
    master.ok(m.StatReply, m.Rename, "/a", "/ab")
    assert master.names("/ab") == ["b"]


def test_rename_onto_itself_changes_nothing(master: Master) -> None:
    master.put("/f")
    before = master.state.stat("/f")
    master.now_ms += 9
    assert master.ok(m.StatReply, m.Rename, "/f", "/f").status == before


def test_rename_never_replaces_a_directory(master: Master) -> None:
    master.ok(m.StatReply, m.MakeDirectory, "/d")
    master.ok(m.StatReply, m.MakeDirectory, "/e")
    master.put("/f")
    for source, target in (("/f", "/d"), ("/e", "/d"), ("/d", "/f")):
        assert master.refused(m.Rename, source, target, overwrite=True) == "already_exists"


def test_rename_carries_a_whole_subtree_and_its_totals(master: Master) -> None:
    master.put("/a/b/c/f", 10, 2, parents=True)
    master.ok(m.StatReply, m.MakeDirectory, "/z")
    master.ok(m.StatReply, m.Rename, "/a/b", "/z/y")
    status = master.state.stat("/z")
    assert (status.file_count, status.directory_count, status.size, status.stored_size) == (1, 2, 10, 20)
    assert master.state.stat("/a").file_count == 0
    assert master.state.stat("/z/y/c/f").size == 10


def test_a_copy_shares_its_chunks_until_the_last_one_goes(master: Master) -> None:
    handle = master.put("/f")
    copied = master.ok(m.StatReply, m.Copy, "/f", "/g").status
    assert copied.inode != master.state.stat("/f").inode
    master.ok(m.DeleteReply, m.Delete, "/f", skip_trash=True)
    assert master.state.chunk(handle) is not None
    master.ok(m.DeleteReply, m.Delete, "/g", skip_trash=True)
    assert master.state.is_garbage(handle)


def test_a_copy_over_a_file_that_shares_the_chunk_keeps_it(master: Master) -> None:
    handle = master.put("/f")
    master.ok(m.StatReply, m.Copy, "/f", "/g")
    master.ok(m.StatReply, m.Copy, "/f", "/g", overwrite=True)
    view = master.state.chunk(handle)
    assert view is not None
    assert view.reference_count == 2
    assert master.refused(m.Copy, "/f", "/f", overwrite=True) == "invalid_argument"


def test_a_recursive_copy_is_independent_of_its_source(master: Master) -> None:
    master.put("/a/b/f", parents=True)
    assert master.refused(m.Copy, "/a", "/c") == "is_a_directory"
    master.ok(m.StatReply, m.Copy, "/a", "/c", recursive=True)
    master.ok(m.DeleteReply, m.Delete, "/a", recursive=True, skip_trash=True)
    assert master.state.stat("/c/b/f").size == 10
    assert master.state.stat("/").file_count == 1


@pytest.mark.parametrize("command", [m.Copy, m.SetReplication])
def test_one_command_does_not_touch_more_files_than_the_limit(
    master: Master, monkeypatch: pytest.MonkeyPatch, command: type[m.Mutation]
) -> None:
    monkeypatch.setattr("dfs.master.state.tree_commands.SUBTREE_MAX", 3)
    for name in "abcd":
        master.ok(m.StatReply, m.Touch, f"/{name}")
    master.ok(m.StatReply, m.MakeDirectory, "/d2")
    args = ("/x",) if command is m.Copy else (2, True)
    for name in "abcd":
        master.ok(m.StatReply, m.Rename, f"/{name}", f"/d2/{name}")
    assert (
        master.refused(command, "/d2", *args, **({"recursive": True} if command is m.Copy else {})) == "limit_exceeded"
    )


def test_the_tree_and_its_bytes_are_limited(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "NODES_MAX", 2)
    master.put("/a/f", 10, 3, parents=True)
    assert master.refused(m.Touch, "/g") == "limit_exceeded"
    assert master.refused(m.MakeDirectory, "/g") == "limit_exceeded"
    monkeypatch.setattr(limits, "NODES_MAX", 100)
    monkeypatch.setattr(limits, "SIZE_TOTAL_MAX", 50)
    assert master.refused(m.Copy, "/a/f", "/g") == "limit_exceeded"
    assert master.refused(m.SetReplication, "/", 6, True) == "limit_exceeded"
    master.put("/a/f", 16, 3, overwrite=True)


def test_the_goal_of_a_shared_chunk_is_the_highest_replication_that_uses_it(master: Master) -> None:
    handle = master.put("/f", replication=3)
    master.ok(m.StatReply, m.Copy, "/f", "/g")

    def goal() -> int:
        view = master.state.chunk(handle)
        assert view is not None
        return view.goal

    master.ok(m.SetReplicationReply, m.SetReplication, "/g", 1)
    assert goal() == 3
    master.ok(m.SetReplicationReply, m.SetReplication, "/f", 2)
    assert goal() == 2
    master.ok(m.DeleteReply, m.Delete, "/f")
    assert goal() == 2, "what is in the trash can come back"
    master.ok(m.EmptyTrashReply, m.EmptyTrash)
    assert goal() == 1


def test_setrep_of_a_tree_counts_files_and_stored_bytes(master: Master) -> None:
    master.put("/a/f", 10, 3, parents=True)
    master.put("/a/b/g", 10, 1, parents=True)
    assert master.refused(m.SetReplication, "/a", 2) == "is_a_directory"
    assert master.ok(m.SetReplicationReply, m.SetReplication, "/a", 2, recursive=True).file_count == 2
    assert [master.state.stat(path).stored_size for path in ("/", "/a", "/a/b")] == [40, 40, 20]


def test_delete_goes_to_the_trash_and_undelete_brings_it_back_as_it_was(master: Master) -> None:
    master.put("/a/b/f", parents=True)
    before = master.state.stat("/a/b/f")
    reply = master.ok(m.DeleteReply, m.Delete, "/a/b", recursive=True)
    assert (reply.file_count, reply.size, reply.expires_ms) == (1, 10, master.now_ms + master.state.trash_keep_ms)
    master.ok(m.Done, m.RemoveDirectory, "/a")
    master.ok(m.StatReply, m.Undelete, "/a/b")
    assert master.state.stat("/a/b/f") == before
    assert master.state.list_trash(0, 10) == ((), False)


def test_undelete_takes_the_newest_of_a_path_unless_an_entry_is_named(master: Master) -> None:
    ids = []
    for length in (1, 2, 3):
        master.put("/f", length)
        ids.append(master.ok(m.DeleteReply, m.Delete, "/f").trash_id)
    assert master.ok(m.StatReply, m.Undelete, "/f", ids[1]).status.size == 2
    assert master.refused(m.Undelete, "/f") == "already_exists"
    assert master.refused(m.Undelete, "/g", ids[0]) == "invalid_argument"
    master.ok(m.DeleteReply, m.Delete, "/f", skip_trash=True)
    assert master.ok(m.StatReply, m.Undelete, "/f").status.size == 3
    assert master.refused(m.Undelete, "/nothing") == "not_found"


def test_trash_is_listed_in_pages_oldest_first(master: Master) -> None:
    for name in "abc":
        master.put(f"/{name}")
        master.ok(m.DeleteReply, m.Delete, f"/{name}")
    first, has_more = master.state.list_trash(0, 2)
    assert ([entry.path for entry in first], has_more) == (["/a", "/b"], True)
    assert [entry.path for entry in master.state.list_trash(first[-1].trash_id, 2)[0]] == ["/c"]


def test_trash_expires_by_the_state_clock_in_bounded_numbers(master: Master) -> None:
    master.duty(SetOptions(1_000, 3))
    for name in "abc":
        master.put(f"/{name}")
        master.ok(m.DeleteReply, m.Delete, f"/{name}")
        master.now_ms += 100
    assert master.state.next_trash_expiry_ms() == 2_000
    master.now_ms = 1_999
    assert master.duty(ExpireTrash(10)) == m.EmptyTrashReply(0, 0, False)
    master.now_ms = 2_199
    assert master.duty(ExpireTrash(1)) == m.EmptyTrashReply(1, 10, True)
    assert master.duty(ExpireTrash(10)) == m.EmptyTrashReply(1, 10, False)
    assert master.state.next_trash_expiry_ms() == 2_200


def test_the_state_clock_never_goes_back(master: Master) -> None:
    master.put("/a")
    master.now_ms = 5
    master.put("/b")
    assert master.state.clock_ms == 1_000
    assert master.state.stat("/b").mtime_ms == 1_000


@pytest.mark.parametrize("now_ms", [-1, 1 << 62])
def test_an_impossible_time_changes_nothing(master: Master, now_ms: int) -> None:
    before = list(master.state.dump())
    master.now_ms = now_ms
    assert master.refused(m.Touch, "/f") == "invalid_argument"
    assert list(master.state.dump()) == before


def test_without_a_keep_time_there_is_no_trash(master: Master) -> None:
    master.duty(SetOptions(0, 3))
    handle = master.put("/f")
    assert master.ok(m.DeleteReply, m.Delete, "/f").trash_id == 0
    assert master.state.is_garbage(handle)


@pytest.mark.parametrize("options", [SetOptions(-1, 3), SetOptions(5, 0), SetOptions(5, 17)])
def test_impossible_options_are_refused(master: Master, options: SetOptions) -> None:
    assert isinstance(master.duty(options), m.ErrorReply)
    assert (master.state.replication, master.state.trash_keep_ms) == (3, 3 * 86_400_000)


def test_a_large_release_is_spread_over_the_next_commands(master: Master) -> None:
    master.ok(m.StatReply, m.MakeDirectory, "/d")
    chunk = master.chunk(10)
    count = 2 * RELEASE_STEP_MAX + 10
    master.ok(m.StatReply, m.CommitFile, "/d/f", (chunk,), (parts.NewExtent(0, 0, 10),) * count, 3)
    master.put("/d/g")
    master.ok(m.DeleteReply, m.Delete, "/d", recursive=True, skip_trash=True)
    assert master.names() == []
    assert master.state.stat("/").size == 0
    left = []
    while (view := master.state.chunk(chunk.handle)) is not None:
        left.append(view.reference_count)
        assert master.state.next_trash_expiry_ms() == master.now_ms, "the leader must hear that there is work"
        other = MasterState()
        other.load(master.state.dump())
        other.check_invariants()
        master.duty(ExpireTrash(1))
    assert len(left) == 2
    assert left == sorted(left, reverse=True)
    assert master.state.next_trash_expiry_ms() is None
    assert master.state.is_garbage(chunk.handle)


def test_emptying_the_trash_is_bounded_and_says_so(master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dfs.master.state.tree_commands.EMPTY_TRASH_MAX", 2)
    for name in "abc":
        master.put(f"/{name}")
        master.ok(m.DeleteReply, m.Delete, f"/{name}")
    assert master.ok(m.EmptyTrashReply, m.EmptyTrash) == m.EmptyTrashReply(2, 20, True)
    assert master.ok(m.EmptyTrashReply, m.EmptyTrash) == m.EmptyTrashReply(1, 10, False)
    assert master.refused(m.EmptyTrash, 1) == "not_found"


def test_a_released_chunk_is_garbage_until_every_server_has_confirmed(master: Master) -> None:
    handle = master.put("/f", 10)
    master.ok(m.DeleteReply, m.Delete, "/f", skip_trash=True)
    assert master.state.space(None).garbage_stored_size == 30
    master.duty(ForgetGarbage(SERVERS[0], (handle, handle)))
    master.duty(ForgetGarbage(SERVERS[3], (handle,)))
    assert next(master.state.garbage()) == (handle, 10, (SERVERS[1], SERVERS[2]), master.now_ms)
    master.duty(ForgetGarbage(SERVERS[1], (handle,)))
    master.duty(ChangeReplicas(SERVERS[2], (ReplicaChange(handle, False),)))
    assert not master.state.is_garbage(handle)
    assert master.state.space(None).garbage_stored_size == 0


def test_replicas_are_added_only_with_the_right_content(master: Master) -> None:
    handle = master.put("/f", 10)
    for change in (ReplicaChange(handle, True, 9, 7), ReplicaChange(handle, True, 10, 8)):
        master.duty(ChangeReplicas(SERVERS[3], (change,)))
        view = master.state.chunk(handle)
        assert view is not None
        assert view.servers == tuple(SERVERS[:3])
    master.duty(ChangeReplicas(SERVERS[3], (ReplicaChange(handle, True, 10, 7),)))
    master.duty(ChangeReplicas(SERVERS[0], (ReplicaChange(handle, False),)))
    master.duty(ChangeReplicas(ServerId(b"?" * 16), (ReplicaChange(handle, True, 10, 7),)))
    view = master.state.chunk(handle)
    assert view is not None
    assert view.servers == tuple(SERVERS[1:])


def test_space_counts_what_is_short_and_what_is_lost(master: Master) -> None:
    handle = master.put("/f", 10)
    assert master.state.space(None).under_replicated == 0
    space = master.state.space([SERVERS[2]])
    assert (space.under_replicated, space.under_replicated_live, space.missing) == (0, 1, 0)
    assert master.state.space([SERVERS[3]]).missing == 1
    for server_id in SERVERS[:3]:
        master.duty(ChangeReplicas(server_id, (ReplicaChange(handle, False),)))
    space = master.state.space(None)
    assert (space.under_replicated, space.missing, space.chunk_stored_size) == (1, 1, 0)
    assert space.live_size == 10


def test_a_chunk_without_replicas_leaves_no_garbage(master: Master) -> None:
    handle = master.put("/f", 10)
    for server_id in SERVERS[:3]:
        master.duty(ChangeReplicas(server_id, (ReplicaChange(handle, False),)))
    master.ok(m.DeleteReply, m.Delete, "/f", skip_trash=True)
    assert not master.state.is_garbage(handle)
    assert master.state.chunk_handles() == []


def test_a_server_may_change_its_labels_but_not_have_bad_ones(master: Master) -> None:
    master.duty(PutServer(SERVERS[0], "renamed", "other:1", ""))
    server = master.state.server(SERVERS[0])
    assert server is not None
    assert (server.name, server.address, server.rack) == ("renamed", "other:1", "")
    assert [known.server_id for known in master.state.servers()] == SERVERS
    bad = [
        PutServer(ServerId(b"x"), "n", "a", ""),
        PutServer(SERVERS[0], "", "a", ""),
        PutServer(SERVERS[0], "n", "a" * 256, ""),
        PutServer(SERVERS[0], "\udc80", "a", ""),
    ]
    assert all(isinstance(master.duty(command), m.ErrorReply) for command in bad)


def test_listings_have_pages_in_code_point_order(master: Master) -> None:
    for name in ("b", "a", "ä", "B", "\U0001f600", "\uffff"):
        master.ok(m.StatReply, m.Touch, f"/{name}")
    assert master.names() == ["B", "a", "b", "ä", "\uffff", "\U0001f600"]
    page, has_more = master.state.list_directory("/", "a", 2)
    assert ([entry.path for entry in page], has_more) == (["b", "ä"], True)


def test_queries_of_what_is_not_there_or_not_that_say_so(master: Master) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        master.state.stat("/nothing")
    with pytest.raises(IsADirectory, match="is a directory"):
        master.state.extents("/", 0, 1, 0)
    for limit in (0, m.LIST_LIMIT_MAX + 1):
        with pytest.raises(ValueError, match="asked for"):
            master.state.list_directory("/", "", limit)


def test_a_message_that_is_no_command_is_answered(master: Master) -> None:
    assert isinstance(master.duty(m.Ping()), m.ErrorReply)
    assert master.state.fault is None


def test_a_bug_in_a_handler_is_an_answer_and_a_story_for_the_log(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(master.state._parts.namespace, "locate", broken)
    assert master.refused(m.Touch, "/f") == "internal"
    assert master.state.fault is not None
    assert "ZeroDivisionError: oh" in master.state.fault


def test_very_deep_trees_need_no_recursion(master: Master) -> None:
    """Moves can nest deeper than any path may say; walking such a tree must not end a master."""
    master.ok(m.StatReply, m.MakeDirectory, "/d" * 500, parents=True)
    for number in range(3):
        master.sequence += 1
        call = parts.CallId(SessionId(b"s" * 16), master.sequence, master.sequence)
        master.state.apply(5, m.MakeDirectory(call, f"/t{number}" + "/d" * 498, True))
        master.sequence += 1
        call = parts.CallId(SessionId(b"s" * 16), master.sequence, master.sequence)
        reply = master.state.apply(5, m.Rename(call, "/d", f"/t{number}" + "/d" * 499))
        assert isinstance(reply, m.StatReply), reply
        master.sequence += 1
        call = parts.CallId(SessionId(b"s" * 16), master.sequence, master.sequence)
        master.state.apply(5, m.Rename(call, f"/t{number}", "/d"))
    assert master.state.stat("/").directory_count > 1_500
    other = MasterState()
    other.load(master.state.dump())
    assert list(other.dump()) == list(master.state.dump())
    master.ok(m.StatReply, m.Copy, "/d", "/e", recursive=True)
    master.ok(m.DeleteReply, m.Delete, "/d", recursive=True, skip_trash=True)
    for _ in range(4):
        master.duty(ExpireTrash(1))
    assert master.state.next_trash_expiry_ms() is None


def test_a_path_of_the_longest_size_works(master: Master) -> None:
    path = "/" + "/".join(["x" * 255] * 16)
    assert len(path) == PATH_SIZE_MAX
    master.put(path, parents=True)
    assert master.state.stat(path).size == 10
    assert master.refused(m.Touch, path + "x") == "invalid_name"
