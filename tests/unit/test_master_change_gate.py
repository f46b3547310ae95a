"""Is each change answered in the step that decides it, with what the state or the log said; does each wait end?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from dfs.clock import Deadline
from dfs.errors import (
    DeadlineExceeded,
    DfsError,
    InternalError,
    InvalidName,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    TailOpen,
)
from dfs.ids import new_session_id
from dfs.master import change_gate
from dfs.master.change_gate import ChangeGate
from dfs.master.leadership import PROPOSE_TIMEOUT_S, Leadership
from dfs.master.meter import MasterMeter
from dfs.master.replicated_log import Waiter
from dfs.master.state.machine import MasterState
from dfs.master.tail_desk import TailDesk
from dfs.net.answers import Answer
from dfs.net.messages import Done, ErrorReply, Message, Mutation, Touch
from dfs.net.parts import CallId

WAIT_S = 30.0


class PretendLeadership:
    """A log of which the test decides what becomes of each command."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Message, Waiter]] = []
        self.refuses: DfsError | None = None

    def submit(self, command: Message, waiter: Waiter) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.submitted.append((command, waiter))

    def end(self, result: object, error: DfsError | None = None) -> None:
        self.submitted.pop(0)[1].ended(result, error)

    def failure(self, error: DfsError) -> DfsError:
        return NotLeader("ask m2") if isinstance(error, NotLeader) else error

    no_reply = staticmethod(Leadership.no_reply)


class PretendTails:
    """Tails that are sealed when the test says so."""

    def __init__(self) -> None:
        self.sealed = asyncio.Event()
        self.asked: list[Mutation] = []

    async def propose_sealed(self, command: Mutation, deadline: Deadline) -> Message:
        self.asked.append(command)
        await self.sealed.wait()
        deadline.check("sealing")
        return Done()


class Changes:
    """A gate between pretended neighbours."""

    def __init__(self) -> None:
        self.leadership, self.tails, self.meter = PretendLeadership(), PretendTails(), MasterMeter()
        self.gate = ChangeGate(cast(Leadership, self.leadership), cast(TailDesk, self.tails), MasterState(), self.meter)
        self._session = new_session_id()
        self._sequence = 0

    def ask(self, path: str = "/a", *, seconds: float = WAIT_S, sequence: int = 0) -> Answer:
        self._sequence = sequence or self._sequence + 1
        call = CallId(self._session, self._sequence, self._sequence)
        return self.gate.wait(Touch(call, path), Deadline.after(seconds))


def run(test: Callable[[Changes], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test(Changes())

    asyncio.run(bounded())


def test_a_change_is_answered_in_the_step_that_decides_it() -> None:
    async def test(changes: Changes) -> None:
        first, second = changes.ask("/a"), changes.ask("/b")
        assert not first.is_known
        assert changes.meter.in_progress == {"Touch": 2}
        changes.leadership.end(Done())
        changes.leadership.end(ErrorReply.of(NotFound("no such thing")))
        assert (first.result(), second.result()) == (Done(), ErrorReply.of(NotFound("no such thing")))
        assert changes.meter.in_progress == {"Touch": 0}
        assert changes.meter.errors.values() == {"not_found": 1}

    run(test)


@pytest.mark.parametrize(
    ("told", "heard"),
    [(NotLeader("m1 does not lead"), "ask m2"), (OutcomeUnknown("leadership was lost"), "leadership was lost")],
)
def test_what_the_log_tells_is_told_on(told: DfsError, heard: str) -> None:
    async def test(changes: Changes) -> None:
        refused_later = changes.ask()
        changes.leadership.end(None, told)
        with pytest.raises(type(told), match=heard):
            refused_later.result()
        changes.leadership.refuses = told
        refused_at_once = changes.ask()
        with pytest.raises(type(told)):
            refused_at_once.result()
        assert changes.meter.in_progress == {"Touch": 0}

    run(test)


def test_a_bad_path_is_not_logged_unless_the_call_makes_a_session() -> None:
    async def test(changes: Changes) -> None:
        first = changes.ask("no/root", sequence=1)
        assert not first.is_known
        second = changes.ask("no/root", sequence=2)
        with pytest.raises(InvalidName):
            second.result()
        assert len(changes.leadership.submitted) == 1

    run(test)


def test_a_change_waits_as_long_as_its_caller_does_and_one_that_is_late_never_happens() -> None:
    async def test(changes: Changes) -> None:
        asked = ((1.0, 1.0), (600.0, PROPOSE_TIMEOUT_S))
        begun_s = time.monotonic()
        for seconds, _ in asked:
            changes.ask(seconds=seconds)
        ended_s = time.monotonic()
        for (_, waiter), (_, wait_s) in zip(changes.leadership.submitted, asked, strict=True):
            assert begun_s + wait_s <= waiter.deadline_s <= ended_s + wait_s
        late = changes.ask(seconds=-1.0)
        with pytest.raises(DeadlineExceeded):
            late.result()
        assert len(changes.leadership.submitted) == 2

    run(test)


def test_a_change_that_open_tails_are_in_the_way_of_waits_for_their_sealing_and_holds_nobody_up() -> None:
    async def test(changes: Changes) -> None:
        waiting, other = changes.ask("/tail"), changes.ask("/b")
        changes.leadership.end(ErrorReply.of(TailOpen("records are being appended")))
        changes.leadership.end(Done())
        assert other.is_known
        await asyncio.sleep(0)
        assert not waiting.is_known
        assert [command.path for command in changes.tails.asked if isinstance(command, Touch)] == ["/tail"]
        changes.tails.sealed.set()
        assert await waiting == Done()

    run(test)


def test_sealing_is_given_up_when_nobody_waits_for_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_gate, "SEAL_GRACE_S", 0.0)

    async def test(changes: Changes) -> None:
        waiting = changes.ask("/tail", seconds=0.5)
        changes.leadership.end(ErrorReply.of(TailOpen("records are being appended")))
        with pytest.raises(DeadlineExceeded, match="sealed"):
            await waiting
        assert changes.meter.in_progress == {"Touch": 0}

    run(test)


def test_a_state_that_answers_nonsense_is_a_bug_and_no_answer() -> None:
    async def test(changes: Changes) -> None:
        answer = changes.ask()
        changes.leadership.end("nonsense")
        with pytest.raises(InternalError, match="answered Touch with str"):
            answer.result()

    run(test)
