"""The verb `find`: search trees by name, type, size and age.

Owns: the conditions (all of them must hold) and the walk with its depth limits. Refuses to know: how entries are kept.
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Iterator

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE, Operand, operands
from dfs.cli.quantities import AgeBound, Bound, SizeBound
from dfs.cli.verb import json_option, pass_cli, stale_option, verb
from dfs.cli.wall import Failures
from dfs.net.parts import FileStatus, Kind

Condition = Callable[[Operand, FileStatus], bool]


@verb("find")
@click.argument("paths", nargs=-1, type=REMOTE)
@click.option("-name", "--name", metavar="GLOB", help="The last component matches, case matters.")
@click.option("-iname", "--iname", metavar="GLOB", help="The same, case does not matter.")
@click.option("-path", "--path", "whole", metavar="GLOB", help="The shown path matches; * matches slashes, too.")
@click.option("-type", "--type", "kind", type=click.Choice(["f", "d"]), help="Files or directories only.")
@click.option("-size", "--size", type=SizeBound(), metavar="[+-]N[kMG]", help="Files larger (+), smaller (-) than N.")
@click.option("-mtime", "--mtime", type=AgeBound(86400), metavar="[+-]N", help="Older (+), younger (-) than N days.")
@click.option("-mmin", "--mmin", type=AgeBound(60), metavar="[+-]N", help="The same in minutes.")
@click.option("-empty", "--empty", is_flag=True, help="Empty files and empty directories.")
@click.option("-maxdepth", "--maxdepth", type=click.IntRange(0), metavar="N", help="Go down at most this many levels.")
@click.option(
    "-mindepth", "--mindepth", type=click.IntRange(0), metavar="N", default=0, help="Leave out fewer levels than this."
)
@click.option("-print", "--print", is_flag=True, expose_value=False, hidden=True)
@click.option("-0", "--null", "-print0", "--print0", "is_raw", is_flag=True, help="Raw names, ended by NUL.")
@json_option
@stale_option
@pass_cli
def find_verb(
    cli: Cli,
    paths: tuple[str, ...],
    name: str | None,
    iname: str | None,
    whole: str | None,
    kind: str | None,
    size: Bound | None,
    mtime: Bound | None,
    mmin: Bound | None,
    empty: bool,
    maxdepth: int | None,
    mindepth: int,
    is_raw: bool,
    as_json: bool,
) -> None:
    """Search below PATHS (default: the current directory) for what meets all conditions.

    Options may have one dash or two. Names are escaped as in `ls`; use -0 for scripts.
    """
    conditions = [*_name_conditions(name, iname, whole), *_value_conditions(kind, size, mtime, mmin, empty)]
    failures = cli.failures()
    found = (
        (operand, status)
        for root in operands(cli, paths or (".",), failures)
        for operand, status, depth in _walk(cli, root, maxdepth, failures)
        if depth >= mindepth and all(condition(operand, status) for condition in conditions)
    )
    if is_raw:
        for operand, _ in found:
            output.raw(operand.typed)
    elif cli.wants_json(as_json):
        with output.json_array() as array:
            for operand, status in found:
                array.add(output.file_json(status, operand.path))
    else:
        for operand, _ in found:
            output.line(operand.shown)
    failures.finish()


def _name_conditions(name: str | None, iname: str | None, whole: str | None) -> Iterator[Condition]:
    if name is not None:
        matches = re.compile(fnmatch.translate(name)).match
        yield lambda operand, _: matches(_basename(operand)) is not None
    if iname is not None:
        matches_any_case = re.compile(fnmatch.translate(iname), re.IGNORECASE).match
        yield lambda operand, _: matches_any_case(_basename(operand)) is not None
    if whole is not None:
        matches_whole = re.compile(fnmatch.translate(whole)).match
        yield lambda operand, _: matches_whole(operand.typed) is not None


def _value_conditions(
    kind: str | None, size: Bound | None, mtime: Bound | None, mmin: Bound | None, empty: bool
) -> Iterator[Condition]:
    now_s = time.time()
    if kind is not None:
        wanted = Kind.FILE if kind == "f" else Kind.DIRECTORY
        yield lambda _, status: status.kind is wanted
    if size is not None:
        yield lambda _, status: status.kind is Kind.FILE and size.holds_for_size(status.size)
    for age in (mtime, mmin):
        if age is not None:
            yield lambda _, status, age=age: age.holds_for_age(now_s - status.mtime_ms / 1000)  # type: ignore[misc]
    if empty:
        yield lambda _, status: _is_empty(status)


def _is_empty(status: FileStatus) -> bool:
    if status.kind is Kind.FILE:
        return status.size == 0
    return status.file_count == 0 and status.directory_count == 0


def _basename(operand: Operand) -> str:
    return operand.path.rpartition("/")[2] or "/"


def _walk(
    cli: Cli, root: Operand, depth_max: int | None, failures: Failures
) -> Iterator[tuple[Operand, FileStatus, int]]:
    """Yield (operand, status, depth), a directory before its content; memory holds one page per level."""
    status: FileStatus | None = None
    with failures.catch():
        status = cli.client.stat(root.path)
    if status is None:
        return
    yield root, status, 0
    stack: list[tuple[Operand, Iterator[FileStatus]]] = []
    if status.kind is Kind.DIRECTORY and depth_max != 0:
        stack.append((root, cli.client.list(root.path)))
    while stack:
        operand, entries = stack[-1]
        entry: FileStatus | None = None
        with failures.catch():
            entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        child = operand.child(entry.path)
        yield child, entry, len(stack)
        if entry.kind is Kind.DIRECTORY and (depth_max is None or len(stack) < depth_max):
            stack.append((child, cli.client.list(child.path)))
