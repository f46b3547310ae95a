"""Is memory used again only when nobody can see it any more?"""

from __future__ import annotations

from dfs.net.buffers import SMALL_SIZE, BufferPool

SIZE = 4 * SMALL_SIZE
LARGE = SMALL_SIZE + 1


def test_memory_is_used_again_once_it_was_let_go() -> None:
    pool = BufferPool(SIZE, 2)
    first = pool.take(LARGE)
    memory = first.obj
    second = pool.take(SIZE)
    assert second.obj is not memory
    del first
    assert pool.take(LARGE).obj is memory


def test_a_slice_that_somebody_kept_keeps_the_memory() -> None:
    pool = BufferPool(SIZE, 1)
    view = pool.take(SIZE)
    memory, kept = view.obj, view[10:20]
    del view
    assert pool.take(SIZE).obj is not memory
    kept.release()
    assert pool.take(SIZE).obj is memory


def test_what_is_more_than_is_kept_or_larger_is_made_anew() -> None:
    pool = BufferPool(SIZE, 1)
    held = pool.take(SIZE)
    more = pool.take(SIZE)
    assert len(more) == SIZE
    memory = more.obj
    del more
    assert pool.take(SIZE).obj is not memory
    assert len(pool.take(SIZE + 1)) == SIZE + 1
    assert len(held) == SIZE


def test_what_is_more_than_is_kept_takes_no_more_memory_than_was_asked_for() -> None:
    pool = BufferPool(SIZE, 1)
    held = [pool.take(LARGE) for _ in range(3)]
    assert [memoryview(view.obj).nbytes for view in held] == [SIZE, LARGE, LARGE]


def test_little_memory_is_always_fresh() -> None:
    pool = BufferPool(SIZE, 1)
    first = pool.take(SMALL_SIZE)
    memory = first.obj
    assert len(first) == SMALL_SIZE
    del first
    assert pool.take(SMALL_SIZE).obj is not memory
