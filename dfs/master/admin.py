"""What an administrator asks of one master: hand the leadership over, write a checkpoint, let it be read.

Owns: the answers to these messages and their limits. Refuses to know: how a checkpoint is written or an election made
(dfs.master.replicated_log), and what is in one.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from dfs.errors import Conflict, InvalidArgument
from dfs.log import get_logger
from dfs.master.leadership import Leadership
from dfs.master.replicated_log import ReplicatedLog
from dfs.net.aio import RequestContext
from dfs.net.messages import (
    CHECKPOINT_PIECE_MAX,
    Message,
    ReadCheckpoint,
    ReadCheckpointReply,
    TransferLeadership,
    TransferLeadershipReply,
    WriteCheckpoint,
    WriteCheckpointReply,
)
from dfs.net.parts import CheckpointStatus

log = get_logger(__name__)


class AdminDesk:
    """One master's answers to administrators."""

    def __init__(self, replicated: ReplicatedLog, leadership: Leadership) -> None:
        self._log, self._leadership = replicated, leadership

    async def transfer(self, message: TransferLeadership, context: RequestContext) -> Message:
        """Hand over; asked twice, the second time finds it done."""
        await self._leadership.barrier(context.deadline)
        if message.target != self._leadership.name:
            log.info("leadership_handing_over", target=message.target, asked_by=context.peer)
            await self._leadership.hand_over(message.target, context.deadline)
        return TransferLeadershipReply(message.target)

    async def write(self, message: WriteCheckpoint, context: RequestContext) -> Message:
        if message.is_current:
            await self._leadership.barrier(context.deadline)
        begun_s = time.monotonic()
        written = await self._log.write_checkpoint(context.deadline.check("writing a checkpoint"))
        return WriteCheckpointReply(
            CheckpointStatus(written.index, written.size, written.age_s, time.monotonic() - begun_s)
        )

    async def read(self, message: ReadCheckpoint, _context: RequestContext) -> Message:
        file = self._log.checkpoint_file(message.index)
        if file is None:
            raise Conflict(
                f"master {self._leadership.name} has no checkpoint {message.index} any more: newer ones have "
                "replaced it; begin again"
            )
        if not 0 <= message.offset <= file.size:
            raise InvalidArgument(f"offset {message.offset} is not within the {file.size} bytes of the checkpoint")
        data = await asyncio.to_thread(_read, file.path, message.offset)
        return ReadCheckpointReply(data, message.offset + len(data) >= file.size)


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(CHECKPOINT_PIECE_MAX)
    except FileNotFoundError:
        raise Conflict(f"the checkpoint {path.name} was replaced by newer ones; begin again") from None
