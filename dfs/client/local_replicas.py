"""Replicas on the reader's own machine, read through descriptors that their chunk servers handed over.

Owns: which servers have a local door, the descriptors that are held, and reading what the kernel has in memory. Refuses
to know: what is read for whom, and what to do when a block is wrong or not in memory (dfs.client.replica_reads).

Only memory is read: a call that could wait for a disk has no deadline. What is not in memory is asked of the server,
where deadlines and second replicas are. Every trouble with a door means the same: read over the network.

An open file keeps the space of a deleted one, and the disk of a server that was stopped from being unmounted. So a
thread looks once a second, as long as something is held: what was deleted, what nobody reads, and what belongs to a
server whose door has closed is let go.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, TypeVar

from dfs.checksum import BLOCK_SIZE, CRC_SIZE, block_count, combine_blocks, first_bad_block
from dfs.client.held_file import OpenFile
from dfs.client.local_volumes import LocalVolumes, Place, let_go
from dfs.clock import Deadline
from dfs.errors import ChunkCorrupt, DfsError
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.log import get_logger
from dfs.net.auth import ClusterKey
from dfs.net.blocking import expect
from dfs.net.local import LocalChannel
from dfs.net.messages import STORE_SIZE_MAX, Message, OpenRecord, OpenRecordReply, OpenReplica, OpenReplicaReply
from dfs.net.parts import LocatedExtent, ServerInfo
from dfs.net.sockets import is_own_address

HELD_MAX: Final = 64  # descriptors that a client holds; 4 KiB of checksums each at 64 MiB
IDLE_S: Final = 30.0  # a descriptor that was not used for so long is let go: a deleted chunk's space comes back then
WATCH_S: Final = 1.0  # between two looks at what is held
DOOR_TIMEOUT_S: Final = 1.0  # for a door to answer; the network is the way around
DOOR_RETRY_S: Final = 10.0  # after a door failed
_NOT_IN_MEMORY: Final = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_NOW: Final = Deadline(0.0)  # has passed: look, do not wait
READ_FLAGS: int = getattr(os, "RWF_NOWAIT", 0)

log = get_logger(__name__)
R = TypeVar("R", bound=Message)


class LocalReplica:
    """A replica in an open file, from `start` on, with its checksums."""

    __slots__ = ("checksums", "crc", "file", "is_damaged", "length", "server", "start", "used_s")

    def __init__(
        self, server: ServerInfo, file: OpenFile, start: int, length: int, crc: int, checksums: bytes, now_s: float
    ) -> None:
        self.server = server  # whose replica it is
        self.file = file
        self.start = start
        self.length = length
        self.crc = crc
        self.checksums = checksums
        self.used_s = now_s
        self.is_damaged = False  # a block that was read was wrong

    def read(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` with whole blocks from `offset` on, verified; False: not all of them are in memory.

        Raise `ChunkCorrupt` when a block is wrong, or cannot be read.
        """
        got = 0
        while got < len(buffer):
            try:
                count = os.preadv(self.file.fd, [buffer[got:]], self.start + offset + got, READ_FLAGS)
            except OSError as error:
                if error.errno in _NOT_IN_MEMORY:
                    return False
                raise self._damaged(f"its open file cannot be read: {error.strerror}") from None
            if not count:
                raise self._damaged(f"its open file ends before byte {offset + got}")
            got += count
        first = offset // BLOCK_SIZE * CRC_SIZE
        bad = first_bad_block(buffer, self.checksums[first : first + block_count(len(buffer)) * CRC_SIZE])
        if bad is not None:
            raise self._damaged(f"its open file has wrong bytes at {offset + bad * BLOCK_SIZE}")
        return True

    def _damaged(self, reason: str) -> ChunkCorrupt:
        self.is_damaged = True
        return ChunkCorrupt(reason)


