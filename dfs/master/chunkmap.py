"""The chunk map: every sealed chunk, where its replicas are, and how many extents use it.

Owns: chunks, interned replica sets with their tallies, reference counts, goals, and garbage (released chunks until
every server has confirmed that they are gone). Refuses to know: files, placement and liveness.

GFS (SOSP 2003) section 2.6.1; differs: replica locations are part of the replicated state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.master.views import ChunkView, GarbageChunk, ReplicaTally
from dfs.net.frames import PAYLOAD_SIZE_MAX

CHUNK_LENGTH_MAX = PAYLOAD_SIZE_MAX  # bytes
KeyT = TypeVar("KeyT")


class ReplicaSet:
    """A combination of servers that some chunks share; `tally` counts these chunks by goal as [count, bytes]."""

    __slots__ = ("servers", "tally")

    def __init__(self, servers: tuple[ServerId, ...]) -> None:
        self.servers = servers
        self.tally: dict[int, list[int]] = {}


class Chunk(msgspec.Struct, gc=False):
    """A sealed chunk. `replicas` outlives it (owned by the map), so no cycle can pass through here."""

    length: int
    crc: int
    reference_count: int
    goal: int
    replicas: ReplicaSet


class Garbage(msgspec.Struct, gc=False):
    """A released chunk that `servers` have not confirmed to be gone; the map owns it."""

    length: int
    servers: tuple[ServerId, ...]
    since_ms: int


class ChunkMap:
    """Known chunks and garbage; both are iterated in the order they came in, which is the same on every replica.

    The goal of a chunk is the highest replication of the files (live, in the trash, or being released) that use it.
    Nearly all chunks are used with one replication only; the counts of the others are in `_levels`.
    """

    def __init__(self) -> None:
        self._chunks: dict[ChunkHandle, Chunk] = {}
        self._sets: dict[tuple[ServerId, ...], ReplicaSet] = {}
        self._levels: dict[ChunkHandle, dict[int, int]] = {}  # replication -> extents, of chunks with several
        self._garbage: dict[ChunkHandle, Garbage] = {}
        self._garbage_counts: Counter[ServerId] = Counter()
        self.garbage_stored_size = 0

    # --- reads

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, handle: ChunkHandle) -> bool:
        return handle in self._chunks

    def is_garbage(self, handle: ChunkHandle) -> bool:
        return handle in self._garbage

    @property
    def garbage_count(self) -> int:
        return len(self._garbage)

    def view(self, handle: ChunkHandle) -> ChunkView | None:
        chunk = self._chunks.get(handle)
        if chunk is None:
            return None
        return ChunkView(chunk.length, chunk.crc, chunk.goal, chunk.replicas.servers, chunk.reference_count)

    def handles(self) -> list[ChunkHandle]:
        return list(self._chunks)

    def chunks(self) -> Iterator[tuple[ChunkHandle, Chunk]]:
        yield from self._chunks.items()

    def garbage(self) -> Iterator[GarbageChunk]:
        """Yield garbage, oldest first."""
        for handle, item in self._garbage.items():
            yield GarbageChunk(handle, item.length, item.servers, item.since_ms)

    def garbage_handles(self) -> list[ChunkHandle]:
        return list(self._garbage)

    def is_garbage_on(self, handle: ChunkHandle, server_id: ServerId) -> bool:
        item = self._garbage.get(handle)
        return item is not None and server_id in item.servers

    def tallies(self, live: Collection[ServerId] | None) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (registered replicas, live replicas, goal, chunk count, bytes) of each replica set and goal."""
        alive = None if live is None else frozenset(live)
        for servers, replicas in self._sets.items():
            live_count = len(servers) if alive is None else sum(server in alive for server in servers)
            for goal, (count, size) in replicas.tally.items():
                yield len(servers), live_count, goal, count, size

    def replica_sets(self) -> list[tuple[ServerId, ...]]:
        """Return every combination of servers that some chunks have, a snapshot for walks in slices."""
        return list(self._sets)

    def tallies_of(self, sets: Iterable[tuple[ServerId, ...]]) -> Iterator[ReplicaTally]:
        """Yield a row for each goal of these combinations; nothing may change meanwhile."""
        for servers in sets:
            replicas = self._sets.get(servers)
            if replicas is not None:
                for goal, (count, size) in replicas.tally.items():
                    yield ReplicaTally(servers, goal, count, size)

    def select(
        self, handles: Iterable[ChunkHandle], wanted: Mapping[tuple[tuple[ServerId, ...], int], KeyT]
    ) -> list[tuple[ChunkHandle, KeyT]]:
        """Return those of `handles` whose (registered servers, goal) is wanted, and what stands there for it."""
        found = []
        for handle in handles:
            chunk = self._chunks.get(handle)
            if chunk is not None:
                key = wanted.get((chunk.replicas.servers, chunk.goal))
                if key is not None:
                    found.append((handle, key))
        return found

    def replica_count_of(self, server_id: ServerId) -> int:
        """Count the chunks that name a server, O(replica sets)."""
        named = (servers for servers in self._sets if server_id in servers)
        return sum(row.chunk_count for row in self.tallies_of(named))

    def garbage_count_of(self, server_id: ServerId) -> int:
        return self._garbage_counts.get(server_id, 0)

    # --- changes

    def add(self, handle: ChunkHandle, length: int, crc: int, servers: Sequence[ServerId]) -> None:
        """Make a chunk known; it must be referenced in the same command."""
        replicas = self._intern(tuple(sorted(servers)))
        self._chunks[handle] = Chunk(length, crc, 0, 0, replicas)
        _count(replicas, 0, length, 1)

    def reference(self, handle: ChunkHandle, replication: int) -> None:
        """Count one more extent, of a file with this replication."""
        self._recount(handle, self._chunks[handle], replication, 1)

    def dereference(self, handle: ChunkHandle, replication: int, now_ms: int) -> None:
        """Count one extent less; the last one makes the chunk garbage."""
        chunk = self._chunks[handle]
        self._recount(handle, chunk, replication, -1)
        if chunk.reference_count == 0:
            self._move(chunk, None, 0)
            del self._chunks[handle]
            if servers := chunk.replicas.servers:
                self.add_garbage(GarbageChunk(handle, chunk.length, servers, now_ms))

    def add_garbage(self, item: GarbageChunk) -> None:
        self._garbage[item.handle] = Garbage(item.length, item.servers, item.since_ms)
        self._garbage_counts.update(item.servers)
        self.garbage_stored_size += item.length * len(item.servers)

    def add_replica(self, handle: ChunkHandle, server_id: ServerId, length: int, crc: int) -> None:
        """Register a replica, unless the chunk is unknown or this is another content than the sealed one."""
        chunk = self._chunks.get(handle)
        if chunk is None or chunk.length != length or chunk.crc != crc or server_id in chunk.replicas.servers:
            return
        self._move(chunk, self._intern(tuple(sorted((*chunk.replicas.servers, server_id)))), chunk.goal)

    def drop_replica(self, handle: ChunkHandle, server_id: ServerId) -> None:
        """Forget a replica of a chunk or of garbage, if it was known; garbage without replicas is forgotten."""
        chunk = self._chunks.get(handle)
        if chunk is None:
            self.forget_garbage(handle, server_id)
        elif server_id in chunk.replicas.servers:
            rest = tuple(known for known in chunk.replicas.servers if known != server_id)
            self._move(chunk, self._intern(rest), chunk.goal)

    def forget_garbage(self, handle: ChunkHandle, server_id: ServerId) -> None:
        item = self._garbage.get(handle)
        if item is None or server_id not in item.servers:
            return
        item.servers = tuple(known for known in item.servers if known != server_id)
        self.garbage_stored_size -= item.length
        self._garbage_counts[server_id] -= 1
        if not self._garbage_counts[server_id]:
            del self._garbage_counts[server_id]
        if not item.servers:
            del self._garbage[handle]

    def _recount(self, handle: ChunkHandle, chunk: Chunk, replication: int, change: int) -> None:
        levels = self._levels.get(handle)
        if levels is None and (replication == chunk.goal or chunk.reference_count == 0):
            goal = replication
        else:
            if levels is None:
                levels = self._levels[handle] = {chunk.goal: chunk.reference_count}
            levels[replication] = levels.get(replication, 0) + change
            if not levels[replication]:
                del levels[replication]
            goal = max(levels)
            if len(levels) == 1:
                del self._levels[handle]
        chunk.reference_count += change
        if goal != chunk.goal:
            self._move(chunk, chunk.replicas, goal)

    def _intern(self, servers: tuple[ServerId, ...]) -> ReplicaSet:
        replicas = self._sets.get(servers)
        if replicas is None:
            replicas = self._sets[servers] = ReplicaSet(servers)
        return replicas

    def _move(self, chunk: Chunk, replicas: ReplicaSet | None, goal: int) -> None:
        """Let a chunk count in another tally (None: in none any more); a set that counts nothing is forgotten."""
        before = chunk.replicas
        _count(before, chunk.goal, chunk.length, -1)
        if replicas is not None:
            _count(replicas, goal, chunk.length, 1)
            chunk.replicas, chunk.goal = replicas, goal
        if not before.tally:
            del self._sets[before.servers]

    def check_invariants(self, expected: dict[ChunkHandle, dict[int, int]]) -> None:
        """Raise AssertionError unless the map agrees with itself and with `expected` (handle: replication: extents)."""
        assert expected.keys() == self._chunks.keys(), (
            f"chunks used but unknown: {[id_text(h) for h in expected.keys() - self._chunks.keys()]}, "
            f"known but unused: {[id_text(h) for h in self._chunks.keys() - expected.keys()]}"
        )
        tallies: dict[tuple[ServerId, ...], dict[int, list[int]]] = {}
        for handle, chunk in self._chunks.items():
            levels, text = expected[handle], id_text(handle)
            count = chunk.reference_count
            assert count == sum(levels.values()), f"{text}: {count} references, used with {levels}"
            assert chunk.goal == max(levels), f"{text}: goal {chunk.goal}, used with {levels}"
            assert self._levels.get(handle) == (levels if len(levels) > 1 else None), f"{text}: levels {levels}"
            servers = chunk.replicas.servers
            assert self._sets.get(servers) is chunk.replicas, f"{text}: its replica set is not the interned one"
            assert list(servers) == sorted(set(servers)), f"{text}: servers out of order or twice"
            tally = tallies.setdefault(servers, {}).setdefault(chunk.goal, [0, 0])
            tally[0] += 1
            tally[1] += chunk.length
        kept = {servers: replicas.tally for servers, replicas in self._sets.items()}
        assert kept == tallies, f"tallies are {kept}, the chunks add up to {tallies}"
        assert self._levels.keys() <= self._chunks.keys(), "levels are kept of unknown chunks"
        assert not self._garbage.keys() & self._chunks.keys(), "a chunk is known and garbage"
        assert all(item.servers for item in self._garbage.values()), "garbage without servers is kept"
        stored = sum(item.length * len(item.servers) for item in self._garbage.values())
        assert stored == self.garbage_stored_size, f"garbage counted {self.garbage_stored_size} B, adds up to {stored}"
        counts = Counter(server for item in self._garbage.values() for server in item.servers)
        assert counts == self._garbage_counts, f"garbage by server is {self._garbage_counts}, adds up to {counts}"
        since = [item.since_ms for item in self._garbage.values()]
        assert since == sorted(since), "garbage is not kept oldest first"


def _count(replicas: ReplicaSet, goal: int, length: int, change: int) -> None:
    tally = replicas.tally.get(goal)
    if tally is None:
        tally = replicas.tally[goal] = [0, 0]
    tally[0] += change
    tally[1] += change * length
    if not tally[0]:
        del replicas.tally[goal]
