"""Do many small files that share chunks come back, each by itself? A cluster in memory, on real sockets."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dfs.client import DfsClient
from dfs.client import packs as packs_module
from dfs.client.packs import PACKED_FILE_SIZE_MAX, PackEvents, PackItem
from dfs.client.unpacking import UnpackEvents, UnpackItem, is_packable
from dfs.client.upload import Upload
from dfs.errors import AlreadyExists, Conflict, DfsError, InvalidName, IsADirectory, NoQuorum, NotFound
from dfs.net.messages import LocateManyReply
from dfs.net.parts import Kind
from dfs.testing.memory_cluster import MemoryCluster

CHUNK = 8 * 1024 * 1024

pytestmark = pytest.mark.usefixtures("all_fast_paths")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryCluster]:
    with MemoryCluster(tmp_path_factory.mktemp("cluster"), chunk_servers=4, chunk_size=CHUNK) as running:
        yield running


@pytest.fixture
def client(cluster: MemoryCluster) -> Iterator[DfsClient]:
    with cluster.client() as found:
        yield found


class Outcomes:
    """What the events told."""

    def __init__(self) -> None:
        self.stored: dict[str, int] = {}
        self.failed: dict[str, DfsError] = {}
        self.left: list[str] = []

    def pack_events(self) -> PackEvents:
        return PackEvents(
            lambda item, size: self.stored.__setitem__(item.path, size),
            lambda item, error: self.failed.__setitem__(item.path, error),
            lambda item: self.left.append(item.path),
        )

    def unpack_events(self) -> UnpackEvents:
        return UnpackEvents(
            lambda item: self.stored.__setitem__(item.path, item.file.size),
            lambda item, error: self.failed.__setitem__(item.path, error),
            lambda item: self.left.append(item.path),
        )


def tree(folder: Path, count: int, seed: int) -> dict[str, bytes]:
    """Make local files; return their content by relative path."""
    rng = random.Random(seed)
    made: dict[str, bytes] = {}
    for number in range(count):
        size = rng.choice([0, 1, 100, 4096, 4096, 65536, rng.randrange(200_000)])
        name = f"d{number % 7}/e{number % 3}/f{number}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made[name] = rng.randbytes(size)
        path.write_bytes(made[name])
    return made


def put_tree(client: DfsClient, folder: Path, names: list[str], root: str, **options: bool) -> Outcomes:
    outcomes = Outcomes()
    items = (PackItem(folder / name, f"{root}/{name}") for name in names)
    client.put_many(items, outcomes.pack_events(), parents=True, **options)
    return outcomes


def get_tree(
    client: DfsClient, root: str, target: Path, between: Callable[[], None] = lambda: None
) -> tuple[dict[str, bytes], Outcomes]:
    outcomes = Outcomes()

    def pages() -> Iterator[tuple[LocateManyReply, list[UnpackItem]]]:
        for page in client.locate_many(root):
            items = []
            for file in page.files:
                local = target / file.path
                if file.kind is Kind.DIRECTORY:
                    local.mkdir(parents=True)
                else:
                    assert is_packable(file)
                    items.append(UnpackItem(file, f"{root}/{file.path}", local))
            between()
            yield page, items

    target.mkdir()
    client.get_many(pages(), outcomes.unpack_events(), overwrite=False)
    got = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    return got, outcomes


def test_a_tree_of_small_files_shares_chunks_and_comes_back_whole(client: DfsClient, tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", 300, 1)
    before = client.cluster_status().space.chunk_count
    outcomes = put_tree(client, tmp_path / "tree", list(made), "/packed")
    assert outcomes.stored == {f"/packed/{name}": len(data) for name, data in made.items()}
    assert (outcomes.failed, outcomes.left) == ({}, [])
    assert 1 <= client.cluster_status().space.chunk_count - before < 10
    got, fetched = get_tree(client, "/packed", tmp_path / "back")
    assert got == made
    assert len(fetched.stored) == len(made)
    for name in list(made)[::29]:  # each is a file like any other
        assert b"".join(client.read(f"/packed/{name}")) == made[name]
        assert client.stat(f"/packed/{name}").size == len(made[name])
    client.delete("/packed", recursive=True, skip_trash=True)
    assert client.cluster_status().space.chunk_count == before, "chunks go with their last file"


def test_each_file_of_a_pack_fails_by_itself(client: DfsClient, tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    made = tree(folder, 20, 2)
    names = list(made)
    put_tree(client, folder, names[:1], "/own")
    client.make_directory(f"/own/{names[1]}", parents=True)
    (folder / names[2]).unlink()
    (folder / "large").write_bytes(bytes(PACKED_FILE_SIZE_MAX + 1))
    special = [name for name in ("large", "/proc/self/status") if Path(folder / name).exists()]
    outcomes = put_tree(client, folder, [*names, *special], "/own")
    assert {path: type(error) for path, error in outcomes.failed.items()} == {
        f"/own/{names[0]}": AlreadyExists,
        f"/own/{names[1]}": IsADirectory,
        f"/own/{names[2]}": NotFound,
    }
    assert set(outcomes.stored) == {f"/own/{name}" for name in names[3:]}
    assert len(outcomes.left) == len(special), "a large one, and one of /proc that claims to be empty"
    replaced = put_tree(client, folder, names[:1], "/own", overwrite=True)
    assert (len(replaced.stored), replaced.failed) == (1, {})


def test_file_that_changes_while_it_is_read_is_not_stored(
    client: DfsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tree(tmp_path / "tree", 5, 3)
    names = sorted(made, key=lambda name: -len(made[name]))
    read_all = packs_module._read_all

    def grown(fd: int, view: memoryview) -> int:
        got = read_all(fd, view)
        if got == len(made[names[0]]):
            with (tmp_path / "tree" / names[0]).open("ab") as file:
                file.write(b"more")
        return got

    monkeypatch.setattr(packs_module, "_read_all", grown)
    outcomes = put_tree(client, tmp_path / "tree", names, "/changing")
    assert [type(error) for error in outcomes.failed.values()] == [Conflict]
    assert set(outcomes.stored) == {f"/changing/{name}" for name in names[1:]}
    got, _ = get_tree(client, "/changing", tmp_path / "back")
    assert got == {name: made[name] for name in names[1:]}


def test_error_that_every_file_would_meet_ends_the_run(client: DfsClient, tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", 10, 4)

    def failed(_item: PackItem, error: DfsError) -> None:
        raise error

    events = PackEvents(lambda _item, _size: None, failed, lambda _item: None)
    items = [PackItem(tmp_path / "tree" / name, f"/ended/{name}") for name in made]
    with pytest.raises(NotFound):
        client.put_many(items, events)  # without `parents`

    def interrupted() -> Iterator[PackItem]:
        yield items[0]
        raise NoQuorum("nobody leads")

    with pytest.raises(NoQuorum):
        client.put_many(interrupted(), events, parents=True)


def test_files_replaced_between_locating_and_reading_come_as_they_were_or_are_left_over(
    client: DfsClient, tmp_path: Path
) -> None:
    made = tree(tmp_path / "tree", 30, 5)
    put_tree(client, tmp_path / "tree", list(made), "/replaced")

    def replace() -> None:
        newer = tree(tmp_path / "newer", 30, 6)
        put_tree(client, tmp_path / "newer", list(newer), "/replaced", overwrite=True)

    got, outcomes = get_tree(client, "/replaced", tmp_path / "back", replace)
    assert outcomes.failed == {}
    assert got == {name: made[name] for name in got}, "one version, not a mixture"
    assert len(got) + len(outcomes.left) == len(made)


def test_damaged_and_missing_replicas_cost_no_file(cluster: MemoryCluster, client: DfsClient, tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", 60, 7)
    put_tree(client, tmp_path / "tree", list(made), "/damaged")
    page = next(client.locate_many("/damaged"))
    for chunk in page.chunks:
        first, second = (page.servers[index].name for index in chunk.replicas[:2])
        cluster.chunk_server(first).damage(chunk.handle, 10)
        cluster.chunk_server(second).store.delete(chunk.handle)
    got, outcomes = get_tree(client, "/damaged", tmp_path / "back")
    assert got == made
    assert (outcomes.failed, outcomes.left) == ({}, [])
    for chunk in page.chunks:  # and without any replica they are left to an ordinary get, which says why
        for index in chunk.replicas:
            cluster.chunk_server(page.servers[index].name).store.delete(chunk.handle)
    got, outcomes = get_tree(client, "/damaged", tmp_path / "back2")
    assert set(outcomes.left) == {f"/damaged/{name}" for name, data in made.items() if data}
    assert outcomes.failed == {}


def test_local_file_that_exists_is_not_replaced(client: DfsClient, tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", 7, 8)
    put_tree(client, tmp_path / "tree", list(made), "/taken")
    name = next(iter(made))

    def take() -> None:
        (tmp_path / "back" / name).write_bytes(b"mine")

    got, outcomes = get_tree(client, "/taken", tmp_path / "back", take)
    assert got == {**made, name: b"mine"}
    assert [type(error) for error in outcomes.failed.values()] == [AlreadyExists]


def test_file_that_grows_is_left_to_an_ordinary_get_and_sealed_before_it_is_replaced(
    client: DfsClient, tmp_path: Path
) -> None:
    made = tree(tmp_path / "tree", 5, 11)
    put_tree(client, tmp_path / "tree", list(made), "/growing")
    name = next(iter(made))
    client.append_record(f"/growing/{name}", b"record")
    files = {file.path: file for page in client.locate_many("/growing") for file in page.files}
    assert [path for path, file in files.items() if file.kind is Kind.FILE and not is_packable(file)] == [name]
    assert b"".join(client.read(f"/growing/{name}")) == made[name] + b"record"
    outcomes = put_tree(client, tmp_path / "tree", list(made), "/growing", overwrite=True)
    assert (len(outcomes.stored), outcomes.failed) == (5, {})
    got, _ = get_tree(client, "/growing", tmp_path / "back")
    assert got == made


# --- giving space back ----------------------------------------------------------------------------------------


def thinned(client: DfsClient, folder: Path, root: str, seed: int) -> dict[str, bytes]:
    """Store a tree and delete four of five files; return the content of the others."""
    made = tree(folder, 250, seed)
    put_tree(client, folder, list(made), root)
    names = sorted(made)
    for name in names[:]:
        if names.index(name) % 5:
            client.delete(f"{root}/{name}", skip_trash=True)
    return {name: made[name] for index, name in enumerate(names) if not index % 5}


def test_repack_gives_the_space_of_deleted_files_back(client: DfsClient, tmp_path: Path) -> None:
    kept = thinned(client, tmp_path / "tree", "/thin", 9)
    before = client.cluster_status().space.chunk_stored_size
    times = {name: client.stat(f"/thin/{name}").mtime_ms for name in kept}
    report = client.repack("/thin")
    live = sum(map(len, kept.values()))
    assert (report.file_count, report.size) == (sum(1 for data in kept.values() if data), live)
    assert report.conflict_count == 0
    after = client.cluster_status().space.chunk_stored_size
    assert before - after > 2 * 3 * live
    got, _ = get_tree(client, "/thin", tmp_path / "back")
    assert got == kept
    assert {name: client.stat(f"/thin/{name}").mtime_ms for name in kept} == times
    again = client.repack("/thin")
    assert (again.chunk_count, again.file_count) == (0, 0), "what is full enough stays"


def test_repack_leaves_files_alone_that_others_change_meanwhile(
    client: DfsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = thinned(client, tmp_path / "tree", "/busy", 10)
    full = sorted(name for name, data in kept.items() if data)
    changed, removed = full[0], full[1]
    store_pack = Upload.store_pack

    def with_others(upload: Upload, *arguments: object) -> object:
        monkeypatch.setattr(Upload, "store_pack", store_pack)
        client.put(io.BytesIO(b"another"), f"/busy/{changed}", overwrite=True)
        client.delete(f"/busy/{removed}", skip_trash=True)
        return store_pack(upload, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Upload, "store_pack", with_others)
    report = client.repack("/busy")
    assert report.conflict_count == 2
    assert report.file_count == len(full) - 2
    got, _ = get_tree(client, "/busy", tmp_path / "back")
    assert got == {**{name: data for name, data in kept.items() if name != removed}, changed: b"another"}


def test_file_with_an_impossible_name_fails_alone(client: DfsClient, tmp_path: Path) -> None:
    made = tree(tmp_path / "tree", 6, 9)
    bad = tmp_path / "tree" / os.fsdecode(b"not \xff utf-8")
    bad.write_bytes(b"data")
    names = list(made)
    names.insert(3, bad.name)
    outcomes = put_tree(client, tmp_path / "tree", names, "/odd")
    assert list(outcomes.failed) == [f"/odd/{bad.name}"]
    assert isinstance(outcomes.failed[f"/odd/{bad.name}"], InvalidName)
    assert outcomes.stored == {f"/odd/{name}": len(data) for name, data in made.items()}


def test_named_pipe_is_left_to_the_caller_and_not_waited_for(client: DfsClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"data")
    outcomes = put_tree(client, tmp_path, ["pipe", "file"], "/piped")
    assert (outcomes.left, outcomes.stored) == (["/piped/pipe"], {"/piped/file": 4})
