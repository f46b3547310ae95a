"""What all clients of a run asked and were answered, in the order in which it happened.

Owns: the calls with their begins and ends, counts, and the moments of successful changes. Refuses to know: what a call
means, and whether an answer was right (dfs.chaos.verdict, dfs.testing.chaos.verdict).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

from dfs.chaos.linearizability import UNKNOWN, Call
from dfs.errors import DfsError

T = TypeVar("T")
DEFINITE: dict[str, str] = {"already_exists": "exists", "not_found": "missing"}  # error codes that are results


class TimedCall(NamedTuple):
    """A call by the clock. `outcome`: done, unknown, or the code of the error that says that nothing happened."""

    key: Hashable
    name: str
    argument: Any
    result: Any
    outcome: str
    begun_s: float  # monotonic clock
    ended_s: float
    is_read: bool


class History:
    """Written by many client threads at once."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.timed: list[TimedCall] = []  # by their ends
        self.counts: Counter[str] = Counter()  # "name outcome"
        self.changed_s: list[tuple[float, float]] = []  # begin and end of each successful change, monotonic clock
        self.failed_reads: list[tuple[float, float, str]] = []  # begin, end, what was answered
        self._lock = threading.Lock()
        self._events = 0

    def run(
        self,
        key: Hashable,
        name: str,
        argument: Any,
        ask: Callable[[], Any],
        *,
        is_read: bool = False,
    ) -> Any:
        """Do one call and write it down; return its result, `UNKNOWN`, or None where it surely did nothing.

        An error that does not say "it may have happened" promises that nothing did, so such a call is left out of the
        history: if it did happen after all, the reads after it find no explanation.
        """
        begun, begun_s = self._next_event(), time.monotonic()
        try:
            result = ask()
        except DfsError as error:
            if error.code not in DEFINITE and not error.may_have_happened:
                return self._failed(TimedCall(key, name, argument, None, error.code, begun_s, 0.0, is_read), error)
            result = DEFINITE.get(error.code, UNKNOWN)
        with self._lock:
            self._events += 1
            ended_s = time.monotonic()
            outcome = "unknown" if result is UNKNOWN else "done"
            self.counts[f"{name} {outcome}"] += 1
            self.timed.append(TimedCall(key, name, argument, result, outcome, begun_s, ended_s, is_read))
            self.calls.append(Call(key, name, argument, result, begun, None if result is UNKNOWN else self._events))
            if not is_read and result is not UNKNOWN:
                self.changed_s.append((begun_s, ended_s))
        return result

    def count(
        self, name: str, ask: Callable[[], T], *, is_read: bool = False, key: Hashable = "", argument: Any = None
    ) -> T | None:
        """Do one call that is judged elsewhere; return its result, None where it failed or found no file."""
        begun_s = time.monotonic()
        try:
            result = ask()
        except DfsError as error:
            if error.code in DEFINITE:
                outcome = DEFINITE[error.code]
            elif error.may_have_happened:
                outcome = "unknown"
            else:
                self._failed(TimedCall(key, name, argument, None, error.code, begun_s, 0.0, is_read), error)
                return None
            with self._lock:
                self.counts[f"{name} {outcome}"] += 1
                self.timed.append(TimedCall(key, name, argument, None, outcome, begun_s, time.monotonic(), is_read))
            return None
        with self._lock:
            self.counts[f"{name} done"] += 1
            told = result if isinstance(result, int) else None  # not whole contents
            self.timed.append(TimedCall(key, name, argument, told, "done", begun_s, time.monotonic(), is_read))
        return result

    def moment(self) -> int:
        """Return a moment between two events: later than all before it, earlier than all after it."""
        return self._next_event()

    def _failed(self, call: TimedCall, error: DfsError) -> None:
        with self._lock:
            ended_s = time.monotonic()
            self.counts[f"{call.name} failed ({error.code})"] += 1
            self.timed.append(call._replace(ended_s=ended_s))
            if call.is_read:
                self.failed_reads.append((call.begun_s, ended_s, f"{call.name}: {error.code}: {error.message}"))

    def _next_event(self) -> int:
        with self._lock:
            self._events += 1
            return self._events
