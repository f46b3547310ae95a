"""The verb `explain`: the story of a path in words.

Owns: gathering the facts, and the form of the output. Refuses to know: the sentences (dfs.cli.explanation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from dfs import paths
from dfs.cli import output, wall
from dfs.cli.context import Cli
from dfs.cli.fsck import full_path
from dfs.cli.operands import REMOTE
from dfs.cli.verb import json_option, pass_cli, verb
from dfs.errors import NotADirectory, NotFound
from dfs.net.parts import Kind

if TYPE_CHECKING:
    from dfs.cli.explanation import Facts
    from dfs.client.fsck import ChunkVerdict
    from dfs.net.parts import FileStatus, TrashEntry

TRASHED_KEPT_MAX: Final = 5  # deletions of one path that are told
ENDANGERED_MAX: Final = 8  # files of a directory that are named


@verb("explain")
@click.argument("path", type=REMOTE)
@json_option
@pass_cli
def explain_verb(cli: Cli, path: str, as_json: bool) -> None:
    """Say in words where the bytes of PATH are, why, what is missing, and what will happen next and when.

    PATH may be a file, a directory, or something that was deleted. Ends with 3 when it is neither there nor in the
    trash.
    """
    from dfs.cli.explanation import Facts, explain_absent, explain_trash_below

    full = cli.resolve(path)
    facts = Facts.of(cli.client.cluster_status(), cli.client.inspection.report())
    trashed = _trashed(cli, full)
    code, chunks = wall.EXIT_OK, None
    try:
        status = cli.client.stat(full)
    except (NotFound, NotADirectory):
        state = "deleted" if trashed else "unknown"
        lines = explain_absent(full, trashed, facts)
        code = wall.EXIT_OK if trashed else wall.EXIT_NOT_FOUND
    else:
        state = status.kind.name.lower()
        lines, chunks = _present(cli, status, facts)
        lines += explain_trash_below(full, trashed, facts)
    if cli.wants_json(as_json):
        output.print_json({"path": full, "state": state, "text": [text for text in lines if text], "chunks": chunks})
    else:
        for text in lines:
            output.line(text)
    if code:
        raise click.exceptions.Exit(code)


def _present(cli: Cli, status: FileStatus, facts: Facts) -> tuple[list[str], list[dict[str, Any]] | None]:
    from dfs.cli.explanation import explain_directory, explain_file, group_chunks
    from dfs.client.fsck import Totals, is_file_healthy, judge_chunk

    racks = frozenset(server.info.rack for server in facts.servers.values() if server.state != "dead")
    totals = Totals()
    endangered: list[str] = []
    found: list[tuple[int, int, ChunkVerdict]] = []
    for page in cli.client.inspection.survey(status.path):
        verdicts = [judge_chunk(chunk, page.servers, {}, racks) for chunk in page.chunks]
        totals.add_page(page, verdicts, {})
        for file in page.files:
            if not is_file_healthy(file, verdicts) and len(endangered) < ENDANGERED_MAX:
                endangered.append(full_path(status.path, file))
            if status.kind is Kind.FILE:
                found += [
                    (number, extent.length, verdicts[extent.chunk])
                    for number, extent in enumerate(file.extents, file.first_extent)
                ]
    if status.kind is Kind.DIRECTORY:
        return explain_directory(status, totals, list(dict.fromkeys(endangered)), facts), None
    return explain_file(status, group_chunks(found), facts), _chunks_json(found)


def _trashed(cli: Cli, path: str) -> list[TrashEntry]:
    """Return the last deletions of the path or of a directory above it, oldest first."""
    lineage = {path}
    while path != paths.ROOT:
        path = paths.parent(path)
        lineage.add(path)
    found: list[TrashEntry] = []
    for entry in cli.client.list_trash():
        if entry.path in lineage:
            found = [*found[-TRASHED_KEPT_MAX + 1 :], entry]
    return found


def _chunks_json(chunks: Sequence[tuple[int, int, ChunkVerdict]]) -> list[dict[str, Any]]:
    return [
        {
            "index": number,
            "handle": verdict.chunk.handle.hex(),
            "length": length,
            "goal": verdict.chunk.goal,
            "live": verdict.good_count,
            "problems": [problem.value for problem in verdict.problems],
            "servers": [replica.server.name for replica in verdict.replicas],
        }
        for number, length, verdict in chunks
    ]
