"""Connections to the next chunk servers of a chain, kept open between chunks.

Owns: idle connections and when they are too old. Refuses to know: what is said over them.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from dfs.clock import Deadline
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel

IDLE_MAX = 16  # idle connections kept to one peer
IDLE_S = 30.0  # after that an idle connection is closed: its peer may be gone without a word
CONNECT_TIMEOUT_S = 5.0  # a peer that takes longer to greet is as good as down: the client finds another

_NOW = Deadline(0.0)  # has passed: look, do not wait


class PeerConnections:
    """Idle channels by address; `take` one, and `give` it back when it stands between two requests."""

    def __init__(self, key: ClusterKey) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._idle: dict[str, deque[tuple[Channel, float]]] = {}

    def take(self, address: str, deadline: Deadline) -> Channel:
        """Return a connection that nobody else uses; raise as `Channel.connect`."""
        while (channel := self._pop(address)) is not None:
            if not channel.is_broken and not channel.wait_readable(_NOW):
                return channel
            channel.close()  # an idle peer says nothing: it has closed, or it speaks out of turn
        return Channel.connect(address, self._key, deadline.no_later_than(CONNECT_TIMEOUT_S), bulk=True)

    def _pop(self, address: str) -> Channel | None:
        self.close_old()
        with self._lock:
            idle = self._idle.get(address)
            return idle.pop()[0] if idle else None  # the youngest: the others may grow old enough to go

    def give(self, channel: Channel) -> None:
        """Keep a channel for the next chunk, or close it when it cannot be used or there are enough."""
        with self._lock:
            idle = self._idle.setdefault(channel.address, deque())
            is_kept = not channel.is_broken and len(idle) < IDLE_MAX
            if is_kept:
                idle.append((channel, time.monotonic()))
        if not is_kept:
            channel.close()

    def close_old(self, idle_s: float = IDLE_S) -> None:
        """Close what has been idle for `idle_s`."""
        oldest_s = time.monotonic() - idle_s
        closing: list[Channel] = []
        with self._lock:
            for address, idle in list(self._idle.items()):
                while idle and idle[0][1] <= oldest_s:
                    closing.append(idle.popleft()[0])
                if not idle:
                    del self._idle[address]
        for channel in closing:
            channel.close()

    def close(self) -> None:
        self.close_old(0.0)
