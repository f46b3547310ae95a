"""The verb `admin tail`: end the open tail of a file that cannot be sealed by itself.

Owns: its options, and what is printed. Refuses to know: how a tail is sealed, and when it may be given up
(dfs.master.tail_desk).
"""

from __future__ import annotations

import click
import msgspec

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import RemotePath
from dfs.cli.verb import Verb, json_option, pass_cli


@click.command("tail", cls=Verb)
@click.argument("path", type=RemotePath(), metavar="FILE")
@click.option("--give-up", "gives_up", is_flag=True, help="End it without the records that no server has any more.")
@click.option("--force", "is_forced", is_flag=True, help="With --give-up: also what silent servers may have.")
@json_option
@pass_cli
def admin_tail(cli: Cli, path: str, gives_up: bool, is_forced: bool, as_json: bool) -> None:
    """Seal the open tail of FILE now: what was appended lately becomes an ordinary part of it.

    Masters do that by themselves. Only when no server of its chain has the tail any more (their disks are gone; an
    export was imported long after) it stays open, and FILE takes no appends. After an import all other servers are
    searched for it first. --give-up then ends it: FILE ends where it was sealed last, and records that were
    acknowledged after that are lost; appenders that were at work begin as new ones. It is refused while a server of the
    chain does not answer.
    """
    if is_forced and not gives_up:
        raise click.UsageError("--force goes with --give-up")
    path = cli.resolve(path)
    reply = cli.client.servers.end_tail(path, gives_up=gives_up, is_forced=is_forced)
    if cli.wants_json(as_json):
        output.print_json({"path": path, **msgspec.to_builtins(reply)})
        return
    shown, chain = output.display(path), ", ".join(reply.servers)
    if reply.outcome == "none":
        output.line(f"{shown} has no open tail: all that was appended is sealed")
    elif reply.outcome == "sealed":
        output.line(f"{shown}: sealed {output.size_text(reply.length)} of {chain}")
    else:
        known = output.size_text(reply.reported_length) if reply.reported_length else "an unknown number of bytes"
        output.line(f"{shown}: gave up {known} that were appended on {chain}; it ends where it was sealed last")
