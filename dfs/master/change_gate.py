"""Changes of the state that wait for the replicated log, and are answered in the step that has applied them.

Owns: what each change waits with, and the end of its wait. Refuses to know: what a change does, how it is replicated
(the log), and how tails are sealed that are in its way (dfs.master.tail_desk).

Like a read (dfs.master.read_gate) a change costs no task and no timer: the log ends each wait in time.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from dfs.clock import Deadline
from dfs.errors import DeadlineExceeded, DfsError, InternalError
from dfs.log import get_logger
from dfs.master.leadership import PROPOSE_TIMEOUT_S, Leadership
from dfs.master.meter import MasterMeter
from dfs.master.state.machine import MasterState
from dfs.master.tail_desk import TailDesk, is_tail_open
from dfs.net.answers import Answer
from dfs.net.messages import ErrorReply, Message, Mutation
from dfs.paths import split

SEAL_GRACE_S = 1.0  # past the deadline of a change the sealing for its sake is given up
FAULT_SHOWN_MAX = 900  # last characters of a traceback in the log
_PATH_FIELDS = ("path", "source", "target")

log = get_logger(__name__)


class Change(Answer):
    """The answer to a change that was asked for."""

    __slots__ = ("_gate", "begun_s", "command", "deadline", "deadline_s")

    def __init__(self, gate: ChangeGate, command: Mutation, deadline: Deadline, begun_s: float) -> None:
        super().__init__()
        self._gate, self.command, self.deadline, self.begun_s = gate, command, deadline, begun_s
        self.deadline_s = deadline.at_s

    def ended(self, result: Any, error: DfsError | None) -> None:
        self._gate.ended(self, result, error)


class ChangeGate:
    """Used from one loop only."""

    def __init__(self, leadership: Leadership, tails: TailDesk, state: MasterState, meter: MasterMeter) -> None:
        self._leadership, self._tails, self._state, self._meter = leadership, tails, state, meter
        self._sealing: set[asyncio.Task[None]] = set()

    def wait(self, command: Mutation, deadline: Deadline) -> Answer:
        """Return what the state will say to `command` once it is replicated and applied."""
        change = Change(self, command, deadline, self._meter.begin(type(command).__name__))
        try:
            if command.call.sequence > 1:  # the first call of a session makes it, even when it fails: it must be logged
                for field in _PATH_FIELDS:
                    if (path := getattr(command, field, None)) is not None:
                        split(path)
            now_s = time.monotonic()
            if deadline.at_s <= now_s:
                deadline.check("handing the call to the masters")
            change.deadline_s = min(deadline.at_s, now_s + PROPOSE_TIMEOUT_S)
            self._leadership.submit(command, change)
        except Exception as error:  # noqa: BLE001 - refused, or a bug: the server of the port tells them apart
            self._fail(change, error)
        return change

    def ended(self, change: Change, result: Any, error: DfsError | None) -> None:
        """Hear from the log how the wait of a change has ended."""
        if error is not None:
            self._fail(change, self._leadership.failure(error))
        elif is_tail_open(result):
            task = asyncio.get_running_loop().create_task(self._seal(change))
            self._sealing.add(task)
            task.add_done_callback(self._sealing.discard)
        else:
            self._give(change, result)

    async def _seal(self, change: Change) -> None:
        """Make way for a change that open tails keep from happening."""
        try:
            async with asyncio.timeout(change.deadline.remaining_s() + SEAL_GRACE_S):
                reply = await self._tails.propose_sealed(change.command, change.deadline)
        except TimeoutError:
            self._fail(change, DeadlineExceeded("the deadline passed while open tails were sealed; try again"))
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(change, error)
        else:
            self._give(change, reply)

    def _give(self, change: Change, reply: Any) -> None:
        name, code = type(change.command).__name__, ""
        if isinstance(reply, ErrorReply):
            code = reply.code
            if code == InternalError.code:
                log.error("state_fault", command=name, trace=(self._state.fault or "")[-FAULT_SHOWN_MAX:])
        elif not isinstance(reply, Message):
            self._fail(change, self._leadership.no_reply(change.command, reply))
            return
        self._meter.end(name, change.begun_s, code)
        change.give(reply)

    def _fail(self, change: Change, error: Exception) -> None:
        code = error.code if isinstance(error, DfsError) else ""
        self._meter.end(type(change.command).__name__, change.begun_s, code)
        change.fail(error)
