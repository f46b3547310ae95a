"""All that a master shows to a monitoring system.

Owns: the names and meanings of a master's metrics (docs/metrics.md lists them). Refuses to know: HTTP, and what a good
value is.

Numbers of the replicated state come from every master; those about chunk servers from the leader alone, since only it
hears them: on other masters they are absent, not 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import dfs
from dfs.log import unexpected
from dfs.master.raft_times import CHECKPOINTS, SYNCS
from dfs.net.exposition import Family, counter, gauge, times
from dfs.net.parts import HealingStatus

if TYPE_CHECKING:
    from dfs.master.service import MasterService

SNAPSHOT_TIMEOUT_S: Final = 3.0  # for the loop to make a page's numbers
ROLES: Final = ("leader", "follower", "candidate", "joining", "stopped")
STATES: Final = ("alive", "slow", "late", "dead")
MODES: Final = ("draining", "drained", "maintenance")
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
    ) -> None:
        self._name, self._cluster = name, cluster
        self._service, self._state, self._meter = service, service.state, service.meter
        self._leadership, self._log = service.leadership, service.replicated
        self._connection_count = connection_count

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
        yield counter(
            "dfs_unexpected_errors",
            "Errors that this node's code did not expect and went on after, by the event in its log.",
            {(event,): float(count) for event, count in unexpected().items()},
            ("event",),
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
        view = self._service.cluster_view()
        live = {server.info.server_id for server in view.servers if server.state != "dead"}
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
        space = view.space
        yield gauge(
            "dfs_chunks_under_replicated", "Chunks with fewer live replicas than wanted.", space.under_replicated_live
        )
        yield gauge("dfs_chunks_missing", "Chunks without a live replica.", space.missing)
        states, modes = dict.fromkeys(STATES, 0.0), dict.fromkeys(MODES, 0.0)
        ages: dict[tuple[str, ...], float] = {}
        for server in view.servers:
            states[server.state] = states.get(server.state, 0.0) + 1
            if server.mode:
                modes[server.mode] = modes.get(server.mode, 0.0) + 1
            if server.heartbeat_age_s >= 0:
                ages[server.info.name,] = server.heartbeat_age_s
        capacity = sum(server.capacity for server in view.servers if server.info.server_id in live)
        free = sum(server.free for server in view.servers if server.info.server_id in live)
        yield gauge("dfs_chunk_servers", "Chunk servers by state.", {(s,): n for s, n in states.items()}, ("state",))
        yield gauge(
            "dfs_chunk_servers_set_aside",
            "Chunk servers by wanted mode.",
            {(m,): n for m, n in modes.items()},
            ("mode",),
        )
        yield gauge(
            "dfs_chunk_server_heartbeat_age_seconds", "Since a server was last heard by the leader.", ages, ("server",)
        )
        yield gauge("dfs_capacity_bytes", "Capacity of the live chunk servers.", capacity)
        yield gauge("dfs_free_bytes", "What live chunk servers still take.", free)
        if view.healing.is_surveyed:
            yield from healing_families(view.healing)


def healing_families(healing: HealingStatus) -> Iterator[Family]:
    """Yield how far repair and balance are."""
    counts = zip(("0", "1", "2+"), healing.waiting, strict=True)
    waiting: dict[tuple[str, ...], float] = {(replicas,): float(chunks) for replicas, chunks in counts}
    yield gauge("dfs_repair_waiting_chunks", "Chunks to copy, by live replicas.", waiting, ("replicas",))
    yield gauge("dfs_repair_waiting_bytes", "Bytes to copy.", healing.waiting_size)
    yield gauge("dfs_repair_deferred_chunks", "Chunks that wait for a silent server.", healing.deferred_count)
    yield gauge("dfs_repair_blocked_chunks", "Chunks that no server can take a copy of.", healing.blocked_count)
    yield gauge("dfs_repair_copying_chunks", "Orders to copy that chunk servers have.", healing.copying_count)
    yield gauge("dfs_repair_rate_bytes_per_second", "Bytes copied per second, lately.", healing.rate)
    yield counter("dfs_repair_copied_chunks", "Chunks copied since this leader began.", healing.copied_count)
    yield counter("dfs_repair_copied_bytes", "Bytes copied since this leader began.", healing.copied_size)
    yield counter("dfs_repair_failed_copies", "Copies that failed since this leader began.", healing.failed_count)
    for name, text, eta_s in (
        ("dfs_time_to_safe_seconds", "Until no chunk is down to one live replica.", healing.safe_eta_s),
        ("dfs_time_to_healed_seconds", "Until nothing waits for a copy.", healing.eta_s),
    ):
        if eta_s >= 0:  # absent while it cannot be told
            yield gauge(name, text, eta_s)
    yield gauge("dfs_chunks_surplus", "Chunks with more live replicas than wanted.", healing.surplus_count)
    yield gauge("dfs_chunks_misplaced", "Chunks in one rack that could be in several.", healing.misplaced_count)
    balance = healing.balance
    yield gauge("dfs_balance_spread_ratio", "Between the fullest and the emptiest server.", balance.spread)
    yield gauge("dfs_balance_left_bytes", "Bytes that balance has to move.", balance.left_size)
