"""Client sessions: what makes a resent call return its first result instead of happening twice.

Owns: sessions, the results of calls that their clients may still ask for again, and both limits. Refuses to know:
what a call does, and who drops idle sessions when (an argument of a command).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from dfs.errors import InvalidArgument, Overloaded, SessionExpired
from dfs.ids import ID_SIZE, SessionId, id_text
from dfs.net.messages import OUTSTANDING_CALLS_MAX, Message, decode, encode
from dfs.net.parts import CallId

SESSIONS_MAX = 100_000  # about 700 bytes each; a command line call is a session
IDLE_KEPT_MS = 20 * 60 * 1000  # a full table gives up sessions idle for longer: clients resend for 10 minutes at most
RESULTS_SIZE_MAX = 8 * 1024 * 1024  # bytes of unacknowledged results of one session, but for the last one
_TYPE_SIZE = 2  # bytes of the message number before an encoded result


class Session:
    """One client's calls. `results`: sequence to encoded reply, none below `first_unacked`."""

    __slots__ = ("first_unacked", "last_used_ms", "results")

    def __init__(self, first_unacked: int, last_used_ms: int, results: dict[int, bytes]) -> None:
        self.first_unacked = first_unacked
        self.last_used_ms = last_used_ms
        self.results = results


class SessionTable:
    """Sessions in the order of their last use, oldest first."""

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self._sessions: OrderedDict[SessionId, Session] = OrderedDict()
        self._sessions_max = sessions_max

    def __len__(self) -> int:
        return len(self._sessions)

    def items(self) -> Iterator[tuple[SessionId, Session]]:
        yield from self._sessions.items()

    def get(self, session_id: SessionId) -> Session | None:
        return self._sessions.get(session_id)

    def begin(self, call: CallId, now_ms: int) -> Message | None:
        """Open a call: return its result when it was applied before, None when it is to be applied now.

        A session begins with sequence 1. Errors raised here are not results: nothing was applied, and the same call may
        be sent again.
        """
        if len(call.session) != ID_SIZE or not 1 <= call.first_unacked <= call.sequence:
            raise InvalidArgument(
                f"call {call.sequence} (first unacknowledged {call.first_unacked}) of session "
                f"{id_text(call.session)[:64]} is not possible: ids have {ID_SIZE} bytes, sequences start at 1"
            )
        session = self._sessions.get(call.session)
        if session is None:
            session = self._open(call, now_ms)
        elif call.sequence < session.first_unacked:
            raise SessionExpired(
                f"call {call.sequence} of session {id_text(call.session)} was acknowledged before "
                f"(first unacknowledged: {session.first_unacked}); its result is gone"
            )
        self._sessions.move_to_end(call.session)
        session.last_used_ms = now_ms
        known = session.results.get(call.sequence)
        if known is None and call.sequence > call.first_unacked:  # the oldest one always has a place
            _require_place(session, call)
        _acknowledge(session, call.first_unacked)
        return None if known is None else _decode_result(known)

    def _open(self, call: CallId, now_ms: int) -> Session:
        if call.sequence != 1:
            raise SessionExpired(
                f"session {id_text(call.session)} is not known (idle too long?); check what its last call did, "
                "then begin a new session"
            )
        if len(self._sessions) >= self._sessions_max:
            self.expire(IDLE_KEPT_MS, 1, now_ms)
        if len(self._sessions) >= self._sessions_max:
            raise Overloaded(
                f"the masters hold {self._sessions_max} client sessions, the most they allow; idle ones expire by "
                "themselves: try again later, and let programs share one client"
            )
        session = self._sessions[call.session] = Session(1, now_ms, {})
        return session

    def finish(self, call: CallId, result: Message) -> None:
        """Keep the result of a call that `begin` opened."""
        self._sessions[call.session].results[call.sequence] = encode_result(result)

    def has_idle(self, idle_ms: int, now_ms: int) -> bool:
        oldest = next(iter(self._sessions.values()), None)
        return oldest is not None and now_ms - oldest.last_used_ms >= idle_ms

    def expire(self, idle_ms: int, limit: int, now_ms: int) -> None:
        """Drop at most `limit` sessions unused for `idle_ms`, those unused longest first."""
        while limit > 0 and self.has_idle(idle_ms, now_ms):
            self._sessions.popitem(last=False)
            limit -= 1

    def restore(self, session_id: SessionId, session: Session) -> None:
        """Add a dumped session; they come in the order of their last use."""
        self._sessions[session_id] = session

    def check_invariants(self) -> None:
        assert len(self._sessions) <= self._sessions_max, f"{len(self._sessions)} sessions are kept"
        times = [session.last_used_ms for session in self._sessions.values()]
        assert times == sorted(times), "sessions are not in the order of their last use"
        for session_id, session in self._sessions.items():
            text = f"session {id_text(session_id)}"
            assert len(session.results) <= OUTSTANDING_CALLS_MAX, f"{text} keeps {len(session.results)} results"
            low, high = session.first_unacked, session.first_unacked + OUTSTANDING_CALLS_MAX
            assert all(low <= sequence < high for sequence in session.results), f"{text} keeps acknowledged results"


def _require_place(session: Session, call: CallId) -> None:
    """Raise `Overloaded` when too much is kept for the calls that are not acknowledged; never for the oldest of them.

    The others can only be acknowledged after that one.
    """
    first = max(session.first_unacked, call.first_unacked)
    if call.sequence - first >= OUTSTANDING_CALLS_MAX:
        raise Overloaded(
            f"session {id_text(call.session)} has {OUTSTANDING_CALLS_MAX} unacknowledged calls; wait for some"
        )
    size = sum(len(result) for sequence, result in session.results.items() if sequence >= first)
    if call.sequence > first and size >= RESULTS_SIZE_MAX:
        raise Overloaded(
            f"session {id_text(call.session)} has {size} bytes of unacknowledged results, over {RESULTS_SIZE_MAX}; "
            "wait for some"
        )


def encode_result(result: Message) -> bytes:
    return result.type_code.to_bytes(_TYPE_SIZE, "big") + encode(result)


def _decode_result(data: bytes) -> Message:
    return decode(int.from_bytes(data[:_TYPE_SIZE], "big"), data[_TYPE_SIZE:])


def _acknowledge(session: Session, first_unacked: int) -> None:
    """Forget results below `first_unacked`."""
    if first_unacked <= session.first_unacked:
        return
    if first_unacked - session.first_unacked <= len(session.results):
        for sequence in range(session.first_unacked, first_unacked):
            session.results.pop(sequence, None)
    else:
        for sequence in [known for known in session.results if known < first_unacked]:
            del session.results[sequence]
    session.first_unacked = first_unacked
