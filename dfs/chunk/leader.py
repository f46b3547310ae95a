"""The connection to the leading master, wherever it moves.

Owns: which master is asked next, and for how long each is waited for. Refuses to know: what the leader is told.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dfs.clock import Deadline
from dfs.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    NoQuorum,
    NotLeader,
    ProtocolError,
)
from dfs.log import get_logger
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel
from dfs.net.messages import Heartbeat, Message

CONNECT_TIMEOUT_S = 1.0  # a master that greets more slowly does not lead well: ask another
REPLY_TIMEOUT_S = 3.0  # for a heartbeat; a stopped leader holds its followers up for this long

_NOT_THE_LEADER = (NotLeader, NoQuorum)
_NOT_REACHED = (AuthenticationFailed, ConnectionFailed, DeadlineExceeded, ProtocolError)

log = get_logger(__name__)
MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A heartbeat that the leader at `address` has answered; `at_s` is of time.monotonic()."""

    at_s: float
    address: str
    heartbeat: Heartbeat


class LeaderConnection:
    """Calls the leader over one connection; used by one thread (`close` by any)."""

    def __init__(self, masters: Sequence[str], key: ClusterKey) -> None:
        self._masters = tuple(masters)
        self._key = key
        self._channel: Channel | None = None
        self._hint = self._masters[0]
        self._is_found = False
        self._is_closed = False
        self.acknowledged: Acknowledged | None = None  # the last heartbeat

    def call(self, message: Message, reply_type: type[MessageT], reply_timeout_s: float = REPLY_TIMEOUT_S) -> MessageT:
        """Return the leader's reply, or raise its error.

        Every master is tried once, those that others name as the leader first; when none leads `NoQuorum` is raised.
        """
        waiting = [self._hint, *(address for address in self._masters if address != self._hint)]
        tried: dict[str, str] = {}  # address -> why it was not the one
        while waiting:
            address = waiting.pop(0)
            try:
                reply = self._ask(address, message, reply_timeout_s)
                if not isinstance(reply, reply_type):
                    raise ProtocolError(f"{address} answered {type(message).__name__} with {type(reply).__name__}")
            except _NOT_THE_LEADER as error:
                tried[address] = error.code
                named = error.details.get("leader", "")
                if named and named not in tried:
                    waiting = [named, *(other for other in waiting if other != named)]
            except _NOT_REACHED as error:
                tried[address] = error.message
            except DfsError:
                self._found(address)
                raise
            else:
                self._found(address)
                if isinstance(message, Heartbeat):
                    self.acknowledged = Acknowledged(time.monotonic(), address, message)
                return reply
            self._drop()
        self._lost(tried)
        raise NoQuorum("no master leads: " + "; ".join(f"{address}: {why}" for address, why in tried.items()))

    def _ask(self, address: str, message: Message, reply_timeout_s: float) -> Message:
        channel = self._channel
        if channel is None or channel.address != address or channel.is_broken:
            self._drop()
            channel = self._channel = Channel.connect(address, self._key, Deadline.after(CONNECT_TIMEOUT_S))
            if self._is_closed:
                self._drop()
        return channel.call(message, Deadline.after(reply_timeout_s))

    def _found(self, address: str) -> None:
        if not self._is_found or self._hint != address:
            log.info("leader_found", address=address)
        self._is_found, self._hint = True, address

    def _lost(self, tried: dict[str, str]) -> None:
        if self._is_found and not self._is_closed:
            log.warning("leader_lost", tried="; ".join(f"{address}: {why}" for address, why in tried.items()))
        self._is_found = False

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.close()

    def close(self) -> None:
        """End the connection; a call under way in another thread fails at once."""
        self._is_closed = True
        self._drop()
