"""The verbs that print content: `cat`, `head`, `tail`.

Owns: which part of a file is printed. Refuses to know: where the bytes come from; they arrive verified and in order.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any, BinaryIO, Final

import click

from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE, Operand, operands
from dfs.cli.quantities import Size, parse_size
from dfs.cli.verb import pass_cli, stale_option, verb
from dfs.cli.wall import Failures
from dfs.errors import Conflict, IsADirectory
from dfs.net.parts import Kind

FIRST_READ_SIZE: Final = 256 * 1024  # `head` of an ordinary text file needs no more
BACKWARD_READ_SIZE: Final = 64 * 1024  # first step of `tail` back from the end; the steps double
BACKWARD_READ_SIZE_MAX: Final = 4 * 1024 * 1024
DEFAULT_LINES: Final = 10
LINES_MAX: Final = 1 << 40

_COUNT: Final = re.compile(r"\+?\d{1,12}")


def _stdout() -> BinaryIO:
    sys.stdout.flush()
    return sys.stdout.buffer


@verb("cat")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@stale_option
@pass_cli
def cat_verb(cli: Cli, paths: tuple[str, ...]) -> None:
    """Print the files PATHS, one after the other."""
    failures = cli.failures()
    stdout = _stdout()
    for operand in operands(cli, paths, failures):
        with failures.catch():
            for piece in cli.client.read(operand.path):
                stdout.write(piece)
    stdout.flush()
    failures.finish()


@verb("head", count_option="-n")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option(
    "-n", "--lines", type=click.IntRange(0, LINES_MAX), metavar="N", help="Print N lines (default 10); -5 is -n 5."
)
@click.option("-c", "--bytes", "size", type=Size(), help="Print the first bytes; K, M, G are powers of 1024.")
@click.option("-q", "--quiet", is_flag=True, help="No headers between several files.")
@pass_cli
def head_verb(cli: Cli, paths: tuple[str, ...], lines: int | None, size: int | None, quiet: bool) -> None:
    """Print the beginning of the files PATHS; only what is needed is read."""
    _only_one(lines, size)
    failures = cli.failures()
    stdout = _stdout()
    for operand in _with_headers(cli, paths, stdout, failures, quiet):
        with failures.catch():
            if size is not None:
                for piece in cli.client.read(operand.path, length=size):
                    stdout.write(piece)
            else:
                _head_lines(cli, operand, DEFAULT_LINES if lines is None else lines, stdout)
    stdout.flush()
    failures.finish()


def _head_lines(cli: Cli, operand: Operand, count: int, stdout: BinaryIO) -> None:
    start = b"".join(cli.client.read(operand.path, length=FIRST_READ_SIZE))
    end, _ = _after_lines(start, count)
    if end < len(start) or len(start) < FIRST_READ_SIZE or count == 0:
        stdout.write(start[:end])
        return
    with closing(_generator(cli.client.read(operand.path))) as pieces:  # one version of the file, from its start
        for piece in pieces:
            data = bytes(piece)
            end, count = _after_lines(data, count)
            stdout.write(data[:end])
            if count == 0:
                return


def _generator(pieces: Iterator[Any]) -> Any:
    """Return a generator that can be closed, so that reading ahead stops where printing does."""
    yield from pieces


def _after_lines(data: bytes, count: int) -> tuple[int, int]:
    """Return (the offset after `count` lines, how many lines are still missing)."""
    position = 0
    while count:
        found = data.find(b"\n", position)
        if found < 0:
            return len(data), count
        position, count = found + 1, count - 1
    return position, 0


def _only_one(lines: object, size: object) -> None:
    if lines is not None and size is not None:
        raise click.UsageError("-n counts lines and -c bytes; give one of them")


def _with_headers(
    cli: Cli, paths: tuple[str, ...], stdout: BinaryIO, failures: Failures, quiet: bool
) -> Iterator[Operand]:
    """Yield the operands; print `==> name <==` before each when there are several."""
    found = list(operands(cli, paths, failures))
    for index, operand in enumerate(found):
        if len(found) > 1 and not quiet:
            stdout.write(f"{chr(10) * (index > 0)}==> {operand.shown} <==\n".encode())
        yield operand


class _From(click.ParamType):  # type: ignore[type-arg]
    """`N` from the end, `+N` from the start (counted from 1); a tuple (is from start, N)."""

    name = "count"

    def __init__(self, *, is_size: bool) -> None:
        self._is_size = is_size

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[bool, int]:
        if isinstance(value, tuple):
            return value
        value = value.removeprefix("-")  # `-n -5` is what `-n 5` means
        try:
            if self._is_size:
                return value.startswith("+"), parse_size(value.removeprefix("+"))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not _COUNT.fullmatch(value):
            self.fail(f"{value!r} is not a number of lines; write 5 for the last five, +5 for all from the fifth on")
        return value.startswith("+"), int(value)


@verb("tail", count_option="-n")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option("-n", "--lines", type=_From(is_size=False), help="The last N lines (default 10); +N: from line N on.")
@click.option("-c", "--bytes", "size", type=_From(is_size=True), help="The last N bytes; +N: from byte N on.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is appended, until Ctrl-C.")
@click.option(
    "-s",
    "--sleep-interval",
    "interval_s",
    type=click.FloatRange(0.05, 3600),
    metavar="SECONDS",
    default=0.2,
    help="Seconds between two looks of -f.",
)
@click.option("-q", "--quiet", is_flag=True, help="No headers between several files.")
@pass_cli
def tail_verb(
    cli: Cli,
    paths: tuple[str, ...],
    lines: tuple[bool, int] | None,
    size: tuple[bool, int] | None,
    follow: bool,
    interval_s: float,
    quiet: bool,
) -> None:
    """Print the end of the files PATHS; only what is needed is read."""
    _only_one(lines, size)
    if follow and len(paths) > 1:
        raise click.UsageError("-f follows one file")
    failures = cli.failures()
    stdout = _stdout()
    for operand in _with_headers(cli, paths, stdout, failures, quiet):
        with failures.catch():
            status = cli.client.stat(operand.path)
            if status.kind is Kind.DIRECTORY:
                raise IsADirectory(f"{operand.typed!r} is a directory; only files have content")
            start = _start(cli, operand, status.size, lines, size)
            position = _print_from(cli, operand, start, stdout)
            if follow:
                _follow(cli, operand, position, interval_s, stdout)
    stdout.flush()
    failures.finish()


def _start(cli: Cli, operand: Operand, end: int, lines: tuple[bool, int] | None, size: tuple[bool, int] | None) -> int:
    """Return the offset of the first byte to print."""
    if size is not None:
        from_start, count = size
        return max(0, count - 1) if from_start else max(0, end - count)
    from_start, count = lines or (False, DEFAULT_LINES)
    if from_start:
        return _offset_of_line(cli, operand, count)
    return _offset_of_last_lines(cli, operand, end, count)


def _offset_of_line(cli: Cli, operand: Operand, number: int) -> int:
    missing, offset = max(0, number - 1), 0
    if missing == 0:
        return 0
    with closing(_generator(cli.client.read(operand.path))) as pieces:
        for piece in pieces:
            end, missing = _after_lines(bytes(piece), missing)
            offset += end
            if missing == 0:
                break
    return offset


def _offset_of_last_lines(cli: Cli, operand: Operand, end: int, count: int) -> int:
    """Search backwards from the end for the newline before the last `count` lines."""
    if count == 0:
        return end
    is_last, step, position = True, BACKWARD_READ_SIZE, end
    while position > 0:
        start = max(0, position - step)
        block = b"".join(cli.client.read(operand.path, offset=start, length=position - start))
        found = len(block) - (1 if is_last and block.endswith(b"\n") else 0)
        while (found := block.rfind(b"\n", 0, found)) >= 0:
            count -= 1
            if count == 0:
                return start + found + 1
        is_last, step, position = False, min(step * 2, BACKWARD_READ_SIZE_MAX), start
    return 0


def _print_from(cli: Cli, operand: Operand, start: int, stdout: BinaryIO) -> int:
    """Print from an offset to the end; return the offset reached."""
    for piece in cli.client.read(operand.path, offset=start):
        stdout.write(piece)
        start += len(piece)
    stdout.flush()
    return start


def _follow(cli: Cli, operand: Operand, position: int, interval_s: float, stdout: BinaryIO) -> None:
    """Print what is added as it commits, for ever; a file that became shorter is printed from its start."""
    while True:
        try:
            with closing(_generator(cli.client.follow(operand.path, offset=position, pause_s=interval_s))) as pieces:
                for piece in pieces:
                    stdout.write(piece)
                    stdout.flush()
                    position += len(piece)
        except Conflict:
            if cli.client.stat(operand.path).size < position:
                position = 0
            where = f"byte {position} on" if position else "its start"
            how = "" if position else " by a shorter file"
            click.echo(f"dfs: tail: {operand.shown} was replaced{how}; printing from {where}", err=True)
