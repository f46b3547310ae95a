"""One chunk written from lent memory: all servers of this machine take it at once, one of them passes it on to others.

Owns: the talk with the doors of one chunk, and who is blamed when it fails. Refuses to know: how a door is entered
(dfs.client.lanes), where chunks come from, and what follows a failure.

The promise is that of the chain: the call returns when all servers have the chunk on disk. What the others stored when
one fails belongs to no file and is collected as garbage, as after a fan-out (docs/adr/0027).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from dfs.checksum import block_checksums, combine_blocks
from dfs.client.lanes import SLOT_SIZE, SLOTS, Lane
from dfs.client.parallel import Cancellation
from dfs.client.plan import blamed
from dfs.client.pool import stalls_as_failures
from dfs.client.write_target import WRITE_STALL_S, ChunkNotWritten, ChunkSource, WriteTarget, finish_deadline
from dfs.clock import Deadline
from dfs.errors import ChainBroken, ConnectionFailed, DeadlineExceeded, DfsError, ProtocolError
from dfs.ids import ServerId, id_text
from dfs.net.blocking import expect
from dfs.net.local import LocalChannel
from dfs.net.messages import FinishChunk, Message, WriteChunk, WriteChunkReply, WriteLent, WriteLentReply
from dfs.net.parts import NewChunk, ServerInfo

LAST_WORDS_S = 0.2  # to look for the reason in what a server said before it closed the connection

T = TypeVar("T", bound=Message)


class _Door:
    """A server that takes the chunk, and those to which it passes the chunk on."""

    def __init__(self, channel: LocalChannel, chain: tuple[ServerInfo, ...]) -> None:
        self.channel = channel
        self.chain = chain  # itself first
        self.untaken = 0  # pieces

    def send(self, message: Message, deadline: Deadline) -> None:
        with self._errors():
            self.channel.send(message, deadline)

    def hear(self, cls: type[T], deadline: Deadline) -> T:
        with self._errors():
            return expect(self.channel.receive(deadline).message, cls)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn every error of this server into `ChunkNotWritten`."""
        head = self.chain[0]
        try:
            with stalls_as_failures(head.address, WRITE_STALL_S):
                yield
        except DfsError as error:
            reason = error
            if isinstance(error, ConnectionFailed):
                reason = self._last_words() or error
            raise ChunkNotWritten(reason, blamed(reason, self.chain)) from None

    def _last_words(self) -> DfsError | None:
        """Return the error that the server sent before it closed the connection, if that came through."""
        deadline = Deadline.after(LAST_WORDS_S)
        try:
            while self.channel.wait_readable(deadline):
                expect(self.channel.receive(deadline).message, WriteLentReply)
        except DfsError as error:
            return None if isinstance(error, (ConnectionFailed, DeadlineExceeded, ProtocolError)) else error
        return None


def write_lent(
    lane: Lane,
    channels: Mapping[ServerId, LocalChannel],
    target: WriteTarget,
    source: ChunkSource,
    reached: Callable[[int], None],
    cancellation: Cancellation,
) -> NewChunk:
    """Store a chunk by one attempt; raise `ChunkNotWritten`. Errors of `source` pass through.

    `channels`: the doors that are open, at least one; the first of these servers passes the chunk on to the others.
    """
    doors = _doors(channels, target)
    with cancellation.watched(*(door.channel for door in doors)):
        for door in doors:
            rest = tuple(server.address for server in door.chain[1:])
            door.send(WriteChunk(target.handle, target.token, rest), Deadline.after(WRITE_STALL_S))
        crc = _lend_pieces(lane, doors, source, reached, cancellation)
        finish = finish_deadline(source.length)
        for door in doors:
            door.send(FinishChunk(source.length, crc), finish)
        stored: set[ServerId] = set()
        for door in doors:
            while door.untaken:
                _hear_taken(door)
            reply = door.hear(WriteChunkReply, finish)
            if reply.servers != tuple(server.server_id for server in door.chain):
                text = (
                    f"chunk {id_text(target.handle)} was acknowledged by other servers than those that it was sent to"
                )
                raise ChunkNotWritten(ChainBroken(text, failed=door.chain[0].address), door.chain)
            stored.update(reply.servers)
    return NewChunk(target.handle, source.length, crc, tuple(server.server_id for server in target.chain))


def _doors(channels: Mapping[ServerId, LocalChannel], target: WriteTarget) -> list[_Door]:
    near = [server for server in target.chain if server.server_id in channels]
    far = tuple(server for server in target.chain if server.server_id not in channels)
    return [_Door(channels[server.server_id], (server, *(() if index else far))) for index, server in enumerate(near)]


def _lend_pieces(
    lane: Lane, doors: list[_Door], source: ChunkSource, reached: Callable[[int], None], cancellation: Cancellation
) -> int:
    """Hand all bytes over, the last pieces perhaps not taken yet; return the CRC of the chunk."""
    checksums = bytearray()
    for number, position in enumerate(range(0, source.length, SLOT_SIZE)):
        cancellation.check()
        for door in doors:
            if door.untaken == SLOTS:  # the slot that comes next is the one that was filled first
                _hear_taken(door)
        size = min(SLOT_SIZE, source.length - position)
        offset, view = lane.slot(number, size)
        source.fill(position, view)
        listed = block_checksums(view)
        checksums += listed
        for door in doors:
            door.send(WriteLent(offset, size, listed), Deadline.after(WRITE_STALL_S))
            door.untaken += 1
        reached(position + size)
    return combine_blocks(checksums, source.length)


def _hear_taken(door: _Door) -> None:
    door.hear(WriteLentReply, Deadline.after(WRITE_STALL_S))
    door.untaken -= 1
