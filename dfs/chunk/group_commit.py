"""Group commit: who comes while a commit runs waits, and the next commit is for all who wait.

Owns: the queue, whose turn it is, and how a failure reaches everybody whose item it concerned. Refuses to know: what is
committed, and where.

There is no thread of its own: one of the waiting callers commits for all. A lone caller pays for nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from dfs.errors import DfsError, InternalError

T = TypeVar("T")
BATCH_ITEMS_MAX = 128  # in one commit: at four buffers each they go into one call of the system


class _Waiting(Generic[T]):
    __slots__ = ("error", "is_done", "item", "size")

    def __init__(self, item: T, size: int) -> None:
        self.item = item
        self.size = size
        self.is_done = False
        self.error: DfsError | None = None


class GroupCommit(Generic[T]):
    """Hands batches of items to `commit`, one batch at a time, in the order of their arrival. Thread-safe."""

    def __init__(self, commit: Callable[[list[T]], None], *, batch_size_max: int) -> None:
        """`commit` may raise a `DfsError`: all items of its batch have failed with it."""
        self._commit = commit
        self._batch_size_max = batch_size_max
        self._changed = threading.Condition()
        self._queue: deque[_Waiting[T]] = deque()
        self._is_busy = False

    def submit(self, item: T, size: int) -> None:
        """Return when `item` (of `size` bytes) is committed; raise what its commit raised."""
        waiting = _Waiting(item, size)
        with self._changed:
            self._queue.append(waiting)
        while self._takes_turn(waiting):
            self._commit_next()
        if waiting.error is not None:
            raise type(waiting.error)(waiting.error.message, **waiting.error.details)

    def _takes_turn(self, waiting: _Waiting[T]) -> bool:
        """Wait until `waiting` is done (False), or nobody commits and the caller has to (True)."""
        with self._changed:
            while self._is_busy and not waiting.is_done:
                self._changed.wait()
            if waiting.is_done:
                return False
            self._is_busy = True
            return True

    def _commit_next(self) -> None:
        """Commit the oldest batch, which may be full before it comes to the caller's own item; then end the turn."""
        with self._changed:
            batch = self._take_batch()
        error: DfsError | None = InternalError("a commit ended without a result; this is a bug of dfs")
        try:
            self._commit([waiting.item for waiting in batch])
            error = None
        except DfsError as failure:
            error = failure
        finally:
            with self._changed:
                for waiting in batch:
                    waiting.is_done, waiting.error = True, error
                self._is_busy = False
                self._changed.notify_all()

    def _take_batch(self) -> list[_Waiting[T]]:
        batch = [self._queue.popleft()]
        size = batch[0].size
        while self._queue and len(batch) < BATCH_ITEMS_MAX and size + self._queue[0].size <= self._batch_size_max:
            batch.append(self._queue.popleft())
            size += batch[-1].size
        return batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let nobody commit within the block."""
        with self._changed:
            while self._is_busy:
                self._changed.wait()
            self._is_busy = True
        try:
            yield
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
