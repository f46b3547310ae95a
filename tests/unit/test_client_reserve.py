"""Are chunks allocated ahead only as far as they are used, and never used when they are stale?"""

from __future__ import annotations

import time
from typing import cast

import pytest

from dfs.client import allocation as allocation_module
from dfs.client import reserve as reserve_module
from dfs.client.allocation import Allocator
from dfs.client.discovery import Masters
from dfs.client.plan import ServerHealth
from dfs.client.reserve import RESERVE_MAX, ChunkReserve
from dfs.clock import Deadline, boot_s
from dfs.errors import DeadlineExceeded, NoQuorum, NotEnoughServers
from dfs.ids import ServerId, new_chunk_handle
from dfs.net.messages import Allocate, AllocateReply, Message
from dfs.net.parts import AllocatedChunk, ServerInfo

SERVERS = tuple(ServerInfo(ServerId(bytes([n]) * 16), f"c{n}", f"10.0.0.{n}:7421", "r", True) for n in range(1, 4))


class CountingMasters:
    """Stands where dfs.client.discovery.Masters stands: allocates chunks on all servers that are not excluded."""

    def __init__(self, commit_within_s: int = 86_400, write_within_s: int = 3600) -> None:
        self.asked: list[Allocate] = []
        self.fails = False
        self._within = (commit_within_s, write_within_s)

    def call(self, message: Message, _reply: type[Message], _deadline: Deadline, **_: bool) -> AllocateReply:
        assert isinstance(message, Allocate)
        self.asked.append(message)
        if self.fails:
            raise NoQuorum("nobody leads")
        chain = tuple(index for index, server in enumerate(SERVERS) if server.server_id not in message.exclude)
        if not chain:
            raise NotEnoughServers("all are excluded")
        chunks = tuple(AllocatedChunk(new_chunk_handle(), b"token", chain) for _ in range(message.count))
        return AllocateReply(chunks, SERVERS, 1 << 20, 3, *self._within)


def made(masters: CountingMasters, health: ServerHealth | None = None) -> ChunkReserve:
    return ChunkReserve(cast(Masters, masters), health or ServerHealth())


def soon() -> Deadline:
    return Deadline.after(10)


def test_one_put_reserves_nothing_and_many_ask_rarely() -> None:
    masters = CountingMasters()
    reserve = made(masters)
    handles = {reserve.take(3, soon()).target.handle}
    assert [request.count for request in masters.asked] == [1]
    handles |= {reserve.take(3, soon()).target.handle for _ in range(999)}
    assert len(handles) == 1000
    assert max(request.count for request in masters.asked) == RESERVE_MAX
    assert len(masters.asked) < 40


def test_each_replication_has_its_own_chunks_and_the_size_costs_no_question_of_its_own() -> None:
    masters = CountingMasters()
    reserve = made(masters)
    assert reserve.chunk_size(2, soon()) == 1 << 20
    reserve.take(2, soon())
    reserve.take(3, soon())
    assert [request.replication for request in masters.asked] == [2, 3]


def test_chunks_that_grew_old_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    masters = CountingMasters()
    reserve = made(masters)
    for _ in range(4):
        reserve.take(3, soon())  # 1, 2 and 4 were asked for; three are left
    sleep(monkeypatch, reserve_module.AGE_MAX_S + 1)
    reserve.take(3, soon())
    assert [request.count for request in masters.asked] == [1, 2, 4, 1]


def sleep(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let this computer be suspended: its monotonic clock stands still, the masters' time goes on."""
    for module in (reserve_module, allocation_module):
        monkeypatch.setattr(module, "boot_s", lambda: boot_s() + seconds)


@pytest.mark.parametrize("is_reserved", [True, False])
def test_a_computer_that_slept_commits_no_chunks_that_are_garbage_by_now(
    monkeypatch: pytest.MonkeyPatch, is_reserved: bool
) -> None:
    masters = CountingMasters(commit_within_s=3600)
    allocator = Allocator(cast(Masters, masters), ServerHealth(), 3, 10.0, made(masters) if is_reserved else None)
    allocator.take()
    allocator.check_commit_time()
    sleep(monkeypatch, 3000)
    allocator.check_commit_time()
    sleep(monkeypatch, 3601)
    with pytest.raises(DeadlineExceeded, match="nothing was stored"):
        allocator.check_commit_time()


@pytest.mark.parametrize("within", [(86_400, 0), (0, 3600)], ids=["tokens", "commits"])
def test_nothing_is_set_aside_when_tokens_or_commits_have_no_time(within: tuple[int, int]) -> None:
    masters = CountingMasters(*within)
    reserve = made(masters)
    for _ in range(3):
        reserve.take(3, soon())
    assert len(masters.asked) == 3


def test_chunks_on_a_server_that_failed_are_dropped() -> None:
    masters, health = CountingMasters(), ServerHealth()
    reserve = made(masters, health)
    for _ in range(4):
        reserve.take(3, soon())
    health.failed(SERVERS[0], time.monotonic())
    target = reserve.take(3, soon()).target
    assert target.chain == SERVERS[1:]
    assert masters.asked[-1].exclude == (SERVERS[0].server_id,)
    for server in SERVERS:
        health.failed(server, time.monotonic())
    assert reserve.take(3, soon()).target.chain == SERVERS, "better a server that failed a moment ago than none"


def test_first_chunk_of_an_upload_is_a_reserved_one_and_a_second_try_is_not() -> None:
    masters = CountingMasters()
    reserve = made(masters)
    reserve.take(3, soon())
    reserve.take(3, soon())
    asked = len(masters.asked)
    allocator = Allocator(cast(Masters, masters), ServerHealth(), 3, 10.0, reserve)
    assert allocator.chunk_size() == 1 << 20
    allocator.take()
    assert len(masters.asked) == asked, "one was left of the batch of two"
    assert allocator.take({SERVERS[0].server_id}).chain == SERVERS[1:]
    allocator.check_commit_time()
    masters.fails = True
    with pytest.raises(NoQuorum):
        Allocator(cast(Masters, masters), ServerHealth(), 3, 10.0, reserve).take()
