"""All that a chunk server shows to a monitoring system.

Owns: the names and meanings of a chunk server's metrics (docs/metrics.md lists them). Refuses to know: HTTP, and what a
good value is.

What a heartbeat carries (disks, scrubbing, copies) is shown as the last acknowledged one told it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import dfs
from dfs.log import unexpected
from dfs.measures import Times
from dfs.net.exposition import Family, counter, gauge, times

if TYPE_CHECKING:
    from dfs.chunk.leader import LeaderConnection
    from dfs.chunk.service import ChunkService
    from dfs.net.messages import Heartbeat

DISK_STATES: Final = ("ok", "full", "failed")


class ChunkMetrics:
    """All metrics of one chunk server. `families` may run in any thread."""

    def __init__(
        self,
        *,
        name: str,
        cluster: str,
        service: ChunkService,
        syncs: Times,
        leader: LeaderConnection,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._cluster, self._service, self._meter = name, cluster, service, service.meter
        self._syncs, self._leader, self._now_s = syncs, leader, now_s

    def families(self) -> Iterator[Family]:
        """Yield every metric with its value of this moment."""
        yield gauge(
            "dfs_build_info",
            "Always 1; the labels tell the node.",
            {(self._cluster, self._name, "chunk", dfs.__version__): 1.0},
            ("cluster", "node", "role", "version"),
        )
        yield counter(
            "dfs_unexpected_errors",
            "Errors that this node's code did not expect and went on after, by the event in its log.",
            {(event,): float(count) for event, count in unexpected().items()},
            ("event",),
        )
        yield from self._work()
        last = self._leader.acknowledged
        if last is None:
            return
        yield gauge(
            "dfs_chunk_heartbeat_age_seconds",
            "Since the leader last acknowledged a heartbeat.",
            self._now_s() - last.at_s,
        )
        yield gauge(
            "dfs_chunk_leader_info", "Always 1; the address of the leader.", {(last.address,): 1.0}, ("leader",)
        )
        yield from _told(last.heartbeat)

    def _work(self) -> Iterator[Family]:
        meter, moved = self._meter, self._meter.bytes.values()
        yield gauge("dfs_chunk_streams", "Chunks being read or written.", self._service.active_streams)
        yield counter("dfs_chunk_received_bytes", "Bytes of chunks written here.", moved.get("in", 0))
        yield counter(
            "dfs_chunk_lent_bytes",
            "Bytes of these that were taken from the memory of writers of this machine.",
            moved.get("lent", 0),
        )
        yield counter("dfs_chunk_sent_bytes", "Bytes of chunks sent to readers.", moved.get("out", 0))
        yield counter(
            "dfs_chunk_handed_over_replicas",
            "Open files given to readers of this machine; what they read is not in the bytes sent.",
            meter.handed_over.values().get("replicas", 0),
        )
        yield counter(
            "dfs_chunk_handed_over_volumes",
            "Open volumes of small replicas given to readers of this machine, likewise.",
            meter.handed_over.values().get("volumes", 0),
        )
        yield times("dfs_chunk_read_seconds", "Time to answer a read, its bytes sent.", meter.reads.snapshot())
        yield times(
            "dfs_chunk_write_seconds",
            "Time of a chunk from its first word to its chain's answer.",
            meter.writes.snapshot(),
        )
        yield times("dfs_chunk_sync_seconds", "Time to make a finished replica durable.", self._syncs.snapshot())
        yield counter(
            "dfs_chunk_request_errors",
            "Requests that were refused or failed, by code.",
            {(code,): float(count) for code, count in meter.refused.values().items()},
            ("code",),
        )


def _told(heartbeat: Heartbeat) -> Iterator[Family]:
    disks, scrub = heartbeat.disks, heartbeat.scrub
    yield gauge(
        "dfs_chunk_disk_capacity_bytes", "Capacity of a disk.", {(d.path,): float(d.capacity) for d in disks}, ("disk",)
    )
    yield gauge(
        "dfs_chunk_disk_free_bytes", "What chunks may still take.", {(d.path,): float(d.free) for d in disks}, ("disk",)
    )
    yield gauge(
        "dfs_chunk_disk_replicas", "Replicas on a disk.", {(d.path,): float(d.chunk_count) for d in disks}, ("disk",)
    )
    yield gauge(
        "dfs_chunk_disk_state",
        "1 for the state that a disk has.",
        {(d.path, state): float(d.state == state) for d in disks for state in DISK_STATES},
        ("disk", "state"),
    )
    yield gauge(
        "dfs_chunk_disk_wait_seconds", "A small synced write on the slowest disk.", heartbeat.disk_wait_ms / 1000
    )
    yield gauge("dfs_chunk_copies_waiting", "Orders to copy that wait or are under way.", len(heartbeat.copying))
    yield counter("dfs_chunk_scrubbed_replicas", "Replicas that the scrubber verified.", scrub.verified_count)
    yield counter("dfs_chunk_scrubbed_bytes", "Their bytes.", scrub.verified_size)
    yield counter("dfs_chunk_quarantined_replicas", "Replicas found corrupt, by anybody.", scrub.corrupt_count)
    yield gauge("dfs_chunk_scrub_progress_ratio", "How far the present walk is.", scrub.lap_progress)
    yield gauge(
        "dfs_chunk_scrub_last_lap_timestamp_seconds", "When a walk last ended, 0: never.", scrub.last_lap_ms / 1000
    )
