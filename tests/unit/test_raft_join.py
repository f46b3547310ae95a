"""When does the word of a master with an empty disk count again? The rules, answer by answer.

Owns: `Membership` and `StateAge`. Refuses to know: links and elections.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dfs.errors import StorageCorrupt
from dfs.master.raft_age import ASK_INTERVAL_S, StateAge
from dfs.master.raft_join import ASK_INTERVAL_S as JOIN_INTERVAL_S
from dfs.master.raft_join import MARKER, ROUND_TIMEOUT_S, Membership, Standing, write_marker

EMPTY, BLANK, MEMBER, LEADER = Standing


def newcomer(folder: Path, *peers: str) -> Membership:
    """Return the membership of an empty master that has just asked."""
    made = Membership(folder, "a", peers, fsync=False)
    assert made.round_due(100.0) == made.round
    return made


def test_an_empty_master_may_neither_vote_nor_follow(tmp_path: Path) -> None:
    made = newcomer(tmp_path, "b", "c")
    assert (made.is_member, made.may_follow, made.is_founder) == (False, False, False)


def test_it_follows_once_all_others_have_told_their_terms(tmp_path: Path) -> None:
    made = newcomer(tmp_path, "b", "c")
    assert not made.answered("b", made.round, 7, LEADER, 50)
    assert not made.may_follow
    assert made.answered("c", made.round, 9, MEMBER, 40)
    assert (made.may_follow, made.term) == (True, 9)


def test_an_answer_to_another_life_or_round_is_no_answer(tmp_path: Path) -> None:
    made, other = newcomer(tmp_path, "b", "c"), newcomer(tmp_path, "b", "c")
    assert made.round != other.round
    for peer in ("b", "c"):
        assert not made.answered(peer, other.round, 1, MEMBER, 1)
        assert not made.answered(peer, made.round - 1, 1, MEMBER, 1)
    assert not made.may_follow


def test_answers_of_different_rounds_are_not_added_up(tmp_path: Path) -> None:
    made = newcomer(tmp_path, "b", "c")
    made.answered("b", made.round, 0, EMPTY, 1)
    before = made.round
    assert made.round_due(100.0 + 2 * JOIN_INTERVAL_S) == before, "the same round is asked again while it is young"
    assert made.round_due(100.0 + 2 * ROUND_TIMEOUT_S) == before + 1
    made.answered("c", made.round, 0, EMPTY, 1)
    assert not made.is_founder


@pytest.mark.parametrize("standings", [(EMPTY, EMPTY), (EMPTY, BLANK), (BLANK, BLANK)])
def test_masters_that_are_all_empty_found_a_cluster(standings: tuple[Standing, Standing], tmp_path: Path) -> None:
    made = newcomer(tmp_path, "b", "c")
    for peer, standing in zip("bc", standings, strict=True):
        made.answered(peer, made.round, 0, standing, 1)
    assert made.is_founder
    made.admit()
    assert Membership(tmp_path, "a", ("b", "c"), fsync=False).is_member


def test_two_empty_masters_of_three_never_make_a_cluster_with_or_without_the_third(tmp_path: Path) -> None:
    made = newcomer(tmp_path, "b", "c")
    made.answered("b", made.round, 0, EMPTY, 1)
    assert not any((made.is_founder, made.may_follow))
    made.answered("c", made.round, 5, MEMBER, 9)
    assert not any((made.is_founder, made.may_follow))
    assert not made.is_caught_up(5, 100)


@pytest.mark.parametrize(
    ("peer_count", "members", "follows"),
    [(1, 1, True), (2, 1, False), (2, 2, True), (3, 2, True), (4, 2, False), (4, 3, True), (8, 4, False), (8, 5, True)],
)
def test_enough_members_are_needed(peer_count: int, members: int, follows: bool, tmp_path: Path) -> None:
    peers = [f"p{number}" for number in range(peer_count)]
    made = newcomer(tmp_path, *peers)
    for number, peer in enumerate(peers):
        made.answered(peer, made.round, 3, MEMBER if number < members else EMPTY, 9)
    assert made.may_follow is follows
    assert not made.is_founder


def test_it_is_a_member_when_it_holds_on_disk_what_the_leader_had(tmp_path: Path) -> None:
    made = newcomer(tmp_path, "b", "c")
    made.answered("b", made.round, 4, LEADER, 50)
    made.answered("c", made.round, 4, MEMBER, 45)
    made.matched = (4, 49)
    assert not made.is_caught_up(4, 49)
    made.matched = (4, 60)
    assert not made.is_caught_up(4, 49), "not yet on disk"
    assert not made.is_caught_up(5, 60), "that leader is not the leader any more"
    assert made.is_caught_up(4, 50)


def test_what_it_agreed_upon_with_a_leader_of_old_does_not_count(tmp_path: Path) -> None:
    made = newcomer(tmp_path, "b", "c")
    made.answered("b", made.round, 4, LEADER, 50)
    made.answered("c", made.round, 6, MEMBER, 70)
    made.matched = (4, 60)
    assert not made.is_caught_up(4, 60), "c has promised term 6: the leader of term 4 is none"
    made.answered("c", made.round, 6, LEADER, 70)
    made.matched = (6, 70)
    assert made.is_caught_up(6, 70)


def test_a_master_alone_founds_its_cluster(tmp_path: Path) -> None:
    assert newcomer(tmp_path).is_founder


def test_a_member_stays_one_and_asks_nobody(tmp_path: Path) -> None:
    write_marker(tmp_path, "a", fsync=True)
    made = Membership(tmp_path, "a", ("b", "c"), fsync=True)
    assert (made.is_member, made.may_follow, made.is_founder) == (True, True, False)
    assert made.round_due(100.0) is None
    made.check(has_journal=True)


def test_a_member_without_its_journal_refuses_to_start(tmp_path: Path) -> None:
    write_marker(tmp_path, "a", fsync=False)
    with pytest.raises(StorageCorrupt, match=r"there is none any more; replace this master as docs/operations\.md"):
        Membership(tmp_path, "a", ("b", "c"), fsync=False).check(has_journal=False)


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", b'{"format":1,"master":"b"}', b'{"format":2,"master":"a"}', b'{"format":1,"master":"\xff"}'],
)
def test_a_marker_of_somebody_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_bytes(content)
    with pytest.raises(StorageCorrupt, match="does not say that this is master 'a'"):
        Membership(tmp_path, "a", ("b", "c"), fsync=False)


# --- the age of the state


def test_the_age_counts_from_the_question_and_waits_for_the_log() -> None:
    age = StateAge()
    assert age.staleness_s(10.0, 100) is None
    assert age.question_due(10.0) == 1
    assert age.question_due(10.0 + ASK_INTERVAL_S / 2) is None
    age.answered(1, 101)
    assert age.staleness_s(11.0, 100) is None, "entry 101 is not applied here yet"
    assert age.staleness_s(12.0, 101) == 2.0
    assert age.staleness_s(20.0, 101) == 10.0, "it grows when nobody answers"


def test_unasked_and_late_answers_make_nothing_younger() -> None:
    age = StateAge()
    assert age.question_due(10.0) == 1
    age.answered(7, 1)
    assert age.staleness_s(11.0, 100) is None
    assert age.question_due(12.0) == 2
    age.answered(2, 50)
    age.answered(1, 50)
    assert age.staleness_s(13.0, 50) == 1.0
