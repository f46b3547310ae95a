"""Idle connections, kept for the next call: to masters and chunk servers alike.

Owns: which idle channels exist, their limits and age. Refuses to know: what is said over them.

A channel is in one thread's hands or idle here, never both. Whoever saw an error on a channel closes it instead of
giving it back: a late reply must never answer the next call.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from dfs.client.ownership import Owner
from dfs.clock import SYSTEM_CLOCK, Clock, Deadline
from dfs.errors import ConnectionFailed, DeadlineExceeded, InvalidArgument, ProtocolError
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel
from dfs.net.messages import ErrorReply, Message

IDLE_PER_ADDRESS_MAX = 8  # idle connections to one server
IDLE_MAX = 64  # idle connections in all
IDLE_AGE_MAX_S = 60.0  # an older one may be dead without a word
FRESH_S = (
    0.05  # one that worked so lately is lent without a look: a peer that died since then is met in the call itself
)

_NOW = Deadline(0.0)  # has passed: look, do not wait


class Loan:
    """A channel of a pool, for the length of one block."""

    __slots__ = ("_address", "_bulk", "_channel", "_deadline", "_pool")

    def __init__(self, pool: ChannelPool, address: str, deadline: Deadline, *, bulk: bool) -> None:
        self._pool, self._address, self._deadline, self._bulk = pool, address, deadline, bulk

    def __enter__(self) -> Channel:
        self._channel = self._pool.take(self._address, self._deadline, bulk=self._bulk)
        return self._channel

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._pool.give(self._address, self._channel, bulk=self._bulk)
        else:
            self._channel.close()


class ChannelPool:
    """Thread-safe. Bulk and ordinary channels to one address are kept apart."""

    def __init__(self, key: ClusterKey, clock: Clock = SYSTEM_CLOCK) -> None:
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, bool], list[tuple[float, Channel]]] = {}
        self._idle_count = 0
        self._is_closed = False
        self._owner = Owner()

    def channel(self, address: str, deadline: Deadline, *, bulk: bool = False) -> AbstractContextManager[Channel]:
        """Lend a channel for a block; it is kept for others when that ends without an error, and closed otherwise."""
        return Loan(self, address, deadline, bulk=bulk)

    def take(self, address: str, deadline: Deadline, *, bulk: bool = False) -> Channel:
        """Return a channel that is the caller's alone, to be given back after use, or closed after an error."""
        return self.take_idle(address, bulk=bulk) or self.connect(address, deadline, bulk=bulk)

    def connect(self, address: str, deadline: Deadline, *, bulk: bool = False) -> Channel:
        """Return a new channel that is the caller's alone, likewise."""
        return Channel.connect(address, self._key, deadline, bulk=bulk)

    def close(self) -> None:
        """Close what is idle; what is lent is closed when it comes back."""
        with self._lock:
            self._is_closed = True
            idle = [channel for channels in self._idle.values() for _, channel in channels]
            self._idle.clear()
            self._idle_count = 0
        for channel in idle:
            channel.close()

    def take_idle(self, address: str, *, bulk: bool = False) -> Channel | None:
        """Return an idle channel that is the caller's alone, likewise; None when there is none."""
        self._owner.check()
        now_s = self._clock.monotonic()
        while True:
            with self._lock:
                if self._is_closed:
                    raise InvalidArgument("this client is closed; make a new one")
                channels = self._idle.get((address, bulk))
                if not channels:
                    return None
                since, channel = channels.pop()
                self._idle_count -= 1
            # An idle connection has nothing to say: whatever can be read is its end, or not meant for us.
            age_s = now_s - since
            if age_s < FRESH_S or (
                age_s <= IDLE_AGE_MAX_S and not channel.is_broken and not channel.wait_readable(_NOW)
            ):
                return channel
            channel.close()

    def give(self, address: str, channel: Channel, *, bulk: bool = False) -> None:
        """Keep a channel for the next call, or close it when it cannot be used or there are enough."""
        now_s = self._clock.monotonic()
        closing: list[Channel] = []
        with self._lock:
            if self._idle_count >= IDLE_MAX:
                closing = self._without_old(now_s)  # or servers that nobody talks to any more keep others out
            channels = self._idle.setdefault((address, bulk), [])
            is_kept = (
                not self._is_closed
                and not channel.is_broken
                and len(channels) < IDLE_PER_ADDRESS_MAX
                and self._idle_count < IDLE_MAX
            )
            if is_kept:
                channels.append((now_s, channel))
                self._idle_count += 1
            else:
                closing.append(channel)
        for old in closing:
            old.close()

    def _without_old(self, now_s: float) -> list[Channel]:
        """Take out and return the channels that are too old to be lent; the lock is held."""
        oldest = now_s - IDLE_AGE_MAX_S
        taken = [channel for channels in self._idle.values() for since, channel in channels if since < oldest]
        self._idle = {
            key: young
            for key, channels in self._idle.items()
            if (young := [(since, channel) for since, channel in channels if since >= oldest])
        }
        self._idle_count -= len(taken)
        return taken


_request_ids = itertools.count(1)


def exchange(channel: Channel, message: Message, deadline: Deadline) -> Message:
    """Send a call and return its reply, an `ErrorReply` too: that one is an answer, and the channel stays good."""
    return receive_answer(channel, message, send_call(channel, message, deadline), deadline)


def send_call(channel: Channel, message: Message, deadline: Deadline) -> int:
    """Send a call; return its request id for `receive_answer`."""
    request_id = next(_request_ids)
    channel.send(message, deadline, request_id=request_id)
    return request_id


def receive_answer(channel: Channel, message: Message, request_id: int, deadline: Deadline) -> Message:
    """Return the reply to a call that was sent."""
    received = channel.receive(deadline)
    if received.request_id != request_id or received.payload_size:
        if isinstance(received.message, ErrorReply) and not received.request_id:
            raise received.message.error()  # the peer's last words
        name = type(received.message).__name__
        raise ProtocolError(f"{channel.address} sent a {name} that does not answer {type(message).__name__}")
    return received.message


@contextmanager
def stalls_as_failures(address: str, stall_s: float) -> Iterator[None]:
    """Make a passed stall limit what it means: this server failed, another one may do."""
    try:
        yield
    except DeadlineExceeded as error:
        raise ConnectionFailed(
            f"{address} made no progress within {stall_s:g} s ({error.message})", address=address
        ) from None
