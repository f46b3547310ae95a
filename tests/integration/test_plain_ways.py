"""Is a fast path that is left out really not taken, and does everything go right without it?"""

from __future__ import annotations

import importlib
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from dfs.client import DfsClient, local_replicas
from dfs.client.packs import PackEvents, PackItem
from dfs.client.unpacking import UnpackEvents, UnpackItem
from dfs.errors import DfsError
from dfs.fast_paths import ALL, VARIABLE, FastPath
from dfs.testing.memory_cluster import MemoryCluster

CHUNK = 512 * 1024

TAKEN_BY = {  # what each one cannot do without: `module:attribute`
    FastPath.CUT_RANGES: "dfs.client.open_file:RangeReading",
    FastPath.FAN_OUT: "dfs.client.transfer:store_everywhere",
    FastPath.HEDGED_READS: "dfs.client.replica_reads:Hedging",
    FastPath.LOCAL_READS: "dfs.client.local_replicas:LocalReplica",
    FastPath.PACKING: "dfs.client.upload:Upload.store_pack",
    FastPath.RESERVE: "dfs.client.filesystem:ChunkReserve",
    FastPath.SENDFILE: "os:sendfile",
    FastPath.UNPACKING: "dfs.client.unpacking:read_run",
}


class Steps:
    """Counts how often a fast path is taken."""

    def __init__(self, place: str, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        module, _, attribute = place.partition(":")
        *owners, name = attribute.split(".")
        owner: object = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        patch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **named: object) -> object:
            self.count += 1
            return call(*arguments, **named)

        return counted


def do_everything(client: DfsClient, folder: Path) -> None:
    """Store and read large and small files, parts of them, and trees, as the command does."""
    chance = random.Random(7)
    large, small = chance.randbytes(3 * CHUNK + 77), chance.randbytes(5000)
    client.make_directory("/d")
    client.put(io.BytesIO(large), "/d/large")
    assert b"".join(client.read("/d/large")) == large
    with client.open("/d/large") as file:
        assert file.read_ranges([(10, 70_000), (CHUNK - 5, 10)]) == [large[10:70_010], large[CHUNK - 5 : CHUNK + 5]]
    client.put(io.BytesIO(small), "/d/small")
    files = {f"/d/tree/{number}": chance.randbytes(number * 1000) for number in range(8)}
    put_tree(client, folder, files)
    assert get_tree(client, "/d/tree", folder / "back") == files


def put_tree(client: DfsClient, folder: Path, files: dict[str, bytes]) -> None:
    client.make_directory("/d/tree")
    items = [PackItem(folder / str(number), path) for number, path in enumerate(files)]
    failures: list[DfsError] = []
    for item in items:
        item.source.write_bytes(files[item.path])
    events = PackEvents(
        lambda _item, _size: None, lambda _item, error: failures.append(error), lambda item: put(client, item)
    )
    client.put_many(items, events)
    assert not failures


def put(client: DfsClient, item: PackItem) -> None:
    client.put(item.source, item.path)


def get_tree(client: DfsClient, root: str, target: Path) -> dict[str, bytes]:
    target.mkdir()
    failures: list[DfsError] = []

    def get(item: UnpackItem) -> None:
        client.get(item.path, item.target)

    events = UnpackEvents(
        lambda _item: None,
        lambda _item, error: failures.append(error),
        get,
    )
    pages = (
        (page, [UnpackItem(file, f"{root}/{file.path}", target / file.path) for file in page.files])
        for page in client.locate_many(root)
    )
    client.get_many(pages, events)
    assert not failures
    return {f"{root}/{file.name}": file.read_bytes() for file in target.iterdir()}


@pytest.fixture
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setattr(local_replicas, "READ_FLAGS", 0)  # a memory file cannot be asked what of it is in memory
    return Steps(TAKEN_BY[request.param], monkeypatch)


def everything(folder: Path, steps: Steps) -> int:
    """Return how often a fast path was taken when everything was done in a cluster with doors."""
    (folder / "cluster").mkdir()
    with MemoryCluster(folder / "cluster", chunk_servers=3, chunk_size=CHUNK) as cluster:
        for server in cluster.chunk_servers:
            server.open_door()
        with cluster.client() as client:
            do_everything(client, folder)
    return steps.count


@pytest.mark.parametrize(("path", "steps"), [(path, path) for path in TAKEN_BY], indirect=["steps"])
def test_what_is_left_out_is_not_taken_and_not_missed(
    path: FastPath, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with_it, without, alone = (tmp_path / name for name in ("with", "without", "alone"))
    for folder in (with_it, without, alone):
        folder.mkdir()
    others = {FastPath.LOCAL_READS} - {path}  # whoever reads an open file asks no server
    monkeypatch.setenv(VARIABLE, ",".join(others))
    assert everything(with_it, steps) > 0, "this test does not know any more what takes the fast path"
    steps.count = 0
    monkeypatch.setenv(VARIABLE, ",".join({*others, path}))
    assert everything(without, steps) == 0
    monkeypatch.setenv(VARIABLE, ALL)
    assert everything(alone, steps) == 0
