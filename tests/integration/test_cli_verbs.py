"""Does every verb do its job on a real cluster, typed as a user types it? Contents, JSON and exit codes are checked.

Each command is a process of its own (a third of a second), so one test walks through one room of verbs.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.checksum import crc32c
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(240)
CHUNK = 256 << 10
FAILED, USAGE, NOT_FOUND, UNREACHABLE, REFUSED, CONFIG = 1, 2, 3, 4, 5, 6
BIG = random.Random(2).randbytes(3 * CHUNK + 4321)
LINES = b"".join(f"line {number}\n".encode() for number in range(1, 31))


class Shell:
    """Types commands: `ok` wants success and returns stdout, `fails` wants a code and returns the one error line."""

    def __init__(self, cluster: ClusterUnderTest) -> None:
        self.cluster = cluster

    def ok(self, *arguments: str | Path, stdin: bytes = b"") -> str:
        return self.bytes(*arguments, stdin=stdin).decode()

    def bytes(self, *arguments: str | Path, stdin: bytes = b"") -> bytes:
        done = self.cluster.run_cli(*map(str, arguments), stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b""), (arguments, done)
        return done.stdout

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def names(self, *arguments: str | Path) -> list[str]:
        return [entry["name"] for entry in self.json("ls", *arguments)]

    def code(self, *arguments: str | Path) -> int:
        return self.cluster.run_cli(*map(str, arguments)).returncode

    def fails(self, code: int, *arguments: str | Path) -> str:
        done = self.cluster.run_cli(*map(str, arguments))
        assert done.returncode == code, (arguments, done)
        text = done.stderr.decode()
        assert text.count("\n") == 1, text
        assert text.startswith("dfs: "), text
        return text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path_factory.mktemp("verbs"), chunk_size=CHUNK) as running:
        yield running


@pytest.fixture(scope="module")
def shell(cluster: ClusterUnderTest) -> Shell:
    return Shell(cluster)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("local") / "photos"
    (root / "2024" / "empty folder").mkdir(parents=True)
    (root / "cat.jpg").write_bytes(BIG)
    (root / "2024" / "dog.jpg").write_bytes(BIG[:CHUNK])
    (root / "2024" / "empty.txt").write_bytes(b"")
    (root / "notes.txt").write_bytes(LINES)
    return root


def contents(root: Path) -> dict[str, bytes | None]:
    """Return every path below with its bytes, `None` for folders."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def test_mkdir_rmdir_cd_and_pwd_walk_the_remote_tree(shell: Shell) -> None:
    assert "'/walk' does not exist" in shell.fails(NOT_FOUND, "mkdir", "/walk/a/b")
    assert shell.ok("mkdir", "-p", "-v", "/walk/a/b", "/walk/c") == "made /walk/a/b\nmade /walk/c\n"
    assert "exists" in shell.fails(FAILED, "mkdir", "/walk")
    assert shell.ok("mkdir", "-p", "/walk") == ""
    shell.ok("cd", "/walk/a")
    assert shell.ok("pwd") == "/walk/a\n"
    assert shell.names() == ["b"]
    shell.ok("cd", "..")
    assert shell.json("pwd") == {"path": "/walk"}
    assert shell.ok("cd", "-") == "/walk/a\n"
    shell.fails(NOT_FOUND, "cd", "/walk/nowhere")
    assert shell.ok("pwd") == "/walk/a\n"
    assert "not empty" in shell.fails(FAILED, "rmdir", "..")
    assert shell.ok("rmdir", "--ignore-fail-on-non-empty", "..") == ""
    shell.ok("cd", "/walk")
    shell.ok("rmdir", "-p", "a/b", "c")  # parents as typed: what is above stays
    assert shell.names() == []
    shell.ok("cd")


