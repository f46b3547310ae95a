"""Group commit: who comes while a commit runs waits, and the next commit is for all who wait.

Owns: the queue, whose turn it is, and how a failure reaches everybody whose item it concerned. Refuses to know: what is
committed, and where.

There is no thread of its own: one of the waiting callers commits for all. A lone caller pays for nothing else. Whoever
has to wait sleeps on a lock of its own, and is woken once: when its item is committed, or when the turn is its own. A
condition would wake all for each commit, to fight for one lock and for the interpreter.
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
    """`items` has one item; none for a pause, which is a turn without a commit."""

    __slots__ = ("error", "is_done", "items", "size", "wake")

    def __init__(self, items: tuple[T, ...], size: int) -> None:
        self.items = items
        self.size = size
        self.is_done = False
        self.error: DfsError | None = None
        self.wake: threading.Lock | None = None  # held until it is done or has the turn; None: it never had to wait


class GroupCommit(Generic[T]):
    """Hands batches of items to `commit`, one batch at a time, in the order of their arrival. Thread-safe.

    Whoever has the turn stands first in the queue; while nobody has it, the queue is empty.
    """

    def __init__(self, commit: Callable[[list[T]], None], *, batch_size_max: int) -> None:
        """`commit` may raise a `DfsError`: all items of its batch have failed with it."""
        self._commit = commit
        self._batch_size_max = batch_size_max
        self._lock = threading.Lock()
        self._queue: deque[_Waiting[T]] = deque()
        self._is_busy = False

    def submit(self, item: T, size: int) -> None:
        """Return when `item` (of `size` bytes) is committed; raise what its commit raised."""
        waiting = _Waiting((item,), size)
        self._wait(waiting)
        if not waiting.is_done:
            self._commit_batch()
        if waiting.error is not None:
            raise type(waiting.error)(waiting.error.message, **waiting.error.details)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let nobody commit within the block."""
        waiting: _Waiting[T] = _Waiting((), 0)
        self._wait(waiting)
        try:
            yield
        finally:
            with self._lock:
                self._queue.popleft()
            self._end_turn([], None)

    def _wait(self, waiting: _Waiting[T]) -> None:
        """Return when `waiting` is done, or has the turn."""
        with self._lock:
            self._queue.append(waiting)
            if not self._is_busy:
                self._is_busy = True
                return
            wake = waiting.wake = threading.Lock()
            wake.acquire()
        wake.acquire()

    def _commit_batch(self) -> None:
        """Commit for the caller, who has the turn, and for those behind it; then end the turn."""
        with self._lock:
            batch = self._take_batch()
        error: DfsError | None = InternalError("a commit ended without a result; this is a bug of dfs")
        try:
            self._commit([item for waiting in batch for item in waiting.items])
            error = None
        except DfsError as failure:
            error = failure
        finally:
            self._end_turn(batch, error)

    def _take_batch(self) -> list[_Waiting[T]]:
        batch = [self._queue.popleft()]
        size = batch[0].size
        while self._queue and len(batch) < BATCH_ITEMS_MAX:
            following = self._queue[0]
            if not following.items or size + following.size > self._batch_size_max:
                break
            batch.append(self._queue.popleft())
            size += following.size
        return batch

    def _end_turn(self, batch: list[_Waiting[T]], error: DfsError | None) -> None:
        """Give the turn to who is first in the queue, so that the disk has work, and tell the batch how it went."""
        with self._lock:
            following = self._queue[0] if self._queue else None
            self._is_busy = following is not None
        if following is not None and following.wake is not None:
            following.wake.release()
        for waiting in batch:
            waiting.is_done, waiting.error = True, error
            if waiting.wake is not None:
                waiting.wake.release()
