"""CRC32C over 64 KiB blocks: the one checksum that travels from the writer's memory to the reader's memory.

Owns: the block size, block checksum lists and combining checksums. Refuses to know: files, frames and chunks.
A checksum list is `bytes`: one little-endian u32 per block, the last block may be short; `b""` for no data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

from crc32c import crc32c as _crc32c

BLOCK_SIZE = 64 * 1024  # bytes under one CRC
CRC_SIZE = 4  # bytes of one stored CRC

Buffer: TypeAlias = bytes | bytearray | memoryview


crc32c: Callable[..., int] = _crc32c  # (data, crc = 0): the CRC32C (Castagnoli) of `data`, continued from `crc`


def block_count(size: int) -> int:
    return -(-size // BLOCK_SIZE)


def block_checksums(data: Buffer) -> bytes:
    """Return the checksum list of `data`, which starts on a block boundary."""
    view = memoryview(data)
    size = len(view)
    if size <= BLOCK_SIZE:
        return struct.pack("<I", crc32c(view)) if size else b""
    crcs = [crc32c(view[start : start + BLOCK_SIZE]) for start in range(0, size, BLOCK_SIZE)]
    return struct.pack(f"<{len(crcs)}I", *crcs)


def first_bad_block(data: Buffer, checksums: Buffer) -> int | None:
    """Return the index of the first block of `data` that its checksum list refutes, `None` when all agree.

    A list of another length than the data refutes the block where they part.
    """
    actual = block_checksums(data)
    if actual == checksums:
        return None
    for index in range(max(len(actual), len(checksums)) // CRC_SIZE + 1):
        here = slice(index * CRC_SIZE, (index + 1) * CRC_SIZE)
        if actual[here] != bytes(checksums[here]):
            return index
    return None  # pragma: no cover - unequal lists differ somewhere


# Combining: crc(A + B) = crc(A) * x^(8 |B|) + crc(B) over GF(2)[x] modulo the Castagnoli polynomial, in the reflected
# bit order (bit 31 is x^0). Source: the zlib crc32_combine technique by M. Adler, written anew for CRC32C.
_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@lru_cache(maxsize=256)
def _shift(size: int) -> int:
    """Return x^(8 size) modulo the polynomial."""
    result, square, bits = _ONE, _ONE >> 1, size * 8
    while bits:
        if bits & 1:
            result = _multiply(result, square)
        square = _multiply(square, square)
        bits >>= 1
    return result


def combine(first: int, second: int, second_size: int) -> int:
    """Return the CRC32C of A + B from the CRC of A, the CRC of B and the size of B in bytes."""
    return _multiply(first, _shift(second_size)) ^ second


@lru_cache(maxsize=1)
def _block_shift() -> tuple[list[int], ...]:
    """Return four tables that multiply a CRC by `_shift(BLOCK_SIZE)` byte by byte: 20 times faster than bit by bit."""
    shift = _shift(BLOCK_SIZE)
    return tuple([_multiply(byte << position, shift) for byte in range(256)] for position in (0, 8, 16, 24))


def combine_blocks(checksums: Buffer, size: int) -> int:
    """Return the CRC32C of `size` bytes from their checksum list."""
    if not size:
        return 0
    crcs = struct.unpack(f"<{len(checksums) // CRC_SIZE}I", checksums)
    low, second, third, high = _block_shift()
    total = 0
    for crc in crcs[:-1]:
        total = low[total & 255] ^ second[total >> 8 & 255] ^ third[total >> 16 & 255] ^ high[total >> 24] ^ crc
    return combine(total, crcs[-1], size - (len(crcs) - 1) * BLOCK_SIZE)


# Cut ranges: what is no whole blocks is verified with the CRCs of what its first and last block have besides it.

_EDGES = struct.Struct("<II")
EDGES_SIZE = _EDGES.size  # bytes of the two CRCs of one range
_ZEROS = memoryview(bytes(BLOCK_SIZE))


def covering(offset: int, length: int, size: int) -> tuple[int, int]:
    """Return the [start, end) of the blocks that bytes [`offset`, +`length`) of `size` bytes touch."""
    end = offset + length
    return offset - offset % BLOCK_SIZE, min(size, end + -end % BLOCK_SIZE)


def edges_of(blocks: memoryview, skip: int, length: int) -> bytes:
    """Return the CRCs of what the first and the last of `blocks` have before and behind bytes [`skip`, +`length`)."""
    return _EDGES.pack(crc32c(blocks[:skip]), crc32c(blocks[skip + length :]))


def first_bad_cut(data: memoryview, offset: int, size: int, checksums: Buffer, edges: Buffer) -> int | None:
    """Return the index of the first touched block that refutes `data`, `None` when all agree.

    `data` are the bytes at `offset` of `size` bytes; `checksums` the list of the blocks they touch; `edges` as from
    `edges_of`. Whoever made the edges cannot hide a wrong byte of `data` by mistake: each block's CRC is that of its
    writer, and is met only by the bytes it was made from, wherever the block is cut.
    """
    start, end = covering(offset, len(data), size)
    before, behind = _EDGES.unpack(edges)
    count = block_count(end - start)
    if len(checksums) != count * CRC_SIZE:
        return 0
    position = 0
    for index, wanted in enumerate(struct.unpack(f"<{count}I", checksums)):
        block_end = min(end, start + (index + 1) * BLOCK_SIZE)
        stop = min(len(data), block_end - offset)
        crc = crc32c(data[position:stop], 0 if index else before)
        if rest := block_end - offset - stop:  # advance over the rest, then add what it is (combine() by the hardware)
            crc = crc32c(_ZEROS[:rest], crc) ^ crc32c(_ZEROS[:rest]) ^ behind
        if crc != wanted:
            return index
        position = stop
    return None
