"""Which replicas came and went since the leader last acknowledged: the deltas of the heartbeats.

Owns: the unacknowledged changes and their limit. Refuses to know: the store, the leader and the network.

Of each handle only the last state is kept, so order within a batch does not matter. When more changes pile up than
`CHANGES_MAX`, all are dropped and a full report is asked for instead: it says the same and more.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from dfs.ids import ChunkHandle

if TYPE_CHECKING:
    from dfs.chunk.replicas import Replica

CHANGES_MAX = 50_000  # unacknowledged changes; more cost more than a full report


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Changes on their way to the leader: the replica that came, or None where it went."""

    entries: tuple[tuple[ChunkHandle, Replica | None], ...]
    corrupt: tuple[ChunkHandle, ...] = ()  # those of `removed` that were found damaged or gone, not deleted

    @property
    def added(self) -> tuple[Replica, ...]:
        return tuple(replica for _, replica in self.entries if replica is not None)

    @property
    def removed(self) -> tuple[ChunkHandle, ...]:
        return tuple(handle for handle, replica in self.entries if replica is None)


class ReplicaChanges:
    """Collects changes from any thread; one thread takes batches and acknowledges them."""

    def __init__(self, changes_max: int = CHANGES_MAX) -> None:
        self._changes_max = changes_max
        self._lock = threading.Lock()
        self._pending: dict[ChunkHandle, Replica | None] = {}
        self._must_report = False
        self._suspect: set[ChunkHandle] = set()  # found bad, and about to be removed for that
        self._corrupt: set[ChunkHandle] = set()  # of the pending ones that went: found bad
        self._corrupt_count = 0

    def published(self, replica: Replica) -> None:
        self._record(replica.handle, replica)

    def found_corrupt(self, handle: ChunkHandle) -> None:
        """Hear that a replica is damaged or gone, before it is told as removed: that is then no deletion."""
        with self._lock:
            if len(self._suspect) < self._changes_max:
                self._suspect.add(handle)

    def removed(self, handle: ChunkHandle) -> None:
        self._record(handle, None)

    @property
    def corrupt_count(self) -> int:
        """Replicas that went because they were found bad, since the start."""
        with self._lock:
            return self._corrupt_count

    def _record(self, handle: ChunkHandle, replica: Replica | None) -> None:
        with self._lock:
            self._pending.pop(handle, None)  # a new state goes to the end of the queue
            self._corrupt.discard(handle)
            if len(self._pending) >= self._changes_max:
                self._pending.clear()
                self._corrupt.clear()
                self._must_report = True
            self._pending[handle] = replica
            if handle in self._suspect:
                self._suspect.discard(handle)
                if replica is None:
                    self._corrupt.add(handle)
                    self._corrupt_count += 1

    def batch(self, limit: int) -> ChangeBatch:
        """Return the oldest `limit` unacknowledged changes; the same again until they are acknowledged."""
        with self._lock:
            entries = tuple(islice(self._pending.items(), limit))
            corrupt = tuple(handle for handle, _ in entries if handle in self._corrupt) if self._corrupt else ()
            return ChangeBatch(entries, corrupt)

    def acknowledge(self, batch: ChangeBatch) -> None:
        """Drop the changes of `batch`, save those whose replica has changed again since."""
        with self._lock:
            for handle, replica in batch.entries:
                if handle in self._pending and self._pending[handle] is replica:
                    del self._pending[handle]
                    self._corrupt.discard(handle)

    def must_report(self) -> bool:
        """Whether changes were dropped, so that only a full report tells the leader the truth."""
        with self._lock:
            return self._must_report

    def report_begins(self) -> None:
        """Forget that a report is due; call before the replicas are listed, so that later changes count anew."""
        with self._lock:
            self._must_report = False

    def report_failed(self) -> None:
        """A full report was not acknowledged to its end: it is due again."""
        with self._lock:
            self._must_report = True

    def __len__(self) -> int:
        with self._lock:
            return len(self._pending)
