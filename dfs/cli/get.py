"""The verb `get`: fetch files and trees.

Owns: its options, and what a local target means (as for `cp`). Refuses to know: how bytes travel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dfs import paths as path_rules
from dfs.cli import wall
from dfs.cli.context import Cli
from dfs.cli.operands import Operand, RemotePath, operands
from dfs.cli.transfer import STREAM, Run, run_transfer
from dfs.cli.trees import local_child, remote_pages
from dfs.cli.verb import json_option, pass_cli, stale_option, verb
from dfs.cli.wall import LocalError
from dfs.client.unpacking import UnpackEvents, UnpackItem, is_packable
from dfs.errors import AlreadyExists, DfsError, IsADirectory
from dfs.net.messages import LocateManyReply
from dfs.net.parts import FileStatus, Kind

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class RemoteThenLocal(RemotePath):
    """`SOURCE... TARGET` with remote sources."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if ctx.params.get(param.name or ""):
            return [CompletionItem(incomplete, type="file")]
        return super().shell_complete(ctx, param, incomplete)


@verb("get")
@click.argument("paths", nargs=-1, required=True, type=RemoteThenLocal(), metavar="SOURCE... [TARGET]")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories with all they hold.")
@click.option("-f", "--force", is_flag=True, help="Replace existing local files.")
@click.option("-p", "--preserve", is_flag=True, help="Keep the remote modification times.")
@json_option
@stale_option
@pass_cli
def get_verb(cli: Cli, paths: tuple[str, ...], recursive: bool, force: bool, preserve: bool, as_json: bool) -> None:
    """Fetch SOURCE... to the local TARGET (default: the current folder); the target `-` is stdout.

    An existing folder as TARGET takes the sources in under their own names. Every byte is verified; a file appears
    complete or not at all.
    """
    typed, target = (paths, ".") if len(paths) == 1 else (paths[:-1], paths[-1])
    if not target:  # Path("") would be the current folder
        raise click.UsageError("the local target is empty; is a variable of your script unset?")
    failures = cli.failures()
    sources: list[tuple[Operand, FileStatus]] = []
    for operand in operands(cli, typed, failures):
        with failures.catch():
            status = cli.client.stat(operand.path)
            if status.kind is Kind.DIRECTORY and target == STREAM:
                raise IsADirectory(f"{operand.typed!r} is a directory; stdout takes files")
            if status.kind is Kind.DIRECTORY and not recursive:
                raise IsADirectory(f"{operand.typed!r} is a directory; add -r")
            sources.append((operand, status))
    if target == STREAM:
        _get_to_stdout(cli, sources, failures)
    elif sources:
        options = GetOptions(force=force, preserve=preserve, is_many=len(typed) > 1 or len(sources) > 1)
        _get(cli, sources, target, options, recursive, cli.wants_json(as_json), failures)
    failures.finish()


@dataclass(frozen=True, slots=True, kw_only=True)
class GetOptions:
    """How to fetch."""

    force: bool
    preserve: bool
    is_many: bool  # several sources: the target must be a folder


def _get_to_stdout(cli: Cli, sources: list[tuple[Operand, FileStatus]], failures: wall.Failures) -> None:
    sys.stdout.flush()
    stdout = sys.stdout.buffer
    for operand, _ in sources:
        with failures.catch():
            cli.client.get(operand.path, stdout)
    stdout.flush()


def _get(
    cli: Cli,
    sources: list[tuple[Operand, FileStatus]],
    target: str,
    options: GetOptions,
    recursive: bool,
    is_json: bool,
    earlier: wall.Failures,
) -> None:
    here = Path(target)
    is_directory = here.is_dir()
    if not is_directory and (options.is_many or (target.endswith("/") and sources[0][1].kind is Kind.FILE)):
        raise LocalError(f"the local target {target!r} is not a directory; make it first, or name another")
    in_parallel = options.is_many or recursive
    with run_transfer(cli, sum(status.size for _, status in sources), in_parallel=in_parallel) as run:
        for operand, status in sources:
            with run.failures.catch():
                name = path_rules.basename(operand.path)
                local = local_child(here, name) if is_directory and name else here
                if status.kind is Kind.DIRECTORY:
                    _get_tree(run, operand, local, options)
                else:
                    run.do(operand.typed, partial(_get_file, run, status.size, operand.path, local, options))
    run.summary("fetched", is_json, in_parallel)
    earlier.absorb(run.failures)


def _get_tree(run: Run, operand: Operand, local: Path, options: GetOptions) -> None:
    def by_itself(item: UnpackItem) -> None:
        run.do(item.path, partial(_get_into_tree, run, item.file.size, item.path, item.target, options))

    def pages() -> Iterator[tuple[LocateManyReply, list[UnpackItem]]]:
        for page, items in remote_pages(run.cli.client, operand.path, local, run.tally, run.failed):
            small = []
            for item in items:
                if is_packable(item.file) and _is_free(item.target, options):
                    small.append(item)
                else:
                    by_itself(item)
            yield page, small

    def fetched(item: UnpackItem) -> None:
        run.tally.add_file(item.file.size)
        run.advance(item.file.size)
        if options.preserve:
            try:
                os.utime(item.target, ns=(item.file.mtime_ms * 1_000_000,) * 2)
            except OSError as error:  # somebody removed it, or that file system keeps no times: one file's trouble
                run.failed(item.path, error)

    def failed(item: UnpackItem, error: DfsError) -> None:
        is_taken = isinstance(error, AlreadyExists) and not options.force
        run.failed(item.path, _local_exists(item.target) if is_taken else error)

    run.cli.client.get_many(pages(), UnpackEvents(fetched, failed, by_itself), overwrite=options.force)


def _is_free(target: Path, options: GetOptions) -> bool:
    """Whether a file can simply be made there: what else may stand in its place is looked at one by one."""
    return not options.force or not os.path.lexists(target)


def _get_into_tree(run: Run, size: int, path: str, local: Path, options: GetOptions) -> None:
    """Fetch a file of a tree; a link that stands in its place is replaced itself, never followed."""
    if local.is_symlink():
        if not options.force:
            raise _local_exists(local)
        _fetch(run, path, local, options)
    else:
        _get_file(run, size, path, local, options)


def _get_file(run: Run, size: int, path: str, local: Path, options: GetOptions) -> None:
    if local.is_symlink() and options.force:
        local = local.resolve()  # the user named the link: its file is replaced, the link stays
    if local.exists() and not local.is_file():
        if local.is_dir():
            raise LocalError(f"the local target {str(local)!r} is a directory; a file does not replace it")
        with local.open("wb") as stream:  # /dev/null, a pipe
            run.cli.client.get(path, stream, progress=run.advance)
        run.tally.add_file(size)
        return
    if os.path.lexists(local) and not options.force:
        raise _local_exists(local)
    _fetch(run, path, local, options)


def _fetch(run: Run, path: str, local: Path, options: GetOptions) -> None:
    try:
        status = run.cli.client.get(path, local, overwrite=options.force, progress=run.advance)
    except AlreadyExists as error:
        if options.force:
            raise
        raise _local_exists(local) from error
    if options.preserve:
        os.utime(local, ns=(status.mtime_ms * 1_000_000,) * 2)
    run.tally.add_file(status.size)


def _local_exists(local: Path) -> LocalError:
    return LocalError(f"the local file {str(local)!r} exists; add -f to replace it")
