"""Damaged bytes at every parser: a result or an error of the tree, nothing else. `make fuzz` looks deeper."""

from __future__ import annotations

import pytest

from dfs.master.raft_records import Kind, encode_head, encode_record
from dfs.testing.fuzz.mutator import damaged
from dfs.testing.fuzz.targets import TARGETS, check

COUNT = 400  # inputs of each parser; about two seconds together


@pytest.mark.parametrize("name", TARGETS)
def test_no_damage_makes_a_parser_fail_in_another_way_than_by_its_errors(name: str) -> None:
    count = 0
    for data in damaged(TARGETS[name].samples, 1, COUNT):
        count += 1
        try:
            check(name, data)
        except Exception as error:
            raise AssertionError(f"{name} with {data!r}: {error!r}") from error
    assert count > COUNT


@pytest.mark.parametrize("name", sorted(TARGETS.keys() - {"hello", "welcome", "journal"}))
def test_the_sound_samples_are_understood(name: str) -> None:
    """Else the damage would never get past the first check."""
    assert TARGETS[name].samples
    for sample in TARGETS[name].samples:
        assert TARGETS[name].run(sample) is None


def test_the_same_seed_damages_in_the_same_way() -> None:
    samples = (b"one sample", b"another")
    assert list(damaged(samples, 5, 50)) == list(damaged(samples, 5, 50))
    assert list(damaged(samples, 5, 50)) != list(damaged(samples, 6, 50))


def test_a_number_that_no_state_can_hold_is_damage_of_an_export() -> None:
    sample = TARGETS["export"].samples[0]
    assert b'"inode":2' in sample
    check("export", sample.replace(b'"inode":2', b'"inode":99999999999999999999999'))


def test_a_vote_for_no_name_is_damage_of_a_journal() -> None:
    head = encode_head(1, 0, 7, "m1")
    check("segment", head + encode_record(Kind.VOTE, 3, 0, b"\xff", salt=7))


@pytest.mark.parametrize("name", ["undo_journal", "chaos_report", "identity", "scrub_position", "settings", "export"])
@pytest.mark.parametrize("damage", [b'{"name": "\xff"}\n', b'{"x": ' + b"[" * 50_000 + b"\n"], ids=["no text", "deep"])
def test_text_that_is_none_and_nesting_without_end_are_damage_of_a_file(name: str, damage: bytes) -> None:
    for sample in TARGETS[name].samples:
        check(name, damage + sample)
        check(name, sample + damage)
