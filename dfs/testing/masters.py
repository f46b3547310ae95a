"""Masters and chunk servers in one process without sockets: the real service over the in-memory log and a fake clock.

Owns: `MasterTrio`, the masters of a test, and `PretendServer`, which says what a chunk server says to them.
Refuses to know: what a test expects.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from dfs.clock import Deadline
from dfs.config import ClusterConfig, MasterConfig
from dfs.errors import DfsError
from dfs.ids import ChunkHandle, ServerId, new_session_id
from dfs.master.memory_log import MemoryGroup, MemoryLog
from dfs.master.service import MasterService
from dfs.master.state.machine import MasterState
from dfs.net.aio import RequestContext
from dfs.net.auth import ClusterKey
from dfs.net.messages import (
    Allocate,
    AllocateReply,
    ChunkReport,
    ChunkReportReply,
    CommitFile,
    ErrorReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    RegisterServer,
    StatReply,
)
from dfs.net.parts import CallId, CopyFailure, CopyReplica, DiskReport, NewChunk, NewExtent, ReplicaReport
from dfs.testing.clock import FakeClock

MIB = 1024 * 1024
ReplyT = TypeVar("ReplyT", bound=Message)


class MasterTrio:
    """Three masters `m1` to `m3`; `await start()` makes m1 the leader. Keywords override the configuration."""

    def __init__(self, names: Collection[str] = ("m1", "m2", "m3"), **overrides: Any) -> None:
        settings: dict[str, Any] = {"chunk_size": MIB, "replicas_min": 1, **overrides}
        masters = tuple(
            MasterConfig(
                name=name,
                address=f"10.0.0.{index}:7400",
                raft_address=f"10.0.0.{index}:7410",
                data_dir=Path("/nowhere") / name,
            )
            for index, name in enumerate(names, 1)
        )
        self.config = ClusterConfig(
            source=Path("cluster.ini"),
            name="test",
            secret_file=Path("/nowhere/secret"),
            run_dir=Path("/nowhere"),
            masters=masters,
            chunk_servers=(),
            **settings,
        )
        self.clock = FakeClock()
        self.key = ClusterKey.from_secret(b"0" * 64, "test")
        self.group = MemoryGroup(tuple(names))
        self.services: dict[str, MasterService] = {}
        self.logs: dict[str, MemoryLog] = {}
        self._session = new_session_id()
        self._sequence = 0

    async def start(self) -> MasterTrio:
        """Start all masters; the first one leads."""
        for name in self.group.names:
            await self.start_master(name)
        self.group.elect(self.group.names[0])
        return self

    async def start_master(self, name: str) -> MasterService:
        """Start or restart one master with an empty state, which the log fills."""
        state = MasterState()
        hears: list[MasterService] = []

        def on_leadership(is_leader: bool) -> None:
            for service in hears:
                service.on_leadership(is_leader)

        log = self.group.join(name, state, on_leadership)
        service = MasterService(
            config=self.config,
            name=name,
            state=state,
            replicated=log,
            key=self.key,
            clock=self.clock,
            rng=random.Random(7),  # noqa: S311 - a test replays exactly
        )
        hears.append(service)
        self.services[name], self.logs[name] = service, log
        await log.start()
        return service

    @property
    def leader(self) -> MasterService:
        assert self.group.leader is not None, "no master leads"
        return self.services[self.group.leader]

    async def ask(self, message: Message, *, to: str | None = None, timeout_s: float = 30.0) -> Message:
        """Hand a request to one master (the leader); its ErrorReply is raised as its error, as a channel would."""
        service = self.leader if to is None else self.services[to]
        reply = await service.handle(message, RequestContext("test:1", 1, Deadline.after(timeout_s)))
        if isinstance(reply, ErrorReply):
            raise reply.error()
        return reply

    async def expect(self, kind: type[ReplyT], message: Message, *, to: str | None = None) -> ReplyT:
        """Ask, and check the type of the reply."""
        reply = await self.ask(message, to=to)
        assert isinstance(reply, kind), f"{kind.__name__} was expected, {reply!r} came"
        return reply

    async def refused(self, message: Message, *, to: str | None = None, timeout_s: float = 30.0) -> DfsError:
        """Ask what must fail, and return the error."""
        try:
            reply = await self.ask(message, to=to, timeout_s=timeout_s)
        except DfsError as error:
            return error
        raise AssertionError(f"{type(message).__name__} was answered with {reply!r}")

    def call(self) -> CallId:
        """Return the id of a new call of the test's session; all earlier ones are acknowledged."""
        self._sequence += 1
        return CallId(self._session, self._sequence, self._sequence)

    async def store(self, path: str, size: int = 1000, *, replication: int = 0, crc: int = 7) -> list[ChunkHandle]:
        """Put a file as a client does (but for the bytes): allocate, commit; return its chunks."""
        unit = self.config.chunk_size
        lengths = [min(unit, size - start) for start in range(0, size, unit)]
        allocated = await self.expect(AllocateReply, Allocate(len(lengths), replication))
        chunks = tuple(
            NewChunk(chunk.handle, length, crc, tuple(allocated.servers[place].server_id for place in chunk.chain))
            for chunk, length in zip(allocated.chunks, lengths, strict=True)
        )
        extents = tuple(NewExtent(index, 0, length) for index, length in enumerate(lengths))
        await self.expect(StatReply, CommitFile(self.call(), path, chunks, extents, replication))
        return [chunk.handle for chunk in chunks]

    def check_invariants(self) -> None:
        for name in self.group.reachable():
            self.services[name].state.check_invariants()


