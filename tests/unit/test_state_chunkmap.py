"""Does the chunk map stay true to itself while it is walked in pieces, and is it invisible to the garbage collector?

Owns: walks, garbage from the middle on, and what a chunk costs. Refuses to know: files and commands.
"""

from __future__ import annotations

import gc
from random import Random

import pytest

from dfs.ids import ChunkHandle, ServerId
from dfs.master.state.chunkmap import ChunkMap

SERVERS = [ServerId(bytes([number]) * 16) for number in range(1, 7)]


def filled(count: int, seed: int = 1) -> tuple[ChunkMap, list[ChunkHandle], Random]:
    rng, chunks = Random(seed), ChunkMap()
    handles = [ChunkHandle(rng.randbytes(16)) for _ in range(count)]
    for handle in handles:
        chunks.add(handle, rng.randint(1, 99), 5, rng.sample(SERVERS, 3), 3, 1)
    return chunks, handles, rng


@pytest.mark.parametrize("seed", range(3))
def test_a_walk_meets_every_chunk_that_is_there_from_its_begin_to_its_end(seed: int) -> None:
    chunks, handles, rng = filled(2000, seed)
    gone, met, on_one = set(), [], []
    for piece, held in zip(chunks.handles(), chunks.handles_on(SERVERS[0]), strict=True):
        met += piece
        on_one += held
        victim = rng.choice(handles)
        if victim in chunks:
            chunks.dereference(victim, 3, 9)
            gone.add(victim)
        chunks.add(ChunkHandle(rng.randbytes(16)), 1, 5, SERVERS[:1], 1, 1)
    assert gone
    assert len(met) == len(set(met)), "a handle is met once"
    assert set(handles) - gone <= set(met)
    lasting = {h for h, chunk in chunks.chunks() if h in set(handles) and SERVERS[0] in chunk.replicas.servers}
    assert lasting <= set(on_one)


def test_no_piece_of_a_walk_is_large() -> None:
    chunks, handles, _ = filled(20_000)
    sizes = [len(piece) for piece in chunks.handles()]
    assert sum(sizes) == len(handles)
    assert max(sizes) < 20_000 / 100


def test_chunks_stand_in_an_order_that_a_reload_repeats() -> None:
    chunks, _, _ = filled(3000)
    other = ChunkMap()
    for handle, chunk in chunks.chunks():
        other.add(handle, chunk.length, chunk.crc, chunk.replicas.servers, chunk.goal, chunk.reference_count)
    assert list(other.handles()) == list(chunks.handles())
    assert sorted(other.tallies(None)) == sorted(chunks.tallies(None))


def test_garbage_may_be_looked_at_from_the_middle_on() -> None:
    chunks, handles, _ = filled(50)
    for now_ms, handle in enumerate(handles):
        chunks.dereference(handle, 3, now_ms)
    assert [item.handle for item in chunks.garbage(20)] == handles[20:]
    assert list(chunks.garbage(50)) == []
    assert (len(chunks), list(chunks.tallies(None))) == (0, [])


def test_an_extent_whose_replication_changes_counts_as_one_counted_anew() -> None:
    rng = Random(4)
    chunks, handles, _ = filled(20)
    expected = {handle: {3: 1} for handle in handles}
    for _ in range(2000):
        handle = rng.choice(handles)
        levels = expected[handle]
        new = rng.randint(1, 4)
        if rng.random() < 0.3 and sum(levels.values()) < 5:
            chunks.reference(handle, new)
        else:
            old = rng.choice(list(levels))
            chunks.renew(handle, old, new)
            levels[old] -= 1
        levels[new] = levels.get(new, 0) + 1
        expected[handle] = {level: count for level, count in levels.items() if count}
    assert any(len(levels) > 1 for levels in expected.values())
    chunks.check_invariants(expected)


def test_a_handle_of_no_bytes_is_unknown_and_harms_nothing() -> None:
    chunks, _, _ = filled(5)
    empty = ChunkHandle(b"")
    chunks.drop_replica(empty, SERVERS[0])
    chunks.add_replica(empty, SERVERS[0], 1, 5)
    assert empty not in chunks
    assert chunks.view(empty) is None
    assert len(chunks) == 5


def test_chunks_are_none_of_the_garbage_collectors_business() -> None:
    chunks, handles, _ = filled(2000)
    for handle in handles[::2]:
        chunks.dereference(handle, 3, 9)
    gc.collect()
    assert not any(gc.is_tracked(shard) for shard in chunks._shards)
    assert not gc.is_tracked(chunks._garbage)
    assert not any(gc.is_tracked(chunk) for _, chunk in chunks.chunks())


def test_servers_are_kept_once_however_many_sets_name_them() -> None:
    rng, chunks = Random(1), ChunkMap()
    for _ in range(200):
        servers = [ServerId(bytes(bytearray(server_id))) for server_id in rng.sample(SERVERS, 3)]
        chunks.add(ChunkHandle(rng.randbytes(16)), 1, 5, servers, 3, 1)
    kept = {id(server_id) for _, chunk in chunks.chunks() for server_id in chunk.replicas.servers}
    assert len(kept) == len(SERVERS)
