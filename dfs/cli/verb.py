"""A verb of the command line: a click command that also takes the global options and `-N` counts.

Owns: the global options, wherever on the line they stand, and the decorators that verbs are declared with.
Refuses to know: any single verb.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from dfs.cli.context import Cli

F = TypeVar("F", bound=Callable[..., Any])

_COUNT: Final = re.compile(r"-\d+")

pass_cli = click.make_pass_decorator(Cli, ensure=True)


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(ctx.ensure_object(Cli), name, value)

    return callback


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """Return the options that are understood before and after the verb."""
    return [
        click.Option(
            ["--config"],
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="The cluster.ini to use (else DFS_CONFIG, ./cluster.ini, the settings).",
            callback=_keep("config"),
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["--timeout", "timeout_s"],
            type=click.FloatRange(0, 86400, min_open=True),
            metavar="SECONDS",
            help="How long one call may take, and a transfer may stand still (default 30).",
            callback=_keep("timeout_s"),
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            default=None,
            help="Show the traceback of an error.",
            callback=_keep("debug"),
            expose_value=False,
            hidden=hidden,
        ),
    ]


class Verb(click.Command):
    """A command that knows the global options; with `count_option` it takes `-5` for `<count_option> 5`."""

    def __init__(self, *args: Any, count_option: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._count_option = count_option
        self.params.extend(global_options(hidden=True))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Note the verb for error lines before its options are looked at."""
        if parent is not None:
            prefix = f"{parent.info_name} " if parent.parent is not None else ""
            parent.ensure_object(Cli).verb = f"{prefix}{info_name}"
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Replace `-5` before a `--`, then parse as ever."""
        if self._count_option:
            end = args.index("--") if "--" in args else len(args)
            args = [
                f"{self._count_option}{argument[1:]}" if index < end and _COUNT.fullmatch(argument) else argument
                for index, argument in enumerate(args)
            ]
        return super().parse_args(ctx, args)


def verb(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], Verb]:
    """Declare a verb (decorator); help is `--help` only, since `-h` means human sizes."""
    return click.command(name, cls=Verb, **attributes)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def stale_option(function: F) -> F:
    """Let a reading verb be content with an older answer."""
    return click.option(
        "--stale",
        "stale_s",
        type=click.FloatRange(0, 86400),
        metavar="SECONDS",
        help="Names may be so old: any master answers that can prove it, also while none leads.",
        callback=_keep("stale_s"),
        expose_value=False,
    )(function)


def human_option(function: F) -> F:
    return click.option("-h", "--human", is_flag=True, help="Sizes as 1.5K, 12M, 3.4G.")(function)
