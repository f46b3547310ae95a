"""Does a directory's sorted table behave as a sorted dict, from no entry to many blocks?

Owns: the entry table and the packed extent list. Refuses to know: the tree.
"""

from __future__ import annotations

import gc
from random import Random

import pytest

from dfs.ids import ChunkHandle
from dfs.master.state import extents
from dfs.master.state.entries import BLOCK_MAX, EntryTable
from dfs.master.state.namespace import File
from dfs.master.state.views import Extent


@pytest.mark.parametrize("seed", range(4))
def test_table_agrees_with_a_dict_in_any_order_of_changes(seed: int) -> None:
    rng = Random(seed)
    table: EntryTable[int] = EntryTable()
    known: dict[str, int] = {}
    for number in range(3 * BLOCK_MAX):
        name = f"{rng.randrange(4 * BLOCK_MAX):x}"
        if name not in known:
            table.add(name, number)
            known[name] = number
        elif rng.random() < 0.5:
            table.remove(name)
            del known[name]
    table.check_invariants()
    assert list(table.items()) == sorted(known.items())
    assert all(table.get(name) == number for name, number in known.items())
    assert table.get("no such name") is None
    for name in rng.sample(sorted(known), len(known)):
        table.remove(name)
    table.check_invariants()
    assert len(table) == 0
    assert list(table.items()) == []


def test_names_of_all_alphabets_stand_in_code_point_order() -> None:
    rng = Random(3)
    alphabet = ["a", "b", "\x01", "\n", "é", "ß", "中", "\uffff", "\U00010000", "\U0010ffff", "z"]
    table: EntryTable[int] = EntryTable()
    known: dict[str, int] = {}
    for number in range(10 * BLOCK_MAX):
        name = "".join(rng.choices(alphabet, k=rng.randint(1, 4)))
        if name not in known:
            table.add(name, number)
            known[name] = number
    table.check_invariants()
    assert len(known) > 5 * BLOCK_MAX
    assert list(table.items()) == sorted(known.items())
    for name, number in known.items():
        assert table.get(name) == number
        assert table.get(name + "a") == known.get(name + "a")
        assert table.get(name[:-1]) == known.get(name[:-1])
        (found, _) = table.page(name[:-1], 1)
        assert found == [min(item for item in known.items() if item[0] > name[:-1])]


def test_a_replaced_node_stands_where_the_old_one_stood() -> None:
    table: EntryTable[int] = EntryTable()
    for number in range(3 * BLOCK_MAX):
        table.add(f"{number:06d}", number)
    for number in range(0, 3 * BLOCK_MAX, 7):
        table.replace(f"{number:06d}", -number)
    table.check_invariants()
    assert [node for _, node in table.items()] == [n if n % 7 else -n for n in range(3 * BLOCK_MAX)]


def test_files_in_a_directory_are_none_of_the_garbage_collectors_business() -> None:
    table: EntryTable[File] = EntryTable()
    for number in range(10 * BLOCK_MAX):
        table.add(f"{number:06d}", File(number, number, 0, 1, 0, b""))
    gc.collect()
    assert not any(gc.is_tracked(nodes) for nodes in table._nodes)
    assert not gc.is_tracked(next(table.nodes()))


def test_names_that_arrive_in_order_fill_their_blocks() -> None:
    table: EntryTable[int] = EntryTable()
    for number in range(4 * BLOCK_MAX):
        table.add(f"{number:06d}", number)
    table.check_invariants()
    assert [len(nodes) for nodes in table._nodes] == [BLOCK_MAX] * 4


@pytest.mark.parametrize("count", [0, 1, BLOCK_MAX - 1, BLOCK_MAX, BLOCK_MAX + 1, 2 * BLOCK_MAX, 2 * BLOCK_MAX + 1])
@pytest.mark.parametrize("limit", [1, 7, 1000, 5000])
def test_pages_cover_all_entries_once_and_say_when_they_end(count: int, limit: int) -> None:
    table: EntryTable[int] = EntryTable()
    for number in reversed(range(count)):
        table.add(f"{number:06d}", number)
    seen: list[tuple[str, int]] = []
    after, has_more, pages = "", True, 0
    while has_more:
        page, has_more = table.page(after, limit)
        seen += page
        after = page[-1][0] if page else after
        pages += 1
    assert seen == list(table.items())
    assert pages == max(1, -(-count // limit)), "a page was empty or short"


def test_a_page_begins_after_a_name_that_is_not_there() -> None:
    table: EntryTable[int] = EntryTable()
    for number, name in enumerate(["a", "c", "e"]):
        table.add(name, number)
    assert table.page("b", 1) == ([("c", 1)], True)
    assert table.page("e", 1) == ([], False)
    assert table.page("\U0010ffff", 9) == ([], False)


def _handle(number: int) -> ChunkHandle:
    return ChunkHandle(number.to_bytes(16, "big"))


def test_windows_of_a_packed_list_are_slices_of_the_plain_one() -> None:
    rng = Random(5)
    plain = [Extent(_handle(number), rng.randrange(1 << 28), rng.randint(1, 1 << 28)) for number in range(40)]
    packed = extents.pack(plain)
    size = sum(extent.length for extent in plain)
    assert (extents.count(packed), extents.end(packed)) == (40, size)
    assert list(extents.handles(packed)) == [extent.handle for extent in plain]
    for first in range(42):
        offset, found = extents.window(packed, size, first, 7)
        assert offset == sum(extent.length for extent in plain[:first])
        assert list(found) == plain[first : first + 7]


def test_an_appended_list_is_the_list_of_both() -> None:
    whole, more = extents.whole_chunk(_handle(1)), [Extent(_handle(2), 5, 6), Extent(_handle(1), 0, 3)]
    joined = extents.expand(whole, 100) + extents.pack(more, 100)
    assert extents.window(joined, 109, 0, 9) == (0, (Extent(_handle(1), 0, 100), *more))
    assert extents.window(whole, 100, 0, 9) == (0, (Extent(_handle(1), 0, 100),))
    assert extents.window(whole, 100, 1, 9) == (100, ())
    assert extents.window(extents.EMPTY, 0, 0, 9) == (0, ())


def test_cutting_extents_off_the_end_loses_none() -> None:
    plain = [Extent(_handle(number), 0, 3) for number in range(10)]
    rest, cut = extents.cut_last(extents.pack(plain), 4)
    assert [*extents.handles(rest), *extents.handles(cut)] == [extent.handle for extent in plain]
    assert (extents.count(cut), extents.end(rest)) == (4, 18)
    assert extents.cut_last(extents.whole_chunk(_handle(1)), 4) == (b"", _handle(1))