class LocalReplicas:
    """Thread-safe; one for each client."""

    def __init__(self, key: ClusterKey, *, is_used: bool = True) -> None:
        """`is_used`: False forces every read over the network."""
        self._key = key
        self._is_used = is_used and is_on(FastPath.LOCAL_READS) and hasattr(os, "RWF_NOWAIT")
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[ServerId, ChunkHandle], LocalReplica] = OrderedDict()
        self._volumes = LocalVolumes() if self._is_used and is_on(FastPath.LOCAL_VOLUMES) else None
        self._doors: dict[ServerId, LocalChannel] = {}
        self._closed_until_s: dict[ServerId, float] = {}
        self._watcher: threading.Thread | None = None
        self._is_closed = False
        self._closing = threading.Event()

    def known(self, extent: LocatedExtent, servers: Sequence[ServerInfo]) -> LocalReplica | None:
        """Return the small replica of a chunk whose place is known at one of these servers; nobody is asked."""
        if self._volumes is None or extent.chunk_length > STORE_SIZE_MAX:
            return None
        now_s = time.monotonic()
        found = self._volumes.find(extent.handle, now_s)
        if found is None:
            return None
        place, file = found
        for server in servers:
            if server.server_id == place.volume[0]:
                return _placed(server, place, file, extent, now_s)
        return None

    def find(self, server: ServerInfo, extent: LocatedExtent) -> LocalReplica | None:
        """Return the open replica of a chunk at a server of this machine, None when there is none to be had."""
        if extent.chunk_length <= STORE_SIZE_MAX:
            return self.known(extent, (server,)) or self._find_small(server, extent)
        key = (server.server_id, extent.handle)
        now_s = time.monotonic()
        with self._lock:
            found = self._held.get(key)
            if found is not None:
                found.used_s = now_s
                self._held.move_to_end(key)
                return found
        if not self._may_ask(server, now_s):
            return None
        found = self._open(server, extent, now_s)
        if found is None or (found.length, found.crc) != (extent.chunk_length, extent.chunk_crc):
            return None  # a stale replica: the network says so, too, and that way it is reported
        with self._lock:
            if not self._is_closed:
                self._held[key] = found
            old = self._take_old() + self._have_watched()
        let_go(old)
        return found

    def _take_old(self) -> list[OpenFile]:
        """Take out what is too much; the lock is held."""
        old = []
        while len(self._held) > HELD_MAX:
            old.append(self._held.popitem(last=False)[1].file)
        return old

    def holders(self) -> set[ServerId]:
        """Return the servers of which files are held."""
        owners = {server for server, _ in self._held.copy()}
        return owners if self._volumes is None else owners | self._volumes.servers()

    # --- letting go

    def _have_watched(self) -> list[OpenFile]:
        """Start the thread that looks after what is held, unless it runs; take all out if none can be had. The lock is
        held."""
        if self._watcher is None and not self._is_closed:
            watcher = threading.Thread(target=self._watch, name="dfs-let-go", daemon=True)
            try:
                watcher.start()
            except RuntimeError as error:
                log.debug("local_replicas_not_held", reason=str(error))
                return self._take_out(math.inf, set())
            self._watcher = watcher
        return []

    def _watch(self) -> None:
        """The root of a thread."""
        doubtful: set[ServerId] = set()
        while not self._closing.wait(WATCH_S):
            try:
                with self._lock:
                    holders = self.holders()
                    unseen = holders - self._open_doors()
                    old = self._take_out(time.monotonic() - IDLE_S, unseen & doubtful)
                    doubtful = unseen  # a door may be in a reader's hands just now: it takes two looks
                    if not holders:
                        self._watcher = None
                        return
                let_go(old)
            except Exception:
                log.exception("let_go_failed")

    def _open_doors(self) -> set[ServerId]:
        """Return the servers that still have us at their doors; drop the ends of others. The lock is held."""
        ended = [server for server, door in self._doors.items() if _has_ended(door)]
        for server in ended:
            self._doors.pop(server).close()
        return set(self._doors)

    def _take_out(self, oldest_s: float, ended: set[ServerId]) -> list[OpenFile]:
        """Take out what is not to be held any longer; the lock is held."""
        keys = [
            key
            for key, replica in self._held.items()
            if replica.used_s < oldest_s or key[0] in ended or replica.file.is_deleted()
        ]
        old = [self._held.pop(key).file for key in keys]
        return old if self._volumes is None else old + self._volumes.take_out(oldest_s, ended)

    # --- asking

    def _find_small(self, server: ServerInfo, extent: LocatedExtent) -> LocalReplica | None:
        """Ask a server where a small replica is; take its volume, too, when that is not held."""
        now_s = time.monotonic()
        if self._volumes is None or self._volumes.is_refuted(extent.handle) or not self._may_ask(server, now_s):
            return None
        held = self._volumes.names(server.server_id)
        asked = self._ask(server, OpenRecord(extent.handle, extent.token, held), OpenRecordReply)
        if asked is None:
            return None
        reply, fd = asked
        place = Place(
            (server.server_id, reply.volume), reply.start, reply.chunk_length, reply.chunk_crc, reply.checksums
        )
        file = self._volumes.take(extent.handle, place, fd, now_s)
        with self._lock:
            old = self._have_watched()
        let_go(old)
        if file is None or not _is_sound(server, extent, place.length, place.crc, place.checksums):
            return None
        return _placed(server, place, file, extent, now_s)

    def drop(self, server: ServerInfo, extent: LocatedExtent) -> None:
        """Forget a replica that turned out to be bad."""
        if extent.chunk_length <= STORE_SIZE_MAX:
            if self._volumes is not None:
                self._volumes.refute(extent.handle)
            return
        with self._lock:
            self._held.pop((server.server_id, extent.handle), None)

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            self._is_closed = True
            old, doors = [replica.file for replica in self._held.values()], [*self._doors.values()]
            self._held.clear()
            self._doors.clear()
        let_go(old)
        if self._volumes is not None:
            self._volumes.close()
        for door in doors:
            door.close()

    def _may_ask(self, server: ServerInfo, now_s: float) -> bool:
        return (
            self._is_used
            and self._closed_until_s.get(server.server_id, 0.0) <= now_s
            and is_own_address(server.address)
        )

    def _open(self, server: ServerInfo, extent: LocatedExtent, now_s: float) -> LocalReplica | None:
        """Ask for a descriptor of a replica that is a file of its own."""
        asked = self._ask(server, OpenReplica(extent.handle, extent.token), OpenReplicaReply)
        if asked is None:
            return None
        reply, fd = asked
        assert fd is not None, "such a reply always brings one"
        file = OpenFile(fd)
        if not _is_sound(server, extent, reply.chunk_length, reply.chunk_crc, reply.checksums):
            return None
        return LocalReplica(server, file, 0, reply.chunk_length, reply.chunk_crc, reply.checksums, now_s)

    def _ask(self, server: ServerInfo, request: Message, kind: type[R]) -> tuple[R, int | None] | None:
        """Return a door's reply, and the descriptor that it announces, which is the caller's; None after any trouble.

        A connection is in one thread's hands or in `_doors`.
        """
        deadline = Deadline.after(DOOR_TIMEOUT_S)
        with self._lock:
            door = self._doors.pop(server.server_id, None)
        try:
            if door is None or _has_ended(door):
                if door is not None:
                    door.close()
                door = LocalChannel.enter(server.server_id, self._key, deadline)
            door.send(request, deadline)
            reply = expect(door.receive(deadline).message, kind)
            is_alone = isinstance(reply, OpenRecordReply) and not reply.is_handed_over
            fd = None if is_alone else door.take_descriptor()
        except DfsError as error:
            log.debug("not_read_locally", server=server.address, reason=error.message)
            if door is None or door.is_broken:
                self._closed_until_s[server.server_id] = time.monotonic() + DOOR_RETRY_S
            self._give_back(server.server_id, door)
            return None
        self._give_back(server.server_id, door)
        return reply, fd

    def _give_back(self, server_id: ServerId, door: LocalChannel | None) -> None:
        if door is None:
            return
        with self._lock:
            if not self._is_closed and not door.is_broken and server_id not in self._doors:
                self._doors[server_id] = door
                return
        door.close()


def _has_ended(door: LocalChannel) -> bool:
    """Whether a door that nobody uses at this moment is of no use any more: it has nothing to say but its end."""
    try:
        return door.is_broken or door.wait_readable(_NOW)
    except DfsError:
        return True


def _placed(
    server: ServerInfo, place: Place, file: OpenFile, extent: LocatedExtent, now_s: float
) -> LocalReplica | None:
    if (place.length, place.crc) != (extent.chunk_length, extent.chunk_crc):
        return None  # a stale replica: the network says so, too, and that way it is reported
    return LocalReplica(server, file, place.start, place.length, place.crc, place.checksums, now_s)


def _is_sound(server: ServerInfo, extent: LocatedExtent, length: int, crc: int, checksums: bytes) -> bool:
    """Whether the checksums of a reply add up to that of the chunk it speaks of."""
    is_sound = len(checksums) == block_count(length) * CRC_SIZE and combine_blocks(checksums, length) == crc
    if not is_sound:
        log.warning("local_replica_contradicts_itself", server=server.address, chunk=id_text(extent.handle))
    return is_sound
