"""Do odd names and edge sizes work, in the library and through the command line? Real processes."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.paths import NAME_SIZE_MAX, PATH_SIZE_MAX
from dfs.testing.cluster import ClusterUnderTest

pytestmark = pytest.mark.timeout(240)
CHUNK = 1 << 20
BLOCK = 64 << 10
ODD_NAMES = [
    "with space",
    " leading and trailing ",
    "ünïcödé 漢字 🎈",
    "new\nline",
    "tab\tand\rreturn",
    "-leading-dash",
    "--help",
    "*?[glob]",
    "quote'\"back\\slash",
    "$HOME;`rm`",
    ".hidden",
    "...",
    "x" * NAME_SIZE_MAX,
    "漢" * (NAME_SIZE_MAX // 3),
    "\x1b[31mred\x07",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path_factory.mktemp("names"), chunk_size=CHUNK) as running:
        yield running


def test_odd_names_keep_their_bytes_through_every_kind_of_call(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        client.make_directory("/odd")
        for name in ODD_NAMES:
            client.put(io.BytesIO(name.encode()), f"/odd/{name}")
        assert sorted(entry.path for entry in client.list("/odd")) == sorted(ODD_NAMES)
        for name in ODD_NAMES:
            assert b"".join(client.read(f"/odd/{name}")) == name.encode()
            client.rename(f"/odd/{name}", f"/odd/{name[:-1]}~")
        assert len(list(client.list("/odd"))) == len(ODD_NAMES)


def test_odd_names_go_through_the_command_line(cluster: ClusterUnderTest, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    for name in ODD_NAMES:
        (source / name).write_bytes(name.encode())
    assert cluster.run_cli("put", "-r", str(source), "/cli").returncode == 0
    listed = cluster.run_cli("ls", "--json", "/cli")
    assert sorted(Path(entry["path"]).name for entry in json.loads(listed.stdout)) == sorted(ODD_NAMES)
    assert cluster.run_cli("get", "-r", "/cli", str(tmp_path / "back")).returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        n: n.encode() for n in ODD_NAMES
    }
    for name in ODD_NAMES:
        shown = cluster.run_cli("cat", "--", f"/cli/{name}")
        assert (shown.returncode, shown.stdout) == (0, name.encode())


def test_a_path_of_4_kib_works_and_one_byte_more_is_a_clear_error(cluster: ClusterUnderTest) -> None:
    part = "p" * 240
    deep = ""
    while len(deep) + 241 < PATH_SIZE_MAX:
        deep += "/" + part
    path = deep + "/" + "q" * (PATH_SIZE_MAX - len(deep) - 1)
    assert len(path) == PATH_SIZE_MAX
    with cluster.client() as client:
        client.make_directory(deep, parents=True)
        client.put(io.BytesIO(b"deep"), path)
        assert b"".join(client.read(path)) == b"deep"
        with pytest.raises(ValueError, match="4096"):
            client.put(io.BytesIO(b"deeper"), path + "q")


@pytest.mark.parametrize(
    "size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 12345]
)
def test_edge_sizes_come_back_whole(cluster: ClusterUnderTest, tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    with cluster.client() as client:
        status = client.put(source, f"/size-{size}")
        assert status.size == size
        client.get(f"/size-{size}", target)
        assert target.read_bytes() == content
        for offset, length in ((0, 10), (size // 2, 70_000), (max(0, size - 5), 100), (size, 10)):
            part = b"".join(client.read(f"/size-{size}", offset=offset, length=length))
            assert part == content[offset : offset + length]


def test_appends_keep_order_and_earlier_bytes(cluster: ClusterUnderTest) -> None:
    pieces = [os.urandom(size) for size in (10, CHUNK + 5, 1, 0, 300_000)]
    with cluster.client() as client:
        for piece in pieces:
            client.append(io.BytesIO(piece), "/appended")
        assert b"".join(client.read("/appended")) == b"".join(pieces)


def test_10000_entries_in_one_directory_are_listed_once_each_in_order(cluster: ClusterUnderTest) -> None:
    with cluster.client() as client:
        client.make_directory("/many")
        for number in range(10_000):
            client.touch(f"/many/{number:05}")
        assert [entry.path for entry in client.list("/many")] == [f"{number:05}" for number in range(10_000)]
        assert client.stat("/many").file_count == 10_000
        assert client.delete("/many", recursive=True).file_count == 10_000
        assert not client.exists("/many")


def test_an_overwrite_is_seen_whole_or_not_at_all(cluster: ClusterUnderTest) -> None:
    """A reader that opened the old file keeps reading old bytes; the next reader sees the new ones."""
    old, new = os.urandom(3 * CHUNK), os.urandom(2 * CHUNK)
    with cluster.client() as client:
        client.put(io.BytesIO(old), "/switch")
        reader = client.read("/switch")
        first = bytes(next(reader))
        client.put(io.BytesIO(new), "/switch", overwrite=True)
        assert first + b"".join(reader) == old
        assert b"".join(client.read("/switch")) == new
