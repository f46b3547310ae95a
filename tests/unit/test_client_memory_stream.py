"""Do pieces from memory and what is left of a read always make up what was wanted?"""

from __future__ import annotations

import os
import random

import pytest

from dfs.checksum import BLOCK_SIZE, block_checksums, crc32c
from dfs.client import local_replicas
from dfs.client.held_file import OpenFile
from dfs.client.local_replicas import LocalReplica
from dfs.client.memory_stream import PIECE_SIZE, MemoryStream
from dfs.client.plan import ReadPlan, plan_reads
from dfs.ids import ChunkHandle, ServerId
from dfs.net.parts import LocatedExtent, ServerInfo

SIZE = 3 * PIECE_SIZE + BLOCK_SIZE + 77
DATA = random.Random(1).randbytes(SIZE)
SERVER = ServerInfo(ServerId(b"s" * 16), "c1", "127.0.0.1:1", "", is_alive=True)
EXTENT = LocatedExtent(ChunkHandle(b"h" * 16), 0, SIZE, SIZE, crc32c(DATA), b"", (0,))


class HalfInMemory(LocalReplica):
    """A replica of DATA whose bytes from `known` on are not in memory."""

    __slots__ = ("known",)

    def __init__(self, known: int = SIZE) -> None:
        fd = os.memfd_create("replica")
        os.write(fd, DATA)
        super().__init__(SERVER, OpenFile(fd), 0, SIZE, EXTENT.chunk_crc, block_checksums(DATA), 0.0)
        self.known = known

    def read(self, offset: int, buffer: memoryview) -> bool:
        return offset + len(buffer) <= self.known and super().read(offset, buffer)


@pytest.fixture(autouse=True)
def all_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory file cannot be asked what of it is in memory."""
    monkeypatch.setattr(local_replicas, "READ_FLAGS", 0)


def plan_of(start: int, end: int) -> ReadPlan:
    (plan,) = plan_reads([EXTENT], 0, 0, start=start, end=end, piece_size=SIZE + BLOCK_SIZE)
    return plan


def taken(plan: ReadPlan, replica: LocalReplica) -> tuple[bytes, ReadPlan | None]:
    """Return what a stream gives of a plan, and what it leaves."""
    pieces = MemoryStream().pieces(plan, replica)
    found = bytearray()
    while True:
        try:
            found += next(pieces)
        except StopIteration as end:
            return bytes(found), end.value


@pytest.mark.parametrize("seed", range(20))
def test_pieces_and_the_rest_are_the_wanted_bytes_each_once(seed: int) -> None:
    chance = random.Random(seed)
    start, end = sorted(chance.sample(range(SIZE + 1), 2))
    found, left = taken(plan_of(start, end), HalfInMemory(chance.randrange(SIZE)))
    if left is not None:
        assert left.block_offset % BLOCK_SIZE == 0
        assert left.file_offset == left.chunk_offset == start + len(found)
        rest, nothing = taken(left, HalfInMemory())
        assert nothing is None
        found += rest
    assert found == DATA[start:end]


def test_all_is_yielded_in_pieces_that_are_used_again_only_when_they_were_let_go() -> None:
    kept = [*MemoryStream().pieces(plan_of(0, SIZE), HalfInMemory())]
    assert max(map(len, kept)) == PIECE_SIZE
    assert b"".join(kept) == DATA
    stream, addresses = MemoryStream(), set()
    for piece in stream.pieces(plan_of(0, SIZE), HalfInMemory()):
        addresses.add(id(piece.obj))
        del piece
    assert len(addresses) == 1


@pytest.mark.parametrize("at", [0, BLOCK_SIZE, PIECE_SIZE + 5, SIZE - 1])
def test_a_wrong_byte_is_never_yielded_and_left_with_all_behind_it(at: int) -> None:
    replica = HalfInMemory()
    os.pwrite(replica.file.fd, bytes([DATA[at] ^ 1]), at)
    found, left = taken(plan_of(0, SIZE), replica)
    assert left is not None
    assert left.chunk_offset == len(found) <= at
    assert found == DATA[: len(found)]
    assert left.length == SIZE - len(found)
