"""Do the verbs that change and describe names do what their Unix namesakes lead people to expect?"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable

import pytest
from click.testing import Result

from dfs.errors import NoQuorum
from dfs.testing.memory_client import MemoryClient

Run = Callable[..., Result]


def content(client: MemoryClient, path: str) -> bytes:
    return b"".join(client.read(path))


def test_mkdir_makes_parents_only_when_told(client: MemoryClient, run: Run) -> None:
    refused = run("mkdir", "/a/b")
    assert (refused.exit_code, client.exists("/a")) == (3, False)
    assert run("mkdir", "-pv", "/a/b").output == "made /a/b\n"
    assert run("mkdir", "-p", "/a/b").exit_code == 0
    again = run("mkdir", "/a/b")
    assert again.exit_code == 1
    assert again.stderr == "dfs: mkdir: '/a/b' already exists\n"


def test_rmdir_removes_only_empty_directories(client: MemoryClient, run: Run) -> None:
    client.make_directory("/a/b/c", parents=True)
    full = run("rmdir", "/a")
    assert full.exit_code == 1
    assert "not empty" in full.stderr
    assert run("rmdir", "--ignore-fail-on-non-empty", "/a").exit_code == 0
    assert run("rmdir", "-p", "/a/b/c").exit_code == 0
    assert not client.exists("/a")


def test_rm_says_until_when_the_trash_keeps_a_file(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"12345"), "/f")
    result = run("rm", "/f")
    assert result.exit_code == 0
    assert result.output.startswith("removed /f: in the trash until 2023-11-")
    assert "`dfs undelete`" in result.output
    assert run("undelete", "/f").output == "restored /f\n"
    assert content(client, "/f") == b"12345"
    client.inspection.failure = NoQuorum("no master leads")
    client.put(io.BytesIO(b"12345"), "/g")
    assert run("rm", "-skipTrash", "/g").output == "removed /g: 5 B released\n", "the removal itself has succeeded"
    client.inspection.failure = None
    assert run("rm", "-skipTrash", "/f").output == "removed /f: 5 B released, off the disks in about 10m00s\n"
    assert run("undelete", "/f").exit_code == 3


def test_rm_of_a_directory_needs_the_recursive_option(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"1"), "/d/f", parents=True)
    refused = run("rm", "/d")
    assert refused.exit_code == 1
    assert refused.stderr == "dfs: rm: '/d' is a directory; add -r\n"
    assert run("delete", "-r", "/d").output.startswith("removed /d (1 file, 1 B): in the trash")
    assert not client.exists("/d")


def test_rm_force_is_silent_about_what_does_not_exist(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"1"), "/f")
    assert run("rm", "/no").exit_code == 3
    result = run("rm", "-f", "-q", "/no", "/f")
    assert (result.exit_code, result.output) == (0, "")
    assert not client.exists("/f")
    assert run("rm", "-f").exit_code == 0
    assert run("rm").exit_code == 2


def test_rm_gives_json_with_the_trash_id(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"12"), "/f")
    (removed,) = json.loads(run("rm", "--json", "/f").output)
    assert removed["path"] == "/f"
    assert removed["trash_id"] == 1
    assert removed["expires_ms"] > 1_700_000_000_000


def test_cp_replaces_only_with_force(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"new"), "/a")
    client.put(io.BytesIO(b"old"), "/b")
    refused = run("cp", "/a", "/b")
    assert refused.exit_code == 1
    assert refused.stderr == "dfs: cp: '/b' exists; add -f to replace it\n"
    assert run("cp", "-f", "/a", "/b").exit_code == 0
    assert content(client, "/b") == content(client, "/a") == b"new"


def test_cp_and_mv_go_into_an_existing_directory(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"1"), "/a")
    client.put(io.BytesIO(b"2"), "/b")
    client.make_directory("/d")
    assert run("cp", "/a", "/b", "/d").exit_code == 0
    assert run("mv", "/a", "/d/moved").exit_code == 0
    assert sorted(client.nodes) == ["/", "/b", "/d", "/d/a", "/d/b", "/d/moved"]
    many = run("cp", "/d/*", "/b")
    assert many.exit_code == 1
    assert "is not a directory" in many.stderr
    refused = run("cp", "/d", "/e")
    assert refused.stderr == "dfs: cp: '/d' is a directory; add -r\n"
    assert run("cp", "-r", "/d", "/e").exit_code == 0
    assert run("cp", "-r", "/d", "/e").exit_code == 0
    assert client.exists("/e/d/moved")


def test_mv_replaces_a_file_unless_told_not_to(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"1"), "/a")
    client.put(io.BytesIO(b"2"), "/b")
    assert run("mv", "-n", "/a", "/b").exit_code == 0
    assert content(client, "/b") == b"2"
    assert run("mv", "/a", "/b").exit_code == 0
    assert content(client, "/b") == b"1"
    assert not client.exists("/a")
    assert run("mv", "-n", "-f", "/b", "/c").exit_code == 2
    assert run("mv", "/b").exit_code == 2
    into_file = run("mv", "/b", "/b/")
    assert into_file.exit_code == 1


def test_touch_makes_files_and_sets_times(client: MemoryClient, run: Run) -> None:
    assert run("touchz", "/new").exit_code == 0
    assert client.stat("/new").size == 0
    assert run("touch", "-c", "/absent").exit_code == 0
    assert not client.exists("/absent")
    assert run("touch", "-d", "2020-01-02T03:04:05+00:00", "/new").exit_code == 0
    assert client.stat("/new").mtime_ms == 1_577_934_245_000
    assert run("touch", "-d", "@12.5", "/new").exit_code == 0
    assert client.stat("/new").mtime_ms == 12_500
    assert run("touch", "-d", "yesterday-ish", "/new").exit_code == 2


def test_setrep_tells_how_many_files_changed(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"1"), "/d/a", parents=True)
    client.put(io.BytesIO(b"1"), "/d/b")
    assert run("setrep", "-R", "2", "/d").output == "/d: 2 files set to replication 2\n"
    assert client.stat("/d/a").replication == 2
    assert run("setrep", "2", "/d").exit_code == 1
    assert run("setrep", "99", "/d/a").exit_code == 2
    assert json.loads(run("setrep", "--json", "1", "/d/a").output)[0]["file_count"] == 1


@pytest.mark.parametrize(
    ("option", "path", "code"),
    [
        ("-e", "/f", 0),
        ("-e", "/no", 1),
        ("-d", "/d", 0),
        ("-d", "/f", 1),
        ("-f", "/f", 0),
        ("-f", "/d", 1),
        ("-s", "/f", 0),
        ("-s", "/empty", 1),
        ("-z", "/empty", 0),
        ("-z", "/f", 1),
        ("-z", "/d", 1),
    ],
)
def test_the_verb_test_answers_by_exit_code(client: MemoryClient, run: Run, option: str, path: str, code: int) -> None:
    client.put(io.BytesIO(b"1"), "/f")
    client.touch("/empty")
    client.make_directory("/d")
    result = run("test", option, path)
    assert (result.exit_code, result.output) == (code, "")


def test_the_verb_test_never_says_no_when_it_could_not_ask(client: MemoryClient, run: Run) -> None:
    client.down = NoQuorum("no master leads")
    result = run("test", "-e", "/f")
    assert result.exit_code == 4
    assert result.stderr == "dfs: test: no master leads\n"


def test_stat_shows_all_fields_and_formats(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"x" * 2048), "/f")
    shown = run("stat", "/f").output
    assert "size         2048 (2.0 KiB)" in shown
    assert "stored size  6144 (6.0 KiB)" in shown
    assert run("stat", "-c", "%n|%s|%r|%F|%%", "/f").output == "/f|2048|3|regular file|%\n"
    assert run("stat", "-c", r"%n\t%b", "/f").output == "/f\t2048\n"
    assert run("stat", "-c", "%Q", "/f").exit_code == 2
    assert json.loads(run("stat", "--json", "/f").output)[0]["size"] == 2048


def test_du_shows_size_and_stored_size(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"x" * 1000), "/d/a/f", parents=True)
    client.put(io.BytesIO(b"x" * 24), "/d/g")
    assert run("du", "/d").output == "1000  3000  /d/a\n  24    72  /d/g\n"
    assert run("du", "-s", "/d").output == "1024  3072  /d\n"
    assert run("du", "-sh", "/d").output == "1.0K  3.0K  /d\n"
    assert json.loads(run("du", "-s", "--json", "/d").output) == [{"path": "/d", "size": 1024, "stored_size": 3072}]


def test_count_includes_the_named_directory(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"x" * 7), "/d/a/f", parents=True)
    assert run("count", "/d", "/d/a/f").output == "2  1  7  /d\n0  1  7  /d/a/f\n"
    assert json.loads(run("count", "--json", "/d").output)[0]["directory_count"] == 2


def test_df_shows_disks_and_what_fills_them(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"x" * 1000), "/f")
    shown = run("df", "-h").output
    assert shown.splitlines()[1].split() == ["40G", "16G", "24G", "40%", "4", "of", "4"]
    assert "1 file" in shown
    value = json.loads(run("df", "--json").output)
    assert (value["capacity"], value["live_size"], value["chunk_stored_size"]) == (40 << 30, 1000, 3000)


def test_checksum_prints_crc32c_or_sha256(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"123456789"), "/f")
    assert run("checksum", "/f").output == "e3069283  /f\n"
    assert run("checksum", "--sha256", "/f").output == f"{hashlib.sha256(b'123456789').hexdigest()}  /f\n"
    (value,) = json.loads(run("checksum", "--json", "/f").output)
    assert value == {"path": "/f", "algorithm": "crc32c", "value": "e3069283", "size": 9}
    assert run("checksum", "/").exit_code == 1


def test_trash_is_listed_restored_by_id_and_emptied(client: MemoryClient, run: Run) -> None:
    for text in (b"first", b"second!"):
        client.put(io.BytesIO(text), "/d/f", parents=True)
        run("rm", "/d/f")
    lines = run("trash", "ls").output.splitlines()
    assert lines[0].split() == ["ID", "DELETED", "EXPIRES", "TYPE", "SIZE", "PATH"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2"]
    assert run("trash").output == run("trash", "ls").output
    assert [entry["trash_id"] for entry in json.loads(run("trash", "ls", "--json", "/d").output)] == [1, 2]
    assert run("trash", "ls", "/e").output == "nothing from /e is in the trash\n"
    assert run("undelete", "--id", "1", "/d/f").exit_code == 0
    assert content(client, "/d/f") == b"first"
    assert run("expunge").output == "released 1 trash entry, 7 B, off the disks in about 10m00s\n"
    assert run("trash", "ls").output == "the trash is empty\n"
    missing = run("trash", "empty", "77")
    assert missing.exit_code == 3
    assert missing.stderr.startswith("dfs: trash empty: the trash has no entry 77")
