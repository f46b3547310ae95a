"""Is this history of concurrent calls linearizable? A checker after Wing and Gong, with Lowe's memory of tried states.

Owns: the search. Refuses to know: where a history comes from, time (only the order of events counts), and what an
operation means (a `Model`).

Sources: J. Wing, C. Gong, Testing and Verifying Concurrent Objects (1993); G. Lowe, Testing for linearizability (2017).
A call whose outcome is unknown may take effect at any moment after it began, or never. Check objects that do not touch
each other one by one (`split`): linearizability is local, and the search is exponential in the calls that overlap.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

STORY_CALLS = 8  # that a story quotes
UNKNOWN: Any = type("Unknown", (), {"__repr__": lambda _self: "UNKNOWN"})()  # an outcome that nobody saw


@dataclass(frozen=True, slots=True)
class Call:
    """One call on object `key`. `begun` and `ended` count events of the whole history; `ended` None: never known."""

    key: Hashable
    name: str
    argument: Any
    result: Any
    begun: int
    ended: int | None

    def __str__(self) -> str:
        end = "?" if self.ended is None else self.ended
        return f"[{self.begun}..{end}] {self.name}({self.argument!r}) of {self.key!r} -> {self.result!r}"


@dataclass(frozen=True, slots=True)
class Model:
    """What an object does alone. `step(state, name, argument)` returns the result and the next (hashable) state."""

    initial: Hashable
    step: Callable[[Any, str, Any], tuple[Any, Hashable]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`story` tells, for a history that is not linearizable, how far an order was found and what fits nowhere."""

    is_linearizable: bool
    story: str = ""


class _Event:
    """The begin or the end of a call in a doubly linked list."""

    __slots__ = ("call", "end", "next", "number", "previous")

    def __init__(self, call: Call, number: int, end: _Event | None) -> None:
        self.call, self.number, self.end = call, number, end
        self.next: _Event | None = None
        self.previous: _Event | None = None

    def unlink(self) -> None:
        assert self.previous is not None
        self.previous.next = self.next
        if self.next is not None:
            self.next.previous = self.previous

    def relink(self) -> None:
        assert self.previous is not None
        self.previous.next = self
        if self.next is not None:
            self.next.previous = self


def split(history: Iterable[Call]) -> dict[Hashable, list[Call]]:
    """Return the calls by key."""
    found: dict[Hashable, list[Call]] = {}
    for call in history:
        found.setdefault(call.key, []).append(call)
    return found


def check(history: Sequence[Call], model: Model) -> Verdict:
    """Look for an order of the calls of one object that explains all results."""
    head = _linked(history)
    state: Any = model.initial
    draw = random.Random(0)  # noqa: S311 - two sets of calls with one mark: as likely as two equal 128-bit draws
    tokens = [draw.getrandbits(128) for _ in history]
    done = 0  # the set of calls in the order so far, as a sum of tokens: of one size however long the history is
    order: list[tuple[_Event, Any]] = []  # chosen, with the state before each
    longest, ends = 0, list[Call]()  # of the longest order that was ever found: how many calls, and the last of them
    stuck: Call | None = None  # the call that ended unexplained after the longest order
    tried: set[tuple[int, Hashable]] = set()
    event = head.next
    while event is not None:
        if event.end is event:  # the end of a call that is not in the order yet: something before was wrong
            if stuck is None or len(order) > longest:
                stuck, longest, ends = event.call, len(order), [chosen.call for chosen, _ in order[-STORY_CALLS:]]
            if not order:
                return Verdict(False, _story(stuck, longest, ends))
            event, state = order.pop()
            done ^= tokens[event.number]
            _put_back(event)
            event = event.next
            continue
        call = event.call
        result, after = model.step(state, call.name, call.argument)
        fits = call.result is UNKNOWN or result == call.result
        mark = (done ^ tokens[event.number], after)
        if not fits or mark in tried:
            event = event.next
            continue
        tried.add(mark)
        order.append((event, state))
        state, done = after, mark[0]
        _take_out(event)
        event = head.next
    return Verdict(True)  # no end is left: all that ended is explained


def _linked(history: Sequence[Call]) -> _Event:
    events: list[tuple[int, _Event]] = []
    for number, call in enumerate(history):
        end: _Event | None = None
        if call.ended is not None:
            end = _Event(call, number, None)
            end.end = end
            events.append((call.ended, end))
        events.append((call.begun, _Event(call, number, end)))
    events.sort(key=lambda pair: pair[0])
    head = last = _Event(Call("", "", None, None, 0, None), -1, None)
    for _, event in events:
        last.next, event.previous = event, last
        last = event
    return head


def _take_out(event: _Event) -> None:
    event.unlink()
    if event.end is not None:
        event.end.unlink()


def _put_back(event: _Event) -> None:
    if event.end is not None:
        event.end.relink()
    event.relink()


def _story(stuck: Call, longest: int, ends: list[Call]) -> str:
    tail = "".join(f"\n    {call}" for call in ends)
    return f"no order explains {stuck}\n  the longest order found ({longest} calls) ends:{tail}"
