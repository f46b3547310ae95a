"""The verbs `pwd`, `cd` and `tree`: where the user is in the remote tree, and how it looks.

Owns: the remote current directory of the settings, and the drawing of trees. Refuses to know: how names are stored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE_DIRECTORY, Operand, expand, operands
from dfs.cli.verb import human_option, json_option, pass_cli, stale_option, verb
from dfs.cli.wall import LocalError
from dfs.errors import NotADirectory
from dfs.paths import PATH_DEPTH_MAX

if TYPE_CHECKING:
    from dfs.net.parts import FileStatus


@verb("pwd")
@json_option
@pass_cli
def pwd_verb(cli: Cli, as_json: bool) -> None:
    """Print the remote current directory; relative paths start there."""
    if cli.wants_json(as_json):
        output.print_json({"path": cli.settings.cwd})
    else:
        output.line(output.display(cli.settings.cwd))


@verb("cd")
@click.argument("path", default="/", type=REMOTE_DIRECTORY)
@pass_cli
def cd_verb(cli: Cli, path: str) -> None:
    """Change the remote current directory to PATH (default: /); `-` goes back to the one before.

    It is kept in your settings and holds for every later command, in any terminal.
    """
    from dfs.net.parts import Kind

    settings = cli.settings
    if path == "-":
        target = settings.previous_cwd
    else:
        found = expand(cli, path)
        if len(found) > 1:
            raise LocalError(f"the pattern {path!r} matches {len(found)} paths; name one directory")
        target = found[0].path
    if target != "/" and cli.client.stat(target).kind is not Kind.DIRECTORY:
        raise NotADirectory(f"{target!r} is a file; give a directory")
    settings.previous_cwd, settings.cwd = settings.cwd, target
    cli.save_settings()
    if path == "-":
        output.line(output.display(target))


@verb("tree")
@click.argument("paths", nargs=-1, type=REMOTE_DIRECTORY)
@click.option("-L", "--level", type=click.IntRange(1), metavar="N", help="Go down at most this many levels.")
@click.option("-d", "directories_only", is_flag=True, help="Directories only.")
@click.option("-s", "--size", "with_sizes", is_flag=True, help="Show sizes.")
@human_option
@json_option
@stale_option
@pass_cli
def tree_verb(
    cli: Cli,
    paths: tuple[str, ...],
    level: int | None,
    directories_only: bool,
    with_sizes: bool,
    human: bool,
    as_json: bool,
) -> None:
    """Draw the tree below PATHS (default: the current directory)."""
    failures = cli.failures()
    tree = _Tree(cli, level, directories_only, with_sizes or human, human)
    found: list[dict[str, Any]] = []
    is_json = cli.wants_json(as_json)
    if is_json:
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * PATH_DEPTH_MAX))  # JSON nests as deep as the names
    for operand in operands(cli, paths or (".",), failures):
        with failures.catch():
            status = cli.client.stat(operand.path)
            if is_json:
                found.append(tree.as_json(operand, status, 0))
            else:
                tree.draw(operand, status)
    if is_json:
        output.print_json(found)
    else:
        directories = output.count_text(tree.directory_count, "directory", "directories")
        files = "" if directories_only else f", {output.count_text(tree.file_count, 'file')}"
        output.line(f"\n{directories}{files}")
    failures.finish()


class _Tree:
    """One walk of `tree`: counts what it shows."""

    def __init__(self, cli: Cli, level: int | None, directories_only: bool, with_sizes: bool, human: bool) -> None:
        from dfs.net.parts import Kind

        self._directory = Kind.DIRECTORY
        self._client = cli.client
        self._level = level
        self._directories_only = directories_only
        self._with_sizes = with_sizes
        self._human = human
        self.directory_count = 0
        self.file_count = 0

    def draw(self, operand: Operand, status: FileStatus) -> None:
        """Print a root and all below it, one line at a time; memory holds one listing per level."""
        output.line(self._label(operand.shown, status))
        if status.kind is not self._directory:
            self.file_count += 1
            return
        stack = [("", self._children(operand, 0))]
        while stack:
            indent, children = stack[-1]
            found = next(children, None)
            if found is None:
                stack.pop()
                continue
            child, entry, is_last = found
            output.line(f"{indent}{'└── ' if is_last else '├── '}{self._label(output.display(entry.path), entry)}")
            self._count(entry)
            if entry.kind is self._directory:
                stack.append((indent + ("    " if is_last else "│   "), self._children(child, len(stack))))

    def as_json(self, operand: Operand, status: FileStatus, depth: int) -> dict[str, Any]:
        """Return a path with its `children` nested."""
        value = output.file_json(status, operand.path)
        if depth:
            self._count(status)
        if status.kind is self._directory:
            children = self._children(operand, depth)
            value["children"] = [self.as_json(child, entry, depth + 1) for child, entry, _ in children]
        return value

    def _count(self, status: FileStatus) -> None:
        if status.kind is self._directory:
            self.directory_count += 1
        else:
            self.file_count += 1

    def _label(self, shown: str, status: FileStatus) -> str:
        if not self._with_sizes:
            return shown
        return f"[{output.size_column(status.size, human=self._human):>6}]  {shown}"

    def _children(self, operand: Operand, depth: int) -> Iterator[tuple[Operand, FileStatus, bool]]:
        """Yield (child, status, is_last) of a directory, nothing below the last level."""
        if self._level is not None and depth >= self._level:
            return
        held: FileStatus | None = None
        for entry in self._client.list(operand.path):
            if self._directories_only and entry.kind is not self._directory:
                continue
            if held is not None:
                yield operand.child(held.path), held, False
            held = entry
        if held is not None:
            yield operand.child(held.path), held, True
