"""Find the leading master and call it, through deaths, pauses and elections.

Owns: which masters are known, who is thought to lead, which were silent lately, and the loop of attempts of one call.
Refuses to know: what a call means, and exactly-once (dfs.client.calls resends by the same id through this loop).

Each attempt has a short time of its own, so that a paused or cut-off master does not eat the time of the call. While
one says nothing the others are asked who leads: the call goes to a new leader at once, and a slow one is not troubled
twice. What follows a failure is decided by dfs.client.plan from the error's `retry` alone.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import cached_property
from typing import TypeVar

from dfs.client.ownership import Owner
from dfs.client.plan import MASTERS_MAX, MasterRound, Step, attempt_timeout_s, backoff_s, step_after
from dfs.client.pool import ChannelPool, exchange, receive_answer, send_call
from dfs.clock import Deadline, boot_s
from dfs.errors import ConnectionFailed, DeadlineExceeded, DfsError, NoQuorum, NotLeader, Retry
from dfs.jitter import draw
from dfs.log import get_logger
from dfs.net.blocking import Channel, expect
from dfs.net.messages import ErrorReply, GetMasterStatus, GetMasterStatusReply, Message, Mutation

ATTEMPT_TIMEOUT_S = 2.0  # of the first attempt at a master; it doubles for one that was silent
OPINION_SHARE = 4  # after this part of an attempt's time without a word the other masters are asked, and then again
OPINION_TIMEOUT_S = 0.25  # for one of them to say whether it leads
CONNECT_TIMEOUT_S = 1.0  # of the first attempt, for a greeting; it doubles likewise
RESEND_WITHIN_S = 600.0  # an unanswered change is not sent again after that: far below any session_expiry
SILENT_S = 2.0  # a master that was silent is left out for so long, unless all are
UNREACHABLE_GRACE_S = 5.0  # masters that all refuse connections may be restarting: ask again for so long
BRIEF_MAX = 80  # characters about one master in an error: three of them fit on one line
NO_LEADER = "has no leader"  # what a master without a quorum is quoted with
RESOLVED_HINT_KEY = "leader"  # detail of a NotLeader error: the leader's client address

log = get_logger(__name__)
T = TypeVar("T", bound=Message)


class _Story:
    """What happened in one call so far: the judge between errors at its end. Most calls have nothing to tell."""

    is_uncertain = False  # an attempt was sent and got no clear answer: it may have an effect
    pressing: DfsError | None = None  # what the leader keeps saying ("later"), if that was the last word
    repetitions = 0

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.started_boot_s = boot_s()  # sleep of this computer counts
        self.silences: dict[str, int] = {}

    @cached_property
    def last_words(self) -> dict[str, str]:
        """By address: its last answer or failure, in a few words."""
        return {}

    @cached_property
    def refusals(self) -> dict[str, DfsError]:
        """By address: why it will never talk to us."""
        return {}

    @cached_property
    def answered(self) -> set[str]:
        return set()

    @property
    def words(self) -> str:
        """The last word of each master, for an error."""
        return "; ".join(f"{address}: {text}" for address, text in self.last_words.items())

    @property
    def leaderless(self) -> bool:
        """Whether a master answered, and the last word of each that did was that nobody leads."""
        words = [self.last_words.get(address) for address in self.answered]
        return bool(words) and all(word == NO_LEADER for word in words)

    @property
    def may_be_forgotten(self) -> bool:
        """Whether the masters may have dropped the session of an unanswered call: sent again, it would happen twice."""
        return self.is_uncertain and boot_s() - self.started_boot_s > RESEND_WITHIN_S


class Masters:
    """The masters of one cluster as a client meets them. Thread-safe."""

    def __init__(
        self,
        cluster: str,
        addresses: tuple[str, ...],
        pool: ChannelPool,
        *,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        unreachable_grace_s: float = UNREACHABLE_GRACE_S,
    ) -> None:
        self._cluster = cluster
        self._configured = addresses
        self._pool = pool
        self._attempt_timeout_s = attempt_timeout_s
        self._unreachable_grace_s = unreachable_grace_s
        self._owner = Owner()  # asked before any lock: a fork leaves those held that other threads have
        self._lock = threading.Lock()
        self._known = tuple(dict.fromkeys(addresses))  # exchanged as a whole
        self._leader: str | None = None
        self._turn = 0  # whom `call_any` asks first
        self._silent_until_s: dict[str, float] = {}
        self._asking = threading.Lock()  # held by the one thread that asks who leads

    @property
    def addresses(self) -> tuple[str, ...]:
        """All masters known by now, the configured ones first."""
        return self._known

    def ask(self, address: str, message: Message, reply: type[T], deadline: Deadline) -> T:
        """Return what the master at `address` itself answers, whoever leads."""
        self._owner.check()
        with self._pool.channel(address, deadline) as channel:
            answer = exchange(channel, message, deadline)
        return expect(answer, reply)

    def call(self, message: Message, reply: type[T], deadline: Deadline, *, is_patient: bool = True) -> T:
        """Return the leader's reply. `is_patient` false: hand out errors that say "ask the same again later".

        Raises the leader's error; `ConnectionFailed` when no master can be reached; `NoQuorum` when none leads until
        the deadline; `DeadlineExceeded` when that has passed already. It or `NoQuorum` has the detail
        `may_have_happened` when a mutation has no known outcome.
        """
        return expect(self.call_reporting_resends(message, deadline, is_patient=is_patient)[0], reply)

    def call_any(self, message: Message, reply: type[T], deadline: Deadline) -> T:
        """Return what any master says that may answer (a read that allows an age); the last resort is the leader.

        Each call begins with another master, so that the reads of a client are spread over all.
        """
        self._owner.check()
        for address in self._in_turn():
            if deadline.has_passed:
                break
            try:
                return self.ask(address, message, reply, deadline.no_later_than(self._attempt_timeout_s))
            except DfsError as error:
                if step_after(error.retry) is Step.FAIL:
                    raise
                if isinstance(error, DeadlineExceeded | ConnectionFailed):
                    with self._lock:
                        self._silent_until_s[address] = time.monotonic() + SILENT_S
        return self.call(message, reply, deadline)

    def _in_turn(self) -> list[str]:
        with self._lock:
            self._turn += 1
            now_s, cut = time.monotonic(), self._turn % len(self._known)
            order = self._known[cut:] + self._known[:cut]
            return [address for address in order if self._silent_until_s.get(address, 0.0) <= now_s]

    def call_reporting_resends(
        self, message: Message, deadline: Deadline, *, is_patient: bool = True
    ) -> tuple[Message, bool]:
        """Return (the final reply, maybe an `ErrorReply`; whether an earlier attempt may have had an effect too)."""
        self._owner.check()
        story = _Story()
        while True:
            final = self._ask_round(message, deadline, story, is_patient=is_patient)
            if final is not None:
                return final, story.is_uncertain
            story.repetitions += 1
            self._check_worth_repeating(message, deadline, story)
            time.sleep(min(backoff_s(story.repetitions, draw()), deadline.remaining_s()))

    # --- one round --------------------------------------------------------------------------------------

    def _ask_round(self, message: Message, deadline: Deadline, story: _Story, *, is_patient: bool) -> Message | None:
        """Ask each master at most once; return the final reply, `None` when there is none yet."""
        order = MasterRound(self._known, self._leader, self._silent() if self._silent_until_s else ())
        while (address := order.next()) is not None and not deadline.has_passed:
            if story.is_uncertain and isinstance(message, Mutation) and story.may_be_forgotten:
                raise _unknown_outcome(message, story, self._needed)
            answer = self._attempt(address, message, deadline, story)
            if not isinstance(answer, ErrorReply):
                if answer is not None:
                    self._note_leader(address)
                    return answer
                if (leader := self._leader) is not None:  # it was found while this one said nothing
                    order.hint(leader)
                continue
            error = answer.error()
            story.answered.add(address)
            story.last_words[address] = _brief(error)
            if isinstance(error, DeadlineExceeded):  # its own patience was the attempt's time, not the call's
                story.is_uncertain = True
                self._note_silence(address, story)
                continue
            match step_after(error.retry):
                case Step.FAIL:
                    return answer
                case Step.AGAIN:
                    if error.retry is Retry.SAME and not is_patient:
                        return answer
                    self._note_leader(address)
                    story.pressing = error
                    story.is_uncertain |= error.retry is Retry.UNKNOWN
                    return None
                case Step.NEXT:
                    self._follow(error, address, order)
        return None

    def _silent(self) -> list[str]:
        """Return the masters that were silent lately."""
        with self._lock:
            now_s = time.monotonic()
            return [address for address, until_s in self._silent_until_s.items() if until_s > now_s]

    def _attempt(self, address: str, message: Message, deadline: Deadline, story: _Story) -> Message | None:
        """Return the answer of one master, `None` when it gave none; the story tells why."""
        silences, started_s = story.silences.get(address, 0), time.monotonic()
        attempt = Deadline(min(deadline.at_s, started_s + attempt_timeout_s(self._attempt_timeout_s, silences)))
        story.pressing = None
        is_sent = False
        try:
            channel = self._pool.take_idle(address)
            if channel is None:
                greeting_s = attempt_timeout_s(CONNECT_TIMEOUT_S, silences)
                channel = self._pool.connect(address, attempt.no_later_than(greeting_s))
            is_sent = True
            try:
                answer = self._exchange(address, channel, message, attempt)
            except BaseException:
                channel.close()
                raise
            self._pool.give(address, channel)
            return answer
        except DeadlineExceeded as error:
            reason = error.message
            story.last_words[address] = f"no answer within {time.monotonic() - started_s:.2g} s"
            self._note_silence(address, story)
        except DfsError as error:
            reason = error.message
            story.last_words[address] = _brief(error)
            if error.retry is Retry.NEVER:  # a wrong secret, a foreign version
                story.refusals[address] = error
            self._forget_leader(address)
        story.is_uncertain |= is_sent
        log.debug("master_attempt_failed", address=address, reason=reason)
        return None

    # --- while nothing is said ---------------------------------------------------------------------------

    def _exchange(self, address: str, channel: Channel, message: Message, attempt: Deadline) -> Message:
        """Return the answer of a master; raise `DeadlineExceeded` when it is too late, or another master leads."""
        request_id = send_call(channel, message, attempt)
        while not channel.wait_readable(attempt.no_later_than(self._attempt_timeout_s / OPINION_SHARE)):
            attempt.check(f"waiting for master {address}")
            if self._leads_another(address, attempt):
                raise DeadlineExceeded(f"master {address} said nothing, and another one leads")
        return receive_answer(channel, message, request_id, attempt)

    def _leads_another(self, silent: str, attempt: Deadline) -> bool:
        """Ask the other masters whether they lead, unless another thread does; note the one that does."""
        if self._asking.acquire(blocking=False):
            try:
                for address in self.addresses:
                    if address == silent or attempt.has_passed or self._leader not in (None, silent):
                        continue
                    asking = attempt.no_later_than(OPINION_TIMEOUT_S)
                    with contextlib.suppress(DfsError):
                        if self.ask(address, GetMasterStatus(), GetMasterStatusReply, asking).master.role == "leader":
                            self._note_leader(address)
            finally:
                self._asking.release()
        return self._leader not in (None, silent)

    # --- what was learnt ---------------------------------------------------------------------------------

    def _note_leader(self, address: str) -> None:
        if self._leader != address or address in self._silent_until_s:
            with self._lock:
                self._leader = address
                self._silent_until_s.pop(address, None)

    def _forget_leader(self, address: str) -> None:
        with self._lock:
            if self._leader == address:
                self._leader = None

    def _note_silence(self, address: str, story: _Story) -> None:
        story.silences[address] = story.silences.get(address, 0) + 1
        with self._lock:
            self._silent_until_s[address] = time.monotonic() + SILENT_S
            if self._leader == address:
                self._leader = None

    def _follow(self, error: DfsError, address: str, order: MasterRound) -> None:
        """Take the hint of a master that does not lead."""
        self._forget_leader(address)
        hint = error.details.get(RESOLVED_HINT_KEY, "")
        if not hint or hint == address:
            return
        with self._lock:
            if hint not in self._known:
                if len(self._known) >= MASTERS_MAX:
                    return
                self._known = (*self._known, hint)
        order.hint(hint)

    # --- the end of a call ----------------------------------------------------------------------------------

    def _check_worth_repeating(self, message: Message, deadline: Deadline, story: _Story) -> None:
        """Raise the error that tells the story when there is no time, or no sense, in another round."""
        waited_s = time.monotonic() - story.started_s
        if not deadline.has_passed:
            if story.answered or story.silences or story.is_uncertain:
                return  # somebody is there: it may come to itself, or a leader may be elected
            if not story.refusals and waited_s < self._unreachable_grace_s:
                return
        if story.is_uncertain and isinstance(message, Mutation):
            raise _unknown_outcome(message, story, self._needed)
        if story.pressing is not None:
            raise story.pressing
        if not story.answered:
            if story.refusals:
                raise next(iter(story.refusals.values()))
            if not story.last_words:
                raise DeadlineExceeded(f"no time was left to ask a master of cluster {self._cluster!r}")
            raise ConnectionFailed(
                f"cannot reach any master of cluster {self._cluster!r} ({story.words}); do they run (`dfs up`), and "
                "are the addresses right?",
                address=self._configured[0],
            )
        raise NoQuorum(
            f"no quorum: no master of cluster {self._cluster!r} led for {waited_s:.1f} s ({story.words}); "
            f"{self._needed}"
        )

    @property
    def _needed(self) -> str:
        count = len(self._configured)
        return f"start masters until {count // 2 + 1} of {count} run and reach each other"


def _unknown_outcome(message: Mutation, story: _Story, needed: str) -> DfsError:
    """Return the error of a change that was sent and that nobody gave the outcome of."""
    name, waited_s = type(message).__name__, time.monotonic() - story.started_s
    if story.leaderless and not story.pressing:
        return NoQuorum(
            f"no quorum for {waited_s:.1f} s ({story.words}); {name} may have happened or not: {needed}, and look "
            "before you repeat it",
            may_have_happened="yes",
        )
    return DeadlineExceeded(
        f"{name} has no known outcome after {waited_s:.1f} s: it may have happened or not; look before you repeat it "
        f"({story.words})",
        may_have_happened="yes",
    )


def _brief(error: DfsError) -> str:
    """Return the few words that a list of masters has room for."""
    match error:
        case NotLeader() | NoQuorum():
            return NO_LEADER
        case ConnectionFailed():  # "cannot connect to ADDRESS: nobody listens there; is the daemon running?"
            why = error.message.partition(": ")[2].partition(";")[0].removesuffix(" there")
            return (why or error.message)[:BRIEF_MAX]
        case _:
            return error.message.partition(";")[0][:BRIEF_MAX]
