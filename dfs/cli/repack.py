"""The verb `admin repack`: give the space of deleted small files back.

Owns: what is printed. Refuses to know: which files move (dfs.client.repacking).
"""

from __future__ import annotations

import click
import msgspec

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import RemotePath
from dfs.cli.verb import Verb, json_option, pass_cli


@click.command("repack", cls=Verb)
@click.argument("path", type=RemotePath(), metavar="DIRECTORY")
@json_option
@pass_cli
def admin_repack(cli: Cli, path: str, as_json: bool) -> None:
    """Store the small files of half-empty shared chunks below DIRECTORY anew.

    Files that `put -r` packed together share chunks, and a chunk takes space until its last file is gone. Content,
    times and replication stay; a file that somebody changes meanwhile is left alone. May be interrupted and run again.
    """
    report = cli.client.repack(cli.resolve(path))
    if cli.wants_json(as_json):
        output.print_json(msgspec.to_builtins(report))
        return
    moved = f"{output.count_text(report.file_count, 'file')} ({output.size_text(report.size)})"
    chunks = output.count_text(report.chunk_count, "half-empty chunk")
    left = f"; {report.conflict_count} changed meanwhile and were left" if report.conflict_count else ""
    output.line(
        f"moved {moved} out of {chunks}{left}" if report.chunk_count else "nothing to do: no chunk is half empty"
    )
