"""Reads of the state that wait together: one proof of the leadership for all that came while the last one was sought.

Owns: who waits, and the end of each wait. Refuses to know: what is read, and how a leadership is proved (the log).

A proof that is begun after a read came shows that nothing was missed which was acknowledged before it: whoever comes
while one is under way waits for the next. Each read then takes its answer from the state in the very step of the loop
in which the proof ends, and costs no task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from dfs.clock import Deadline
from dfs.errors import DfsError, InvalidArgument, Overloaded
from dfs.master.leadership import Leadership
from dfs.master.meter import MasterMeter
from dfs.net.answers import Answer
from dfs.net.messages import Message

WAITING_MAX = 100_000  # reads without an answer

Read = Callable[[Any], Message]  # takes the answer to a message from the state, at once; raises DfsError


class Waiting(Answer):
    """The answer to a read that was asked for."""

    __slots__ = ("begun_s", "deadline", "message", "read")

    def __init__(self, message: Message, read: Read, deadline: Deadline, begun_s: float) -> None:
        super().__init__()
        self.message, self.read, self.deadline, self.begun_s = message, read, deadline, begun_s


class ReadGate:
    """Used from one loop only."""

    def __init__(self, leadership: Leadership, meter: MasterMeter) -> None:
        self._leadership = leadership
        self._meter = meter
        self._waiting: list[Waiting] = []
        self._proving: asyncio.Task[None] | None = None

    def wait(self, message: Message, read: Read, deadline: Deadline) -> Answer:
        """Return what `read` will say to `message` once the state holds all that was acknowledged before this call.

        A message that allows an age (`stale_ms`) is answered at once where the state is provably not older.
        """
        waiting = Waiting(message, read, deadline, self._meter.begin(type(message).__name__))
        age_ms = getattr(message, "stale_ms", 0)
        if age_ms < 0:
            self._end(waiting, InvalidArgument(f"an age of {age_ms} ms cannot be allowed: it is in the future"))
        elif age_ms and self._leadership.is_within(age_ms / 1000):
            self._end(waiting, None)
        elif len(self._waiting) >= WAITING_MAX:
            self._end(waiting, Overloaded(f"{WAITING_MAX} reads wait at this master; try again in a moment"))
        else:
            self._waiting.append(waiting)
            if self._proving is None:
                self._proving = asyncio.get_running_loop().create_task(self._prove())
        return waiting

    async def _prove(self) -> None:
        """Seek proofs as long as somebody waits for one."""
        try:
            while self._waiting:
                together, self._waiting = self._waiting, []
                error: Exception | None = None
                try:
                    await self._leadership.barrier(Deadline(max(waiting.deadline.at_s for waiting in together)))
                except Exception as failure:  # noqa: BLE001 - whatever it is, those who wait hear of it
                    error = failure
                raised_at = None if error is None else error.__traceback__
                for waiting in together:  # whoever is told of an error may raise it again, which adds to its traceback
                    self._end(waiting, error and error.with_traceback(raised_at))
        finally:
            self._proving = None

    def _end(self, waiting: Waiting, error: Exception | None) -> None:
        code, reply = "", None
        if error is None:
            try:
                reply = waiting.read(waiting.message)
            except Exception as failure:  # noqa: BLE001 - refused, or a bug: the server of the port tells them apart
                error = failure
        if isinstance(error, DfsError):
            code = error.code
        self._meter.end(type(waiting.message).__name__, waiting.begun_s, code)
        if reply is not None:
            waiting.give(reply)
        elif error is not None:
            waiting.fail(error)
