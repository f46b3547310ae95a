"""The verb `doctor`: a check-up of configuration, machine and cluster, as far as they can be reached.

Owns: the order of the check-up, and the form of the output. Refuses to know: what is healthy (dfs.local.findings and
its neighbours) and how this machine is measured (dfs.local.machine).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import click

from dfs import __version__
from dfs.cli import output, wall
from dfs.cli.context import Cli
from dfs.cli.verb import json_option, pass_cli, verb
from dfs.errors import DfsError
from dfs.net.parts import MasterStatus

if TYPE_CHECKING:
    from dfs.client import DfsClient
    from dfs.config import ClusterConfig
    from dfs.local.findings import Finding

NODE_TIMEOUT_S: Final = 3.0  # for one node to answer; all are asked at once
CONNECTIONS_MAX: Final = 64  # ports tried at the same time
_INDENT: Final = "      "


@verb("doctor")
@click.option("-q", "--quiet", is_flag=True, help="Show warnings and failures only.")
@click.option("--strict", is_flag=True, help="End with 1 for warnings, too.")
@click.option("--offline", is_flag=True, help="Look at the configuration and this machine only.")
@json_option
@pass_cli
def doctor_verb(cli: Cli, quiet: bool, strict: bool, offline: bool, as_json: bool) -> None:
    """Check configuration, secret, disks, limits and clocks, and the whole cluster as far as it answers.

    Useful when nothing runs, too. Disks and limits are looked at on this machine: run it on every one. Each finding is
    OK, WARN or FAIL, and says why it matters and what to do. Ends with 1 when something fails.
    """
    findings: list[Finding] = []
    is_json = cli.wants_json(as_json)
    for finding in _check_up(cli, offline=offline):
        findings.append(finding)
        if not is_json and not (quiet and finding.level.value == "OK"):
            for text in _lines(finding):
                output.line(text)
    counts = {level: sum(finding.level.value == level for finding in findings) for level in ("OK", "WARN", "FAIL")}
    if is_json:
        output.print_json({"counts": counts, "findings": [_as_json(finding) for finding in findings]})
    else:
        output.line(", ".join(f"{count} {level}" for level, count in counts.items()))
    if counts["FAIL"] or (strict and counts["WARN"]):
        raise click.exceptions.Exit(wall.EXIT_FAILED)


def _check_up(cli: Cli, *, offline: bool) -> Iterator[Finding]:
    """Yield findings from the ground up: what cannot be looked at because of an earlier one is left out."""
    from dfs.local import findings
    from dfs.local.machine_findings import judge_config, judge_machine

    config: ClusterConfig | None = None
    try:
        config = cli.cluster_config()
    except DfsError as error:
        if cli.find_config() is not None or not cli.settings.masters:
            yield findings.fail(
                "config",
                str(cli.find_config() or "cluster.ini"),
                error.message,
                "no daemon starts with it, and no client finds the cluster",
                "correct it: the message names file, section and key",
            )
            return
        yield findings.ok(
            "config", str(cli.settings_path), "the settings name the masters; there is no cluster.ini here"
        )
    if config is not None:
        yield from judge_config(config)
    is_let_in = True
    for finding in _check_secret(cli, config):
        is_let_in = is_let_in and finding.level is not findings.Level.FAIL
        yield finding
    if config is not None:
        from dfs.local.machine import look_at_machine

        yield from judge_machine(look_at_machine(config), config)
    if is_let_in and not offline:
        yield from _check_cluster(cli.client, config)


def _check_secret(cli: Cli, config: ClusterConfig | None) -> Iterator[Finding]:
    from dfs.local.machine import is_writable_by_others
    from dfs.local.machine_findings import judge_secret
    from dfs.net.auth import ClusterKey

    if config is None:
        access = cli.access()[0]
        path, name = access.secret_file, access.cluster
    else:
        path, name = config.secret_file, config.name
    error: DfsError | None = None
    try:
        ClusterKey.load(path, name)
    except DfsError as caught:
        error = caught
    yield from judge_secret(str(path), error, is_folder_open=is_writable_by_others(path.parent))


def _check_cluster(client: DfsClient, config: ClusterConfig | None) -> Iterator[Finding]:
    from dfs.local import findings
    from dfs.local.cluster_findings import judge_cluster, judge_masters, judge_nodes

    names = {} if config is None else {master.address: master.name for master in config.masters}
    masters = []
    silent: dict[str, DfsError] = {}
    for answer in client.master_statuses():
        if isinstance(answer, MasterStatus):
            masters.append(answer)
        else:
            silent[names.get(answer[0], answer[0])] = answer[1]
    if config is not None:
        nodes = {master.name: master.address for master in config.masters}
        nodes |= {server.name: server.address for server in config.chunk_servers}
        answers = client.inspection.ping(nodes.values(), NODE_TIMEOUT_S)
        yield from judge_nodes(dict(zip(nodes, answers, strict=True)), __version__)
    rafts = {} if config is None else _reach({master.name: master.raft_address for master in config.masters})
    yield from judge_masters(masters, silent, rafts)
    if not any(master.role == "leader" for master in masters):
        return
    try:
        status, report = client.cluster_status(), client.inspection.report()
    except DfsError as error:
        yield findings.fail("servers", "leader", error.message, "the chunk servers are not known", "try again")
        return
    yield from judge_cluster(status, report, config)


def _reach(addresses: dict[str, str]) -> dict[str, DfsError | None]:
    """Return by name why a port takes no connection, None when it does."""
    from dfs.net.sockets import connect_error, resolve

    def reach(address: str) -> DfsError | None:
        try:
            family, kind, protocol, name = resolve(address)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(NODE_TIMEOUT_S)
                probe.connect(name)
        except DfsError as error:
            return error
        except OSError as error:
            return connect_error(address, error)
        return None

    if not addresses:
        return {}
    with ThreadPoolExecutor(min(len(addresses), CONNECTIONS_MAX), "dfs-reach") as executor:
        return dict(zip(addresses, executor.map(reach, addresses.values()), strict=True))


def _lines(finding: Finding) -> Iterator[str]:
    where, what = output.escape_controls(finding.where), output.escape_controls(finding.what)
    yield f"{finding.level.value:<4}  {finding.topic:<8}  {where}: {what}"
    if finding.why:
        yield f"{_INDENT}why: {finding.why}"
    if finding.todo:
        yield f"{_INDENT}do:  {finding.todo}"


def _as_json(finding: Finding) -> dict[str, Any]:
    return {
        "level": finding.level.value,
        "topic": finding.topic,
        "where": finding.where,
        "what": finding.what,
        "why": finding.why or None,
        "todo": finding.todo or None,
    }
