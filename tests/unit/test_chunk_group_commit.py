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


def test_many_callers_and_pauses_end_and_no_commit_runs_beside_another_or_in_a_pause() -> None:
    running = 0
    committed: list[tuple[int, int]] = []

    def commit(batch: list[tuple[int, int]]) -> None:
        nonlocal running
        running += 1
        assert running == 1, "a commit ran beside another one, or in a pause"
        committed.extend(batch)
        failing = any(number % 10 == 7 for _, number in batch)
        running -= 1
        if failing:
            raise DiskFull("no space")

    group = GroupCommit(commit, batch_size_max=50)
    outcomes: dict[tuple[int, int], str] = {}

    def submit(thread: int) -> None:
        for number in range(100):
            try:
                group.submit((thread, number), 10)
                outcomes[thread, number] = "done"
            except DiskFull:
                outcomes[thread, number] = "full"

    def pause() -> None:
        nonlocal running
        for _ in range(50):
            with group.paused():
                running += 1
                assert running == 1, "a pause ran beside a commit"
                running -= 1

    threads = [threading.Thread(target=submit, args=(thread,)) for thread in range(8)]
    threads += [threading.Thread(target=pause) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "somebody waits for ever"
    assert len(committed) == len(set(committed)) == len(outcomes) == 800
    for caller in range(8):
        assert [number for owner, number in committed if owner == caller] == [*range(100)], "out of order"
    assert all(outcomes[caller, number] == "full" for caller in range(8) for number in range(7, 100, 10))
    assert not group._queue
    assert not group._is_busy
