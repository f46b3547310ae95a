"""Are many files committed in one call as if each were alone, and is a tree told page by page without gaps?"""

from __future__ import annotations

import random

import pytest

from dfs.errors import LimitExceeded, NotADirectory
from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.state.commands import PutServer
from dfs.master.state.machine import MasterState
from dfs.net import messages as m
from dfs.net.parts import CallId, NewChunk, NewExtent, PackedFile

SERVER = ServerId(bytes(16))
SESSION = SessionId(b"s" * 16)


class State:
    """A state with one server, and calls that need no call id."""

    def __init__(self) -> None:
        self.state = MasterState()
        self.state.apply(1, PutServer(SERVER, "c", "h:1", ""))
        self._sequence = 0
        self._chunks = 0

    def chunk(self, length: int = 100) -> NewChunk:
        self._chunks += 1
        return NewChunk(ChunkHandle(self._chunks.to_bytes(16, "big")), length, 7, (SERVER,))

    def call(self) -> CallId:
        self._sequence += 1
        return CallId(SESSION, self._sequence, self._sequence)

    def apply(self, command: m.Message) -> m.Message:
        reply = self.state.apply(1000, command)
        self.state.check_invariants()
        return reply

    def pack(self, chunks: list[NewChunk], files: list[PackedFile], **flags: bool) -> list[tuple[int, str]]:
        reply = self.apply(m.CommitMany(self.call(), tuple(chunks), tuple(files), 1, **flags))
        assert isinstance(reply, m.CommitManyReply), reply
        return [(failure.index, failure.code) for failure in reply.failures]


def test_files_of_a_call_share_a_chunk_until_the_last_of_them_goes() -> None:
    state = State()
    chunk = state.chunk()
    files = [PackedFile(f"/d/{n}", (NewExtent(0, n * 10, 10),)) for n in range(10)]
    assert state.pack([chunk], [*files, PackedFile("/d/empty", ())], parents=True) == []
    view = state.state.chunk(chunk.handle)
    assert view is not None
    assert view.reference_count == 10
    assert state.state.stat("/d").file_count == 11
    assert state.state.stat("/d").size == 100
    for n in range(9):
        state.apply(m.Delete(state.call(), f"/d/{n}", skip_trash=True))
    assert state.state.chunk(chunk.handle) is not None
    state.apply(m.Delete(state.call(), "/d/9", skip_trash=True))
    assert state.state.chunk(chunk.handle) is None
    assert state.state.is_garbage(chunk.handle)


def test_failures_touch_no_other_file_and_unused_chunks_are_garbage_at_once() -> None:
    state = State()
    first, second = state.chunk(), state.chunk()
    assert state.pack([], [PackedFile("/taken", ())]) == []
    files = [
        PackedFile("/taken", (NewExtent(1, 0, 100),)),
        PackedFile("/new", (NewExtent(0, 0, 50),)),
        PackedFile("/no/parent", ()),
        PackedFile("/new/below", ()),
        PackedFile("/", ()),
    ]
    failures = state.pack([first, second], files)
    assert failures == [(0, "already_exists"), (2, "not_found"), (3, "not_a_directory"), (4, "is_a_directory")]
    assert state.state.stat("/new").size == 50
    assert state.state.is_garbage(second.handle)
    assert not state.state.is_garbage(first.handle)


def test_later_file_of_a_call_replaces_an_earlier_one_of_the_same_name() -> None:
    state = State()
    chunk = state.chunk()
    files = [PackedFile("/f", (NewExtent(0, 0, 30),)), PackedFile("/f", (NewExtent(0, 30, 70),))]
    assert state.pack([chunk], files, overwrite=True) == []
    assert state.state.stat("/f").size == 70
    view = state.state.chunk(chunk.handle)
    assert view is not None
    assert view.reference_count == 1


def test_version_guards_against_writers_in_between() -> None:
    state = State()
    state.pack([], [PackedFile("/f", ())])
    version = state.state.stat("/f").version
    assert state.pack([state.chunk()], [PackedFile("/f", (NewExtent(0, 0, 5),), 0, version)]) == []
    assert state.pack([state.chunk()], [PackedFile("/f", (NewExtent(0, 0, 6),), 0, version)]) == [(0, "conflict")]
    assert state.pack([], [PackedFile("/gone", (), 0, version)]) == [(0, "conflict")]
    assert state.state.stat("/f").size == 5


def test_call_sent_again_gets_the_same_failures_and_stores_nothing_twice() -> None:
    state = State()
    state.pack([], [PackedFile("/taken", ())])
    files = (PackedFile("/taken", ()), PackedFile("/f", (NewExtent(0, 0, 9),)))
    command = m.CommitMany(state.call(), (state.chunk(),), files, 1)
    reply = state.apply(command)
    inode = state.state.stat("/f").inode
    assert state.apply(command) == reply
    assert state.state.stat("/f").inode == inode


def test_call_with_too_many_files_is_refused_as_a_whole() -> None:
    state = State()
    files = tuple(PackedFile(f"/{n}", ()) for n in range(m.PACKED_FILES_MAX + 1))
    reply = state.apply(m.CommitMany(state.call(), (), files, 1))
    assert isinstance(reply, m.ErrorReply)
    assert isinstance(reply.error(), LimitExceeded)
    assert state.state.stat("/").file_count == 0


# --- a tree in pages ----------------------------------------------------------------------------------------


def grown(seed: int, count: int = 400) -> tuple[State, random.Random]:
    state, rng = State(), random.Random(seed)
    directories = ["/"]
    for number in range(count):
        parent = rng.choice(directories[-8:] + directories[:3]).rstrip("/")
        name = f"{parent}/{rng.choice(['a', 'b', 'é', '-', '.x', 'zz'])}{number}"
        if rng.random() < 0.3:
            state.apply(m.MakeDirectory(state.call(), name))
            directories.append(name)
        else:
            state.pack([], [PackedFile(name, ())])
    return state, rng


def names_after(state: State, after: str) -> list[str]:
    return [path for path, _, _ in state.state.content_below("/", after)]


@pytest.mark.parametrize("seed", range(3))
def test_pages_from_any_place_on_give_all_that_follows_once(seed: int) -> None:
    state, rng = grown(seed)
    whole = names_after(state, "")
    assert len(whole) == 400
    assert whole == sorted(whole, key=lambda path: path.split("/"))
    for index in [0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(40))]:
        assert names_after(state, whole[index]) == whole[index + 1 :]


@pytest.mark.parametrize("seed", range(3))
def test_what_stays_is_seen_once_though_the_tree_changes_between_pages(seed: int) -> None:
    state, rng = grown(seed, 200)
    stays = set(names_after(state, ""))
    seen: list[str] = []
    while page := names_after(state, seen[-1] if seen else "")[:7]:
        seen += page
        if rng.random() < 0.5:
            victim = rng.choice([*seen[-3:], *names_after(state, "")])
            reply = state.apply(m.Delete(state.call(), f"/{victim}", recursive=True, skip_trash=True))
            if not isinstance(reply, m.ErrorReply):
                stays = {path for path in stays if path != victim and not path.startswith(f"{victim}/")}
    assert len(set(seen)) == len(seen)
    assert stays <= set(seen)


def test_only_a_directory_has_content_below() -> None:
    state = State()
    state.pack([], [PackedFile("/f", ())])
    with pytest.raises(NotADirectory):
        state.state.content_below("/f", "")
