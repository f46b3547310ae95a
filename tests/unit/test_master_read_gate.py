"""Is a read answered by a proof that began after it came, and by no other; and does each wait end?"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Any, cast

import pytest

from dfs.clock import Deadline
from dfs.errors import InvalidArgument, NotFound, NotLeader, Overloaded
from dfs.master import read_gate
from dfs.master.leadership import Leadership
from dfs.master.meter import MasterMeter
from dfs.master.read_gate import ReadGate
from dfs.net.answers import Answer
from dfs.net.messages import Done, Message, Stat

WAIT_S = 30.0


class PretendLeadership:
    """Proofs that the test ends."""

    def __init__(self) -> None:
        self.proofs: list[asyncio.Future[None]] = []
        self.deadlines: list[Deadline] = []
        self.age_s = 60.0

    async def barrier(self, deadline: Deadline) -> None:
        self.deadlines.append(deadline)
        self.proofs.append(asyncio.get_running_loop().create_future())
        await self.proofs[-1]

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

    async def proof(self, number: int) -> asyncio.Future[None]:
        while len(self.leadership.proofs) <= number:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)
        return self.leadership.proofs[number]


def run(test: Callable[[Reads], Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test(Reads())

    asyncio.run(bounded())


def test_a_read_that_comes_during_a_proof_waits_for_the_next() -> None:
    async def test(reads: Reads) -> None:
        early = [reads.ask("/a"), reads.ask("/b")]
        first = await reads.proof(0)
        late = reads.ask("/c")
        reads.changes = 1  # acknowledged by the true leader after the first proof began, before /c was asked for
        first.set_result(None)
        assert [await answer for answer in early] == [Done(), Done()]
        second = await reads.proof(1)
        assert not late.is_known, "the first proof began before this read came: it shows nothing for it"
        reads.changes = 2
        second.set_result(None)
        assert await late == Done()
        assert reads.seen == [("/a", 1), ("/b", 1), ("/c", 2)]
        assert len(reads.leadership.proofs) == 2
        assert reads.meter.in_progress == {"Stat": 0}

    run(test)


def test_whoever_waits_for_a_proof_that_fails_hears_why_and_the_next_read_seeks_another() -> None:
    async def test(reads: Reads) -> None:
        waiting = [reads.ask("/a"), reads.ask("/b")]
        (await reads.proof(0)).set_exception(NotLeader("another one leads"))
        for answer in waiting:
            with pytest.raises(NotLeader, match="another one leads"):
                await answer
        after = reads.ask("/c")
        (await reads.proof(1)).set_result(None)
        assert await after == Done()
        assert reads.seen == [("/c", 0)]
        assert reads.meter.errors.values() == {"not_leader": 2}

    run(test)


def test_an_error_that_many_reads_share_grows_with_none_of_them() -> None:
    depths: list[int] = []

    def take(answer: Answer) -> None:
        try:
            answer.result()
        except ZeroDivisionError as error:
            depths.append(len(traceback.extract_tb(error.__traceback__)))

    async def test(reads: Reads) -> None:
        answers = [reads.ask(f"/{number}") for number in range(50)]
        for answer in answers:
            answer.then(take)
        (await reads.proof(0)).set_exception(ZeroDivisionError("a bug"))
        with pytest.raises(ZeroDivisionError):
            await answers[-1]
        assert len(depths) == len(answers)
        assert min(depths) == max(depths) > 1, "each of thousands would log the tracebacks of all before it"

    run(test)


def test_a_read_that_fails_and_a_taker_that_fails_hold_nobody_up() -> None:
    def take_badly(_answer: Answer) -> None:
        raise ZeroDivisionError

    async def test(reads: Reads) -> None:
        gone, bug, taken_badly, good = (reads.ask(path) for path in ("/gone", "/bug", "/a", "/b"))
        taken_badly.then(take_badly)
        (await reads.proof(0)).set_result(None)
        assert await good == Done()
        with pytest.raises(NotFound):
            await gone
        with pytest.raises(ZeroDivisionError):
            await bug
        assert reads.meter.in_progress == {"Stat": 0}

    run(test)


def test_the_most_patient_read_decides_how_long_a_proof_may_take() -> None:
    async def test(reads: Reads) -> None:
        waiting = [reads.ask("/a", seconds=1), reads.ask("/b", seconds=20), reads.ask("/c", seconds=5)]
        (await reads.proof(0)).set_result(None)
        for answer in waiting:
            await answer
        assert reads.leadership.deadlines[0].remaining_s() > 5

    run(test)


def test_a_read_that_allows_an_age_needs_no_proof_where_that_age_is_proved() -> None:
    async def test(reads: Reads) -> None:
        old = reads.ask("/a", stale_ms=60_000)
        assert old.is_known
        assert old.result() == Done()
        younger = reads.ask("/b", stale_ms=59_000)
        assert not younger.is_known
        (await reads.proof(0)).set_result(None)
        assert await younger == Done()
        with pytest.raises(InvalidArgument, match="in the future"):
            reads.ask("/c", stale_ms=-1).result()

    run(test)


def test_reads_past_the_limit_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_gate, "WAITING_MAX", 2)

    async def test(reads: Reads) -> None:
        waiting = [reads.ask("/a"), reads.ask("/b")]
        with pytest.raises(Overloaded, match="2 reads wait"):
            reads.ask("/c").result()
        (await reads.proof(0)).set_result(None)
        assert [await answer for answer in waiting] == [Done(), Done()]

    run(test)
