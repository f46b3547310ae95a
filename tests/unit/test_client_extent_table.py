"""Is the extent of any offset found, however the masters cut a file into pages?"""

from __future__ import annotations

import random

import pytest

from dfs.client import extent_table
from dfs.client.extent_table import ExtentTable
from dfs.errors import Conflict, ProtocolError
from dfs.ids import new_chunk_handle, new_server_id
from dfs.net.messages import LocateReply
from dfs.net.parts import FileStatus, Kind, LocatedExtent, ServerInfo

SERVER = ServerInfo(new_server_id(), "c1", "127.0.0.1:7421", "r1", is_alive=True)
STATUS = FileStatus("/f", Kind.FILE, 0, 0, 0, 1, 1, 3, 0)


class Masters:
    """Gives pages of a file whose extents have these lengths."""

    def __init__(self, lengths: list[int], page_size: int) -> None:
        self.lengths = lengths
        self.page_size = page_size
        self.asked: list[int] = []

    def locate(self, index: int) -> LocateReply:
        self.asked.append(index)
        extents = tuple(
            LocatedExtent(new_chunk_handle(), 0, length, length, 0, b"token", (0, 7))
            for length in self.lengths[index : index + self.page_size]
        )
        has_more = index + self.page_size < len(self.lengths)
        return LocateReply(STATUS, sum(self.lengths[:index]), extents, (SERVER,), has_more)


@pytest.mark.parametrize("page_size", [1, 3, 7, 100])
def test_any_offset_finds_its_extent(page_size: int) -> None:
    chance = random.Random(page_size)
    lengths = [chance.randint(1, 50) for _ in range(60)]
    masters = Masters(lengths, page_size)
    table = ExtentTable(masters.locate(0), masters.locate)
    for _ in range(500):
        offset = chance.randrange(sum(lengths) + 20)
        found = table.find(offset)
        if offset >= sum(lengths):
            assert found is None
            continue
        assert found is not None
        assert found.offset <= offset < found.offset + found.extent.length
        assert (found.offset, found.extent.length) == (sum(lengths[: found.index]), lengths[found.index])
        assert found.replicas == (SERVER,), "an index that names no server is left out"
        assert len(table._pages) <= extent_table.PAGES_MAX


def test_an_empty_file_has_no_extent() -> None:
    masters = Masters([], 5)
    assert ExtentTable(masters.locate(0), masters.locate).find(0) is None


def test_a_page_is_asked_for_once_while_it_is_kept() -> None:
    masters = Masters([10] * 6, 2)
    table = ExtentTable(masters.locate(0), masters.locate)
    for offset in (55, 0, 25, 59, 10, 30):
        table.find(offset)
    assert masters.asked == [0, 2, 4]


def test_a_failed_question_is_asked_again() -> None:
    masters = Masters([10] * 4, 2)
    failures = [Conflict("changed"), None]

    def locate(index: int) -> LocateReply:
        if (failure := failures.pop(0)) is not None:
            raise failure
        return masters.locate(index)

    table = ExtentTable(masters.locate(0), locate)
    with pytest.raises(Conflict):
        table.find(25)
    found = table.find(25)
    assert found is not None
    assert found.index == 2


def test_pages_that_do_not_follow_each_other_are_refused() -> None:
    masters = Masters([10] * 4, 2)
    table = ExtentTable(masters.locate(0), lambda _index: masters.locate(3))
    with pytest.raises(ProtocolError, match="other extents"):
        table.find(25)
