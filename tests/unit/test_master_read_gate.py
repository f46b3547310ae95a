"""Is each read answered in the step that ends its proof, from the state of that moment; and does each wait end?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from dfs.clock import Deadline
from dfs.errors import DeadlineExceeded, DfsError, InvalidArgument, NotFound, NotLeader, Overloaded
from dfs.master.leadership import BARRIER_TIMEOUT_S, Leadership
from dfs.master.meter import MasterMeter
from dfs.master.read_gate import ReadGate
from dfs.master.replicated_log import Waiter
from dfs.net.answers import Answer
from dfs.net.messages import Done, Message, Stat

WAIT_S = 30.0


class PretendLeadership:
    """Proofs that the test ends."""

    def __init__(self) -> None:
        self.waiting: list[Waiter] = []
        self.age_s = 60.0
        self.is_full = False

    def prove(self, waiter: Waiter) -> None:
        if self.is_full:
            raise Overloaded("too many reads wait")
        self.waiting.append(waiter)

    def end(self, error: DfsError | None = None) -> None:
        """End the proof of all who came so far."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.ended(None, error)

    def failure(self, error: DfsError) -> DfsError:
        return NotLeader("ask m2") if isinstance(error, NotLeader) else error

    def is_within(self, age_s: float) -> bool:
        return self.age_s <= age_s


class Reads:
    """A gate, and a state of which reads tell how often it was changed."""

    def __init__(self) -> None:
        self.leadership = PretendLeadership()
        self.meter = MasterMeter()
        self.gate = ReadGate(cast(Leadership, self.leadership), self.meter)
        self.changes = 0
        self.seen: list[tuple[str, int]] = []

    def ask(self, path: str, *, stale_ms: int = 0, seconds: float = WAIT_S) -> Answer:
        return self.gate.wait(Stat(path, stale_ms), self._read, Deadline.after(seconds))

    def _read(self, message: Stat) -> Message:
        if message.path == "/gone":
            raise NotFound("it is gone")
        if message.path == "/bug":
            raise ZeroDivisionError
        self.seen.append((message.path, self.changes))
        return Done()


def run(test: Callable[[Reads], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test(Reads())

    asyncio.run(bounded())


def test_a_read_is_answered_in_the_step_that_ends_its_proof_and_from_the_state_of_that_moment() -> None:
    async def test(reads: Reads) -> None:
        answers = [reads.ask("/a"), reads.ask("/b")]
        reads.changes = 1
        assert not any(answer.is_known for answer in answers)
        reads.leadership.end()
        assert [answer.result() for answer in answers] == [Done(), Done()]
        assert reads.seen == [("/a", 1), ("/b", 1)]
        assert reads.meter.in_progress == {"Stat": 0}

    run(test)


def test_whoever_waits_for_a_proof_that_fails_hears_who_leads_and_the_next_read_seeks_another() -> None:
    async def test(reads: Reads) -> None:
        waiting = [reads.ask("/a"), reads.ask("/b")]
        reads.leadership.end(NotLeader("m1 does not lead"))
        for answer in waiting:
            with pytest.raises(NotLeader, match="ask m2"):
                await answer
        after = reads.ask("/c")
        reads.leadership.end()
        assert await after == Done()
        assert reads.seen == [("/c", 0)]
        assert reads.meter.errors.values() == {"not_leader": 2}

    run(test)


def test_a_read_that_fails_and_a_taker_that_fails_hold_nobody_up() -> None:
    def take_badly(_answer: Answer) -> None:
        raise ZeroDivisionError

    async def test(reads: Reads) -> None:
        gone, bug, taken_badly, good = (reads.ask(path) for path in ("/gone", "/bug", "/a", "/b"))
        taken_badly.then(take_badly)
        reads.leadership.end()
        assert await good == Done()
        with pytest.raises(NotFound):
            await gone
        with pytest.raises(ZeroDivisionError):
            await bug
        assert reads.meter.in_progress == {"Stat": 0}

    run(test)


def test_each_read_waits_as_long_as_its_caller_does_and_never_for_ever() -> None:
    async def test(reads: Reads) -> None:
        asked = ((1.0, 1.0), (3.0, 3.0), (600.0, BARRIER_TIMEOUT_S))
        begun_s = time.monotonic()
        for seconds, _ in asked:
            reads.ask("/a", seconds=seconds)
        ended_s = time.monotonic()
        for waiter, (_, wait_s) in zip(reads.leadership.waiting, asked, strict=True):
            assert begun_s + wait_s <= waiter.deadline_s <= ended_s + wait_s
        late = reads.ask("/b", seconds=-1.0)
        with pytest.raises(DeadlineExceeded):
            late.result()

    run(test)


def test_a_read_that_allows_an_age_needs_no_proof_where_that_age_is_proved() -> None:
    async def test(reads: Reads) -> None:
        old = reads.ask("/a", stale_ms=60_000)
        assert old.is_known
        assert old.result() == Done()
        younger = reads.ask("/b", stale_ms=59_000)
        assert not younger.is_known
        reads.leadership.end()
        assert await younger == Done()
        with pytest.raises(InvalidArgument, match="in the future"):
            reads.ask("/c", stale_ms=-1).result()

    run(test)


def test_a_read_that_the_log_refuses_is_answered_at_once() -> None:
    async def test(reads: Reads) -> None:
        reads.leadership.is_full = True
        with pytest.raises(Overloaded, match="too many reads"):
            reads.ask("/c").result()
        assert reads.meter.errors.values() == {"overloaded": 1}

    run(test)
