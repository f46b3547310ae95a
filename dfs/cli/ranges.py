"""The verbs that change files without moving their bytes, or only a few: `truncate`, `concat`, `compact`.

Owns: their options and words. Refuses to know: how extents are replaced.
"""

from __future__ import annotations

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE, operands
from dfs.cli.quantities import Size
from dfs.cli.verb import pass_cli, verb


@verb("truncate")
@click.option(
    "-s", "--size", type=Size(), required=True, metavar="SIZE", help="What is left of each file: 100, 64K, 1M."
)
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@pass_cli
def truncate_verb(cli: Cli, paths: tuple[str, ...], size: int) -> None:
    """Cut PATHS to their first SIZE bytes, each atomically.

    What is cut off is gone (a snapshot before keeps it). Files cannot be made longer this way: they have no holes.
    """
    failures = cli.failures()
    for operand in operands(cli, paths, failures):
        with failures.catch():
            cli.client.truncate(operand.path, size)
    failures.finish()


@verb("concat")
@click.argument("paths", nargs=-1, required=True, type=REMOTE, metavar="TARGET SOURCE...")
@click.option("-k", "--keep", is_flag=True, help="Leave the sources where they are.")
@pass_cli
def concat_verb(cli: Cli, paths: tuple[str, ...], keep: bool) -> None:
    """Add the content of SOURCE... at the end of the file TARGET, in one atomic step: no bytes move.

    The sources vanish, their content lives on in TARGET. They are added in the order in which they are named; a pattern
    stands for its matches by name.
    """
    if len(paths) < 2:
        raise click.UsageError("give the file to add to and one or more files to add")
    failures = cli.failures()
    sources = [operand.path for operand in operands(cli, paths[1:], failures)]
    if not failures.count:
        with failures.catch():
            status = cli.client.concat(cli.resolve(paths[0]), sources, keep_sources=keep)
            count = output.count_text(len(sources), "file")
            output.line(f"added {count}: {output.display(status.path)} has {output.size_text(status.size)}")
    failures.finish()


@verb("compact")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@pass_cli
def compact_verb(cli: Cli, paths: tuple[str, ...]) -> None:
    """Merge runs of small extents of the files PATHS into whole chunks; their content stays as it is.

    Many small appends and overwrites leave such extents. This program reads them and writes them anew.
    """
    failures = cli.failures()
    for operand in operands(cli, paths, failures):
        with failures.catch():
            before = cli.client.stat(operand.path).extent_count
            after = cli.client.compact(operand.path).extent_count
            output.line(f"{operand.shown}: {output.count_text(before, 'extent')}, now {after}")
    failures.finish()
