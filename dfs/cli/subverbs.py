"""A verb with verbs of its own: `dfs admin masters`, `dfs trash ls`.

Owns: finding the inner verb, what the outer one does alone, and where the global options may stand.
Refuses to know: what the verbs do.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import click

from dfs.cli.context import Cli
from dfs.cli.verb import global_options


class Subverbs(click.Group):
    """A group that shows its help when it is called alone, or runs the verb `default`."""

    def __init__(self, *args: Any, default: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._default = default
        self.params.extend(global_options(hidden=True))

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Note the verb for error lines; the inner verb notes itself in its turn."""
        if parent is not None:
            parent.ensure_object(Cli).verb = info_name or ""
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default verb, or --help, where no verb is named; completion wants to see the line as it is."""
        if not ctx.resilient_parsing and "--help" not in args[:1] and not self._names_verb(args):
            if self._default:
                args = [self._default, *args]
            elif not args:
                args = ["--help"]
        return super().parse_args(ctx, args)

    def _names_verb(self, args: list[str]) -> bool:
        """Whether a verb, known or not, comes after nothing but global options."""
        with_value = {name: not option.is_flag for option in global_options(hidden=True) for name in option.opts}  # type: ignore[attr-defined]
        rest = iter(args)
        for argument in rest:
            if not argument.startswith("-"):
                return True
            name, _, value = argument.partition("=")
            if name not in with_value:
                return False
            if with_value[name] and not value:
                next(rest, None)
        return False

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the inner verb, or say which ones come close."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing and not args[0].startswith("-"):
            close = get_close_matches(args[0].lower(), self.list_commands(ctx), n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else f"see `dfs {ctx.info_name} --help`"
            raise click.UsageError(f"there is no verb {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)
