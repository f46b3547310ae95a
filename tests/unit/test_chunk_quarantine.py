"""Does the quarantine keep what an operator needs, and no more than a disk can bear?"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dfs.chunk import quarantine as quarantine_module
from dfs.chunk.quarantine import QUARANTINE_KEEP_S, Census, Quarantine

BIG = 10**15  # bytes of a disk whose share is no limit


def damaged(folder: Path, name: str, size: int = 10) -> Path:
    path = folder / name
    path.write_bytes(bytes(size))
    return path


def test_taken_files_keep_their_names_and_are_counted(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine")
    assert quarantine.census == Census(0, 0)
    now_s = time.time()
    places = [quarantine.take(damaged(tmp_path, "a", size), now_s, BIG) for size in (10, 20)]
    assert [place.name for place in places] == ["a.0", "a.1"]
    assert quarantine.census == Census(2, 30)
    assert sorted(path.name for path in (tmp_path / "quarantine").iterdir()) == ["a.0", "a.1"]


def test_oldest_go_when_there_are_too_many_bytes_but_the_youngest_is_always_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine_module, "QUARANTINE_SIZE_MAX", 100)
    quarantine = Quarantine(tmp_path / "quarantine")
    now_s = time.time()
    for number in range(9):
        quarantine.take(damaged(tmp_path, f"{number}", 30), now_s, BIG)
    assert quarantine.census == Census(3, 90)
    quarantine.take(damaged(tmp_path, "9", 1000), now_s, BIG)
    assert quarantine.census == Census(1, 1000)


def test_share_of_a_small_disk_is_small(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine")
    now_s = time.time()
    for number in range(4):
        quarantine.take(damaged(tmp_path, f"{number}", 30), now_s, capacity=1300)  # 65 bytes of it
    assert quarantine.census == Census(2, 60)


def test_nothing_is_kept_for_ever(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine")
    now_s = time.time()
    quarantine.take(damaged(tmp_path, "a"), now_s, BIG)
    (tmp_path / "quarantine" / "folder").mkdir()  # somebody's
    (tmp_path / "quarantine" / "folder" / "file").touch()
    quarantine.tidy(now_s + QUARANTINE_KEEP_S - 60, BIG)
    assert quarantine.census.count == 2
    quarantine.tidy(now_s + QUARANTINE_KEEP_S + 60, BIG)
    assert quarantine.census == Census(0, 0)
    assert list((tmp_path / "quarantine").iterdir()) == []


def test_census_counts_what_an_earlier_life_left(tmp_path: Path) -> None:
    Quarantine(tmp_path / "quarantine").take(damaged(tmp_path, "a"), time.time(), BIG)
    again = Quarantine(tmp_path / "quarantine")
    again.tidy(time.time(), BIG)
    assert again.census == Census(1, 10)
