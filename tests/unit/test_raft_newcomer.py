"""What may a master with an empty disk hear and say (fault l)? Message by message, one node, no network."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.errors import ProtocolError
from dfs.master.raft_join import Membership, Standing
from dfs.master.raft_wire import (
    AppendReply,
    JoinQuery,
    JoinReply,
    PreVote,
    ReadRound,
    RequestVote,
    StaleTerm,
    TakeOver,
    Vote,
)
from dfs.testing.raft_single import SingleNode as Node
from dfs.testing.raft_single import append, entries


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    node = Node(folder)
    yield node
    node.engine.stop()


def newcomer(folder: Path) -> tuple[Node, Membership]:
    membership = Membership(folder, "a", ("b", "c"), fsync=False)
    node = Node(folder, membership=membership)
    membership.round_due(100.0)
    return node, membership


def test_fault_l_an_empty_master_hears_nothing_before_all_have_told_their_terms(folder: Path) -> None:
    node, membership = newcomer(folder)
    answers = [
        *node.get("b", append(1, entries(2, 5), previous_term=0)),
        *node.get("b", RequestVote(9, 9, 9, True)),
        *node.get("b", PreVote(9, 1, 10, 9, 9)),
        *node.get("b", ReadRound(9, 1)),
        *node.get("b", StaleTerm(9)),
    ]
    assert answers == []
    assert (node.journal.term, node.journal.last_index) == (0, 1)
    assert node.get("b", JoinQuery(1, 77)) == [JoinReply(0, 77, Standing.EMPTY, 1)]
    assert not membership.may_follow
    node.engine.stop()


def test_fault_l_it_takes_entries_then_but_none_of_a_leader_older_than_any_term_told(folder: Path) -> None:
    node, membership = newcomer(folder)
    node.get("b", JoinReply(5, membership.round, Standing.LEADER, 5))
    node.get("c", JoinReply(6, membership.round, Standing.MEMBER, 5))
    assert node.journal.term == 6
    assert node.get("b", append(1, entries(2, 5, 5), term=5, previous_term=0)) == [StaleTerm(6)]
    assert node.journal.last_index == 1
    answer = node.get("c", append(1, entries(2, 5, 5), term=6, previous_term=0))
    assert [type(message) for message in answer] == [AppendReply]
    assert node.journal.last_index == 5
    node.engine.stop()


def test_fault_l_it_votes_for_nobody_before_it_has_caught_up(folder: Path) -> None:
    node, membership = newcomer(folder)
    node.get("b", JoinReply(5, membership.round, Standing.LEADER, 4))
    node.get("c", JoinReply(5, membership.round, Standing.MEMBER, 2))
    for message in (RequestVote(6, 9, 9, True), PreVote(6, 1, 7, 9, 9), TakeOver(5)):
        assert node.get("c", message) == []
    assert not node.engine.may_campaign
    node.get("b", append(1, entries(2, 4, 5), term=5, previous_term=0))
    node.sync()
    assert membership.is_caught_up(node.journal.term, node.journal.durable_index)
    membership.admit()
    assert node.get("c", RequestVote(6, 4, 5, True)) == [Vote(6)]
    node.engine.stop()


def test_fault_l_what_a_member_says_of_itself_is_what_it_is(node: Node) -> None:
    assert node.get("b", JoinQuery(0, 3)) == [JoinReply(0, 3, Standing.BLANK, 1)]
    node.lead()
    assert node.get("b", JoinQuery(0, 4)) == [JoinReply(node.journal.term, 4, Standing.LEADER, node.journal.last_index)]
    with pytest.raises(ProtocolError, match="standing 9 is unknown"):
        node.gate.received("b", JoinReply(1, 1, 9, 1))
    assert not node.failures
