"""What is read of one chunk, how it is asked for, and how it is known to be right.

Owns: whole blocks on their way to a destination, cut ranges on their way into memory; the checks of every reply.
Refuses to know: which replica is asked, connections, and retries (dfs.client.replica_reads).

A reading counts what it has: another replica goes on where one failed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dfs.checksum import (
    BLOCK_SIZE,
    CRC_SIZE,
    EDGES_SIZE,
    block_count,
    combine_blocks,
    covering,
    first_bad_block,
    first_bad_cut,
)
from dfs.client.local_replicas import LocalReplica
from dfs.client.parallel import Cancellation
from dfs.client.plan import ReadPlan
from dfs.clock import Deadline
from dfs.errors import ChunkCorrupt, DfsError, ProtocolError, StaleReplica
from dfs.ids import id_text
from dfs.net.blocking import Channel, expect
from dfs.net.messages import (
    RANGES_MAX,
    RANGES_SIZE_MAX,
    Message,
    ReadChunk,
    ReadChunkReply,
    ReadRanges,
    ReadRangesReply,
)
from dfs.net.parts import LocatedExtent, ServerInfo

PIECE_SIZE = 1024 * 1024  # bytes received and verified at a time: the measured optimum, and it bounds memory
LOCAL_PIECE_SIZE = 256 * 1024  # the same of an open file: verified while the processor's cache still has it


class Destination(Protocol):
    """Where read bytes go. `window` gives the memory for the next ones; `accept` gets them verified, in order."""

    def window(self, position: int, size: int) -> memoryview: ...

    def accept(self, position: int, data: memoryview) -> None: ...


class Reading(ABC):
    """How far a read has come, and what went wrong on the way. `server` is who was asked last."""

    def __init__(self, plan: ReadPlan, replicas: tuple[ServerInfo, ...]) -> None:
        self.plan = plan
        self.extent: LocatedExtent = plan.extent  # with the present token
        self.replicas = replicas
        self.server: ServerInfo | None = None
        self.reasons: dict[str, str] = {}  # server -> its last failure
        self.verified: set[str] = set()  # addresses told to check themselves
        self.last_error: DfsError | None = None

    @property
    @abstractmethod
    def left(self) -> int:
        """How many bytes are still to come."""

    @abstractmethod
    def request(self) -> Message:
        """Return what asks a chunk server for what is still to come, or for the next part of it."""

    @abstractmethod
    def receive(self, channel: Channel, stall_s: float, cancellation: Cancellation) -> None:
        """Take the answer to `request`; each verified piece counts, also when a later one fails."""

    @abstractmethod
    def read_local(self, replica: LocalReplica, cancellation: Cancellation) -> None:
        """Take what is in memory, up to the first block that is not; raise `ChunkCorrupt`."""

    def check_chunk(self, address: str, length: int, crc: int) -> None:
        """Raise unless a replica is of the chunk that the map knows."""
        name, extent = f"the replica of chunk {id_text(self.extent.handle)} at {address}", self.extent
        if length != extent.chunk_length:
            raise StaleReplica(f"{name} has {length} bytes, the chunk map says {extent.chunk_length}")
        if crc != extent.chunk_crc:
            raise StaleReplica(f"{name} has CRC {crc:08x}, the chunk map says {extent.chunk_crc:08x}")

    def corrupt(self, address: str, position: int) -> ChunkCorrupt:
        handle = id_text(self.extent.handle)
        return ChunkCorrupt(
            f"bytes at {position} of chunk {handle} from {address} do not match their checksum",
            handle=handle,
            server=address,
        )


class BlockReading(Reading):
    """The blocks of a plan, in order, to a destination."""

    def __init__(self, plan: ReadPlan, replicas: tuple[ServerInfo, ...], destination: Destination) -> None:
        super().__init__(plan, replicas)
        self._destination = destination
        self._position = plan.block_offset

    @property
    def left(self) -> int:
        return self.plan.block_end - self._position

    def request(self) -> ReadChunk:
        return ReadChunk(self.extent.handle, self.extent.token, self._position, self.left)

    def receive(self, channel: Channel, stall_s: float, cancellation: Cancellation) -> None:
        start, end = self._position, self.plan.block_end
        received = channel.receive(Deadline.after(stall_s))
        reply = expect(received.message, ReadChunkReply)
        self._check_reply(reply, received.payload_size, channel.address)
        while self._position < end:
            cancellation.check()
            position = self._position
            size = min(PIECE_SIZE, end - position)
            view = self._destination.window(position, size)
            channel.receive_into(view, Deadline.after(stall_s))
            first = (position - start) // BLOCK_SIZE * CRC_SIZE
            bad = first_bad_block(view, reply.checksums[first : first + block_count(size) * CRC_SIZE])
            if bad is not None:
                raise self.corrupt(channel.address, position + bad * BLOCK_SIZE)
            self._destination.accept(position, view)
            self._position += size

    def _check_reply(self, reply: ReadChunkReply, payload_size: int, address: str) -> None:
        """Raise unless the reply announces exactly what was asked for."""
        self.check_chunk(address, reply.chunk_length, reply.chunk_crc)
        start, end = self._position, self.plan.block_end
        if payload_size != end - start or len(reply.checksums) != block_count(end - start) * CRC_SIZE:
            raise ProtocolError(f"{address} answered a read of {end - start} bytes with {payload_size}")
        whole = start == 0 and end == self.extent.chunk_length
        if whole and combine_blocks(reply.checksums, end) != self.extent.chunk_crc:
            raise StaleReplica(
                f"the replica of chunk {id_text(self.extent.handle)} at {address} has block checksums that do not add "
                "up to that of the chunk map"
            )

    def read_local(self, replica: LocalReplica, cancellation: Cancellation) -> None:
        end = self.plan.block_end
        while self._position < end:
            cancellation.check()
            view = self._destination.window(self._position, min(PIECE_SIZE, end - self._position))
            got = 0
            while got < len(view) and replica.read(self._position + got, view[got : got + LOCAL_PIECE_SIZE]):
                got = min(len(view), got + LOCAL_PIECE_SIZE)
            if got:
                self._destination.accept(self._position, view[:got])
                self._position += got
            if got < len(view):
                return


class Cut(NamedTuple):
    """Bytes from `offset` of a chunk on, and the memory that they go to, which tells how many."""

    offset: int
    view: memoryview


class RangeReading(Reading):
    """Cut ranges of one chunk, each of at most RANGES_SIZE_MAX bytes."""

    def __init__(self, plan: ReadPlan, replicas: tuple[ServerInfo, ...], cuts: Sequence[Cut]) -> None:
        super().__init__(plan, replicas)
        self._cuts = cuts
        self._done = 0

    @property
    def left(self) -> int:
        return sum(len(cut.view) for cut in self._cuts[self._done :])

    def _next(self) -> Sequence[Cut]:
        """Return the cuts that one request may ask for."""
        stop, size = self._done, 0
        while stop < len(self._cuts) and stop - self._done < RANGES_MAX:
            size += len(self._cuts[stop].view)
            if size > RANGES_SIZE_MAX:
                break
            stop += 1
        return self._cuts[self._done : stop]

    def request(self) -> ReadRanges:
        cuts = self._next()
        offsets, lengths = tuple(cut.offset for cut in cuts), tuple(len(cut.view) for cut in cuts)
        return ReadRanges(self.extent.handle, self.extent.token, offsets, lengths)

    def receive(self, channel: Channel, stall_s: float, cancellation: Cancellation) -> None:  # noqa: ARG002 - one piece
        deadline = Deadline.after(stall_s)
        received = channel.receive(deadline)
        reply = expect(received.message, ReadRangesReply)
        self.check_chunk(channel.address, reply.chunk_length, reply.chunk_crc)
        cuts, length = self._next(), self.extent.chunk_length
        size = sum(len(cut.view) for cut in cuts)
        if received.payload_size != size or len(reply.edges) != len(cuts) * EDGES_SIZE:
            raise ProtocolError(f"{channel.address} answered a read of {size} bytes with {received.payload_size}")
        data = cuts[0].view if len(cuts) == 1 else memoryview(bytearray(size))
        channel.receive_into(data, deadline)
        position = listed = 0
        for number, cut in enumerate(cuts):
            if len(cuts) > 1:
                cut.view[:] = data[position : position + len(cut.view)]
                position += len(cut.view)
            start, end = covering(cut.offset, len(cut.view), length)
            stop = listed + block_count(end - start) * CRC_SIZE
            edges = reply.edges[number * EDGES_SIZE : (number + 1) * EDGES_SIZE]
            bad = first_bad_cut(cut.view, cut.offset, length, reply.checksums[listed:stop], edges)
            if bad is not None:
                raise self.corrupt(channel.address, start + bad * BLOCK_SIZE)
            listed = stop
            self._done += 1

    def read_local(self, replica: LocalReplica, cancellation: Cancellation) -> None:
        for cut in self._cuts[self._done :]:
            cancellation.check()
            start, end = covering(cut.offset, len(cut.view), self.extent.chunk_length)
            is_whole = end - start == len(cut.view)
            blocks = cut.view if is_whole else memoryview(bytearray(end - start))
            if not replica.read(start, blocks):
                return
            if not is_whole:
                cut.view[:] = blocks[cut.offset - start : cut.offset - start + len(cut.view)]
            self._done += 1
