"""The verb `ls`: directories and files as names, columns, long lines or JSON.

Owns: the options, order and forms of a listing. Refuses to know: how entries are fetched.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE, Operand, operands
from dfs.cli.verb import human_option, json_option, pass_cli, stale_option, verb
from dfs.cli.wall import Failures
from dfs.net.parts import FileStatus, Kind

LONG_ROWS: Final = 1000  # rows that are aligned together; a larger directory is printed in pieces
LINE_WIDTH: Final = 80  # when the terminal does not tell

_BLUE, _PLAIN = "\x1b[1;34m", "\x1b[0m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How to list; `order` is name, time or size."""

    form: str  # json, null, long, columns, lines
    order: str
    is_reversed: bool
    is_recursive: bool
    as_themselves: bool
    human: bool


Entry = tuple[Operand, FileStatus]


@verb("ls")
@click.argument("paths", nargs=-1, type=REMOTE)
@click.option("-l", "--long", is_flag=True, help="Type, replicas, size, time and name.")
@human_option
@click.option("-R", "--recursive", is_flag=True, help="List what is below, too.")
@click.option("-t", "by_time", is_flag=True, help="Newest first.")
@click.option("-S", "by_size", is_flag=True, help="Largest first.")
@click.option("-r", "--reverse", "is_reversed", is_flag=True, help="Reverse the order.")
@click.option("-d", "--directory", "as_themselves", is_flag=True, help="Directories themselves, not their content.")
@click.option("-1", "one_per_line", is_flag=True, help="One name per line (so anyway in a pipe).")
@click.option("-C", "as_columns", is_flag=True, help="Names in columns (so anyway on a terminal).")
@click.option("-0", "--null", "is_raw", is_flag=True, help="Raw names, each ended by NUL (for xargs -0).")
@click.option("-a", "-A", "--all", is_flag=True, expose_value=False, hidden=True, help="Nothing is ever hidden.")
@json_option
@stale_option
@pass_cli
def ls_verb(
    cli: Cli,
    paths: tuple[str, ...],
    long: bool,
    human: bool,
    recursive: bool,
    by_time: bool,
    by_size: bool,
    is_reversed: bool,
    as_themselves: bool,
    one_per_line: bool,
    as_columns: bool,
    is_raw: bool,
    as_json: bool,
) -> None:
    """List PATHS (default: the current directory).

    Names are shown with control characters escaped (`\\n`) and backslashes doubled; `-0` and `--json` give them
    exactly. The size of a directory is that of all files below it.
    """
    if is_raw:
        form = "null"
    elif cli.wants_json(as_json):
        form = "json"
    elif long:
        form = "long"
    else:
        form = "columns" if as_columns or (sys.stdout.isatty() and not one_per_line) else "lines"
    style = Style(
        form=form,
        order="time" if by_time else "size" if by_size else "name",
        is_reversed=is_reversed,
        is_recursive=recursive,
        as_themselves=as_themselves,
        human=human,
    )
    failures = cli.failures()
    _list(cli, paths or (".",), style, failures)
    failures.finish()


def _list(cli: Cli, typed: tuple[str, ...], style: Style, failures: Failures) -> None:
    files: list[Entry] = []
    directories: list[Operand] = []
    for operand in operands(cli, typed, failures):
        with failures.catch():
            status = cli.client.stat(operand.path)
            if status.kind is Kind.DIRECTORY and not style.as_themselves:
                directories.append(operand)
            else:
                files.append((operand, status))
    if style.form == "json":
        with output.json_array() as array:
            for operand, status in _groups_flat(cli, files, directories, style, failures):
                array.add(output.file_json(status, operand.path))
        return
    has_headers = style.is_recursive or len(directories) > 1 or (bool(directories) and bool(files))
    _print(_ordered(files, style), style, shows_paths=True)
    is_first = not files
    for operand, entries in _groups(cli, directories, style, failures):
        if has_headers and style.form != "null":
            if not is_first:
                output.line()
            output.line(f"{operand.shown}:")
        is_first = False
        with failures.catch():
            _print(entries, style, shows_paths=has_headers and style.form == "null")


def _groups(
    cli: Cli, directories: list[Operand], style: Style, failures: Failures
) -> Iterator[tuple[Operand, Iterable[Entry]]]:
    """Yield each directory with its entries in order; those below follow their parent when recursive."""
    stack = list(reversed(directories))
    while stack:
        operand = stack.pop()
        entries: Iterable[Entry] = ((operand.child(s.path), s) for s in cli.client.list(operand.path))
        if style.is_recursive:
            below: list[Entry] = []
            with failures.catch():
                below = _ordered(entries, style)
            entries = below
            stack.extend(child for child, status in reversed(below) if status.kind is Kind.DIRECTORY)
        elif style.order != "name" or style.is_reversed:
            entries = _lazily_ordered(entries, style)
        yield operand, entries


def _lazily_ordered(entries: Iterable[Entry], style: Style) -> Iterator[Entry]:
    yield from _ordered(entries, style)


def _groups_flat(
    cli: Cli, files: list[Entry], directories: list[Operand], style: Style, failures: Failures
) -> Iterator[Entry]:
    yield from _ordered(files, style)
    for _, entries in _groups(cli, directories, style, failures):
        with failures.catch():
            yield from entries


def _ordered(entries: Iterable[Entry], style: Style) -> list[Entry]:
    ordered = list(entries)
    if style.order == "time":
        ordered.sort(key=lambda entry: (-entry[1].mtime_ms, entry[0].typed))
    elif style.order == "size":
        ordered.sort(key=lambda entry: (-entry[1].size, entry[0].typed))
    else:
        ordered.sort(key=lambda entry: entry[0].typed)
    if style.is_reversed:
        ordered.reverse()
    return ordered


def _name(entry: Entry, shows_paths: bool) -> str:
    operand, status = entry
    return operand.typed if shows_paths else status.path.rpartition("/")[2] or operand.typed


def _print(entries: Iterable[Entry], style: Style, *, shows_paths: bool) -> None:
    if style.form == "null":
        for entry in entries:
            output.raw(_name(entry, shows_paths))
    elif style.form == "lines":
        for entry in entries:
            output.line(output.display(_name(entry, shows_paths)))
    elif style.form == "columns":
        _print_columns(list(entries), shows_paths)
    else:
        _print_long(entries, style, shows_paths)


def _print_columns(entries: list[Entry], shows_paths: bool) -> None:
    names = [output.display(_name(entry, shows_paths)) for entry in entries]
    for text in output.columns(names, shutil.get_terminal_size((LINE_WIDTH, 24)).columns):
        output.line(text)


def _print_long(entries: Iterable[Entry], style: Style, shows_paths: bool) -> None:
    has_colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    rows: list[tuple[str, ...]] = []
    for entry in entries:
        status = entry[1]
        is_directory = status.kind is Kind.DIRECTORY
        name = output.display(_name(entry, shows_paths))
        rows.append(
            (
                "d" if is_directory else "-",
                "-" if is_directory else str(status.replication),
                output.size_column(status.size, human=style.human),
                output.local_time(status.mtime_ms),
                f"{_BLUE}{name}{_PLAIN}" if has_colour and is_directory else name,
            )
        )
        if len(rows) >= LONG_ROWS:
            _flush(rows)
    _flush(rows)


def _flush(rows: list[Any]) -> None:
    for text in output.table(rows, right=(1, 2)):
        output.line(text)
    rows.clear()
