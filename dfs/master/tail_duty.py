"""The leader's duty for open tails: seal those that ended, and forget appenders that went away.

Owns: one turn of it. Refuses to know: how a tail is sealed (dfs.master.tail_desk).
"""

from __future__ import annotations

from dfs.errors import NotEnoughServers
from dfs.ids import ChunkHandle
from dfs.log import get_logger
from dfs.master.leadership import Leadership
from dfs.master.state.commands import ForgetAppenders
from dfs.master.state.machine import MasterState
from dfs.master.state.tails import TailRecord
from dfs.master.tail_desk import TailDesk

SEALS_PER_TURN = 20  # more wait for the next turn
APPENDER_SILENT_MS = 24 * 60 * 60 * 1000  # after that an appender that did not close is forgotten
FORGET_BATCH = 1000  # appenders forgotten by one command
FORGET_EVERY = 60  # turns

log = get_logger(__name__)


class TailDuty:
    """Seal tails whose chain lost a server, and idle ones."""

    name = "tails"
    interval_s = 1.0

    def __init__(self, desk: TailDesk, state: MasterState, leadership: Leadership) -> None:
        self._desk, self._state, self._leadership = desk, state, leadership
        self._turn = 0
        self._tried: dict[ChunkHandle, None] = {}  # tails that could not be sealed, in the order of their last try

    async def run_once(self) -> None:
        for tail, reason in self._chosen():
            log.info("tail_ends", path=tail.path, handle=tail.handle, reason=reason)
            self._tried.pop(tail.handle, None)
            self._tried[tail.handle] = None  # first: whatever happens, the others come before it next time
            try:
                await self._desk.seal(tail.path, tail.handle)
            except NotEnoughServers as error:  # one tail that cannot be reached must not keep the others waiting
                log.warning("tail_not_sealed", path=tail.path, reason=error.message)
        self._turn += 1
        if self._turn % FORGET_EVERY == 0 and self._state.tails.has_silent(APPENDER_SILENT_MS, self._state.clock_ms):
            await self._leadership.decree(ForgetAppenders(APPENDER_SILENT_MS, FORGET_BATCH))

    def _chosen(self) -> list[tuple[TailRecord, str]]:
        """Return whose turn it is: those that could not be sealed come last, the one tried last at the very end."""
        due = self._desk.due()
        waiting = {tail.handle for tail, _ in due}
        self._tried = {handle: None for handle in self._tried if handle in waiting}
        places = {handle: place for place, handle in enumerate(self._tried, 1)}
        return sorted(due, key=lambda item: places.get(item[0].handle, 0))[:SEALS_PER_TURN]
