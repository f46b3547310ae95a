"""The leader's soft view of the chunk servers: who was heard when, and who therefore counts as alive.

Owns: the last heartbeat of each server, its liveness, restarts and copied identities, and promised bytes.
Refuses to know: clocks (every moment is an argument, in seconds of one monotonic clock), the log and the wire.

Nothing here is replicated: a new leader starts empty and presumes every registered server alive for `dead_after_s`, so
that reads go on, but places new chunks only on servers that it heard itself.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

from dfs.ids import ChunkHandle, ServerId
from dfs.master.healing.pace import Pace, slow_ones
from dfs.net.messages import Heartbeat
from dfs.net.parts import DiskReport, ScrubStatus

LATE_INTERVALS = 3  # heartbeats missed in a row before a server gets no new chunks
RESTART_INTERVALS = 2  # heartbeats missed before another process may take over a server's identity
NOT_SCRUBBED = ScrubStatus()
NEVER_HEARD_S = -1.0  # the age of a heartbeat that never came


class Liveness(enum.Enum):
    """ALIVE servers get reads and new chunks, LATE ones reads only, DEAD ones nothing."""

    ALIVE = "alive"
    LATE = "late"
    DEAD = "dead"


@dataclass(slots=True)
class ServerView:
    """What one chunk server said last. `promised_*`: chunks handed out to writers that its `free` cannot show yet."""

    server_id: ServerId
    incarnation: bytes
    address: str
    heard_s: float
    capacity: int
    free: int = 0
    chunk_count: int = 0
    active_streams: int = 0
    disks: tuple[DiskReport, ...] = ()
    has_heartbeat: bool = False  # registered only: nothing is known of its disks yet
    is_replaced: bool = False  # another identity took its address: it cannot be running
    promised_size: int = 0
    promised_count: int = 0
    pace: Pace = field(default_factory=Pace)
    copying: tuple[ChunkHandle, ...] = ()
    disk_wait_ms: int = 0
    unexpected_count: int = 0
    scrub: ScrubStatus = NOT_SCRUBBED


@dataclass(frozen=True, slots=True)
class Transition:
    """A server's liveness changed. `before` is None when this leader judged it for the first time."""

    server_id: ServerId
    before: Liveness | None
    after: Liveness


