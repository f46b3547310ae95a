"""Does the mirror of what was synced forget what was not? Else the power cuts of real processes would prove nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.master import raft_checkpoint, raft_join, raft_journal
from dfs.master.raft_journal import Journal
from dfs.testing.synced_disk import SyncedDisk, install, lose_power


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return tmp_path / "mirror"


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    for module in (raft_journal, raft_checkpoint, raft_join):
        vars(module)["os"] = os


def sync_names(disk: SyncedDisk, folder: Path) -> None:
    fd = disk.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    disk.fsync(fd)
    os.close(fd)


def test_bytes_and_names_stay_only_when_both_were_synced(folder: Path, mirror: Path) -> None:
    disk = SyncedDisk(folder, mirror)
    for name, is_synced in (("both", True), ("name", False)):
        fd = disk.open(folder / name, os.O_CREAT | os.O_RDWR, 0o600)
        disk.pwrite(fd, b"first ", 0)
        if is_synced:
            disk.fdatasync(fd)
        disk.pwrite(fd, b"second", 6)
        os.close(fd)
    sync_names(disk, folder)
    fd = disk.open(folder / "bytes", os.O_CREAT | os.O_RDWR, 0o600)
    disk.pwrite(fd, b"a file without a name", 0)
    disk.fdatasync(fd)
    os.close(fd)
    lose_power(folder, mirror)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"both": b"first ", "name": b""}


def test_a_rename_that_was_not_synced_did_not_happen(folder: Path, mirror: Path) -> None:
    disk = SyncedDisk(folder, mirror)
    (folder / "old").write_bytes(b"old")
    with (folder / "old").open("rb") as file:
        disk.fsync(file.fileno())
    sync_names(disk, folder)
    with (folder / "draft.tmp").open("wb") as file:
        file.write(b"new")
        file.flush()
        disk.fsync(file.fileno())
    (folder / "draft.tmp").rename(folder / "old")
    lose_power(folder, mirror)
    assert (folder / "old").read_bytes() == b"old"


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("fsync", [True, False])
def test_a_journal_loses_its_entries_exactly_when_it_does_not_sync(fsync: bool, folder: Path, mirror: Path) -> None:
    install(folder, mirror, [raft_journal, raft_checkpoint, raft_join])
    for life in range(3):
        journal = Journal(folder / "log", name="m1", fsync=fsync, segment_size=64 * 1024)
        assert journal.last_index == (5 * life if fsync else 0)
        journal.attach(lambda *_: None, lambda: None, lambda _error: None)
        journal.set_vote(1, None)
        for number in range(5 * life + 1, 5 * life + 6):
            journal.append(b"x" * 10_000, number if fsync else number - 5 * life, 1)
        journal.close()
        lose_power(folder, mirror)
        install(folder, mirror, [raft_journal, raft_checkpoint, raft_join])
