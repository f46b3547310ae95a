"""Do bytes come back as they went, whatever chunk servers do meanwhile? A cluster in memory, on real sockets."""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE, crc32c
from dfs.client import DfsClient, ReadRules, replica_reads, transfer
from dfs.errors import (
    AlreadyExists,
    ChainBroken,
    ChunkCorrupt,
    ChunkNotFound,
    Conflict,
    IsADirectory,
    LocalFileError,
    NotFound,
)
from dfs.fast_paths import VARIABLE
from dfs.ids import ChunkHandle
from dfs.net.blocking import Channel
from dfs.net.messages import Locate, LocateReply, Message
from dfs.net.parts import FileStatus
from dfs.testing.memory_cluster import MemoryChunkServer, MemoryCluster
from dfs.testing.replicas import put

CHUNK = 256 * 1024
SIZES = [0, 1, BLOCK_SIZE, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 12_345]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryCluster]:
    """A cluster for the tests that break nothing."""
    with MemoryCluster(tmp_path_factory.mktemp("cluster"), chunk_size=CHUNK) as running:
        yield running


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MemoryCluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with MemoryCluster(folder, chunk_servers=4, chunk_size=CHUNK) as running:
        yield running


@pytest.fixture
def client(cluster: MemoryCluster) -> Iterator[DfsClient]:
    with cluster.client() as found:
        yield found


@pytest.fixture
def quick_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds, for the healthy servers of a busy machine must keep these limits, too."""
    monkeypatch.setattr(replica_reads, "READ_STALL_S", 1.0)
    monkeypatch.setattr(transfer, "WRITE_STALL_S", 2.0)
    monkeypatch.setattr(transfer, "FINISH_TIMEOUT_S", 2.0)


@pytest.mark.parametrize(("without", "messages"), [("", 3), ("fan-out", 1)])
def test_small_puts_in_a_row_cost_one_commit_and_one_message_to_each_or_one_chunk_server(
    shared: MemoryCluster, monkeypatch: pytest.MonkeyPatch, without: str, messages: int
) -> None:
    monkeypatch.setenv(VARIABLE, without)
    top = f"/row{messages}"
    sent: list[str] = []
    send = Channel.send

    def noted(channel: Channel, message: Message, *arguments: object, **options: object) -> None:
        if threading.current_thread() is threading.main_thread():
            sent.append(type(message).__name__)
        send(channel, message, *arguments, **options)  # type: ignore[arg-type]

    with shared.client() as client:
        client.put(io.BytesIO(b"first"), f"{top}/first", parents=True)
        client.put(io.BytesIO(b"second"), f"{top}/second")
        monkeypatch.setattr(Channel, "send", noted)
        for number in range(100):
            client.put(io.BytesIO(b"%d" % number), f"{top}/{number}")
        monkeypatch.undo()
        assert all(fetched(client, f"{top}/{number}") == b"%d" % number for number in range(0, 100, 9))
    assert (sent.count("CommitFile"), sent.count("StoreChunk")) == (100, 100 * messages)
    assert sent.count("Allocate") < 8
    assert len(sent) == 100 + 100 * messages + sent.count("Allocate")


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def source_file(folder: Path, data: bytes) -> Path:
    path = folder / "source"
    path.write_bytes(data)
    return path


def fetched(client: DfsClient, path: str) -> bytes:
    return b"".join(client.read(path))


def located(cluster: MemoryCluster, path: str) -> list[tuple[ChunkHandle, list[MemoryChunkServer]]]:
    """Return each chunk of a file with the servers that hold it by the masters' map."""
    state = cluster.masters[0].state
    found = []
    for extent in state.extents(path, 0, 1000, 0).extents:
        chunk = state.chunk(extent.handle)
        assert chunk is not None
        servers = [server for server in cluster.chunk_servers if server.store.server_id in chunk.servers]
        found.append((extent.handle, servers))
    return found


