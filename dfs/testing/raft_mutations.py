"""Masters with one safety taken away: what a simulation that proves anything must find out.

Owns: the mutations, each with the fault of the library's study whose cure it removes. Refuses to know: which seeds find
a mutation out (tests/sim has them; `python -m dfs.testing.simulate --mutation NAME` looks for them).

The letters are those of docs/raft-simulation.md, which also says which cures no simulation can miss, and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfs.errors import NotLeader
from dfs.master import raft_checkpoint, raft_engine, raft_join, raft_journal, raft_node, raft_records
from dfs.master.raft_checkpoint import CheckpointFolder, CheckpointPiece
from dfs.master.raft_engine import Engine
from dfs.master.raft_gate import Gate
from dfs.master.raft_join import Membership
from dfs.master.raft_journal import Journal
from dfs.master.raft_node import RaftNode
from dfs.master.raft_records import Kind
from dfs.master.raft_state import RaftLog
from dfs.master.raft_wire import Append, AppendPiece, AppendReply, Vote
from dfs.master.state.machine import MasterState
from dfs.testing import raft_world
from dfs.testing.virtual_disk import VirtualOs

Change = tuple[Any, str, Any]  # owner, name, the value to be there instead
MUTATIONS: dict[str, Mutation] = {}


@dataclass(frozen=True, slots=True)
class Mutation:
    """`faults`: letters of the study. `changes` makes the list anew for each use."""

    name: str
    faults: str
    takes_away: str
    changes: Callable[[], list[Change]]

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Take the safety away for the length of a run."""
        changes = self.changes()
        before = [(owner, name, vars(owner).get(name)) for owner, name, _ in changes]
        try:
            for owner, name, value in changes:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                if value is None:
                    delattr(owner, name)  # it was inherited
                else:
                    setattr(owner, name, value)


def _mutation(faults: str, takes_away: str) -> Callable[[Callable[[], list[Change]]], Callable[[], list[Change]]]:
    def register(changes: Callable[[], list[Change]]) -> Callable[[], list[Change]]:
        name = changes.__name__.strip("_")
        MUTATIONS[name] = Mutation(name, faults, takes_away, changes)
        return changes

    return register


def _ignore(*_arguments: Any, **_named: Any) -> None: ...


# --- the disk ---------------------------------------------------------------------------------------------------


@_mutation("b1", "fdatasync of the journal")
def _journal_not_synced() -> list[Change]:
    return [(VirtualOs, "fdatasync", _ignore)]


@_mutation("b1", "fsync of directories after a rename")
def _directories_not_synced() -> list[Change]:
    return [(module, "sync_directory", _ignore) for module in (raft_journal, raft_join, raft_checkpoint)]


@_mutation("b1", "fsync of checkpoint files before their rename")
def _checkpoint_not_synced() -> list[Change]:
    def make(folder: Path, *, fsync: bool) -> CheckpointFolder:
        del fsync
        return CheckpointFolder(folder, fsync=False)

    return [(raft_node, "CheckpointFolder", make)]


@_mutation("b1", "writing and syncing the tail again that a killed process left in the page cache")
def _adopted_tail_not_synced() -> list[Change]:
    return [(Journal, "_adopt_tail", _ignore)]


@_mutation("b4", "the CRC of journal records")
def _records_without_crc() -> list[Change]:
    # Records are torn most often where a thread writes them, and takes its time: on disks that are never quick.
    return [(raft_records, "crc32c", lambda _data, _seed=0: 0), (raft_world, "QUICK_SHARE", 0.0)]


@_mutation("b5", "the record that says that a tail of the log was cut")
def _truncation_not_recorded() -> list[Change]:
    def truncate_from(journal: Journal, position: int) -> None:
        if position < len(journal.entries):
            index = journal.entries[position][1]
            del journal.entries[position:]
            journal.durable_index = min(journal.durable_index, index - 1)
            journal._epoch += 1

    return [(Journal, "truncate_from", truncate_from)]


@_mutation("b1", "the gate: messages leave before the records that they speak of are on disk")
def _messages_before_disk() -> list[Change]:
    return [(Gate, "durable", property(lambda gate: gate._journal.sequence))]


@_mutation("b1", "the leader's own disk in the majority that commits an entry")
def _own_disk_not_awaited() -> list[Change]:
    return [(Journal, "durable_index", property(lambda journal: journal.last_index, _ignore))]


# --- terms and votes ----------------------------------------------------------------------------------------------


@_mutation("a", "term and vote on disk")
def _term_and_vote_in_memory() -> list[Change]:
    def set_vote(journal: Journal, term: int, vote: str | None) -> None:
        journal.term, journal.vote = term, vote

    return [(Journal, "set_vote", set_vote)]


@_mutation("a", "the vote on disk (the term is)")
def _vote_in_memory() -> list[Change]:
    encode = raft_records.encode_record

    def encode_record(kind: Kind, a: int, b: int, payload: bytes = b"", *, salt: int) -> bytes:
        return encode(kind, a, b, b"" if kind == Kind.VOTE else payload, salt=salt)

    return [(raft_journal, "encode_record", encode_record)]


