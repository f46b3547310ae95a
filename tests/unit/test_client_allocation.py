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
from dfs.errors import LimitExceeded, NoQuorum
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel, Received
from dfs.net.messages import ErrorReply, Message, Ping
from dfs.testing.clock import FakeClock

KEY = ClusterKey.from_secret(b"s" * 32, "demo")
THREADS = 4
TIMEOUT_S = 0.5


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


class IdleChannel:
    """Stands where a Channel stands while it lies in a pool."""

    is_broken = False

    def __init__(self) -> None:
        self.is_closed = False

    def wait_readable(self, _deadline: Deadline) -> bool:
        return False

    def close(self) -> None:
        self.is_closed = True


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
    assert masters.asked.wait(10)
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
