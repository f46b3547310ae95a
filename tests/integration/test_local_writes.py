"""Do writes keep their promises through the local door: from lent memory, beside the chain, and among hostile peers?"""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE, block_checksums, crc32c
from dfs.client import lanes as lanes_module
from dfs.client.lanes import LANES_KEPT, LANES_MAX, SLOT_SIZE, SLOTS, Lanes
from dfs.client.local_replicas import LocalReplicas
from dfs.client.parallel import Cancellation, CancelledTransfer
from dfs.client.plan import ServerHealth
from dfs.client.pool import ChannelPool
from dfs.client.replica_reads import ReplicaReader
from dfs.client.transfer import Transfer
from dfs.client.write_target import ChunkNotWritten, WriteTarget
from dfs.errors import (
    ChunkCorrupt,
    ConnectionFailed,
    DfsError,
    InvalidArgument,
    LimitExceeded,
    LocalFileError,
    ProtocolError,
    TokenExpired,
    TokenInvalid,
)
from dfs.fast_paths import VARIABLE
from dfs.ids import ChunkHandle, new_chunk_handle
from dfs.net.auth import Rights
from dfs.net.blocking import Channel, expect
from dfs.net.lent_memory import OwnMemory
from dfs.net.local import LocalChannel, LocalStream
from dfs.net.messages import (
    FinishChunk,
    LendMemory,
    LendMemoryReply,
    WriteChunk,
    WriteChunkReply,
    WriteData,
    WriteLent,
    WriteLentReply,
)
from dfs.net.parts import NewChunk
from dfs.testing.chunk_server import KEY, LoopbackChunkServer, info, read, soon, target_on, token, wait_until
from dfs.testing.replicas import path_of