@_mutation("d2", "counting each voter once")
def _votes_counted_per_message() -> list[Change]:
    def vote(gate: Gate, peer: str, message: Vote) -> None:
        if message.term == gate._journal.term:
            gate._engine.deliver(peer, {"type": "response_vote", "term": message.term})

    return [(Gate, "_vote", vote)]


@_mutation("f1", "the pre-vote before an election")
def _election_without_prevote() -> list[Change]:
    def begin(node: RaftNode, _now: float) -> None:
        node.engine.may_campaign = True
        node.wake()

    return [(RaftNode, "_begin_prevote", begin)]


@_mutation("f1", "refusing votes while a leader is heard")
def _votes_beside_a_leader() -> list[Change]:
    return [(Gate, "_hears_a_leader", lambda _gate: False)]


@_mutation("f3", "telling a sender of an older term about the present one")
def _stale_senders_not_told() -> list[Change]:
    return [(Gate, "_send_stale", _ignore)]


# --- entries and replies -----------------------------------------------------------------------------------------


@_mutation("c", "taking only what is new from a message of entries")
def _resent_entries_truncate() -> list[Change]:
    def take(gate: Gate, peer: str, message: Append, previous: int, previous_term: int, entries: Any) -> None:
        gate._engine.deliver(
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

    return [(Gate, "_take_entries", take)]


@_mutation("d1", "the term of a reply, and that it must be about entries of the own log")
def _replies_without_term() -> list[Change]:
    def take(gate: Gate, peer: str, message: AppendReply) -> None:
        if gate._engine.is_leader:
            gate._deliver_reply(peer, message)

    return [(Gate, "_append_reply", take)]


@_mutation("k1", "a piece of a checkpoint commits nothing")
def _checkpoint_piece_commits() -> list[Change]:
    def take(gate: Gate, peer: str, message: AppendPiece) -> None:
        if gate._is_stale(peer, message.term):
            return
        gate._answered_serial = message.serial
        piece = CheckpointPiece(message.index, message.offset, message.data, message.is_last)
        gate._engine.deliver(
            peer,
            {
                "type": "append_entries",
                "term": message.term,
                "commit_index": message.commit_index,
                "serialized": (piece, piece.offset == 0, piece.is_last),
            },
        )

    return [(Gate, "_append_piece", take)]


@_mutation("k1", "a message commits only as far as the log was compared: entries that are here already")
def _known_entries_commit_the_tail() -> list[Change]:
    def agree(gate: Gate, peer: str, message: Append, matching: int) -> None:
        gate._hear(peer, message.term, message.commit_index)
        gate._reply(peer, matching + 1, is_reset=False)

    return [(Gate, "_agree", agree)]


@_mutation("k1", "a message commits only as far as the log was compared: entries that do not follow the own ones")
def _mismatch_commits_the_tail() -> list[Change]:
    disagree = Gate._disagree

    def hear_all(gate: Gate, peer: str, message: Append, previous: int) -> None:
        gate._hear(peer, message.term, message.commit_index)
        disagree(gate, peer, message, previous)

    return [(Gate, "_disagree", hear_all)]


# --- leadership and reads ------------------------------------------------------------------------------------------


@_mutation("f2", "stepping down without a majority of followers")
def _lonely_leader_stays() -> list[Change]:
    make: Any = vars(raft_engine)["SyncObjConf"]

    def conf(**options: Any) -> Any:
        return make(**{**options, "leaderFallbackTimeout": 30.0})

    return [(raft_engine, "SyncObjConf", conf)]


@_mutation("f2", "the round of messages that proves a read current")
def _read_without_round() -> list[Change]:
    async def read_barrier(log: RaftLog, timeout_s: float) -> None:
        del timeout_s
        if not log.is_leader:
            raise NotLeader("does not lead")

    return [(RaftLog, "read_barrier", read_barrier)]


@_mutation("f2", "the applied entry of its own term that a leader needs before it may answer reads")
def _read_before_own_entry() -> list[Change]:
    return [(Engine, "leads_with_own_entry", property(lambda engine: engine.is_leader))]


@_mutation("e2 e4", "ending what waits for a result when leadership is lost")
def _waits_not_ended() -> list[Change]:
    return [(RaftLog, "_fail_waiting", _ignore)]


@_mutation("i", "the sessions that make a resent call happen once")
def _resent_calls_run_again() -> list[Change]:
    return [(MasterState, "_apply_once", MasterState._run)]


# --- checkpoints and empty disks ----------------------------------------------------------------------------------


@_mutation("h2", "keeping the journal's entries after a checkpoint")
def _entries_after_checkpoint_dropped() -> list[Change]:
    load = Engine._load_checkpoint

    def load_only(engine: Engine, path: Path) -> None:
        head = raft_checkpoint.verify_checkpoint(path)
        engine.journal.reset()
        engine.journal.append(*head.previous)
        engine.journal.append(*head.last)
        load(engine, path)

    return [(Engine, "_load_checkpoint", load_only)]


@_mutation("h5", "refusing a checkpoint that is older than the own state")
def _older_checkpoint_installed() -> list[Change]:
    return [(Engine, "_is_news", lambda _engine, _head: True)]


@_mutation("l", "the proof that a master with an empty disk needs before its word counts")
def _empty_master_votes() -> list[Change]:
    return [(Membership, "_load", lambda _membership: True), (Membership, "check", _ignore)]
