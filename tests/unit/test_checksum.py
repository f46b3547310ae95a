"""Checksums: each wrong bit is found, and sums of pieces make the sum of the whole."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from dfs.checksum import (
    BLOCK_SIZE,
    CRC_SIZE,
    block_checksums,
    block_count,
    combine,
    combine_blocks,
    covering,
    crc32c,
    edges_of,
    first_bad_block,
    first_bad_cut,
)

sizes = st.one_of(
    st.integers(0, 300),
    st.sampled_from([BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE, 3 * BLOCK_SIZE + 7]),
)


def sample(size: int, seed: int = 1) -> bytes:
    return (struct.pack("<Q", seed * 0x9E3779B97F4A7C15 % 2**64) * (size // 8 + 1))[:size]


def test_crc_is_the_published_one() -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(b"") == 0
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@given(data=st.binary(max_size=200), cut=st.integers(0, 200))
def test_crc_continues_over_pieces(data: bytes, cut: int) -> None:
    assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


@given(first=st.binary(max_size=200), second=st.binary(max_size=200))
def test_crc_of_a_concatenation_needs_no_bytes(first: bytes, second: bytes) -> None:
    assert combine(crc32c(first), crc32c(second), len(second)) == crc32c(first + second)


@given(size=sizes)
def test_list_has_one_entry_per_block_and_combines_to_the_whole(size: int) -> None:
    data = sample(size)
    checksums = block_checksums(data)
    assert len(checksums) == block_count(size) * CRC_SIZE
    assert combine_blocks(checksums, size) == crc32c(data)
    assert checksums == b"".join(
        struct.pack("<I", crc32c(data[start : start + BLOCK_SIZE])) for start in range(0, size, BLOCK_SIZE)
    )


@given(size=sizes.filter(bool), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_flipped_bit_names_its_block(size: int, where: float, bit: int) -> None:
    data = sample(size)
    checksums = block_checksums(data)
    assert first_bad_block(data, checksums) is None
    position = int(size * where)
    damaged = bytearray(data)
    damaged[position] ^= 1 << bit
    assert first_bad_block(damaged, checksums) == position // BLOCK_SIZE


@given(size=sizes, lost=st.integers(1, 5))
def test_missing_bytes_or_checksums_are_never_accepted(size: int, lost: int) -> None:
    data = sample(size)
    checksums = block_checksums(data)
    if size:
        assert first_bad_block(data[:-lost], checksums) is not None
        assert first_bad_block(data, checksums[:-lost]) is not None
    assert first_bad_block(data, checksums + bytes(lost)) is not None


def test_any_buffer_has_the_same_checksum() -> None:
    data = sample(1000)
    assert crc32c(data) == crc32c(bytearray(data)) == crc32c(memoryview(data))
    assert block_checksums(data) == block_checksums(memoryview(bytearray(data)))


def cut(data: bytes, offset: int, length: int) -> tuple[bytes, bytes]:
    """Return the checksum list and the edges of a range, as a server tells them."""
    start, end = covering(offset, length, len(data))
    return block_checksums(data[start:end]), edges_of(memoryview(data)[start:end], offset - start, length)


@given(size=sizes.filter(bool), where=st.floats(0, 1, exclude_max=True), share=st.floats(0, 1, exclude_min=True))
def test_any_range_is_verified_by_the_checksums_of_its_blocks(size: int, where: float, share: float) -> None:
    data = sample(size)
    offset = int(size * where)
    length = max(1, int((size - offset) * share))
    checksums, edges = cut(data, offset, length)
    assert first_bad_cut(memoryview(data)[offset : offset + length], offset, size, checksums, edges) is None


@given(size=sizes.filter(bool), where=st.floats(0, 1, exclude_max=True), at=st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_in_a_range_or_in_its_edges_names_its_block(size: int, where: float, at: float) -> None:
    data = sample(size)
    offset = int(size * where)
    length = max(1, (size - offset) // 2)
    checksums, edges = cut(data, offset, length)
    damaged = bytearray(data)
    position = offset + int(length * at)
    damaged[position] ^= 4
    found = first_bad_cut(memoryview(damaged)[offset : offset + length], offset, size, checksums, edges)
    assert found == position // BLOCK_SIZE - offset // BLOCK_SIZE
    wrong_edges = bytes([edges[0] ^ 1]) + edges[1:]
    assert first_bad_cut(memoryview(data)[offset : offset + length], offset, size, checksums, wrong_edges) == 0


def test_a_range_of_other_bytes_and_a_list_of_another_length_are_refused() -> None:
    data = sample(200_000)
    checksums, edges = cut(data, 70_000, 5_000)
    assert first_bad_cut(memoryview(data)[70_001:75_001], 70_000, len(data), checksums, edges) == 0
    assert first_bad_cut(memoryview(data)[70_000:75_000], 70_000, len(data), checksums + checksums, edges) == 0
    assert first_bad_cut(memoryview(data)[70_000:75_000], 70_000, len(data), b"", edges) == 0
