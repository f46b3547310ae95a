"""Does the plan of merges join what is small, leave what is large, and never lose a byte?

Owns: the pure plan. Refuses to know: clusters.
"""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dfs.client.compaction import Merge, is_fragmented, plan_merges
from dfs.net.parts import FileStatus, Kind

CHUNK = 100


def test_a_run_of_small_extents_becomes_whole_chunks() -> None:
    assert plan_merges([40, 40, 40, 40], CHUNK) == [Merge(0, 80, 2), Merge(80, 80, 2)]


def test_large_extents_end_a_run_and_are_never_rewritten() -> None:
    assert plan_merges([10, 10, 100, 10, 60, 5, 5], CHUNK) == [Merge(0, 20, 2), Merge(180 + 10, 10, 2)]


def test_a_single_small_extent_stays_as_it_is() -> None:
    assert plan_merges([100, 10, 100], CHUNK) == []
    assert plan_merges([10], CHUNK) == []
    assert plan_merges([], CHUNK) == []


@given(st.lists(st.integers(1, CHUNK), max_size=60))
def test_any_plan_covers_whole_small_extents_in_order_and_at_most_a_chunk_each(lengths: list[int]) -> None:
    edges = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    end = 0
    for merge in plan_merges(lengths, CHUNK):
        assert merge.offset >= end
        end = merge.offset + merge.length
        first, last = edges.index(merge.offset), edges.index(end)
        assert last - first == merge.count >= 2
        assert merge.length <= CHUNK
        assert all(length <= CHUNK // 2 for length in lengths[first:last])


@given(st.lists(st.integers(1, CHUNK), max_size=60))
def test_after_a_merge_few_small_extents_are_left_beside_each_other(lengths: list[int]) -> None:
    """Two neighbours are never both small enough to be one: a merge that runs again finds nothing that pays."""
    after: list[int] = []
    merges = {merge.offset: merge for merge in plan_merges(lengths, CHUNK)}
    offset = skip_until = 0
    for length in lengths:
        if offset in merges:
            after.append(merges[offset].length)
            skip_until = offset + merges[offset].length
        elif offset >= skip_until:
            after.append(length)
        offset += length
    assert sum(after) == sum(lengths)
    small = [left <= CHUNK // 2 and right <= CHUNK // 2 for left, right in itertools.pairwise(after)]
    assert not any(small)


def test_files_of_many_small_extents_are_fragmented_and_others_are_not() -> None:
    def status(size: int, count: int) -> FileStatus:
        return FileStatus("/f", Kind.FILE, size, size, 0, 2, 2, 1, count)

    assert is_fragmented(status(1025 * 4096, 1025))
    assert not is_fragmented(status(4096, 1))
    assert not is_fragmented(status(2000 * (64 << 20), 2000))
