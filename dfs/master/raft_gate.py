"""What Raft may see: every message between masters passes here, in both directions.

Owns: the rules that make the library's message handling safe, and the translation between its dicts and our types.
Refuses to know: links and bytes, proposals, and the library's private names.

The letters are those of the study of the library's faults. The library never sees: messages of an older term (f3, d1),
replies beyond the own log (d1), second votes of a voter (d2), votes while a leader is heard (f1), entries that already
match (c), a commit index over a tail that was not compared (k1), forwarded commands (e4) or a pickled entry (j8, g1).
And ours, beside theirs: nothing may have an effect on a master that forgot what it promised (l, dfs.master.raft_join).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

from dfs.errors import DfsError, InternalError, ProtocolError
from dfs.log import get_logger
from dfs.master.raft_checkpoint import CheckpointPiece
from dfs.master.raft_engine import Engine, EngineStopped
from dfs.master.raft_join import Membership, Standing
from dfs.master.raft_journal import disk_error
from dfs.master.raft_transport import RaftTransport
from dfs.master.raft_wire import (
    AgeQuery,
    AgeReply,
    Append,
    AppendPiece,
    AppendReply,
    JoinQuery,
    JoinReply,
    Ping,
    PreVote,
    PreVoteReply,
    RaftMessage,
    ReadRound,
    ReadRoundReply,
    RequestVote,
    StaleTerm,
    TakeOver,
    Vote,
)

_log = get_logger(__name__)


class GateOwner(Protocol):
    """Who counts the rounds."""

    def prevote_granted(self, peer: str, number: int) -> None: ...

    def leadership_confirmed(self, peer: str, number: int) -> None: ...

    def age_asked(self, peer: str, number: int) -> None: ...

    def age_answered(self, number: int, commit_index: int) -> None: ...


class Gate:
    """Checks and translates messages. One thread; called by the transport and by the journal's completions."""

    def __init__(
        self, engine: Engine, transport: RaftTransport, owner: GateOwner, membership: Membership | None = None
    ) -> None:
        self._engine, self._transport, self._owner, self._membership = engine, transport, owner, membership
        self._journal = engine.journal
        self._serials: dict[str, int] = dict.fromkeys(transport.peers, 0)  # last message of entries sent to a peer
        self._reset_floors: dict[str, int] = dict.fromkeys(transport.peers, 0)  # resets up to here were answered
        self._answered_serial = 0  # of the message being handled: replies name it
        self._held: list[tuple[str, AppendReply]] = []  # acknowledgements ahead of the own disk
        self._handlers: dict[type[RaftMessage], Callable[[str, Any], None]] = {
            Append: self._append,
            AppendPiece: self._append_piece,
            AppendReply: self._append_reply,
            RequestVote: self._request_vote,
            Vote: self._vote,
            PreVote: self._pre_vote,
            PreVoteReply: self._pre_vote_reply,
            ReadRound: self._read_round,
            ReadRoundReply: self._read_round_reply,
            StaleTerm: self._stale_term,
            TakeOver: self._take_over,
            JoinQuery: self._join_query,
            JoinReply: self._join_reply,
            AgeQuery: self._age_query,
            AgeReply: self._age_reply,
            Ping: lambda _peer, _message: None,
        }

    # --- what the transport asks -----------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return self._journal.term

    @property
    def durable(self) -> int:
        return self._journal.durable

    @property
    def vote_sequence(self) -> int:
        return self._journal.vote_sequence

    def link_made(self, peer: str) -> None:
        self._reset_floors[peer] = self._serials[peer]
        self._engine.peer_connected(peer)

    def link_lost(self, peer: str) -> None:
        self._engine.checkpoints.cancel(peer)
        self._held = [(other, reply) for other, reply in self._held if other != peer]

    def received(self, peer: str, message: RaftMessage) -> None:
        """Handle one message. A bug in the middle of one stops the engine: half a message must not be lived with."""
        if not self._may_hear(type(message)):
            return
        try:
            self._handlers[type(message)](peer, message)
        except EngineStopped:
            pass
        except ProtocolError:
            raise
        except OSError as error:  # while a checkpoint was being received
            self._fail(disk_error(error, self._engine.checkpoints.folder.folder, "storing a checkpoint"))
        except Exception as error:  # noqa: BLE001 - see above
            _log.exception("raft_message_failed", peer=peer, kind=type(message).__name__)
            self._fail(InternalError(f"handling a Raft message raised {error!r}: a bug, report it with the log"))

    def _fail(self, error: DfsError) -> None:
        with contextlib.suppress(EngineStopped):
            self._engine.fail(error)

    # --- outwards --------------------------------------------------------------------------------------------

    def translate(self, peer: str, message: dict[str, Any]) -> tuple[RaftMessage, int] | None:
        """Return a message of the library in our form, and the journal record that it must wait for."""
        kind, journal = message["type"], self._journal
        if kind == "append_entries":
            # Entries may overtake our own sync: our own vote for them is withheld instead (`_append_reply`).
            self._serials[peer] += 1
            return self._translate_entries(self._serials[peer], message), journal.vote_sequence
        if kind == "next_node_idx":
            if message["success"]:
                self._note_match(message["next_node_idx"] - 1)
            reply = AppendReply(
                journal.term, self._answered_serial, message["next_node_idx"], message["reset"], message["success"]
            )
            return reply, journal.sequence
        if kind == "request_vote":
            is_forced = self._engine.is_forced
            vote = RequestVote(message["term"], message["last_log_index"], message["last_log_term"], is_forced)
            return vote, journal.sequence
        if kind == "response_vote":
            return Vote(message["term"]), journal.sequence
        return None  # a command to be forwarded: proposals end here instead

    def _translate_entries(self, serial: int, message: dict[str, Any]) -> Append | AppendPiece:
        term, commit_index = message["term"], message["commit_index"]
        if "serialized" in message:
            piece: CheckpointPiece = message["serialized"][0]
            return AppendPiece(term, serial, commit_index, piece.index, piece.offset, piece.data, piece.is_last)
        return Append(term, serial, commit_index, message["prevLogIdx"], message["prevLogTerm"], message["entries"])

    # --- entries, at a follower ------------------------------------------------------------------------------

    def _append(self, peer: str, message: Append) -> None:
        if self._is_stale(peer, message.term):
            return
        previous, entries = message.previous_index, message.entries
        if entries and (entries[0][1] != previous + 1 or entries[-1][1] != previous + len(entries)):
            raise ProtocolError(f"entries {entries[0][1]}..{entries[-1][1]} do not follow {previous}")
        self._engine.heard_at_s = time.monotonic()
        self._answered_serial = message.serial
        if self._engine.is_installing:
            self._hear(peer, message.term, self._engine.commit_index)
            self._live(peer)
            return
        self._take_entries(peer, message, previous, message.previous_term, entries)

    def _take_entries(
        self, peer: str, message: Append, previous: int, previous_term: int, entries: list[tuple[bytes, int, int]]
    ) -> None:
        """Give the library only what is new, so that it truncates on a real conflict and never otherwise (fault c)."""
        journal, first = self._journal, self._journal.first_index
        if previous < first:  # what is below is in our checkpoint, hence the same
            skipped = first - previous
            if len(entries) < skipped:
                self._agree(peer, message, min(previous + len(entries), journal.last_index))
                return
            previous, previous_term, entries = first, entries[skipped - 1][2], entries[skipped:]
        if journal.term_at(previous) != previous_term:
            self._disagree(peer, message, previous)
            return
        known = 0
        while known < len(entries) and journal.term_at(entries[known][1]) == entries[known][2]:
            known += 1
        if known:
            previous, previous_term, entries = entries[known - 1][1], entries[known - 1][2], entries[known:]
        if entries and entries[0][1] <= self._engine.commit_index:
            self._engine.fail(
                InternalError(f"leader {peer} overwrites the committed log entry {entries[0][1]}: a bug, report it")
            )
        if not entries and previous < journal.last_index:
            self._agree(peer, message, previous)
            return
        self._engine.deliver(
            peer,
            {
                "type": "append_entries",
                "term": message.term,
                "commit_index": message.commit_index,
                "prevLogIdx": previous,
                "prevLogTerm": previous_term,
                "entries": entries,
            },
        )

    def _agree(self, peer: str, message: Append, matching: int) -> None:
        """All that was sent is here already, up to `matching`; what follows it stays as it is."""
        self._hear(peer, message.term, min(message.commit_index, matching))
        self._reply(peer, matching + 1, is_reset=False)

    def _disagree(self, peer: str, message: Append, previous: int) -> None:
        """Ask for entries from where our log may agree: past the commit index, a whole term further back at a time."""
        journal, committed = self._journal, self._engine.commit_index
        self._hear(peer, message.term, committed)
        wrong_term = journal.term_at(previous)
        start = journal.last_index + 1 if wrong_term is None else previous
        while wrong_term is not None and start > committed + 1 and journal.term_at(start - 1) == wrong_term:
            start -= 1
        self._reply(peer, max(start, committed + 1), is_reset=True)

    def _hear(self, peer: str, term: int, commit_index: int) -> None:
        """Let the library follow `peer` without looking at entries."""
        self._engine.deliver(peer, {"type": "append_entries", "term": term, "commit_index": commit_index})

    def _reply(self, peer: str, next_index: int, *, is_reset: bool) -> None:
        if not is_reset:
            self._note_match(next_index - 1)
        reply = AppendReply(self._journal.term, self._answered_serial, next_index, is_reset, not is_reset)
        self._transport.put(peer, reply, self._journal.sequence)

    def _live(self, peer: str) -> None:
        """Say no more than that this master follows: it neither has what was sent nor wants anything else.

        A leader gives up leading when no majority replies, and it may be sending a checkpoint to its only follower.
        """
        reply = AppendReply(self._journal.term, self._answered_serial, self._engine.commit_index + 1, False, False)
        self._transport.put(peer, reply, self._journal.vote_sequence)

    def _append_piece(self, peer: str, message: AppendPiece) -> None:
        if self._is_stale(peer, message.term):
            return
        engine = self._engine
        engine.heard_at_s = time.monotonic()
        self._answered_serial = message.serial
        piece = CheckpointPiece(message.index, message.offset, message.data, message.is_last)
        engine.deliver(
            peer,
            {
                "type": "append_entries",
                "term": message.term,
                "commit_index": min(message.commit_index, engine.commit_index),  # a piece commits nothing (k1)
                "serialized": (piece, piece.offset == 0, piece.is_last),
            },
        )
        self._live(peer)

    # --- replies, at the leader ------------------------------------------------------------------------------

    def _append_reply(self, peer: str, message: AppendReply) -> None:
        journal, engine = self._journal, self._engine
        if message.term > journal.term:
            engine.adopt_term(message.term)
        is_possible = 1 <= message.next_index <= journal.last_index + 1
        if message.term != journal.term or not engine.is_leader or not is_possible:
            return  # of another term, or about entries that this leader never had (d1)
        if message.is_reset:
            if message.serial <= self._reset_floors[peer]:
                return  # answered by a message that is on its way
            self._reset_floors[peer] = self._serials[peer]
            engine.sent_index = 0
        elif message.next_index - 1 > journal.durable_index:
            self._held.append((peer, message))  # our own vote for the entry counts only once it is on our disk
            return
        self._deliver_reply(peer, message)

    def _deliver_reply(self, peer: str, message: AppendReply) -> None:
        engine = self._engine
        node = engine.nodes[peer]
        sent = engine.next_index.get(node, 0)
        engine.deliver(
            peer,
            {
                "type": "next_node_idx",
                "next_node_idx": message.next_index,
                "reset": message.is_reset,
                "success": message.is_success,
            },
        )
        if not message.is_reset:  # the library steps back to the acknowledged entry and would send the rest again
            engine.next_index[node] = max(sent, engine.next_index.get(node, 0))

    def release_held(self) -> bool:
        """Pass acknowledgements on that have waited for our own disk; return whether there were any."""
        held, self._held = self._held, []
        was_any = False
        for peer, message in held:
            if message.term == self._journal.term and self._engine.is_leader:
                if message.next_index - 1 > self._journal.durable_index:
                    self._held.append((peer, message))
                else:
                    self._deliver_reply(peer, message)
                    was_any = True
        return was_any

    # --- elections -------------------------------------------------------------------------------------------

    def _hears_a_leader(self) -> bool:
        engine = self._engine
        return engine.is_leader or time.monotonic() - engine.heard_at_s < engine.timeout_min_s

    def _request_vote(self, peer: str, message: RequestVote) -> None:
        if self._is_stale(peer, message.term):
            return
        if self._hears_a_leader() and not message.is_forced:
            return  # Raft thesis, 4.2.3
        self._engine.deliver(
            peer,
            {
                "type": "request_vote",
                "term": message.term,
                "last_log_index": message.last_index,
                "last_log_term": message.last_term,
            },
        )

    def _vote(self, peer: str, message: Vote) -> None:
        if message.term == self._journal.term and peer not in self._engine.voters:
            self._engine.voters.add(peer)
            self._engine.deliver(peer, {"type": "response_vote", "term": message.term})

    def _pre_vote(self, peer: str, message: PreVote) -> None:
        journal = self._journal
        if message.term < journal.term and message.wanted_term <= journal.term:
            self._send_stale(peer)
        is_current = (message.last_term, message.last_index) >= (journal.last_term, journal.last_index)
        is_granted = message.wanted_term > journal.term and is_current and not self._hears_a_leader()
        self._transport.put(peer, PreVoteReply(journal.term, message.round, is_granted), journal.vote_sequence)

    def _pre_vote_reply(self, peer: str, message: PreVoteReply) -> None:
        if message.is_granted:
            self._owner.prevote_granted(peer, message.round)

    def _take_over(self, peer: str, message: TakeOver) -> None:
        if message.term == self._journal.term and self._engine.leader_name == peer and not self._engine.is_leader:
            self._engine.is_forced = self._engine.may_campaign = True

    # --- a master whose disk was empty ---------------------------------------------------------------------

    def _may_hear(self, kind: type[RaftMessage]) -> bool:
        """Whether a message may have an effect here: an empty master's word is worth nothing yet (fault l)."""
        membership = self._membership
        if membership is None or membership.is_member or kind in (JoinQuery, JoinReply, Ping):
            return True
        return membership.may_follow and kind not in (RequestVote, PreVote, TakeOver)

    def _note_match(self, index: int) -> None:
        if self._membership is not None:
            self._membership.matched = (self._journal.term, index)

    def _join_query(self, peer: str, message: JoinQuery) -> None:
        journal, membership = self._journal, self._membership
        standing = Standing.MEMBER
        if membership is not None and not membership.is_member:
            standing = Standing.EMPTY
        elif self._engine.is_leader:
            standing = Standing.LEADER
        elif journal.term == 0 and journal.last_index <= 1:
            standing = Standing.BLANK
        reply = JoinReply(journal.term, message.round, standing, journal.last_index)
        self._transport.put(peer, reply, journal.sequence)

    def _join_reply(self, peer: str, message: JoinReply) -> None:
        membership = self._membership
        try:
            standing = Standing(message.standing)
        except ValueError:
            raise ProtocolError(
                f"standing {message.standing} is unknown; do all masters run the same version?"
            ) from None
        if membership is not None and membership.answered(
            peer, message.round, message.term, standing, message.last_index
        ):
            self._engine.adopt_term(membership.term)

    # --- leadership ------------------------------------------------------------------------------------------

    def _read_round(self, peer: str, message: ReadRound) -> None:
        if self._is_stale(peer, message.term) or message.term != self._journal.term:
            return
        self._engine.hear_leader()
        self._transport.put(peer, ReadRoundReply(message.term, message.round), self._journal.vote_sequence)

    def _read_round_reply(self, peer: str, message: ReadRoundReply) -> None:
        if message.term == self._journal.term and self._engine.is_leader:
            self._engine.note_response(peer)
            self._owner.leadership_confirmed(peer, message.round)

    def _age_query(self, peer: str, message: AgeQuery) -> None:
        if message.term == self._journal.term and self._engine.is_leader:
            self._owner.age_asked(peer, message.number)

    def _age_reply(self, _peer: str, message: AgeReply) -> None:
        self._owner.age_answered(message.number, message.commit_index)

    def _stale_term(self, _peer: str, message: StaleTerm) -> None:
        self._engine.adopt_term(message.term)

    def _is_stale(self, peer: str, term: int) -> bool:
        """Whether a message is of an older term; then tell the sender (fault f3)."""
        if term >= self._journal.term:
            return False
        self._send_stale(peer)
        return True

    def _send_stale(self, peer: str) -> None:
        self._transport.put(peer, StaleTerm(self._journal.term), self._journal.vote_sequence)
