"""The verbs `master` and `chunk`: one daemon in the foreground, for systemd, containers and `dfs up`.

Owns: finding the node's section. Refuses to know: what a daemon does.
"""

from __future__ import annotations

import os
from typing import Final

import click

from dfs.cli.context import Cli
from dfs.cli.verb import pass_cli, verb
from dfs.errors import ConfigError

UMASK: Final = 0o077  # what a daemon makes is its user's alone, as in deploy/*.service, whatever starts it


def _name(names: list[str], given: str | None, role: str) -> str:
    """Return the node's name; a file with one node of the role needs none."""
    if given is not None:
        return given
    if len(names) == 1:
        return names[0]
    known = ", ".join(names) or "none"
    raise ConfigError(f"which {role}? give --name; the cluster.ini has {known}")


@verb("master")
@click.option("--name", help="The NAME of a [master:NAME] section.")
@pass_cli
def master_verb(cli: Cli, name: str | None) -> None:
    """Run a master until SIGTERM."""
    config = cli.cluster_config()
    name = config.master(_name([node.name for node in config.masters], name, "master")).name
    from dfs.master.daemon import run

    os.umask(UMASK)
    run(config, name)


@verb("chunk")
@click.option("--name", help="The NAME of a [chunk:NAME] section.")
@pass_cli
def chunk_verb(cli: Cli, name: str | None) -> None:
    """Run a chunk server until SIGTERM."""
    config = cli.cluster_config()
    name = config.chunk_server(_name([node.name for node in config.chunk_servers], name, "chunk server")).name
    from dfs.chunk.daemon import run

    os.umask(UMASK)
    run(config, name)
