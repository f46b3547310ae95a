"""The verbs `mkdir` and `rmdir`.

Owns: their options. Refuses to know: what a directory is made of.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE, REMOTE_DIRECTORY, operands
from dfs.cli.verb import pass_cli, verb
from dfs.errors import DirectoryNotEmpty


@verb("mkdir")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option("-p", "--parents", is_flag=True, help="Make missing parents; an existing directory is fine.")
@click.option("-v", "--verbose", is_flag=True, help="Say what was made.")
@pass_cli
def mkdir_verb(cli: Cli, paths: tuple[str, ...], parents: bool, verbose: bool) -> None:
    """Make the directories PATHS."""
    failures = cli.failures()
    for typed in paths:
        with failures.catch():
            status = cli.client.make_directory(cli.resolve(typed), parents=parents)
            if verbose:
                output.line(f"made {output.display(status.path)}")
    failures.finish()


@verb("rmdir")
@click.argument("paths", nargs=-1, required=True, type=REMOTE_DIRECTORY)
@click.option("-p", "--parents", is_flag=True, help="Remove the parents named in PATHS, too: a/b/c, a/b, a.")
@click.option("--ignore-fail-on-non-empty", "tolerant", is_flag=True, help="A directory with content is no failure.")
@pass_cli
def rmdir_verb(cli: Cli, paths: tuple[str, ...], parents: bool, tolerant: bool) -> None:
    """Remove the empty directories PATHS."""
    failures = cli.failures()
    for operand in operands(cli, paths, failures):
        with failures.catch():
            try:
                cli.client.remove_directory(operand.path)
                for typed in _named_parents(operand.typed) if parents else ():
                    cli.client.remove_directory(cli.resolve(typed))
            except DirectoryNotEmpty:
                if not tolerant:
                    raise
    failures.finish()


def _named_parents(typed: str) -> Iterator[str]:
    """Yield a/b, a for a/b/c: what stands in the path, never the current directory and what is above it."""
    while True:
        typed = typed.rstrip("/").rpartition("/")[0].rstrip("/")
        if typed.rpartition("/")[2] in ("", ".", ".."):
            return
        yield typed