def test_put_and_get_carry_trees_with_every_byte(shell: Shell, tree: Path, tmp_path: Path) -> None:
    assert shell.ok("put", "-r", tree, "/").startswith("stored 4 files in 3 directories")
    assert "exists; add -f" in shell.fails(FAILED, "put", tree / "cat.jpg", "/photos")
    shell.ok("put", "-f", tree / "cat.jpg", "/photos")
    assert "add -r" in shell.fails(FAILED, "put", tree, "/again")
    shell.fails(NOT_FOUND, "put", tmp_path / "nothing", "/")
    assert shell.ok("get", "-r", "/photos", tmp_path / "back").startswith("fetched 4 files in 3 directories")
    assert contents(tmp_path / "back") == contents(tree)
    assert "add -f" in shell.fails(FAILED, "get", "/photos/notes.txt", tmp_path / "back")
    (tmp_path / "back" / "notes.txt").write_bytes(b"old")
    shell.ok("get", "-f", "/photos/notes.txt", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tree)
    facts = shell.json("put", "-r", "-f", "--replication", "2", tree, "/photos2")
    assert (facts["file_count"], facts["directory_count"], facts["failure_count"]) == (4, 3, 0)
    assert shell.json("stat", "/photos2/cat.jpg")[0]["replication"] == 2
    assert shell.json("get", "-r", "/photos2", tmp_path / "back2")["size"] == sum(map(len, (BIG, BIG[:CHUNK], LINES)))
    assert contents(tmp_path / "back2") == contents(tree)


def test_stdin_and_stdout_stand_for_a_dash(shell: Shell, tmp_path: Path) -> None:
    shell.ok("put", "-p", "-", "/dash/big", stdin=BIG)
    assert shell.bytes("get", "/dash/big", "-") == BIG
    assert shell.bytes("cat", "/dash/big") == BIG
    assert "under a name" in shell.fails(USAGE, "put", "-")
    shell.ok("append", "-", "/dash/big", stdin=b"tail")
    assert shell.bytes("tail", "-c", "8", "/dash/big") == BIG[-4:] + b"tail"
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"22")
    shell.ok("append", tmp_path / "one", tmp_path / "two", "/dash/new")
    assert shell.bytes("cat", "/dash/new", "/dash/new") == b"122122"
    shell.fails(NOT_FOUND, "append", "-c", tmp_path / "one", "/dash/nowhere")
    assert "directory" in shell.fails(FAILED, "append", tmp_path, "/dash/new")


def test_cat_head_and_tail_print_what_their_unix_namesakes_print(shell: Shell) -> None:
    shell.ok("put", "-f", "-", "/lines", stdin=LINES)
    lines = LINES.splitlines(keepends=True)
    assert shell.bytes("head", "/lines") == b"".join(lines[:10])
    assert shell.bytes("head", "-3", "/lines") == b"".join(lines[:3])
    assert shell.bytes("head", "-c", "9", "/lines") == LINES[:9]
    assert shell.bytes("tail", "/lines") == b"".join(lines[-10:])
    assert shell.bytes("tail", "-n", "2", "/lines") == b"".join(lines[-2:])
    assert shell.bytes("tail", "-n", "+29", "/lines") == b"".join(lines[28:])
    assert shell.bytes("tail", "-c", "+100", "/lines") == LINES[99:]
    assert shell.ok("head", "-n", "1", "/lines", "/lines") == "==> /lines <==\nline 1\n\n==> /lines <==\nline 1\n"
    shell.fails(NOT_FOUND, "cat", "/nope")
    assert "directory" in shell.fails(FAILED, "cat", "/")
    half = shell.cluster.run_cli("cat", "/nope", "/lines")
    assert (half.returncode, half.stdout) == (NOT_FOUND, LINES)  # one that fails does not stop the others


