"""Are the runs of a page and the plan of a repack right, whatever lies where?"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE
from dfs.client.repacking import WASTE_MIN, Usage, count_usage, plan_repack
from dfs.client.unpacking import GAP_MAX, RUN_SIZE_MAX, UnpackItem, is_packable, plan_runs
from dfs.ids import ChunkHandle
from dfs.net.messages import LocateManyReply
from dfs.net.parts import Kind, LocatedChunk, LocatedFile, NewExtent

MIB = 1024 * 1024


def item(name: str, *extents: NewExtent) -> UnpackItem:
    size = sum(extent.length for extent in extents)
    return UnpackItem(LocatedFile(name, Kind.FILE, size, 0, 1, 3, extents), f"/{name}", Path(name))


@pytest.mark.parametrize("seed", range(20))
def test_runs_cover_each_extent_once_in_whole_blocks(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randrange(1, 12 * MIB) for _ in range(3)]
    items = []
    for number in range(200):
        chunk = rng.randrange(3)
        length = rng.randrange(1, min(MIB, lengths[chunk]) + 1)
        items.append(item(str(number), NewExtent(chunk, rng.randrange(lengths[chunk] - length + 1), length)))
    items.append(item("empty"))
    runs = list(plan_runs(items, lengths))
    assert sorted(found.path for run in runs for found in run.items) == sorted(i.path for i in items if i.file.extents)
    for run in runs:
        assert run.start % BLOCK_SIZE == 0
        assert run.end % BLOCK_SIZE == 0 or run.end == lengths[run.chunk]
        assert run.end - run.start <= RUN_SIZE_MAX + 2 * MIB
        for found in run.items:
            (extent,) = found.file.extents
            assert extent.chunk == run.chunk
            assert run.start <= extent.offset
            assert extent.offset + extent.length <= run.end


def test_neighbours_share_a_run_and_strangers_do_not() -> None:
    lengths = [64 * MIB, 64 * MIB]
    near = [item(str(n), NewExtent(0, n * 4096, 4096)) for n in range(100)]
    (run,) = plan_runs(near, lengths)
    assert (run.start, run.end) == (0, 100 * 4096 + -100 * 4096 % BLOCK_SIZE)
    far = item("far", NewExtent(0, run.end + GAP_MAX + BLOCK_SIZE, 10))
    other = item("other", NewExtent(1, 0, 10))
    assert [len(run.items) for run in plan_runs([*near, far, other], lengths)] == [100, 1, 1]


def test_only_small_files_in_one_piece_are_packable() -> None:
    assert is_packable(item("empty").file)
    assert is_packable(item("small", NewExtent(0, 0, MIB)).file)
    assert not is_packable(item("large", NewExtent(0, 0, MIB + 1)).file)
    assert not is_packable(item("two", NewExtent(0, 0, 1), NewExtent(0, 5, 1)).file)
    assert not is_packable(LocatedFile("many", Kind.FILE, 10, 0, 1, 3, (), is_partial=True))
    assert not is_packable(LocatedFile("directory", Kind.DIRECTORY, 0, 0, 0, 0, ()))


def test_chunks_that_are_less_than_half_alive_are_moved() -> None:
    handles = [ChunkHandle(bytes([n]) * 16) for n in range(6)]
    usage = {
        handles[0]: Usage(MIB, MIB),
        handles[1]: Usage(MIB, MIB // 2),
        handles[2]: Usage(MIB, MIB // 2 - 1),
        handles[3]: Usage(MIB, 1, is_pinned=True),
        handles[4]: Usage(WASTE_MIN, 1),
        handles[5]: Usage(MIB, 3 * MIB),
    }
    assert plan_repack(usage) == {handles[2]}


def test_usage_is_added_up_over_pages_and_files_that_stay_pin_their_chunk() -> None:
    first, second = (LocatedChunk(ChunkHandle(bytes([n]) * 16), 5 * MIB, 0, b"", ()) for n in (1, 2))
    files = (item("a", NewExtent(0, 0, 100)).file, item("b", NewExtent(1, 0, 7)).file)
    large = item("large", NewExtent(0, 0, 2 * MIB)).file
    pages = [
        LocateManyReply(files, (first, second), (), has_more=True),
        LocateManyReply((large,), (second,), (), has_more=False),
    ]
    assert count_usage(pages) == {
        first.handle: Usage(5 * MIB, 100, is_pinned=False),
        second.handle: Usage(5 * MIB, 7 + 2 * MIB, is_pinned=True),
    }
