"""The verbs `help` and `version`.

Owns: nothing but their output. Refuses to know: the other verbs.
"""

from __future__ import annotations

import platform

import click
from click.shell_completion import CompletionItem

from dfs import __version__
from dfs.cli import output
from dfs.cli.verb import json_option, verb


def _complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the verb, or the inner verb of the one that stands before."""
    about: click.Command | None = ctx.find_root().command
    for name in ctx.params.get("names") or ():
        about = about.get_command(ctx, name) if isinstance(about, click.Group) else None
    verbs = about.list_commands(ctx) if isinstance(about, click.Group) else []
    return [CompletionItem(name) for name in verbs if name.startswith(incomplete)]


@verb("help")
@click.argument("names", nargs=-1, metavar="[VERB]...", shell_complete=_complete)
@click.pass_context
def help_verb(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show help about VERB (`help trash`, `help trash empty`), or the list of all verbs."""
    about = ctx.find_root()
    for name in names:
        if not isinstance(about.command, click.Group):
            raise click.UsageError(
                f"{about.info_name!r} has no verbs of its own; see `dfs {about.info_name} --help`", ctx
            )
        found, command, _ = about.command.resolve_command(about, [name])
        if command is not None:
            about = click.Context(command, info_name=found, parent=about)
    click.echo(about.get_help())


@verb("version")
@json_option
def version_verb(as_json: bool) -> None:
    """Print the version of dfs and of the Python that runs it."""
    if as_json:
        output.print_json({"version": __version__, "python": platform.python_version()})
    else:
        output.line(f"dfs {__version__} (Python {platform.python_version()})")
