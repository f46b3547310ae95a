"""Does the client decide right? Chunks, blocks, retries and orders, without any IO."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.checksum import BLOCK_SIZE
from dfs.client.plan import (
    ATTEMPT_GROWTH_MAX,
    BACKOFF_MAX_S,
    MasterRound,
    ServerHealth,
    Step,
    attempt_timeout_s,
    backoff_s,
    blamed,
    clip_range,
    plan_reads,
    split_source,
    step_after,
)
from dfs.errors import ERRORS, ChainBroken, DfsError, DiskFull, Retry, TokenExpired
from dfs.ids import ChunkHandle, ServerId
from dfs.net.parts import LocatedExtent, ServerInfo

CHUNK_SIZE = 4 * BLOCK_SIZE


def server(number: int, *, is_alive: bool = True) -> ServerInfo:
    return ServerInfo(ServerId(bytes([number]) * 16), f"c{number}", f"host{number}:1", "rack", is_alive)


# --- chunks ---------------------------------------------------------------------------------------------


@given(size=st.integers(0, 20 * CHUNK_SIZE), chunk_size=st.sampled_from([BLOCK_SIZE, CHUNK_SIZE]))
def test_chunks_cover_a_source_once_and_only_the_last_is_short(size: int, chunk_size: int) -> None:
    ranges = list(split_source(size, chunk_size))
    assert sum(piece.length for piece in ranges) == size
    position = 0
    for index, piece in enumerate(ranges):
        assert (piece.index, piece.offset) == (index, position)
        assert 0 < piece.length <= chunk_size
        assert piece.length == chunk_size or index == len(ranges) - 1
        position += piece.length


# --- reads ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    extents: list[LocatedExtent]
    content: bytes
    chunks: dict[ChunkHandle, bytes]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """A file of extents of any alignment in chunks whose bytes tell their place."""
    extents, content, chunks = [], b"", {}
    for number in range(draw(st.integers(0, 5))):
        chunk_length = draw(st.integers(1, 3 * BLOCK_SIZE))
        offset = draw(st.integers(0, chunk_length - 1))
        length = draw(st.integers(1, chunk_length - offset))
        handle = ChunkHandle(bytes([number]) * 16)
        chunks[handle] = bytes((number * 89 + place // 251 + place) % 256 for place in range(chunk_length))
        extents.append(LocatedExtent(handle, offset, length, chunk_length, 0, b"", ()))
        content += chunks[handle][offset : offset + length]
    return Layout(extents, content, chunks)


@given(layout=layouts(), data=st.data(), blocks=st.integers(1, 4))
def test_planned_reads_bring_exactly_the_wanted_bytes_in_whole_blocks(
    layout: Layout, data: st.DataObject, blocks: int
) -> None:
    size = len(layout.content)
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    got = bytearray(end - start)
    expected_offset = start
    for plan in plan_reads(layout.extents, 7, 0, start=start, end=end, piece_size=blocks * BLOCK_SIZE):
        extent = plan.extent
        assert layout.extents[plan.extent_index - 7] is extent
        assert plan.file_offset == expected_offset
        assert plan.block_offset % BLOCK_SIZE == 0
        assert plan.block_length % BLOCK_SIZE == 0 or plan.block_end == extent.chunk_length
        assert plan.block_length <= blocks * BLOCK_SIZE
        assert 0 < plan.length <= plan.block_length
        chunk = layout.chunks[extent.handle]
        for position in range(plan.block_offset, plan.block_end, BLOCK_SIZE):
            block = chunk[position : min(position + BLOCK_SIZE, plan.block_end)]
            skip, length, offset = plan.wanted(position, len(block))
            if length:
                got[offset - start : offset - start + length] = block[skip : skip + length]
        expected_offset += plan.length
    assert expected_offset == end
    assert bytes(got) == layout.content[start:end]


def test_extents_before_the_page_are_counted_by_its_first_offset() -> None:
    extent = LocatedExtent(ChunkHandle(b"h" * 16), 0, 100, 100, 0, b"", ())
    assert not list(plan_reads([extent], 3, 1000, start=0, end=1000, piece_size=BLOCK_SIZE))
    (plan,) = plan_reads([extent], 3, 1000, start=1010, end=1020, piece_size=BLOCK_SIZE)
    assert (plan.extent_index, plan.file_offset, plan.chunk_offset, plan.length) == (3, 1010, 10, 10)
    assert (plan.block_offset, plan.block_length) == (0, 100)


@pytest.mark.parametrize(
    ("size", "offset", "length", "expected"),
    [(10, 0, None, (0, 10)), (10, 4, 3, (4, 7)), (10, 4, 30, (4, 10)), (10, 40, 3, (10, 10)), (0, 0, None, (0, 0))],
)
def test_a_range_is_clipped_to_the_file(size: int, offset: int, length: int | None, expected: tuple[int, int]) -> None:
    start, end = clip_range(size, offset, length)
    assert (start, max(start, end)) == expected


# --- retries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ERRORS.values(), ids=lambda cls: cls.__name__)
def test_an_error_that_says_never_is_never_repeated_and_no_other_is_final(cls: type[DfsError]) -> None:
    assert (step_after(cls.retry) is Step.FAIL) == (cls.retry is Retry.NEVER)


@given(attempt=st.integers(1, 10_000), noise=st.floats(0, 1, exclude_max=True))
def test_pauses_between_attempts_are_bounded_and_never_empty(attempt: int, noise: float) -> None:
    assert 0 < backoff_s(attempt, noise) <= BACKOFF_MAX_S


def test_a_silent_master_gets_more_time_each_time_up_to_a_limit() -> None:
    times = [attempt_timeout_s(2.0, silences) for silences in range(100)]
    assert times[:3] == [2.0, 4.0, 8.0]
    assert max(times) == 2.0 * ATTEMPT_GROWTH_MAX


def asked(order: MasterRound, hints: dict[str, str]) -> list[str]:
    found = []
    while (address := order.next()) is not None:
        found.append(address)
        if address in hints:
            order.hint(hints[address])
    return found


def test_the_presumed_leader_is_asked_first() -> None:
    assert asked(MasterRound(["a", "b", "c"], "b", ()), {}) == ["b", "a", "c"]


def test_a_hint_is_followed_at_once_even_to_an_unknown_master() -> None:
    assert asked(MasterRound(["a", "b", "c"], None, ()), {"a": "c"}) == ["a", "c", "b"]
    assert asked(MasterRound(["a", "b"], None, ()), {"a": "x"}) == ["a", "x", "b"]


@given(
    known=st.lists(st.sampled_from("abcdef"), unique=True, min_size=1),
    hints=st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh")),
    silent=st.sets(st.sampled_from("abcdef")),
)
def test_a_loop_of_hints_ends_and_asks_nobody_twice(known: list[str], hints: dict[str, str], silent: set[str]) -> None:
    found = asked(MasterRound(known, None, silent), hints)
    assert found
    assert len(found) == len(set(found))


def test_silent_masters_are_left_out_unless_all_are_silent() -> None:
    assert asked(MasterRound(["a", "b", "c"], "a", {"a"}), {"b": "a"}) == ["b", "c"]
    assert asked(MasterRound(["a", "b"], "b", {"a", "b"}), {}) == ["b", "a"]


# --- chunk servers ------------------------------------------------------------------------------------------


def test_a_failed_write_blames_whom_the_error_names() -> None:
    chain = [server(1), server(2), server(3)]
    assert blamed(ChainBroken("x", failed="host2:1,host3:1"), chain) == (chain[1], chain[2])


def test_a_failed_write_that_names_nobody_blames_the_head() -> None:
    chain = [server(1), server(2)]
    assert blamed(DiskFull("x"), chain) == (chain[0],)
    assert blamed(ChainBroken("x", failed="elsewhere:1"), chain) == (chain[0],)


def test_an_old_token_is_nobody_s_fault() -> None:
    assert blamed(TokenExpired("x"), [server(1)]) == ()


def test_good_replicas_come_first_then_failed_ones_then_dead_ones() -> None:
    health = ServerHealth(bad_s=10)
    servers = [server(1, is_alive=False), server(2), server(3), server(4)]
    health.failed(servers[1], now_s=100)
    assert [found.name for found in health.order(servers, 105, turn=0)] == ["c3", "c4", "c2", "c1"]
    assert [found.name for found in health.order(servers, 105, turn=1)] == ["c4", "c3", "c2", "c1"]
    assert [found.name for found in health.order(servers, 111, turn=0)] == ["c2", "c3", "c4", "c1"]


def test_a_server_that_worked_is_good_again() -> None:
    health = ServerHealth()
    health.failed(server(1), now_s=0)
    assert health.bad(1) == {server(1).server_id}
    health.worked(server(1))
    assert not health.bad(1)


def test_near_replicas_come_before_far_ones_and_slow_ones_after_both() -> None:
    health = ServerHealth(bad_s=10)
    servers = [server(1), server(2), server(3), server(4), server(5)]
    distances = {"c1": 2, "c2": 0, "c3": 1, "c4": 0, "c5": 0}
    health.slowed(servers[4], now_s=100)

    def order(now_s: float, turn: int) -> list[str]:
        return [found.name for found in health.order(servers, now_s, turn, lambda found: distances[found.name])]

    assert order(101, 0) == ["c2", "c4", "c3", "c1", "c5"]
    assert order(101, 1) == ["c4", "c2", "c3", "c1", "c5"], "load is spread over equally near ones"
    assert order(200, 0) == ["c2", "c4", "c5", "c3", "c1"]
    assert not health.bad(101), "a slow server is still written to"
