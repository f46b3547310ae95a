"""Do callers of a group commit share commits, and do they hear of their own failure and of no other?"""

from __future__ import annotations

import threading

import pytest

from dfs.chunk.group_commit import GroupCommit
from dfs.errors import DiskFull, InternalError

WAIT_S = 30.0


def test_failure_of_a_commit_reaches_everybody_in_it_and_nobody_else() -> None:
    batches: list[list[int]] = []
    has_begun, may_go_on = threading.Event(), threading.Event()

    def commit(batch: list[int]) -> None:
        batches.append(batch)
        has_begun.set()
        assert may_go_on.wait(WAIT_S)
        if 3 in batch:
            raise DiskFull("no space", failed="here")

    group = GroupCommit(commit, batch_size_max=20)
    outcomes: dict[int, str] = {}

    def submit(item: int) -> None:
        try:
            group.submit(item, 10)
            outcomes[item] = "done"
        except DiskFull as error:
            outcomes[item] = error.details["failed"]

    threads = [threading.Thread(target=submit, args=(item,)) for item in range(6)]
    pause = threading.Event()
    for count, thread in enumerate(threads):
        thread.start()
        while len(group._queue) + len(batches) < max(1, count + 1) or not has_begun.is_set():
            pause.wait(0.001)
    may_go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert batches == [[0], [1, 2], [3, 4], [5]]
    assert outcomes == {0: "done", 1: "done", 2: "done", 3: "here", 4: "here", 5: "done"}


def test_bug_in_a_commit_reaches_its_caller_and_ends_the_turn() -> None:
    def commit(batch: list[int]) -> None:
        if batch == [1]:
            raise ZeroDivisionError

    group = GroupCommit(commit, batch_size_max=20)
    with pytest.raises((ZeroDivisionError, InternalError)):
        group.submit(1, 1)
    group.submit(2, 1)
    with group.paused():
        pass
