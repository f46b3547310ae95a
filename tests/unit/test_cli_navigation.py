"""Do pwd, cd, ls, tree and find show what is there, in the forms that people and programs expect?"""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import pytest
from click.testing import Result

from dfs.errors import NoQuorum
from dfs.testing.memory_client import MemoryClient

Run = Callable[..., Result]


def fill(client: MemoryClient, *paths: str) -> None:
    for path in paths:
        if path.endswith("/"):
            client.make_directory(path, parents=True)
        else:
            client.put(io.BytesIO(b"x" * len(path)), path, parents=True)


def test_relative_paths_start_at_the_remote_current_directory(client: MemoryClient, run: Run) -> None:
    fill(client, "/a/b/file")
    assert run("pwd").output == "/\n"
    assert run("cd", "a").exit_code == 0
    assert run("cd", "b").exit_code == 0
    assert run("pwd").output == "/a/b\n"
    assert run("ls").output == "file\n"
    assert run("ls", "..").output == "b\n"
    assert run("cd", "-").output == "/a\n"
    assert run("cd", "-").output == "/a/b\n"
    assert run("cd").exit_code == 0
    assert json.loads(run("pwd", "--json").output) == {"path": "/"}


def test_cd_refuses_what_is_not_a_directory(client: MemoryClient, run: Run) -> None:
    fill(client, "/file")
    missing, file = run("cd", "/no"), run("cd", "/file")
    assert (missing.exit_code, file.exit_code) == (3, 1)
    assert missing.stderr.startswith("dfs: cd: no such file or directory: '/no'")
    assert "is a file" in file.stderr
    assert run("pwd").output == "/\n"


def test_ls_sorts_by_name_time_or_size(client: MemoryClient, run: Run) -> None:
    for name, size in (("b", 3), ("a", 1), ("c", 2)):
        client.put(io.BytesIO(b"x" * size), f"/{name}")
    assert run("ls", "/").output.split() == ["a", "b", "c"]
    assert run("ls", "-r", "/").output.split() == ["c", "b", "a"]
    assert run("ls", "-t", "/").output.split() == ["c", "a", "b"]
    assert run("ls", "-S", "/").output.split() == ["b", "c", "a"]
    assert run("ls", "-rt", "/").output.split() == ["b", "a", "c"]


def test_long_listing_shows_type_replicas_size_time_and_name(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"x" * 1536), "/d/file", parents=True)
    client.touch("/d/file", mtime_ms=86_400_000 * 365)
    lines = run("ls", "-lh", "/d", "/").output.splitlines()
    assert lines[0] == "/d:"
    kind, replicas, size, date, _, name = lines[1].split()
    assert (kind, replicas, size, name) == ("-", "3", "1.5K", "file")
    assert date in ("1970-12-31", "1971-01-01")
    assert lines[3] == "/:"
    assert lines[4].split()[:3] == ["d", "-", "1.5K"], "a directory shows what is below it"


def test_ls_recursive_prints_each_directory_with_a_header(client: MemoryClient, run: Run) -> None:
    fill(client, "/t/a/x", "/t/b/", "/t/f")
    assert run("ls", "-R", "/t").output == "/t:\na\nb\nf\n\n/t/a:\nx\n\n/t/b:\n"
    assert run("lsr", "/t").output.count("\n") == 9
    assert run("ls", "-d", "/t").output == "/t\n"
    assert run("ls", "/t/f").output == "/t/f\n"


