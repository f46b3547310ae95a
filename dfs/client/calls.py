"""Exactly-once calls: each gets a name, and is resent under that name until its outcome is known.

Owns: the client's session, its sequence numbers, which of them are unfinished, and its renewal. Refuses to know: the
addresses of masters, and what a call does.

The masters keep results by (session, sequence) until `first_unacked` passes them. A call that was given up counts as
finished: once `first_unacked` has passed it, a late copy of it is refused by the masters, and can do no harm.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dfs.client.discovery import Masters
from dfs.client.ownership import Owner
from dfs.clock import Deadline
from dfs.errors import DeadlineExceeded, SessionExpired
from dfs.ids import SessionId, new_session_id
from dfs.net.blocking import expect
from dfs.net.messages import OUTSTANDING_CALLS_MAX, ErrorReply, Message, Mutation
from dfs.net.parts import CallId

T = TypeVar("T", bound=Message)


@dataclass(slots=True)
class Session:
    """`is_open`: a first call came back, so that the masters know the session; until then calls go one by one."""

    id: SessionId
    next_sequence: int = 1
    unfinished: set[int] = field(default_factory=set)
    is_open: bool = False

    def may_begin(self) -> bool:
        """Return whether another call may start: the masters must know the session, and keep few results for it."""
        if not self.unfinished:
            return True
        return self.is_open and self.next_sequence - min(self.unfinished) < OUTSTANDING_CALLS_MAX

    def begin(self) -> CallId:
        sequence = self.next_sequence
        self.next_sequence += 1
        self.unfinished.add(sequence)
        return CallId(self.id, sequence, min(self.unfinished))


class Calls:
    """Makes mutations under call ids of one session, which is renewed when the masters forgot it. Thread-safe."""

    def __init__(self, masters: Masters) -> None:
        self._masters = masters
        self._owner = Owner()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0  # threads that wait until they may begin
        self._session = Session(new_session_id())

    def call(self, build: Callable[[CallId], Mutation], reply: type[T], deadline: Deadline) -> T:
        """Apply the mutation that `build` makes for a call id, exactly once; return its reply or raise its error.

        `DeadlineExceeded` or `NoQuorum` with the detail `may_have_happened`: the outcome is not known.
        """
        self._owner.check()
        answer, session, was_resent = self._call_once(build, deadline)
        if _is_expired(answer):
            answer = self._call_anew(build, deadline, answer, session, was_resent=was_resent)
        return expect(answer, reply)

    def _call_anew(
        self,
        build: Callable[[CallId], Mutation],
        deadline: Deadline,
        answer: Message,
        session: Session,
        *,
        was_resent: bool,
    ) -> Message:
        """Do what is left to do after the masters have said that they do not know the session."""
        if not was_resent:
            # Nothing was applied: the masters forgot an idle session, or never heard its first call.
            self._renew(session)
            answer, session, was_resent = self._call_once(build, deadline)
        if _is_expired(answer):
            self._renew(session)
            if was_resent:
                raise DeadlineExceeded(
                    "the masters forgot this client while the call was repeated: it may have happened or not; look "
                    "before you repeat it",
                    may_have_happened="yes",
                )
        return answer

    def _call_once(self, build: Callable[[CallId], Mutation], deadline: Deadline) -> tuple[Message, Session, bool]:
        session, call_id = self._begin(deadline)
        answer: Message | None = None
        try:
            answer, was_resent = self._masters.call_reporting_resends(build(call_id), deadline)
            return answer, session, was_resent
        finally:
            with self._lock:
                session.unfinished.discard(call_id.sequence)
                if not session.is_open:
                    session.is_open = answer is not None and not _is_expired(answer)
                if self._waiting:
                    self._changed.notify_all()

    def _begin(self, deadline: Deadline) -> tuple[Session, CallId]:
        with self._lock:
            while not self._session.may_begin():
                self._wait(deadline)
            return self._session, self._session.begin()

    def _wait(self, deadline: Deadline) -> None:
        """Wait for the end of some call; the lock is held."""
        self._waiting += 1
        try:
            self._changed.wait(deadline.check("waiting for earlier calls of this client"))
        finally:
            self._waiting -= 1

    def _renew(self, expired: Session) -> None:
        with self._lock:
            if self._session is expired:
                self._session = Session(new_session_id())
                self._changed.notify_all()


def _is_expired(answer: Message) -> bool:
    return isinstance(answer, ErrorReply) and answer.code == SessionExpired.code
