"""The verbs that bring bytes in: `put`, `append`, `moveFromLocal`.

Owns: their options, and what a target means (as for `cp`). Refuses to know: how bytes travel.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from dfs import paths as path_rules
from dfs.cli.context import Cli
from dfs.cli.lines import append_lines
from dfs.cli.operands import RemotePath
from dfs.cli.transfer import STREAM, Run, run_transfer
from dfs.cli.trees import local_entries, local_size, make_root
from dfs.cli.verb import json_option, pass_cli, verb
from dfs.cli.wall import LocalError
from dfs.client.packs import PACKED_FILE_SIZE_MAX, PackEvents, PackItem
from dfs.errors import AlreadyExists, DfsError, IsADirectory, NotADirectory, NotFound
from dfs.net.messages import REPLICATION_MAX
from dfs.net.parts import Kind

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

EARLY_CHECK_SIZE: Final = 4 * 1024 * 1024  # from this size on look for an existing target before the bytes travel


class LocalThenRemote(RemotePath):
    """`SOURCE... TARGET` with local sources: the shell completes local files first, then remote paths."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        if not ctx.params.get(param.name or ""):
            return [CompletionItem(incomplete, type="file")]
        return super().shell_complete(ctx, param, incomplete)


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOptions:
    """How to store; `removes_source` takes the local file away afterwards."""

    force: bool
    parents: bool
    replication: int | None
    preserve: bool
    removes_source: bool = False


def put_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--preserve", is_flag=True, help="Keep the local modification times."),
        click.option(
            "--replication", type=click.IntRange(1, REPLICATION_MAX), metavar="N", help="Replicas of the new files."
        ),
        click.option("-p", "--parents", is_flag=True, help="Make missing directories of TARGET."),
        click.option("-f", "--force", is_flag=True, help="Replace existing files."),
    ):
        function = option(function)
    return function


@verb("put")
@click.argument("paths", nargs=-1, required=True, type=LocalThenRemote(), metavar="SOURCE... [TARGET]")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories with all they hold.")
@put_options
@json_option
@pass_cli
def put_verb(
    cli: Cli,
    paths: tuple[str, ...],
    recursive: bool,
    force: bool,
    parents: bool,
    replication: int | None,
    preserve: bool,
    as_json: bool,
) -> None:
    """Store local SOURCE... as or in the remote TARGET (default: the current directory).

    An existing directory as TARGET takes the sources in under their own names. The source `-` is stdin. Each file
    appears complete or not at all; an interrupted put leaves the old one. Symbolic links in trees are skipped.
    """
    options = PutOptions(force=force, parents=parents, replication=replication, preserve=preserve)
    _put(cli, paths, options, recursive, cli.wants_json(as_json))


@verb("moveFromLocal")
@click.argument("paths", nargs=-1, required=True, type=LocalThenRemote(), metavar="SOURCE... [TARGET]")
@put_options
@json_option
@pass_cli
def moveFromLocal_verb(  # noqa: N802 - hdfs users know it by this name
    cli: Cli,
    paths: tuple[str, ...],
    force: bool,
    parents: bool,
    replication: int | None,
    preserve: bool,
    as_json: bool,
) -> None:
    """Store local files SOURCE... like `put`, and remove each here as soon as it is stored."""
    options = PutOptions(force=force, parents=parents, replication=replication, preserve=preserve, removes_source=True)
    _put(cli, paths, options, False, cli.wants_json(as_json))


def _put(cli: Cli, typed: tuple[str, ...], options: PutOptions, recursive: bool, is_json: bool) -> None:
    sources, target_typed = (typed, ".") if len(typed) == 1 else (typed[:-1], typed[-1])
    if "" in sources:  # Path("") would be the current folder, with all it holds
        raise click.UsageError("a local source is empty; is a variable of your script unset?")
    if STREAM in sources and (len(sources) > 1 or len(typed) == 1 or options.removes_source):
        raise click.UsageError("stdin (-) is stored alone and under a name: dfs put - NAME")
    is_many = len(sources) > 1 or recursive
    with run_transfer(cli, _total_size(sources, recursive), in_parallel=is_many) as run:
        target, is_directory = _put_target(cli, sources, target_typed, options)
        for source in sources:
            if source == STREAM:
                if is_directory:
                    raise IsADirectory(f"{target!r} is a directory; give stdin a file name in it")
                run.do("stdin", partial(_put_stream, run, target, options))
                continue
            name = source.rstrip("/").rpartition("/")[2]
            has_name = name not in ("", ".", "..")
            own = path_rules.join(target, name) if is_directory and has_name else target
            with run.failures.catch():
                if not Path(source).is_dir():
                    run.do(source, partial(_put_file, run, Path(source), own, options))
                elif recursive:
                    _put_tree(run, Path(source), own, options)
                else:
                    hint = (
                        "is a directory; its files are moved with put -r"
                        if options.removes_source
                        else "is a directory; add -r"
                    )
                    raise LocalError(f"{source!r} {hint}")
    run.summary("stored", is_json, is_many)
    run.failures.finish()


def _total_size(sources: tuple[str, ...], recursive: bool) -> int | None:
    """Return the bytes to store, for the progress bar only: without a watcher nobody counts."""
    if STREAM in sources or not sys.stderr.isatty():
        return None
    total = 0
    for source in sources:
        path = Path(source)
        try:
            total += local_size(path) if recursive and path.is_dir() else path.stat().st_size
        except OSError:
            continue  # reported when it is its turn
    return total


