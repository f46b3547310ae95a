"""Does a dump hold everything, in bounded pieces, and is a damaged one refused whole?

Owns: dump and load of the replicated state. Refuses to know: files and their checksums.
"""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from dfs.errors import InternalError, StorageCorrupt
from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master import checkpoint
from dfs.master.commands import BALANCE_ASKED, PutServer, SetBalance, SetServerMode
from dfs.master.state import MasterState
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
