"""Does every failure end as one line and one documented exit code, and is every verb found under its names?"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
from click.testing import Result

from dfs.cli import wall
from dfs.cli.group import cli
from dfs.cli.verbs import ALIASES, VERBS
from dfs.cli.workers import Stopped, Workers
from dfs.config import EMBEDDED_DEFAULT
from dfs.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    DiskFull,
    InternalError,
    NoQuorum,
    NotFound,
    OutcomeUnknown,
    Overloaded,
)
from dfs.fast_paths import VARIABLE
from dfs.testing.memory_client import MemoryClient

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]


def test_a_fast_path_that_there_is_not_ends_every_verb(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "local-raeds")
    result = run("ls", "/")
    assert result.exit_code == wall.EXIT_CONFIG
    assert result.stderr.startswith(f"dfs: {VARIABLE} names local-raeds; what can be left out is: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("gone"), 3),
        (DiskFull("full"), 1),
        (NoQuorum("no master leads"), 4),
        (ConnectionFailed("refused"), 4),
        (DeadlineExceeded("too late"), 4),
        (OutcomeUnknown("perhaps"), 4),
        (AuthenticationFailed("wrong secret"), 5),
        (ConfigError("bad key"), 6),
        (InternalError("odd"), 1),
    ],
)
def test_each_error_has_its_exit_code_and_one_line(client: MemoryClient, run: Run, error: DfsError, code: int) -> None:
    client.down = error
    result = run("mkdir", "/x")
    assert result.exit_code == code
    assert result.stderr == f"dfs: mkdir: {error.message}\n"
    assert result.stdout == ""


def test_documented_exit_codes_are_the_ones_in_use() -> None:
    documented = {code for code, _ in wall.EXIT_CODES}
    assert documented == {
        value for name, value in vars(wall).items() if name.startswith("EXIT_") and name != "EXIT_CODES"
    }


def test_the_manual_tells_of_every_verb_option_alias_and_exit_code() -> None:
    manual = (ROOT / "docs" / "cli.md").read_text("utf-8")
    missing = [f"| {code} | {text} |" for code, text in wall.EXIT_CODES if f"| {code} | {text} |" not in manual]
    missing += [name for name in [*ALIASES, "moveFromLocal"] if f"`{name}`" not in manual]
    context = click.Context(cli, info_name="dfs")
    for name in VERBS:
        start = manual.find(f"\n### {name}\n")
        section = manual[start : manual.find("\n### ", start + 1)] if start >= 0 else ""
        command = cli.get_command(context, name)
        assert command is not None
        options = [o for p in command.params if isinstance(p, click.Option) and not p.hidden for o in p.opts]
        missing += [f"{name} {option}" for option in ["Usage:", *options] if option not in section]
    assert missing == []


def test_an_unreachable_cluster_is_asked_once_not_for_every_operand(client: MemoryClient, run: Run) -> None:
    client.down = NoQuorum("no master leads")
    result = run("rm", "/a", "/b", "/c")
    assert result.exit_code == 4
    assert len(client.calls) == 1


def test_different_failures_end_in_the_general_code(client: MemoryClient, run: Run) -> None:
    client.make_directory("/d")
    assert run("rm", "/no", "/d").exit_code == 1


def test_a_bug_is_called_a_bug(client: MemoryClient, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: str) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(client, "stat", broken)
    result = run("stat", "/x")
    assert result.exit_code == 1
    assert result.stderr == "dfs: stat: a bug in dfs: KeyError: 'oops'; report it with the output of --debug\n"


@pytest.mark.parametrize("arguments", [["--debug", "stat", "/x"], ["stat", "--debug", "/x"]])
def test_the_traceback_is_shown_only_with_debug(client: MemoryClient, run: Run, arguments: list[str]) -> None:
    client.down = NoQuorum("no master leads")
    assert "Traceback" in run(*arguments).stderr
    assert "Traceback" not in run("stat", "/x").stderr


def test_error_lines_cannot_be_forged_by_names(client: MemoryClient, run: Run) -> None:
    client.faults["/a\nb"] = DiskFull("bad \x1b[2J /a\nb")
    result = run("mkdir", "/a\nb")
    assert result.stderr == "dfs: mkdir: bad \\x1b[2J /a\\nb\n"


def test_unknown_verbs_get_a_suggestion(run: Run) -> None:
    result = run("mkdri", "/x")
    assert result.exit_code == 2
    assert result.stderr == "dfs: there is no verb 'mkdri'; did you mean mkdir?\n"
    assert "copyFromLocal" in run("copyfromlocal").stderr
    assert run("xyzzy").stderr == "dfs: there is no verb 'xyzzy'; see `dfs --help`\n"


def test_bad_options_are_usage_errors_that_point_to_help(run: Run) -> None:
    result = run("ls", "--frob")
    assert result.exit_code == 2
    assert result.stderr.startswith("dfs: ls: ")
    assert result.stderr.endswith("(see `dfs ls --help`)\n")
    assert run("mkdir").exit_code == 2
    assert run("ls", "--timeout", "0").exit_code == 2


def test_a_leading_dash_and_other_names_find_the_verb(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"x"), "/d/f", parents=True)
    assert run("-ls", "/d").output == "f\n"
    assert run("--timeout", "5", "-ls", "/d").output == "f\n"
    assert run("-mkdir", "-p", "/d/e").exit_code == 0
    assert run("dus", "/d").output == "1  3  /d\n"
    assert run("rmr", "/d").exit_code == 0


@pytest.mark.parametrize("name", [*VERBS, *ALIASES, "moveFromLocal"])
def test_every_verb_and_alias_has_help(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Usage: dfs" in result.output
    assert run("help", name).exit_code == 0


def test_without_arguments_all_verbs_are_listed(run: Run) -> None:
    result = run()
    assert result.exit_code == 0
    for name, entry in VERBS.items():
        assert f"  {name} " in result.output
        assert entry.help[:30] in result.output
    assert run("--version").output.startswith("dfs ")
    assert run("version").output.startswith("dfs ")


def test_interruption_ends_with_130_and_one_line(
    client: MemoryClient, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "put", interrupted)
    result = run("put", "-", "/f", stdin=b"x")
    assert result.exit_code == 130
    assert result.stderr.strip() == "dfs: put: interrupted"


def test_a_closed_pipe_is_silent(client: MemoryClient, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(client, "stat", closed)
    monkeypatch.setattr("dfs.cli.group._silence_stdout", lambda: None)
    result = run("stat", "/x")
    assert (result.exit_code, result.stderr) == (141, "")


def python(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, check=False, cwd="/")


def test_a_real_process_ends_quietly_when_its_reader_leaves() -> None:
    code = "import sys; from dfs.cli.main import main; sys.argv = ['dfs', '--help']; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert errors == b""


def test_pwd_imports_neither_network_nor_rich() -> None:
    result = python(
        "-c",
        "import sys\n"
        "from dfs.cli.group import cli\n"
        "try:\n    cli.main(['pwd'])\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'asyncio', 'rich', 'msgspec', 'dfs.net.messages', 'dfs.client.filesystem'}\n"
        "print(sorted(heavy & set(sys.modules)))\n",
    )
    assert result.stdout.decode().splitlines() == ["/", "[]"], result.stderr.decode()


# --- the workers of trees ----------------------------------------------------------------------------------


@pytest.fixture
def reported() -> Iterator[list[tuple[str, BaseException]]]:
    """Threads of other tests may come and go meanwhile."""
    before = set(threading.enumerate())
    yield []
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not [name for name in left if name.startswith("dfs-worker")], "a worker outlived its run"


def test_workers_do_every_task_and_report_failures(reported: list[tuple[str, BaseException]]) -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number % 10 == 0:
            raise DiskFull(str(number))
        done.append(number)

    with Workers(lambda label, error: reported.append((label, error)), count=4) as workers:
        for number in range(200):
            workers.submit(f"t{number}", lambda number=number: task(number))  # type: ignore[misc]
        workers.finish()
    assert len(done) == 180
    assert {label for label, _ in reported} == {f"t{number}" for number in range(0, 200, 10)}


def test_workers_stop_at_an_error_that_all_tasks_would_meet(reported: list[tuple[str, BaseException]]) -> None:
    def fail() -> None:
        raise NoQuorum("no master leads")

    def submit_many() -> None:
        with Workers(lambda label, error: reported.append((label, error)), count=2) as workers:
            for _ in range(10_000):
                workers.submit("t", fail)
            workers.finish()

    with pytest.raises(NoQuorum):
        submit_many()
    assert reported == []


def test_workers_raise_a_bug_of_a_task(reported: list[tuple[str, BaseException]]) -> None:
    def submit_bug() -> None:
        with Workers(lambda label, error: reported.append((label, error)), count=2) as workers:
            workers.submit("t", lambda: next(iter(())))
            workers.finish()

    with pytest.raises(StopIteration):
        submit_bug()
    assert reported == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_workers_do_with_the_threads_that_they_get(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start, started, done = threading.Thread.start, [0], list[int]()

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("dfs-worker"):
            if started[0] == count:
                raise RuntimeError("can't start new thread")
            started[0] += 1
        start(thread)

    def submit_many() -> None:
        with Workers(lambda _label, _error: None, count=8) as workers:
            for number in range(100):
                workers.submit("t", lambda number=number: done.append(number))  # type: ignore[misc]
            workers.finish()

    monkeypatch.setattr(threading.Thread, "start", refused)
    if not count:
        with pytest.raises(Overloaded, match="ulimit -u"):
            submit_many()
        return
    submit_many()
    assert sorted(done) == [*range(100)]


def test_workers_end_when_nobody_can_be_told_of_a_failure() -> None:
    """As when the reader of stderr has gone: no worker would be left, and who submits would wait for ever."""

    def tell(_label: str, _error: BaseException) -> None:
        raise BrokenPipeError

    def fail() -> None:
        raise DiskFull("no room")

    def submit_many() -> None:
        deadline = time.monotonic() + 20
        with Workers(tell, count=2) as workers:
            while time.monotonic() < deadline:
                workers.submit("t", fail)

    submitter = ThreadPoolExecutor(1)
    with pytest.raises(BrokenPipeError):
        submitter.submit(submit_many).result(20)
    submitter.shutdown()


def test_interrupted_workers_end_running_transfers(reported: list[tuple[str, BaseException]]) -> None:
    started, ended = threading.Event(), threading.Event()

    def transfer(workers: Workers) -> None:
        started.set()
        try:
            while True:
                workers.check()
        except Stopped:
            ended.set()
            raise

    def interrupt() -> None:
        with Workers(lambda label, error: reported.append((label, error)), count=1) as workers:
            workers.submit("t", lambda: transfer(workers))
            assert started.wait(60)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert ended.is_set()
    assert reported == []


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [("<&-", "put - /x"), (">&-", "version"), ("<&- >&-", "version"), ("2>&-", "version --bad")],
)
def test_closed_standard_streams_are_an_error_and_never_a_traceback(
    tmp_path: Path, closed: str, arguments: str
) -> None:
    (tmp_path / "cluster.ini").write_text(EMBEDDED_DEFAULT, "utf-8")
    command = f'"{sys.executable}" -m dfs --timeout 0.2 {arguments} {closed}'
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environ(tmp_path), capture_output=True, check=False)
    assert done.returncode not in (0, 120)
    assert b"Traceback" not in done.stderr
    assert b"a bug" not in done.stderr
    assert done.stderr.count(b"\n") == (0 if "2>" in closed else 1)


def test_what_the_library_logs_is_not_printed_by_programs_that_log_nothing() -> None:
    program = "from dfs.log import get_logger; get_logger('dfs.client').warning('chunk_not_written')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == (b"", b"")


def environ(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("group", ["admin", "snapshot", "quota", "trash"])
def test_a_wrong_inner_verb_is_told_with_the_way_to_the_right_one(run: Run, group: str) -> None:
    result = run(group, "xyzzy")
    assert (result.exit_code, result.stderr) == (
        2,
        f"dfs: {group}: there is no verb 'xyzzy'; see `dfs {group} --help`\n",
    )
    assert run(group, "--frob", "xyzzy").exit_code == 2


def test_an_inner_verb_that_comes_close_is_proposed(run: Run) -> None:
    assert run("admin", "decomission", "c1").stderr == (
        "dfs: admin: there is no verb 'decomission'; did you mean decommission?\n"
    )


def test_admin_alone_shows_its_verbs_and_help_explains_each(run: Run) -> None:
    alone = run("admin")
    assert alone.exit_code == 0
    assert "\n  decommission " in alone.output
    assert not alone.stderr
    for words in (("admin", "repack"), ("snapshot", "create"), ("quota", "set"), ("trash", "empty")):
        shown = run("help", *words)
        assert shown.exit_code == 0
        assert shown.output.startswith(f"Usage: dfs {' '.join(words)} [OPTIONS]")
    wrong = run("help", "ls", "x")
    assert (wrong.exit_code, wrong.stderr) == (2, "dfs: help: 'ls' has no verbs of its own; see `dfs ls --help`\n")
    assert run("help", "trash", "x").exit_code == 2


def test_global_options_stand_between_outer_and_inner_verb_too(client: MemoryClient, run: Run) -> None:
    client.put(io.BytesIO(b"x"), "/d/f", parents=True)
    assert run("rm", "-q", "/d/f").exit_code == 0
    for line in (
        ["trash"],
        ["trash", "ls"],
        ["trash", "--timeout", "5"],
        ["trash", "--timeout=5", "ls"],
        ["trash", "-h"],
    ):
        assert run(*line).output.endswith("/d/f\n"), line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dfs trash ", {"empty", "ls"}),
        ("dfs admin de", {"decommission"}),
        ("dfs snapshot ", {"create", "diff", "ls", "restore", "rm"}),
        ("dfs admin maintenance o", {"on", "off"}),
        ("dfs help sn", {"snapshot"}),
        ("dfs help quota s", {"set"}),
        ("dfs help ls x", set()),
    ],
)
def test_inner_verbs_are_completed(words: str, expected: set[str]) -> None:
    from click.shell_completion import ShellComplete

    from dfs.cli.group import cli

    *args, incomplete = words.split(" ")[1:]
    found = ShellComplete(cli, {}, "dfs", "_DFS_COMPLETE").get_completions(args, incomplete)
    assert {item.value for item in found} == expected