def test_ls_tree_and_find_show_the_same_tree(shell: Shell, tree: Path) -> None:
    shell.ok("put", "-r", tree, "/shown")
    assert shell.ok("ls", "/shown") == "2024\ncat.jpg\nnotes.txt\n"
    assert shell.names("-r", "/shown") == ["notes.txt", "cat.jpg", "2024"]
    assert shell.names("-S", "/shown") == ["cat.jpg", "2024", "notes.txt"]
    long = shell.ok("ls", "-l", "-h", "/shown").splitlines()
    assert [line.split()[0] for line in long] == ["d", "-", "-"]
    assert long[1].split()[1:3] == ["3", "773K"]
    assert shell.ok("ls", "-d", "/shown") == "/shown\n"
    recursive = shell.ok("ls", "-R", "/shown")
    assert "/shown/2024:\ndog.jpg\nempty folder\nempty.txt\n" in recursive
    assert shell.ok("ls", "/shown/*.jpg") == "/shown/cat.jpg\n"
    assert shell.bytes("ls", "-0", "/shown") == b"2024\0cat.jpg\0notes.txt\0"
    shell.fails(NOT_FOUND, "ls", "/shown/*.png")
    drawn = shell.ok("tree", "/shown")
    assert "│   └── empty.txt" in drawn
    assert drawn.endswith("\n2 directories, 4 files\n")
    assert [child["name"] for child in shell.json("tree", "-L", "1", "/shown")[0]["children"]] == [
        "2024",
        "cat.jpg",
        "notes.txt",
    ]
    assert shell.ok("find", "/shown", "-name", "*.jpg").splitlines() == ["/shown/2024/dog.jpg", "/shown/cat.jpg"]
    assert shell.ok("find", "/shown", "-type", "d", "-empty") == "/shown/2024/empty folder\n"
    assert shell.ok("find", "/shown", "-size", "+300k") == "/shown/cat.jpg\n"
    assert shell.bytes("find", "/shown", "-maxdepth", "1", "-type", "f", "-print0") == (
        b"/shown/cat.jpg\0/shown/notes.txt\0"
    )
    assert [entry["path"] for entry in shell.json("find", "/shown", "-iname", "NOTES*")] == ["/shown/notes.txt"]


def test_stat_du_df_and_count_agree_with_what_was_stored(shell: Shell, tree: Path) -> None:
    shell.ok("put", "-r", tree, "/facts")
    size = len(BIG) + CHUNK + len(LINES)
    (status,) = shell.json("stat", "/facts/cat.jpg")
    assert (status["size"], status["stored_size"], status["type"]) == (len(BIG), 3 * len(BIG), "file")
    assert (
        shell.ok("stat", "-c", "%n %F %s %r", "/facts/notes.txt") == f"/facts/notes.txt regular file {len(LINES)} 3\n"
    )
    assert f"{size} (1.0 MiB)" in shell.ok("stat", "/facts")
    shell.fails(NOT_FOUND, "stat", "/facts/nope")
    assert shell.ok("du", "-s", "/facts").split() == [str(size), str(3 * size), "/facts"]
    assert {entry["path"]: entry["size"] for entry in shell.json("du", "/facts")} == {
        "/facts/2024": CHUNK,
        "/facts/cat.jpg": len(BIG),
        "/facts/notes.txt": len(LINES),
    }
    assert shell.ok("count", "/facts").split() == ["3", "4", str(size), "/facts"]
    space = shell.json("df")
    assert space["capacity"] >= space["free"] > 0
    assert space["live_size"] >= size
    assert "4 of 4" in shell.ok("df", "-h")


def test_test_answers_by_exit_code(shell: Shell) -> None:
    shell.ok("mkdir", "/asked")
    shell.ok("touch", "/asked/empty")
    answers = {
        ("-e", "/asked"): 0,
        ("-d", "/asked"): 0,
        ("-f", "/asked"): 1,
        ("-f", "/asked/empty"): 0,
        ("-z", "/asked/empty"): 0,
        ("-s", "/asked/empty"): 1,
        ("-e", "/asked/nope"): 1,
        ("-x", "/asked"): USAGE,
    }
    assert {question: shell.code("test", *question) for question in answers} == answers


