"""Does the Raft journal give back exactly what was on disk, cut what was not, and refuse what was damaged?

Each test names the fault letter of the pysyncobj study it guards against (a: vote lost, b1: no fsync, b2: big record,
b3: 4-byte offsets, b4: no CRC, b5: rewrite in place, b6: full disk).
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfs.errors import DfsError, DiskFull, StorageCorrupt
from dfs.master import raft_journal
from dfs.master.raft_journal import SLICE_ENTRIES_MAX, SLICE_SIZE_MAX, Journal
from dfs.master.raft_records import MAGIC, Entry, Kind, encode_record, parse_head, parse_record

SEGMENT = 16 * 1024


class Inbox:
    """Stands for the loop: callbacks posted by the writer thread are run by the test's thread."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.failures: list[DfsError] = []
        self.durable_count = 0
        self._posted: list[tuple[Callable[..., None], tuple[object, ...]]] = []
        self._changed = threading.Condition()
        journal.attach(self._post, self._durable, self.failures.append)

    def _durable(self) -> None:
        self.durable_count += 1

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        with self._changed:
            self._posted.append((callback, arguments))
            self._changed.notify()

    def run_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            with self._changed:
                assert self._posted or self._changed.wait(deadline - time.monotonic()), "the journal's writer is silent"
                posted, self._posted = self._posted, []
            for callback, arguments in posted:
                callback(*arguments)

    def sync(self) -> None:
        self.journal.flush()
        self.run_until(lambda: self.journal.durable == self.journal.sequence)


def open_journal(folder: Path, **options: int) -> Journal:
    return Journal(folder, name="m1", fsync=False, segment_size=options.get("segment_size", SEGMENT))


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name) / "log"


def newest_segment(folder: Path) -> Path:
    return max(folder.glob("*.seg"))


def records_of(path: Path) -> list[tuple[int, int, int]]:
    """Return (kind, a, end) of all records of a segment."""
    data = path.read_bytes()
    head = parse_head(data)
    assert head is not None
    found, offset = [], head.size
    while (record := parse_record(data, offset, head.salt)) is not None:
        found.append((record.kind, record.a, record.end))
        offset = record.end
    return found


