"""Work per item does not grow with the number of files: counted in calls, not in seconds (bench/linear.py times it)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Mapping
from types import FrameType
from typing import Any

import pytest

import bench.linear
from bench.linear import WORKS, Filled
from dfs.ids import ChunkHandle
from dfs.master.healing import lookout

FEW, MANY = 600, 4_800
RATIO_MAX = 1.25  # eight times as many files; anything quadratic would be near 8


class Calls:
    """Counts the calls that this thread makes, of Python and of C functions."""

    def __init__(self) -> None:
        self.count = 0

    def _heard(self, _frame: FrameType, event: str, _argument: Any) -> None:
        if event in ("call", "c_call"):
            self.count += 1

    def __enter__(self) -> Calls:
        sys.setprofile(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@pytest.fixture(scope="module", autouse=True)
def small_directories() -> Iterable[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.linear, "PER_DIRECTORY", 100)
        patch.setattr(bench.linear, "PUT_FILES", 1_000)
        yield


@pytest.mark.parametrize("name", WORKS)
def test_calls_per_item_do_not_grow_with_the_number_of_files(name: str) -> None:
    async def calls_per_item(count: int) -> float:
        filled = await Filled.fill(count)
        with Calls() as calls:
            items = await WORKS[name](filled)
        assert items > 0
        return calls.count / items

    few, many = (asyncio.run(calls_per_item(count)) for count in (FEW, MANY))
    assert many / few <= RATIO_MAX, f"{few:.1f} calls for each of {FEW}, {many:.1f} for each of {MANY}"


def test_a_repair_of_many_walks_looks_at_each_chunk_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many chunks are kept in mind: with many more to repair, the walks must not all begin at the beginning."""
    monkeypatch.setattr(lookout, "BUCKET_MAX", 60)
    monkeypatch.setattr(lookout, "LOW_WATER", 20)

    async def looked_at(count: int) -> float:
        filled = await Filled.fill(count)
        state, seen = filled.trio.leader.state, 0
        select = state.select_chunks

        def counted(handles: Iterable[ChunkHandle], wanted: Mapping[Any, Any]) -> list[tuple[ChunkHandle, Any]]:
            nonlocal seen
            listed = list(handles)
            seen += len(listed)
            return select(listed, wanted)

        monkeypatch.setattr(state, "select_chunks", counted)
        repaired = await WORKS["repair of a lost server"](filled)
        assert repaired > 2 * lookout.BUCKET_MAX, "the walks would not have to go on"
        return seen / count

    few, many = (asyncio.run(looked_at(count)) for count in (FEW, MANY))
    assert many <= 2 * few, f"each of {FEW} chunks was looked at {few:.1f} times, each of {MANY} {many:.1f} times"
