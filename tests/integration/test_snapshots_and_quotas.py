"""Do ranges, snapshots and quotas work from end to end: library and command line, bytes and names?

Owns: a cluster in memory, on real sockets, shared by all tests, each in a directory of its own.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dfs.checksum import BLOCK_SIZE
from dfs.cli.context import Cli
from dfs.cli.group import cli
from dfs.client import DfsClient, compaction
from dfs.errors import AlreadyExists, Conflict, HasSnapshots, InvalidArgument, IsADirectory, QuotaExceeded, ReadOnly
from dfs.net.parts import FileStatus
from dfs.testing.memory_cluster import MemoryCluster

CHUNK = 256 * 1024
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryCluster]:
    with MemoryCluster(tmp_path_factory.mktemp("cluster"), chunk_size=CHUNK) as running:
        yield running


@pytest.fixture(scope="module")
def client(cluster: MemoryCluster) -> Iterator[DfsClient]:
    with cluster.client(timeout_s=30) as found:
        yield found


@pytest.fixture
def run(client: DfsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that types one command."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"DFS_SETTINGS": str(tmp_path / "metadata.json")})
    monkeypatch.setattr(client, "close", lambda: None)  # each command closes its client; this one is shared

    def type_command(*arguments: str | Path) -> Result:
        result = runner.invoke(cli, [str(argument) for argument in arguments], obj=Cli(client=client))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return type_command


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)


def put(client: DfsClient, path: str, data: bytes) -> FileStatus:
    return client.put(io.BytesIO(data), path, parents=True, overwrite=True)


def fetched(client: DfsClient, path: str) -> bytes:
    return b"".join(client.read(path))


# --- ranges


def test_overwrites_in_place_at_any_offset_read_back_whole_and_in_part(client: DfsClient) -> None:
    expected = bytearray(content(2 * CHUNK + 777))
    put(client, "/range/f", bytes(expected))
    rng = random.Random(7)
    for turn in range(12):
        offset = rng.choice([rng.randrange(len(expected)), BLOCK_SIZE * rng.randrange(8), len(expected)])
        data = content(rng.choice([1, 100, BLOCK_SIZE, CHUNK + 5]), turn)
        status = client.write_at("/range/f", offset, data)
        expected[offset : offset + len(data)] = data
        assert status.size == len(expected)
        start = rng.randrange(len(expected))
        part = b"".join(client.read("/range/f", offset=start, length=100_000))
        assert part == expected[start : start + 100_000]
    assert fetched(client, "/range/f") == expected
    assert client.compact("/range/f").extent_count <= len(expected) // CHUNK + 2
    assert fetched(client, "/range/f") == expected


def test_an_overwrite_of_a_version_that_is_no_more_changes_nothing(client: DfsClient) -> None:
    version = put(client, "/range/v", b"first").version
    client.write_at("/range/v", 0, b"F", version=version)
    with pytest.raises(Conflict, match="changed"):
        client.write_at("/range/v", 0, b"x", version=version)
    with pytest.raises(InvalidArgument, match="no holes"):
        client.write_at("/range/v", 6, b"x")
    with pytest.raises(IsADirectory):
        client.write_at("/range", 0, b"x")
    assert fetched(client, "/range/v") == b"First"


def test_a_file_of_very_many_small_overwrites_is_merged_by_itself(
    client: DfsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "MERGE_AT_COUNT", 8)
    expected = bytearray(content(4000))
    put(client, "/range/many", bytes(expected))
    counts = []
    for number in range(12):
        expected[number * 300 : number * 300 + 10] = b"0123456789"
        counts.append(client.write_at("/range/many", number * 300, b"0123456789").extent_count)
    assert max(counts) <= 9
    assert counts.count(1) >= 2
    assert fetched(client, "/range/many") == expected
    counts = [client.append(io.BytesIO(b"."), "/range/many").extent_count for _ in range(10)]
    assert max(counts) <= 8
    assert fetched(client, "/range/many") == expected + b"." * 10


def test_a_merge_gives_way_to_whoever_changes_the_file(client: DfsClient, monkeypatch: pytest.MonkeyPatch) -> None:
    put(client, "/range/race", b"one")
    for word in (b"two", b"three"):
        client.append(io.BytesIO(word), "/range/race")
    plan = compaction.plan_merges

    def plan_then_change(*arguments: object) -> list[compaction.Merge]:
        client.write_at("/range/race", 0, b"ONE")
        return plan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "plan_merges", plan_then_change)
    with pytest.raises(Conflict, match="merge it again"):
        client.compact("/range/race")
    assert fetched(client, "/range/race") == b"ONEtwothree"


def test_truncate_and_concat_move_no_bytes_and_join_what_was_written(client: DfsClient) -> None:
    chunks = client.cluster_status().space.chunk_count
    one, two = content(CHUNK + 10, 1), content(CHUNK + 20, 2)
    put(client, "/join/1", one)
    put(client, "/join/2", two)
    client.truncate("/join/1", CHUNK + 3)
    client.concat("/join/1", ["/join/2"])
    assert fetched(client, "/join/1") == one[: CHUNK + 3] + two
    assert [entry.path for entry in client.list("/join")] == ["1"]
    assert client.cluster_status().space.chunk_count == chunks + 4


# --- snapshots


def test_a_snapshot_is_read_with_every_reading_call_and_never_changes(client: DfsClient, tmp_path: Path) -> None:
    data = content(CHUNK + 99)
    put(client, "/snap/a/f", data)
    client.snapshots.create("/snap", "s")
    client.delete("/snap/a", recursive=True, skip_trash=True)
    inside = client.snapshots.path("/snap", "s")
    assert fetched(client, f"{inside}/a/f") == data
    assert client.get(f"{inside}/a/f", tmp_path / "f").size == len(data)
    assert (tmp_path / "f").read_bytes() == data
    assert [path for path, _ in client.walk(inside)] == [f"{inside}/a", f"{inside}/a/f"]
    assert client.checksum(f"{inside}/a/f").size == len(data)
    client.copy(f"{inside}/a", "/snap/again", recursive=True)
    assert fetched(client, "/snap/again/f") == data
    with pytest.raises(ReadOnly, match="never changes"):
        put(client, f"{inside}/a/f", b"x")
    with pytest.raises(HasSnapshots, match="dfs snapshot rm"):
        client.delete("/snap", recursive=True)
    with pytest.raises(AlreadyExists):
        client.snapshots.create("/snap", "s")


def test_the_changes_since_a_snapshot_are_told_and_undone(client: DfsClient) -> None:
    for name in ("keep", "change", "move", "drop"):
        put(client, f"/diff/d/{name}", name.encode())
    client.snapshots.create("/diff", "s")
    put(client, "/diff/d/change", b"other")
    client.rename("/diff/d/move", "/diff/moved")
    client.delete("/diff/d/drop")
    client.make_directory("/diff/new")
    changes = [(change.kind.value, change.source, change.path) for change in client.snapshots.changes("/diff", "s")]
    assert changes == [
        ("modified", "", "d/change"),
        ("deleted", "", "d/drop"),
        ("renamed", "d/move", "moved"),
        ("created", "", "new"),
    ]
    client.snapshots.restore("/diff", "s", safety_name="before")
    assert [*client.snapshots.changes("/diff", "s")] == []
    assert len([*client.snapshots.changes("/diff", "s", "before")]) == 4
    assert fetched(client, "/diff/d/change") == b"change"
    assert [item.name for item in client.snapshots.list("/diff")] == ["before", "s"]


def test_a_snapshot_of_ten_thousand_files_makes_no_chunk_and_survives_their_removal(client: DfsClient) -> None:
    for number in range(10):
        put(client, f"/many/0/{number}", b"y")
    for level in range(3):  # each holds the one before ten times
        client.make_directory(f"/many/{level + 1}")
        for copy in range(10):
            client.copy(f"/many/{level}", f"/many/{level + 1}/{copy}", recursive=True)
    before = client.cluster_status().space
    snapshot = client.snapshots.create("/many/3", "s")
    assert snapshot.file_count == 10_000
    after = client.cluster_status().space
    assert (after.chunk_count, after.snapshot_count) == (before.chunk_count, before.snapshot_count + 1)
    assert after.snapshot_size == before.snapshot_size + snapshot.size
    client.delete("/many/3/0", recursive=True, skip_trash=True)
    assert client.stat("/many/3").file_count == 9_000
    assert client.stat("/many/3/.snapshot/s").file_count == 10_000


def test_a_snapshot_has_every_record_that_was_appended_before_it(client: DfsClient) -> None:
    put(client, "/records/log", b"")
    with client.appender("/records/log") as appender:
        for number in range(5):
            appender.append(b"%d" % number).result()
        client.snapshots.create("/records", "s")
        for number in range(5, 9):
            appender.append(b"%d" % number).result()
        assert fetched(client, "/records/.snapshot/s/log") == b"01234"
        client.truncate("/records/log", 7)
        client.write_at("/records/log", 1, b"xx")
        appender.append(b"9").result()
    assert fetched(client, "/records/log") == b"0xx34569"
    client.snapshots.restore("/records", "s")
    assert client.append_record("/records/log", b"!") == 5
    assert fetched(client, "/records/log") == b"01234!"
    assert fetched(client, "/records/.snapshot/s/log") == b"01234"


def test_fsck_looks_at_open_tails_and_where_it_is_asked_to_at_snapshots(client: DfsClient, run: Run) -> None:
    put(client, "/checked/old", content(1000))
    client.snapshots.create("/checked", "s")
    client.delete("/checked/old", skip_trash=True)
    client.append_record("/checked/log", b"a record")

    def looked(*options: str) -> dict[str, dict[str, Any]]:
        result = run("fsck", "/checked", "--files", "--blocks", "--json", *options)
        assert result.exit_code == 0, result.output
        document = json.loads(result.output)
        assert document["summary"]["is_healthy"]
        return {file["path"]: file for file in document["files"]}

    found = looked("--verify")
    assert list(found) == ["/checked/log"]
    (tail,) = found["/checked/log"]["chunks"]
    assert (tail["is_open"], tail["live"], tail["goal"]) == (True, 3, 3)
    with_snapshots = looked("-includeSnapshots")
    assert set(with_snapshots) == {"/checked/log", "/checked/.snapshot/s/old"}
    (kept,) = with_snapshots["/checked/.snapshot/s/old"]["chunks"]
    assert (kept["is_open"], kept["live"]) == (False, 3)
    assert "being appended to live=3 goal=3" in run("fsck", "/checked", "-files", "-blocks").output
    (page,) = client.inspection.survey("/checked")
    assert page.chunks == (), "others than fsck see what is sealed only"


# --- quotas


def test_a_quota_stops_a_put_and_says_what_to_do(client: DfsClient) -> None:
    put(client, "/quota/a", b"12345")
    quota = client.quotas.set("/quota", names=2, stored_size=30)
    assert (quota.names_used, quota.stored_size_used) == (1, 15)
    with pytest.raises(QuotaExceeded, match="dfs quota set --bytes SIZE '/quota'") as caught:
        put(client, "/quota/b", b"123456")
    assert caught.value.details == {"directory": "/quota"}
    put(client, "/quota/b", b"12345")
    with pytest.raises(QuotaExceeded, match="2 files and directories; 2 are there, 1 more are wanted"):
        client.make_directory("/quota/c")
    assert [item.path for item in client.quotas.effective("/quota/a")] == ["/quota"]
    client.quotas.clear("/quota", stored_size=False)
    client.make_directory("/quota/c")
    with pytest.raises(InvalidArgument, match="allow nothing"):
        client.quotas.set("/quota", names=0)


def test_a_large_file_that_cannot_fit_is_refused_before_it_travels(client: DfsClient, tmp_path: Path) -> None:
    client.make_directory("/small")
    client.quotas.set("/small", stored_size=4 << 20)
    source = tmp_path / "large"
    travelled: list[int] = []
    source.write_bytes(bytes(2 << 20))
    with pytest.raises(QuotaExceeded, match="6291456 more are wanted"):
        client.put(source, "/small/large", replication=3, progress=travelled.append)
    assert travelled == []
    client.put(source, "/small/large", replication=2)
    client.put(source, "/small/large", replication=2, overwrite=True)
    with pytest.raises(QuotaExceeded):
        client.append(source, "/small/large", progress=travelled.append)
    client.write_at("/small/large", 0, source)
    assert travelled == []


def test_a_merge_that_is_interrupted_anywhere_changes_no_content_and_leaves_only_garbage(
    client: DfsClient, cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = bytearray(content(4 * CHUNK))
    put(client, "/interrupted", bytes(expected))
    for number in range(40):
        expected[number * 20_000 : number * 20_000 + 7_000] = content(7_000, number)
        client.write_at("/interrupted", number * 20_000, bytes(expected[number * 20_000 : number * 20_000 + 7_000]))
    commit = client._calls.call
    for allowed in (0, 1, 1):  # commits; the next chunk is stored, and its commit never sent
        left = [allowed]

        def call(*arguments: Any, left: list[int] = left) -> Any:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return commit(*arguments)

        monkeypatch.setattr(client._calls, "call", call)
        with pytest.raises(KeyboardInterrupt):
            client.compact("/interrupted")
        assert fetched(client, "/interrupted") == expected
    monkeypatch.undo()
    assert client.compact("/interrupted").extent_count < 10
    assert fetched(client, "/interrupted") == expected
    cluster.masters[0].state.check_invariants()


# --- the command line


def test_ranges_are_typed(run: Run, client: DfsClient) -> None:
    for name in ("1", "2", "3"):
        put(client, f"/typed/{name}", name.encode() * 100)
    assert run("truncate", "-s", "50", "/typed/1").output == ""
    assert run("concat", "/typed/1", "/typed/[23]").output == "added 2 files: /typed/1 has 250 B\n"
    assert fetched(client, "/typed/1") == b"1" * 50 + b"2" * 100 + b"3" * 100
    assert run("compact", "/typed/1").output == "/typed/1: 3 extents, now 1\n"
    assert run("truncate", "-s", "1K", "/typed/1").exit_code == 1
    assert run("concat", "/typed/1").exit_code == 2


def test_snapshots_are_typed(run: Run, client: DfsClient) -> None:
    put(client, "/shots/d/f", b"first")
    made = run("snapshot", "create", "/shots", "monday").output
    assert made == "created /shots/.snapshot/monday (1 file, 5 B, shared with the directory)\n"
    assert json.loads(run("createSnapshot", "/shots", "--json").output)["name"].startswith("s2")
    put(client, "/shots/d/f", b"second")
    client.rename("/shots/d/f", "/shots/g")
    assert run("ls", "/shots/.snapshot").output.startswith("monday")
    assert run("ls", "/shots").output.split() == ["d", "g"]
    assert run("cat", "/shots/.snapshot/monday/d/f").output == "first"
    assert "/shots/.snapshot/monday/d/f" in run("find", "/shots/.snapshot/monday", "-name", "f").output
    diff = run("snapshot", "diff", "/shots", "monday").output
    assert diff == "M  g\nR  d/f -> g\n"
    restored = run("snapshot", "restore", "/shots", "monday").output
    assert restored.startswith("restored /shots from snapshot monday; what was there is in snapshot before-restore-2")
    assert fetched(client, "/shots/d/f") == b"first"
    assert len(json.loads(run("snapshot", "ls", "/shots", "--json").output)) == 3
    assert "monday" in run("snapshot", "ls", "-h").output
    assert run("rm", "-r", "/shots").exit_code == 1
    assert run("snapshot", "rm", "/shots", "monday", "nope").exit_code == 3
    assert run("snapshot", "ls", "/shots").output.count("\n") == 3


def test_quotas_are_typed(run: Run, client: DfsClient) -> None:
    put(client, "/team/a/f", b"12345")
    assert run("quota", "set", "/team", "--names", "3", "--bytes", "1K").output == (
        "/team: 2 of 3 names; 15 B of 1.0 KiB with replicas\n"
    )
    assert run("quota", "ls", "/team").output == (
        "NAMES  USED  BYTES  USED  DIRECTORY\n    3     2   1024    15  /team\n"
    )
    assert json.loads(run("quota", "ls", "-e", "/team/a/f", "--json").output)[0]["path"] == "/team"
    counted = run("count", "-q", "-v", "/team", "/team/a").output.splitlines()
    assert [line.split() for line in counted] == [
        ["NAMES", "USED", "BYTES", "USED", "DIRECTORIES", "FILES", "SIZE", "PATH"],
        ["3", "2", "1024", "15", "2", "1", "5", "/team"],
        ["-", "-", "-", "-", "1", "1", "5", "/team/a"],
    ]
    assert json.loads(run("count", "-q", "--json", "/team").output)[0]["quota"]["names"] == 3
    assert "quota of /team     2 of 3 files and directories" in run("stat", "/team/a").output
    refused = run("mkdir", "-p", "/team/b/c")
    assert (refused.exit_code, "the quota of '/team' is 3 files and directories" in refused.output) == (1, True)
    assert "no limit" in run("quota", "clear", "/team").output
    assert run("quota", "ls", "/team").output == "there are no quotas\n"
    assert run("quota", "set", "/team").exit_code == 2
