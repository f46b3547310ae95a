"""A whole cluster in this process: real masters' services and chunk services on real sockets, over memory.

Owns: the wiring of masters (one asyncio loop in a thread, in-memory log) and chunk servers (threads, stores in memory
or in folders), and the faults that a test asks for. Refuses to know: processes, disks and Raft (dfs.testing.cluster
runs those).

The chunk servers never beat again after the start, and the masters hold them for alive all the same: whoever stops one
tests what a client does in the time before the masters notice.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from dfs.chunk.memstore import MemoryStore
from dfs.chunk.replicas import ChunkStore
from dfs.chunk.service import ChunkService
from dfs.chunk.store import FileStore
from dfs.client import ClusterAccess, DfsClient, ReadRules
from dfs.clock import SYSTEM_CLOCK, Clock, Deadline
from dfs.config import ClusterConfig, MasterConfig
from dfs.ids import ChunkHandle, new_server_id
from dfs.local.ports import free_ports
from dfs.master.memory_log import MemoryGroup
from dfs.master.service import MasterService
from dfs.master.state.machine import MasterState
from dfs.net.aio import AioServer
from dfs.net.auth import ClusterKey, make_secret
from dfs.net.blocking import Channel
from dfs.net.listener import Listener, ServeLimits, serve_forever
from dfs.net.local import LocalListener
from dfs.net.messages import ChunkReport, Heartbeat, Message, RegisterServer
from dfs.net.parts import DiskReport, ReplicaReport

T = TypeVar("T")

CAPACITY = 1 << 40  # bytes; memory is only taken when it is written
HEARTBEAT_S = 3600.0  # so long a silence is no sign of anything
LIMITS = ServeLimits(drain_s=0.5)
CLUSTER = "memory"


class MemoryChunkServer:
    """One chunk server. `intercept` gets each connection first, and says whether the real service may have it."""

    def __init__(self, name: str, key: ClusterKey, folder: Path | None = None, *, is_on_disk: bool = False) -> None:
        """`folder`: for the tails of record append, which are files also here; None: it keeps none. `is_on_disk`: the
        store is in that folder, too."""
        self.tail_folders = [] if folder is None else [folder / "tails"]
        if folder is not None:
            folder.mkdir()
        self.name = name
        self.store: ChunkStore = MemoryStore(new_server_id(), CAPACITY)
        if folder is not None and is_on_disk:
            self.store = FileStore([folder / "disk"], CLUSTER, disk_reserve=0, fsync=False)
        self.intercept: Callable[[Channel], bool] | None = None
        self._key = key
        self._door: threading.Thread | None = None
        self.address = ""
        self.start()

    def start(self) -> None:
        """Listen again, at the address of the first start."""
        self.address = self.address or f"127.0.0.1:{free_ports(1)[0]}"  # nobody else gets it while this one is stopped
        listener = Listener.bind(self.address)
        self.service = ChunkService(
            store=self.store,
            key=self._key,
            name=self.name,
            address=self.address,
            tail_folders=self.tail_folders,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=serve_forever,
            args=(listener, self._key, self._handle, LIMITS, self._stop),
            name=self.name,
            daemon=True,
        )
        self._thread.start()

    def open_door(self) -> None:
        """Hand open replicas over to readers in this process, as a daemon does to those of its machine."""
        door = LocalListener.open(self.store.server_id)
        self._door = threading.Thread(
            target=serve_forever, args=(door, self._key, self.service.door.handle, LIMITS, self._stop), daemon=True
        )
        self._door.start()

    def _handle(self, channel: Channel) -> None:
        if self.intercept is None or self.intercept(channel):
            self.service.handle(channel)

    def stop(self) -> None:
        """Close the port and all connections."""
        self._stop.set()
        self._thread.join()
        if self._door is not None:
            self._door.join()
        self.service.close()

    def damage(self, handle: ChunkHandle, offset: int = 0) -> None:
        """Flip one byte of a stored replica."""
        with self.store.open(handle) as opened:
            byte = os.pread(opened.fd, 1, offset)[0]
            os.pwrite(opened.fd, bytes([byte ^ 0xFF]), offset)


class MemoryMaster:
    """One master; it answers at its port, whoever leads."""

    def __init__(self, config: ClusterConfig, name: str, group: MemoryGroup, key: ClusterKey, clock: Clock) -> None:
        self.name = name
        self.state = MasterState(trash_keep_ms=int(config.trash_keep_s * 1000), replication=config.replication)
        self.log = group.join(name, self.state, self._on_leadership)
        self.service = MasterService(
            config=config, name=name, state=self.state, replicated=self.log, key=key, clock=clock
        )
        self.server: AioServer | None = None
        self.heard: list[Message] = []

    def _on_leadership(self, is_leader: bool) -> None:
        self.service.on_leadership(is_leader)


class MemoryCluster:
    """Masters m1.. and chunk servers c1..; m1 leads at first. Use it as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        masters: int = 1,
        chunk_servers: int = 3,
        chunk_size: int = 256 * 1024,
        replication: int = 3,
        clock: Clock = SYSTEM_CLOCK,
        is_on_disk: bool = False,
    ) -> None:
        """`clock`: the masters'; `is_on_disk`: chunk servers keep replicas in `folder`/c1/disk and so on."""
        secret = folder / "secret"
        make_secret(secret)
        self.key = ClusterKey.load(secret, CLUSTER)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dfs-memory-masters", daemon=True)
        self._thread.start()
        self.config = self._make_config(folder, secret, masters, chunk_size, replication)
        self.group = MemoryGroup([master.name for master in self.config.masters])
        self.masters = [
            MemoryMaster(self.config, master.name, self.group, self.key, clock) for master in self.config.masters
        ]
        self.run(self._start_masters())
        self.chunk_servers = [
            MemoryChunkServer(f"c{number}", self.key, folder / f"c{number}", is_on_disk=is_on_disk)
            for number in range(1, chunk_servers + 1)
        ]
        self.lead("m1")

    def _make_config(
        self, folder: Path, secret: Path, masters: int, chunk_size: int, replication: int
    ) -> ClusterConfig:
        addresses = [f"127.0.0.1:{port}" for port in free_ports(masters)]
        return ClusterConfig(
            source=folder / "cluster.ini",
            name=CLUSTER,
            secret_file=secret,
            run_dir=folder,
            masters=tuple(
                MasterConfig(name=f"m{number}", address=address, raft_address=address, data_dir=folder / f"m{number}")
                for number, address in enumerate(addresses, 1)
            ),
            chunk_servers=(),
            replication=replication,
            chunk_size=chunk_size,
            heartbeat_interval_s=HEARTBEAT_S,
            dead_after_s=10 * HEARTBEAT_S,
        )

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on the masters' loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start_masters(self) -> None:
        for master in self.masters:
            await master.log.start()
            await self._open_port(master)

    async def _open_port(self, master: MemoryMaster) -> None:
        address = self.config.master(master.name).address
        master.server = await AioServer.start(address, self.key, master.service.handle, allowed=master.service.allowed)

    # --- the test's hands ---------------------------------------------------------------------------------

    def access(self) -> ClusterAccess:
        return ClusterAccess.from_config(self.config)

    def client(self, *, timeout_s: float = 30.0, parallel: int = 4, reads: ReadRules | None = None) -> DfsClient:
        return DfsClient(self.access(), timeout_s=timeout_s, parallel=parallel, reads=reads or ReadRules())

    def master(self, name: str) -> MemoryMaster:
        return next(master for master in self.masters if master.name == name)

    def chunk_server(self, name: str) -> MemoryChunkServer:
        return next(server for server in self.chunk_servers if server.name == name)

    def lead(self, name: str) -> None:
        """Make a master the leader, and let all chunk servers register with it."""

        async def elect() -> None:
            self.group.elect(name)

        self.run(elect())
        for server in self.chunk_servers:
            self._register(self.config.master(name).address, server)

    def stop_master(self, name: str) -> None:
        """Close a master's port and take it out of the group."""
        master = self.master(name)

        async def stop() -> None:
            if master.server is not None:
                await master.server.close()
                master.server = None
            await master.log.close()

        self.run(stop())

    def _register(self, master: str, server: MemoryChunkServer) -> None:
        store = server.store
        incarnation = os.urandom(16)
        disks = (DiskReport("memory", CAPACITY, CAPACITY, 0, "ok"),)
        replicas = (store.replica(handle) for handle in sorted(store.handles()))
        held = tuple(ReplicaReport(item.handle, item.length, item.crc) for item in replicas if item is not None)
        deadline = Deadline.after(10)
        with Channel.connect(master, self.key, deadline) as channel:
            channel.call(
                RegisterServer(store.server_id, server.name, server.address, "default", incarnation, CAPACITY), deadline
            )
            channel.call(Heartbeat(store.server_id, incarnation, CAPACITY, CAPACITY, 0, 0, disks), deadline)
            channel.call(ChunkReport(store.server_id, incarnation, 1, 0, is_last=True, replicas=held), deadline)

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        for server in self.chunk_servers:
            server.stop()
            server.store.close()
        for master in self.masters:
            self.stop_master(master.name)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> MemoryCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
