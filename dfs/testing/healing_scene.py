"""A leader that heals pretended chunk servers under a fake clock, for tests.

Owns: `Scene`, in which time passes and servers fall silent, and `run` for a test in a loop of its own. Refuses
to know: what a test expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

from dfs.ids import ChunkHandle
from dfs.master.duties import LivenessDuty, ReportsDuty
from dfs.net.messages import (
    GetClusterStatus,
    GetClusterStatusReply,
)
from dfs.net.parts import HealingStatus, ServerStatus
from dfs.testing.masters import MIB, MasterTrio, PretendServer

QUICK: dict[str, Any] = {"dead_after_s": 3.0, "repair_after_s": 10.0, "garbage_grace_s": 5.0, "balance": False}


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


class Scene:
    """Three masters and pretended servers; `pass_time` lets those that are not in `away` beat and the duties run."""

    def __init__(self, trio: MasterTrio, servers: list[PretendServer]) -> None:
        self.trio = trio
        self.servers = {server.name: server for server in servers}
        self.away: set[str] = set()

    @classmethod
    async def begin(cls, servers: int, *, racks: str = "", **settings: Any) -> Scene:
        trio = await MasterTrio(**{**QUICK, **settings}).start()
        scene = cls(trio, [])
        for number in range(1, servers + 1):
            await scene.join(number, rack=racks[number - 1 : number])
        await scene.pass_time(3)  # their first reports are compared
        return scene

    async def join(self, number: int, *, rack: str = "", free: int = 1000 * MIB) -> PretendServer:
        server = PretendServer(self.trio, number, rack=rack, free=free)
        await server.join()
        self.servers[server.name] = server
        return server

    async def store(self, path: str, count: int = 1, replication: int = 0) -> list[ChunkHandle]:
        handles = await self.trio.store(path, count * MIB, replication=replication)
        for handle in handles:
            chunk = self.trio.leader.state.chunk(handle)
            assert chunk is not None
            for server in self.servers.values():
                if server.server_id in chunk.servers:
                    server.put(handle, chunk.length, chunk.crc)
        return handles

    async def pass_time(self, seconds: int) -> None:
        service = self.trio.leader
        liveness = LivenessDuty(self.trio.config, service.state, service.view, self.trio.clock)
        duties = [liveness, ReportsDuty(service.reports), *service.healing_duties()]
        for _ in range(seconds):
            self.trio.clock.advance(1)
            for name, server in self.servers.items():
                if name not in self.away:
                    await server.work()
            for duty in duties:
                await duty.run_once()
            service.healing.copies.check_invariants()
        self.trio.check_invariants()

    def holders(self, handle: ChunkHandle) -> set[str]:
        chunk = self.trio.leader.state.chunk(handle)
        assert chunk is not None
        names = {server.server_id: name for name, server in self.servers.items()}
        return {names.get(server, "?") for server in chunk.servers}

    def alive_holders(self, handle: ChunkHandle) -> set[str]:
        return self.holders(handle) - self.away

    def fetched(self, names: Collection[str] = ()) -> int:
        return sum(len(server.fetched) for name, server in self.servers.items() if not names or name in names)

    async def status(self) -> tuple[HealingStatus, dict[str, ServerStatus]]:
        reply = await self.trio.expect(GetClusterStatusReply, GetClusterStatus())
        return reply.healing, {server.info.name: server for server in reply.servers}