class PretendServer:
    """A chunk server as the masters hear it. `replicas` is what it holds, by handle."""

    def __init__(self, trio: MasterTrio, number: int, *, rack: str = "", free: int = 1000 * MIB) -> None:
        self.trio = trio
        self.server_id = ServerId(bytes([number]) * 16)
        self.incarnation = bytes([number]) * 8
        self.name = f"c{number}"
        self.address = f"10.0.1.{number}:7500"
        self.rack = rack or f"r{number}"
        self.free = free
        self.disk_state = "ok"
        self.disk_wait_ms = 0
        self.replicas: dict[ChunkHandle, ReplicaReport] = {}
        self.fetched: list[CopyReplica] = []  # orders that `work` has done
        self._added: list[ReplicaReport] = []
        self._removed: list[ChunkHandle] = []
        self._report_id = 0

    def put(self, handle: ChunkHandle, length: int, crc: int) -> ReplicaReport:
        """Hold a replica."""
        self.replicas[handle] = ReplicaReport(handle, length, crc)
        return self.replicas[handle]

    async def register(self) -> None:
        """Register with the leader."""
        await self.trio.ask(
            RegisterServer(self.server_id, self.name, self.address, self.rack, self.incarnation, 2 * self.free or 1)
        )

    async def join(self) -> None:
        """Register, report all there is, and beat once."""
        await self.register()
        await self.report()
        await self.beat()

    async def beat(
        self,
        added: Collection[ReplicaReport] = (),
        removed: Collection[ChunkHandle] = (),
        copying: Collection[ChunkHandle] = (),
        copy_failures: Collection[CopyFailure] = (),
    ) -> HeartbeatReply:
        """Send a heartbeat to the leader."""
        disk = DiskReport("/data", 2 * self.free, self.free, len(self.replicas), self.disk_state)
        return await self.trio.expect(
            HeartbeatReply,
            Heartbeat(
                self.server_id,
                self.incarnation,
                2 * self.free,
                self.free,
                len(self.replicas),
                0,
                (disk,),
                tuple(added),
                tuple(removed),
                tuple(copying),
                tuple(copy_failures),
                disk_wait_ms=self.disk_wait_ms,
            ),
        )

    async def work(self) -> HeartbeatReply:
        """Send a heartbeat that tells what was done of the last orders, and do those of the reply."""
        added, removed, self._added, self._removed = self._added, self._removed, [], []
        reply = await self.beat(added, removed)
        if reply.must_register:
            await self.register()
        elif reply.must_report:
            await self.report()
        for order in reply.copies:
            self._added.append(self.put(order.handle, order.length, order.crc))
            self.fetched.append(order)
        for handle in (order.handle for order in reply.orders):
            if self.replicas.pop(handle, None) is not None:
                self._removed.append(handle)
        return reply

    def pages(self, page_size: int = 5000) -> list[ChunkReport]:
        """Return the pages of a new full report of what it holds at this moment."""
        self._report_id += 1
        replicas = [self.replicas[handle] for handle in sorted(self.replicas)]
        starts = range(0, max(1, len(replicas)), page_size)
        return [
            ChunkReport(
                self.server_id,
                self.incarnation,
                self._report_id,
                page,
                start == starts[-1],
                tuple(replicas[start : start + page_size]),
            )
            for page, start in enumerate(starts)
        ]

    async def report(self, page_size: int = 5000) -> list[ChunkReportReply]:
        """Send a full report to the leader."""
        return [await self.trio.expect(ChunkReportReply, page) for page in self.pages(page_size)]