def test_checksums_are_those_of_the_bytes(shell: Shell, tree: Path) -> None:
    shell.ok("put", "-f", tree / "cat.jpg", "/summed")
    assert shell.ok("checksum", "/summed") == f"{crc32c(BIG):08x}  /summed\n"
    (facts,) = shell.json("checksum", "--sha256", "/summed")
    assert (facts["value"], facts["size"]) == (hashlib.sha256(BIG).hexdigest(), len(BIG))
    assert "directory" in shell.fails(FAILED, "checksum", "/")


def test_cp_and_mv_change_names_and_no_bytes(shell: Shell, tree: Path, tmp_path: Path) -> None:
    shell.ok("put", "-r", tree, "/from")
    chunks = shell.json("df")["chunk_count"]
    assert "add -r" in shell.fails(FAILED, "cp", "/from", "/to")
    shell.ok("cp", "-r", "/from", "/to")
    assert shell.json("df")["chunk_count"] == chunks
    assert "add -f" in shell.fails(FAILED, "cp", "/from/notes.txt", "/to")
    shell.ok("cp", "-f", "/from/notes.txt", "/to/cat.jpg")
    assert shell.bytes("cat", "/to/cat.jpg") == LINES
    shell.ok("mv", "/from/cat.jpg", "/to")  # into a directory, replacing
    shell.ok("mv", "-n", "/from/notes.txt", "/to/cat.jpg")
    assert shell.bytes("cat", "/to/cat.jpg") == BIG
    shell.ok("mv", "/to", "/renamed")
    assert shell.names("/from") == ["2024", "notes.txt"]
    shell.ok("get", "-r", "/renamed", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tree)
    shell.fails(NOT_FOUND, "mv", "/nope", "/there")
    shell.fails(FAILED, "mv", "/renamed", "/renamed/2024/below-itself")


def test_touch_and_setrep_change_what_stat_says(shell: Shell) -> None:
    shell.ok("touch", "-d", "2024-02-29T12:00+00:00", "/touched")
    (status,) = shell.json("stat", "/touched")
    assert (status["mtime"], status["size"]) == ("2024-02-29T12:00:00.000Z", 0)
    shell.ok("touch", "-c", "/untouched")
    assert shell.code("test", "-e", "/untouched") == 1
    shell.ok("put", "-p", "-", "/wanted/file", stdin=b"x")
    assert shell.ok("setrep", "-R", "2", "/wanted") == "/wanted: 1 file set to replication 2\n"
    assert shell.json("stat", "/wanted/file")[0]["replication"] == 2
    shell.fails(USAGE, "setrep", "0", "/wanted/file")


def test_rm_fills_the_trash_and_undelete_and_expunge_empty_it(shell: Shell, tree: Path) -> None:
    shell.ok("expunge")
    shell.ok("put", "-r", tree, "/doomed")
    assert "add -r" in shell.fails(FAILED, "rm", "/doomed")
    (removed,) = shell.json("rm", "-r", "/doomed")
    assert (removed["file_count"], removed["type"]) == (4, "directory")
    shell.fails(NOT_FOUND, "rm", "/doomed")
    assert shell.ok("rm", "-f", "/doomed") == ""
    assert [entry["path"] for entry in shell.json("trash", "ls")] == ["/doomed"]
    assert shell.ok("undelete", "/doomed") == "restored /doomed\n"
    assert shell.bytes("cat", "/doomed/cat.jpg") == BIG
    shell.ok("rm", "-q", "/doomed/cat.jpg", "/doomed/notes.txt")
    (first, second) = shell.json("trash")
    assert shell.ok("trash", "empty", str(first["trash_id"])).startswith("released 1 trash entry, ")
    assert shell.json("expunge") == {"entry_count": 1, "size": second["size"]}
    assert shell.ok("trash", "ls") == "the trash is empty\n"
    shell.fails(NOT_FOUND, "undelete", "/doomed/cat.jpg")
    assert "released" in shell.ok("rm", "-r", "--skip-trash", "/doomed")
    assert shell.json("trash") == []


