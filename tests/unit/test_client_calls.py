"""Is each call named once, and are names released when nobody may use them any more?"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from dfs.client.calls import Calls, Session
from dfs.clock import Deadline
from dfs.errors import AlreadyExists, DeadlineExceeded, SessionExpired
from dfs.ids import new_session_id
from dfs.net.messages import OUTSTANDING_CALLS_MAX, Done, ErrorReply, MakeDirectory, Message, Mutation
from dfs.net.parts import CallId

EXPIRED = ErrorReply.of(SessionExpired("gone"))


class ScriptedMasters:
    """Stands where dfs.client.discovery.Masters stands: `answer` is asked with each call id."""

    def __init__(self, answer: Callable[[CallId], tuple[Message, bool]]) -> None:
        self.answer = answer
        self.seen: list[CallId] = []

    def call_reporting_resends(self, message: Mutation, deadline: Deadline) -> tuple[Message, bool]:
        self.seen.append(message.call)
        return self.answer(message.call)


def calls_to(masters: ScriptedMasters) -> Calls:
    return Calls(masters)  # type: ignore[arg-type]


def make(calls: Calls, path: str = "/x") -> Message:
    return calls.call(lambda call: MakeDirectory(call, path), Done, Deadline.after(60))


def test_sequences_grow_by_one_and_first_unacked_follows() -> None:
    masters = ScriptedMasters(lambda _: (Done(), False))
    calls = calls_to(masters)
    for _ in range(3):
        make(calls)
    assert [(call.sequence, call.first_unacked) for call in masters.seen] == [(1, 1), (2, 2), (3, 3)]
    assert len({call.session for call in masters.seen}) == 1


def test_an_error_is_a_result_and_finishes_its_call() -> None:
    masters = ScriptedMasters(lambda _: (ErrorReply.of(AlreadyExists("x")), False))
    calls = calls_to(masters)
    for _ in range(2):
        with pytest.raises(AlreadyExists):
            make(calls)
    assert masters.seen[1].first_unacked == 2


def test_first_unacked_waits_for_the_slowest_call() -> None:
    released, is_waiting = threading.Event(), threading.Event()

    def answer(call: CallId) -> tuple[Message, bool]:
        if call.sequence == 2:
            is_waiting.set()
            assert released.wait(60)
        return Done(), False

    masters = ScriptedMasters(answer)
    calls = calls_to(masters)
    make(calls)
    slow = threading.Thread(target=make, args=(calls,))
    slow.start()
    assert is_waiting.wait(60)
    make(calls)
    make(calls)
    assert [call.first_unacked for call in masters.seen] == [1, 2, 2, 2]
    released.set()
    slow.join()
    make(calls)
    assert masters.seen[-1].first_unacked == 5


def test_no_call_overtakes_the_one_that_opens_the_session() -> None:
    released, is_waiting = threading.Event(), threading.Event()

    def answer(call: CallId) -> tuple[Message, bool]:
        if call.sequence == 1:
            is_waiting.set()
            assert released.wait(60)
        return Done(), False

    masters = ScriptedMasters(answer)
    calls = calls_to(masters)
    threads = [threading.Thread(target=make, args=(calls,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert is_waiting.wait(60)
    with pytest.raises(DeadlineExceeded):
        calls.call(lambda call: MakeDirectory(call, "/y"), Done, Deadline.after(0.05))
    assert [call.sequence for call in masters.seen] == [1]
    released.set()
    for thread in threads:
        thread.join()
    assert sorted(call.sequence for call in masters.seen) == [1, 2, 3, 4, 5]


def test_an_expired_session_is_renewed_once_for_a_fresh_call() -> None:
    masters = ScriptedMasters(lambda _: (Done(), False))
    calls = calls_to(masters)
    make(calls)
    old = masters.seen[0].session
    masters.answer = lambda call: (EXPIRED, False) if call.session == old else (Done(), False)
    make(calls)
    assert [call.sequence for call in masters.seen] == [1, 2, 1]
    assert masters.seen[2].session != old


def test_a_session_that_expires_at_once_again_is_an_error() -> None:
    masters = ScriptedMasters(lambda _: (EXPIRED, False))
    with pytest.raises(SessionExpired):
        make(calls_to(masters))
    assert len(masters.seen) == 2


def test_a_resent_call_of_an_expired_session_is_not_repeated_under_another_name() -> None:
    masters = ScriptedMasters(lambda _: (EXPIRED, True))
    with pytest.raises(DeadlineExceeded, match="may have happened") as caught:
        make(calls_to(masters))
    assert caught.value.details["may_have_happened"] == "yes"
    assert len(masters.seen) == 1


def test_a_call_that_was_given_up_is_passed_by_first_unacked() -> None:
    def give_up(call: CallId) -> tuple[Message, bool]:
        raise DeadlineExceeded("gave up")

    masters = ScriptedMasters(lambda _: (Done(), False))
    calls = calls_to(masters)
    make(calls)
    masters.answer = give_up
    with pytest.raises(DeadlineExceeded):
        make(calls)
    masters.answer = lambda _: (Done(), False)
    make(calls)
    assert masters.seen[-1] == CallId(masters.seen[0].session, 3, 3)


def test_a_session_never_has_more_calls_between_than_the_masters_keep() -> None:
    session = Session(new_session_id())
    session.begin()
    session.unfinished.clear()
    session.is_open = True
    slowest = session.begin()
    while session.may_begin():
        call = session.begin()
        session.unfinished.discard(call.sequence)
        assert call.sequence - call.first_unacked < OUTSTANDING_CALLS_MAX
    assert call.first_unacked == slowest.sequence
    session.unfinished.discard(slowest.sequence)
    assert session.may_begin()
