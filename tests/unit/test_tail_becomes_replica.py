"""Does the file of a tail become its sealed replica, whole, whatever cuts that short and wherever?

Owns: sealing on one server, on real files. Refuses to know: who decides the length (tests/unit/test_master_sealing.py).
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import pytest

from dfs.checksum import BLOCK_SIZE, crc32c
from dfs.chunk.peers import PeerConnections
from dfs.chunk.store import FileStore
from dfs.chunk.tails.folders import TailFolders
from dfs.chunk.tails.log import JOURNAL_START, Round
from dfs.chunk.tails.service import TailService
from dfs.errors import ChunkCorrupt, ChunkNotFound, DiskFull, Overloaded, StaleReplica, TailClosed
from dfs.ids import ChunkHandle
from dfs.net.messages import (
    AppendRecords,
    CreateTail,
    FenceTail,
    FenceTailReply,
    PublishTail,
    PublishTailReply,
)
from dfs.net.parts import RecordGroup
from dfs.testing.replicas import content, path_of

HANDLE = ChunkHandle(bytes(range(16)))
A = b"a" * 16
RECORDS = [Random(number).randbytes(size) for number, size in enumerate((100, 2 * BLOCK_SIZE, 70_000, BLOCK_SIZE))]
SEALED = len(b"".join(RECORDS[:3]))  # the last round is not sealed: it must not be seen in the replica
CALLS = ("pwrite", "pwritev", "write", "ftruncate", "fdatasync", "fsync", "rename")


class _CutError(Exception):
    """The process ends here."""


class Server:
    """One start of a chunk server."""

    def __init__(self, folder: Path, volume_chunk_max: int = 0) -> None:
        self.store = FileStore([folder], "test", disk_reserve=0, volume_chunk_max=volume_chunk_max)
        folders = TailFolders.on(self.store.data_disks)
        self.tails = TailService(folders, self.store, cast(PeerConnections, None), lambda *_: None)

    def fill(self) -> None:
        self.tails.reply(CreateTail(HANDLE, b"", (), 0, 1 << 22, 1 << 20, (), is_head=True), b"")
        for number, record in enumerate(RECORDS, 1):
            self.append(number, record)

    def append(self, number: int, record: bytes) -> None:
        group = RecordGroup(A, number, 1, (len(record),), (crc32c(record),))
        self.tails.reply(AppendRecords(HANDLE, b"", group), record)

    def fence(self) -> FenceTailReply:
        return cast(FenceTailReply, self.tails.reply(FenceTail(HANDLE, b""), b"")[0])

    def publish(self, length: int = SEALED) -> PublishTailReply:
        return cast(PublishTailReply, self.tails.reply(PublishTail(HANDLE, b"", length), b"")[0])

    def check_sealed(self, reply: PublishTailReply) -> None:
        """Raise AssertionError unless the replica is there, whole, and nothing else once the leader gave its word."""
        data = b"".join(RECORDS[:3])
        assert content(self.store, HANDLE) == data
        assert self.store.verify(HANDLE)
        assert (reply.length, reply.crc) == (len(data), crc32c(data))
        assert [(state.appender, state.last_sequence) for state in reply.appenders] == [(A, 3)]
        self.tails.drop(HANDLE)
        assert self.left() == []
        assert self.tails.held() == ()

    def left(self) -> list[str]:
        return sorted(path.suffix for disk in self.store.data_disks for path in (disk.path / "tails").iterdir())


@contextmanager
def started(folder: Path, **settings: int) -> Iterator[Server]:
    server = Server(folder, **settings)
    try:
        yield server
    finally:
        server.store.close()


@contextmanager
def cut_at(step: int, *, is_torn: bool, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the calls that change the disk; the one of that number fails for ever, or is done by half."""
    done: list[str] = []

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) - 1 >= step:
                if is_torn and name in ("pwrite", "write") and len(done) - 1 == step:
                    call(args[0], args[1][: len(args[1]) // 2], *args[2:])
                raise _CutError
            return call(*args, **kwargs)

        return counted

    with patch.context() as within:
        for name in CALLS:
            within.setattr(os, name, wrap(name, getattr(os, name)))
        within.setattr(Path, "rename", wrap("rename", Path.rename))
        yield done


@pytest.mark.parametrize("volume_chunk_max", [0, 1 << 22])
def test_masters_that_were_put_back_to_before_the_seal_find_the_replica(tmp_path: Path, volume_chunk_max: int) -> None:
    """After an import the tail is open again, and its servers dropped it long ago: without this it stayed so."""
    with started(tmp_path / "d", volume_chunk_max=volume_chunk_max) as server:
        server.fill()
        server.fence()
        crc = server.publish().crc
        server.tails.drop(HANDLE)
        again = server.fence()
        assert (again.length, again.is_fresh, again.published_length) == (SEALED, False, SEALED)
        reply = server.publish()
        assert (reply.length, reply.crc, reply.appenders, reply.closed) == (SEALED, crc, (), ())
        with pytest.raises(StaleReplica):
            server.publish(SEALED - 1)
        server.store.delete(HANDLE)
        for ask in (server.fence, server.publish):
            with pytest.raises(ChunkNotFound):
                ask()


def test_a_sealed_tail_is_its_file_cut_and_renamed(tmp_path: Path) -> None:
    with started(tmp_path / "d") as server:
        server.fill()
        (tail,) = (tmp_path / "d" / "tails").iterdir()
        inode, size = tail.stat().st_ino, tail.stat().st_size
        assert size > JOURNAL_START
        reply = server.publish()
        replica = path_of(tmp_path / "d", HANDLE).stat()
        assert (replica.st_ino, server.left()) == (inode, [".seal"])
        assert replica.st_size < SEALED + 100
        assert server.publish() == reply
        with pytest.raises(StaleReplica):
            server.publish(SEALED - len(RECORDS[2]))
        with pytest.raises(TailClosed):
            server.append(5, b"late")
        assert (server.fence().published_length, server.fence().is_fresh) == (SEALED, True)
        server.check_sealed(reply)


def test_a_sealed_tail_keeps_no_room_that_was_made_ahead(tmp_path: Path) -> None:
    records = [Random(number).randbytes(300_000) for number in range(3)]
    with started(tmp_path / "d") as server:
        server.tails.reply(CreateTail(HANDLE, b"", (), 0, 1 << 22, 1 << 20, (), is_head=True), b"")
        for number, record in enumerate(records, 1):
            server.append(number, record)
        (tail,) = (tmp_path / "d" / "tails").iterdir()
        assert tail.stat().st_blocks * 512 > 900_000
        server.publish(900_000)
        assert path_of(tmp_path / "d", HANDLE).stat().st_blocks * 512 < 900_000 + 2 * BLOCK_SIZE
        assert content(server.store, HANDLE) == b"".join(records)


def test_a_small_tail_goes_into_a_volume(tmp_path: Path) -> None:
    with started(tmp_path / "d", volume_chunk_max=1 << 20) as server:
        server.fill()
        server.check_sealed(server.publish())
        assert not path_of(tmp_path / "d", HANDLE).exists()


def test_a_tail_without_records_leaves_no_replica(tmp_path: Path) -> None:
    with started(tmp_path / "d") as server:
        server.fill()
        assert server.publish(0) == server.publish(0)
        assert server.store.replica(HANDLE) is None
        assert server.fence().published_length == 0


@pytest.mark.parametrize("is_torn", [False, True])
def test_sealing_that_is_cut_short_anywhere_is_brought_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_torn: bool
) -> None:
    """After the seal is written the server knows its length; before it any length is possible, as for every tail."""
    folder, step, lengths = tmp_path / "d", 0, set()
    while True:
        with started(folder) as server:
            server.fill()
            with cut_at(step, is_torn=is_torn, patch=monkeypatch) as done:
                try:
                    server.publish()
                except _CutError:
                    pass
                else:
                    break
        with started(folder) as server:
            fenced = server.fence()
            lengths.add(fenced.published_length)
            assert fenced.published_length in (-1, SEALED)
            assert fenced.length == (SEALED if fenced.published_length >= 0 else len(b"".join(RECORDS)))
            server.check_sealed(server.publish())
            server.store.delete(HANDLE)
        step += 1
    assert len(done) == step >= 10, f"these are the steps: {done}"
    assert lengths == {-1, SEALED}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC])
