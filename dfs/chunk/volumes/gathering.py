"""Items for a group commit whose owners do not wait for it: one of them commits for all that come meanwhile.

Owns: which items wait, who commits them, and that each hears how it went. Refuses to know: what is committed, and
where.

A group commit wakes a thread for each item. Whoever brings items here goes on at once when somebody waits for the turn
already. So a thread that is fed by many connections is free for the next ones, and the sync of a disk is shared by all
that came while the one before it ran.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from dfs.chunk.group_commit import BATCH_ITEMS_MAX, GroupCommit
from dfs.chunk.replicas import Done
from dfs.errors import DfsError, InternalError
from dfs.log import get_logger

log = get_logger(__name__)
T = TypeVar("T")


class Gathered(NamedTuple, Generic[T]):
    """One item of `size` bytes."""

    item: T
    size: int
    done: Done


class Gathering(Generic[T]):
    """Thread-safe. At most one thread waits here for its turn, and one commits."""

    def __init__(self, turns: GroupCommit[T], commit: Callable[[list[T]], None], *, batch_size_max: int) -> None:
        """`commit`: as that of `turns`, for at most BATCH_ITEMS_MAX items."""
        self._turns = turns
        self._commit = commit
        self._batch_size_max = batch_size_max
        self._lock = threading.Lock()
        self._waiting: list[Gathered[T]] | None = None  # None: nobody waits for the turn

    def submit(self, items: Sequence[Gathered[T]]) -> None:
        """Have items committed: on return they are, or another thread is about to do it."""
        with self._lock:
            if self._waiting is not None:
                self._waiting += items
                return
            self._waiting = [*items]
        told: list[tuple[Done, DfsError | None]] = []
        try:
            with self._turns.paused():
                with self._lock:
                    taken, self._waiting = self._waiting, None
                for batch in self._batches(taken):
                    error = self._outcome([gathered.item for gathered in batch])
                    told += [(gathered.done, error) for gathered in batch]
        finally:
            for done, error in told:
                done(error)

    def _outcome(self, items: list[T]) -> DfsError | None:
        try:
            self._commit(items)
        except DfsError as error:
            return error
        except Exception as error:  # each item has an owner that waits for a word
            log.exception("gathered_commit_failed")
            return InternalError(f"a commit failed: {type(error).__name__}: {error}; this is a bug of dfs")
        return None

    def _batches(self, taken: list[Gathered[T]]) -> Iterator[list[Gathered[T]]]:
        batch: list[Gathered[T]] = []
        size = 0
        for gathered in taken:
            if batch and (len(batch) >= BATCH_ITEMS_MAX or size + gathered.size > self._batch_size_max):
                yield batch
                batch, size = [], 0
            batch.append(gathered)
            size += gathered.size
        yield batch
