"""Is each acknowledged record in the file exactly once, whatever a seed does to servers, masters and appenders?

The real tails, seals and state; the world around them loses calls and replies, crashes servers in the middle of writes,
cuts them off, lets two masters seal at once, and does all that between any two steps of a call. Each mutation below
takes one rule of docs/adr/0015 away; a simulation that cannot find that out would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.chunk.tails.log import Round, TailFile
from dfs.chunk.tails.open_tail import OpenTail
from dfs.errors import DfsError
from dfs.master.state import tails as memory
from dfs.net.messages import ReplicateRecords
from dfs.testing.tail_world import run_seed as run

Mutation: TypeAlias = Callable[[pytest.MonkeyPatch], None]
SEEDS = 40
SEEDS_PER_TEST = 20


@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_acknowledged_records_are_there_exactly_once(first: int) -> None:
    records = seals = 0
    for seed in range(first, first + SEEDS_PER_TEST):
        world, count = run(seed)
        records += count
        seals += world.sealed_count
    assert records > 500, "something was appended"
    assert seals > 50, "and tails were sealed meanwhile"


def test_a_seed_replays_exactly() -> None:
    (first, _), (second, _) = run(7), run(7)
    assert (first.acknowledged, first.seen) == (second.acknowledged, second.seen)


def acknowledge_without_the_chain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OpenTail, "_store", _storing_alone)


def _storing_alone(tail: OpenTail, message: ReplicateRecords, data: bytes, *, is_head: bool) -> bool:
    tail.file.stage(data)
    tail.file.append(Round(message.offset, message.groups))
    tail.durable = tail._committed = tail.file.length
    return True


def forget_appenders_at_a_seal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(memory.TailTable, "seeds", lambda _table, _inode: ())


def seal_without_a_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OpenTail, "fence", lambda tail: tail.durable)


def acknowledge_after_a_fence(patch: pytest.MonkeyPatch) -> None:
    def writing(file: TailFile, item: Round) -> None:
        append(file, item)
        written.add(id(file))

    def is_over(tail: OpenTail) -> bool:
        return tail._is_fenced and id(tail.file) not in written

    written: set[int] = set()
    append = TailFile.append
    patch.setattr(TailFile, "append", writing)
    patch.setattr(OpenTail, "_is_over", is_over)


def write_into_a_sealed_replica(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TailFile, "end_writing", lambda _file: None)


@pytest.mark.parametrize(
    "mutation",
    [
        write_into_a_sealed_replica,
        acknowledge_without_the_chain,
        forget_appenders_at_a_seal,
        seal_without_a_fence,
        acknowledge_after_a_fence,
    ],
)
def test_a_missing_rule_is_found_out(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    for seed in range(150):
        try:
            run(seed)
        except (AssertionError, DfsError):
            return
    pytest.fail("150 seeds found nothing wrong")


# --- the judge itself


@pytest.mark.parametrize(
    ("content", "told", "words"),
    [
        ([(1, 1), (1, 1)], [], "doubled"),
        ([(1, 2)], [], "missing"),
        ([(1, 1), (1, 3)], [], "missing"),
        ([(1, 1)], [(1, 2, 0)], "acknowledged"),
        ([(1, 1), (2, 1)], [(2, 1, 0)], "acknowledged"),
    ],
)
def test_the_judge_finds_every_broken_promise(
    content: list[tuple[int, int]], told: list[tuple[int, int, int]], words: str
) -> None:
    data = b"".join(make_record(appender, sequence, 60) for appender, sequence in content)
    with pytest.raises(AssertionError, match=words):
        check_exactly_once(data, [Acknowledged(*item) for item in told])


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:70] + b"?" + data[71:]])
def test_the_judge_finds_torn_and_changed_records(change: Callable[[bytes], bytes]) -> None:
    data = make_record(1, 1, 60) + make_record(1, 2, 60)
    assert len(check_exactly_once(data, [Acknowledged(1, 1, 0)])) == 2
    with pytest.raises(AssertionError, match=r"torn|other bytes"):
        check_exactly_once(change(data), [])
