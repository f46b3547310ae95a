"""Orders of the leader, carried out apart from the heartbeats: removing a large file may take a while.

Owns: the queue of replicas to delete. Refuses to know: why they go, and how the leader hears of it (from the store's
changes).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from dfs.chunk.replicas import ChunkStore
from dfs.errors import DfsError
from dfs.ids import ChunkHandle
from dfs.log import get_logger

ORDERS_WAITING_MAX = 10_000  # further ones are dropped: the leader repeats what was not confirmed
WAIT_S = 0.2  # how late a stop may be noticed

log = get_logger(__name__)


class DeletionOrders:
    """A queue that any thread fills and one thread empties. A replica stands in it once."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._waiting: dict[ChunkHandle, None] = {}
        self._changed = threading.Condition()

    def add(self, handles: Iterable[ChunkHandle]) -> None:
        with self._changed:
            for handle in handles:
                if len(self._waiting) >= ORDERS_WAITING_MAX:
                    break
                self._waiting[handle] = None
            self._changed.notify()

    def cancel(self, handles: Iterable[ChunkHandle]) -> None:
        """Hear that these shall be held after all."""
        with self._changed:
            for handle in handles:
                self._waiting.pop(handle, None)

    def clear(self) -> None:
        """Forget all that waits: another leader counts what is here anew, and orders what shall go."""
        with self._changed:
            self._waiting.clear()

    def run_once(self) -> int:
        """Carry out what is waiting now; return how many replicas were really removed."""
        count = 0
        while True:
            with self._changed:
                if not self._waiting:
                    break
                handle = next(iter(self._waiting))
                del self._waiting[handle]
            try:
                count += self._store.delete(handle)
            except DfsError as error:
                log.warning("replica_not_deleted", handle=handle, code=error.code, reason=error.message)
        if count:
            log.info("replicas_deleted", count=count)
        return count

    def run(self, stop: threading.Event) -> None:
        """Serve as the root of a thread until `stop`."""
        while not stop.is_set():
            try:
                self.run_once()
            except Exception:
                log.exception("deletion_failed")
            with self._changed:
                if not self._waiting:
                    self._changed.wait(WAIT_S)
