"""Do bytes get in and out as people expect of cp, cat, head and tail, and does nothing stray?"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import Result

from dfs.cli.progress import Progress
from dfs.client.repacking import RepackReport
from dfs.errors import DiskFull, NoQuorum
from dfs.testing.memory_client import MemoryClient

Run = Callable[..., Result]


def content(client: MemoryClient, path: str) -> bytes:
    return b"".join(client.read(path))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A local tree with an empty directory, odd names and a link."""
    root = tmp_path / "tree"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"a")
    (root / "sub" / "line\nbreak").write_bytes(b"odd")
    (root / "sub" / "-dash ü").write_bytes(b"dash")
    (root / "sub" / "zero").write_bytes(b"")
    (root / "link").symlink_to("/etc/passwd")
    (root / "loop").symlink_to(root)
    return root


def test_put_understands_its_target_like_cp(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "f.txt"
    source.write_bytes(b"data")
    client.make_directory("/d")
    assert run("put", source).exit_code == 0
    assert run("put", source, "/d").exit_code == 0
    assert run("put", source, "/d/named").exit_code == 0
    assert run("put", source, "/d/new/").exit_code == 3
    assert run("put", "-p", source, "/d/new/").exit_code == 0
    assert run("put", "-p", source, "/x/y/z").exit_code == 0
    assert sorted(path for path, node in client.nodes.items() if node.content == b"data") == [
        "/d/f.txt",
        "/d/named",
        "/d/new/f.txt",
        "/f.txt",
        "/x/y/z",
    ]


def test_put_replaces_only_with_force(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(b"new")
    client.put(io.BytesIO(b"old"), "/f")
    refused = run("put", source, "/f")
    assert refused.exit_code == 1
    assert refused.stderr == "dfs: put: '/f' exists; add -f to replace it\n"
    assert content(client, "/f") == b"old"
    assert run("put", "-f", source, "/f").exit_code == 0
    assert content(client, "/f") == b"new"


def test_put_of_a_large_file_looks_before_it_sends(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "big"
    with source.open("wb") as file:
        file.truncate(5 << 20)
    client.touch("/big")
    assert run("put", source, "/big").exit_code == 1
    assert not [call for call in client.calls if call.startswith("put")]


def test_put_reads_stdin_and_pipes(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    assert run("put", "-", "/in", stdin=b"\x00piped\xff").exit_code == 0
    assert content(client, "/in") == b"\x00piped\xff"
    assert run("put", "-").exit_code == 2
    into_directory = run("put", "-", "/", stdin=b"x")
    assert into_directory.exit_code == 1
    assert "file name" in into_directory.stderr


def test_put_recursive_stores_a_whole_tree(client: MemoryClient, run: Run, tree: Path) -> None:
    result = run("put", "-r", tree, "/")
    assert result.exit_code == 0
    assert {path for path in client.nodes if path.startswith("/tree")} == {
        "/tree",
        "/tree/a.txt",
        "/tree/sub",
        "/tree/sub/empty",
        "/tree/sub/line\nbreak",
        "/tree/sub/-dash ü",
        "/tree/sub/zero",
    }
    assert "a symbolic link is not stored" in result.stderr
    assert result.stdout.startswith("stored 4 files in 3 directories (8 B in ")
    assert "- 2 skipped" in result.stdout


def test_put_recursive_reports_each_failure_and_goes_on(client: MemoryClient, run: Run, tree: Path) -> None:
    client.faults["/tree/sub/zero"] = DiskFull("all disks are full")
    result = run("put", "-r", "--json", tree, "/")
    assert result.exit_code == 1
    assert f"{tree}/sub/zero: all disks are full" in result.stderr
    summary = json.loads(result.stdout)
    assert (summary["file_count"], summary["failure_count"], summary["skipped_count"]) == (3, 1, 2)
    assert summary["failures"][0]["code"] == "disk_full"
    assert client.exists("/tree/a.txt")


def test_put_recursive_ends_at_once_when_the_cluster_is_gone(client: MemoryClient, run: Run, tree: Path) -> None:
    client.faults["/tree/a.txt"] = NoQuorum("no master leads")
    result = run("put", "-r", tree, "/")
    assert result.exit_code == 4
    assert result.stderr.count("no master leads") == 1


def test_put_recursive_into_itself_again_merges_with_force(client: MemoryClient, run: Run, tree: Path) -> None:
    assert run("put", "-r", f"{tree}/.", "/copy").exit_code == 0
    assert client.exists("/copy/a.txt")
    again = run("put", "-r", f"{tree}/.", "/copy")
    assert again.exit_code == 1
    assert again.stderr.count("add -f") == 4
    assert run("put", "-rf", f"{tree}/.", "/copy").exit_code == 0


def test_put_of_a_directory_needs_the_recursive_option(client: MemoryClient, run: Run, tree: Path) -> None:
    refused = run("put", tree, "/")
    assert refused.exit_code == 1
    assert refused.stderr.endswith("is a directory; add -r\n")
    assert run("copyFromLocal", tree, "/").exit_code == 0
    assert client.exists("/tree/sub/zero")


def test_put_names_a_missing_local_file(run: Run) -> None:
    result = run("put", "absent", "/x")
    assert result.exit_code == 3
    assert result.stderr == "dfs: put: local file 'absent': No such file or directory\n"


def test_put_of_several_sources_needs_a_directory(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    assert run("put", "one", "two", "/d").exit_code == 3
    assert run("put", "-p", "one", "two", "/d").exit_code == 0
    assert content(client, "/d/two") == b"two"
    client.touch("/file")
    assert run("put", "one", "two", "/file").exit_code == 1


def test_put_keeps_times_and_replication_when_asked(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(b"x")
    os.utime(source, (1000, 1000))
    assert run("put", "--preserve", "--replication", "2", source, "/f").exit_code == 0
    status = client.stat("/f")
    assert (status.mtime_ms, status.replication) == (1_000_000, 2)
    assert run("get", "-p", "/f", "back").exit_code == 0
    assert (tmp_path / "back").stat().st_mtime == 1000


def test_put_of_a_name_that_is_not_unicode_is_a_failure_of_its_own(
    client: MemoryClient, run: Run, tmp_path: Path
) -> None:
    root = tmp_path / "t"
    root.mkdir()
    (root / "fine").write_bytes(b"1")
    (root / os.fsdecode(b"bad\xff")).write_bytes(b"2")
    result = run("put", "-r", root, "/")
    assert result.exit_code == 1
    assert "not valid Unicode" in result.stderr
    assert client.exists("/t/fine")


def test_move_from_local_removes_what_it_stored(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(b"x")
    client.touch("/f")
    assert run("moveFromLocal", source, "/f").exit_code == 1
    assert source.exists()
    assert run("moveFromLocal", source, "/g").exit_code == 0
    assert not source.exists()


def test_get_understands_its_target_like_cp(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    client.put(io.BytesIO(b"data"), "/d/f", parents=True)
    (tmp_path / "here").mkdir()
    assert run("get", "/d/f").exit_code == 0
    assert run("get", "/d/f", "here").exit_code == 0
    assert run("get", "/d/f", "named").exit_code == 0
    assert {p.name for p in tmp_path.rglob("*") if p.is_file() and p.read_bytes() == b"data"} == {"f", "named"}
    assert run("get", "/d/f", "-").stdout_bytes == b"data"
    assert run("get", "/d/f", "absent/").exit_code == 1
    assert run("get", "/d/f", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


def test_get_replaces_a_local_file_only_with_force(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    client.put(io.BytesIO(b"new"), "/f")
    (tmp_path / "f").write_bytes(b"old")
    (tmp_path / "link").symlink_to("f")
    refused = run("get", "/f")
    assert refused.exit_code == 1
    assert "exists; add -f to replace it" in refused.stderr
    assert (tmp_path / "f").read_bytes() == b"old"
    assert run("get", "-f", "/f", "link").exit_code == 0
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_file_whose_time_cannot_be_set_does_not_end_the_others(
    run: Run, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [path.relative_to(tree) for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    assert run("put", "-r", str(tree), "/tree").exit_code == 0
    refused: list[Path] = []

    def refusing(path: Path, **_options: object) -> None:
        refused.append(path)
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "utime", refusing)
    result = run("get", "-rp", "/tree", str(tmp_path / "copy"))
    assert result.exit_code == 1
    assert len(refused) == len(files) > 1
    assert all((tmp_path / "copy" / name).read_bytes() == (tree / name).read_bytes() for name in files)
    assert result.stderr.count("Operation not permitted") == len(files)


def test_get_recursive_brings_back_what_put_stored(client: MemoryClient, run: Run, tree: Path, tmp_path: Path) -> None:
    run("put", "-r", tree, "/")
    result = run("get", "-r", "/tree", "copy")
    assert result.exit_code == 0
    assert result.stdout.startswith("fetched 4 files in 3 directories (8 B in ")
    for name in ("a.txt", "sub/line\nbreak", "sub/-dash ü", "sub/zero"):
        assert (tmp_path / "copy" / name).read_bytes() == (tree / name).read_bytes()
    assert (tmp_path / "copy" / "sub" / "empty").is_dir()
    assert run("get", "/tree").exit_code == 1
    assert run("copyToLocal", "/tree", "copy").exit_code == 0
    assert (tmp_path / "copy" / "tree" / "a.txt").exists()


def test_get_recursive_writes_nothing_through_links(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "sub").symlink_to(outside)
    (tmp_path / "t" / "file").symlink_to(outside / "target")
    client.put(io.BytesIO(b"1"), "/t/sub/x", parents=True)
    client.put(io.BytesIO(b"2"), "/t/file")
    result = run("get", "-rf", "/t")
    assert result.exit_code == 1
    assert "nothing is written through it" in result.stderr
    assert list(outside.iterdir()) == []
    assert (tmp_path / "t" / "file").read_bytes() == b"2"


def test_append_adds_whole_files_in_order(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"2")
    assert run("append", "one", "two", "/log").exit_code == 0
    assert run("appendToFile", "-", "/log", stdin=b"3").exit_code == 0
    assert content(client, "/log") == b"123"
    assert run("append", "-c", "one", "/absent").exit_code == 3
    assert run("append", "one").exit_code == 2


def test_append_lines_makes_each_line_a_record(client: MemoryClient, run: Run, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1\n2\n")
    assert run("append", "--lines", "one", "-", "/log", stdin=b"3\nwithout end").exit_code == 0
    assert b"".join(client.read("/log")) == b"1\n2\n3\nwithout end"
    assert client.stat("/log").version >= 4, "each line was appended by itself"
    assert run("append", "-l", "-c", "one", "/absent").exit_code == 3
    assert run("append", "-l", "-", "/empty", stdin=b"").exit_code == 0
    assert client.stat("/empty").size == 0


def test_cat_prints_bytes_unchanged(client: MemoryClient, run: Run) -> None:
    blob = bytes(range(256)) * 1000
    client.put(io.BytesIO(blob), "/a")
    client.put(io.BytesIO(b"\n"), "/b")
    assert run("cat", "/a", "/b").stdout_bytes == blob + b"\n"
    partly = run("cat", "/no", "/b")
    assert (partly.exit_code, partly.stdout_bytes) == (3, b"\n")
    assert run("cat", "/").exit_code == 1


class Terminal(io.StringIO):
    """A stderr that a person watches."""

    def isatty(self) -> bool:
        return True


def test_a_bar_appears_only_for_a_watcher_of_a_long_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("dfs.cli.progress.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    for stderr, seconds, has_bar in ((Terminal(), 2.0, True), (Terminal(), 0.5, False), (io.StringIO(), 2.0, False)):
        monkeypatch.setattr("sys.stderr", stderr)
        with Progress("put", 100) as progress:
            now_s[0] += seconds
            progress.advance(50)
            progress.note("a line of its own")
        assert "a line of its own" in stderr.getvalue()
        assert ("put" in stderr.getvalue()) == has_bar


def test_tail_follows_what_is_appended(client: MemoryClient, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    client.put(io.BytesIO(b"old\nlast\n"), "/log")
    steps: Iterator[Callable[[], object]] = iter(
        [
            lambda: client.append(io.BytesIO(b"more\n"), "/log"),
            lambda: None,
            lambda: client.put(io.BytesIO(b"new\n"), "/log", overwrite=True),
        ]
    )

    def sleep(_seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr("dfs.testing.memory_client.time", SimpleNamespace(sleep=sleep))
    result = run("tail", "-n", "1", "-f", "/log")
    assert result.exit_code == 130
    assert result.stdout_bytes == b"last\nmore\nnew\n"
    assert "was replaced by a shorter file" in result.stderr


LINES = b"".join(b"line %d\n" % number for number in range(100_000))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["head"], LINES[: LINES.index(b"line 10\n")]),
        (["head", "-n", "2"], b"line 0\nline 1\n"),
        (["head", "-3"], b"line 0\nline 1\nline 2\n"),
        (["head", "-n", "0"], b""),
        (["head", "-n", "90000"], LINES[: LINES.index(b"line 90000\n")]),
        (["head", "-c", "10"], LINES[:10]),
        (["head", "-c", "2K"], LINES[:2048]),
        (["tail", "-n", "2"], b"line 99998\nline 99999\n"),
        (["tail", "-1"], b"line 99999\n"),
        (["tail"], LINES[LINES.index(b"line 99990\n") :]),
        (["tail", "-n", "50000"], LINES[LINES.index(b"line 50000\n") :]),
        (["tail", "-n", "+99999"], b"line 99998\nline 99999\n"),
        (["tail", "-n", "999999"], LINES),
        (["tail", "-c", "5"], b"9999\n"),
        (["tail", "-c", "+1088890"], LINES[1088889:]),
        (["tail", "-n", "0"], b""),
    ],
)
def test_head_and_tail_print_the_asked_part(
    client: MemoryClient, run: Run, arguments: list[str], expected: bytes
) -> None:
    client.put(io.BytesIO(LINES), "/f")
    result = run(*arguments, "/f")
    assert result.exit_code == 0
    assert result.stdout_bytes == expected


def test_tail_reads_only_the_end(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(LINES), "/f")
    client.calls.clear()
    run("tail", "/f")
    offsets = [int(call[5:].split(",")[0]) for call in client.calls if call.startswith("read(")]
    assert offsets
    assert min(offsets) >= len(LINES) - 128 * 1024


def test_head_of_several_files_has_headers_and_an_unended_last_line(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"no newline"), "/a")
    client.put(io.BytesIO(b""), "/b")
    assert run("head", "/a", "/b").stdout_bytes == b"==> /a <==\nno newline\n==> /b <==\n"
    assert run("tail", "-q", "/a", "/b").stdout_bytes == b"no newline"
    assert run("head", "-n", "1", "-c", "1", "/a").exit_code == 2


def test_an_empty_local_path_is_never_the_current_folder(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"x"), "/x")
    for line in (("put", "-r", "", "/"), ("put", "", "/"), ("get", "/x", "")):
        result = run(*line)
        assert (result.exit_code, "is empty" in result.stderr) == (2, True)


def test_repack_says_what_it_moved(client: MemoryClient, run: Run) -> None:
    client.make_directory("/thin")
    assert "nothing to do" in run("admin", "repack", "/thin").stdout
    client.repacked = RepackReport(17, 2048, 3, 1)
    told = run("admin", "repack", "/thin").stdout
    assert told == "moved 17 files (2.0 KiB) out of 3 half-empty chunks; 1 changed meanwhile and were left\n"
    facts = {"file_count": 17, "size": 2048, "chunk_count": 3, "conflict_count": 1}
    assert json.loads(run("admin", "repack", "/thin", "--json").stdout) == facts
    assert run("admin", "repack", "/none").exit_code == 3
