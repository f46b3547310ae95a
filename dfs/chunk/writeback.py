"""Hints to the kernel about file pages in memory: start writing them now, or let go of them.

Owns: the system calls, and that they may be missing. Refuses to know: when they pay (dfs.chunk.store).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Final

_SYNC_FILE_RANGE_WRITE: Final = 2  # linux/fs.h: start, do not wait


def _find() -> Callable[[int, int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None  # not Linux: the final sync does all the work
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    function.restype = ctypes.c_int
    return lambda fd, offset, size, flags: int(function(fd, offset, size, flags))


_SYNC_FILE_RANGE: Final = _find()


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Start writing the range out, so that the sync at the end of a chunk has little left to do.

    Only a hint: its failure means nothing, the final sync tells the truth."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(fd, offset, size, _SYNC_FILE_RANGE_WRITE)


def drop_pages(fd: int, offset: int, size: int) -> None:
    """Let go of the clean pages of a range. Only a hint: a kernel without it keeps them a little longer."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)
