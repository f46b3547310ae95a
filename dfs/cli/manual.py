"""The verbs `help` and `version`.

Owns: nothing but their output. Refuses to know: the other verbs.
"""

from __future__ import annotations

import platform

import click

from dfs import __version__
from dfs.cli import output
from dfs.cli.verb import json_option, verb


@verb("help")
@click.argument("name", required=False, metavar="[VERB]")
@click.pass_context
def help_verb(ctx: click.Context, name: str | None) -> None:
    """Show help about VERB, or the list of all verbs."""
    root = ctx.find_root()
    if name is None:
        click.echo(root.get_help())
        return
    if not isinstance(root.command, click.Group):
        raise TypeError("help needs the group of verbs around it")
    name, command, _ = root.command.resolve_command(root, [name])
    if command is not None:
        with click.Context(command, info_name=name, parent=root) as about:
            click.echo(command.get_help(about))


@verb("version")
@json_option
def version_verb(as_json: bool) -> None:
    """Print the version of dfs and of the Python that runs it."""
    if as_json:
        output.print_json({"version": __version__, "python": platform.python_version()})
    else:
        output.line(f"dfs {__version__} (Python {platform.python_version()})")
