"""Tell clients where to read and where to write: locations, chains, and the tokens that open them.

Owns: replies to Locate and Allocate, the order of replicas in them, and the words for "no server can take this".
Refuses to know: leadership and the log (the caller made sure that the state may be read).
"""

from __future__ import annotations

import random
from collections.abc import Collection

from dfs.clock import Clock
from dfs.config import ClusterConfig
from dfs.errors import InvalidArgument, NotEnoughServers
from dfs.ids import ChunkHandle, ServerId, new_chunk_handle
from dfs.master.healing.liveness import ClusterView, Liveness, ServerView
from dfs.master.healing.placement import Candidate, plan_chains
from dfs.master.state.machine import MasterState
from dfs.master.state.nodes import Directory, Node
from dfs.master.state.tails import TailRecord
from dfs.master.state.views import Extent, RegisteredServer
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.messages import (
    ALLOCATE_COUNT_MAX,
    EXCLUDE_MAX,
    LOCATE_EXTENTS_MAX,
    LOCATE_FILES_MAX,
    REPLICATION_MAX,
    Allocate,
    AllocateReply,
    Locate,
    LocateMany,
    LocateManyReply,
    LocateReply,
)
from dfs.net.parts import (
    AllocatedChunk,
    Kind,
    LocatedChunk,
    LocatedExtent,
    LocatedFile,
    LocatedTail,
    NewExtent,
    ServerInfo,
)

LOCATE_MANY_EXTENTS_MAX = 4_000  # in one LocateManyReply: about 20 ms of a master's time
COMMIT_MARGIN = 0.9  # of the orphan grace: the rest covers clocks, resends and the age a server rounds down
SERVERS_NAMED_MAX = 12  # in an error message
SLOW_PENALTY = 0.5  # behind those that are prompt, before those that are late
_READ_ORDER = {Liveness.ALIVE: 0, Liveness.LATE: 1, Liveness.DEAD: 2}


class ServerTable:
    """The `servers` of one reply: each is written once and referred to by index.

    Without a `view` (only the leader has one) every server is presumed alive.
    """

    def __init__(self, state: MasterState, view: ClusterView | None, now_s: float) -> None:
        self._state, self._view, self._now_s = state, view, now_s
        self._indexes: dict[ServerId, int] = {}
        self._ranks: list[float] = []
        self._infos: list[ServerInfo] = []

    def index(self, server_id: ServerId) -> int | None:
        """Return the index of a registered server, None for any other."""
        index = self._indexes.get(server_id)
        if index is None and (server := self._state.server(server_id)) is not None:
            liveness = Liveness.ALIVE if self._view is None else self._view.liveness(server_id, self._now_s)
            index = self._indexes[server_id] = len(self._infos)
            is_slow = self._view is not None and self._view.is_slow(server_id)
            self._ranks.append(_READ_ORDER[liveness] + (SLOW_PENALTY if is_slow or server.is_leaving else 0))
            self._infos.append(server_info(server, is_alive=liveness is not Liveness.DEAD))
        return index

    def in_read_order(self, servers: Collection[ServerId], turn: int) -> tuple[int, ...]:
        """Return the indexes of `servers`: alive and prompt ones first, beginning with another one each turn."""
        found = [index for server_id in servers if (index := self.index(server_id)) is not None]
        start = turn % len(found) if found else 0
        return tuple(sorted(found[start:] + found[:start], key=lambda index: self._ranks[index]))

    def infos(self) -> tuple[ServerInfo, ...]:
        return tuple(self._infos)


def server_info(server: RegisteredServer, *, is_alive: bool) -> ServerInfo:
    return ServerInfo(server.server_id, server.name, server.address, server.rack, is_alive)


def _located_file(path: str, node: Node, extents: tuple[NewExtent, ...], *, is_partial: bool) -> LocatedFile:
    if isinstance(node, Directory):
        return LocatedFile(path, Kind.DIRECTORY, node.size, node.mtime_ms, 0, 0, ())
    return LocatedFile(
        path, Kind.FILE, node.size, node.mtime_ms, node.version, node.replication, extents, is_partial=is_partial
    )


