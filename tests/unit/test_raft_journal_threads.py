"""Does the Raft journal survive its own threads: none to be had, one that meets a bug, the end while a batch is on its
way?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfs.errors import DfsError, InternalError
from dfs.master import raft_journal
from dfs.master.raft_journal import Journal

SEGMENT = 16 * 1024
WAIT_S = 20.0


class Loop:
    """Stands for the loop: what other threads post is run when the test says so."""

    def __init__(self, journal: Journal) -> None:
        self.failures: list[DfsError] = []
        self._posted: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self._changed = threading.Condition()
        journal.attach(self._post, lambda: None, self.failures.append)

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        with self._changed:
            self._posted.append((callback, arguments))
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when something was posted."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._posted, WAIT_S), "the journal's writer is silent"

    def run(self) -> None:
        with self._changed:
            posted, self._posted = self._posted, []
        for callback, arguments in posted:
            callback(*arguments)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setenv("DFS_WITHOUT", "quick-journal")
    opened = Journal(tmp_path / "log", name="m1", fsync=False, segment_size=SEGMENT)
    yield opened
    opened.close()


def fill_segment(journal: Journal, loop: Loop) -> None:
    """Let records become durable until the next ones need a new segment."""
    for index in range(1, 17):
        journal.append(bytes(1000), index, 1)
        journal.flush()
        loop.wait()
        loop.run()


def test_a_thread_that_cannot_be_started_costs_the_journal_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, start = Loop(journal), threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "raft-journal-spare":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    fill_segment(journal, loop)
    assert (journal.durable_index, loop.failures) == (16, [])
    assert len([*journal.folder.glob("*.seg")]) > 1
    monkeypatch.undo()
    journal.append(b"later", 17, 1)
    journal.flush()
    loop.wait()
    loop.run()
    assert journal.durable_index == 17


def test_a_bug_in_the_writer_stops_the_master_and_is_no_silence_for_ever(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop(journal)

    def broken(_journal: Journal, _batch: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Journal, "_write_batch", broken)
    journal.append(b"lost", 1, 1)
    journal.flush()
    loop.wait()
    loop.run()
    assert [type(error) for error in loop.failures] == [InternalError]
    monkeypatch.undo()
    journal._pace_s = -1.0
    journal._quick_s = raft_journal.QUICK_S
    journal.append(b"later", 2, 1)
    journal.flush()
    assert journal.durable_index == 0, "nobody knows what of the batch is on the disk"


class SlowlyCleared(list[bytes]):
    """The buffered records, as they are while one thread is taking them: joined, and not cleared yet."""

    def __init__(self, records: list[bytes]) -> None:
        super().__init__(records)
        self.is_joined, self.may_go_on = threading.Event(), threading.Event()

    def clear(self) -> None:
        self.is_joined.set()
        self.may_go_on.wait(WAIT_S)
        super().clear()


def test_the_end_of_a_journal_writes_no_record_twice(journal: Journal) -> None:
    """The loop stops the journal and lets another thread wait for its end, as a master does; a batch comes back."""
    loop = Loop(journal)
    journal.set_vote(1, None)
    journal.append(b"first", 1, 1)
    journal.flush()
    loop.wait()  # the batch is on the disk, its word is on the way
    journal.append(b"second", 2, 1)
    records = journal._buffer = SlowlyCleared(journal._buffer)
    records.may_go_on.set()
    journal.stop()
    records.may_go_on.clear()
    closer = threading.Thread(target=journal.close)
    closer.start()
    assert records.is_joined.wait(WAIT_S)
    loop.run()  # its word comes
    records.may_go_on.set()
    closer.join(WAIT_S)
    again = Journal(journal.folder, name="m1", fsync=False, segment_size=SEGMENT)
    assert [entry[0] for entry in again.entries] == [b"first", b"second"]
    again.close()
