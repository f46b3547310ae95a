"""Does an operation that is interrupted at any of its steps leave nothing behind, and lose nothing?

Every acknowledged byte is readable, nothing in between is visible, no chunk stays that nobody holds, and what is
counted is exact: before the garbage is collected and after it. The steps are counted; a new operation is covered by a
line in dfs/testing/crash_operations.py. `CRASH_POINTS=all` interrupts at every step in every way, and looks after each;
without it the client's own faults happen at every step, the others at every third one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfs.chunk.orders import DeletionOrders
from dfs.errors import DfsError
from dfs.master.state.sessions import SessionTable
from dfs.master.state.tails import TailTable
from dfs.testing.crash_operations import OPERATIONS
from dfs.testing.crash_points import CrashPoints, CrashWorld, Fault

pytestmark = pytest.mark.timeout(240)
IS_WHOLE = os.environ.get("CRASH_POINTS") == "all"
OF_THE_CLIENT = (Fault.DIES_BEFORE, Fault.DIES_AFTER, Fault.ANSWER_LOST)
OTHERS_EVERY = 3  # steps


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashWorld]:
    made = CrashWorld(tmp_path_factory.mktemp("crash"))
    yield made
    made.close()


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_interrupted_anywhere_loses_nothing_and_leaves_nothing(world: CrashWorld, name: str) -> None:
    points = CrashPoints(world, name, OPERATIONS[name])
    for fault in Fault:
        every = 1 if IS_WHOLE or fault in OF_THE_CLIENT else OTHERS_EVERY
        for step in range(0, points.steps, every):
            points.run(fault, step, collects=IS_WHOLE)
    points.collect()
    assert not world.leaks()


# --- would it find anything? Each of these takes one rule away.


def keep_orphans(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DeletionOrders, "run_once", lambda _orders: 0)


def forget_outcomes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SessionTable, "begin", lambda _table, _call, _now_ms: None)
    patch.setattr(SessionTable, "finish", lambda _table, _call, _result: None)


def forget_appenders(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TailTable, "seeds", lambda _table, _inode: ())


@pytest.mark.parametrize(
    ("mutation", "name"),
    [(keep_orphans, "put-large"), (forget_outcomes, "concat"), (forget_appenders, "append-record")],
)
def test_a_missing_rule_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutation: Callable[[pytest.MonkeyPatch], None], name: str
) -> None:
    world = CrashWorld(tmp_path)
    try:
        points = CrashPoints(world, name, OPERATIONS[name])
        mutation(monkeypatch)
        with pytest.raises((AssertionError, DfsError)):
            _interrupt_everywhere(points)
    finally:
        world.close()


def _interrupt_everywhere(points: CrashPoints) -> None:
    for step in range(points.steps):
        for fault in OF_THE_CLIENT:
            points.run(fault, step)
    points.collect()
