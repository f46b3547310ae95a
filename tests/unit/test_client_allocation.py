"""Do the threads of an upload share one deadline when they ask for chunks, and does the pool keep what is useful?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import cast

import pytest

from dfs.client import pool as pool_module
from dfs.client.allocation import Allocator
from dfs.client.discovery import Masters
from dfs.client.plan import ServerHealth
from dfs.client.pool import ChannelPool, exchange
from dfs.clock import Deadline
from dfs.errors import LimitExceeded, NoQuorum, NotEnoughServers
from dfs.ids import ChunkHandle, ServerId
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel, Received
from dfs.net.messages import Allocate, AllocateReply, ErrorReply, Message, Ping
from dfs.net.parts import AllocatedChunk, ServerInfo
from dfs.testing.clock import FakeClock

KEY = ClusterKey.from_secret(b"s" * 32, "demo")
THREADS = 4
TIMEOUT_S = 2.0  # far more than a thread of a busy machine waits for its turn


def server(number: int) -> ServerInfo:
    return ServerInfo(ServerId(bytes([number]) * 16), f"c{number}", f"127.0.0.1:{number}", "", is_alive=True)


class SilentMasters:
    """Stands where dfs.client.discovery.Masters stands: every call lasts until its deadline."""

    def __init__(self) -> None:
        self.deadlines: list[Deadline] = []
        self.asked = threading.Event()

    def call(self, _message: Message, _reply: type[Message], deadline: Deadline, **_: bool) -> Message:
        self.deadlines.append(deadline)
        self.asked.set()
        while not deadline.has_passed:
            threading.Event().wait(deadline.remaining_s())
        raise NoQuorum("nobody leads")


class FewServers:
    """Masters that know three servers more than are excluded at most: whoever excludes more is refused."""

    def __init__(self, excluded_max: int) -> None:
        self.excluded_max = excluded_max
        self.asked: list[tuple[ServerId, ...]] = []

    def call(self, request: Allocate, _reply: type[Message], _deadline: Deadline, **_: bool) -> Message:
        self.asked.append(request.exclude)
        if len(request.exclude) > self.excluded_max:
            raise NotEnoughServers("too few")
        chunks = (AllocatedChunk(ChunkHandle(b"h" * 16), b"token", (0, 1, 2)),)
        return AllocateReply(chunks, tuple(server(n) for n in range(3)), 1 << 20, replication=3, commit_within_s=60)


class IdleChannel:
    """Stands where a Channel stands while it lies in a pool."""

    is_broken = False

    def __init__(self) -> None:
        self.is_closed = False

    def wait_readable(self, _deadline: Deadline) -> bool:
        return False

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(("excluded_max", "tries"), [(2, 1), (1, 2), (0, 3)])
def test_a_server_that_failed_for_this_chunk_is_the_last_to_be_taken_again(excluded_max: int, tries: int) -> None:
    masters, health = FewServers(excluded_max), ServerHealth()
    failed_before, failed_now = server(7), server(8)
    health.failed(failed_before, time.monotonic())
    allocator = Allocator(cast("Masters", masters), health, replication=3, timeout_s=TIMEOUT_S)
    allocator.take([failed_now.server_id])
    now, before = failed_now.server_id, failed_before.server_id
    assert masters.asked == [(now, before), (now,), ()][:tries]


def test_threads_that_wait_for_one_that_asks_share_its_deadline_and_its_error() -> None:
    masters = SilentMasters()
    allocator = Allocator(cast(Masters, masters), ServerHealth(), 0, TIMEOUT_S)
    begun_s: list[float] = []
    words: list[str] = []

    def take() -> None:
        begun_s.append(time.monotonic())
        with pytest.raises(NoQuorum) as caught:
            allocator.take()
        words.append(caught.value.message)

    threads = [threading.Thread(target=take) for _ in range(THREADS)]
    threads[0].start()
    assert masters.asked.wait(60)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert words == ["nobody leads"] * THREADS
    latest_s = max(deadline.at_s for deadline in masters.deadlines)
    assert latest_s < max(begun_s) + 1.5 * TIMEOUT_S, "each waited for the whole time after the others"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    monkeypatch.setattr(Channel, "connect", lambda *_, **__: IdleChannel())
    return Channel.connect


@pytest.mark.usefixtures("connect")
def test_channels_to_servers_of_the_past_do_not_keep_others_out_of_the_pool() -> None:
    clock = FakeClock()
    pool = ChannelPool(KEY, clock)
    lent = []
    for number in range(pool_module.IDLE_MAX):
        with pool.channel(f"10.0.0.{number}:1", Deadline.after(1)) as channel:
            lent.append(cast(IdleChannel, channel))
    clock.advance(pool_module.IDLE_AGE_MAX_S + 1)
    for _ in range(2):
        with pool.channel("10.0.1.1:1", Deadline.after(1)) as channel:
            lent.append(cast(IdleChannel, channel))
    assert lent[-1] is lent[-2]
    assert all(old.is_closed for old in lent[: pool_module.IDLE_MAX])
    pool.close()
    assert lent[-1].is_closed


def test_last_words_of_a_peer_are_told_and_not_taken_for_a_broken_protocol() -> None:
    class Talking:
        address = "10.0.0.1:1"

        def send(self, *_: object, **__: object) -> None: ...

        def receive(self, _deadline: Deadline) -> Received:
            return Received(ErrorReply.of(LimitExceeded("too many connections")), 0, 0, 0)

    with pytest.raises(LimitExceeded, match="too many"):
        exchange(cast(Channel, Talking()), Ping(), Deadline.after(1))
