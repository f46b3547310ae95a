"""The verbs of the trash: `undelete`, `trash ls`, `trash empty`, `expunge`.

Owns: how deleted files are shown, brought back and released. Refuses to know: when the masters expire them.
"""

from __future__ import annotations

from typing import Any

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.grace import grace_text
from dfs.cli.operands import REMOTE
from dfs.cli.subverbs import Subverbs
from dfs.cli.verb import Verb, json_option, pass_cli, verb
from dfs.net.messages import EmptyTrashReply
from dfs.net.parts import TrashEntry


@verb("undelete")
@click.argument("paths", nargs=-1, required=True, type=REMOTE)
@click.option(
    "--id", "trash_id", type=click.IntRange(1), metavar="N", help="This entry of `dfs trash ls`, not the newest one."
)
@json_option
@pass_cli
def undelete_verb(cli: Cli, paths: tuple[str, ...], trash_id: int | None, as_json: bool) -> None:
    """Bring back what was last deleted from PATHS, to the same place."""
    if trash_id is not None and len(paths) > 1:
        raise click.UsageError("--id names one entry; give one path with it")
    failures = cli.failures()
    restored: list[dict[str, Any]] = []
    is_json = cli.wants_json(as_json)
    for typed in paths:
        with failures.catch():
            status = cli.client.undelete(cli.resolve(typed), trash_id=trash_id or 0)
            restored.append(output.file_json(status, status.path))
            if not is_json:
                output.line(f"restored {output.display(status.path)}")
    if is_json:
        output.print_json(restored)
    failures.finish()


@click.group("trash", cls=Subverbs, default="ls")
def trash_verb() -> None:
    """List or empty the trash. Entries expire by themselves (trash_keep in cluster.ini)."""


@trash_verb.command("ls", cls=Verb)
@click.argument("path", required=False, type=REMOTE)
@click.option("-h", "--human", is_flag=True, help="Sizes as 1.5K, 12M, 3.4G.")
@json_option
@pass_cli
def trash_ls(cli: Cli, path: str | None, human: bool, as_json: bool) -> None:
    """List what is in the trash, oldest first; with PATH only what was deleted from there or below."""
    root = cli.resolve(path) if path is not None else "/"
    entries = (entry for entry in cli.client.list_trash() if _is_below(entry.path, root))
    if cli.wants_json(as_json):
        with output.json_array() as array:
            for entry in entries:
                array.add(_entry_json(entry))
        return
    rows = [_entry_row(entry, human) for entry in entries]
    if not rows:
        output.line("the trash is empty" if root == "/" else f"nothing from {output.display(root)} is in the trash")
        return
    header = ("ID", "DELETED", "EXPIRES", "TYPE", "SIZE", "PATH")
    for text in output.table([header, *rows], right=(0, 4)):
        output.line(text)


def _is_below(path: str, root: str) -> bool:
    return root in ("/", path) or path.startswith(root + "/")


def _entry_row(entry: TrashEntry, human: bool) -> tuple[str, ...]:
    return (
        str(entry.trash_id),
        output.local_time(entry.deleted_ms),
        output.local_time(entry.expires_ms),
        entry.kind.name.lower(),
        output.size_column(entry.size, human=human),
        output.display(entry.path),
    )


def _entry_json(entry: TrashEntry) -> dict[str, Any]:
    return {
        "trash_id": entry.trash_id,
        "path": entry.path,
        "type": entry.kind.name.lower(),
        "size": entry.size,
        "deleted": output.utc_time(entry.deleted_ms),
        "deleted_ms": entry.deleted_ms,
        "expires": output.utc_time(entry.expires_ms),
        "expires_ms": entry.expires_ms,
    }


@trash_verb.command("empty", cls=Verb)
@click.argument("trash_ids", nargs=-1, type=click.IntRange(1))
@json_option
@pass_cli
def trash_empty(cli: Cli, trash_ids: tuple[int, ...], as_json: bool) -> None:
    """Release the entries TRASH_IDS of `dfs trash ls`, or all; there is no way back."""
    _empty(cli, trash_ids, as_json)


@verb("expunge")
@click.argument("trash_ids", nargs=-1, type=click.IntRange(1))
@json_option
@pass_cli
def expunge_verb(cli: Cli, trash_ids: tuple[int, ...], as_json: bool) -> None:
    """Release everything in the trash (or the entries TRASH_IDS); there is no way back."""
    _empty(cli, trash_ids, as_json)


def _empty(cli: Cli, trash_ids: tuple[int, ...], as_json: bool) -> None:
    failures = cli.failures()
    count = size = 0
    for trash_id in trash_ids or (0,):
        with failures.catch():
            reply: EmptyTrashReply = cli.client.empty_trash(trash_id)
            count, size = count + reply.entry_count, size + reply.size
    if cli.wants_json(as_json):
        output.print_json({"entry_count": count, "size": size})
    elif count or not failures.count:
        entries = output.count_text(count, "trash entry", "trash entries")
        output.line(f"released {entries}, {output.size_text(size)}{grace_text(cli) if size else ''}")
    failures.finish()
