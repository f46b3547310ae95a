"""The verbs that tell facts about paths: `stat`, `du`, `df`, `count`, `test`, `checksum`.

Owns: their forms of output. Refuses to know: how the facts are counted (the masters keep them, nothing is walked).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from dfs import paths as path_rules
from dfs.cli import output, quotas, wall
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE, Operand, operands
from dfs.cli.verb import human_option, json_option, pass_cli, stale_option, verb
from dfs.errors import DfsError, IsADirectory, NotADirectory, NotFound
from dfs.net.parts import FileStatus, Kind, QuotaStatus

if TYPE_CHECKING:
    from dfs.cli.wall import Failures

_FORMAT: Final = re.compile(r"%(.)|\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "0": "\0", "\\": "\\"}
_FIELDS: Final[dict[str, Callable[[Operand, FileStatus], str]]] = {
    "%": lambda _operand, _status: "%",
    "n": lambda operand, _: operand.typed,
    "N": lambda operand, _: operand.shown,
    "p": lambda operand, _: operand.path,
    "F": lambda _, status: "directory" if status.kind is Kind.DIRECTORY else "regular file",
    "b": lambda _, status: str(status.size),
    "s": lambda _, status: str(status.size),
    "S": lambda _, status: str(status.stored_size),
    "r": lambda _, status: str(status.replication),
    "i": lambda _, status: str(status.inode),
    "v": lambda _, status: str(status.version),
    "y": lambda _, status: output.utc_time(status.mtime_ms),
    "Y": lambda _, status: str(status.mtime_ms),
}


def _statuses(cli: Cli, typed: tuple[str, ...], failures: Failures) -> Iterator[tuple[Operand, FileStatus]]:
    for operand in operands(cli, typed, failures):
        status: FileStatus | None = None
        with failures.catch():
            status = cli.client.stat(operand.path)
        if status is not None:
            yield operand, status


@verb("stat")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option(
    "-c",
    "--format",
    "form",
    metavar="FORMAT",
    help="%n name, %p full path, %F type, %s size, %S stored size, %r replication, %i inode, %v version,"
    " %y time (UTC), %Y in milliseconds, \\n \\t \\0.",
)
@json_option
@stale_option
@pass_cli
def stat_verb(cli: Cli, paths: tuple[str, ...], form: str | None, as_json: bool) -> None:
    """Show all that the masters know about PATHS."""
    if form is not None:
        _check_format(form)
    failures = cli.failures()
    found = _statuses(cli, paths, failures)
    if form is not None:
        for operand, status in found:
            output.line(_formatted(form, operand, status))
    elif cli.wants_json(as_json):
        with output.json_array() as array:
            for operand, status in found:
                array.add(output.file_json(status, operand.path))
    else:
        for index, (operand, status) in enumerate(found):
            if index:
                output.line()
            for text in output.table([*_facts(operand, status), *_quota_facts(cli, operand, status)]):
                output.line(text)
    failures.finish()


def _check_format(form: str) -> None:
    for match in _FORMAT.finditer(form):
        if match[1] is not None and match[1] not in _FIELDS:
            raise click.BadParameter(f"%{match[1]} in the format is unknown; known are {' '.join(_FIELDS)}")


def _formatted(form: str, operand: Operand, status: FileStatus) -> str:
    def fill(match: re.Match[str]) -> str:
        if match[1] is not None:
            return _FIELDS[match[1]](operand, status)
        return _ESCAPES.get(match[2], match[0])

    return _FORMAT.sub(fill, form)


def _facts(operand: Operand, status: FileStatus) -> Iterator[tuple[str, str]]:
    yield "path", output.display(operand.path)
    yield "type", status.kind.name.lower()
    yield "size", f"{status.size} ({output.size_text(status.size)})"
    yield "stored size", f"{status.stored_size} ({output.size_text(status.stored_size)})"
    yield "modified", f"{output.local_time(status.mtime_ms)} ({output.utc_time(status.mtime_ms)})"
    yield "inode", str(status.inode)
    if status.kind is Kind.DIRECTORY:
        yield "files below", str(status.file_count)
        yield "directories below", str(status.directory_count)
    else:
        yield "replication", str(status.replication)
        yield "version", str(status.version)
        yield "extents", str(status.extent_count)


def _quota_facts(cli: Cli, operand: Operand, status: FileStatus) -> Iterator[tuple[str, str]]:
    """Yield the limits that a directory is subject to."""
    if status.kind is not Kind.DIRECTORY or path_rules.split_snapshot(operand.path) or cli.stale_s:
        return  # only the leader tells of quotas
    for quota in cli.client.quotas.effective(operand.path):
        whose = "quota" if quota.path == operand.path else f"quota of {output.display(quota.path)}"
        if quota.names:
            yield whose, f"{quota.names_used} of {quota.names} files and directories"
        if quota.stored_size:
            used, limit = output.size_text(quota.stored_size_used), output.size_text(quota.stored_size)
            yield whose, f"{used} of {limit} with replicas"


@verb("du")
@click.argument("paths", nargs=-1, type=REMOTE)
@click.option("-s", "--summarize", is_flag=True, help="One line for each path, not for each of its entries.")
@human_option
@json_option
@stale_option
@pass_cli
def du_verb(cli: Cli, paths: tuple[str, ...], summarize: bool, human: bool, as_json: bool) -> None:
    """Show size and stored size (all replicas) of PATHS, or of the entries of the directories among them."""
    failures = cli.failures()

    def found() -> Iterator[tuple[Operand, FileStatus]]:
        for operand, status in _statuses(cli, paths or (".",), failures):
            if summarize or status.kind is not Kind.DIRECTORY:
                yield operand, status
                continue
            with failures.catch():
                yield from ((operand.child(entry.path), entry) for entry in cli.client.list(operand.path))

    if cli.wants_json(as_json):
        with output.json_array() as array:
            for operand, status in found():
                array.add({"path": operand.path, "size": status.size, "stored_size": status.stored_size})
    else:
        rows = [
            (
                output.size_column(status.size, human=human),
                output.size_column(status.stored_size, human=human),
                operand.shown,
            )
            for operand, status in found()
        ]
        for text in output.table(rows, right=(0, 1)):
            output.line(text)
    failures.finish()


@verb("df")
@human_option
@click.argument("path", required=False, type=REMOTE, metavar="")
@json_option
@pass_cli
def df_verb(cli: Cli, path: str | None, human: bool, as_json: bool) -> None:
    """Show the space of the cluster: its disks, and what fills them."""
    if path is not None:
        cli.client.stat(cli.resolve(path))  # one cluster is one file system, but a wrong name should not pass
    status = cli.client.cluster_status()
    alive = [server for server in status.servers if server.state != "dead"]
    capacity, free = sum(s.capacity for s in alive), sum(s.free for s in alive)
    space = status.space
    if cli.wants_json(as_json):
        output.print_json(
            {
                "capacity": capacity,
                "used": capacity - free,
                "free": free,
                "live_size": space.live_size,
                "trash_size": space.trash_size,
                "trash_count": space.trash_count,
                "chunk_stored_size": space.chunk_stored_size,
                "snapshot_count": space.snapshot_count,
                "snapshot_size": space.snapshot_size,
                "garbage_stored_size": space.garbage_stored_size,
                "garbage_count": space.garbage_count,
                "file_count": space.file_count,
                "directory_count": space.directory_count,
                "chunk_count": space.chunk_count,
                "replication": status.replication,
                "chunk_size": status.chunk_size,
            }
        )
        return

    def size(value: int) -> str:
        return output.size_column(value, human=human)

    percent = f"{100 * (capacity - free) / capacity:.0f}%" if capacity else "-"
    servers = f"{len(alive)} of {len(status.servers)}"
    rows = [
        ("CAPACITY", "USED", "FREE", "USE%", "SERVERS"),
        (size(capacity), size(capacity - free), size(free), percent, servers),
    ]
    for text in output.table(rows, right=(0, 1, 2, 3)):
        output.line(text)
    output.line()
    details = [
        ("files", size(space.live_size), f"{output.count_text(space.file_count, 'file')} (size without replicas)"),
        (
            "trash",
            size(space.trash_size),
            f"{output.count_text(space.trash_count, 'entry', 'entries')}, freed when they expire or by `dfs expunge`",
        ),
        (
            "snapshots",
            size(space.snapshot_size),
            f"{output.count_text(space.snapshot_count, 'snapshot')}; what they share with files takes no space",
        ),
        (
            "chunks",
            size(space.chunk_stored_size),
            f"{output.count_text(space.chunk_count, 'chunk')} with all replicas, of files, trash and snapshots",
        ),
        (
            "garbage",
            size(space.garbage_stored_size),
            f"{output.count_text(space.garbage_count, 'chunk')} being removed from the disks",
        ),
    ]
    for text in output.table(details, right=(1,)):
        output.line(text)


@verb("count")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option("-h", "--human", is_flag=True, help="Sizes as 1.5K, 12M, 3.4G.")
@click.option("-v", "--header", is_flag=True, help="Print a header.")
@click.option("-q", "--quota", "with_quota", is_flag=True, help="Before that: limit and use of names, and of bytes.")
@json_option
@pass_cli
def count_verb(cli: Cli, paths: tuple[str, ...], human: bool, header: bool, with_quota: bool, as_json: bool) -> None:
    """Count directories (the named one included), files and bytes of PATHS."""
    failures = cli.failures()
    counts = [
        (operand, status.directory_count + 1, status.file_count, status.size)
        if status.kind is Kind.DIRECTORY
        else (operand, 0, 1, status.size)
        for operand, status in _statuses(cli, paths, failures)
    ]
    if cli.wants_json(as_json):
        keys = ("path", "directory_count", "file_count", "size")
        items: list[dict[str, Any]] = [dict(zip(keys, (o.path, d, f, s), strict=True)) for o, d, f, s in counts]
        for item in items if with_quota else ():
            quota = _own_quota(cli, item["path"])
            item["quota"] = None if quota is None else quotas.quota_json(quota)
        output.print_json(items)
    else:
        rows = [(str(d), str(f), output.size_column(s, human=human), o.shown) for o, d, f, s in counts]
        if header:
            rows.insert(0, ("DIRECTORIES", "FILES", "SIZE", "PATH"))
        if with_quota:
            found = [quotas.columns(_own_quota(cli, o.path), human=human) for o, *_ in counts]
            before = [quotas.HEADER, *found] if header else found
            rows = [(*left, *right) for left, right in zip(before, rows, strict=True)]  # type: ignore[misc]
        for text in output.table(rows, right=range(len(rows[0]) - 1) if rows else ()):
            output.line(text)
    failures.finish()


def _own_quota(cli: Cli, path: str) -> QuotaStatus | None:
    found = () if path_rules.split_snapshot(path) else cli.client.quotas.effective(path)
    return next((quota for quota in found if quota.path == path), None)


@verb("test")
@click.argument("path", type=REMOTE)
@click.option("-e", "question", flag_value="e", help="It exists (the default).")
@click.option("-d", "question", flag_value="d", help="It is a directory.")
@click.option("-f", "question", flag_value="f", help="It is a file.")
@click.option("-s", "question", flag_value="s", help="It is a file that is not empty, or a directory with entries.")
@click.option("-z", "question", flag_value="z", help="It is an empty file.")
@pass_cli
def test_verb(cli: Cli, path: str, question: str | None) -> None:
    """Answer by the exit code: 0 yes, 1 no, more than 1: the question could not be answered."""
    try:
        status = cli.client.stat(cli.resolve(path))
    except (NotFound, NotADirectory):
        raise click.exceptions.Exit(wall.EXIT_FAILED) from None
    except DfsError as error:
        raise wall.LocalError(wall.describe(error), max(wall.EXIT_USAGE, wall.exit_code_of(error))) from error
    is_file = status.kind is Kind.FILE
    holds = {
        "e": True,
        "d": not is_file,
        "f": is_file,
        "s": status.size > 0 if is_file else status.file_count + status.directory_count > 0,
        "z": is_file and status.size == 0,
    }[question or "e"]
    raise click.exceptions.Exit(wall.EXIT_OK if holds else wall.EXIT_FAILED)


@verb("checksum")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option("--sha256", "with_sha256", is_flag=True, help="SHA-256 (reads every byte), as sha256sum prints it.")
@json_option
@pass_cli
def checksum_verb(cli: Cli, paths: tuple[str, ...], with_sha256: bool, as_json: bool) -> None:
    """Print the CRC32C of the content of PATHS; it is composed from the chunks' checksums without reading them."""
    failures = cli.failures()
    sums: list[dict[str, Any]] = []
    is_json = cli.wants_json(as_json)
    for operand, status in _statuses(cli, paths, failures):
        with failures.catch():
            if status.kind is Kind.DIRECTORY:
                raise IsADirectory(f"{operand.typed!r} is a directory; checksums are of files")
            if with_sha256:
                algorithm, value, size = "sha256", *_sha256(cli, operand.path)
            else:
                checksum = cli.client.checksum(operand.path)
                algorithm, value, size = checksum.algorithm, checksum.value, checksum.size
            sums.append({"path": operand.path, "algorithm": algorithm, "value": value, "size": size})
            if not is_json:
                output.line(f"{value}  {operand.shown}")
    if is_json:
        output.print_json(sums)
    failures.finish()


def _sha256(cli: Cli, path: str) -> tuple[str, int]:
    import hashlib

    digest, size = hashlib.sha256(), 0
    for piece in cli.client.read(path):
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size