def _put_target(cli: Cli, sources: tuple[str, ...], typed: str, options: PutOptions) -> tuple[str, bool]:
    """Return the stored path of the target and whether the sources go into it."""
    path = cli.resolve(typed)
    needs_directory = len(sources) > 1 or (typed.endswith("/") and not Path(sources[0]).is_dir())
    try:
        is_directory = cli.client.stat(path).kind is Kind.DIRECTORY
    except NotFound:
        if not needs_directory:
            return path, False
        if not options.parents:
            raise NotFound(f"target directory {typed!r} does not exist; add -p to make it") from None
        cli.client.make_directory(path, parents=True)
        return path, True
    if needs_directory and not is_directory:
        raise NotADirectory(f"target {typed!r} is a file, not a directory")
    return path, is_directory


def _put_stream(run: Run, target: str, options: PutOptions) -> None:
    _put_open(run, sys.stdin.buffer, target, options)


def _put_file(run: Run, source: Path, target: str, options: PutOptions) -> None:
    facts = source.stat()
    if not stat.S_ISREG(facts.st_mode):
        with source.open("rb") as stream:  # a pipe or a device: read it to its end
            _put_open(run, stream, target, options)
        return
    _check_free(run.cli, facts.st_size, target, options)
    _put_open(run, source, target, options, facts.st_mtime_ns // 1_000_000 if options.preserve else 0)
    if options.removes_source:
        source.unlink()


def _put_open(run: Run, source: Path | BinaryIO, target: str, options: PutOptions, mtime_ms: int = 0) -> None:
    try:
        status = run.cli.client.put(
            source,
            target,
            overwrite=options.force,
            parents=options.parents,
            replication=options.replication,
            mtime_ms=mtime_ms,
            progress=run.advance,
        )
    except AlreadyExists as error:
        if options.force:
            raise
        raise _exists(target) from error
    run.tally.add_file(status.size)


def _check_free(cli: Cli, size: int, target: str, options: PutOptions) -> None:
    """Refuse early what the commit would refuse after all bytes have travelled."""
    if size >= EARLY_CHECK_SIZE and not options.force and cli.client.exists(target):
        raise _exists(target)


def _exists(target: str) -> LocalError:
    return LocalError(f"{target!r} exists; add -f to replace it")


def _put_tree(run: Run, source: Path, target: str, options: PutOptions) -> None:
    make_root(run.cli.client, target, parents=options.parents)
    below = PutOptions(force=options.force, parents=True, replication=options.replication, preserve=options.preserve)

    def by_itself(item: PackItem) -> None:
        run.do(str(item.source), partial(_put_file, run, item.source, item.path, below))

    def small_files() -> Iterator[PackItem]:
        for entry in local_entries(source, target, run.tally, run.skip, run.failed):
            item = PackItem(entry.source, entry.target)
            if entry.is_directory:
                run.do(str(entry.source), partial(make_root, run.cli.client, entry.target, parents=True))
            elif entry.size > PACKED_FILE_SIZE_MAX:
                by_itself(item)
            else:
                yield item

    def stored(_item: PackItem, size: int) -> None:
        run.tally.add_file(size)
        run.advance(size)

    def failed(item: PackItem, error: DfsError) -> None:
        is_taken = isinstance(error, AlreadyExists) and not options.force
        run.failed(str(item.source), _exists(item.path) if is_taken else error)

    run.cli.client.put_many(
        small_files(),
        PackEvents(stored, failed, by_itself),
        overwrite=below.force,
        parents=True,
        replication=below.replication,
        keeps_time=below.preserve,
    )


@verb("append")
@click.argument("paths", nargs=-1, required=True, type=LocalThenRemote(), metavar="SOURCE... TARGET")
@click.option("-c", "--no-create", is_flag=True, help="TARGET must exist.")
@click.option("-l", "--lines", is_flag=True, help="Each line is a record of its own, stored as it comes.")
@pass_cli
def append_verb(cli: Cli, paths: tuple[str, ...], no_create: bool, lines: bool) -> None:
    """Add local SOURCE... at the end of the remote file TARGET, which is made when missing.

    Each source is added whole or not at all; with --lines each line is, between those of other programs that append to
    the same file. The source `-` is stdin.
    """
    if len(paths) < 2:
        raise click.UsageError("give one or more local files (or -) and the remote file to append to")
    if paths.count(STREAM) > 1:
        raise click.UsageError("stdin (-) can be read only once")
    target = cli.resolve(paths[-1])
    with run_transfer(cli, _total_size(paths[:-1], False), in_parallel=False) as run:

        def add(stream: BinaryIO) -> None:
            if lines:
                append_lines(cli.client, stream, target, create=not no_create, advance=run.advance)
            else:
                cli.client.append(stream, target, create=not no_create, progress=run.advance)

        for source in paths[:-1]:
            with run.failures.catch():
                if source == STREAM:
                    add(sys.stdin.buffer)
                    continue
                path = Path(source)
                if path.is_dir():
                    raise LocalError(f"{source!r} is a directory; append takes files")
                if path.exists() and (lines or not path.is_file()):
                    with path.open("rb") as stream:
                        add(stream)
                    continue
                cli.client.append(path, target, create=not no_create, progress=run.advance)
    run.failures.finish()
