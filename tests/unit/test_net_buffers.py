"""Is memory used again only when nobody can see it any more?"""

from __future__ import annotations

from dfs.net.buffers import BufferPool


def test_memory_is_used_again_once_it_was_let_go() -> None:
    pool = BufferPool(100, 2)
    first = pool.take(60)
    memory = first.obj
    second = pool.take(100)
    assert second.obj is not memory
    del first
    assert pool.take(10).obj is memory


def test_a_slice_that_somebody_kept_keeps_the_memory() -> None:
    pool = BufferPool(100, 1)
    view = pool.take(100)
    memory, kept = view.obj, view[10:20]
    del view
    assert pool.take(100).obj is not memory
    kept.release()
    assert pool.take(100).obj is memory


def test_what_is_more_than_is_kept_or_larger_is_made_anew() -> None:
    pool = BufferPool(100, 1)
    held = pool.take(100)
    more = pool.take(100)
    assert len(more) == 100
    memory = more.obj
    del more
    assert pool.take(100).obj is not memory
    assert len(pool.take(101)) == 101
    assert len(held) == 100
