"""Does a dump hold everything, in bounded pieces, and is a damaged one refused whole?

Owns: dump and load of the replicated state. Refuses to know: files and their checksums.
"""

from __future__ import annotations

import gc
import weakref
from random import Random

import msgspec
import pytest

from dfs.errors import InternalError, StorageCorrupt
from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.state import checkpoint, checkpoint_rows, sharing
from dfs.master.state import parts as parts_module
from dfs.master.state.commands import BALANCE_ASKED, PutServer, SetBalance, SetServerMode
from dfs.master.state.machine import MasterState
from dfs.master.state.namespace import walk
from dfs.master.state.nodes import Directory
from dfs.net import messages as m
from dfs.net import parts

SESSION = SessionId(b"s" * 16)


def _filled(files: int = 12) -> MasterState:
    """Return a state with something in every table."""
    state, rng = MasterState(), Random(1)
    servers = [ServerId(bytes([number]) * 16) for number in range(1, 5)]
    for server_id in servers:
        state.apply(1_000, PutServer(server_id, "c", "h:1", "r"))
    for number in range(1, files + 1):
        chunk = parts.NewChunk(ChunkHandle(rng.randbytes(16)), 10, 5, tuple(rng.sample(servers, 3)))
        extents = (parts.NewExtent(0, 0, 10),) if number % 2 else (parts.NewExtent(0, 0, 4), parts.NewExtent(0, 4, 6))
        path = f"/d{number % 3}/sub/{number:08d}"
        call = parts.CallId(SESSION, number, max(1, number - 5))
        state.apply(1_000 + number, m.CommitFile(call, path, (chunk,), extents, 1 + number % 3, parents=True))
    calls = (parts.CallId(SessionId(bytes([number]) * 16), 1, 1) for number in range(100))
    state.apply(50_000, m.Delete(next(calls), "/d0", recursive=True))
    state.apply(50_001, m.Delete(next(calls), "/d1/sub/00000001"))
    state.apply(50_002, m.Delete(next(calls), "/d1/sub/00000004", skip_trash=True))
    state.apply(50_003, m.Copy(next(calls), "/d2", "/d4", recursive=True))
    state.apply(50_004, m.SetReplication(next(calls), "/d4", 5, recursive=True))
    state.apply(50_005, m.Touch(next(calls), "/nowhere/x"))
    state.apply(50_006, SetServerMode(servers[1], is_leaving=True, maintenance_until_ms=0))
    state.apply(50_007, SetServerMode(servers[2], is_leaving=False, maintenance_until_ms=99_000))
    state.apply(50_008, SetBalance(BALANCE_ASKED, 50_000))
    assert state.fault is None
    state.check_invariants()
    return state


def test_a_loaded_state_answers_like_the_dumped_one() -> None:
    state, other = _filled(), MasterState()
    other.load(state.dump())
    other.check_invariants()
    assert list(other.dump()) == list(state.dump())
    assert other.space(None) == state.space(None)
    assert other.list_trash(0, 100) == state.list_trash(0, 100)
    assert list(other.garbage()) == list(state.garbage())
    assert other.chunk_handles() == state.chunk_handles()
    assert [other.chunk(handle) for handle in other.chunk_handles()] == [state.chunk(h) for h in state.chunk_handles()]
    assert (other.clock_ms, other.servers()) == (state.clock_ms, state.servers())
    assert other.balance == state.balance == (BALANCE_ASKED, 50_000)
    assert [server.is_leaving for server in other.servers()] == [False, True, False, False]


def test_a_state_answers_and_changes_while_another_is_loaded_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE_SIZE", 500)
    pieces = list(_filled(60).dump())
    state = MasterState()
    server_id = ServerId(b"1" * 16)
    loading = state.begin_load(iter(pieces))
    steps = 0
    while not loading.step():
        steps += 1
        state.apply(steps, PutServer(server_id, f"name-{steps}", "h:1", "r"))
        assert [server.name for server in state.servers()] == [f"name-{steps}"]
        assert state.space(None).file_count == 0
    assert steps == len(pieces), "each piece is a step of its own"
    loading.install()
    assert list(state.dump()) == pieces
    state.check_invariants()
    while not loading.step():
        assert list(state.dump()) == pieces, "the old state is taken apart, the new one is not touched"
    state.check_invariants()


