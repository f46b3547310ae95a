"""Read what was appended to a file and is not sealed yet.

Owns: the talk with the head of a tail, and the checks of each record. Refuses to know: sealed chunks, and what is read
for whom. Only the head of a chain knows what is committed; nobody else is asked (docs/adr/0015).
"""

from __future__ import annotations

from dataclasses import dataclass

from dfs.checksum import crc32c
from dfs.client.pool import ChannelPool
from dfs.clock import Deadline
from dfs.errors import ChunkCorrupt, ConnectionFailed, DeadlineExceeded, ProtocolError
from dfs.ids import id_text
from dfs.net.blocking import expect
from dfs.net.messages import GROUP_SIZE_MAX, ReadTail, ReadTailReply
from dfs.net.parts import LocatedTail, ServerInfo

CONNECT_TIMEOUT_S = 2.0  # to the head of a tail
REPLY_TIMEOUT_S = 5.0  # for the head to answer, after what it was told to wait for records


@dataclass(frozen=True, slots=True)
class Records:
    """Whole records from file offset `offset` on, verified; the committed ones end at file offset `committed`."""

    offset: int
    records: tuple[memoryview, ...]
    committed: int

    def between(self, start: int, end: int) -> bytes:
        """Return those bytes of the records that lie in [start, end)."""
        data = b"".join(self.records)
        return data[max(0, start - self.offset) : max(0, end - self.offset)]


class TailSource:
    """The open tail of one file, as a master located it."""

    def __init__(self, pool: ChannelPool, tail: LocatedTail, servers: tuple[ServerInfo, ...]) -> None:
        self._pool = pool
        self._tail = tail
        heads = [servers[index] for index in tail.chain[:1] if 0 <= index < len(servers)]
        if not heads:
            raise ProtocolError("a master located a tail on no server; is it of another version?")
        self._address = heads[0].address
        self.handle = tail.handle
        self.base = tail.base

    def committed(self) -> int:
        """Return the file offset where the committed records end; raise as `read`."""
        return self._ask(self.base, 0, 0.0).committed

    def read(self, offset: int, size_max: int = GROUP_SIZE_MAX, *, wait_s: float = 0.0) -> Records:
        """Return whole records from the one that holds file offset `offset` on; none when there are none in time.

        Raise `TailClosed` when it was sealed, `TokenExpired`, `ConnectionFailed` or `ChunkCorrupt`.
        """
        return self._ask(offset, size_max, wait_s)

    def _ask(self, offset: int, size_max: int, wait_s: float) -> Records:
        handle, token = self._tail.handle, self._tail.token
        request = ReadTail(handle, token, offset - self.base, size_max, round(wait_s * 1000))
        deadline = Deadline.after(REPLY_TIMEOUT_S + wait_s)
        try:
            with self._pool.channel(self._address, Deadline.after(CONNECT_TIMEOUT_S), bulk=True) as channel:
                channel.send(request, deadline)
                received = channel.receive(deadline)
                reply = expect(received.message, ReadTailReply)
                data = memoryview(bytearray(received.payload_size))
                channel.receive_into(data, deadline)
        except DeadlineExceeded as error:
            raise ConnectionFailed(f"{self._address} did not answer ({error.message})", address=self._address) from None
        records, position = [], 0
        for length, crc in zip(reply.lengths, reply.crcs, strict=True):
            record = data[position : position + length]
            if len(record) != length or crc32c(record) != crc:
                raise ChunkCorrupt(
                    f"a record at {reply.start + position} of tail {id_text(handle)} from {self._address} does not "
                    "match its checksum",
                    handle=id_text(handle),
                    server=self._address,
                )
            records.append(record)
            position += length
        return Records(self.base + reply.start, tuple(records), self.base + reply.committed)