class AccessDesk:
    """Answers Locate and Allocate from the state and the leader's soft view."""

    def __init__(
        self,
        *,
        config: ClusterConfig,
        state: MasterState,
        view: ClusterView,
        key: ClusterKey,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._config, self._state, self._view = config, state, view
        self._key, self._clock, self._rng = key, clock, rng
        self._turn = 0

    def _expiry_ms(self) -> int:
        return self._clock.wall_ms() + round(self._config.token_lifetime_s * 1000)

    # --- reading ------------------------------------------------------------------------------------

    def locate(self, message: Locate, *, hears_servers: bool = True) -> LocateReply:
        """Return a window of a file's extents with replicas and READ tokens.

        `hears_servers` false: this master does not lead, so it gets no heartbeats and knows nobody for dead.
        """
        found = self._state.extents(message.path, message.first_extent, LOCATE_EXTENTS_MAX, message.version)
        table = ServerTable(self._state, self._view if hears_servers else None, self._clock.monotonic())
        expires_ms = self._expiry_ms()
        tokens: dict[ChunkHandle, bytes] = {}
        extents = tuple(self._located(extent, table, tokens, expires_ms) for extent in found.extents)
        tails = self._tail(message.path, table, expires_ms)
        return LocateReply(found.status, found.first_offset, extents, table.infos(), found.has_more, tails)

    def _tail(self, path: str, table: ServerTable, expires_ms: int) -> tuple[LocatedTail, ...]:
        """Return the open tail of a file for a reader, if it has one."""
        tail = self._state.tails.at(path)
        return () if tail is None else (self.located_tail(tail, table, Rights.READ, expires_ms),)

    def located_tail(self, tail: TailRecord, table: ServerTable, rights: Rights, expires_ms: int) -> LocatedTail:
        """Return where an open tail is, with a token."""
        chain = tuple(index for server_id in tail.servers if (index := table.index(server_id)) is not None)
        token = sign_token(self._key, tail.handle, rights, expires_ms)
        return LocatedTail(tail.handle, self._state.stat(tail.path).size, token, chain)

    def _located(
        self, extent: Extent, table: ServerTable, tokens: dict[ChunkHandle, bytes], expires_ms: int
    ) -> LocatedExtent:
        handle = extent.handle
        token = tokens.get(handle)
        if token is None:
            token = tokens[handle] = sign_token(self._key, handle, Rights.READ, expires_ms)
        self._turn += 1
        chunk = self._state.chunk(handle)
        if chunk is None:  # the invariants of the state forbid it; the client says that the bytes have no replica
            return LocatedExtent(handle, extent.chunk_offset, extent.length, 0, 0, token, ())
        replicas = table.in_read_order(chunk.servers, self._turn)
        return LocatedExtent(handle, extent.chunk_offset, extent.length, chunk.length, chunk.crc, token, replicas)

    def locate_many(self, message: LocateMany, *, hears_servers: bool = True) -> LocateManyReply:
        """Return a page of what is below a directory; each chunk that its files share is told once."""
        if not 1 <= message.limit <= LOCATE_FILES_MAX:
            raise InvalidArgument(f"{message.limit} files were asked for; 1 to {LOCATE_FILES_MAX} go in one call")
        table = ServerTable(self._state, self._view if hears_servers else None, self._clock.monotonic())
        expires_ms = self._expiry_ms()
        chunks: dict[ChunkHandle, tuple[int, LocatedChunk]] = {}
        files: list[LocatedFile] = []
        extent_count = 0
        for path, node, extents in self._state.content_below(message.path, message.after):
            if len(files) == message.limit or extent_count >= LOCATE_MANY_EXTENTS_MAX:
                return LocateManyReply(tuple(files), tuple(c for _, c in chunks.values()), table.infos(), has_more=True)
            ranges = []
            for extent in extents or ():
                if (known := chunks.get(extent.handle)) is None:
                    known = chunks[extent.handle] = len(chunks), self._located_chunk(extent.handle, table, expires_ms)
                ranges.append(NewExtent(known[0], extent.chunk_offset, extent.length))
            files.append(_located_file(path, node, tuple(ranges), is_partial=extents is None))
            extent_count += len(ranges)
        return LocateManyReply(tuple(files), tuple(c for _, c in chunks.values()), table.infos(), has_more=False)

    def _located_chunk(self, handle: ChunkHandle, table: ServerTable, expires_ms: int) -> LocatedChunk:
        token = sign_token(self._key, handle, Rights.READ, expires_ms)
        self._turn += 1
        chunk = self._state.chunk(handle)
        if chunk is None:  # as in `_located`
            return LocatedChunk(handle, 0, 0, token, ())
        return LocatedChunk(handle, chunk.length, chunk.crc, token, table.in_read_order(chunk.servers, self._turn))

    # --- writing --------------------------------------------------------------------------------------

    def allocate(self, message: Allocate) -> AllocateReply:
        """Return fresh handles with chains and WRITE tokens; raise `NotEnoughServers` or `InvalidArgument`."""
        replication = message.replication or self._config.replication
        if not 1 <= message.count <= ALLOCATE_COUNT_MAX:
            raise InvalidArgument(f"{message.count} chunks were asked for; 1 to {ALLOCATE_COUNT_MAX} go in one call")
        if not 1 <= replication <= REPLICATION_MAX:
            raise InvalidArgument(f"a replication of {replication} is not between 1 and {REPLICATION_MAX}")
        if len(message.exclude) > EXCLUDE_MAX:
            raise InvalidArgument(f"{len(message.exclude)} servers are excluded; the limit is {EXCLUDE_MAX}")
        size = self._config.chunk_size
        candidates, refused = self._candidates(frozenset(message.exclude), replication)
        needed = replication if self._is_gathering() else min(self._config.replicas_min, replication)
        if len(candidates) < needed:
            raise self._shortage(replication, needed, len(candidates), refused)
        chains = plan_chains(candidates, message.count, replication, size, self._rng.random)
        table = ServerTable(self._state, self._view, self._clock.monotonic())
        expires_ms = self._expiry_ms()
        now_ms = max(self._clock.wall_ms(), self._state.clock_ms)  # never before the horizon, also if the clock is late
        chunks = []
        for chain in chains:
            handle = new_chunk_handle(now_ms)
            indexes = tuple(index for server_id in chain if (index := table.index(server_id)) is not None)
            chunks.append(AllocatedChunk(handle, sign_token(self._key, handle, Rights.WRITE, expires_ms), indexes))
            for server_id in chain:
                self._view.promise(server_id, size)
        commit_within_s = int(self._config.orphan_grace_s * COMMIT_MARGIN)
        write_within_s = int(self._config.token_lifetime_s)
        return AllocateReply(tuple(chunks), table.infos(), size, replication, commit_within_s, write_within_s)

    def _is_gathering(self) -> bool:
        """Whether a new leader still waits for the first heartbeats: short chains would then be nobody's wish."""
        if not self._view.is_young(self._clock.monotonic()):
            return False
        seen = (self._view.get(server.server_id) for server in self._state.servers())
        return not all(server is not None and server.has_heartbeat for server in seen)

    def _candidates(self, exclude: Collection[ServerId], needed: int) -> tuple[list[Candidate], list[str]]:
        """Return who can take a chunk now, and for each other server why not; slow ones only if they are needed."""
        now_s = self._clock.monotonic()
        candidates, refused = [], []
        for server in self._state.servers():
            seen = self._view.get(server.server_id)
            reason = self._why_not(server, seen, exclude, now_s)
            if reason or seen is None:
                refused.append(f"{server.name} ({server.address}) {reason}")
                continue
            load = seen.active_streams + seen.promised_count
            candidates.append(Candidate(server.server_id, server.rack, seen.free, seen.promised_size, load))
        prompt = [candidate for candidate in candidates if not self._view.is_slow(candidate.server_id)]
        return (prompt if len(prompt) >= needed else candidates), refused

    def _why_not(
        self, server: RegisteredServer, seen: ServerView | None, exclude: Collection[ServerId], now_s: float
    ) -> str:
        if seen is None or not seen.has_heartbeat:
            return "has not been heard by this leader yet"
        liveness = self._view.liveness(server.server_id, now_s)
        if liveness is not Liveness.ALIVE:
            return f"is {liveness.value}: silent for {now_s - seen.heard_s:.0f} s"
        if server.is_leaving:
            return "is being drained"
        if max(self._clock.wall_ms(), self._state.clock_ms) < server.maintenance_until_ms:
            return "is in maintenance"
        if server.server_id in exclude:
            return "just failed this client"
        best = max((disk.free for disk in seen.disks if disk.state == "ok"), default=0)
        if min(best, seen.free) < self._config.chunk_size:
            states = ", ".join(f"{disk.path} {disk.state}" for disk in seen.disks) or "no disks"
            return (
                f"is full: its best disk takes {best} more bytes, a chunk may need {self._config.chunk_size} ({states})"
            )
        return ""

    def _shortage(self, replication: int, needed: int, usable: int, refused: list[str]) -> NotEnoughServers:
        named = "; ".join(refused[:SERVERS_NAMED_MAX]) or "no chunk server ever registered"
        more = f"; and {len(refused) - SERVERS_NAMED_MAX} more" if len(refused) > SERVERS_NAMED_MAX else ""
        return NotEnoughServers(
            f"{usable} of {usable + len(refused)} chunk servers can take a chunk; {replication} are wanted and at least"
            f" {needed} needed: {named}{more}. Start or add chunk servers, or free space"
        )
