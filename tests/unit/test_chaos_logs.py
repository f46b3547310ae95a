"""The judge of growing files: every broken promise of record append is found, and nothing else is called broken."""

from __future__ import annotations

import itertools

import pytest

from dfs.chaos.records import Acknowledged, make_record
from dfs.checksum import crc32c
from dfs.testing.chaos.logs import Logs, _Append, _Look

SIZE = 60
PATH = "/chaos/log0.0"


class Story:
    """Builds the file of one log and what its clients were told; moments count up."""

    def __init__(self) -> None:
        self.logs = Logs(1)
        self.content = b""
        self._moments = itertools.count(1)

    def moment(self) -> int:
        return next(self._moments)

    def append(self, appender: int, sequence: int, *, is_told: bool = True, is_kept: bool = True) -> None:
        begun, offset = self.moment(), len(self.content)
        self.logs.sending(PATH, appender, sequence)
        if is_kept:
            self.content += make_record(appender, sequence, SIZE)
        if is_told:
            told = Acknowledged(appender, sequence, offset)
            self.logs.appended(PATH, _Append(told, SIZE, begun, self.moment()))

    def look(self, seen: bytes, begun: int = 0) -> None:
        self.logs.looked(PATH, _Look("reader", len(seen), crc32c(seen), begun or self.moment(), self.moment()))

    def broken(self) -> list[str]:
        return self.logs.check(PATH, self.content)


def test_a_log_that_keeps_its_promises_is_called_sound() -> None:
    story = Story()
    for sequence, appender in itertools.product(range(1, 4), (1, 2)):
        story.append(appender, sequence)
        story.look(story.content)
    story.append(1, 4, is_told=False)  # it happened, and nobody was told
    story.append(2, 4, is_told=False, is_kept=False)
    assert not story.broken()


def test_a_lost_acknowledged_record_is_found() -> None:
    story = Story()
    story.append(1, 1)
    story.append(1, 2, is_kept=False)
    assert story.broken()


def test_a_doubled_record_is_found() -> None:
    story = Story()
    story.append(1, 1)
    story.content += make_record(1, 1, SIZE)
    assert story.broken()


def test_a_record_that_nobody_sent_is_found() -> None:
    story = Story()
    story.append(1, 1)
    story.content += make_record(1, 2, SIZE)
    assert "were ever sent" in story.broken()[0]


def test_a_record_before_one_that_was_acknowledged_when_it_was_sent_is_found() -> None:
    story = Story()
    story.append(1, 1)
    first = story.logs._volumes[PATH].appends.pop()
    story.append(2, 1)
    later = story.moment()
    story.logs.appended(PATH, _Append(first.told, SIZE, later, later + 1))
    assert "stands before" in story.broken()[0]


@pytest.mark.parametrize("size", [SIZE, 2 * SIZE - 1])
def test_a_reader_that_misses_what_was_acknowledged_before_is_found(size: int) -> None:
    story = Story()
    story.append(1, 1)
    story.append(1, 2)
    story.look(story.content[:size])
    assert "saw less" in story.broken()[0]


def test_a_reader_that_began_before_the_acknowledgement_may_miss_the_record() -> None:
    story = Story()
    story.append(1, 1)
    begun, before = story.moment(), story.content
    story.append(1, 2)
    story.look(before, begun)
    assert not story.broken()


def test_a_reader_that_sees_less_than_an_earlier_one_is_found() -> None:
    story = Story()
    story.append(1, 1, is_told=False)
    story.look(story.content)
    story.look(b"")
    assert "saw less" in story.broken()[0]


def test_a_reader_of_bytes_that_the_log_does_not_hold_in_the_end_is_found() -> None:
    story = Story()
    story.append(1, 1)
    story.look(story.content + make_record(1, 2, SIZE))
    story.look(bytes(SIZE))
    assert len([words for words in story.broken() if "first bytes" in words]) == 2
