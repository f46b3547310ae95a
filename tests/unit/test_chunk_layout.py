"""Does the format of a replica's file say exactly what docs/chunk-format.md says, and notice every wrong bit?"""

from __future__ import annotations

import os
import struct

import pytest

from dfs.checksum import BLOCK_SIZE, block_checksums, combine_blocks, crc32c
from dfs.chunk.layout import (
    CHUNK_SIZE_MAX,
    TAIL_SIZE_MAX,
    TRAILER_SIZE,
    data_length,
    decode_tail,
    encode_tail,
    file_size,
)
from dfs.errors import ChunkCorrupt, VersionMismatch
from dfs.ids import ChunkHandle

HANDLE = ChunkHandle(bytes(range(16)))
LENGTHS = [1, 2, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 7 * BLOCK_SIZE, CHUNK_SIZE_MAX - 1, CHUNK_SIZE_MAX]
GOLDEN_OF_ABC = (
    "b73f4b36"  # block 0
    "4446536301000000000001000300000000000000000102030405060708090a0b0c0d0e0fb73f4b36ebbb5daf"
)


def tail_of(data: bytes) -> bytes:
    return encode_tail(HANDLE, len(data), crc32c(data), block_checksums(data))


def test_bytes_of_a_tail_are_as_documented() -> None:
    assert tail_of(b"abc").hex() == GOLDEN_OF_ABC


@pytest.mark.parametrize("length", LENGTHS)
def test_size_of_a_file_tells_the_length_of_its_data(length: int) -> None:
    assert data_length(file_size(length)) == length
    assert file_size(length) - length <= TAIL_SIZE_MAX


def test_size_that_no_data_makes_is_refused() -> None:
    impossible = [0, 1, TRAILER_SIZE, TRAILER_SIZE + 4, file_size(CHUNK_SIZE_MAX) + 1, file_size(BLOCK_SIZE) + 1]
    for size in impossible:
        with pytest.raises(ChunkCorrupt):
            data_length(size)


def test_tail_is_decoded_to_what_was_encoded() -> None:
    data = os.urandom(3 * BLOCK_SIZE + 5)
    tail = decode_tail(tail_of(data), len(data), HANDLE)
    assert (tail.handle, tail.length, tail.crc) == (HANDLE, len(data), crc32c(data))
    assert tail.checksums == block_checksums(data)


def test_every_flipped_bit_of_a_tail_is_noticed() -> None:
    sound = tail_of(bytes(BLOCK_SIZE + 1))
    for bit in range(len(sound) * 8):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ChunkCorrupt):
            decode_tail(damaged, BLOCK_SIZE + 1, HANDLE)


def test_tail_of_another_chunk_or_cut_tail_is_refused() -> None:
    with pytest.raises(ChunkCorrupt):
        decode_tail(tail_of(b"abc"), 3, ChunkHandle(bytes(16)))
    with pytest.raises(ChunkCorrupt):
        decode_tail(tail_of(b"abc")[:-1], 3, HANDLE)


def test_replica_of_a_newer_format_is_named_so() -> None:
    body = bytearray(tail_of(b"abc")[:-4])
    body[8:10] = struct.pack("<H", 2)
    with pytest.raises(VersionMismatch, match="format 2"):
        decode_tail(bytes(body) + struct.pack("<I", crc32c(body)), 3, HANDLE)


def test_checksum_list_that_does_not_fit_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        encode_tail(HANDLE, BLOCK_SIZE + 1, 0, bytes(4))


@pytest.mark.parametrize("length", [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 9 * BLOCK_SIZE + 4321])
def test_block_checksums_add_up_to_the_crc_of_the_whole(length: int) -> None:
    data = os.urandom(length)
    assert combine_blocks(block_checksums(data), length) == crc32c(data)
