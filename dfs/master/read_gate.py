"""Reads of the state that wait for a proof of the leadership, and take their answers in the step that ends it.

Owns: what each read waits with, and the end of its wait. Refuses to know: what is read, and how a leadership is proved
(the log, which shares one proof among all reads that came before it was begun, and none with those that came later).

A read costs no task: it takes its answer from the state in the very step of the loop in which its proof ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dfs.clock import Deadline
from dfs.errors import DfsError, InvalidArgument
from dfs.master.leadership import BARRIER_TIMEOUT_S, Leadership
from dfs.master.meter import MasterMeter
from dfs.net.answers import Answer
from dfs.net.messages import Message

Read = Callable[[Any], Message]  # takes the answer to a message from the state, at once; raises DfsError


class Waiting(Answer):
    """The answer to a read that was asked for."""

    __slots__ = ("_gate", "begun_s", "deadline_s", "message", "read")

    def __init__(self, gate: ReadGate, message: Message, read: Read, deadline: Deadline, begun_s: float) -> None:
        super().__init__()
        self._gate, self.message, self.read, self.begun_s = gate, message, read, begun_s
        self.deadline_s = deadline.at_s

    def ended(self, _result: Any, error: DfsError | None) -> None:
        self._gate.end(self, error)


class ReadGate:
    """Used from one loop only."""

    def __init__(self, leadership: Leadership, meter: MasterMeter) -> None:
        self._leadership = leadership
        self._meter = meter

    def wait(self, message: Message, read: Read, deadline: Deadline) -> Answer:
        """Return what `read` will say to `message` once the state holds all that was acknowledged before this call.

        A message that allows an age (`stale_ms`) is answered at once where the state is provably not older.
        """
        waiting = Waiting(self, message, read, deadline, self._meter.begin(type(message).__name__))
        age_ms = getattr(message, "stale_ms", 0)
        try:
            if age_ms < 0:
                raise InvalidArgument(f"an age of {age_ms} ms cannot be allowed: it is in the future")
            if age_ms and self._leadership.is_within(age_ms / 1000):
                self.end(waiting, None)
            else:
                now_s = time.monotonic()
                if deadline.at_s <= now_s:
                    deadline.check("waiting for the masters")
                waiting.deadline_s = min(deadline.at_s, now_s + BARRIER_TIMEOUT_S)
                self._leadership.prove(waiting)
        except Exception as error:  # noqa: BLE001 - refused, or a bug: the server of the port tells them apart
            self.end(waiting, error)
        return waiting

    def end(self, waiting: Waiting, error: Exception | None) -> None:
        """End the wait of a read: its proof has come, or failed."""
        code, reply = "", None
        if error is None:
            try:
                reply = waiting.read(waiting.message)
            except Exception as failure:  # noqa: BLE001 - as above
                error = failure
        elif isinstance(error, DfsError):
            error = self._leadership.failure(error)
        if isinstance(error, DfsError):
            code = error.code
        self._meter.end(type(waiting.message).__name__, waiting.begun_s, code)
        if reply is not None:
            waiting.give(reply)
        elif error is not None:
            waiting.fail(error)
