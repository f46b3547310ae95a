"""All that a master shows to a monitoring system.

Owns: the names and meanings of a master's metrics (docs/metrics.md lists them). Refuses to know: HTTP, and what a good
value is.

Numbers of the replicated state come from every master; those about chunk servers from the leader alone, since only it
hears them: on other masters they are absent, not 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import dfs
from dfs.master.raft_times import CHECKPOINTS, SYNCS
from dfs.net.exposition import Family, counter, gauge, times

if TYPE_CHECKING:
    from dfs.master.service import MasterService

SNAPSHOT_TIMEOUT_S: Final = 3.0  # for the loop to make a page's numbers
ROLES: Final = ("leader", "follower", "candidate", "joining", "stopped")
STATES: Final = ("alive", "late", "dead")
REPLICAS_TOLD_MAX: Final = 3  # chunks with more live replicas count as "3+"


class MasterMetrics:
    """All metrics of one master. `families` runs on the master's loop."""

    def __init__(
        self,
        *,
        name: str,
        cluster: str,
        service: MasterService,
        connection_count: Callable[[], int],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._cluster = name, cluster
        self._state, self._view, self._meter = service.state, service.view, service.meter
        self._leadership, self._log = service.leadership, service.replicated
        self._connection_count, self._now_s = connection_count, now_s

    def collect_from(self, loop: asyncio.AbstractEventLoop) -> Callable[[], list[Family]]:
        """Return what another thread calls: the numbers are read on the loop, where nothing changes meanwhile."""

        async def snapshot() -> list[Family]:
            return [*self.families()]

        return lambda: asyncio.run_coroutine_threadsafe(snapshot(), loop).result(SNAPSHOT_TIMEOUT_S)

    def families(self) -> Iterator[Family]:
        """Yield every metric with its value of this moment."""
        yield gauge(
            "dfs_build_info",
            "Always 1; the labels tell the node.",
            {(self._cluster, self._name, "master", dfs.__version__): 1.0},
            ("cluster", "node", "role", "version"),
        )
        yield from self._raft()
        yield from self._work()
        yield from self._files()
        if self._leadership.is_leader:
            yield from self._servers()

    def _raft(self) -> Iterator[Family]:
        status, checkpoint, stale_s = self._leadership.status(), self._log.checkpoint_file(), self._log.staleness_s()
        yield gauge("dfs_master_is_leader", "1 on the master that leads.", float(self._leadership.is_leader))
        yield gauge(
            "dfs_master_role",
            "1 for the role that this master has.",
            {(role,): float(role == status.role) for role in ROLES},
            ("role",),
        )
        yield gauge("dfs_master_has_leader", "1 when this master knows who leads.", float(status.leader is not None))
        yield gauge("dfs_master_term", "Raft term.", status.term)
        yield gauge("dfs_master_commit_index", "Last log entry that is committed.", status.commit_index)
        yield gauge("dfs_master_applied_index", "Last log entry that is in the state.", status.applied_index)
        yield counter("dfs_master_leaderships", "How often this master began to lead.", self._meter.leaderships)
        if stale_s is not None:
            yield gauge("dfs_master_staleness_seconds", "The state is at most so old.", stale_s)
        yield times("dfs_master_journal_sync_seconds", "Time of a synced write of the journal.", SYNCS.snapshot())
        yield times("dfs_master_checkpoint_seconds", "Time to write a checkpoint.", CHECKPOINTS.snapshot())
        if checkpoint is not None:
            yield gauge("dfs_master_checkpoint_age_seconds", "Since the newest checkpoint.", checkpoint.age_s)
            yield gauge("dfs_master_checkpoint_size_bytes", "Size of the newest checkpoint.", checkpoint.size)
            yield gauge("dfs_master_checkpoint_index", "Last log entry in the newest checkpoint.", checkpoint.index)

    def _work(self) -> Iterator[Family]:
        meter = self._meter
        yield times(
            "dfs_master_request_seconds",
            "Time from a request to its answer, by message; changes include the wait for a majority.",
            meter.requests.snapshots(),
            "message",
        )
        yield gauge(
            "dfs_master_requests_in_progress",
            "Requests that are worked on or wait for a majority, by message.",
            {(name,): float(count) for name, count in sorted(meter.in_progress.items())},
            ("message",),
        )
        yield counter(
            "dfs_master_request_errors",
            "Requests that were refused or failed, by code.",
            {(code,): float(count) for code, count in meter.errors.values().items()},
            ("code",),
        )
        yield gauge(
            "dfs_master_connections", "Open connections of clients and chunk servers.", self._connection_count()
        )
        yield times("dfs_master_loop_lag_seconds", "How late the loop is.", meter.loop_lag.snapshot())
        yield gauge("dfs_master_sessions", "Client sessions that are remembered.", self._state.session_count)

    def _files(self) -> Iterator[Family]:
        space = self._state.space(None)
        yield gauge("dfs_files", "Files.", space.file_count)
        yield gauge("dfs_directories", "Directories.", space.directory_count)
        yield gauge("dfs_live_bytes", "Size of all files, without replicas.", space.live_size)
        yield gauge("dfs_trash_bytes", "Size of the trash, without replicas.", space.trash_size)
        yield gauge("dfs_trash_entries", "Entries of the trash.", space.trash_count)
        yield gauge("dfs_snapshots", "Snapshots of directories.", space.snapshot_count)
        yield gauge("dfs_snapshot_bytes", "Size of the files in all snapshots, shared or not.", space.snapshot_size)
        yield gauge("dfs_chunks", "Chunks.", space.chunk_count)
        yield gauge("dfs_stored_bytes", "Size of all registered replicas.", space.chunk_stored_size)
        yield gauge("dfs_garbage_chunks", "Released chunks that some server still has.", space.garbage_count)
        yield gauge("dfs_garbage_bytes", "Size of their replicas.", space.garbage_stored_size)

    def _servers(self) -> Iterator[Family]:
        now_s, servers = self._now_s(), self._state.servers()
        live = self._view.offered((server.server_id for server in servers), now_s)
        space = self._state.space(live)
        by_replicas = self._state.live_replica_counts(live, REPLICAS_TOLD_MAX)
        yield gauge(
            "dfs_chunks_by_live_replicas",
            "Chunks with so many live replicas: 0 cannot be read, 1 is one failure from that.",
            {
                (f"{count}{'+' if count == REPLICAS_TOLD_MAX else ''}",): float(chunks)
                for count, chunks in enumerate(by_replicas)
            },
            ("replicas",),
        )
        yield gauge(
            "dfs_chunks_under_replicated", "Chunks with fewer live replicas than wanted.", space.under_replicated_live
        )
        yield gauge("dfs_chunks_missing", "Chunks without a live replica.", space.missing)
        states = dict.fromkeys(STATES, 0.0)
        ages: dict[tuple[str, ...], float] = {}
        capacity = free = 0
        for server in servers:
            state = self._view.liveness(server.server_id, now_s).value
            states[state] = states.get(state, 0.0) + 1
            seen = self._view.get(server.server_id)
            if seen is None:
                continue
            ages[server.name,] = self._view.age_s(server.server_id, now_s)
            if server.server_id in live:
                capacity, free = capacity + seen.capacity, free + seen.free
        yield gauge("dfs_chunk_servers", "Chunk servers by state.", {(s,): n for s, n in states.items()}, ("state",))
        yield gauge(
            "dfs_chunk_server_heartbeat_age_seconds", "Since a server was last heard by the leader.", ages, ("server",)
        )
        yield gauge("dfs_capacity_bytes", "Capacity of the live chunk servers.", capacity)
        yield gauge("dfs_free_bytes", "What live chunk servers still take.", free)