def test_ls_prints_columns_when_asked(client: MemoryClient, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(client, *(f"/n{index:02}" for index in range(12)))
    monkeypatch.setenv("COLUMNS", "24")
    assert run("ls", "-C", "/").output.splitlines()[0] == "n00  n03  n06  n09"


def test_odd_names_are_escaped_for_people_and_exact_for_programs(client: MemoryClient, run: Run) -> None:
    names = ["-dash", "a b", "line\nbreak", "b\\s", "ü漢", "\x1b[31mred"]
    fill(client, *(f"/d/{name}" for name in names))
    shown = run("ls", "/d").output.splitlines()
    assert len(shown) == len(names)
    assert set(shown) == {"-dash", "a b", "line\\nbreak", "b\\\\s", "ü漢", "\\x1b[31mred"}
    assert sorted(entry["name"] for entry in json.loads(run("ls", "--json", "/d").output)) == sorted(names)
    assert sorted(run("ls", "-0", "/d").stdout_bytes.split(b"\0")[:-1]) == sorted(name.encode() for name in names)
    found = run("find", "/d", "-type", "f", "-print0").stdout_bytes.split(b"\0")[:-1]
    assert sorted(found) == sorted(f"/d/{name}".encode() for name in names)
    assert run("ls", "--", "/d/-dash").exit_code == 0
    run("cd", "/d")
    assert run("ls", "./-dash").output == "./-dash\n"
    assert run("ls", "--", "-dash").output == "-dash\n"


def test_ls_goes_on_after_a_missing_operand(client: MemoryClient, run: Run) -> None:
    fill(client, "/a", "/b")
    result = run("ls", "/a", "/no", "/b")
    assert result.exit_code == 3
    assert result.stdout == "/a\n/b\n"
    assert result.stderr == "dfs: ls: no such file or directory: '/no'\n"


def test_patterns_are_expanded_unless_a_file_has_that_name(client: MemoryClient, run: Run) -> None:
    fill(client, "/d/one.log", "/d/two.log", "/d/.hidden.log", "/d/x.txt", "/e/one.log", "/d/[x]")
    assert run("ls", "/d/*.log").output.split() == ["/d/one.log", "/d/two.log"]
    assert run("ls", "/*/one.log").output.split() == ["/d/one.log", "/e/one.log"]
    assert run("ls", "/d/[x]").output == "/d/[x]\n"
    run("cd", "/d")
    assert run("ls", "t?o.*").output == "two.log\n"
    nothing = run("ls", "/d/*.gz")
    assert nothing.exit_code == 3
    assert "no path matches the pattern '/d/*.gz'" in nothing.stderr
    assert run("rm", "-f", "/d/*.gz").exit_code == 0


def test_tree_draws_branches_and_counts(client: MemoryClient, run: Run) -> None:
    fill(client, "/t/a/x", "/t/a/y/", "/t/f")
    assert run("tree", "/t").output == ("/t\n├── a\n│   ├── x\n│   └── y\n└── f\n\n2 directories, 2 files\n")
    assert run("tree", "-L", "1", "/t").output == "/t\n├── a\n└── f\n\n1 directory, 1 file\n"
    assert run("tree", "-d", "/t").output.endswith("2 directories\n")
    (tree,) = json.loads(run("tree", "--json", "/t").output)
    assert [child["name"] for child in tree["children"]] == ["a", "f"]
    assert [child["path"] for child in tree["children"][0]["children"]] == ["/t/a/x", "/t/a/y"]


def test_tree_survives_the_deepest_directory(client: MemoryClient, run: Run) -> None:
    client.make_directory("/" + "/".join("d" * 1 for _ in range(512)), parents=True)
    assert run("tree", "/").output.endswith("512 directories, 0 files\n")
    value = json.loads(run("tree", "--json", "/").output)
    assert value[0]["directory_count"] == 512


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], [".", "./a.log", "./d", "./d/B.LOG", "./d/empty", "./d/e"]),
        (["-name", "*.log"], ["./a.log"]),
        (["--name", "*.log"], ["./a.log"]),
        (["-iname", "*.log"], ["./a.log", "./d/B.LOG"]),
        (["-type", "d"], [".", "./d", "./d/e"]),
        (["-type", "f", "-empty"], ["./d/empty"]),
        (["-type", "d", "-empty"], ["./d/e"]),
        (["-size", "+1K"], ["./d/B.LOG"]),
        (["-size", "-1K", "-type", "f"], ["./a.log", "./d/empty"]),
        (["-maxdepth", "1"], [".", "./a.log", "./d"]),
        (["-mindepth", "2"], ["./d/B.LOG", "./d/empty", "./d/e"]),
        (["-path", "./d/*"], ["./d/B.LOG", "./d/empty", "./d/e"]),
        (["-mtime", "-1"], ["./d/empty"]),
        (["-mtime", "+100", "-type", "f"], ["./a.log", "./d/B.LOG"]),
    ],
)
def test_find_prints_what_meets_all_conditions(
    client: MemoryClient, run: Run, conditions: list[str], expected: list[str]
) -> None:
    client.put(io.BytesIO(b"12"), "/a.log")
    client.put(io.BytesIO(b"x" * 5000), "/d/B.LOG", parents=True)
    client.touch("/d/empty", mtime_ms=4_000_000_000_000)
    client.make_directory("/d/e")
    assert sorted(run("find", *(["."] if conditions else []), *conditions).output.splitlines()) == sorted(expected)


def test_find_gives_json_with_full_paths(client: MemoryClient, run: Run) -> None:
    fill(client, "/d/x")
    run("cd", "/d")
    found = json.loads(run("find", "--json", "-type", "f").output)
    assert [(entry["path"], entry["type"], entry["size"]) for entry in found] == [("/d/x", "file", 4)]
    assert json.loads(run("find", "--json", "-name", "no").output) == []


def test_json_of_a_listing_has_stable_keys(client: MemoryClient, run: Run) -> None:
    fill(client, "/f")
    (entry,) = json.loads(run("ls", "--json", "/").output)
    assert entry == {
        "path": "/f",
        "name": "f",
        "type": "file",
        "size": 2,
        "stored_size": 6,
        "mtime": "2023-11-14T22:13:21.000Z",
        "mtime_ms": 1_700_000_001_000,
        "inode": 2,
        "version": 1,
        "replication": 3,
        "extent_count": 1,
        "file_count": 0,
        "directory_count": 0,
    }


def test_json_stays_json_when_the_verb_fails(client: MemoryClient, run: Run) -> None:
    result = run("ls", "--json", "/no")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == []
    client.down = NoQuorum("no master leads")
    result = run("ls", "--json", "/")
    assert result.exit_code == 4
    assert result.stderr == "dfs: ls: no master leads\n"