def test_hdfs_names_mean_the_same(shell: Shell, tree: Path, tmp_path: Path) -> None:
    shell.ok("-mkdir", "-p", "/hdfs/in")
    shell.ok("-copyFromLocal", tree, "/hdfs/in")
    shell.ok("appendToFile", "-", "/hdfs/in/photos/notes.txt", stdin=b"more\n")
    shell.ok("touchz", "/hdfs/in/flag")
    assert shell.ok("-cat", "/hdfs/in/photos/notes.txt").encode() == LINES + b"more\n"
    assert "\n/hdfs/in/photos/2024:\n" in shell.ok("lsr", "/hdfs/in")
    shell.ok("copyToLocal", "/hdfs/in/photos", tmp_path / "back")
    assert (tmp_path / "back" / "cat.jpg").read_bytes() == BIG
    moved = tmp_path / "moved"
    moved.write_bytes(b"gone")
    shell.ok("moveFromLocal", moved, "/hdfs/moved")
    assert not moved.exists()
    assert shell.ok("cat", "/hdfs/moved") == "gone"
    assert shell.ok("dus", "/hdfs/moved").split() == ["4", "12", "/hdfs/moved"]
    shell.ok("delete", "/hdfs/moved")
    shell.ok("rmr", "-skipTrash", "/hdfs")
    assert shell.code("test", "-e", "/hdfs") == 1


def test_status_config_and_help_tell_what_they_should(shell: Shell, tmp_path: Path) -> None:
    wait_until(lambda: shell.code("status") == 0, 60, "all is well (a busy machine may be late with a heartbeat)")
    status = json.loads(shell.cluster.run_cli("status", "--json").stdout)
    assert (status["health"], len(status["masters"]), len(status["chunk_servers"])) == ("healthy", 3, 4)
    assert shell.cluster.run_cli("status").stdout.startswith(b"healthy\n")
    shell.ok("config", "replication", "2")
    assert shell.json("config")["replication"]["value"] == 2
    shell.ok("put", "-f", "-", "/by-config", stdin=b"x")
    assert shell.json("stat", "/by-config")[0]["replication"] == 2
    shell.ok("config", "--unset", "replication")
    assert shell.json("version")["version"] in shell.ok("--version")
    assert shell.ok("help", "put").startswith("Usage: dfs put ")
    assert "did you mean" in shell.fails(USAGE, "lss")
    assert "--help" in shell.fails(USAGE, "ls", "--no-such-option")
    shell.fails(USAGE, "put")
    shell.fails(CONFIG, "--config", tmp_path / "nothing.ini", "ls")


def test_exit_codes_tell_a_silent_cluster_from_one_that_refuses(shell: Shell, tmp_path: Path) -> None:
    text = shell.cluster.config_path.read_text(encoding="utf-8")
    (tmp_path / "other.secret").write_text("0" * 64, encoding="ascii")
    (tmp_path / "other.secret").chmod(0o600)
    stranger = tmp_path / "stranger.ini"
    stranger.write_text(text.replace("cluster.secret", str(tmp_path / "other.secret")), encoding="utf-8")
    shell.fails(REFUSED, "--config", stranger, "ls", "/")
    dead = tmp_path / "dead.ini"  # port 9 of loopback: nobody listens
    dead.write_text(
        "[cluster]\nname = test\nsecret_file = other.secret\nrun_dir = run\n"
        "[master:m1]\naddress = 127.0.0.1:9\nraft_address = 127.0.0.1:10\ndata_dir = m1\n"
        "[chunk:c1]\naddress = 127.0.0.1:11\ndata_dirs = c1\nrack = r1\n",
        encoding="utf-8",
    )
    assert "dfs up" in shell.fails(UNREACHABLE, "--timeout", "1", "--config", dead, "ls", "/")
    assert "nobody listens" in shell.fails(UNREACHABLE, "--timeout", "1", "--config", dead, "admin", "masters")
    assert "No such file" in shell.fails(NOT_FOUND, "--config", dead, "admin", "import", tmp_path / "nothing.jsonl")
