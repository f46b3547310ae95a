"""Do all bytes come into a file, at their place, in pieces of the size that is measured to be cheap?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.page_cache import PIECE_SIZE, write_at

OFFSET = 7


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


@pytest.mark.parametrize("size", [0, 1, PIECE_SIZE, PIECE_SIZE + 1, 3 * PIECE_SIZE])
def test_all_bytes_are_written_at_their_place_in_pieces(size: int, fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    pwrite = os.pwrite

    def counted(descriptor: int, data: memoryview, offset: int) -> int:
        if descriptor == fd:
            sizes.append(len(data))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", counted)
    data = os.urandom(size)
    write_at(fd, data, OFFSET)
    assert os.pread(fd, size + OFFSET + 1, 0) == (bytes(OFFSET) + data if data else b"")
    assert sizes == [PIECE_SIZE] * (size // PIECE_SIZE) + [rest for rest in [size % PIECE_SIZE] if rest]


def test_what_the_system_did_not_take_is_written_again(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[: 1 + len(data) // 3], offset))
    data = os.urandom(2 * PIECE_SIZE + 5)
    write_at(fd, data, OFFSET)
    assert os.pread(fd, len(data), OFFSET) == data