class Pipe(io.RawIOBase):
    """A stream as pipes are: it cannot seek, and gives what it likes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._dice = random.Random(len(data))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), len(self._data), self._dice.randint(1, 100_000))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


# --- round trips ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_back_as_it_went(shared: MemoryCluster, tmp_path: Path, size: int) -> None:
    data = content(size)
    stored: list[int] = []
    got: list[int] = []
    with shared.client() as client:
        status = client.put(source_file(tmp_path, data), f"/file-{size}", progress=stored.append)
        assert (status.size, status.extent_count) == (size, -(-size // CHUNK))
        assert client.get(f"/file-{size}", tmp_path / "target", progress=got.append) == status
        assert (tmp_path / "target").read_bytes() == data
        assert sum(stored) == sum(got) == size
        assert fetched(client, f"/file-{size}") == data
        assert client.checksum(f"/file-{size}").value == f"{crc32c(data):08x}"


@pytest.mark.parametrize("size", [*SIZES, 7 * 1024 * 1024])
def test_a_stream_comes_back_as_it_went(shared: MemoryCluster, size: int) -> None:
    data = content(size)
    stored: list[int] = []
    with shared.client() as client:
        status = client.put(io.BufferedReader(Pipe(data)), f"/stream-{size}", progress=stored.append)
        assert (status.size, status.extent_count) == (size, -(-size // CHUNK))
        assert sum(stored) == size
        target = io.BytesIO()
        client.get(f"/stream-{size}", target)
        assert target.getvalue() == data


def test_a_named_pipe_is_read_as_a_stream(shared: MemoryCluster, tmp_path: Path) -> None:
    data = content(3 * CHUNK + 1)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(data))
    writer.start()
    with shared.client() as client:
        client.put(tmp_path / "pipe", "/from-pipe")
        writer.join()
        assert fetched(client, "/from-pipe") == data


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (0, 1), (1, 1), (CHUNK - 1, 2), (70_000, 2 * CHUNK), (5 * CHUNK, None), (10**9, 5), (3, None)],
)
def test_a_range_is_exactly_what_was_asked_for(
    shared: MemoryCluster, tmp_path: Path, offset: int, length: int | None
) -> None:
    data = content(5 * CHUNK + 777)
    wanted = data[offset:] if length is None else data[offset : offset + length]
    with shared.client() as client:
        client.put(source_file(tmp_path, data), "/ranges", overwrite=True)
        assert b"".join(client.read("/ranges", offset=offset, length=length)) == wanted
        client.get("/ranges", tmp_path / "part", offset=offset, length=length)
        assert (tmp_path / "part").read_bytes() == wanted


def test_appends_stand_one_after_the_other_and_checksums_compose(shared: MemoryCluster, tmp_path: Path) -> None:
    first, second = content(CHUNK + 5), content(3)
    with shared.client() as client:
        client.append(source_file(tmp_path, first), "/log")
        status = client.append(io.BytesIO(second), "/log")
        client.append(io.BytesIO(b""), "/log")
        assert status.extent_count == 3
        assert fetched(client, "/log") == first + second
        assert client.checksum("/log").value == f"{crc32c(first + second):08x}"
        with pytest.raises(NotFound):
            client.append(io.BytesIO(b"x"), "/missing", create=False)


def test_pieces_of_a_read_belong_to_the_caller(shared: MemoryCluster) -> None:
    data = content(20 * CHUNK)
    with shared.client() as client:
        client.put(io.BytesIO(data), "/pieces")
        pieces = list(client.read("/pieces"))
        assert len(pieces) > 10
        assert b"".join(pieces) == data


def test_a_read_that_is_left_early_ends_its_threads(shared: MemoryCluster) -> None:
    with shared.client() as client:
        client.put(io.BytesIO(content(20 * CHUNK)), "/left", overwrite=True)
        before = set(threading.enumerate())
        reading = client.read("/left")
        next(reading)
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        assert [name for name in names if name.startswith("dfs-transfer")], "it reads ahead"
        reading.close()  # type: ignore[attr-defined]
        left = {thread.name for thread in threading.enumerate() if thread not in before}
        connections = {name for name in left if name.startswith("dfs 127.0.0.1:")}  # threads of the servers in here
        assert left == connections


# --- names and local files -----------------------------------------------------------------------------------------


def test_a_taken_name_is_refused_before_much_is_stored(shared: MemoryCluster) -> None:
    with shared.client() as client:
        client.put(io.BytesIO(b"old"), "/taken")
        chunks_before = [len(server.store.handles()) for server in shared.chunk_servers]
        with pytest.raises(AlreadyExists):
            client.put(io.BytesIO(content(8 * CHUNK)), "/taken")
        with pytest.raises(NotFound):
            client.put(io.BytesIO(content(8 * CHUNK)), "/no/such/folder")
        with pytest.raises(IsADirectory):
            client.put(io.BytesIO(content(8 * CHUNK)), "/")
        assert [len(server.store.handles()) for server in shared.chunk_servers] == chunks_before
        with pytest.raises(AlreadyExists):
            client.put(io.BytesIO(b"small"), "/taken")
        assert fetched(client, "/taken") == b"old"


def test_a_source_that_changes_while_it_is_read_is_not_stored(shared: MemoryCluster, tmp_path: Path) -> None:
    path = source_file(tmp_path, content(4 * CHUNK))

    def grow(_: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with shared.client() as client:
        with pytest.raises(Conflict, match="changed while it was read"):
            client.put(path, "/changing", progress=grow)
        path.write_bytes(content(4 * CHUNK))
        with pytest.raises(Conflict, match="changed while it was read"):
            client.put(path, "/changing", progress=lambda _: os.truncate(path, 10))
        assert not client.exists("/changing")


def test_local_files_that_cannot_be_used_are_named(shared: MemoryCluster, tmp_path: Path) -> None:
    with shared.client() as client:
        with pytest.raises(NotFound, match="missing"):
            client.put(tmp_path / "missing", "/x")
        with pytest.raises(IsADirectory):
            client.put(tmp_path, "/x")
        client.put(io.BytesIO(b"12"), "/small")
        with pytest.raises(IsADirectory):
            client.get("/small", tmp_path)
        with pytest.raises(NotFound, match="nowhere"):
            client.get("/small", tmp_path / "nowhere" / "target")
        with pytest.raises(IsADirectory):
            client.get("/", tmp_path / "target")
        (tmp_path / "kept").write_bytes(b"mine")
        with pytest.raises(AlreadyExists):
            client.get("/small", tmp_path / "kept", overwrite=False)
        assert (tmp_path / "kept").read_bytes() == b"mine"
        assert client.get("/small", tmp_path / "new", overwrite=False).size == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("callback")])
def test_an_interrupted_get_leaves_nothing(shared: MemoryCluster, tmp_path: Path, error: BaseException) -> None:
    def fail(_: int) -> None:
        raise error

    with shared.client() as client:
        client.put(io.BytesIO(content(6 * CHUNK)), "/interrupted", overwrite=True)
        (tmp_path / "target").write_bytes(b"old")
        with pytest.raises(type(error)):
            client.get("/interrupted", tmp_path / "target", progress=fail)
        assert [path.name for path in tmp_path.iterdir()] == ["target"]
        assert (tmp_path / "target").read_bytes() == b"old"


def test_a_full_local_disk_is_no_replica_s_fault(
    shared: MemoryCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: memoryview, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    with shared.client() as client:
        client.put(io.BytesIO(content(3 * CHUNK)), "/full", overwrite=True)
        monkeypatch.setattr("dfs.client.local_files.os.pwrite", full)
        with pytest.raises(LocalFileError, match="No space left"):
            client.get("/full", tmp_path / "target")
    assert not list(tmp_path.iterdir())


# --- writing to failing servers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 5 * CHUNK])
def test_dead_servers_are_left_out_of_new_chains(
    cluster: MemoryCluster, client: DfsClient, tmp_path: Path, size: int
) -> None:
    dead = [cluster.chunk_server("c1"), cluster.chunk_server("c2")]
    for server in dead:
        server.stop()
    data = content(size)
    stored: list[int] = []
    client.put(source_file(tmp_path, data), "/file", progress=stored.append)
    assert sum(stored) == size
    for _, servers in located(cluster, "/file"):
        assert {server.name for server in servers} == {"c3", "c4"}
    assert fetched(client, "/file") == data
    for server in dead:
        server.start()


@pytest.mark.usefixtures("quick_stalls")
def test_a_paused_server_costs_seconds_and_not_the_put(cluster: MemoryCluster, client: DfsClient) -> None:
    released = threading.Event()

    def pause(_: Channel) -> bool:
        return not released.wait(20)

    cluster.chunk_server("c2").intercept = pause
    data = content(6 * CHUNK)
    client.put(io.BytesIO(data), "/file")
    released.set()
    assert fetched(client, "/file") == data
    assert all("c2" not in {server.name for server in servers} for _, servers in located(cluster, "/file"))


def test_a_chunk_that_no_chain_takes_is_an_error_that_tells_each_try(cluster: MemoryCluster, client: DfsClient) -> None:
    for server in cluster.chunk_servers:
        server.intercept = lambda _: False
    with pytest.raises(ChainBroken, match=r"try 1: .*try 2: ") as caught:
        client.put(io.BytesIO(b"data"), "/file")
    assert "'/file'" in caught.value.message
    assert not client.exists("/file")


# --- reading from failing servers -----------------------------------------------------------------------------------


def test_a_damaged_replica_is_never_returned_and_is_told_to_check_itself(
    cluster: MemoryCluster, tmp_path: Path
) -> None:
    data = content(2 * CHUNK + 5)
    with cluster.client(reads=ReadRules(hedged=False)) as client:  # on a busy machine a rival might win each time
        client.put(io.BytesIO(data), "/file")
        for handle, servers in located(cluster, "/file"):
            for server in servers[:2]:
                server.damage(handle, offset=3)
        for _ in range(4):  # whichever replica is first
            assert fetched(client, "/file") == data
        client.get("/file", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == data
    quarantined = [
        server.store.replica(handle) is None for handle, servers in located(cluster, "/file") for server in servers[:2]
    ]
    assert any(quarantined)


def test_a_part_of_another_chunk_of_the_same_length_is_never_returned(
    cluster: MemoryCluster, client: DfsClient
) -> None:
    data = content(CHUNK)
    client.put(io.BytesIO(data), "/file")
    ((handle, servers),) = located(cluster, "/file")
    for server in servers[:2]:
        server.store.delete(handle)
        put(server.store, content(CHUNK - 1) + b"!", handle)
    for start in range(0, CHUNK, BLOCK_SIZE):  # whichever replica is first: no part of one tells its CRC
        assert b"".join(client.read("/file", offset=start, length=100)) == data[start : start + 100]


def test_damage_in_all_replicas_is_an_error_and_never_data(cluster: MemoryCluster, tmp_path: Path) -> None:
    with cluster.client() as writer, cluster.client(timeout_s=2.0) as client:
        writer.put(io.BytesIO(content(CHUNK)), "/file")
        ((handle, servers),) = located(cluster, "/file")
        for server in servers:
            server.damage(handle, offset=BLOCK_SIZE)
        with pytest.raises((ChunkCorrupt, ChunkNotFound)) as caught:
            client.get("/file", tmp_path / "target")
        for words in ("'/file'", handle.hex(), *(server.address for server in servers)):
            assert words in caught.value.message
        assert not (tmp_path / "target").exists()


def test_reads_go_on_while_one_replica_lives(cluster: MemoryCluster, client: DfsClient) -> None:
    data = content(3 * CHUNK)
    client.put(io.BytesIO(data), "/file")
    for name in ("c1", "c2"):
        cluster.chunk_server(name).stop()
    assert fetched(client, "/file") == data
    for name in ("c1", "c2"):
        cluster.chunk_server(name).start()


@pytest.mark.usefixtures("quick_stalls")
def test_paused_replicas_are_left_for_others(cluster: MemoryCluster, tmp_path: Path) -> None:
    data = content(3 * CHUNK)
    released = threading.Event()
    with cluster.client() as writer:
        writer.put(io.BytesIO(data), "/file")
    for name in ("c1", "c2"):
        cluster.chunk_server(name).intercept = lambda _: not released.wait(20)
    with cluster.client() as reader:
        reader.get("/file", tmp_path / "target")
    released.set()
    assert (tmp_path / "target").read_bytes() == data


def test_located_chunks_are_read_without_masters(cluster: MemoryCluster, client: DfsClient) -> None:
    data = content(40 * CHUNK)
    client.put(io.BytesIO(data), "/file")
    reading = client.read("/file")
    first = bytes(next(reading))
    cluster.stop_master("m1")
    assert first + b"".join(reading) == data


# --- versions ---------------------------------------------------------------------------------------------------------


def test_a_get_whose_file_is_replaced_restarts_and_never_mixes(
    cluster: MemoryCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of two extents force a second look-up, before which the file becomes another one, once."""
    monkeypatch.setattr("dfs.master.access.LOCATE_EXTENTS_MAX", 2)
    old, new = content(5 * CHUNK), content(4 * CHUNK + 9)
    got: list[int] = []
    with cluster.client(parallel=1) as client, cluster.client() as other:
        client.put(io.BytesIO(old), "/file")

        def replace_once(count: int) -> None:
            if not got:
                other.put(io.BytesIO(new), "/file", overwrite=True)
            got.append(count)

        status = client.get("/file", tmp_path / "target", progress=replace_once)
        assert (tmp_path / "target").read_bytes() == new
        assert (status.size, sum(got)) == (len(new), len(new))


