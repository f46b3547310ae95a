"""Do the overrides of pysyncobj decide right, message by message? One node, no network, no clock to wait for.

Each test names the fault letter of the pysyncobj study whose experiment it makes again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pysyncobj.syncobj as library
import pytest

from dfs.errors import ConfigError, StorageCorrupt
from dfs.master import raft_engine
from dfs.master.raft_checkpoint import (
    CheckpointHead,
    CheckpointSender,
    write_checkpoint,
)
from dfs.master.raft_engine import CANDIDATE, FOLLOWER, LEADER, EngineStopped, check_library
from dfs.master.raft_wire import (
    Append,
    AppendPiece,
    AppendReply,
    PreVote,
    PreVoteReply,
    ReadRound,
    ReadRoundReply,
    RequestVote,
    StaleTerm,
    TakeOver,
    Vote,
)
from dfs.testing.raft_single import ELECTION_TIMEOUT_S, NOTHING, append, entries, entry
from dfs.testing.raft_single import SingleNode as Node


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    node = Node(folder)
    yield node
    node.close()


def filled(node: Node, last: int = 10, commit: int = 1) -> Node:
    """A follower of b in term 1 that holds entries up to `last`."""
    (reply,) = node.get("b", append(1, entries(2, last), previous_term=0, commit=commit))
    assert isinstance(reply, AppendReply)
    assert (reply.next_index, reply.is_success) == (last + 1, True)
    node.engine.tick()
    return node


def piece_of(folder: Path, head: CheckpointHead, *, flip: int | None = None, term: int = 2) -> AppendPiece:
    path = folder / "foreign.dfs"
    write_checkpoint(path, head, [b"state"], fsync=False)
    sender = CheckpointSender(path, head.index)
    piece = sender.next_piece()
    sender.close()
    assert piece.is_last
    data = bytearray(piece.data)
    if flip is not None:
        data[flip] ^= 1
    return AppendPiece(term, 7, head.index + 5, head.index, 0, bytes(data), True)


def test_the_installed_library_is_the_one_the_overrides_are_written_for(monkeypatch: pytest.MonkeyPatch) -> None:
    check_library()
    monkeypatch.setattr(library, "VERSION", "0.3.18")
    with pytest.raises(ConfigError, match=r"0\.3\.18 is installed"):
        check_library()


def test_fault_a_no_second_vote_in_a_term_after_a_restart(node: Node) -> None:
    ask = RequestVote(5, 100, 4, False)
    assert node.get("b", ask) == [Vote(5)]
    again = node.restart()
    assert again.journal.term == 5
    assert again.get("c", ask) == []
    assert again.get("c", RequestVote(6, 100, 4, False)) == [Vote(6)]


def test_fault_a_a_vote_waits_for_the_disk(node: Node) -> None:
    before = node.journal.durable
    assert node.get("b", RequestVote(5, 100, 4, False)) == [Vote(5)]
    assert node.transport.needed[-1] > before == node.journal.durable


def test_fault_c_a_resent_or_older_message_truncates_nothing(node: Node) -> None:
    filled(node)
    (reply,) = node.get("b", append(1, entries(2, 5), previous_term=0))
    assert node.journal.last_index == 10
    assert isinstance(reply, AppendReply)
    assert (reply.next_index, reply.is_success) == (6, True)
    node.get("b", append(3, []))
    assert node.journal.last_index == 10


def test_fault_c_a_real_conflict_is_truncated(node: Node) -> None:
    filled(node)
    node.get("b", append(6, [entry(7, 3, b"new")], term=3))
    assert node.journal.entries[-1] == entry(7, 3, b"new")


def test_fault_c_overwriting_a_committed_entry_stops_the_node(node: Node) -> None:
    filled(node, commit=8)
    assert node.engine.commit_index == 8
    node.get("b", append(6, [entry(7, 3, b"new")], term=3))
    assert "overwrites the committed log entry 7" in str(node.failures[0])
    assert node.journal.last_index == 10
    with pytest.raises(EngineStopped):
        node.engine.tick()


def test_fault_d1_a_reply_beyond_the_own_log_counts_for_nothing(node: Node) -> None:
    node.lead()
    outcome = node.propose(b"x")
    node.sync()
    node.acknowledge("b", node.journal.last_index + 2)
    node.engine.tick()
    assert outcome == []
    second = node.propose(b"y")
    node.sync()
    node.engine.tick()
    assert (outcome, second) == ([], [])
    node.acknowledge("b", node.journal.last_index)
    node.engine.tick()
    assert outcome == [([1], 0)]


def test_fault_d1_a_reply_of_an_older_term_counts_for_nothing(node: Node) -> None:
    node.lead()
    outcome = node.propose(b"x")
    node.sync()
    node.gate.received("b", AppendReply(node.journal.term - 1, 1, node.journal.last_index + 1, False, True))
    node.engine.tick()
    assert outcome == []


def test_fault_d2_one_voter_counts_once(folder: Path) -> None:
    node = Node(folder, peers=("b", "c", "d", "e"))
    node.engine.may_campaign = True
    node.engine.tick()
    node.gate.received("b", Vote(1))
    node.gate.received("b", Vote(1))
    assert node.engine.role == CANDIDATE
    node.gate.received("c", Vote(1))
    assert node.engine.role == LEADER


def test_nothing_commits_before_it_is_on_the_own_disk(node: Node) -> None:
    node.lead()
    outcome = node.propose(b"x")
    node.acknowledge("b")
    node.acknowledge("c")
    node.engine.tick()
    assert outcome == []
    node.sync()
    node.engine.tick()
    assert outcome == [([1], 0)]


def test_fault_e4_a_follower_never_forwards_a_command(node: Node) -> None:
    filled(node)
    node.transport.sent.clear()
    node.engine.submit([b"x"], lambda _results, _reason: None)
    node.engine.tick()
    assert node.transport.sent == []


def test_fault_e5_an_exception_in_apply_stops_the_node_after_one_attempt(node: Node) -> None:
    node.lead()
    node.propose(b"poison")
    node.sync()
    node.acknowledge("b")
    for _ in range(3):
        with pytest.raises(EngineStopped):
            node.engine.tick()
    assert node.machine.attempts == 1
    assert "a bug" in str(node.failures[0])
    assert len(node.failures) == 1


def test_fault_f1_a_live_leader_is_not_deposed_by_a_vote_request(node: Node) -> None:
    node.lead()
    term = node.journal.term
    assert node.get("c", RequestVote(10**6, 10**6, 10**6, False)) == []
    assert node.engine.is_leader
    assert node.journal.term == term


def test_fault_f1_a_follower_that_hears_its_leader_refuses_votes_and_prevotes(node: Node) -> None:
    filled(node)
    assert node.get("c", RequestVote(9, 100, 8, False)) == []
    assert node.journal.term == 1
    (reply,) = node.get("c", PreVote(1, 4, 2, 100, 8))
    assert reply == PreVoteReply(1, 4, False)


def test_fault_f1_without_a_won_prevote_there_is_no_election(node: Node) -> None:
    node.engine.election_deadline_s = 0.0
    for _ in range(5):
        node.engine.tick()
    assert node.engine.role == FOLLOWER
    assert node.journal.term == 0


def test_a_prevote_changes_nothing_and_is_refused_to_a_shorter_log(node: Node) -> None:
    filled(node)
    node.engine.heard_at_s -= 100
    assert node.get("c", PreVote(1, 1, 2, 9, 1)) == [PreVoteReply(1, 1, False)]
    assert node.get("c", PreVote(1, 2, 2, 10, 1)) == [PreVoteReply(1, 2, True)]
    assert (node.journal.term, node.journal.vote) == (1, None)


def test_a_leader_that_hands_over_may_be_replaced_at_once(node: Node) -> None:
    filled(node)
    node.gate.received("b", TakeOver(1))
    node.transport.sent.clear()
    node.engine.tick()
    assert ("c", RequestVote(2, 10, 1, True)) in node.transport.sent


def test_fault_f3_a_sender_of_an_older_term_is_told(node: Node) -> None:
    node.get("b", RequestVote(5, 100, 4, False))
    assert node.get("c", append(1, [], term=3, previous_term=0)) == [StaleTerm(5)]
    assert node.get("c", RequestVote(4, 1, 0, False)) == [StaleTerm(5)]
    assert node.get("c", ReadRound(4, 1)) == [StaleTerm(5)]


def test_a_leader_told_of_a_higher_term_steps_down_without_a_vote(node: Node) -> None:
    node.lead()
    node.gate.received("b", StaleTerm(77))
    assert node.engine.role == FOLLOWER
    assert (node.journal.term, node.journal.vote) == (77, None)


def test_a_round_is_answered_in_the_same_term_only(node: Node) -> None:
    filled(node)
    assert node.get("b", ReadRound(1, 8)) == [ReadRoundReply(1, 8)]
    assert node.get("b", ReadRound(2, 9)) == []


def test_a_conflict_is_answered_a_whole_term_back(node: Node) -> None:
    filled(node, commit=4)
    (reply,) = node.get("b", append(9, [entry(10, 3)], term=3, previous_term=2))
    assert isinstance(reply, AppendReply)
    assert (reply.next_index, reply.is_reset) == (5, True)


def test_a_gap_is_answered_with_the_own_end(node: Node) -> None:
    filled(node)
    (reply,) = node.get("b", append(50, [entry(51, 1)]))
    assert isinstance(reply, AppendReply)
    assert (reply.next_index, reply.is_reset) == (11, True)


def test_acknowledgements_do_not_make_the_leader_send_again(node: Node) -> None:
    node.lead()
    for _ in range(5):
        node.propose(b"x")
    node.sync()
    node.acknowledge("b", node.journal.last_index - 2)
    node.transport.sent.clear()
    node.propose(b"y")
    sizes = [len(sent.entries) for to, sent in node.transport.sent if to == "b" and isinstance(sent, Append)]
    assert sizes == [1]


def test_a_second_reset_for_the_same_gap_is_not_streamed_twice(node: Node) -> None:
    node.lead()
    for _ in range(5):
        node.propose(b"x")
    node.sync()
    node.gate.received("b", AppendReply(node.journal.term, 2, 3, True, False))
    node.transport.sent.clear()
    node.engine.replicate()
    node.gate.received("b", AppendReply(node.journal.term, 3, 3, True, False))
    node.engine.replicate()
    counts = [len(sent.entries) for to, sent in node.transport.sent if to == "b" and isinstance(sent, Append)]
    assert sum(counts) == node.journal.last_index - 2


def test_fault_j8_a_large_command_is_sent_whole_and_unpickled(node: Node) -> None:
    node.lead()
    node.propose(bytes(3 << 20))
    (sent,) = [sent for to, sent in node.transport.sent if to == "c" and isinstance(sent, Append) and sent.entries][-1:]
    assert len(sent.entries[0][0]) > 3 << 20


def install(node: Node, piece: AppendPiece) -> list[AppendReply]:
    """Receive the last piece and work until nothing is left to do; return the replies that ask or acknowledge."""
    node.get("b", piece)
    while node.engine.has_more_work:
        node.engine.tick()
    replies = [sent for to, sent in node.transport.sent if to == "b" and isinstance(sent, AppendReply)]
    assert replies, "the leader hears that this master lives"
    return [reply for reply in replies if reply.is_success or reply.is_reset]


def test_fault_k1_a_piece_of_a_checkpoint_commits_nothing(node: Node) -> None:
    node.lead()
    outcome = node.propose(b"never committed")
    node.engine.adopt_term(2)
    committed = node.engine.commit_index
    sender_head = CheckpointHead((NOTHING, 499, 2), entry(500, 2))
    piece = piece_of(node.folder, sender_head)
    first = AppendPiece(piece.term, 1, 600, 500, 0, piece.data[:20], False)
    node.gate.received("b", first)
    node.engine.tick()
    assert node.engine.commit_index == committed
    assert node.machine.commands == []
    assert outcome == []


def test_a_whole_checkpoint_replaces_state_and_log(node: Node) -> None:
    filled(node)
    head = CheckpointHead((NOTHING, 499, 2), entry(500, 2, b"last"))
    (reply,) = install(node, piece_of(node.folder, head))
    assert node.machine.commands == [b"state"]
    assert (reply.next_index, reply.is_success) == (501, True)
    again = node.restart()
    assert again.machine.commands == [b"state"]
    assert (again.engine.applied_index, again.journal.last_index) == (500, 500)


def test_a_checkpoint_of_a_term_that_a_power_cut_made_the_journal_forget_is_lived_with(node: Node) -> None:
    filled(node)
    node.sync()
    node.close()  # what follows is not in the journal: the power fails before
    draft = node.folder / "draft"
    write_checkpoint(draft, CheckpointHead((NOTHING, 499, 2), entry(500, 3, b"last")), [b"state"], fsync=False)
    node.checkpoints.publish(draft, 500)
    again = Node(node.folder)
    assert (again.journal.term, again.journal.vote, again.journal.last_term) == (3, None, 3)
    once_more = again.restart()
    assert (once_more.journal.term, once_more.engine.applied_index) == (3, 500)
    once_more.close()


def test_fault_h3_a_damaged_checkpoint_is_neither_loaded_nor_acknowledged(node: Node) -> None:
    filled(node, commit=10)
    before = list(node.machine.commands)
    head = CheckpointHead((NOTHING, 499, 2), entry(500, 2))
    assert install(node, piece_of(node.folder, head, flip=60)) == []
    assert node.machine.commands == before
    assert node.checkpoints.newest() is None


def test_fault_h5_an_older_checkpoint_rolls_nothing_back(node: Node) -> None:
    filled(node, commit=10)
    before = list(node.machine.commands)
    assert install(node, piece_of(node.folder, CheckpointHead((NOTHING, 4, 1), entry(5, 1)), term=1)) == []
    assert node.machine.commands == before
    assert node.engine.applied_index == 10


def test_fault_h5_a_checkpoint_older_than_the_log_rolls_nothing_back(node: Node) -> None:
    install(node, piece_of(node.folder, CheckpointHead((NOTHING, 499, 2), entry(500, 2))))
    assert node.engine.applied_index == 500
    assert install(node, piece_of(node.folder, CheckpointHead((NOTHING, 299, 2), entry(300, 2)))) == []
    assert node.engine.applied_index == 500
    assert node.checkpoints.indexes() == [500]


def test_a_leader_is_heard_while_its_checkpoint_is_installed_and_its_entries_wait(node: Node) -> None:
    filled(node, commit=10)
    before = list(node.machine.commands)
    head = CheckpointHead((NOTHING, 499, 2), entry(500, 2))
    node.get("b", piece_of(node.folder, head))
    assert node.engine.is_installing
    node.engine.heard_at_s = heard_at_s = time.monotonic() - 100
    (reply,) = node.get("b", append(500, entries(501, 502, 2), term=2, previous_term=2, commit=502))
    assert isinstance(reply, AppendReply)
    assert (reply.is_success, reply.is_reset) == (False, False), "neither acknowledged nor asked for again"
    assert node.engine.heard_at_s > heard_at_s + 90
    assert node.engine.leader_name == "b"
    assert node.get("c", PreVote(2, 1, 3, 900, 2)) == [PreVoteReply(2, 1, False)]
    assert node.machine.commands == before
    assert node.checkpoints.newest() is None, "it gets its name only when it was proved"
    while node.engine.has_more_work:
        node.engine.tick()
    node.sync()
    assert node.machine.commands == [b"state"]
    (reply,) = node.get("b", append(500, entries(501, 502, 2), term=2, previous_term=2, commit=502))
    assert isinstance(reply, AppendReply)
    assert (reply.next_index, reply.is_success) == (503, True)


def test_a_second_checkpoint_that_comes_during_an_installation_does_not_spoil_it(node: Node) -> None:
    filled(node)
    node.get("b", piece_of(node.folder, CheckpointHead((NOTHING, 499, 2), entry(500, 2))))
    second = piece_of(node.folder, CheckpointHead((NOTHING, 599, 2), entry(600, 2)))
    (reply,) = install(node, second)
    assert (reply.next_index, node.checkpoints.indexes()) == (501, [500])


def test_a_leader_lives_on_the_replies_of_the_only_follower_while_it_gets_a_checkpoint(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.lead()
    term, began_s = node.journal.term, time.monotonic()
    now_s = began_s
    monkeypatch.setattr(library, "monotonicTime", lambda: now_s)
    for turn in range(1, 21):  # ten times as long as a leader leads without a word from a majority
        now_s = began_s + turn * ELECTION_TIMEOUT_S[1] / 2
        node.gate.received("c", AppendReply(term, turn, 2, False, False))
        node.engine.tick()
    assert node.engine.is_leader
    assert node.engine.match_index("c") == node.journal.last_index, "nothing was taken for an acknowledgement or a wish"


def checkpointed(folder: Path, *at: int, last: int = 10) -> Node:
    """A closed follower with a log up to `last` and a checkpoint at each index of `at`."""
    node = filled(Node(folder), last=last, commit=last)
    for index in at:
        draft = folder / "draft"
        write_checkpoint(
            draft, CheckpointHead(entry(index - 1, 1), entry(index, 1)), node.machine.commands[: index - 1], fsync=False
        )
        node.checkpoints.publish(draft, index)
    node.close()
    return node


def test_fault_h1_a_damaged_checkpoint_refuses_the_start_and_says_the_way_out(folder: Path) -> None:
    node = checkpointed(folder, 4, 8)
    newest = node.checkpoints.path(8)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(
        StorageCorrupt, match=r"journal reaches back to the checkpoint before it .* move checkpoint-0*8"
    ):
        Node(folder)
    newest.rename(folder / "moved away")
    again = Node(folder)
    filled_again = again.get("b", append(10, [], commit=10))
    again.engine.tick()
    assert filled_again
    assert again.machine.commands == node.machine.commands


def test_fault_h2_entries_after_the_checkpoint_are_kept(folder: Path) -> None:
    checkpointed(folder, 6)
    again = Node(folder)
    assert again.journal.last_index == 10
    assert again.engine.applied_index == 6
    assert len(again.machine.commands) == 5


def test_fault_h1_a_missing_checkpoint_refuses_the_start(folder: Path) -> None:
    node = filled(Node(folder))
    install(node, piece_of(folder, CheckpointHead((NOTHING, 499, 2), entry(500, 2))))
    node.close()
    node.checkpoints.path(500).unlink()
    with pytest.raises(StorageCorrupt, match="checkpoint before it is missing"):
        Node(folder)


@pytest.mark.parametrize(("name", "limit"), [("KEEP_ENTRIES", 3), ("KEEP_SIZE", 2500)])
def test_the_log_keeps_a_tail_behind_a_checkpoint(
    node: Node, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    monkeypatch.setattr(raft_engine, name, limit)
    node.lead()
    for _ in range(10):
        node.propose(b"x" * 1000)
        node.sync()
        node.acknowledge("b")
    node.engine.tick()
    node.engine.checkpoint_soon()
    node.engine.tick()
    deadline = time.monotonic() + 20
    while node.engine.checkpoints.writer.is_writing:
        assert time.monotonic() < deadline
        node.engine.tick()
    index = node.engine.checkpoint_index
    assert node.journal.first_index == index - 4
    assert node.checkpoints.indexes() == [index]
