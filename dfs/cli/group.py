"""The group of verbs: find the verb, run it, and turn any failure into one line and one exit code.

Owns: names and aliases on the command line, the global options' place, and the last line of defence (dfs.cli.wall has
the table of exit codes). Refuses to know: what verbs do; they are imported when they are used.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

from dfs import __version__, fast_paths
from dfs.cli import wall
from dfs.cli.context import Cli
from dfs.cli.output import escape_controls
from dfs.cli.verb import global_options
from dfs.cli.verbs import ALIASES, HIDDEN, VERBS, Entry

EXAMPLES: Final = """\
\b
Examples:
  dfs up                        start a cluster on this machine
  dfs put -r photos /           store a directory
  dfs ls -lh /photos            look at it
  dfs get /photos/cat.jpg .     fetch a file
  dfs status                    see how the cluster is
"""


_OPTIONS_WITH_VALUE: Final = ("--config", "--timeout")


class _ReaderGone(Exception):
    """Whoever read our output closed the pipe (`dfs cat big | head`): no error, but the end."""


class VerbGroup(click.Group):
    """The verbs of `dfs`, loaded lazily; understands aliases and the leading dash of `hdfs dfs -ls`."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = VERBS.get(cmd_name) or HIDDEN.get(cmd_name)
        return _load(entry) if entry else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name[:1] == "-" and _is_verb(name.removeprefix("-")):
            name = name[1:]
        if name in ALIASES:
            name, *extra = ALIASES[name]
            args = [name, *extra, *args[1:]]
        command = self.get_command(ctx, name)
        if command is None:
            if ctx.resilient_parsing:
                return None, None, args[1:]
            raise click.UsageError(_unknown_verb(name), ctx)
        return name, command, args[1:]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let a verb with a leading dash pass where click would look for an option."""
        is_value = False
        for index, argument in enumerate(args):
            if not is_value and not argument.startswith("--"):
                if argument.startswith("-") and _is_verb(argument[1:]):
                    args = [*args[:index], argument[1:], *args[index + 1 :]]
                break
            is_value = not is_value and argument in _OPTIONS_WITH_VALUE
        return super().parse_args(ctx, args)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse; `--help` prints already here."""
        try:
            return super().make_context(*args, **extra)
        except BrokenPipeError:
            raise _ReaderGone from None

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by section, from the table alone."""
        for title in dict.fromkeys(entry.section for entry in VERBS.values()):
            with formatter.section(title):
                formatter.write_dl([(name, entry.help) for name, entry in VERBS.items() if entry.section == title])
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in wall.EXIT_CODES])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete verbs from the table, without importing them."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=entry.help) for name, entry in VERBS.items() if name.startswith(incomplete)]
        if not found and incomplete:
            found = [CompletionItem(name) for name in ALIASES if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb, unless the environment leaves out a fast path that there is not; keep a closed pipe out of
        click's hands, which would make it exit code 1."""
        fast_paths.left_out()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise _ReaderGone from None
        return result

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command line and exit with its code; no exception leaves here."""
        cli: Cli = extra.setdefault("obj", None) or Cli()
        extra.update(obj=cli, standalone_mode=False)
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given or ["--help"], prog_name or "dfs", **extra)
            sys.exit(code if isinstance(code, int) else wall.EXIT_OK)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001 - the last line of defence: everything ends as a line and a code
            sys.exit(_fail(cli, error))
        finally:
            cli.close()


def _load(entry: Entry) -> click.Command:
    command = getattr(importlib.import_module(entry.module), entry.attribute)
    if not isinstance(command, click.Command):
        raise TypeError(f"{entry.module}.{entry.attribute} is not a verb")
    return command


def _is_verb(name: str) -> bool:
    return name in VERBS or name in ALIASES or name in HIDDEN


def _unknown_verb(name: str) -> str:
    from difflib import get_close_matches

    names = [*VERBS, *ALIASES, *HIDDEN]
    by_lower = {known.lower(): known for known in names}
    close = [by_lower[match] for match in get_close_matches(name.lower(), list(by_lower), n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(close)}?" if close else "see `dfs --help`"
    return f"there is no verb {name!r}; {hint}"


def _fail(cli: Cli, error: BaseException) -> int:
    """Report an error that ended the verb; return the exit code."""
    if isinstance(error, _ReaderGone | BrokenPipeError):
        _silence_stdout()
        return wall.EXIT_BROKEN_PIPE
    try:
        sys.stdout.flush()  # what was printed before the error line; nothing may be left for the interpreter's end
    except (OSError, ValueError):
        _silence_stdout()
    if cli.debug and not isinstance(error, click.Abort):
        traceback.print_exception(error)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        wall.report(cli.verb, "interrupted")
        return wall.EXIT_INTERRUPTED
    if isinstance(error, click.UsageError):
        help_of = " ".join(["dfs", cli.verb, "--help"] if cli.verb else ["dfs", "--help"])
        text = escape_controls(error.format_message().rstrip("."))
        wall.report(cli.verb, text if "--help" in text or "did you mean" in text else f"{text} (see `{help_of}`)")
        return wall.EXIT_USAGE
    if isinstance(error, click.ClickException):
        wall.report(cli.verb, escape_controls(error.format_message()))
        return error.exit_code
    if isinstance(error, wall.EXPECTED):
        wall.report(cli.verb, wall.describe(error))
    else:
        name = type(error).__name__
        wall.report(cli.verb, f"a bug in dfs: {name}: {wall.describe(error)}; report it with the output of --debug")
    return wall.exit_code_of(error)


def _silence_stdout() -> None:
    """Point stdout to nowhere, so that the interpreter's last flush does not complain about the closed pipe."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
    except (OSError, ValueError):
        pass  # stdout is not a file, or is closed already: nothing will be flushed


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"dfs {__version__}")
        ctx.exit()


cli = VerbGroup(
    name="dfs",
    help="dfs: a distributed file system. `dfs VERB --help` explains a verb.",
    epilog=EXAMPLES,
    params=[
        *global_options(hidden=False),
        click.Option(
            ["--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
        ),
    ],
    context_settings={"max_content_width": 110},
    invoke_without_command=False,
)