def test_everything_is_read_back_after_reopening(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.set_vote(3, "m2")
    for index in range(1, 8):
        journal.append(b"command %d" % index, index, 3)
    journal.truncate_from(5)
    journal.append(b"other", 6, 3)
    inbox.sync()
    entries = list(journal.entries)
    journal.close()
    again = open_journal(folder)
    assert again.entries == entries
    assert (again.term, again.vote, again.durable_index) == (3, "m2", 6)
    again.close()


def test_fault_a_a_vote_survives_a_kill_right_after_it_became_durable(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.set_vote(5, "m2")
    inbox.sync()
    copy = folder.with_name("killed")
    shutil.copytree(folder, copy)
    journal.close()
    killed = open_journal(copy)
    assert (killed.term, killed.vote) == (5, "m2")
    killed.close()


def test_fault_b1_nothing_is_durable_before_its_fdatasync_returned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(folder, name="m1", segment_size=SEGMENT)
    inbox = Inbox(journal)
    synced = threading.Event()
    gate = threading.Event()
    real = os.fdatasync

    def slow(fd: int) -> None:
        gate.wait(20)
        real(fd)
        synced.set()

    monkeypatch.setattr(os, "fdatasync", slow)
    journal.append(b"x", 1, 1)
    journal.flush()
    assert journal.durable_index == 0
    gate.set()
    inbox.run_until(lambda: journal.durable_index == 1)
    assert synced.is_set()
    journal.close()


def test_fault_b2_a_record_larger_than_a_segment_is_stored(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.set_vote(1, None)
    for index in range(1, 4):
        journal.append(os.urandom(5 * SEGMENT), index, 1)
        inbox.sync()
    entries = list(journal.entries)
    journal.close()
    again = open_journal(folder)
    assert again.entries == entries
    again.close()


def test_fault_b3_offsets_and_indexes_have_64_bits() -> None:
    big = 2**63 + 5
    record = parse_record(encode_record(Kind.MARK, big, big - 1, salt=7), 0, 7)
    assert record is not None
    assert (record.a, record.b) == (big, big - 1)


def test_fault_b6_a_full_disk_is_reported_once_and_nothing_more_becomes_durable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.append(b"safe", 1, 1)
    inbox.sync()
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    journal.append(b"lost", 2, 1)
    journal.flush()
    inbox.run_until(lambda: bool(inbox.failures))
    monkeypatch.setattr(os, "pwrite", real)
    journal.append(b"later", 3, 1)
    journal.flush()
    journal.close()
    assert [type(error) for error in inbox.failures] == [DiskFull]
    assert "free space" in str(inbox.failures[0])
    assert journal.durable_index == 1


def test_segments_roll_and_released_ones_are_deleted(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.set_vote(1, "m1")
    for index in range(1, 101):
        journal.append(bytes(1000), index, 1)
        inbox.sync()
    assert len(list(folder.glob("*.seg"))) > 5
    journal.forget(79)
    journal.release(60)
    journal.append(b"after", 101, 1)
    inbox.sync()
    assert journal.first_index == 80
    journal.close()
    again = open_journal(folder)
    assert 40 < again.first_index <= 60
    assert again.last_index == 101
    assert (again.term, again.vote) == (1, "m1")
    again.close()


def test_a_reset_log_starts_at_the_checkpoint_after_reopening(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    for index in range(1, 6):
        journal.append(b"old", index, 1)
    journal.reset()
    journal.append(b"new", 900, 1)
    journal.set_vote(1, None)
    inbox.sync()
    journal.close()
    again = open_journal(folder)
    assert again.entries == [(b"new", 900, 1)]
    again.close()


def test_a_missing_segment_is_refused(folder: Path) -> None:
    for _ in range(3):
        open_journal(folder).close()
    sorted(folder.glob("*.seg"))[1].unlink()
    with pytest.raises(StorageCorrupt, match="misses segment 2"):
        open_journal(folder)


def test_a_journal_of_another_master_is_refused(folder: Path) -> None:
    open_journal(folder).close()
    with pytest.raises(StorageCorrupt, match="belongs to master 'm1'"):
        Journal(folder, name="m2", fsync=False, segment_size=SEGMENT)


def test_a_forged_record_inside_a_command_is_not_taken_for_a_mark(folder: Path) -> None:
    forged = encode_record(Kind.MARK, 2**60, 0, salt=0)
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.set_vote(1, None)
    journal.append(b"first", 1, 1)
    inbox.sync()
    journal.append(b"torn" + forged, 2, 1)
    inbox.sync()
    segment = newest_segment(folder)
    data = bytearray(segment.read_bytes())
    data[data.index(b"torn")] ^= 1
    journal.close()
    copy = folder.with_name("copy")
    copy.mkdir()
    data[data.index(forged) + len(forged) :] = b""
    (copy / segment.name).write_bytes(data)
    again = open_journal(copy)
    assert [entry[0] for entry in again.entries] == [b"first"]
    again.close()


def test_slices_are_bounded_but_never_empty(folder: Path) -> None:
    journal = open_journal(folder)
    for index in range(1, SLICE_ENTRIES_MAX + 100):
        journal.append(b"", index, 1)
    assert len(journal.slice(0, None)) == SLICE_ENTRIES_MAX
    journal.append(bytes(2 * SLICE_SIZE_MAX), journal.last_index + 1, 1)
    journal.append(bytes(10), journal.last_index + 1, 1)
    tail = len(journal.entries) - 2
    assert len(journal.slice(tail, None)) == 2
    assert len(journal.slice(tail - 3, None)) == 3
    journal.close()


batches = st.lists(st.lists(st.binary(max_size=60), min_size=1, max_size=3), min_size=2, max_size=6)


def written(folder: Path, groups: list[list[bytes]]) -> tuple[bytes, str, list[list[Entry]], list[int]]:
    """Write each group as one durable batch; return the segment's bytes, its name, the log and the end per batch."""
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.set_vote(1, None)
    inbox.sync()
    logs, ends = [list(journal.entries)], [records_of(newest_segment(folder))[-1][2]]
    for group in groups:
        for command in group:
            journal.append(command, journal.last_index + 1, 1)
        inbox.sync()
        logs.append(list(journal.entries))
        ends.append(records_of(newest_segment(folder))[-1][2])
    segment = newest_segment(folder)
    data = segment.read_bytes()
    journal.close()
    return data, segment.name, logs, ends


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(groups=batches, where=st.floats(0, 1), zero_filled=st.booleans())
def test_a_tail_torn_at_any_byte_is_cut_to_whole_records(
    groups: list[list[bytes]], where: float, zero_filled: bool
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        data, segment, logs, ends = written(Path(name) / "log", groups)
        cut = ends[-2] + int(where * (ends[-1] - ends[-2]))  # within the last batch
        copy = Path(name) / "copy"
        copy.mkdir()
        (copy / segment).write_bytes(data[:cut] + (bytes(len(data) - cut) if zero_filled else b""))
        journal = open_journal(copy)
        assert journal.entries[: len(logs[-2])] == logs[-2]
        assert journal.entries == logs[-1][: len(journal.entries)]
        again_from = list(journal.entries)
        inbox = Inbox(journal)
        journal.append(b"goes on", journal.last_index + 1, 1)
        inbox.sync()
        journal.close()
        reopened = open_journal(copy)
        assert reopened.entries == [*again_from, (b"goes on", len(again_from) + 1, 1)]
        reopened.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(groups=batches, where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_fault_b4_a_flipped_bit_below_the_last_mark_is_refused(
    groups: list[list[bytes]], where: float, bit: int
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        data, segment, _, ends = written(Path(name) / "log", groups)
        position = int(where * ends[-2])  # the last batch begins with a mark that covers all before it
        copy = Path(name) / "copy"
        copy.mkdir()
        damaged = bytearray(data)
        damaged[position] ^= 1 << bit
        (copy / segment).write_bytes(damaged)
        with pytest.raises(StorageCorrupt, match="damaged"):
            open_journal(copy)
        assert not [path for path in copy.iterdir() if path.name != segment], "a refused journal is left as it was"


def test_a_flipped_bit_in_an_older_segment_is_refused(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.append(b"precious", 1, 1)
    journal.set_vote(1, None)
    inbox.sync()
    segment = newest_segment(folder)
    journal.close()
    open_journal(folder).close()
    data = bytearray(segment.read_bytes())
    data[data.index(b"precious")] ^= 4
    segment.write_bytes(data)
    with pytest.raises(StorageCorrupt, match="sound only below its end"):
        open_journal(folder)


def test_a_clean_close_covers_the_last_batch_with_a_mark(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.append(b"precious", 1, 1)
    journal.set_vote(1, None)
    inbox.sync()
    segment = newest_segment(folder)
    journal.close()
    kind, covered, _ = records_of(segment)[-1]
    assert kind == Kind.MARK
    assert covered == records_of(segment)[-2][2]


def test_a_kill_between_the_new_segment_and_the_trim_of_the_old_one_is_harmless(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.set_vote(1, None)
    journal.append(b"kept", 1, 1)
    inbox.sync()
    segment = newest_segment(folder)
    before = segment.read_bytes()
    journal.close()
    open_journal(folder).close()
    end = segment.stat().st_size
    with segment.open("r+b") as file:
        file.seek(end)
        file.write(MAGIC + b"rubbish of a torn write" + before[end : end + 500])
    again = open_journal(folder)
    assert [entry[0] for entry in again.entries] == [b"kept"]
    again.close()


def test_names_of_new_folders_are_synced_up_to_the_first_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(raft_journal, "sync_directory", synced.append)
    raft_journal.make_folder(tmp_path / "data" / "raft" / "log")
    assert sorted(synced) == [tmp_path, tmp_path / "data", tmp_path / "data" / "raft"]
    assert (tmp_path / "data" / "raft" / "log").is_dir()


# --- a quick disk: the loop thread writes itself --------------------------------------------------------------


def hurried(journal: Journal, inbox: Inbox) -> None:
    """Let the disk have proved that it is quick, and nothing that it does from here on prove the contrary."""
    journal._pace_s = -1e9
    inbox.sync()


def unsettled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Return a journal whose writer believes that it knows of a batch without MARK already, and has all the time in the
    world for it: nothing wakes it, and it never stands in the way of the loop."""
    monkeypatch.setattr(raft_journal, "_SETTLE_S", 1e6)
    journal = open_journal(folder)
    journal._needs_mark = True
    return journal


def is_quick(journal: Journal) -> bool:
    return journal.is_quick


def test_on_a_quick_disk_a_batch_is_durable_when_flush_returns_and_the_writer_has_no_part_in_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = unsettled(folder, monkeypatch)
    inbox = Inbox(journal)
    journal.set_vote(2, "m1")
    hurried(journal, inbox)
    writers: set[str] = set()
    real = os.pwrite

    def seen(fd: int, data: bytes, offset: int) -> int:
        if fd == journal._fd:
            writers.add(threading.current_thread().name)
        return real(fd, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", seen)
        for index in range(1, 20):
            journal.append(b"command %d" % index, index, 2)
            told = inbox.durable_count
            journal.flush()
            assert (journal.durable, journal.durable_index) == (journal.sequence, index)
            assert inbox.durable_count == told + 1
    assert writers == {threading.current_thread().name}
    copy = folder.with_name("killed")
    shutil.copytree(folder, copy)
    entries = list(journal.entries)
    journal.close()
    killed = open_journal(copy)
    assert (killed.entries, killed.term, killed.vote) == (entries, 2, "m1")
    killed.close()


@pytest.mark.usefixtures("all_fast_paths")
def test_a_disk_has_to_prove_that_it_is_quick_and_loses_that_by_one_hang(folder: Path) -> None:
    journal = open_journal(folder)
    inbox = Inbox(journal)
    assert not is_quick(journal), "nothing is known of a disk at the start"
    journal._pace_s = 0.0
    took_s = [5.0]
    now_s = [0.0]

    def clock() -> float:
        now_s[0] += took_s[0] / 2
        return now_s[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raft_journal, "time", SimpleNamespace(perf_counter=clock))
        journal.append(b"hangs", 1, 1)
        journal.flush()
        assert journal.durable_index == 1
        assert not is_quick(journal)
        took_s[0] = 0.0
        for index in range(2, 400):
            if is_quick(journal):
                break
            journal.append(b"slow way", index, 1)
            inbox.sync()
        assert 50 < index < 300, "a hang is not forgotten at once, nor for ever"
    journal.close()


def test_after_a_failed_write_of_the_loop_nothing_more_becomes_durable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = unsettled(folder, monkeypatch)
    inbox = Inbox(journal)
    journal.append(b"safe", 1, 1)
    hurried(journal, inbox)
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    journal.append(b"lost", 2, 1)
    journal.flush()
    assert [type(error) for error in inbox.failures] == [DiskFull]
    monkeypatch.setattr(os, "pwrite", real)
    journal.append(b"later", 3, 1)
    journal.flush()
    assert (journal.durable_index, len(inbox.failures)) == (1, 1)
    journal.close()


def test_a_disk_that_failed_the_writer_is_not_written_to_by_the_loop(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer fails while it writes a MARK; its word is on the way, and the loop has the next batch."""
    monkeypatch.setattr(raft_journal, "_SETTLE_S", 0.01)
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.append(b"safe", 1, 1)
    real, failed = os.pwrite, threading.Event()

    def full(fd: int, data: bytes, offset: int) -> int:
        if fd != journal._fd or threading.current_thread() is not journal._writer:
            return real(fd, data, offset)
        failed.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", full)  # before the MARK is due, which is soon
    hurried(journal, inbox)
    assert failed.wait(20)
    with journal._disk:
        assert journal._is_disk_broken
    journal._pace_s = 0.0
    journal.append(b"late", 2, 1)
    journal.flush()
    assert journal.durable_index == 1
    inbox.run_until(lambda: bool(inbox.failures))
    assert journal.durable_index == 1
    journal.close()


def test_the_last_batch_of_the_loop_gets_its_mark_and_new_segments_are_the_writers_business(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_journal, "_SETTLE_S", 0.01)
    journal = open_journal(folder)
    inbox = Inbox(journal)
    journal.set_vote(1, None)
    for index in range(1, 60):  # four segments
        journal.append(bytes(1000), index, 1)
        hurried(journal, inbox)
    assert len(list(folder.glob("*.seg"))) >= 4
    deadline = time.monotonic() + 20
    while records_of(newest_segment(folder))[-1][0] != Kind.MARK:
        assert time.monotonic() < deadline, "the last batch has no MARK"
        time.sleep(0.01)
    journal.close()
    again = open_journal(folder)
    assert again.last_index == 59
    again.close()


def test_the_quick_way_can_be_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFS_WITHOUT", "quick-journal")
    journal = open_journal(folder)
    journal._pace_s = 0.0
    assert not journal.is_quick
    journal.close()