pytestmark = pytest.mark.usefixtures("all_fast_paths")
MEMORY_SIZE = 4 * BLOCK_SIZE


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """Power cuts are not in question here. And doors that a busy machine is slow to open are used all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _fd: None)
        patch.setattr(lanes_module, "DOOR_TIMEOUT_S", 60.0)
        yield


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[LoopbackChunkServer]]:
    """Three chunk servers on real files; a test opens the doors that it wants."""
    with ExitStack() as stack:
        made = []
        for name in ("a", "b", "c"):
            made.append(LoopbackChunkServer(tmp_path / name))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture(scope="module")
def server(
    without_fsync: None, all_fast_paths: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LoopbackChunkServer]:
    """One with an open door, for all tests that only talk to it."""
    found = LoopbackChunkServer(tmp_path_factory.mktemp("server"))
    found.open_door()
    yield found
    found.close()


# --- the talk at one door -------------------------------------------------------------------------------------


class Writer:
    """Whoever writes through a door, word by word."""

    def __init__(self, server: LoopbackChunkServer) -> None:
        self.memory = OwnMemory(MEMORY_SIZE)
        self.channel = LocalChannel.enter(server.store.server_id, KEY, soon())

    def close(self) -> None:
        self.channel.close()
        self.memory.close()

    def lend(self) -> None:
        self.channel.send_descriptor(LendMemory(MEMORY_SIZE), self.memory.fd, soon())
        expect(self.channel.receive(soon()).message, LendMemoryReply)

    def open(self, handle: ChunkHandle, rights: bytes | None = None, chain: tuple[str, ...] = ()) -> None:
        self.channel.send(WriteChunk(handle, rights or token(handle, Rights.WRITE), chain), soon())

    def write(self, data: bytes, offset: int = 0, checksums: bytes | None = None) -> None:
        """Hand over bytes at a place of the memory, and hear that they were taken."""
        self.memory.view[offset : offset + len(data)] = data
        self.say(WriteLent(offset, len(data), block_checksums(data) if checksums is None else checksums))

    def say(self, piece: WriteLent) -> None:
        self.channel.send(piece, soon())
        self.hear()

    def hear(self) -> None:
        expect(self.channel.receive(soon()).message, WriteLentReply)

    def finish(self, data: bytes) -> WriteChunkReply:
        self.channel.send(FinishChunk(len(data), crc32c(data)), soon())
        return expect(self.channel.receive(soon()).message, WriteChunkReply)


@contextmanager
def entered(server: LoopbackChunkServer) -> Iterator[Writer]:
    writer = Writer(server)
    try:
        writer.lend()
        yield writer
    finally:
        writer.close()


def content(server: LoopbackChunkServer, handle: ChunkHandle, size: int) -> bytes:
    with Channel.connect(server.address, KEY, soon()) as channel:
        return read(channel, handle, 0, size)[1]


def assert_nothing_left(server: LoopbackChunkServer, handle: ChunkHandle) -> None:
    wait_until(lambda: not server.temporaries() and not server.service.active_streams, soon())
    assert server.store.replica(handle) is None
    server.store.create(handle).discard()  # raises if it were still being written


def test_chunks_follow_each_other_through_one_door(server: LoopbackChunkServer) -> None:
    (before,) = lent_bytes([server])
    with entered(server) as writer:
        for size in (5, BLOCK_SIZE, 3 * MEMORY_SIZE + 17):
            handle, data = new_chunk_handle(), os.urandom(size)
            writer.open(handle)
            for position in range(0, size, BLOCK_SIZE):
                writer.write(data[position : position + BLOCK_SIZE], position % MEMORY_SIZE)
            assert writer.finish(data).servers == (server.store.server_id,)
            assert content(server, handle, size) == data
            assert server.store.verify(handle)
    assert lent_bytes([server])[0] - before == 5 + BLOCK_SIZE + 3 * MEMORY_SIZE + 17


def test_a_server_at_the_door_passes_the_chunk_on_to_servers_that_have_none(
    servers: list[LoopbackChunkServer],
) -> None:
    servers[0].open_door()
    handle, data = new_chunk_handle(), os.urandom(MEMORY_SIZE)
    with entered(servers[0]) as writer:
        writer.open(handle, chain=tuple(other.address for other in servers[1:]))
        writer.write(data)
        assert writer.finish(data).servers == tuple(each.store.server_id for each in servers)
    assert [content(each, handle, MEMORY_SIZE) for each in servers] == [data] * 3


def test_wrong_bytes_are_refused_and_nothing_is_left(server: LoopbackChunkServer) -> None:
    handle = new_chunk_handle()
    with entered(server) as writer:
        writer.open(handle)
        writer.write(bytes(BLOCK_SIZE))
        with pytest.raises(ChunkCorrupt, match="does not match its checksum on arrival"):
            writer.write(bytes(BLOCK_SIZE), 0, block_checksums(b"\1" * BLOCK_SIZE))
        with pytest.raises(ConnectionFailed):
            writer.channel.receive(soon())
    assert_nothing_left(server, handle)


def test_a_wrong_end_is_refused_and_nothing_is_left(server: LoopbackChunkServer) -> None:
    handle, data = new_chunk_handle(), os.urandom(BLOCK_SIZE)
    for wrong in (b"x" + data[1:], data[:-1], data + b"x"):
        with entered(server) as writer:
            writer.open(handle)
            writer.write(data)
            with pytest.raises(DfsError):
                writer.finish(wrong)
        assert_nothing_left(server, handle)


@pytest.mark.parametrize(
    ("piece", "error"),
    [
        (WriteLent(MEMORY_SIZE, BLOCK_SIZE, bytes(4)), InvalidArgument),
        (WriteLent(1, MEMORY_SIZE, bytes(16)), InvalidArgument),
        (WriteLent(-BLOCK_SIZE, BLOCK_SIZE, bytes(4)), InvalidArgument),
        (WriteLent(0, -1, b""), InvalidArgument),
        (WriteLent(0, 1 << 60, b""), InvalidArgument),
        (WriteLent(0, BLOCK_SIZE, bytes(8)), InvalidArgument),
        (WriteLent(0, 0, b""), LimitExceeded),
    ],
)
def test_a_piece_that_cannot_be_is_refused(
    server: LoopbackChunkServer, piece: WriteLent, error: type[DfsError]
) -> None:
    handle = new_chunk_handle()
    with entered(server) as writer:
        writer.open(handle)
        with pytest.raises(error):
            writer.say(piece)
    assert_nothing_left(server, handle)


def test_the_token_of_a_chunk_is_asked_for_as_over_the_network(server: LoopbackChunkServer) -> None:
    handle = new_chunk_handle()
    wrong = {
        token(handle, Rights.READ): TokenInvalid,
        token(new_chunk_handle(), Rights.WRITE): TokenInvalid,
        token(handle, Rights.WRITE, -5.0): TokenExpired,
    }
    for rights, error in wrong.items():
        with entered(server) as writer:
            writer.open(handle, rights)
            with pytest.raises(error):
                writer.hear()
    with entered(server) as writer:
        writer.open(handle, chain=(server.address,))
        with pytest.raises(InvalidArgument, match="twice"):
            writer.hear()
    assert_nothing_left(server, handle)


def test_words_in_a_wrong_place_end_the_connection(server: LoopbackChunkServer) -> None:
    handle = new_chunk_handle()
    writer = Writer(server)
    writer.open(handle)  # before memory was lent
    with pytest.raises(ProtocolError, match="does not answer WriteChunk"):
        writer.hear()
    writer.close()
    for word in (WriteChunk(handle, b"", ()), WriteData(b""), LendMemory(1)):
        with entered(server) as writer:
            writer.open(handle)
            writer.channel.send(word, soon())
            with pytest.raises(ProtocolError, match="in the middle of a chunk"):
                writer.hear()
    with entered(server) as writer, pytest.raises(ProtocolError, match="does not answer LendMemory"):
        writer.lend()
    assert_nothing_left(server, handle)


@pytest.mark.parametrize("step", ["opened", "written", "memory overwritten"])
def test_a_writer_that_dies_leaves_nothing(server: LoopbackChunkServer, step: str) -> None:
    handle = new_chunk_handle()
    with entered(server) as writer:
        writer.open(handle)
        if step != "opened":
            writer.write(os.urandom(MEMORY_SIZE))
        if step == "memory overwritten":
            writer.memory.view[:] = bytes(MEMORY_SIZE)
    assert_nothing_left(server, handle)


def test_what_was_verified_cannot_be_changed_by_its_writer(server: LoopbackChunkServer) -> None:
    """Memory that changes all the time either is refused or was stored as its checksums say; never anything else."""
    stop = threading.Event()
    outcomes: set[str] = set()
    with ExitStack() as stack:
        spoiled: list[memoryview] = []

        def spoil() -> None:
            while not stop.is_set():
                for view in spoiled:
                    view[MEMORY_SIZE - 1] ^= 1

        thread = threading.Thread(target=spoil, daemon=True)
        thread.start()
        stack.callback(thread.join, 20)
        stack.callback(stop.set)
        for _ in range(60):
            handle, data = new_chunk_handle(), bytes(MEMORY_SIZE)
            with entered(server) as writer:
                writer.open(handle)
                spoiled[:] = [writer.memory.view]
                try:
                    writer.say(WriteLent(0, MEMORY_SIZE, block_checksums(data)))
                    writer.finish(data)
                except ChunkCorrupt:
                    outcomes.add("refused")
                    assert_nothing_left(server, handle)
                else:
                    outcomes.add("stored")
                    assert content(server, handle, MEMORY_SIZE) == data
                    assert server.store.verify(handle)
                spoiled.clear()
            if len(outcomes) == 2:
                break
    assert outcomes


def test_what_was_taken_is_on_the_disk_and_not_in_the_memory_any_more(server: LoopbackChunkServer) -> None:
    handle, data = new_chunk_handle(), os.urandom(MEMORY_SIZE)
    with entered(server) as writer:
        writer.open(handle)
        writer.write(data)
        writer.memory.view[:] = bytes(MEMORY_SIZE)
        writer.finish(data)
    assert content(server, handle, MEMORY_SIZE) == data
    assert server.store.verify(handle)


# --- hostile descriptors ----------------------------------------------------------------------------------------


def held_count(path: Path) -> int:
    """How many descriptors of this process are of one file. Whatever else is open may change at any moment."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, as that of the listing itself
            count += link.readlink() == path
    return count


