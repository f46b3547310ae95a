"""The verbs of quotas: `quota set`, `clear`, `ls`; and the columns that `count -q` adds.

Owns: their options and output. Refuses to know: how use is counted.
"""

from __future__ import annotations

from typing import Any

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.operands import REMOTE
from dfs.cli.quantities import Size
from dfs.cli.subverbs import Subverbs
from dfs.cli.verb import Verb, human_option, json_option, pass_cli
from dfs.net.parts import QuotaStatus


@click.group("quota", cls=Subverbs, default="ls")
def quota_verb() -> None:
    """Limit how many files and directories, and how many bytes, may be below a directory.

    Bytes are counted with all replicas. What is in the trash or in snapshots does not count.
    """


@quota_verb.command("set", cls=Verb)
@click.argument("directory", type=REMOTE)
@click.option("--names", type=click.IntRange(1), metavar="N", help="Files and directories below DIRECTORY.")
@click.option("--bytes", "stored_size", type=Size(), metavar="SIZE", help="Bytes with all replicas: 100G, 2T.")
@json_option
@pass_cli
def quota_set(cli: Cli, directory: str, names: int | None, stored_size: int | None, as_json: bool) -> None:
    """Set one limit of DIRECTORY or both. A limit below what is used already only stops growth."""
    if names is None and stored_size is None:
        raise click.UsageError("give --names, --bytes or both")
    _print_one(cli, cli.client.quotas.set(cli.resolve(directory), names=names, stored_size=stored_size), as_json)


@quota_verb.command("clear", cls=Verb)
@click.argument("directory", type=REMOTE)
@click.option("--names", is_flag=True, help="Only the limit of names.")
@click.option("--bytes", "stored_size", is_flag=True, help="Only the limit of bytes.")
@json_option
@pass_cli
def quota_clear(cli: Cli, directory: str, names: bool, stored_size: bool, as_json: bool) -> None:
    """Lift the limits of DIRECTORY."""
    both = names == stored_size
    quota = cli.client.quotas.clear(cli.resolve(directory), names=names or both, stored_size=stored_size or both)
    _print_one(cli, quota, as_json)


@quota_verb.command("ls", cls=Verb)
@click.argument("directory", required=False, type=REMOTE)
@click.option("-e", "--effective", is_flag=True, help="Those that DIRECTORY is subject to: its own and those above.")
@human_option
@json_option
@pass_cli
def quota_ls(cli: Cli, directory: str | None, effective: bool, human: bool, as_json: bool) -> None:
    """List the quotas of DIRECTORY and of directories in it, with what is used; all there are when none is named."""
    path = cli.resolve(directory) if directory is not None else "/"
    found = cli.client.quotas.effective(path) if effective else cli.client.quotas.list(path)
    if cli.wants_json(as_json):
        with output.json_array() as array:
            for quota in found:
                array.add(quota_json(quota))
        return
    rows = [(*columns(quota, human=human), output.display(quota.path)) for quota in found]
    if not rows:
        output.line("there are no quotas")
        return
    for text in output.table([(*HEADER, "DIRECTORY"), *rows], right=(0, 1, 2, 3)):
        output.line(text)


HEADER = ("NAMES", "USED", "BYTES", "USED")


def columns(quota: QuotaStatus | None, *, human: bool) -> tuple[str, str, str, str]:
    """Return limit and use of names, and of bytes; "-" where there is none."""
    if quota is None:
        return "-", "-", "-", "-"
    return (
        str(quota.names) if quota.names else "-",
        str(quota.names_used),
        output.size_column(quota.stored_size, human=human) if quota.stored_size else "-",
        output.size_column(quota.stored_size_used, human=human),
    )


def _print_one(cli: Cli, quota: QuotaStatus, as_json: bool) -> None:
    if cli.wants_json(as_json):
        output.print_json(quota_json(quota))
        return
    names = f"{quota.names_used} of {quota.names} names" if quota.names else f"{quota.names_used} names, no limit"
    used, limit = output.size_text(quota.stored_size_used), output.size_text(quota.stored_size)
    stored = f"{used} of {limit} with replicas" if quota.stored_size else f"{used} with replicas, no limit"
    output.line(f"{output.display(quota.path)}: {names}; {stored}")


def quota_json(quota: QuotaStatus) -> dict[str, Any]:
    return {
        "path": quota.path,
        "names": quota.names or None,
        "names_used": quota.names_used,
        "stored_size": quota.stored_size or None,
        "stored_size_used": quota.stored_size_used,
    }
