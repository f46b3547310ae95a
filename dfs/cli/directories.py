"""The verbs `mkdir` and `rmdir`.

Owns: their options. Refuses to know: what a directory is made of.
"""

from __future__ import annotations

import click

from dfs import paths as path_rules
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
@click.option("-p", "--parents", is_flag=True, help="Remove the parents, too, as long as they are empty.")
@click.option("--ignore-fail-on-non-empty", "tolerant", is_flag=True, help="A directory with content is no failure.")
@pass_cli
def rmdir_verb(cli: Cli, paths: tuple[str, ...], parents: bool, tolerant: bool) -> None:
    """Remove the empty directories PATHS."""
    failures = cli.failures()
    for operand in operands(cli, paths, failures):
        with failures.catch():
            path = operand.path
            try:
                cli.client.remove_directory(path)
                while parents and (path := path_rules.parent(path)) != "/":
                    cli.client.remove_directory(path)
            except DirectoryNotEmpty:
                if not tolerant:
                    raise
    failures.finish()