def test_sealing_that_fails_for_a_moment_anywhere_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """After each failure the bytes are in the tail still, also for the server that goes on without a new start."""
    for step in itertools.count():
        with started(tmp_path / str(step)) as server:
            server.fill()
            with failing_at(step, number, monkeypatch) as done:
                try:
                    server.publish()
                except (DiskFull, Overloaded):
                    assert server.store.replica(HANDLE) is None
                else:
                    break
            server.check_sealed(server.publish())
    assert len(done) == step >= 14, f"these are the steps: {done}"


@contextmanager
def failing_at(step: int, number: int, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the calls that change the disk or open a file; the one of that place fails with an error, once."""
    done: list[str] = []

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) - 1 == step:
                raise OSError(number, os.strerror(number))
            return call(*args, **kwargs)

        return counted

    with patch.context() as within:
        for name in (*CALLS, "open"):
            within.setattr(os, name, wrap(name, getattr(os, name)))
        within.setattr(Path, "rename", wrap("rename", Path.rename))
        yield done


def test_a_name_found_at_start_is_made_durable_before_it_is_told_as_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have died between the rename and its sync; the leader's next word removes the seal."""
    with started(tmp_path / "d") as server:
        server.fill()
        server.publish()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    with started(tmp_path / "d") as server:
        server.check_sealed(server.publish())
        assert path_of(tmp_path / "d", HANDLE).parent.stat().st_ino in synced


def test_bytes_that_rotted_between_seal_and_replica_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(tmp_path / "d") as server:
        server.fill()
        with cut_at(4, is_torn=False, patch=monkeypatch) as done, pytest.raises(_CutError):
            server.publish()
        assert done[:4] == ["write", "fdatasync", "fsync", "pwrite"], "the seal is there, the file is not renamed"
    (tail,) = (tmp_path / "d" / "tails").glob("*.tail")
    with tail.open("r+b") as file:
        file.seek(50)
        file.write(b"?")
    with started(tmp_path / "d") as server, pytest.raises(ChunkCorrupt):
        server.publish()


def test_bytes_that_rotted_before_the_seal_are_not_published(tmp_path: Path) -> None:
    with started(tmp_path / "d") as server:
        server.fill()
        (tail,) = (tmp_path / "d" / "tails").iterdir()
        with tail.open("r+b") as file:
            file.seek(SEALED - 1)
            file.write(bytes([RECORDS[2][-1] ^ 1]))
        with pytest.raises(ChunkCorrupt):
            server.publish()
        assert (server.left(), server.store.handles()) == ([".tail"], [])
        assert server.publish(len(RECORDS[0])).crc == crc32c(RECORDS[0]), "what is before it is sound"


def test_a_tail_of_the_first_format_is_sealed_by_copying(tmp_path: Path) -> None:
    with started(tmp_path / "d"):
        pass
    frames, offset = [frame_of_format_1(msgspec.msgpack.encode((0, 1 << 22, 1 << 20, ())), b"")], 0
    for number, record in enumerate(RECORDS, 1):
        item = Round(offset, (RecordGroup(A, number, 1, (len(record),), (crc32c(record),)),))
        frames.append(frame_of_format_1(msgspec.msgpack.encode(item), record))
        offset += len(record)
    (tmp_path / "d" / "tails" / HANDLE.hex()).write_bytes(b"".join(frames))
    with started(tmp_path / "d") as server:
        assert (server.fence().length, server.fence().published_length) == (offset, -1)
        reply = server.publish()
        assert server.publish() == reply
        assert server.fence().published_length == SEALED
        server.check_sealed(reply)


def frame_of_format_1(head: bytes, data: bytes) -> bytes:
    sizes = struct.pack("<II", len(head), len(data))
    return HANDLE + sizes + struct.pack("<I", crc32c(head, crc32c(sizes))) + head + data