@pytest.mark.parametrize("cut", ["short", "bit", "middle"])
def test_a_damaged_dump_changes_nothing_in_whichever_step_it_is_found(
    cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "PIECE_SIZE", 500)
    pieces, state = list(_filled(60).dump()), _filled(3)
    before = list(state.dump())
    if cut == "short":
        del pieces[-1]
    elif cut == "middle":
        del pieces[len(pieces) // 2]
    else:
        pieces[-2] = pieces[-2][:-1]
    loading = state.begin_load(pieces)

    def load() -> None:
        while not loading.step():
            pass

    with pytest.raises(StorageCorrupt):
        load()
    assert list(state.dump()) == before


def test_all_of_a_replaced_state_is_taken_apart_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "TAKEN_APART_STEP", 10)
    state, empty = _filled(400), MasterState()
    old = state._parts
    root = old.namespace.root
    directories = [node for node in walk(root) if isinstance(node, Directory)]
    assert len(directories) > 4
    loading = state.begin_load(list(empty.dump()))
    while not loading.step():
        pass
    loading.install()
    steps = 0
    while not loading.step():
        steps += 1
    assert steps > 30
    assert not any(len(directory.entries) for directory in directories)
    assert list(old.chunks.chunks()) == []
    assert list(old.chunks.garbage()) == []


def test_snapshots_and_copies_in_the_making_go_with_a_replaced_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "TAKEN_APART_STEP", 10)
    monkeypatch.setattr(sharing, "AT_ONCE_MAX", 3)
    monkeypatch.setattr(sharing, "STEP_MAX", 4)
    state = _filled(60)
    calls = (parts.CallId(SessionId(bytes([number]) * 16), 1, 1) for number in range(200, 256))
    for name in ("one", "two"):
        state.apply(60_000, m.CreateSnapshot(next(calls), "/d2", name))
    state.apply(60_001, m.Delete(next(calls), "/d4/sub/00000002"))
    state.apply(60_002, m.Touch(next(calls), "/d2/sub/00000002"))
    pieces = list(state.dump())
    old = state._parts
    (made,) = [separation.made.entries for separation in old.sharing.separations()]
    tops = [old.namespace.root, *(root for _, _, _, root in old.snapshots.roots())]
    tables = [node.entries for top in tops for node in walk(top) if isinstance(node, Directory)]
    assert len(made) == 4
    assert len({id(table) for table in tables}) < len(tables), "some are shared"
    gone = weakref.ref(old.chunks)
    del old, tops
    loading = state.begin_load(pieces)
    while not loading.step():
        pass
    loading.install()
    gc.disable()
    try:
        while not loading.step():
            assert list(state.dump()) == pieces
        assert gone() is None, "nothing of it waits for the garbage collector"
    finally:
        gc.enable()
    assert not any(len(table) for table in [made, *tables])
    assert list(state.dump()) == pieces
    state.check_invariants()


def test_a_loading_that_is_given_up_leaves_nothing_to_the_garbage_collector() -> None:
    loading = MasterState().begin_load(_filled(60).dump())
    gc.disable()
    try:
        while not loading.step():
            pass
        gone = weakref.ref(loading._loader.parts.chunks)
        del loading
        assert gone() is None
    finally:
        gc.enable()


def test_a_dump_in_the_order_of_an_earlier_version_is_loaded() -> None:
    state = _filled(60)
    pieces = list(state.dump())
    decoder = msgspec.msgpack.Decoder(checkpoint_rows.Chunks)
    (place,) = [number for number, piece in enumerate(pieces) if piece[:2] == b"\x92\x02"]
    rows = decoder.decode(pieces[place]).rows
    assert [row.handle[0] for row in rows] == sorted(row.handle[0] for row in rows)
    Random(2).shuffle(rows)  # they stood in the order of their commits
    pieces[place] = msgspec.msgpack.encode(checkpoint_rows.Chunks(rows))
    other = MasterState()
    other.load(pieces)
    other.check_invariants()
    assert other.space(None) == state.space(None)
    assert set(other.chunk_handles()) == set(state.chunk_handles())


