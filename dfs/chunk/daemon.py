"""Run a chunk server: put its parts together, start their threads, and stop them on a signal.

Owns: the order of starting and stopping. Refuses to know: what the parts do.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from dfs.chunk.arenas import share_arenas
from dfs.chunk.copy_queue import COPIERS
from dfs.chunk.disk import RecentSpace
from dfs.chunk.disk_watch import DiskWatch
from dfs.chunk.door import LocalDoor
from dfs.chunk.heartbeat import Heartbeats, ServerCard
from dfs.chunk.leader import LeaderConnection
from dfs.chunk.orders import DeletionOrders
from dfs.chunk.replicator import Replicator
from dfs.chunk.scrub_position import PositionFiles
from dfs.chunk.scrubber import Scrubber
from dfs.chunk.service import ChunkService
from dfs.chunk.store import FileStore
from dfs.chunk.tails.folders import TailFolders
from dfs.chunk.tails.reports import TailReports
from dfs.config import ChunkServerConfig, ClusterConfig
from dfs.errors import ConfigError, DfsError
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ServerId
from dfs.log import configure, get_logger
from dfs.net.auth import ClusterKey
from dfs.net.listener import CONNECTIONS_MAX, Listener, ServeLimits, serve_forever
from dfs.net.local import LocalListener
from dfs.net.metrics_port import open_metrics_port

DRAIN_S = 1.0  # how long work in progress may take to end after a stop; writers try again elsewhere
THREAD_END_S = 1.0  # how long the other threads may take
DESCRIPTORS_WANTED = 4 * CONNECTIONS_MAX + 1024  # a file for each connection, the door's with its memory, the cache's …

log = get_logger(__name__)


def run(config: ClusterConfig, name: str, *, log_level: str = "info") -> None:
    """Serve as chunk server `name` until SIGTERM or SIGINT.

    Raise `ConfigError`, `DiskFailed` or `StorageCorrupt` when it cannot start; the reason stands in the log, too.
    """
    configure("chunk", name, log_level, None)
    try:
        server = config.chunk_server(name)
        key = ClusterKey.load(config.secret_file, config.name)
        _raise_descriptor_limit()
        share_arenas()
        stop = threading.Event()
        with _signals_set(stop):
            serve(config, server, key, stop)
    except DfsError as error:
        log.error("chunk_server_failed", code=error.code, reason=error.message)
        raise


def serve(config: ClusterConfig, server: ChunkServerConfig, key: ClusterKey, stop: threading.Event) -> None:
    """Serve until `stop` is set; every thread has ended or been given up on return."""
    with contextlib.ExitStack() as stack:
        listener = Listener.bind(server.address)  # first: a taken port must not cost a scan of all disks
        stack.callback(listener.close)
        reserve, fsync, probe = config.disk_reserve, config.fsync, RecentSpace()
        store = FileStore(server.data_dirs, config.name, disk_reserve=reserve, fsync=fsync, probe=probe)
        stack.callback(store.close)
        service = ChunkService(
            store=store,
            key=key,
            name=server.name,
            address=server.address,
            tail_folders=TailFolders.on(store.data_disks),
        )
        stack.callback(service.close)
        orders = DeletionOrders(store)
        replicator = Replicator(store, key, server.address, is_serving_clients=service.meter.is_serving_clients)
        watch = DiskWatch(store.data_disks)
        scrubber = Scrubber(
            store,
            PositionFiles(lambda: [disk.path for disk in store.data_disks if disk.is_in_place()]),
            period_s=config.scrub_period_s,
            rate=config.scrub_rate,
            active_streams=lambda: service.active_streams,
        )
        leader = LeaderConnection([master.address for master in config.masters], key)
        heartbeats = Heartbeats(
            store=store,
            leader=leader,
            orders=orders,
            replicator=replicator,
            card=ServerCard(server.name, server.address, server.rack, os.urandom(16)),
            interval_s=config.heartbeat_interval_s,
            active_streams=lambda: service.active_streams,
            disk_wait_ms=watch.wait_ms,
            scrub=scrubber.status,
        )
        tail_reports = TailReports(service.tails, store.server_id, [master.address for master in config.masters], key)
        stack.callback(tail_reports.close)
        works: list[tuple[str, Callable[[threading.Event], None]]] = [
            ("tail reports", tail_reports.run),
            ("heartbeats", heartbeats.run),
            ("orders", orders.run),
            ("compaction", store.compactor.run),
            ("scrubber", scrubber.run),
            ("disk watch", watch.run),
            *((f"copier {number}", replicator.run) for number in range(1, COPIERS + 1)),
        ]
        has_door = config.local_reads and (is_on(FastPath.LOCAL_READS) or is_on(FastPath.MEMORY_DOOR))
        if has_door and (door := _open_door(store.server_id)) is not None:
            stack.callback(door.close)
            works.append(("local door", functools.partial(_serve_door, door, key, service.door)))
        threads = _started(works, stop)
        stack.callback(_open_metrics(config, server, service, store, leader))
        log.info("serving", address=listener.address, server=store.server_id)
        try:
            serve_forever(listener, key, service.handle, ServeLimits(drain_s=DRAIN_S), stop)
        finally:
            stop.set()
            heartbeats.hurry()
            leader.close()
            replicator.close()
            for thread in threads:
                thread.join(THREAD_END_S)
        log.info("stopped")


def _open_door(server_id: ServerId) -> LocalListener | None:
    """Open the door for clients of this machine; without one they come over the network."""
    try:
        return LocalListener.open(server_id)
    except ConfigError as error:
        log.warning("local_door_closed", reason=error.message, effect="clients of this machine use the network")
        return None


def _started(
    works: list[tuple[str, Callable[[threading.Event], None]]], stop: threading.Event
) -> list[threading.Thread]:
    """Start a thread for each work; return them."""
    threads = [threading.Thread(target=work, args=(stop,), name=f"dfs {name}", daemon=True) for name, work in works]
    for thread in threads:
        thread.start()
    return threads


def _serve_door(door: LocalListener, key: ClusterKey, service: LocalDoor, stop: threading.Event) -> None:
    serve_forever(door, key, service.handle, ServeLimits(drain_s=DRAIN_S), stop)


def _open_metrics(
    config: ClusterConfig, server: ChunkServerConfig, service: ChunkService, store: FileStore, leader: LeaderConnection
) -> Callable[[], None]:
    """Serve metrics where an address is configured for them; return what ends that."""
    if not server.metrics_address:
        return lambda: None
    from dfs.chunk.metrics import ChunkMetrics  # noqa: PLC0415 - not without need: it loads the metrics library
    from dfs.net.exposition import CONTENT_TYPE, page_of  # noqa: PLC0415 - likewise

    metrics = ChunkMetrics(name=server.name, cluster=config.name, service=service, syncs=store.syncs, leader=leader)
    port = open_metrics_port(server.metrics_address, page_of(metrics.families), CONTENT_TYPE)
    return lambda: None if port is None else port.close()


@contextlib.contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and SIGINT set `stop`; the accept loop sees it within its poll interval."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()  # and nothing else: the log may be in use by the code that was interrupted

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < DESCRIPTORS_WANTED:
        log.warning("few_descriptors", limit=wanted, wanted=DESCRIPTORS_WANTED, action="raise ulimit -n")