class ClusterView:
    """All chunk servers as this leader knows them. Rule 1: only the methods below change it."""

    def __init__(self, *, heartbeat_interval_s: float, dead_after_s: float) -> None:
        self._interval_s = heartbeat_interval_s
        self._late_after_s = min(LATE_INTERVALS * heartbeat_interval_s, dead_after_s)
        self._restart_after_s = RESTART_INTERVALS * heartbeat_interval_s
        self._dead_after_s = dead_after_s
        self.began_s = 0.0  # when this leadership began
        self._servers: dict[ServerId, ServerView] = {}
        self._judged: dict[ServerId, Liveness] = {}
        self._slow: frozenset[ServerId] = frozenset()

    def reset(self, now_s: float) -> None:
        """Forget everything: this master has just become the leader."""
        self.began_s = now_s
        self._servers.clear()
        self._judged.clear()
        self._slow = frozenset()

    def is_young(self, now_s: float) -> bool:
        """Whether this leader began so recently that servers in good health may not have been heard yet."""
        return now_s - self.began_s <= self._late_after_s

    def touch(self, server: ServerView, now_s: float) -> None:
        """Take any other message of a known server as a sign of life."""
        server.heard_s = now_s

    def forgive(self, pause_s: float, now_s: float) -> None:
        """This master itself stood still for `pause_s`: that is no silence of the servers."""
        self.began_s = min(now_s, self.began_s + pause_s)
        for server in self._servers.values():
            server.heard_s = min(now_s, server.heard_s + pause_s)

    # --- what servers say ---------------------------------------------------------------------------

    def twin_of(self, server_id: ServerId, incarnation: bytes, address: str, now_s: float) -> ServerView | None:
        """Return the live server that stands against this registration: the same id at another address, not silent.

        The same address is a restart of the same daemon (a port has one owner) and stands against nothing.
        """
        old = self._servers.get(server_id)
        if old is None or old.incarnation == incarnation or old.address == address or old.is_replaced:
            return None
        return old if now_s - old.heard_s <= self._restart_after_s else None

    def register(self, server_id: ServerId, incarnation: bytes, address: str, capacity: int, now_s: float) -> None:
        """Take a server in, or a new incarnation of it; any other identity at its address is no longer running."""
        for other in self._servers.values():
            if other.address == address and other.server_id != server_id:
                other.is_replaced = True
        old = self._servers.get(server_id)
        if old is not None and old.incarnation == incarnation and old.address == address:
            old.heard_s = now_s
            old.is_replaced = False
        else:
            self._servers[server_id] = ServerView(server_id, incarnation, address, now_s, capacity)

    def heard(self, heartbeat: Heartbeat, now_s: float) -> bool:
        """Take a heartbeat in; False when its sender must register first."""
        server = self.known(heartbeat.server_id, heartbeat.incarnation)
        if server is None:
            return False
        server.pace.note(heartbeat.disk_wait_ms, now_s, self._interval_s)
        server.heard_s = now_s
        server.capacity, server.free = heartbeat.capacity, heartbeat.free
        server.chunk_count, server.active_streams = heartbeat.chunk_count, heartbeat.active_streams
        server.disks = heartbeat.disks
        server.copying, server.disk_wait_ms, server.scrub = heartbeat.copying, heartbeat.disk_wait_ms, heartbeat.scrub
        server.unexpected_count = heartbeat.unexpected_count
        server.has_heartbeat = True
        server.promised_size //= 2  # a chunk takes a few heartbeats until `free` shows it
        server.promised_count //= 2
        return True

    def promise(self, server_id: ServerId, size: int) -> None:
        """Count a chunk that a writer was sent away with."""
        server = self._servers.get(server_id)
        if server is not None:
            server.promised_size += size
            server.promised_count += 1

    # --- what follows -------------------------------------------------------------------------------

    def known(self, server_id: ServerId, incarnation: bytes) -> ServerView | None:
        """Return the registered server when this is still its running incarnation."""
        server = self._servers.get(server_id)
        return server if server is not None and server.incarnation == incarnation and not server.is_replaced else None

    def get(self, server_id: ServerId) -> ServerView | None:
        return self._servers.get(server_id)

    def age_s(self, server_id: ServerId, now_s: float) -> float:
        """Return the seconds since the last sign of life, `NEVER_HEARD_S` when this leader saw none."""
        server = self._servers.get(server_id)
        return NEVER_HEARD_S if server is None else max(0.0, now_s - server.heard_s)

    def liveness(self, server_id: ServerId, now_s: float) -> Liveness:
        """Judge one server; one that this leader never heard is LATE while it is presumed to be on its way."""
        server = self._servers.get(server_id)
        if server is None:
            return Liveness.LATE if now_s - self.began_s <= self._dead_after_s else Liveness.DEAD
        silence_s = now_s - server.heard_s
        if server.is_replaced or silence_s > self._dead_after_s:
            return Liveness.DEAD
        return Liveness.LATE if silence_s > self._late_after_s else Liveness.ALIVE

    def silence_s(self, server_id: ServerId, now_s: float) -> float:
        """Return the seconds of silence; one that this leader never heard is silent since the leadership began."""
        server = self._servers.get(server_id)
        return max(0.0, now_s - (self.began_s if server is None else server.heard_s))

    def judge_paces(self, now_s: float) -> tuple[frozenset[ServerId], frozenset[ServerId]]:
        """Compare the paces of all live servers; return those that have become slow, and those that no longer are."""
        paces = {
            server_id: server.pace
            for server_id, server in self._servers.items()
            if self.liveness(server_id, now_s) is Liveness.ALIVE
        }
        before, self._slow = self._slow, slow_ones(paces, self._slow)
        return self._slow - before, before - self._slow

    def is_slow(self, server_id: ServerId) -> bool:
        """Whether it stood out among the others when they were last compared."""
        return server_id in self._slow

    def forget(self, server_id: ServerId) -> None:
        """Drop a server that was taken out of the registry."""
        self._servers.pop(server_id, None)
        self._judged.pop(server_id, None)

    def offered(self, server_ids: Iterable[ServerId], now_s: float) -> set[ServerId]:
        """Return those of `server_ids` that a reader should try."""
        return {server_id for server_id in server_ids if self.liveness(server_id, now_s) is not Liveness.DEAD}

    def transitions(self, server_ids: Iterable[ServerId], now_s: float) -> list[Transition]:
        """Return what changed since the last call among `server_ids` (the registry)."""
        changes = []
        for server_id in server_ids:
            after = self.liveness(server_id, now_s)
            before = self._judged.get(server_id)
            if after is not before:
                self._judged[server_id] = after
                changes.append(Transition(server_id, before, after))
        return changes
