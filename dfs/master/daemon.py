"""Run one master: build its parts, serve until a signal comes, and stop cleanly.

Owns: the order of start and stop, signals, the event loop and process limits. Refuses to know: what the parts do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
from collections.abc import Callable, Sequence
from typing import Any

from dfs.clock import SYSTEM_CLOCK, Deadline
from dfs.config import ClusterConfig, MasterConfig
from dfs.errors import ConfigError, DfsError
from dfs.log import configure, get_logger
from dfs.master.duties import Duty, all_duties, run_duty
from dfs.master.leadership import Leadership
from dfs.master.raft_state import RaftLog
from dfs.master.service import MasterService
from dfs.master.state.machine import MasterState
from dfs.master.tail_duty import TailDuty
from dfs.net.aio import CONNECTIONS_MAX, AioServer
from dfs.net.auth import ClusterKey
from dfs.net.metrics_port import open_metrics_port

DESCRIPTORS_WANTED = CONNECTIONS_MAX + 256  # the rest: journal, raft connections, logs
STATE_FOLDER = "raft"  # what the log makes in a data directory
RETIRE_S = 2.0  # to give the leadership away before a stop; a master that cannot stops as if it were killed
GC_THRESHOLDS = (5_000, 50, 100)  # allocations (each may be a block of 64 files: 15 ms), then rounds: no cycles here

log = get_logger(__name__)


def run(config: ClusterConfig, name: str, *, log_level: str = "info") -> None:
    """Serve as master `name` until SIGTERM or SIGINT.

    Raise `ConfigError` or `StorageCorrupt` when it cannot start; the reason stands in the log, too.
    """
    configure("master", name, log_level, None)
    try:
        master = config.master(name)
        key = ClusterKey.load(config.secret_file, config.name)
        _raise_descriptor_limit()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(config, master, key))
    except DfsError as error:
        log.error("master_failed", code=error.code, reason=error.message)
        raise


async def _serve(config: ClusterConfig, master: MasterConfig, key: ClusterKey) -> None:
    stop = _stop_on_signals()
    for warning in config.warnings:
        log.warning("config_warning", text=warning)
    state = MasterState()  # its options are replicated: the leader brings them in line with the configuration
    service: MasterService | None = None

    def on_leadership(is_leader: bool) -> None:
        if service is not None:
            service.on_leadership(is_leader)

    raft = RaftLog(
        name=master.name,
        peers={other.name: other.raft_address for other in config.masters},
        data_dir=master.data_dir,
        key=key,
        machine=state,
        election_timeout_s=(config.election_timeout_min_s, config.election_timeout_max_s),
        fsync=config.fsync,
        on_leadership=on_leadership,
    )
    service = MasterService(config=config, name=master.name, state=state, replicated=raft, key=key)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(raft.close)
        await _start_log(raft, master)
        server = await AioServer.start(master.address, key, service.handle, allowed=service.allowed)
        stack.push_async_callback(server.close)
        _open_metrics(stack, config, master, service, server)
        duties = all_duties(
            config=config,
            state=state,
            view=service.view,
            reports=service.reports,
            leadership=service.leadership,
            clock=SYSTEM_CLOCK,
            healers=service.healing_duties(),
        )
        duties.append(TailDuty(service.tails, state, service.leadership))
        stack.push_async_callback(_cancel, _start_duties(duties, service.leadership))
        settle_memory()
        log.info("master_started", address=master.address, raft_address=master.raft_address, data_dir=master.data_dir)
        await stop.wait()
        log.info("master_stopping")
        await service.leadership.retire(Deadline.after(RETIRE_S))
    log.info("master_stopped")


def _open_metrics(
    stack: contextlib.AsyncExitStack,
    config: ClusterConfig,
    master: MasterConfig,
    service: MasterService,
    server: AioServer,
) -> None:
    """Serve metrics until the stack ends, where an address is configured for them."""
    if not master.metrics_address:
        return
    from dfs.master.metrics import MasterMetrics  # noqa: PLC0415 - not without need: it loads the metrics library
    from dfs.net.exposition import CONTENT_TYPE, page_of  # noqa: PLC0415 - likewise

    metrics = MasterMetrics(
        name=master.name, cluster=config.name, service=service, connection_count=lambda: server.connection_count
    )
    loop = asyncio.get_running_loop()
    port = open_metrics_port(master.metrics_address, page_of(metrics.collect_from(loop)), CONTENT_TYPE)
    if port is not None:
        stack.push_async_callback(asyncio.to_thread, port.close)
        stack.push_async_callback(_cancel, [loop.create_task(service.meter.watch_loop(), name="loop-lag")])


async def _start_log(raft: RaftLog, master: MasterConfig) -> None:
    try:
        _check_folder(master)
        await raft.start()
    except OSError as error:
        if isinstance(error, DfsError):
            raise
        raise ConfigError(
            f"master {master.name} cannot use its data directory {master.data_dir} or bind {master.raft_address}: "
            f"{error.strerror or error}; check [master:{master.name}] and the permissions"
        ) from error


def _check_folder(master: MasterConfig) -> None:
    """Refuse a folder that something else uses: a master would start in it without knowing a single file."""
    if not master.data_dir.exists():
        return
    names = {entry.name for entry in master.data_dir.iterdir()} - {"lost+found"}
    if names and STATE_FOLDER not in names:
        raise ConfigError(
            f"the data directory {master.data_dir} of master {master.name} holds {min(names)!r} and no state of this"
            " version of dfs; correct data_dir, or move away what is there (it may be the state of another version)"
        )


def _start_duties(duties: Sequence[Duty], leadership: Leadership) -> list[asyncio.Task[None]]:
    loop = asyncio.get_running_loop()
    return [loop.create_task(run_duty(duty, leadership), name=f"duty-{duty.name}") for duty in duties]


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _stop_on_signals() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; errors that no task owns go to the log from now on."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.error("loop_error", text=context.get("message", ""), error=repr(error) if error else "")

    loop.set_exception_handler(report)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where it is installed (the extra `fast`), None for the standard loop."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _raise_descriptor_limit() -> None:
    """Allow as many open files as the port takes connections, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < DESCRIPTORS_WANTED:
        log.warning("few_descriptors", limit=wanted, wanted=DESCRIPTORS_WANTED)


def settle_memory() -> None:
    """Keep the garbage collector away from the loaded state: a full search through it would stall the loop."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
