"""Find out whether the bytes of a replica are what its checksums say.

Owns: how a replica is read for that, from the disk if need be. Refuses to know: who asks, and what becomes of a bad
one.
"""

from __future__ import annotations

import os

from dfs.checksum import BLOCK_SIZE, combine_blocks, first_bad_block
from dfs.chunk.replicas import Pace, ReplicaReader, checksums_of
from dfs.chunk.writeback import drop_pages

VERIFY_PIECE_SIZE = 16 * BLOCK_SIZE  # bytes read at a time


def find_damage(opened: ReplicaReader, pace: Pace | None) -> str:
    """Return what is wrong with the data of an open replica, `""` when nothing is; raise `OSError`."""
    fd, tail = opened.fd, opened.tail
    if combine_blocks(tail.checksums, tail.length) != tail.crc:
        return "its block checksums do not add up to the chunk's"
    if pace is not None:
        drop_pages(fd, opened.start, tail.length)  # what memory still holds says nothing about the disk
    buffer = memoryview(bytearray(min(VERIFY_PIECE_SIZE, tail.length)))
    for offset in range(0, tail.length, len(buffer)):
        piece = buffer[: min(len(buffer), tail.length - offset)]
        if pace is not None:
            pace(len(piece))
        if os.preadv(fd, [piece], opened.start + offset) != len(piece):
            return f"its file ends before byte {offset + len(piece)}"
        if (bad := first_bad_block(piece, checksums_of(tail, offset, len(piece)))) is not None:
            return f"the block at {offset + bad * BLOCK_SIZE} does not match its checksum"
        if pace is not None:
            drop_pages(fd, opened.start + offset, len(piece))  # readers need the memory more
    return ""
