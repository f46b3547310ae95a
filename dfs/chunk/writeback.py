"""Tell the kernel to start writing dirty pages now, so that the sync at the end of a chunk has little left to do.

Owns: the one system call for it that Python does not offer. Refuses to know: when it pays (dfs.chunk.store).
"""

from __future__ import annotations

import ctypes
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
    """Start writing the range out. Only a hint: its failure means nothing, the final sync tells the truth."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(fd, offset, size, _SYNC_FILE_RANGE_WRITE)
