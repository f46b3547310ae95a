"""The verbs `up`, `down` and `status`: a whole cluster on this machine, and how any cluster is.

Owns: which cluster.ini is started and remembered, what is said about it. Refuses to know: how daemons are run
(dfs.local) and what they say to each other.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.verb import json_option, pass_cli, verb
from dfs.errors import ConfigError, DfsError

if TYPE_CHECKING:
    from dfs.config import ClusterConfig
    from dfs.local.cluster import LocalCluster

CONFIG_NAME: Final = "cluster.ini"


@verb("up")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(1, 3600),
    metavar="SECONDS",
    default=60.0,
    help="Seconds to wait for health (60).",
)
@pass_cli
def up_verb(cli: Cli, wait_s: float) -> None:
    """Start all masters and chunk servers of a cluster.ini on this machine, and wait until they are healthy.

    Without any cluster.ini a default one is written to your data folder: 3 masters and 4 chunk servers on loopback. The
    cluster is remembered in your settings, so that every later command finds it from any folder. It runs until
    `dfs down`.
    """
    from dfs.config import load_config
    from dfs.local.cluster import LocalCluster

    path, is_new = _config_to_start(cli)
    config = load_config(path)
    for warning in config.warnings:
        click.echo(f"dfs: up: warning: {output.escape_controls(warning)}", err=True)
    if is_new:
        output.line(f"wrote {path}")
    _remember(cli, path)
    local = LocalCluster(config)
    started_s = time.monotonic()
    started = _start(local, wait_s)
    _tell_next(local, started, time.monotonic() - started_s)


def _config_to_start(cli: Cli) -> tuple[Path, bool]:
    """Return the cluster.ini to start, and whether it was written just now."""
    found = cli.find_config()
    if found is not None and (found.exists() or str(found) != cli.settings.config):
        return found.absolute(), False
    import platformdirs

    from dfs.config import EMBEDDED_DEFAULT

    path = Path(platformdirs.user_data_dir("dfs")) / CONFIG_NAME
    if path.exists():
        return path, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("x", encoding="utf-8") as file:
            file.write(EMBEDDED_DEFAULT)
    except OSError as error:
        raise ConfigError(f"cannot write the default {path}: {error.strerror or error}; use --config FILE") from None
    return path, True


def _remember(cli: Cli, path: Path) -> None:
    """Note the cluster in the settings; another cluster has other directories, so its current one is the root."""
    settings = cli.settings
    if settings.config == str(path):
        return
    settings.config = str(path)
    settings.cwd = settings.previous_cwd = "/"
    cli.save_settings()


def _start(local: LocalCluster, wait_s: float) -> list[str]:
    before = local.pids()
    try:
        return local.up(wait_s)
    except DfsError as error:
        first, _, rest = error.message.partition("\n")
        for text in rest.splitlines():  # the last words of a daemon that died
            click.echo(f"  {output.escape_controls(text)}", err=True)
        above = " stands above" if rest else ""
        is_running = local.pids().keys() > before.keys()
        way_out = "; what was started keeps running: see `dfs status`, stop it with `dfs down`" if is_running else ""
        raise type(error)(f"{first.rstrip(':')}{above}{way_out}", **error.details) from error


def _tell_next(local: LocalCluster, started: list[str], seconds: float) -> None:
    config = local.config
    nodes = (
        f"{output.count_text(len(config.masters), 'master')},"
        f" {output.count_text(len(config.chunk_servers), 'chunk server')}"
    )
    if started:
        output.line(f"cluster {config.name!r} is up and healthy after {output.duration_text(seconds)}: {nodes}")
    else:
        output.line(f"cluster {config.name!r} was up already and is healthy: {nodes}")
    output.line(f"  configuration  {config.source}")
    output.line(f"  logs           {config.run_dir}")
    output.line()
    output.line("what to type next:")
    for command, meaning in (
        ("dfs put FILE /", "store a file (directories: put -r)"),
        ("dfs ls -lh /", "see it"),
        ("dfs get /FILE copy", "fetch it"),
        ("dfs status", "see how masters and chunk servers are"),
        ("dfs down", "stop the cluster; everything stays on disk"),
    ):
        output.line(f"  {command:<20} {meaning}")


@verb("down")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(0, 600),
    metavar="SECONDS",
    default=10.0,
    help="Seconds before SIGKILL (10).",
)
@pass_cli
def down_verb(cli: Cli, grace_s: float) -> None:
    """Stop all masters and chunk servers of the cluster that run on this machine. What is stored stays."""
    from dfs.local.cluster import LocalCluster

    config = cli.cluster_config()
    stopped = LocalCluster(config).down(grace_s)
    if stopped:
        output.line(f"cluster {config.name!r} is down: stopped {', '.join(sorted(stopped))}")
    else:
        output.line(f"cluster {config.name!r} does not run on this machine")


@verb("status")
@json_option
@pass_cli
def status_verb(cli: Cli, as_json: bool) -> None:
    """Show masters, chunk servers and what is missing; ends with 0 healthy, 1 degraded, 4 unreachable.

    Works without a quorum, too: it then shows the masters that answer.
    """
    from dfs.cli.health import Health

    health = Health.ask(cli.client, _names_of_masters(cli))
    if cli.wants_json(as_json):
        output.print_json(health.as_json())
    else:
        for text in health.lines():
            output.line(text)
    raise click.exceptions.Exit(health.exit_code)


def _names_of_masters(cli: Cli) -> dict[str, str]:
    """Return names by address, as far as a cluster.ini tells them."""
    path = cli.find_config()
    if path is None:
        return {}
    from dfs.config import load_config

    config: ClusterConfig = load_config(path)
    return {master.address: master.name for master in config.masters}
