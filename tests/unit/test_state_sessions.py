"""Is every call applied exactly once, and is what is kept for that bounded?

Owns: replays, acknowledgements, expiry and the limits of sessions. Refuses to know: what the calls do.
"""

from __future__ import annotations

import pytest

from dfs.errors import Overloaded
from dfs.ids import SessionId
from dfs.master.state import sessions
from dfs.master.state.commands import ExpireSessions
from dfs.master.state.machine import MasterState
from dfs.master.state.sessions import IDLE_KEPT_MS, SessionTable
from dfs.net.messages import OUTSTANDING_CALLS_MAX, Done, ErrorReply, MakeDirectory, Message, RemoveDirectory
from dfs.net.parts import CallId

ONE, TWO = SessionId(b"1" * 16), SessionId(b"2" * 16)


def _make(
    state: MasterState, name: str, sequence: int, acked: int = 1, session: SessionId = ONE, now: int = 5
) -> Message:
    return state.apply(now, MakeDirectory(CallId(session, sequence, acked), name))


def _code(reply: Message) -> str:
    return reply.code if isinstance(reply, ErrorReply) else ""


def test_a_resent_call_returns_its_first_result_after_the_world_moved_on() -> None:
    state = MasterState()
    first = _make(state, "/a", 1)
    assert _code(first) == ""
    state.apply(9, RemoveDirectory(CallId(TWO, 1, 1), "/a"))
    assert _make(state, "/a", 1, now=10) == first
    assert state.space(None).directory_count == 0, "the resent call was applied again"


def test_an_error_is_a_result_too() -> None:
    state = MasterState()
    first = _make(state, "/x/a", 1)
    assert _code(first) == "not_found"
    _make(state, "/x", 1, session=TWO)
    assert _make(state, "/x/a", 1) == first


def test_the_bytes_of_unacknowledged_results_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    state = MasterState()
    assert _code(_make(state, "/2", 1)) == ""
    one = sum(len(result) for _, session in state._parts.sessions.items() for result in session.results.values())
    monkeypatch.setattr(sessions, "RESULTS_SIZE_MAX", 2 * one)
    codes = [_code(_make(state, f"/{sequence}", sequence)) for sequence in (3, 4)]
    assert codes == ["", Overloaded.code], "long errors and replies about many files are results, too"
    assert _code(_make(state, "/first", 2, acked=2)) == "", "the oldest is never refused: the others wait for it"
    assert _code(_make(state, "/4", 4, acked=3)) == "", "the refusal was no result"


def test_calls_may_arrive_in_any_order() -> None:
    state = MasterState()
    replies = {sequence: _make(state, f"/{sequence}", sequence) for sequence in (1, 4, 2, 3)}
    assert [_code(reply) for reply in replies.values()] == [""] * 4
    assert [_make(state, f"/{sequence}", sequence) for sequence in replies] == list(replies.values())


def test_a_late_call_with_an_older_acknowledgement_is_still_applied() -> None:
    state = MasterState()
    for sequence in (1, 2, 4):
        _make(state, f"/{sequence}", sequence, acked=min(sequence, 3))
    assert _code(_make(state, "/3", 3, acked=1)) == ""
    assert state.stat("/3").path == "/3"


def test_an_acknowledged_call_is_refused_when_it_comes_again() -> None:
    state = MasterState()
    _make(state, "/a", 1)
    _make(state, "/b", 2, acked=2)
    assert _code(_make(state, "/a", 1)) == "session_expired"


def test_an_unknown_session_begins_with_its_first_call_only() -> None:
    state = MasterState()
    assert _code(_make(state, "/a", 2)) == "session_expired"
    assert _code(_make(state, "/a", 1)) == ""


@pytest.mark.parametrize(
    ("session", "sequence", "acked"), [(b"short", 1, 1), (ONE, 0, 0), (ONE, 1, 2), (ONE, 5, 0), (ONE, 1, -1)]
)
def test_an_impossible_call_id_is_refused_and_keeps_nothing(session: SessionId, sequence: int, acked: int) -> None:
    state = MasterState()
    before = list(state.dump())
    assert _code(_make(state, "/a", sequence, acked, session, now=0)) == "invalid_argument"
    assert list(state.dump()) == before


def test_unacknowledged_calls_of_a_session_are_limited_and_go_on_after_an_acknowledgement() -> None:
    state = MasterState()
    for sequence in range(1, OUTSTANDING_CALLS_MAX + 1):
        assert _code(_make(state, f"/{sequence}", sequence)) == ""
    refused = OUTSTANDING_CALLS_MAX + 1
    assert _code(_make(state, "/more", refused)) == "overloaded"
    assert _code(_make(state, "/more", refused, acked=2)) == "", "the refusal must not be its result"
    state.check_invariants()


def test_idle_sessions_expire_by_command_oldest_first() -> None:
    state = MasterState()
    _make(state, "/a", 1, session=ONE, now=1_000)
    _make(state, "/b", 1, session=TWO, now=2_000)
    _make(state, "/c", 2, session=ONE, now=3_000)
    assert not state.has_idle_sessions(1_001)
    assert state.has_idle_sessions(1_000)
    assert state.apply(3_000, ExpireSessions(1_000, 10)) == Done()
    assert _code(_make(state, "/d", 2, session=TWO, now=3_000)) == "session_expired"
    assert _code(_make(state, "/d", 3, session=ONE, now=3_000)) == ""


def test_expiry_is_bounded_by_its_limit() -> None:
    state = MasterState()
    for number in range(5):
        _make(state, f"/{number}", 1, session=SessionId(bytes([number]) * 16))
    state.apply(10_000, ExpireSessions(1, 3))
    assert state.has_idle_sessions(1)
    state.apply(10_000, ExpireSessions(1, 2))
    assert not state.has_idle_sessions(1)


def test_a_full_table_refuses_new_sessions_and_serves_old_ones() -> None:
    table = SessionTable(sessions_max=2)
    for session in (ONE, TWO):
        assert table.begin(CallId(session, 1, 1), 5) is None
        table.finish(CallId(session, 1, 1), Done())
    with pytest.raises(Exception, match="2 client sessions") as caught:
        table.begin(CallId(SessionId(b"3" * 16), 1, 1), 5)
    assert getattr(caught.value, "code", "") == "overloaded"
    assert table.begin(CallId(ONE, 1, 1), 6) == Done()
    table.check_invariants()


def test_a_full_table_gives_up_a_session_that_nobody_resends_for_any_more() -> None:
    table = SessionTable(sessions_max=2)
    for moment, session in enumerate((ONE, TWO), start=5):
        table.begin(CallId(session, 1, 1), moment)
        table.finish(CallId(session, 1, 1), Done())
    third = CallId(SessionId(b"3" * 16), 1, 1)
    with pytest.raises(Overloaded):
        table.begin(third, 4 + IDLE_KEPT_MS)
    assert table.begin(third, 5 + IDLE_KEPT_MS) is None
    table.finish(third, Done())
    assert (table.get(ONE), len(table)) == (None, 2)
    table.check_invariants()


def test_results_survive_a_dump_and_a_load() -> None:
    state, other = MasterState(), MasterState()
    replies = [_make(state, name, sequence) for sequence, name in enumerate(("/a", "/a", "/no/b"), start=1)]
    other.load(state.dump())
    assert [_make(other, "/z", sequence) for sequence in (1, 2, 3)] == replies
    assert _make(other, "/z", 4, acked=4) == _make(state, "/z", 4, acked=4)
    assert list(other.dump()) == list(state.dump())
