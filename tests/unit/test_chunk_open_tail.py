"""Is an open tail never acknowledged from two sides, ended by whatever fails, and kept on disks that work?"""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path
from typing import cast

import pytest

from dfs.checksum import Buffer, crc32c
from dfs.chunk.disk import Disk
from dfs.chunk.identity import DataDirectory
from dfs.chunk.memstore import MemoryStore
from dfs.chunk.peers import PeerConnections
from dfs.chunk.replicas import Space
from dfs.chunk.tails.folders import TAIL_FOLDER, TailFolders
from dfs.chunk.tails.log import TAIL_SUFFIX, WRITEBACK_SIZE, TailFile, TailLog, TailStart
from dfs.chunk.tails.open_tail import ROOM_PLENTY, Forward, OpenTail, Receipt
from dfs.chunk.tails.service import TAIL_PAYLOAD_MAX, TailService, receive_records
from dfs.clock import SYSTEM_CLOCK, Deadline
from dfs.errors import (
    ChunkCorrupt,
    ChunkNotFound,
    DfsError,
    DiskFailed,
    DiskFull,
    InvalidArgument,
    LimitExceeded,
    ProtocolError,
    TailClosed,
)
from dfs.ids import ChunkHandle, ServerId, id_text, new_chunk_handle
from dfs.net.blocking import Channel, Received
from dfs.net.buffers import SMALL_SIZE, BufferPool
from dfs.net.messages import (
    AppendRecords,
    AppendRecordsReply,
    CreateTail,
    FenceTail,
    Message,
    PublishTail,
    ReplicateRecords,
    ReplicateRecordsReply,
)
from dfs.net.parts import RecordGroup

HANDLE = ChunkHandle(bytes(range(16)))
START = TailStart(0, 10_000, 2_500, ())
A = b"a" * 16
TAIL = HANDLE.hex() + TAIL_SUFFIX


def group(sequence: int, data: bytes) -> RecordGroup:
    return RecordGroup(A, sequence, sequence, (len(data),), (crc32c(data),))


def appended(sequence: int, data: bytes, handle: ChunkHandle = HANDLE) -> AppendRecords:
    return AppendRecords(handle, b"token", group(sequence, data))


def replicated(offset: int, sequence: int, data: bytes) -> ReplicateRecords:
    return ReplicateRecords(HANDLE, b"token", offset, (group(sequence, data),))


def tail_in(folder: Path, forward: Forward | None = None, *, is_head: bool = True) -> OpenTail:
    return OpenTail(TailFile.create(folder / TAIL, HANDLE, START), START.ledger(), forward, is_head=is_head)


# --- one order -------------------------------------------------------------------------------------------


def test_head_takes_no_rounds_from_elsewhere(tmp_path: Path) -> None:
    """Whoever may append knows the token: a round of its own making must not come between those of the head."""
    tail = tail_in(tmp_path)
    with pytest.raises(InvalidArgument):
        tail.replicate(replicated(0, 1, b"forged"), b"forged")
    assert tail.append(appended(1, b"one"), b"one").offsets == (0,)
    with pytest.raises(InvalidArgument):
        tail.replicate(replicated(3, 2, b"forged"), b"forged")
    assert tail.append(appended(2, b"two"), b"two").offsets == (3,)
    assert TailLog(tmp_path / TAIL, HANDLE).content(tail.fence()) == b"onetwo"


def test_server_down_the_chain_orders_nothing_itself(tmp_path: Path) -> None:
    """Not even with the very first message: the master said who the head is."""
    tail = tail_in(tmp_path, is_head=False)
    with pytest.raises(InvalidArgument):
        tail.append(appended(1, b"forged"), b"forged")
    tail.replicate(replicated(0, 1, b"one"), b"one")
    with pytest.raises(InvalidArgument):
        tail.append(appended(1, b"forged"), b"forged")
    assert tail.replicate(replicated(3, 2, b"two"), b"two") == 6
    assert TailLog(tmp_path / TAIL, HANDLE).content(tail.fence()) == b"onetwo"


def test_round_with_a_wrong_byte_is_refused_and_does_not_count(tmp_path: Path) -> None:
    service = service_on(disk_at(tmp_path / "a"))
    message = CreateTail(HANDLE, b"", (), 0, 10_000, 2_500, (), is_head=False)
    service.reply(message, b"")
    service.reply(replicated(0, 1, b"one"), b"one")
    with pytest.raises(ChunkCorrupt, match="checksum"):
        service.reply(replicated(3, 2, b"two"), b"twO")
    assert service.reply(replicated(3, 2, b"two"), b"two")[0] == ReplicateRecordsReply(6)


class Arriving:
    """A channel on which a payload comes."""

    def __init__(self, payload: bytes) -> None:
        self.rest = payload
        self.sizes: list[int] = []

    def receive_into(self, buffer: memoryview, _deadline: Deadline) -> None:
        self.sizes.append(len(buffer))
        buffer[:], self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]


