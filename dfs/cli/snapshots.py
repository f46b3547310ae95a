"""The verbs of snapshots: `snapshot create`, `ls`, `diff`, `restore`, `rm`.

Owns: their options, names that are made up when none is given, and how changes are shown. Refuses to know: how a
directory is kept. The content of a snapshot is read with all other verbs, below DIRECTORY/.snapshot/NAME.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import click

from dfs import paths as path_rules
from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE
from dfs.cli.subverbs import Subverbs
from dfs.cli.verb import Verb, human_option, json_option, pass_cli
from dfs.client.tree_changes import Change, ChangeKind
from dfs.net.parts import Kind, SnapshotStatus

_SIGNS: Final = {
    ChangeKind.CREATED: "+",
    ChangeKind.DELETED: "-",
    ChangeKind.MODIFIED: "M",
    ChangeKind.RENAMED: "R",
}


@click.group("snapshot", cls=Subverbs, default="ls")
def snapshot_verb() -> None:
    """Keep a directory as it is now, look at it later, go back to it.

    A snapshot is made in an instant and takes no space until the directory changes. It is read-only, and its content is
    below DIRECTORY/.snapshot/NAME.
    """


def _name_for_now(prefix: str) -> str:
    return datetime.now(UTC).strftime(f"{prefix}%Y%m%d-%H%M%S.%f")[:-3]


@snapshot_verb.command("create", cls=Verb)
@click.argument("directory", type=REMOTE)
@click.argument("name", required=False)
@json_option
@pass_cli
def snapshot_create(cli: Cli, directory: str, name: str | None, as_json: bool) -> None:
    """Keep DIRECTORY and all below it as it is now, under NAME (made from the time when none is given)."""
    made = cli.client.snapshots.create(cli.resolve(directory), name or _name_for_now("s"))
    if cli.wants_json(as_json):
        output.print_json(_snapshot_json(made))
        return
    path = output.display(cli.client.snapshots.path(made.directory, made.name))
    files = output.count_text(made.file_count, "file")
    output.line(f"created {path} ({files}, {output.size_text(made.size)}, shared with the directory)")


@snapshot_verb.command("ls", cls=Verb)
@click.argument("directory", required=False, type=REMOTE)
@human_option
@json_option
@pass_cli
def snapshot_ls(cli: Cli, directory: str | None, human: bool, as_json: bool) -> None:
    """List the snapshots of DIRECTORY and of directories in it; all there are when none is named."""
    found = cli.client.snapshots.list(cli.resolve(directory) if directory is not None else "/")
    if cli.wants_json(as_json):
        with output.json_array() as array:
            for snapshot in found:
                array.add(_snapshot_json(snapshot))
        return
    rows = [
        (
            output.local_time(snapshot.created_ms),
            str(snapshot.file_count),
            output.size_column(snapshot.size, human=human),
            output.display(snapshot.directory),
            output.display(snapshot.name),
        )
        for snapshot in found
    ]
    if not rows:
        output.line("there are no snapshots")
        return
    for text in output.table([("CREATED", "FILES", "SIZE", "DIRECTORY", "NAME"), *rows], right=(1, 2)):
        output.line(text)


@snapshot_verb.command("diff", cls=Verb)
@click.argument("directory", type=REMOTE)
@click.argument("old")
@click.argument("new", required=False)
@json_option
@pass_cli
def snapshot_diff(cli: Cli, directory: str, old: str, new: str | None, as_json: bool) -> None:
    """Show what changed in DIRECTORY from the snapshot OLD to the snapshot NEW, or to now.

    + created, - deleted (a directory stands for all in it), M modified, R renamed.
    """
    changes = cli.client.snapshots.changes(cli.resolve(directory), old, new or "")
    if cli.wants_json(as_json):
        with output.json_array() as array:
            for change in changes:
                array.add(_change_json(change))
        return
    for change in changes:
        path = output.display(change.path) + ("/" if change.entry_kind is Kind.DIRECTORY else "")
        source = f"{output.display(change.source)} -> " if change.source else ""
        output.line(f"{_SIGNS[change.kind]}  {source}{path}")


@snapshot_verb.command("restore", cls=Verb)
@click.argument("directory", type=REMOTE)
@click.argument("name")
@click.argument("inner", required=False, metavar="[PATH]")
@click.option("--no-safety", is_flag=True, help="Do not keep a snapshot of what is there now: it is lost.")
@pass_cli
def snapshot_restore(cli: Cli, directory: str, name: str, inner: str | None, no_safety: bool) -> None:
    """Make DIRECTORY what it was in the snapshot NAME, atomically; with PATH (relative) only that file or directory.

    Before that, DIRECTORY as it is now is kept in a snapshot of its own, so that there is a way back.
    """
    path = cli.resolve(directory)
    safety_name = "" if no_safety else _name_for_now("before-restore-")
    status = cli.client.snapshots.restore(path, name, inner or "", safety_name=safety_name)
    kept = f"; what was there is in snapshot {output.display(safety_name)}" if safety_name else ""
    output.line(f"restored {output.display(status.path)} from snapshot {output.display(name)}{kept}")


@snapshot_verb.command("rm", cls=Verb)
@click.argument("directory", type=REMOTE)
@click.argument("names", nargs=-1, required=True)
@pass_cli
def snapshot_rm(cli: Cli, directory: str, names: tuple[str, ...]) -> None:
    """Remove the snapshots NAMES of DIRECTORY; what only they held is released, and there is no way back."""
    failures = cli.failures()
    path = cli.resolve(directory)
    for name in names:
        with failures.catch():
            removed = cli.client.snapshots.remove(path, name)
            shown = path_rules.join(path_rules.join(removed.directory, path_rules.SNAPSHOTS), removed.name)
            output.line(f"removed {output.display(shown)}")
    failures.finish()


def _snapshot_json(snapshot: SnapshotStatus) -> dict[str, Any]:
    return {
        "directory": snapshot.directory,
        "name": snapshot.name,
        "created": output.utc_time(snapshot.created_ms),
        "created_ms": snapshot.created_ms,
        "file_count": snapshot.file_count,
        "directory_count": snapshot.directory_count,
        "size": snapshot.size,
        "stored_size": snapshot.stored_size,
    }


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "change": change.kind.value,
        "path": change.path,
        "type": change.entry_kind.name.lower(),
        "source": change.source or None,
    }
