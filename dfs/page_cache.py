"""Bytes on their way into a file, in pieces for which the system has memory at hand.

Owns: how large such a piece is, and writing all of them. Refuses to know: what is written, where and why, and what an
error means.

A file system with large folios keeps what one write brings as one piece of memory, as far as it can. The larger that
piece, the less likely is it memory that was used a moment ago: from 256 KiB on, half of a new GiB came out of memory
that a virtual machine's host had taken back, at six times the processor time of the same GiB by 128 KiB (Linux 6.18,
ext4). Smaller pieces than that only cost more calls.
"""

from __future__ import annotations

import os
from typing import Final

from dfs.checksum import Buffer

PIECE_SIZE: Final = 128 * 1024  # bytes in one write


def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` (bytes) at `offset` of a file; raise `OSError`, with any part of it written."""
    view, size, written = memoryview(data), len(data), 0
    while written < size:
        written += os.pwrite(fd, view[written : written + PIECE_SIZE], offset + written)