@pytest.mark.parametrize(
    ("sizes", "pieces"), [((70_000, 80_000), [70_000, 80_000, 0]), ((10, 20), [30]), ((200_000,), [200_000]), ((), [0])]
)
def test_records_are_checked_while_they_arrive_and_read_to_their_end(sizes: tuple[int, ...], pieces: list[int]) -> None:
    records = [bytes([number]) * size for number, size in enumerate(sizes)]
    payload = b"".join(records)
    good = RecordGroup(A, 1, 1, sizes, tuple(map(crc32c, records)))
    channel = Arriving(payload)
    data = bytearray(len(payload))
    receive_records(cast(Channel, channel), (good,), memoryview(data))
    assert data == payload
    assert channel.sizes == pieces
    for wrong in range(len(sizes)):
        crcs = [crc ^ (index == wrong) for index, crc in enumerate(good.crcs)]
        channel = Arriving(payload)
        with pytest.raises(ChunkCorrupt, match="checksum"):
            receive_records(cast(Channel, channel), (RecordGroup(A, 1, 1, sizes, tuple(crcs)),), memoryview(data))
        assert channel.rest == b"", "the connection can be used for the next request"


class Conversation(Arriving):
    """The same, on which answers go."""

    is_broken = False

    def __init__(self, payload: bytes) -> None:
        super().__init__(payload)
        self.answers: list[Message] = []

    def send(self, message: Message, _deadline: Deadline, **_rest: object) -> None:
        self.answers.append(message)


def test_large_records_come_into_memory_that_is_used_again(tmp_path: Path) -> None:
    service = service_on(disk_at(tmp_path / "a"))
    size = 100_000
    service.reply(CreateTail(HANDLE, b"", (), 0, 1 << 22, 1 << 20, (), is_head=True), b"")
    for number in range(5):
        record = bytes([number]) * size
        channel = Conversation(record)
        service.answer(cast(Channel, channel), Received(appended(number + 1, record), 1, 0, size))
        assert channel.answers == [AppendRecordsReply((number * size,), number + 1)]
    assert len(service._buffers._buffers) == 1, "nobody keeps a part of it"
    service.reply(FenceTail(HANDLE, b""), b"")
    tail = TailLog(next((tmp_path / "a" / "tails").iterdir()), HANDLE)
    assert tail.content(5 * size) == b"".join(bytes([number]) * size for number in range(5))


def test_round_that_ends_in_a_bug_ends_the_tail(tmp_path: Path) -> None:
    """Its records were ordered, and are not in the file: what is ordered behind them would stand at wrong offsets."""

    def crashing(_message: ReplicateRecords, _data: Buffer, _deadline: Deadline) -> Receipt:
        raise RuntimeError("a bug")

    tail = tail_in(tmp_path, crashing)
    with pytest.raises(RuntimeError):
        tail.append(appended(1, b"one"), b"one")
    tail._forward = None
    with pytest.raises(TailClosed, match="bug"):
        tail.append(appended(2, b"two"), b"two")
    assert tail.fence() == 0


# --- disks -----------------------------------------------------------------------------------------------


def disk_at(path: Path, free: int = 10**9) -> Disk:
    path.mkdir()
    probe = Space(10**9, free)
    return Disk(DataDirectory(path), reserve=1000, probe=lambda _: probe, clock=SYSTEM_CLOCK, on_failed=lambda _: None)


def service_on(*disks: Disk) -> TailService:
    store = MemoryStore(ServerId(bytes(16)), 1 << 40)
    return TailService(TailFolders.on(disks), store, cast(PeerConnections, None), lambda *_: None)


def create(service: TailService) -> ChunkHandle:
    handle = new_chunk_handle()
    service.reply(CreateTail(handle, b"", (), 0, 10_000, 2_500, (), is_head=True), b"")
    return handle


def test_tails_stay_away_from_disks_that_failed_or_filled(tmp_path: Path) -> None:
    good, full, failed, late = (
        disk_at(tmp_path / "good"),
        disk_at(tmp_path / "full", 10_500),
        disk_at(tmp_path / "failed"),
        disk_at(tmp_path / "late"),
    )
    failed.fail("broken before the start")
    service = service_on(good, full, failed, late)
    late.fail("broken since")
    for _ in range(5):
        create(service)
    assert not (failed.path / TAIL_FOLDER).exists()  # what is mounted there now may be no disk at all
    assert [len(list((disk.path / TAIL_FOLDER).iterdir())) for disk in (good, full, late)] == [5, 0, 0]
    good.fail("broken at last")
    with pytest.raises(DiskFull):
        create(service)
    full.fail("broken, too")
    with pytest.raises(DiskFailed):
        create(service)


def test_only_a_server_all_of_whose_disks_work_says_that_it_has_no_such_tail(tmp_path: Path) -> None:
    handle = new_chunk_handle()
    good, failed = disk_at(tmp_path / "good"), disk_at(tmp_path / "failed")
    with pytest.raises(ChunkNotFound) as caught:
        service_on(good).reply(FenceTail(handle, b""), b"")
    assert caught.value.details == {"server": id_text(bytes(16))}
    service = service_on(good, failed)
    failed.fail("broken since")
    with pytest.raises(DiskFailed, match=r"no tail .* on the disks of this server that work"):
        service.reply(FenceTail(handle, b""), b"")
    with pytest.raises(DiskFailed):
        service_on(good, failed).reply(PublishTail(handle, b"", 3), b"")
    unreadable = disk_at(tmp_path / "unreadable")
    (unreadable.path / TAIL_FOLDER).touch()
    with pytest.raises(DiskFailed):
        service_on(good, unreadable).reply(FenceTail(handle, b""), b"")