def test_an_empty_state_can_be_dumped_and_loaded_over_a_full_one() -> None:
    empty, other = MasterState(trash_keep_ms=5, replication=2), _filled()
    other.load(empty.dump())
    assert list(other.dump()) == list(empty.dump())
    assert (other.trash_keep_ms, other.replication) == (5, 2)


def test_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE_SIZE", 1_000)
    state, other = _filled(200), MasterState()
    pieces = list(state.dump())
    assert len(pieces) > 20
    assert max(map(len, pieces)) < 2_000
    other.load(pieces)
    assert list(other.dump()) == pieces


def test_the_results_of_a_session_may_span_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PIECE_SIZE", 1_000)
    state, other = MasterState(), MasterState()
    for sequence in range(1, 60):
        state.apply(1_000, m.Touch(parts.CallId(SESSION, sequence, 1), f"/{sequence}"))
    other.load(state.dump())
    assert list(other.dump()) == list(state.dump())
    assert other.apply(1_000, m.Touch(parts.CallId(SESSION, 7, 1), "/7")) == m.StatReply(state.stat("/7"))


@pytest.mark.parametrize(
    "damage", ["cut", "first", "missing", "swapped", "twice", "after the end", "garbage", "nothing"]
)
def test_a_damaged_dump_is_refused_and_changes_nothing(damage: str) -> None:
    pieces = list(_filled().dump())
    broken = {
        "cut": pieces[:-1],
        "first": pieces[1:],
        "missing": pieces[:2] + pieces[3:],
        "swapped": [pieces[0], pieces[2], pieces[1], *pieces[3:]],
        "twice": [*pieces[:2], pieces[1], *pieces[2:]],
        "after the end": [*pieces, pieces[1]],
        "garbage": [*pieces[:3], b"\xc1\x00", *pieces[3:]],
        "nothing": [],
    }[damage]
    state = _filled(5)
    before = list(state.dump())
    with pytest.raises(StorageCorrupt, match="damaged or of another version"):
        state.load(broken)
    assert list(state.dump()) == before


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_byte_never_ends_in_another_error_than_storage_corrupt(seed: int) -> None:
    pieces, rng, refused = list(_filled().dump()), Random(seed), 0
    for _ in range(150):
        number = rng.randrange(len(pieces))
        piece = bytearray(pieces[number])
        piece[rng.randrange(len(piece))] ^= 1 << rng.randrange(8)
        state = MasterState()
        try:
            state.load([*pieces[:number], bytes(piece), *pieces[number + 1 :]])
        except StorageCorrupt:
            refused += 1
    assert refused > 40


def test_a_dump_of_another_version_is_refused() -> None:
    pieces = list(MasterState().dump())
    start = msgspec.msgpack.decode(pieces[0])
    start[1] += 1
    with pytest.raises(StorageCorrupt, match="another version"):
        MasterState().load([msgspec.msgpack.encode(start), *pieces[1:]])


def test_applying_during_a_dump_is_noticed() -> None:
    state = _filled()
    pieces = state.dump()
    next(pieces)
    state.apply(60_000, m.Touch(parts.CallId(SessionId(b"n" * 16), 1, 1), "/x"))
    with pytest.raises(InternalError, match="during a dump"):
        next(pieces)


def test_a_dump_from_before_modes_and_balance_is_loaded() -> None:
    state, other = MasterState(), MasterState()
    state.apply(1_000, PutServer(ServerId(b"s" * 16), "c", "h:1", "r"))
    pieces = list(state.dump())
    start = msgspec.msgpack.decode(pieces[0])
    other.load([msgspec.msgpack.encode(start[:10]), *pieces[1:]])
    assert other.servers() == state.servers()
    assert other.balance == (0, 0)
