"""Does an open file give the right bytes in every way of reading it, by every path there is? A cluster in memory."""

from __future__ import annotations

import io
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dfs.checksum import BLOCK_SIZE
from dfs.client import DfsClient, ReadRules, extent_table, local_replicas
from dfs.errors import ChunkNotFound, Conflict, InvalidArgument, IsADirectory
from dfs.net.blocking import Channel
from dfs.net.messages import Locate, Message
from dfs.testing.memory_cluster import MemoryCluster

CHUNK = 512 * 1024  # larger than what shares a file with others
SIZE = 5 * CHUNK + 300_001
WAYS = {  # every fast path forced off and on
    "network": ReadRules(local=False, hedged=False),
    "hedged": ReadRules(local=False, hedged=True),
    "handed over": ReadRules(local=True, hedged=False),
    "all": ReadRules(local=True, hedged=True, rack="r1"),
}

pytestmark = pytest.mark.usefixtures("all_fast_paths")


@pytest.fixture(scope="module", autouse=True)
def all_is_memory() -> Iterator[None]:
    """A memory file cannot be asked what of it is in memory: all of it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_replicas, "READ_FLAGS", 0)
        patch.setattr(
            local_replicas, "DOOR_TIMEOUT_S", 60.0
        )  # doors that a busy machine is slow to open are used all the same
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryCluster]:
    with MemoryCluster(tmp_path_factory.mktemp("cluster"), chunk_size=CHUNK) as running:
        for server in running.chunk_servers:
            server.open_door()
        yield running


@pytest.fixture(scope="module")
def content(shared: MemoryCluster) -> bytes:
    data = os.urandom(SIZE)
    with shared.client() as client:
        client.put(io.BytesIO(data), "/data")
    return data


@pytest.fixture(params=sorted(WAYS))
def client(shared: MemoryCluster, request: pytest.FixtureRequest) -> Iterator[DfsClient]:
    """A client for each way of reading; on the end it is checked that it read in that way."""
    rules = WAYS[request.param]
    with shared.client(reads=rules) as found:
        yield found
        counts = found.read_counts
        if rules.local:
            assert counts.remote == 0, "an open file was there for every read"
        else:
            assert counts.local == 0
        if not rules.hedged:
            assert counts.hedged == 0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[MemoryCluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with MemoryCluster(folder, chunk_servers=3, chunk_size=CHUNK) as running:
        yield running


def test_any_range_reads_back_as_it_was_written(client: DfsClient, content: bytes) -> None:
    edges = [0, 1, 4096, BLOCK_SIZE - 1, BLOCK_SIZE, CHUNK - 1, CHUNK, 2 * CHUNK + 7, SIZE - 1, SIZE, SIZE + 5]
    sizes = [0, 1, 100, 4096, BLOCK_SIZE, BLOCK_SIZE + 1, CHUNK + 3, 2 * CHUNK + 1, SIZE + 1]
    with client.open("/data") as file:
        for offset in edges:
            for length in sizes:
                assert file.read_at(offset, length) == content[offset : offset + length], (offset, length)


def test_a_vector_read_gives_each_range_its_bytes_in_any_order(client: DfsClient, content: bytes) -> None:
    chance = random.Random(7)
    ranges = [(chance.randrange(SIZE), chance.randrange(3 * BLOCK_SIZE)) for _ in range(200)]
    ranges += [ranges[0], (SIZE, 5), (3, 0)]
    with client.open("/data") as file:
        found = file.read_ranges(ranges)
    assert found == [content[offset : offset + length] for offset, length in ranges]


def test_as_a_stream_it_reads_like_any_binary_file(client: DfsClient, content: bytes) -> None:
    with client.open("/data") as raw, io.BytesIO(content) as model:
        assert (raw.size, raw.readable(), raw.seekable(), raw.writable()) == (SIZE, True, True, False)
        file = io.BufferedReader(raw, 10_000)
        chance = random.Random(11)
        for _ in range(300):
            if chance.random() < 0.2:
                place = chance.choice([(chance.randrange(SIZE), 0), (-chance.randrange(SIZE), 2)])
                assert file.seek(*place) == model.seek(*place)
            length = chance.choice([1, 1000, 10_000, 70_000, CHUNK])
            assert file.read(length) == model.read(length)
            assert file.tell() == model.tell()
        file.seek(0)
        assert file.read() == content
        assert file.read(1) == b""


def test_raw_reads_in_a_row_are_fetched_ahead_and_seeking_away_ends_that(client: DfsClient, content: bytes) -> None:
    before = set(threading.enumerate())
    with client.open("/data") as file:
        buffer = bytearray(50_000)
        found = bytearray()
        while got := file.readinto(buffer):
            found += buffer[:got]
        assert found == content
        file.seek(100)
        assert file.read(10) == content[100:110]
        assert file.readall() == content[110:]
        assert file.readall() == b""
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not [name for name in left if name.startswith("dfs-transfer")], "who fetches ahead ends with the stream"


def test_threads_read_one_open_file_at_the_same_time(client: DfsClient, content: bytes) -> None:
    def look(seed: int) -> bool:
        chance = random.Random(seed)
        places = [(chance.randrange(SIZE), chance.randrange(20_000)) for _ in range(40)]
        return all(file.read_at(offset, length) == content[offset : offset + length] for offset, length in places)

    with client.open("/data") as file, ThreadPoolExecutor(8) as executor:
        assert all(executor.map(look, range(16)))


def test_readinto_at_fills_the_callers_memory(client: DfsClient, content: bytes) -> None:
    buffer = bytearray(b"x" * 1000)
    with client.open("/data") as file:
        assert file.readinto_at(SIZE - 600, memoryview(buffer)) == 600
    assert buffer == content[-600:] + b"x" * 400


def test_a_get_and_a_stream_use_open_files_too(client: DfsClient, content: bytes, tmp_path: Path) -> None:
    client.get("/data", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    kept = list(client.read("/data", offset=77))  # pieces belong to the caller: none may be used again
    assert b"".join(kept) == content[77:]
    assert b"".join(bytes(piece) for piece in client.read("/data")) == content


def test_an_open_file_costs_one_locate_and_each_small_read_one_round_trip(
    shared: MemoryCluster, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = Channel.send

    def noted(channel: Channel, message: Message, *arguments: object, **options: object) -> None:
        if threading.current_thread() is threading.main_thread():
            sent.append(type(message).__name__)
        send(channel, message, *arguments, **options)  # type: ignore[arg-type]

    with shared.client(reads=WAYS["network"], parallel=1) as client:
        monkeypatch.setattr(Channel, "send", noted)
        with client.open("/data") as file:
            for number in range(50):
                assert file.read_at(number * 9973, 4096) == content[number * 9973 : number * 9973 + 4096]
            assert sent.count("Locate") == 1
            assert sent.count("ReadRanges") <= 51, "one for each read, and one more for the one that crosses chunks"
            sent.clear()
            file.read_ranges([(number * 5000, 100) for number in range(50)])
            assert sent == ["ReadRanges"], "many ranges of one chunk are one request"


def test_an_open_file_keeps_to_its_version(shared: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.urandom(3 * CHUNK)
    with shared.client() as client:
        client.put(io.BytesIO(old), "/versions")
        with client.open("/versions") as file:
            client.put(io.BytesIO(b"new"), "/versions", overwrite=True)
            assert file.read_at(CHUNK, 100) == old[CHUNK : CHUNK + 100]
            assert file.size == len(old)
        with client.open("/versions") as file:
            assert file.read() == b"new"


def test_many_extents_are_located_in_pages_that_do_not_pile_up(
    shared: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfs.master.access.LOCATE_EXTENTS_MAX", 3)
    monkeypatch.setattr(extent_table, "PAGES_MAX", 2)
    parts = [os.urandom(1000 + number) for number in range(20)]
    whole = b"".join(parts)
    with shared.client() as client:
        for part in parts:
            client.append(io.BytesIO(part), "/pages")
        with client.open("/pages") as file:
            for offset in [0, len(whole) - 10, 5, 9000, 3, len(whole) - 1]:
                assert file.read_at(offset, 2500) == whole[offset : offset + 2500]
            assert len(file._table._pages) <= 2
            client.put(io.BytesIO(b"other"), "/pages", overwrite=True)
            with pytest.raises(Conflict):
                file.read_ranges([(offset, 1) for offset in range(0, len(whole), 1000)])


def test_records_in_an_open_tail_are_read_as_of_the_opening(shared: MemoryCluster) -> None:
    with shared.client() as client, client.appender("/tail") as appender:
        for number in range(10):
            appender.append(b"%03d" % number).result()
        with client.open("/tail") as file:
            appender.append(b"later").result()
            assert file.read_at(3, 6) == b"001002"
            assert file.read_ranges([(0, 3), (27, 10)]) == [b"000", b"009"]
            assert file.read() == b"".join(b"%03d" % number for number in range(10))


def test_misuse_is_told_in_words(shared: MemoryCluster, content: bytes) -> None:
    with shared.client() as client:
        client.make_directory("/folder", parents=True)
        with pytest.raises(IsADirectory):
            client.open("/folder")
        with client.open("/data") as file:
            for wrong in [(-1, 5), (5, -1)]:
                with pytest.raises(InvalidArgument, match="negative"):
                    file.read_at(*wrong)
            with pytest.raises(InvalidArgument, match="position"):
                file.seek(-1)
            with pytest.raises(io.UnsupportedOperation):
                file.write(b"x")
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.read_at(0, 1)


def test_a_replica_that_goes_is_located_again_once(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(CHUNK)
    with cluster.client() as client:
        client.put(io.BytesIO(data), "/moved")
        (handle,) = cluster.chunk_servers[0].store.handles()
        asked: list[object] = []
        call = client._masters.call

        def counted(message: Message, *arguments: object, **options: object) -> object:
            asked.append(message)
            return call(message, *arguments, **options)  # type: ignore[arg-type]

        with client.open("/moved") as file:
            assert file.read_at(10, 10) == data[10:20]
            (located,) = file._table._pages[0]
            located.replicas = ()  # all that this reader knew are gone
            monkeypatch.setattr(client._masters, "call", counted)
            for _ in range(5):
                assert file.read_at(20, 10) == data[20:30]
            assert [type(message) for message in asked] == [Locate]
            for server in cluster.chunk_servers:
                server.store.delete(handle)
            client._timeout_s = 0.5
            file._reader._timeout_s = 0.5
            with pytest.raises(ChunkNotFound, match="/moved"):
                file.read_at(30, 10)