def test_failed_sync_of_a_round_fails_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = disk_at(tmp_path / "a")
    service = service_on(disk)
    handle = create(service)

    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(TailClosed):
        service.reply(appended(1, b"one", handle), b"one")
    assert disk.has_failed


def test_full_disk_ends_the_tail_but_not_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = disk_at(tmp_path / "a")
    service = service_on(disk)
    handle = create(service)
    service.reply(appended(1, b"one", handle), b"one")
    pwritev = os.pwritev

    def full(fd: int, buffers: list[bytes], offset: int) -> int:
        pwritev(fd, buffers[:1], offset)  # a part of it fits
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(TailClosed):
            service.reply(appended(2, b"two", handle), b"two")
    assert not disk.has_failed
    with pytest.raises(DiskFull):
        create(service)  # it is left alone for a while
    service.reply(FenceTail(handle, b""), b"")
    service.reply(PublishTail(handle, b"", 3), b"")


def test_a_tail_leaves_the_reserve_of_its_disk_alone(tmp_path: Path) -> None:
    """To seal it takes room, too, and deletions are to find some."""
    free = [10**9]
    (tmp_path / "a").mkdir()
    disk = Disk(
        DataDirectory(tmp_path / "a"),
        reserve=1000,
        probe=lambda _: Space(10**9, free[0]),
        clock=SYSTEM_CLOCK,
        on_failed=lambda _: None,
    )
    service = service_on(disk)
    handle = create(service)
    free[0] = 1003
    service.reply(appended(1, b"one", handle), b"one")
    free[0] = 1002
    with pytest.raises(TailClosed, match="reserve"):
        service.reply(appended(2, b"two", handle), b"two")
    service.reply(FenceTail(handle, b""), b"")
    service.reply(PublishTail(handle, b"", 3), b"")


@pytest.mark.parametrize(("free", "is_made"), [(10**9, True), (ROOM_PLENTY + 1000, True), (ROOM_PLENTY + 999, False)])
def test_room_is_made_ahead_of_large_rounds_only_while_there_is_plenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, is_made: bool
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("dfs.chunk.tails.log.reserve_room", lambda _fd, _start, size: asked.append(size))
    service, handle, data = service_on(disk_at(tmp_path / "a", free)), new_chunk_handle(), bytes(WRITEBACK_SIZE)
    service.reply(CreateTail(handle, b"", (), 0, 4 * WRITEBACK_SIZE, WRITEBACK_SIZE, (), is_head=True), b"")
    service.reply(appended(1, data[1:], handle), data[1:])
    assert not asked, "a small round needs none"
    service.reply(appended(2, data, handle), data)
    assert bool(asked) is is_made
    service.reply(appended(3, data, handle), data)
    assert len(asked) == is_made, "there is enough for the next one"


def test_no_room_is_made_in_a_file_that_becomes_a_replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = tail_in(tmp_path)
    tail.end()
    monkeypatch.setattr("dfs.chunk.tails.log.reserve_room", lambda *_: pytest.fail("it would keep that room for ever"))
    tail.file.make_room(1)


def test_folder_of_tails_is_durable_before_the_first_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    disk = disk_at(tmp_path / "a")
    service_on(disk)
    assert disk.path.stat().st_ino in synced


def test_a_refused_record_is_let_go_at_once(tmp_path: Path) -> None:
    """Its memory is large, is used again, and is counted only while the request lasts."""
    service, pool = service_on(disk_at(tmp_path / "a")), BufferPool(2 * SMALL_SIZE, 1)
    handle = create(service)

    def refused(cls: type[DfsError]) -> object:
        data = pool.take(2 * SMALL_SIZE)
        with pytest.raises(cls) as caught:
            service.reply(appended(1, bytes(data), handle), data)
        del caught
        return data.obj

    gc.disable()  # which would find it at some time
    try:
        memory = refused(LimitExceeded)
        assert refused(LimitExceeded) is memory
        service.reply(FenceTail(handle, b""), b"")
        assert refused(TailClosed) is memory
        assert refused(TailClosed) is memory
    finally:
        gc.enable()


# --- nonsense --------------------------------------------------------------------------------------------


def test_payload_that_no_record_needs_is_refused_before_it_is_read(tmp_path: Path) -> None:
    service = service_on(disk_at(tmp_path / "a"))
    size = TAIL_PAYLOAD_MAX + 1
    message: Message = ReplicateRecords(HANDLE, b"", 0, (RecordGroup(A, 1, 1, (size,), (0,)),))
    with pytest.raises(ProtocolError):
        service.answer(cast(Channel, None), Received(message, 1, 0, size))
