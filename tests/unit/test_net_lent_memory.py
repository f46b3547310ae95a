"""Is only memory borrowed that cannot hurt the borrower, and nothing read outside of it?"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dfs.errors import InvalidArgument
from dfs.net.lent_memory import BorrowedMemory, OwnMemory

SIZE = 8192
SHRINK, GROW = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW


def identity(fd: int) -> tuple[int, int]:
    """Return what tells the file behind a descriptor from any other that gets the number later."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def is_open(fd: int, known: tuple[int, int]) -> bool:
    try:
        return identity(fd) == known
    except OSError:
        return False


@contextmanager
def lent() -> Iterator[tuple[OwnMemory, BorrowedMemory]]:
    own = OwnMemory(SIZE)
    borrowed = BorrowedMemory(os.dup(own.fd), SIZE, SIZE)
    yield own, borrowed
    borrowed.close()
    borrowed.close()
    own.close()


def test_what_the_lender_writes_is_read_and_its_end_is_kept() -> None:
    with lent() as (own, borrowed):
        own.view[100:105] = b"hello"
        buffer = memoryview(bytearray(7))
        borrowed.read(99, buffer)
        assert bytes(buffer) == b"\0hello\0"
        for size in (0, SIZE - 1, SIZE + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(own.fd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(own.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_range_outside_of_the_memory_is_refused() -> None:
    with lent() as (_, borrowed):
        borrowed.check_range(0, SIZE)
        borrowed.check_range(SIZE, 0)
        for offset, size in ((-1, 2), (0, SIZE + 1), (SIZE, 1), (1, SIZE), (5, -5), (1 << 70, 1), (0, 1 << 70)):
            with pytest.raises(InvalidArgument):
                borrowed.check_range(offset, size)


def _file(folder: Path) -> int:
    path = folder / "file"
    path.write_bytes(bytes(SIZE))
    return os.open(path, os.O_RDWR)


def _pipe(_folder: Path) -> int:
    fd, other = os.pipe()
    os.close(other)
    return fd


def _memory(size: int, seals: int) -> Callable[[Path], int]:
    def make(_folder: Path) -> int:
        fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return fd

    return make


UNFIT: dict[str, Callable[[Path], int]] = {
    "file": _file,
    "pipe": _pipe,
    "folder": lambda folder: os.open(folder, os.O_RDONLY),
    "unsealed": _memory(SIZE, 0),
    "may-shrink": _memory(SIZE, GROW),
    "may-grow": _memory(SIZE, SHRINK),
    "smaller": _memory(SIZE - 1, SHRINK | GROW),
    "larger": _memory(SIZE + 1, SHRINK | GROW),
}


@pytest.mark.parametrize("kind", list(UNFIT))
def test_an_unfit_descriptor_is_refused_and_closed(kind: str, tmp_path: Path) -> None:
    fd = UNFIT[kind](tmp_path)
    known = identity(fd)
    with pytest.raises(InvalidArgument):
        BorrowedMemory(fd, SIZE, 2 * SIZE)
    assert not is_open(fd, known)


def test_more_than_is_allowed_is_refused_and_closed() -> None:
    for claimed in (SIZE, 0, -1):
        fd = _memory(SIZE, SHRINK | GROW)(Path())
        known = identity(fd)
        with pytest.raises(InvalidArgument):
            BorrowedMemory(fd, claimed, SIZE - 1)
        assert not is_open(fd, known)