@pytest.fixture
def unwanted(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "unwanted"
    path.write_bytes(bytes(MEMORY_SIZE))
    yield path
    assert held_count(path) == 0


def test_a_descriptor_that_is_no_memory_is_refused_and_the_door_stays_open(
    server: LoopbackChunkServer, unwanted: Path
) -> None:
    writer = Writer(server)
    fd = os.open(unwanted, os.O_RDWR)
    for _ in range(5):
        writer.channel.send_descriptor(LendMemory(MEMORY_SIZE), fd, soon())
        with pytest.raises(InvalidArgument, match="no memory"):
            expect(writer.channel.receive(soon()).message, LendMemoryReply)
    os.close(fd)
    wait_until(lambda: held_count(unwanted) == 0, soon())
    writer.lend()
    writer.close()


def test_memory_that_is_announced_and_does_not_come_ends_the_connection(server: LoopbackChunkServer) -> None:
    writer = Writer(server)
    writer.channel.send(LendMemory(MEMORY_SIZE), soon())
    with pytest.raises(DfsError, match="none came"):
        expect(writer.channel.receive(soon()).message, LendMemoryReply)
    writer.close()


@pytest.mark.parametrize("at_once", [1, 2, 50])
def test_descriptors_that_nobody_asked_for_are_closed_even_before_the_handshake(
    server: LoopbackChunkServer, unwanted: Path, at_once: int
) -> None:
    with unwanted.open() as file:
        rights = array.array("i", [file.fileno()] * at_once)
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
                sock.connect(f"\0dfs/{server.store.server_id.hex()}")
                for _ in range(20):
                    sock.sendmsg([b"D"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    wait_until(lambda: held_count(unwanted) == 0, soon())
    with entered(server) as writer:
        assert not writer.channel.is_broken


def test_a_stream_holds_one_descriptor_at_most(unwanted: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs, unwanted.open() as file, closing(LocalStream(ours, "a peer")) as stream:
        for _ in range(2):
            socket.send_fds(theirs, [b"x"], [file.fileno()])
        with pytest.raises(ProtocolError, match="before the last one was taken"):
            stream.take(2, soon())
        assert stream.is_broken
        assert held_count(unwanted) == 1, "that of this test"


# --- whole chunks, by whichever ways there are --------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A chunk of bytes at hand; `fails_at`: from where on its file cannot be read."""

    data: bytes
    fails_at: int = 1 << 60

    @property
    def length(self) -> int:
        return len(self.data)

    def pieces(self) -> Iterator[memoryview]:
        for position in range(0, self.length, SLOT_SIZE):
            yield memoryview(self.data)[position : position + SLOT_SIZE]

    def fill(self, position: int, view: memoryview) -> None:
        if position >= self.fails_at:
            raise LocalFileError("the source cannot be read")
        view[:] = self.data[position : position + len(view)]


@contextmanager
def client() -> Iterator[tuple[Transfer, Lanes]]:
    pool, health, lanes = ChannelPool(KEY), ServerHealth(), Lanes(KEY)
    yield Transfer(pool, health, ReplicaReader(pool, health, LocalReplicas(KEY, is_used=False), 10.0), lanes), lanes
    pool.close()
    lanes.close()


def written(
    transfer: Transfer, target: WriteTarget, source: Source, cancellation: Cancellation | None = None
) -> tuple[NewChunk, list[int]]:
    reached: list[int] = []
    return transfer.write_chunk(target, source, reached.append, cancellation or Cancellation()), reached


def lent_bytes(servers: list[LoopbackChunkServer]) -> list[int]:
    return [server.service.meter.bytes.values().get("lent", 0) for server in servers]


SIZES = [1, SLOT_SIZE, SLOTS * SLOT_SIZE, 5 * SLOT_SIZE + 3 * BLOCK_SIZE + 77]


@pytest.mark.parametrize("with_doors", [(), (0, 1, 2), (0,), (1,), (2,), (0, 2)], ids=str)
def test_a_chunk_reaches_all_servers_by_doors_and_the_others_by_a_chain(
    servers: list[LoopbackChunkServer], with_doors: tuple[int, ...]
) -> None:
    for number in with_doors:
        servers[number].open_door()
    with client() as (transfer, _):
        for size in SIZES:
            target, source = target_on(servers), Source(os.urandom(size))
            chunk, reached = written(transfer, target, source)
            assert chunk == NewChunk(
                target.handle, size, crc32c(source.data), tuple(server.store.server_id for server in servers)
            )
            assert reached[-1] == size
            assert [content(server, target.handle, size) for server in servers] == [source.data] * 3
            assert all(server.store.verify(target.handle) for server in servers)
    taken = [sum(SIZES) if number in with_doors else 0 for number in range(3)]
    assert lent_bytes(servers) == taken, "who has a door takes from memory, the others do not"


def test_files_are_the_same_whichever_way_they_came(
    servers: list[LoopbackChunkServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(os.urandom(SIZES[-1]))
    stored: list[list[bytes]] = []
    target = target_on(servers)
    for server in servers:
        server.open_door()
    for left_out in ("memory-door", ""):
        monkeypatch.setenv(VARIABLE, left_out)
        with client() as (transfer, _):
            written(transfer, target, source)
        stored.append([path_of(server.path, target.handle).read_bytes() for server in servers])
        for server in servers:
            server.store.delete(target.handle)
    assert lent_bytes(servers) == [source.length] * 3, "the second time only"
    assert stored[0] == stored[1]
    assert len(stored[0][0]) > source.length


@pytest.mark.parametrize("full", [0, 1, 2])
def test_the_server_that_refuses_is_named_and_the_others_go_on(servers: list[LoopbackChunkServer], full: int) -> None:
    for server in servers:
        server.open_door()
    with client() as (transfer, _):
        written(transfer, target_on(servers), Source(os.urandom(SLOT_SIZE)))
        servers[full].free = 0
        target = target_on(servers)
        with pytest.raises(ChunkNotWritten) as failure:
            written(transfer, target, Source(os.urandom(6 * SLOT_SIZE)))
        assert "no disk of this chunk server has room" in failure.value.error.message
        assert [server.address for server in failure.value.failed] == [servers[full].address]
        others = [server for server in servers if server is not servers[full]]
        for server in others:
            assert_nothing_left(server, target.handle)
        before = lent_bytes(others)
        written(transfer, target_on(others), Source(os.urandom(SLOT_SIZE)))
        assert lent_bytes(others) == [count + SLOT_SIZE for count in before], "their doors stay in use"


def test_a_far_server_that_refuses_is_named_by_the_near_one(servers: list[LoopbackChunkServer]) -> None:
    servers[1].open_door()
    servers[2].free = 0
    with client() as (transfer, _), pytest.raises(ChunkNotWritten) as failure:
        written(transfer, target_on(servers), Source(os.urandom(6 * SLOT_SIZE)))
    assert [server.address for server in failure.value.failed] == [servers[2].address]


def test_a_server_that_died_is_met_over_the_network_and_named(servers: list[LoopbackChunkServer]) -> None:
    for server in servers:
        server.open_door()
    with client() as (transfer, _):
        written(transfer, target_on(servers), Source(os.urandom(SLOT_SIZE)))
        servers[1].close()
        with pytest.raises(ChunkNotWritten) as failure:
            written(transfer, target_on(servers), Source(os.urandom(SLOT_SIZE)))
        assert [server.address for server in failure.value.failed] == [servers[1].address]


def test_a_token_that_is_too_old_is_nobodys_fault(servers: list[LoopbackChunkServer]) -> None:
    for server in servers:
        server.open_door()
    with client() as (transfer, _), pytest.raises(ChunkNotWritten) as failure:
        written(transfer, target_on(servers, lifetime_s=-5.0), Source(os.urandom(SLOT_SIZE)))
    assert isinstance(failure.value.error, TokenExpired)
    assert failure.value.failed == ()


def test_a_source_that_fails_or_a_transfer_that_is_over_leaves_nothing(servers: list[LoopbackChunkServer]) -> None:
    for server in servers:
        server.open_door()
    with client() as (transfer, _):
        target = target_on(servers)
        with pytest.raises(LocalFileError):
            written(transfer, target, Source(os.urandom(4 * SLOT_SIZE), fails_at=3 * SLOT_SIZE))
        cancellation = Cancellation()
        cancellation.cancel()
        with pytest.raises(CancelledTransfer):
            written(transfer, target, Source(os.urandom(SLOT_SIZE)), cancellation)
        for server in servers:
            assert_nothing_left(server, target.handle)
        written(transfer, target, Source(os.urandom(SLOT_SIZE)))


def test_a_server_that_borrows_nothing_is_written_to_over_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "memory-door")
    server = LoopbackChunkServer(tmp_path / "old")
    monkeypatch.setenv(VARIABLE, "")
    server.open_door()
    try:
        with client() as (transfer, _):
            for _ in range(2):
                target, source = target_on([server]), Source(os.urandom(SLOT_SIZE))
                written(transfer, target, source)
                assert content(server, target.handle, SLOT_SIZE) == source.data
        assert lent_bytes([server]) == [0]
    finally:
        server.close()


def test_a_door_behind_which_nobody_answers_is_left_alone(
    servers: list[LoopbackChunkServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "DOOR_TIMEOUT_S", 2.0)  # enough for the one that has a good door
    servers[0].open_door()
    with socket.socket(socket.AF_UNIX) as impostor, client() as (transfer, _):
        impostor.bind(f"\0dfs/{servers[1].store.server_id.hex()}")
        impostor.listen()
        for _ in range(2):
            target, source = target_on(servers), Source(os.urandom(SLOT_SIZE))
            written(transfer, target, source)
            assert all(server.store.verify(target.handle) for server in servers)
    assert lent_bytes(servers) == [2 * SLOT_SIZE, 0, 0]


def test_lanes_are_bounded_used_again_and_let_go(servers: list[LoopbackChunkServer]) -> None:
    servers[0].open_door()
    chain = (info(servers[0]),)
    memories: set[int] = set()  # inodes

    def held() -> tuple[int, int]:
        """How many descriptors are of memory that was lent, and how many ends the server holds of connections."""
        count = 0
        for link in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                count += str(link.readlink()).startswith("/memfd:") and link.stat().st_ino in memories
        name = f"@dfs/{servers[0].store.server_id.hex()}"
        return count, Path("/proc/net/unix").read_text().count(name) - 1  # the one that listens

    with client() as (_, lanes):
        with ExitStack() as stack:
            found = [stack.enter_context(lanes.entered(chain)) for _ in range(LANES_MAX + 2)]
            assert [entered is not None for entered in found] == [True] * LANES_MAX + [False] * 2
            memories |= {os.fstat(entered[0]._memory.fd).st_ino for entered in found if entered is not None}
            assert len(memories) == LANES_MAX
            wait_until(lambda: held() == (3 * LANES_MAX, LANES_MAX), soon())  # memory and mapping here, memory there
        wait_until(lambda: held() == (3 * LANES_KEPT, LANES_KEPT), soon())
        with lanes.entered(chain) as first:
            assert first is not None
        with lanes.entered(chain) as second:
            assert second is not None
            assert second[0] is first[0]
    wait_until(lambda: held() == (0, 0), soon())
