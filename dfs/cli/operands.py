"""The remote paths that a verb is given: resolved, expanded from patterns, completed by the shell.

Owns: operands and patterns (`*`, `?`, `[…]` in a component; a file of that very name wins; a leading dot must be
written out). Refuses to know: what a verb does with them.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from dfs import paths
from dfs.cli.context import Cli
from dfs.cli.output import display
from dfs.cli.wall import Failures
from dfs.errors import DfsError, LimitExceeded, NotADirectory, NotFound

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

MATCHES_MAX: Final = 100_000  # paths that one pattern may stand for
COMPLETIONS_MAX: Final = 200  # names offered by one press of the tab key
COMPLETION_TIMEOUT_S: Final = 2.0  # a person waits at the prompt

_MAGIC: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Operand:
    """`typed` is what output shows, `path` the stored path."""

    typed: str
    path: str

    def child(self, name: str) -> Operand:
        return Operand(shown_below(self.typed, name), paths.join(self.path, name))

    @property
    def shown(self) -> str:
        """The typed form with control characters escaped."""
        return display(self.typed)


def shown_below(typed: str, name: str) -> str:
    """Return how a name below a typed directory is shown: `a/b`, `/b`, `./b`."""
    return f"{typed}{name}" if typed.endswith("/") else f"{typed}/{name}"


def has_magic(typed: str) -> bool:
    return _MAGIC.search(typed) is not None


def expand(cli: Cli, typed: str) -> list[Operand]:
    """Return the paths that `typed` stands for, sorted; raise `NotFound` when a pattern matches nothing."""
    whole = cli.resolve(typed)
    if not has_magic(typed) or cli.client.exists(whole):
        return [Operand(typed, whole)]
    start = Operand("/", "/") if typed.startswith("/") else Operand("", cli.resolve("."))
    found = [start]
    for part in typed.split("/"):
        if part not in ("", "."):
            found = list(_step(cli, found, part))
            if len(found) > MATCHES_MAX:
                raise LimitExceeded(f"the pattern {typed!r} matches more than {MATCHES_MAX} paths; use `dfs find`")
    if not found:
        raise NotFound(f"no path matches the pattern {typed!r}")
    return found


def _step(cli: Cli, found: Iterable[Operand], part: str) -> Iterator[Operand]:
    if part == "..":
        yield from (Operand(shown_below(o.typed, part) if o.typed else part, paths.parent(o.path)) for o in found)
        return
    matches = re.compile(fnmatch.translate(part)).match if has_magic(part) else None
    for operand in found:
        if matches is None:
            child = _child(operand, part)
            if cli.client.exists(child.path):
                yield child
            continue
        try:
            for entry in cli.client.list(operand.path):
                if matches(entry.path) and (not entry.path.startswith(".") or part.startswith(".")):
                    yield _child(operand, entry.path)
        except (NotADirectory, NotFound):
            continue  # only directories have something below them


def _child(operand: Operand, name: str) -> Operand:
    return Operand(shown_below(operand.typed, name) if operand.typed else name, paths.join(operand.path, name))


def operands(cli: Cli, typed: Iterable[str], failures: Failures) -> Iterator[Operand]:
    """Yield the operands of a verb one after the other; what cannot be expanded is a failure of its own."""
    for text in typed:
        found: list[Operand] = []
        with failures.catch():
            found = expand(cli, text)
        yield from found


class RemotePath(click.ParamType):  # type: ignore[type-arg]
    """A remote path on the command line. It stays as typed; the shell completes it from the cluster."""

    name = "path"

    def __init__(self, *, directories_only: bool = False) -> None:
        self._directories_only = directories_only

    def shell_complete(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that go on from `incomplete`; nothing when the cluster does not answer at once."""
        try:
            return list(self._candidates(ctx.ensure_object(Cli), incomplete))
        except (DfsError, OSError):
            return []

    def _candidates(self, cli: Cli, incomplete: str) -> Iterator[Any]:
        from click.shell_completion import CompletionItem

        from dfs.net.parts import Kind

        cli.timeout_s = min(cli.timeout_s or COMPLETION_TIMEOUT_S, COMPLETION_TIMEOUT_S)
        directory, slash, prefix = incomplete.rpartition("/")
        count = 0
        for entry in cli.client.list(cli.resolve(directory + slash if slash else ".")):
            is_directory = entry.kind is Kind.DIRECTORY
            name = entry.path
            if not name.startswith(prefix) or (self._directories_only and not is_directory) or display(name) != name:
                continue
            if name.startswith(".") and not prefix:
                continue
            yield CompletionItem(f"{directory}{slash}{name}{'/' * is_directory}")
            count += 1
            if count >= COMPLETIONS_MAX:
                return


REMOTE: Final = RemotePath()
REMOTE_DIRECTORY: Final = RemotePath(directories_only=True)
