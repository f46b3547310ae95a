"""The verbs that change names and attributes: `rm`, `cp`, `mv`, `touch`, `setrep`.

Owns: their options and how a target directory is understood. Refuses to know: how a change is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

import click

from dfs import paths as path_rules
from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.grace import grace_text
from dfs.cli.operands import REMOTE, Operand, expand, has_magic, operands
from dfs.cli.verb import json_option, pass_cli, verb
from dfs.cli.wall import LocalError
from dfs.errors import AlreadyExists, IsADirectory, NotADirectory, NotFound
from dfs.net.messages import REPLICATION_MAX, DeleteReply
from dfs.net.parts import FileStatus, Kind

_EPOCH: Final = re.compile(r"@(\d{1,11})(?:\.(\d{1,3}))?")
TIME_MS_MAX: Final = 253_402_300_799_999  # the last millisecond of the year 9999


@verb("rm")
@click.argument("paths", nargs=-1, type=REMOTE)
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories with all they hold.")
@click.option("-f", "--force", is_flag=True, help="What does not exist is no failure.")
@click.option("--skip-trash", "-skipTrash", is_flag=True, help="Give the space back at once; no way back.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
@json_option
@pass_cli
def rm_verb(
    cli: Cli, paths: tuple[str, ...], recursive: bool, force: bool, skip_trash: bool, quiet: bool, as_json: bool
) -> None:
    """Move PATHS to the trash, from where `dfs undelete PATH` brings them back until they expire."""
    if not paths and not force:
        raise click.UsageError("nothing to remove; give one or more paths")
    failures = cli.failures()
    removed: list[dict[str, Any]] = []
    is_json = cli.wants_json(as_json)
    grace = grace_text(cli) if skip_trash and not (is_json or quiet) else ""
    for operand in operands(cli, _present(cli, paths) if force else paths, failures):
        with failures.catch():
            try:
                reply = cli.client.delete(operand.path, recursive=recursive, skip_trash=skip_trash)
            except NotFound:
                if force:
                    continue
                raise
            except IsADirectory as error:
                raise LocalError(f"{error}" if recursive else f"{operand.typed!r} is a directory; add -r") from error
            removed.append(_removal(operand, reply))
            if not is_json and not quiet:
                output.line(_removal_text(operand, reply, grace))
    if is_json:
        output.print_json(removed)
    failures.finish()


def _present(cli: Cli, typed: Iterable[str]) -> Iterable[str]:
    """Leave out the patterns that match nothing."""
    for text in typed:
        try:
            if has_magic(text):
                expand(cli, text)
        except NotFound:
            continue
        yield text


def _removal(operand: Operand, reply: DeleteReply) -> dict[str, Any]:
    return {
        "path": operand.path,
        "type": reply.kind.name.lower(),
        "file_count": reply.file_count,
        "size": reply.size,
        "trash_id": reply.trash_id or None,
        "expires": output.utc_time(reply.expires_ms) if reply.expires_ms else None,
        "expires_ms": reply.expires_ms or None,
    }


def _removal_text(operand: Operand, reply: DeleteReply, grace: str) -> str:
    what = operand.shown
    if reply.kind is Kind.DIRECTORY:
        what += f" ({output.count_text(reply.file_count, 'file')}, {output.size_text(reply.size)})"
    if not reply.expires_ms:
        return f"removed {what}: {output.size_text(reply.size)} released{grace}"
    return f"removed {what}: in the trash until {output.local_time(reply.expires_ms)}, see `dfs undelete`"


@verb("cp")
@click.argument("paths", nargs=-1, required=True, type=REMOTE, metavar="SOURCE... TARGET")
@click.option("-r", "-R", "-a", "--recursive", is_flag=True, help="Directories with all they hold.")
@click.option("-f", "--force", is_flag=True, help="Replace existing files.")
@click.option("-T", "--no-target-directory", "exact", is_flag=True, help="TARGET is the new name, never a place.")
@pass_cli
def cp_verb(cli: Cli, paths: tuple[str, ...], recursive: bool, force: bool, exact: bool) -> None:
    """Copy SOURCE... TARGET inside the cluster: no bytes move, the copy shares the chunks of its source.

    An existing directory as TARGET gets the copies under their own names.
    """

    def copy(source: Operand, target: str) -> None:
        try:
            cli.client.copy(source.path, target, recursive=recursive, overwrite=force)
        except AlreadyExists as error:
            if force:
                raise
            raise LocalError(f"{target!r} exists; add -f to replace it") from error
        except IsADirectory as error:
            raise LocalError(f"{error}" if recursive else f"{source.typed!r} is a directory; add -r") from error

    _to_target(cli, paths, exact, copy)


@verb("mv")
@click.argument("paths", nargs=-1, required=True, type=REMOTE, metavar="SOURCE... TARGET")
@click.option("-f", "--force", is_flag=True, help="Replace an existing file (this is the default, as in Unix).")
@click.option("-n", "--no-clobber", is_flag=True, help="Leave a source alone whose target exists.")
@click.option("-T", "--no-target-directory", "exact", is_flag=True, help="TARGET is the new name, never a place.")
@pass_cli
def mv_verb(cli: Cli, paths: tuple[str, ...], force: bool, no_clobber: bool, exact: bool) -> None:
    """Move or rename SOURCE... TARGET, each in one atomic step.

    An existing directory as TARGET takes the sources in under their own names. An existing file is replaced; a
    directory never is.
    """
    if force and no_clobber:
        raise click.UsageError("-f and -n contradict each other; give one of them")

    def move(source: Operand, target: str) -> None:
        try:
            cli.client.rename(source.path, target, overwrite=not no_clobber)
        except AlreadyExists:
            if not no_clobber:
                raise

    _to_target(cli, paths, exact, move)


def _to_target(cli: Cli, typed: tuple[str, ...], exact: bool, act: Callable[[Operand, str], None]) -> None:
    """Call `act(source, full target path)` for each source of a `SOURCE... TARGET` line."""
    if len(typed) < 2:
        raise click.UsageError("give one or more sources and a target")
    failures = cli.failures()
    sources = list(operands(cli, typed[:-1], failures))
    target = cli.resolve(typed[-1])
    status = _status_or_none(cli, target)
    is_directory = status is not None and status.kind is Kind.DIRECTORY
    if exact:
        if len(typed) > 2:
            raise click.UsageError("with -T give one source and one target")
        is_directory = False
    elif not is_directory and (len(typed) > 2 or len(sources) > 1):
        raise NotADirectory(f"target {typed[-1]!r} is not a directory; several sources need one (`dfs mkdir` makes it)")
    elif not is_directory and typed[-1].endswith("/") and status is not None:
        raise NotADirectory(f"target {typed[-1]!r} is a file, not a directory")
    for source in sources:
        with failures.catch():
            if is_directory and source.path == "/":
                raise LocalError("the root directory has no name to put it under; name its entries, as in /*")
            act(source, path_rules.join(target, path_rules.basename(source.path)) if is_directory else target)
    failures.finish()


def _status_or_none(cli: Cli, path: str) -> FileStatus | None:
    try:
        return cli.client.stat(path)
    except NotFound:
        return None


@verb("touch")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option("-c", "--no-create", is_flag=True, help="Do not make files that do not exist.")
@click.option("-d", "--date", metavar="TIME", help="ISO 8601 (local time unless it has a zone) or @SECONDS; not now.")
@click.option("-m", "-a", is_flag=True, expose_value=False, hidden=True, help="There is one time only.")
@pass_cli
def touch_verb(cli: Cli, paths: tuple[str, ...], no_create: bool, date: str | None) -> None:
    """Set the modification time of PATHS; missing files are made, empty."""
    mtime_ms = _parse_time(date) if date is not None else 0
    failures = cli.failures()
    for typed in paths:
        with failures.catch():
            try:
                cli.client.touch(cli.resolve(typed), mtime_ms=mtime_ms, no_create=no_create)
            except NotFound:
                if not no_create:
                    raise
    failures.finish()


def _parse_time(text: str) -> int:
    """Return milliseconds since 1970."""
    if match := _EPOCH.fullmatch(text):
        time_ms = int(match[1]) * 1000 + int((match[2] or "0").ljust(3, "0"))
    else:
        try:
            time_ms = round(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            raise click.BadParameter(
                f"{text!r} is not a time; write 2025-01-31, 2025-01-31T12:30, or @1738326600"
            ) from None
    if not 0 < time_ms <= TIME_MS_MAX:
        raise click.BadParameter(f"the time {text!r} is not between 1970 and 9999")
    return time_ms


@verb("setrep")
@click.argument("replication", type=click.IntRange(1, REPLICATION_MAX))
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option("-R", "-r", "--recursive", is_flag=True, help="All files below a directory.")
@json_option
@pass_cli
def setrep_verb(cli: Cli, replication: int, paths: tuple[str, ...], recursive: bool, as_json: bool) -> None:
    """Set how many replicas the files PATHS shall have; copies are made or trimmed in the background."""
    failures = cli.failures()
    changed: list[dict[str, Any]] = []
    is_json = cli.wants_json(as_json)
    for operand in operands(cli, paths, failures):
        with failures.catch():
            count = cli.client.set_replication(operand.path, replication, recursive=recursive)
            changed.append({"path": operand.path, "replication": replication, "file_count": count})
            if not is_json:
                output.line(f"{operand.shown}: {output.count_text(count, 'file')} set to replication {replication}")
    if is_json:
        output.print_json(changed)
    failures.finish()
