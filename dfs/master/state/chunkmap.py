"""The chunk map: every sealed chunk, where its replicas are, and how many extents use it.

Owns: chunks, interned replica sets with their tallies, reference counts, goals, and garbage (released chunks until
every server has confirmed that they are gone). Refuses to know: files, placement and liveness.

Made for millions of chunks: no record here is one that the garbage collector looks at, a chunk is 150 bytes with its
key and its place, and no table is so large that its growth, or a walk through one piece of it, is felt.

GFS (SOSP 2003) section 2.6.1; differs: replica locations are part of the replicated state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

import msgspec

from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.master.state import extents
from dfs.master.state.views import ChunkView, GarbageChunk
from dfs.net.frames import PAYLOAD_SIZE_MAX

CHUNK_LENGTH_MAX = PAYLOAD_SIZE_MAX  # bytes
TAKEN_APART_STEP = 4_000  # objects freed at a time, of a state that was replaced: about a millisecond
KeyT = TypeVar("KeyT")
_SHARDS = 256  # by the first byte of a handle, which is random: a walk and the growth of a table go in small pieces


class ReplicaSet(msgspec.Struct, gc=False):
    """A goal and a combination of servers that some chunks share: `count` of them, with `size` bytes together."""

    servers: tuple[ServerId, ...]
    goal: int
    count: int = 0
    size: int = 0


class Chunk(msgspec.Struct, gc=False):
    """A sealed chunk. `replicas` outlives it (owned by the map), so no cycle can pass through here."""

    length: int
    crc: int
    reference_count: int
    replicas: ReplicaSet

    @property
    def goal(self) -> int:
        return self.replicas.goal


class Garbage(msgspec.Struct, gc=False):
    """A released chunk that `servers` have not confirmed to be gone; the map owns it."""

    length: int
    servers: tuple[ServerId, ...]
    since_ms: int


class ChunkMap:
    """Known chunks and garbage, both iterated in an order that is the same on every replica.

    Chunks are by the first byte of their handles, then as they came; garbage is oldest first.
    The goal of a chunk is the highest replication of the files (live, in the trash, or being released) that use it.
    Nearly all chunks are used with one replication only; the counts of the others are in `_levels`.
    """

    def __init__(self) -> None:
        self._shards: tuple[dict[ChunkHandle, Chunk], ...] = tuple({} for _ in range(_SHARDS))
        self._count = 0
        self._sets: dict[int, dict[tuple[ServerId, ...], ReplicaSet]] = {}  # goal -> servers -> set
        self._ids: dict[ServerId, ServerId] = {}  # one object for each id, however many sets name it
        self._levels: dict[ChunkHandle, dict[int, int]] = {}  # replication -> extents, of chunks with several
        self._garbage: dict[ChunkHandle, Garbage] = {}
        self._garbage_counts: Counter[ServerId] = Counter()
        self.garbage_stored_size = 0

    # --- reads

    def __len__(self) -> int:
        return self._count

    def __contains__(self, handle: ChunkHandle) -> bool:
        return self._find(handle) is not None

    def is_garbage(self, handle: ChunkHandle) -> bool:
        return handle in self._garbage

    @property
    def unused_count(self) -> int:
        """Return how many chunks were added and not referenced since, O(replica sets): none between two commands."""
        return sum(replicas.count for replicas in self._sets.get(0, {}).values())

    @property
    def garbage_count(self) -> int:
        return len(self._garbage)

    def _find(self, handle: ChunkHandle) -> Chunk | None:
        return self._shards[handle[0]].get(handle) if handle else None

    def view(self, handle: ChunkHandle) -> ChunkView | None:
        chunk = self._find(handle)
        if chunk is None:
            return None
        replicas = chunk.replicas
        return ChunkView(chunk.length, chunk.crc, replicas.goal, replicas.servers, chunk.reference_count)

    def handles(self, first_piece: int = 0) -> Iterator[list[ChunkHandle]]:
        """Yield all handles in pieces, each as it is when its turn comes. Changes in between are allowed.

        A chunk that is known from the first piece to the last is in one of them. They begin with number `first_piece`
        and go round; their number never changes.
        """
        for number in range(_SHARDS):
            yield list(self._shards[(first_piece + number) % _SHARDS])

    def handles_on(self, server_id: ServerId) -> Iterator[list[ChunkHandle]]:
        """Yield the handles of the chunks that are registered on a server, in pieces as `handles` does."""
        for shard in self._shards:
            yield [handle for handle, chunk in shard.items() if server_id in chunk.replicas.servers]

    def chunks(self) -> Iterator[tuple[ChunkHandle, Chunk]]:
        for shard in self._shards:
            yield from shard.items()

    def garbage(self, start_at: int = 0) -> Iterator[GarbageChunk]:
        """Yield garbage, oldest first, from number `start_at` on."""
        for handle, item in islice(self._garbage.items(), start_at, None):
            yield GarbageChunk(handle, item.length, item.servers, item.since_ms)

    def garbage_handles(self) -> list[ChunkHandle]:
        return list(self._garbage)

    def is_garbage_on(self, handle: ChunkHandle, server_id: ServerId) -> bool:
        item = self._garbage.get(handle)
        return item is not None and server_id in item.servers

    def tallies(self, live: Collection[ServerId] | None) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (registered replicas, live replicas, goal, chunk count, bytes), once for each first three.

        O(replica sets): 45 ms for 115,000 of them, which a hundred servers make of many chunks.
        """
        dead = frozenset(() if live is None else self._ids.keys() - frozenset(live))
        for goal, sets in self._sets.items():
            totals: dict[tuple[int, int], list[int]] = {}
            for servers, replicas in sets.items():
                count = len(servers)
                key = (count, count if dead.isdisjoint(servers) else count - len(dead.intersection(servers)))
                total = totals.get(key)
                if total is None:
                    totals[key] = [replicas.count, replicas.size]
                else:
                    total[0] += replicas.count
                    total[1] += replicas.size
            for (count, live_count), (chunk_count, size) in totals.items():
                yield count, live_count, goal, chunk_count, size

    def replica_sets(self) -> list[ReplicaSet]:
        """Return every combination of servers and goal that some chunks have, a snapshot for walks in slices."""
        return [replicas for sets in self._sets.values() for replicas in sets.values()]

    def select(
        self, handles: Iterable[ChunkHandle], wanted: Mapping[tuple[tuple[ServerId, ...], int], KeyT]
    ) -> list[tuple[ChunkHandle, KeyT]]:
        """Return those of `handles` whose (registered servers, goal) is wanted, and what stands there for it."""
        found = []
        for handle in handles:
            chunk = self._find(handle)
            if chunk is not None:
                key = wanted.get((chunk.replicas.servers, chunk.replicas.goal))
                if key is not None:
                    found.append((handle, key))
        return found

    def replica_count_of(self, server_id: ServerId) -> int:
        """Count the chunks that name a server, O(replica sets)."""
        return sum(replicas.count for replicas in self.replica_sets() if server_id in replicas.servers)

    def garbage_count_of(self, server_id: ServerId) -> int:
        return self._garbage_counts.get(server_id, 0)

    # --- changes

    def add(
        self,
        handle: ChunkHandle,
        length: int,
        crc: int,
        servers: Sequence[ServerId],
        replication: int = 0,
        reference_count: int = 0,
    ) -> None:
        """Make a chunk known that so many extents of files with this replication use.

        With 0 of both it must be referenced in the same command.
        """
        replicas = self._intern(tuple(sorted(servers)), replication)
        self._shards[handle[0]][handle] = Chunk(length, crc, reference_count, replicas)
        self._count += 1
        replicas.count += 1
        replicas.size += length

    def reference(self, handle: ChunkHandle, replication: int) -> int:
        """Count one more extent, of a file with this replication; return the chunk's length."""
        chunk = self._shards[handle[0]][handle]
        self._recount(handle, chunk, replication, 1)
        return chunk.length

    def reference_file(self, packed: bytes, replication: int) -> None:
        """Count the extents of one more file; quick for a file that is one whole chunk, as nearly all are."""
        chunk = self._shards[packed[0]].get(ChunkHandle(packed)) if packed else None
        if chunk is not None and chunk.replicas.goal == replication and not self._levels and chunk.reference_count:
            chunk.reference_count += 1
            return
        for handle in extents.handles(packed):
            self.reference(handle, replication)

    def dereference(self, handle: ChunkHandle, replication: int, now_ms: int) -> None:
        """Count one extent less; the last one makes the chunk garbage."""
        shard = self._shards[handle[0]]
        chunk = shard[handle]
        self._recount(handle, chunk, replication, -1)
        if chunk.reference_count == 0:
            self._leave(chunk.replicas, chunk.length)
            del shard[handle]
            self._count -= 1
            if servers := chunk.replicas.servers:
                self.add_garbage(GarbageChunk(handle, chunk.length, servers, now_ms))

    def add_garbage(self, item: GarbageChunk) -> None:
        self._garbage[item.handle] = Garbage(item.length, item.servers, item.since_ms)
        self._garbage_counts.update(item.servers)
        self.garbage_stored_size += item.length * len(item.servers)

    def add_replica(self, handle: ChunkHandle, server_id: ServerId, length: int, crc: int) -> None:
        """Register a replica, unless the chunk is unknown or this is another content than the sealed one."""
        chunk = self._find(handle)
        if chunk is None or chunk.length != length or chunk.crc != crc or server_id in chunk.replicas.servers:
            return
        self._move(chunk, tuple(sorted((*chunk.replicas.servers, server_id))), chunk.goal)

    def drop_replica(self, handle: ChunkHandle, server_id: ServerId) -> None:
        """Forget a replica of a chunk or of garbage, if it was known; garbage without replicas is forgotten."""
        chunk = self._find(handle)
        if chunk is None:
            self.forget_garbage(handle, server_id)
        elif server_id in chunk.replicas.servers:
            rest = tuple(known for known in chunk.replicas.servers if known != server_id)
            self._move(chunk, rest, chunk.goal)

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
        goal = chunk.replicas.goal
        if goal == replication and not self._levels:  # by far the most
            chunk.reference_count += change
            return
        levels = self._levels.get(handle)
        if levels is None and (replication == goal or chunk.reference_count == 0):
            wanted = replication
        else:
            if levels is None:
                levels = self._levels[handle] = {goal: chunk.reference_count}
            levels[replication] = levels.get(replication, 0) + change
            if not levels[replication]:
                del levels[replication]
            wanted = max(levels)
            if len(levels) == 1:
                del self._levels[handle]
        chunk.reference_count += change
        if wanted != goal:
            self._move(chunk, chunk.replicas.servers, wanted)

    def renew(self, handle: ChunkHandle, old: int, new: int) -> None:
        """Count an extent of a file whose replication changes from `old` to `new`."""
        chunk = self._shards[handle[0]][handle]
        if chunk.reference_count == 1:
            self._move(chunk, chunk.replicas.servers, new)
        else:
            self._recount(handle, chunk, new, 1)
            self._recount(handle, chunk, old, -1)

    def _intern(self, servers: tuple[ServerId, ...], goal: int) -> ReplicaSet:
        sets = self._sets.get(goal)
        if sets is None:
            sets = self._sets[goal] = {}
        replicas = sets.get(servers)
        if replicas is None:
            servers = tuple(self._ids.setdefault(server_id, server_id) for server_id in servers)
            replicas = sets[servers] = ReplicaSet(servers, goal)
        return replicas

    def _move(self, chunk: Chunk, servers: tuple[ServerId, ...], goal: int) -> None:
        """Let a chunk count in another set."""
        before = chunk.replicas
        chunk.replicas = replicas = self._intern(servers, goal)
        replicas.count += 1
        replicas.size += chunk.length
        self._leave(before, chunk.length)

    def _leave(self, replicas: ReplicaSet, length: int) -> None:
        """Count a chunk less; a set that counts none is forgotten."""
        replicas.count -= 1
        replicas.size -= length
        if not replicas.count:
            sets = self._sets[replicas.goal]
            del sets[replicas.servers]
            if not sets:
                del self._sets[replicas.goal]

    def take_apart(self) -> Iterator[None]:
        """Empty the map in steps of about a millisecond (at a million chunks); it is useless from the first one on."""
        for shard in self._shards:
            shard.clear()
            yield
        while self._garbage:
            for _ in range(min(TAKEN_APART_STEP, len(self._garbage))):
                self._garbage.popitem()
            yield

    def check_invariants(self, expected: dict[ChunkHandle, dict[int, int]]) -> None:
        """Raise AssertionError unless the map agrees with itself and with `expected` (handle: replication: extents)."""
        chunks = dict(self.chunks())
        assert len(chunks) == self._count, f"{len(chunks)} chunks are kept, {self._count} counted"
        assert expected.keys() == chunks.keys(), (
            f"chunks used but unknown: {[id_text(h) for h in expected.keys() - chunks.keys()]}, "
            f"known but unused: {[id_text(h) for h in chunks.keys() - expected.keys()]}"
        )
        tallies: dict[tuple[int, tuple[ServerId, ...]], tuple[int, int]] = {}
        for handle, chunk in chunks.items():
            levels, text = expected[handle], id_text(handle)
            count, goal = chunk.reference_count, chunk.goal
            assert count == sum(levels.values()), f"{text}: {count} references, used with {levels}"
            assert goal == max(levels), f"{text}: goal {goal}, used with {levels}"
            assert self._levels.get(handle) == (levels if len(levels) > 1 else None), f"{text}: levels {levels}"
            servers = chunk.replicas.servers
            assert self._sets[goal].get(servers) is chunk.replicas, f"{text}: its replica set is not the interned one"
            assert list(servers) == sorted(set(servers)), f"{text}: servers out of order or twice"
            number, size = tallies.get((goal, servers), (0, 0))
            tallies[goal, servers] = number + 1, size + chunk.length
        kept = {
            (goal, servers): (replicas.count, replicas.size)
            for goal, sets in self._sets.items()
            for servers, replicas in sets.items()
        }
        assert kept == tallies, f"tallies are {kept}, the chunks add up to {tallies}"
        assert self._levels.keys() <= chunks.keys(), "levels are kept of unknown chunks"
        assert not self._garbage.keys() & chunks.keys(), "a chunk is known and garbage"
        assert all(item.servers for item in self._garbage.values()), "garbage without servers is kept"
        stored = sum(item.length * len(item.servers) for item in self._garbage.values())
        assert stored == self.garbage_stored_size, f"garbage counted {self.garbage_stored_size} B, adds up to {stored}"
        counts = Counter(server for item in self._garbage.values() for server in item.servers)
        assert counts == self._garbage_counts, f"garbage by server is {self._garbage_counts}, adds up to {counts}"
        since = [item.since_ms for item in self._garbage.values()]
        assert since == sorted(since), "garbage is not kept oldest first"
