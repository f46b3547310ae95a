"""`dfs admin report`: the whole cluster in the manner of `hdfs dfsadmin -report`.

Owns: its forms of output. Refuses to know: how the leader knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from dfs.cli import output
from dfs.cli.context import Cli
from dfs.cli.healing import healing_json, healing_lines, mode_text
from dfs.cli.health import disks_json
from dfs.cli.verb import Verb, json_option, pass_cli
from dfs.net.parts import MasterStatus

if TYPE_CHECKING:
    from dfs.net.messages import GetClusterStatusReply, GetReportReply
    from dfs.net.parts import ServerLoad, ServerStatus

_LABEL_WIDTH: Final = 26


@click.command("report", cls=Verb)
@click.option("-live", "--live", "only_live", is_flag=True, help="Only servers that are not dead.")
@click.option("-dead", "--dead", "only_dead", is_flag=True, help="Only servers that are dead.")
@json_option
@pass_cli
def admin_report(cli: Cli, only_live: bool, only_dead: bool, as_json: bool) -> None:
    """Show the space of the cluster, and of each chunk server its state, disks, work and scrubbing."""
    if only_live and only_dead:
        raise click.UsageError("give --live or --dead, not both")
    status, report = cli.client.cluster_status(), cli.client.inspection.report()
    masters = cli.client.master_statuses()
    servers = sorted(status.servers, key=lambda server: (server.info.name, server.info.server_id))
    shown = [
        server
        for server in servers
        if not (only_live and server.state == "dead") and not (only_dead and server.state != "dead")
    ]
    loads = {load.server_id: load for load in report.loads}
    if cli.wants_json(as_json):
        output.print_json(_as_json(status, report, shown))
        return
    for label, value in _cluster_rows(status, servers):
        output.line(f"{label + ':':<{_LABEL_WIDTH}}{value}")
    output.line(f"{'Masters:':<{_LABEL_WIDTH}}{', '.join(map(_master_text, masters))}")
    for text in healing_lines(status.healing):
        topic, _, rest = text.partition(": ")
        output.line(f"{topic.capitalize() + ':':<{_LABEL_WIDTH}}{rest}")
    for server in shown:
        output.line()
        output.line(f"{output.display(server.info.name)} ({server.info.address}, rack {server.info.rack})")
        for label, value in _server_rows(server, loads.get(server.info.server_id)):
            output.line(f"  {label + ':':<{_LABEL_WIDTH - 2}}{value}")


def _cluster_rows(status: GetClusterStatusReply, servers: list[ServerStatus]) -> Iterator[tuple[str, str]]:
    space = status.space
    capacity = sum(server.capacity for server in servers if server.state != "dead")
    free = sum(server.free for server in servers if server.state != "dead")
    states: dict[str, int] = {}
    for server in servers:
        states[server.state] = states.get(server.state, 0) + 1
    share = f" ({100 * free / capacity:.1f} %)" if capacity else ""
    yield "Capacity", f"{output.size_text(capacity)} on live servers"
    yield "Free for chunks", f"{output.size_text(free)}{share}"
    yield (
        "Live",
        (
            f"{output.size_text(space.live_size)} in {output.count_text(space.file_count, 'file')},"
            f" {output.count_text(space.directory_count, 'directory', 'directories')}"
        ),
    )
    yield "Trash", f"{output.size_text(space.trash_size)} in {output.count_text(space.trash_count, 'entry', 'entries')}"
    yield (
        "Replicas",
        f"{output.size_text(space.chunk_stored_size)} of {output.count_text(space.chunk_count, 'chunk')}",
    )
    yield (
        "Garbage",
        f"{output.size_text(space.garbage_stored_size)} of {output.count_text(space.garbage_count, 'released chunk')}",
    )
    yield "Under-replicated chunks", str(space.under_replicated_live)
    yield "Missing chunks", str(space.missing)
    yield (
        "Chunk servers",
        ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none has registered",
    )


def _master_text(master: object) -> str:
    if isinstance(master, MasterStatus):
        return f"{master.name} {master.role}"
    return f"{master[0] if isinstance(master, tuple) else master} unreachable"


def _server_rows(server: ServerStatus, load: ServerLoad | None) -> Iterator[tuple[str, str]]:
    age_s = server.heartbeat_age_s
    heard = "this leader never heard it" if age_s < 0 else f"heartbeat {output.duration_text(age_s)} ago"
    yield "State", f"{mode_text(server)}, {heard}"
    share = f" ({100 * server.free / server.capacity:.1f} %)" if server.capacity else ""
    yield "Capacity", output.size_text(server.capacity)
    yield "Free for chunks", f"{output.size_text(server.free)}{share}"
    yield "Chunks", str(server.chunk_count)
    for disk in server.disks:
        reason = f": {disk.reason}" if disk.reason else ""
        yield (
            "Disk",
            (
                f"{output.display(disk.path)} {disk.state}{reason}, {output.size_text(disk.free)} of"
                f" {output.size_text(disk.capacity)} free, {output.count_text(disk.chunk_count, 'chunk')}"
            ),
        )
    if load is None:
        return
    yield "Streams", f"{load.active_streams} active"
    yield "Disk wait", f"{load.disk_wait_ms} ms for a small synced write"
    yield "Copies", f"{load.copying} waiting or under way here"
    yield "Deletions", f"{load.deleting} ordered"
    scrub = load.scrub
    verified = f"{output.count_text(scrub.verified_count, 'replica')} ({output.size_text(scrub.verified_size)})"
    last = f"last lap ended {output.local_time(scrub.last_lap_ms)}" if scrub.last_lap_ms else "no lap ended yet"
    yield (
        "Scrub",
        (
            f"{100 * scrub.lap_progress:.0f} % of this lap, {last}; {verified} verified since the start,"
            f" {scrub.corrupt_count} corrupt"
        ),
    )


def _as_json(status: GetClusterStatusReply, report: GetReportReply, shown: list[ServerStatus]) -> dict[str, Any]:
    loads = {load.server_id: load for load in report.loads}
    space = status.space
    return {
        "time": output.utc_time(report.now_ms),
        "leading_s": round(report.leading_s, 3),
        "rules": {name: getattr(report.rules, name) for name in report.rules.__struct_fields__},
        "replication": status.replication,
        "chunk_size": status.chunk_size,
        "space": {name: getattr(space, name) for name in space.__struct_fields__},
        "healing": healing_json(status.healing),
        "chunk_servers": [_server_json(server, loads.get(server.info.server_id)) for server in shown],
    }


def _server_json(server: ServerStatus, load: ServerLoad | None) -> dict[str, Any]:
    work: dict[str, Any] | None = None
    if load is not None:
        work = {
            "active_streams": load.active_streams,
            "disk_wait_ms": load.disk_wait_ms,
            "copying": load.copying,
            "deleting": load.deleting,
            "scrub": {name: getattr(load.scrub, name) for name in load.scrub.__struct_fields__},
        }
    return {
        "name": server.info.name,
        "server_id": server.info.server_id.hex(),
        "address": server.info.address,
        "rack": server.info.rack,
        "state": server.state,
        "mode": server.mode or None,
        "heartbeat_age_s": None if server.heartbeat_age_s < 0 else round(server.heartbeat_age_s, 3),
        "capacity": server.capacity,
        "free": server.free,
        "chunk_count": server.chunk_count,
        "disks": disks_json(server.disks),
        "work": work,
    }