def test_a_read_whose_file_is_replaced_fails_rather_than_mixes(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.master.access.LOCATE_EXTENTS_MAX", 2)
    old = content(5 * CHUNK)
    with cluster.client(parallel=1) as client, cluster.client() as other:
        client.put(io.BytesIO(old), "/file")
        reading = client.read("/file")
        got = [bytes(next(reading))]
        other.put(io.BytesIO(b"new"), "/file", overwrite=True)
        with pytest.raises(Conflict, match="changed by somebody"):
            got.extend(bytes(piece) for piece in reading)
        assert old.startswith(b"".join(got))


def test_replicas_are_looked_up_again_when_all_failed(
    cluster: MemoryCluster, client: DfsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All servers of a chunk are down when it was located; the reader asks again until one is back."""
    data = content(1000)
    client.put(io.BytesIO(data), "/file")
    ((_, servers),) = located(cluster, "/file")
    for server in servers:
        server.stop()
    looked_up = threading.Event()
    real_locate: Callable[..., LocateReply] = cluster.masters[0].service._access.locate

    def locate(message: Locate, **named: bool) -> LocateReply:
        if message.version:
            looked_up.set()
        return real_locate(message, **named)

    monkeypatch.setattr(cluster.masters[0].service._access, "locate", locate)

    def come_back() -> None:
        assert looked_up.wait(20)
        servers[0].start()

    returning = threading.Thread(target=come_back)
    returning.start()
    assert fetched(client, "/file") == data
    returning.join()
    for server in servers[1:]:
        server.start()


# --- many at once ---------------------------------------------------------------------------------------------


def test_threads_may_share_one_client(shared: MemoryCluster) -> None:
    results: dict[int, FileStatus] = {}

    def work(number: int, client: DfsClient) -> None:
        data = content(number * 1000)
        client.make_directory(f"/threads/{number}", parents=True)
        client.put(io.BytesIO(data), f"/threads/{number}/file")
        assert fetched(client, f"/threads/{number}/file") == data
        results[number] = client.stat(f"/threads/{number}/file")

    with shared.client() as one:
        threads = [threading.Thread(target=work, args=(number, one)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == list(range(12))
        walked = [path for path, _ in one.walk("/threads")]
        assert len(walked) == 24
        assert walked == sorted(walked)


def test_calls_go_on_with_the_next_leader(tmp_path: Path) -> None:
    with MemoryCluster(tmp_path, masters=3, chunk_size=CHUNK) as cluster, cluster.client() as client:
        data = content(CHUNK + 1)
        client.put(io.BytesIO(data), "/before")
        cluster.lead("m2")
        assert fetched(client, "/before") == data
        client.put(io.BytesIO(data), "/after")
        cluster.stop_master("m2")
        cluster.lead("m3")
        assert [entry.path for entry in client.list("/")] == ["after", "before"]
        answers = client.master_statuses()
        assert sum(isinstance(answer, tuple) for answer in answers) == 1
