"""Replicas that were unlisted because there are more than enough, until they are deleted.

Owns: which of them may still be read, and which are due. Refuses to know: clocks (moments are arguments), why a replica
was chosen (dfs.master.healing.survey), and how orders to delete travel.

A surplus replica is unlisted at once, so that clients are not sent there any more, and deleted after the grace of
garbage, for those that are on their way to it. It is whole all that time: when the chunk comes to need it, it is listed
again. A new leader knows nothing of this: the server reports the replica, it is listed, and chosen anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from dfs.ids import ChunkHandle, ServerId

TRIMS_WAITING_MAX = 20_000  # unlisted replicas of one server that wait for their deletion


class TrimBook:
    """Unlisted replicas by server. Rule 1: only the methods below change it."""

    def __init__(self) -> None:
        self._due_s: dict[ServerId, dict[ChunkHandle, float]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._due_s.values()))

    def __iter__(self) -> Iterator[tuple[ServerId, ChunkHandle, float]]:
        """Yield (server, chunk, when it may be deleted) of a snapshot."""
        for server_id, handles in list(self._due_s.items()):
            for handle, due_s in list(handles.items()):
                yield server_id, handle, due_s

    def due(self, now_s: float) -> Iterator[tuple[ServerId, ChunkHandle, float]]:
        """Yield those that may be deleted now, of a snapshot: the oldest, for all of them wait equally long."""
        for server_id, handles in list(self._due_s.items()):
            for handle, due_s in list(takewhile(lambda item: item[1] <= now_s, handles.items())):
                yield server_id, handle, due_s

    def room(self, server_id: ServerId) -> int:
        return TRIMS_WAITING_MAX - len(self._due_s.get(server_id, ()))

    def add(self, server_id: ServerId, handle: ChunkHandle, due_s: float) -> None:
        handles = self._due_s.setdefault(server_id, {})
        handles.pop(handle, None)
        handles[handle] = due_s  # the latest last

    def holds(self, server_id: ServerId, handle: ChunkHandle) -> bool:
        return handle in self._due_s.get(server_id, ())

    def servers_of(self, handle: ChunkHandle) -> set[ServerId]:
        """Return the servers on which a replica of this chunk waits for its deletion."""
        return {server_id for server_id, handles in self._due_s.items() if handle in handles}

    def is_due(self, server_id: ServerId, handle: ChunkHandle, now_s: float) -> bool:
        due_s = self._due_s.get(server_id, {}).get(handle)
        return due_s is not None and due_s <= now_s

    def drop(self, server_id: ServerId, handle: ChunkHandle) -> None:
        handles = self._due_s.get(server_id)
        if handles is not None and handles.pop(handle, None) is not None and not handles:
            del self._due_s[server_id]

    def drop_server(self, server_id: ServerId) -> None:
        self._due_s.pop(server_id, None)
