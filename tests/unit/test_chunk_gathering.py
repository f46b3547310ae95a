"""Does each item that is handed over without waiting hear, once, how its own commit went?"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from dfs.chunk.group_commit import GroupCommit
from dfs.chunk.volumes.gathering import Gathered, Gathering
from dfs.errors import DfsError, DiskFull
from dfs.testing.cluster import wait_until


class Disk:
    """Commits items when it is let; notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Semaphore(0)

    def commit(self, items: list[str]) -> None:
        self.batches.append(items)
        self.begun.release()
        assert self.free.wait(20)
        if "full" in items:
            raise DiskFull("no room")
        if "bug" in items:
            raise ValueError("unforeseen")


class Site:
    def __init__(self, batch_size_max: int = 1000) -> None:
        self.disk = Disk()
        self.turns: GroupCommit[str] = GroupCommit(self.disk.commit, batch_size_max=batch_size_max)
        self.gathering = Gathering(self.turns, self.disk.commit, batch_size_max=batch_size_max)
        self.heard: list[tuple[str, DfsError | None]] = []
        self._lock = threading.Lock()

    def items(self, *names: str, size: int = 1) -> list[Gathered[str]]:
        return [Gathered(name, size, self._hear(name)) for name in names]

    def _hear(self, name: str) -> Callable[[DfsError | None], None]:
        def done(error: DfsError | None) -> None:
            with self._lock:
                self.heard.append((name, error))

        return done

    def codes(self) -> dict[str, str | None]:
        with self._lock:
            assert len({name for name, _ in self.heard}) == len(self.heard), "nobody hears twice"
            return {name: None if error is None else error.code for name, error in self.heard}


def begun(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_what_comes_while_a_commit_runs_is_committed_together_by_who_came_first() -> None:
    site = Site()
    site.disk.free.clear()
    first = begun(lambda: site.gathering.submit(site.items("a")))
    assert site.disk.begun.acquire(timeout=20)
    second = begun(lambda: site.gathering.submit(site.items("b", "c")))  # waits for its turn
    wait_until(lambda: site.gathering._waiting is not None, 20, "somebody waits for the turn")
    site.gathering.submit(site.items("d"))  # goes on at once
    site.gathering.submit(site.items("e"))
    assert site.codes() == {}
    site.disk.free.set()
    for thread in (first, second):
        thread.join(20)
        assert not thread.is_alive()
    assert site.disk.batches == [["a"], ["b", "c", "d", "e"]]
    assert site.codes() == dict.fromkeys("abcde")


def test_turns_are_shared_with_those_who_wait() -> None:
    site = Site()
    site.disk.free.clear()
    threads = [begun(lambda: site.turns.submit("waits", 1))]
    assert site.disk.begun.acquire(timeout=20)
    threads.append(begun(lambda: site.gathering.submit(site.items("a"))))
    wait_until(lambda: len(site.turns._queue) == 1, 20, "the gathering waits for its turn")
    threads.append(begun(lambda: site.turns.submit("waits, too", 1)))
    wait_until(lambda: len(site.turns._queue) == 2, 20, "another one waits behind it")
    site.disk.free.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert site.disk.batches == [["waits"], ["a"], ["waits, too"]]
    assert site.codes() == {"a": None}


@pytest.mark.parametrize(("bad", "code"), [("full", "disk_full"), ("bug", "internal")])
def test_a_failure_reaches_its_own_batch_and_the_next_one_goes_on(bad: str, code: str) -> None:
    site = Site(batch_size_max=2)
    site.gathering.submit(site.items("a", bad, "b", "c"))
    assert site.disk.batches == [["a", bad], ["b", "c"]]
    assert site.codes() == {"a": code, bad: code, "b": None, "c": None}
    site.gathering.submit(site.items("d"))
    assert site.codes()["d"] is None


def test_batches_are_bounded_in_items_and_bytes() -> None:
    site = Site(batch_size_max=10)
    site.gathering.submit(site.items(*map(str, range(300)), size=0))
    assert [len(batch) for batch in site.disk.batches] == [128, 128, 44]
    site.disk.batches.clear()
    site.gathering.submit([*site.items("x", size=50), *site.items("y", "z", size=5)])
    assert site.disk.batches == [["x"], ["y", "z"]]
