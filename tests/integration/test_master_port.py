"""Masters at real ports: the service behind AioServer, asked through AioChannel, over the in-memory log."""

from __future__ import annotations

import asyncio

import pytest

from dfs.clock import Deadline
from dfs.errors import AuthenticationFailed, NotFound, NotLeader, ProtocolError
from dfs.net.aio import AioChannel, AioServer
from dfs.net.auth import ClusterKey
from dfs.net.messages import (
    Done,
    GetMasterStatus,
    GetMasterStatusReply,
    MakeDirectory,
    Message,
    Ping,
    Pong,
    Stat,
    StatReply,
)
from dfs.testing.masters import MasterTrio


class Ports:
    """The masters of a trio, each listening at a free port of loopback."""

    def __init__(self, trio: MasterTrio) -> None:
        self.trio = trio
        self.servers: dict[str, AioServer] = {}
        self.channels: dict[str, AioChannel] = {}

    async def __aenter__(self) -> Ports:
        await self.trio.start()
        for name, service in self.trio.services.items():
            server = await AioServer.start("127.0.0.1:0", self.trio.key, service.handle, allowed=service.allowed)
            self.servers[name] = server
            self.channels[name] = await AioChannel.connect(server.address, self.trio.key, Deadline.after(10))
        return self

    async def __aexit__(self, *_error: object) -> None:
        for channel in self.channels.values():
            await channel.close()
        for server in self.servers.values():
            await server.close()

    async def ask(self, name: str, message: Message) -> Message:
        return await self.channels[name].call(message, Deadline.after(10))


def test_a_client_finds_the_leader_by_the_hint_and_reads_its_writes() -> None:
    async def test() -> None:
        trio = MasterTrio()
        async with Ports(trio) as ports:
            for name in trio.services:
                pong = await ports.ask(name, Ping())
                assert isinstance(pong, Pong)
                assert (pong.node, pong.role, pong.version) == (name, "master", await version(ports, name))
            request = MakeDirectory(trio.call(), "/d")
            with pytest.raises(NotLeader) as refusal:
                await ports.ask("m3", request)
            hinted = next(m.name for m in trio.config.masters if m.address == refusal.value.details["leader"])
            made = await ports.ask(hinted, request)
            assert isinstance(made, StatReply)
            assert await ports.ask(hinted, Stat("/d")) == made
            with pytest.raises(NotFound):
                await ports.ask(hinted, Stat("/none"))
            trio.group.elect("m2")
            assert await ports.ask("m2", request) == made, "a resent call returns its first result"

    asyncio.run(test())


async def version(ports: Ports, name: str) -> str:
    reply = await ports.ask(name, GetMasterStatus())
    assert isinstance(reply, GetMasterStatusReply)
    return reply.master.version


def test_many_calls_at_once_on_one_connection_all_get_their_own_reply() -> None:
    async def test() -> None:
        trio = MasterTrio()
        async with Ports(trio) as ports:
            requests = [MakeDirectory(trio.call(), f"/d{number}") for number in range(300)]
            replies = await asyncio.gather(*(ports.ask("m1", request) for request in requests))
            paths = [reply.status.path for reply in replies if isinstance(reply, StatReply)]
            assert paths == [request.path for request in requests]

    asyncio.run(test())


def test_a_handler_that_breaks_harms_no_other_call() -> None:
    async def test() -> None:
        trio = MasterTrio()
        async with Ports(trio) as ports:
            with pytest.raises(ProtocolError):
                await ports.ask("m1", Done())
            stranger = ClusterKey.from_secret(b"1" * 64, "test")
            with pytest.raises(AuthenticationFailed):
                await AioChannel.connect(ports.servers["m1"].address, stranger, Deadline.after(10))
            assert isinstance(await ports.ask("m1", Stat("/")), StatReply)

    asyncio.run(test())
