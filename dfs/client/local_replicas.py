"""Replicas on the reader's own machine, read through descriptors that their chunk servers handed over.

Owns: which servers have a local door, the descriptors that are held, and reading what the kernel has in memory. Refuses
to know: what is read for whom, and what to do when a block is wrong or not in memory (dfs.client.replica_reads).

Only memory is read: a call that could wait for a disk has no deadline. What is not in memory is asked of the server,
where deadlines and second replicas are. Every trouble with a door means the same: read over the network.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from typing import Final

from dfs.checksum import BLOCK_SIZE, CRC_SIZE, block_count, combine_blocks, first_bad_block
from dfs.clock import Deadline
from dfs.errors import ChunkCorrupt, DfsError
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.log import get_logger
from dfs.net.auth import ClusterKey
from dfs.net.blocking import expect
from dfs.net.local import LocalChannel
from dfs.net.messages import STORE_SIZE_MAX, OpenReplica, OpenReplicaReply
from dfs.net.parts import LocatedExtent, ServerInfo
from dfs.net.sockets import is_own_address

HELD_MAX: Final = 64  # descriptors that a client holds; 4 KiB of checksums each at 64 MiB
IDLE_S: Final = 30.0  # a descriptor that was not used for so long is let go: a deleted chunk's space comes back then
DOOR_TIMEOUT_S: Final = 1.0  # for a door to answer; the network is the way around
DOOR_RETRY_S: Final = 10.0  # after a door failed
_NOT_IN_MEMORY: Final = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
READ_FLAGS: int = getattr(os, "RWF_NOWAIT", 0)

log = get_logger(__name__)


class LocalReplica:
    """A descriptor and its checksums. It is closed when nobody refers to it any more: readers may outlast the cache."""

    __slots__ = ("checksums", "crc", "fd", "length", "used_s")

    def __init__(self, fd: int, reply: OpenReplicaReply) -> None:
        self.fd = fd
        self.length = reply.chunk_length
        self.crc = reply.chunk_crc
        self.checksums = reply.checksums
        self.used_s = time.monotonic()

    def __del__(self) -> None:
        os.close(self.fd)

    def is_deleted(self) -> bool:
        """Whether no name of the file is left."""
        return os.fstat(self.fd).st_nlink == 0

    def read(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` with whole blocks from `offset` on, verified; False: not all of them are in memory.

        Raise `ChunkCorrupt` when a block is wrong, or cannot be read.
        """
        got = 0
        while got < len(buffer):
            try:
                count = os.preadv(self.fd, [buffer[got:]], offset + got, READ_FLAGS)
            except OSError as error:
                if error.errno in _NOT_IN_MEMORY:
                    return False
                raise ChunkCorrupt(f"its open file cannot be read: {error.strerror}") from None
            if not count:
                raise ChunkCorrupt(f"its open file ends before byte {offset + got}")
            got += count
        first = offset // BLOCK_SIZE * CRC_SIZE
        bad = first_bad_block(buffer, self.checksums[first : first + block_count(len(buffer)) * CRC_SIZE])
        if bad is not None:
            raise ChunkCorrupt(f"its open file has wrong bytes at {offset + bad * BLOCK_SIZE}")
        return True


class LocalReplicas:
    """Thread-safe; one for each client."""

    def __init__(self, key: ClusterKey, *, is_used: bool = True) -> None:
        """`is_used`: False forces every read over the network."""
        self._key = key
        self._is_used = is_used and is_on(FastPath.LOCAL_READS) and hasattr(os, "RWF_NOWAIT")
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[ServerId, ChunkHandle], LocalReplica] = OrderedDict()
        self._doors: dict[ServerId, LocalChannel] = {}
        self._closed_until_s: dict[ServerId, float] = {}
        self._is_closed = False

    def find(self, server: ServerInfo, extent: LocatedExtent) -> LocalReplica | None:
        """Return the open replica of a chunk at a server of this machine, None when there is none to be had."""
        if extent.chunk_length <= STORE_SIZE_MAX:
            return None  # such ones share a file with others
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
        found = self._open(server, extent)
        if found is None or (found.length, found.crc) != (extent.chunk_length, extent.chunk_crc):
            return None  # a stale replica: the network says so, too, and that way it is reported
        with self._lock:
            if not self._is_closed:
                self._held[key] = found
            old = self._take_old(now_s - IDLE_S)
        _let_go(old)
        return found

    def _take_old(self, oldest_s: float) -> list[LocalReplica]:
        """Take out what is too much or was not used since then; the lock is held."""
        old = []
        while self._held and (len(self._held) > HELD_MAX or next(iter(self._held.values())).used_s < oldest_s):
            old.append(self._held.popitem(last=False)[1])
        return old

    def drop(self, server: ServerInfo, handle: ChunkHandle) -> None:
        """Forget a replica that turned out to be bad."""
        with self._lock:
            self._held.pop((server.server_id, handle), None)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            old, doors = [*self._held.values()], [*self._doors.values()]
            self._held.clear()
            self._doors.clear()
        _let_go(old)
        for door in doors:
            door.close()

    def _may_ask(self, server: ServerInfo, now_s: float) -> bool:
        return (
            self._is_used
            and self._closed_until_s.get(server.server_id, 0.0) <= now_s
            and is_own_address(server.address)
        )

    def _open(self, server: ServerInfo, extent: LocatedExtent) -> LocalReplica | None:
        """Ask for a descriptor. A connection is in one thread's hands or in `_doors`."""
        deadline = Deadline.after(DOOR_TIMEOUT_S)
        with self._lock:
            door = self._doors.pop(server.server_id, None)
        try:
            if door is None or door.is_broken or door.wait_readable(Deadline(0.0)):  # it has nothing to say but its end
                if door is not None:
                    door.close()
                door = LocalChannel.enter(server.server_id, self._key, deadline)
            door.send(OpenReplica(extent.handle, extent.token), deadline)
            answer = door.receive(deadline).message
            reply = expect(answer, OpenReplicaReply)
            replica = LocalReplica(door.take_descriptor(), reply)
        except DfsError as error:
            log.debug("not_read_locally", server=server.address, handle=extent.handle, reason=error.message)
            if door is None or door.is_broken:
                self._closed_until_s[server.server_id] = time.monotonic() + DOOR_RETRY_S
            self._give_back(server.server_id, door)
            return None
        self._give_back(server.server_id, door)
        is_sound = len(reply.checksums) == block_count(reply.chunk_length) * CRC_SIZE
        if not is_sound or combine_blocks(reply.checksums, reply.chunk_length) != reply.chunk_crc:
            log.warning("local_replica_contradicts_itself", server=server.address, chunk=id_text(extent.handle))
            return None
        return replica

    def _give_back(self, server_id: ServerId, door: LocalChannel | None) -> None:
        if door is None:
            return
        with self._lock:
            if not self._is_closed and not door.is_broken and server_id not in self._doors:
                self._doors[server_id] = door
                return
        door.close()


def _let_go(old: list[LocalReplica]) -> None:
    """Drop replicas, those of deleted chunks in a thread of their own.

    The last close of a deleted file frees its space, in the calling thread; on a disk that is mounted with `discard`
    that may take as long as to write the chunk, and no reader should wait for it.
    """
    gone = [replica for replica in old if replica.is_deleted()]
    old.clear()
    if gone:
        threading.Thread(target=gone.clear, name="dfs-let-go", daemon=True).start()
