"""Memory that this client lends to the chunk servers of its machine, and the doors through which they take from it.

Owns: the lanes (memory with a connection to the door of each server that was met), how many there are, and which doors
are not tried for a while. Refuses to know: what is written through them (dfs.client.lent_writes).

A lane is one chunk's at a time. Every trouble on the way into a door means the same: write to that server over the
network.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from dfs.client.ownership import Owner
from dfs.clock import Deadline
from dfs.errors import DfsError
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ServerId
from dfs.log import get_logger
from dfs.net.auth import ClusterKey
from dfs.net.blocking import expect
from dfs.net.lent_memory import IS_POSSIBLE, OwnMemory
from dfs.net.local import LocalChannel
from dfs.net.messages import LendMemory, LendMemoryReply
from dfs.net.parts import ServerInfo
from dfs.net.sockets import is_own_address

SLOT_SIZE: Final = 1024 * 1024  # bytes of a chunk that are handed over at a time (a multiple of the block size)
SLOTS: Final = 2  # of a lane: one is filled while the other is taken
LANES_MAX: Final = 16  # 32 MiB of memory; what is written beyond so many chunks at a time goes over the network
LANES_KEPT: Final = 8  # that wait for the next chunk
LANE_IDLE_S: Final = 30.0  # one that was not used for so long is let go, with its memory and its connections
DOOR_TIMEOUT_S: Final = 1.0  # for a door to let us in; the network is the way around
DOOR_RETRY_S: Final = 10.0  # after a door failed

_NOW = Deadline(0.0)  # has passed: look, do not wait

log = get_logger(__name__)


class Lane:
    """Memory in slots, and the doors of servers that have borrowed it. One thread's at a time."""

    def __init__(self) -> None:
        """Raise `Overloaded` when the system gives no memory."""
        self._memory = OwnMemory(SLOTS * SLOT_SIZE)
        self._doors: dict[ServerId, LocalChannel] = {}
        self.used_s = time.monotonic()

    def slot(self, number: int, size: int) -> tuple[int, memoryview]:
        """Return the offset and the first `size` bytes of slot `number` modulo SLOTS."""
        offset = number % SLOTS * SLOT_SIZE
        return offset, self._memory.view[offset : offset + size]

    def enter(self, server: ServerInfo, key: ClusterKey) -> LocalChannel:
        """Return the connection to a server that has borrowed the memory; raise a DfsError when it lets nobody in."""
        door = self._doors.get(server.server_id)
        if door is not None and not door.is_broken and not door.wait_readable(_NOW):  # it could only say its end
            return door
        self.leave(server.server_id)
        deadline = Deadline.after(DOOR_TIMEOUT_S)
        door = LocalChannel.enter(server.server_id, key, deadline)
        try:
            door.send_descriptor(LendMemory(self._memory.size), self._memory.fd, deadline)
            expect(door.receive(deadline).message, LendMemoryReply)
        except BaseException:
            door.close()
            raise
        self._doors[server.server_id] = door
        return door

    def leave(self, server_id: ServerId) -> None:
        """Close the connection to a server, whatever it is in the midst of."""
        if (door := self._doors.pop(server_id, None)) is not None:
            door.close()

    def close(self) -> None:
        for server_id in [*self._doors]:
            self.leave(server_id)
        self._memory.close()


class Lanes:
    """All lanes of one client. Thread-safe."""

    def __init__(self, key: ClusterKey, *, is_used: bool = True) -> None:
        """`is_used`: False forces every write over the network."""
        self._key = key
        self._is_used = is_used and IS_POSSIBLE and is_on(FastPath.MEMORY_DOOR)
        self._lock = threading.Lock()
        self._idle: list[Lane] = []  # the one used last is the last
        self._count = 0
        self._closed_until_s: dict[ServerId, float] = {}
        self._is_closed = False
        self._owner = Owner()

    @contextmanager
    def entered(self, servers: Sequence[ServerInfo]) -> Iterator[tuple[Lane, dict[ServerId, LocalChannel]] | None]:
        """Lend a lane and its doors to those of `servers` that have one; None when there is no way in at all.

        After an error in the block these doors are closed: something is under way in them.
        """
        near = [server for server in servers if self._may_enter(server)]
        lane = self._take() if near else None
        if lane is None:
            yield None
            return
        try:
            doors = self._doors(lane, near)
            if doors:
                try:
                    yield lane, doors
                except BaseException:
                    for server_id in doors:
                        lane.leave(server_id)
                    raise
        finally:
            self._give(lane)
        if not doors:
            yield None

    def _doors(self, lane: Lane, servers: Sequence[ServerInfo]) -> dict[ServerId, LocalChannel]:
        """Enter where we are let in."""
        doors: dict[ServerId, LocalChannel] = {}
        for server in servers:
            try:
                doors[server.server_id] = lane.enter(server, self._key)
            except DfsError as error:
                log.debug("not_written_locally", server=server.address, reason=error.message)
                self.shut(server)
        return doors

    def shut(self, server: ServerInfo) -> None:
        """Hear that a door failed: it is not tried for a while."""
        self._closed_until_s[server.server_id] = time.monotonic() + DOOR_RETRY_S

    def close(self) -> None:
        """Let go of all that is idle; a lane that is lent is closed when it comes back."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for lane in idle:
            lane.close()

    def _may_enter(self, server: ServerInfo) -> bool:
        return (
            self._is_used
            and self._closed_until_s.get(server.server_id, 0.0) <= time.monotonic()
            and is_own_address(server.address)
        )

    def _take(self) -> Lane | None:
        self._owner.check()
        with self._lock:
            if self._is_closed:
                return None
            if self._idle:
                return self._idle.pop()
            if self._count >= LANES_MAX:
                return None
            self._count += 1
        try:
            return Lane()
        except DfsError as error:
            log.warning("no_memory_to_lend", reason=error.message, effect="chunks are written over the network")
            with self._lock:
                self._count -= 1
            return None

    def _give(self, lane: Lane) -> None:
        lane.used_s = now_s = time.monotonic()
        with self._lock:
            self._idle.append(lane)
            kept = 0 if self._is_closed else LANES_KEPT
            old = [
                idle
                for place, idle in enumerate(reversed(self._idle))
                if place >= kept or idle.used_s < now_s - LANE_IDLE_S
            ]
            self._idle = [idle for idle in self._idle if idle not in old]
            self._count -= len(old)
        for idle in old:
            idle.close()
