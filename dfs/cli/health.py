"""How a cluster is, in one view: asked from all masters, judged, as text and as JSON.

Owns: the verdict (healthy, degraded, no quorum) and its reasons in words. Refuses to know: how masters judge liveness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dfs.cli import output, wall
from dfs.cli.healing import healing_json, healing_lines, is_excused, mode_text
from dfs.errors import DfsError, NoQuorum
from dfs.net.messages import GetClusterStatusReply
from dfs.net.parts import DiskReport, MasterStatus, ServerStatus

if TYPE_CHECKING:
    from dfs.client import DfsClient


@dataclass(frozen=True, slots=True)
class SilentMaster:
    """A master that did not answer; `name` is its address when nothing tells its name."""

    name: str
    address: str
    error: DfsError

    @property
    def is_refusal(self) -> bool:
        """Return whether it is there and does not let us in."""
        return wall.exit_code_of(self.error) == wall.EXIT_REFUSED


@dataclass(frozen=True, slots=True)
class Health:
    """The answers. `cluster` is `None` when no leader answered; `error` says why."""

    masters: tuple[MasterStatus, ...]
    silent: tuple[SilentMaster, ...]
    cluster: GetClusterStatusReply | None
    error: DfsError | None

    @classmethod
    def ask(cls, client: DfsClient, names: Mapping[str, str]) -> Health:
        """Ask every master for itself, and the leader for the rest."""
        masters, silent = _ask_masters(client, names)
        if not any(master.leader for master in masters) and silent:
            return cls(masters, silent, None, _cause(masters, silent))
        try:
            cluster = client.cluster_status()
        except DfsError as error:
            return cls(masters, silent, None, error)
        if not any(master.role == "leader" for master in masters):  # one was elected since then
            masters, silent = _ask_masters(client, names)
        return cls(masters, silent, cluster, None)

    @property
    def problems(self) -> list[str]:
        """Return what is wrong, in words; nothing when all is well."""
        found = [
            f"master {silent.name} {'refuses this client' if silent.is_refusal else 'does not answer'}"
            for silent in self.silent
        ]
        if self.cluster is None:
            if self.masters or not any(silent.is_refusal for silent in self.silent):
                found.append("no master leads: fewer than a majority of them reach each other")
            return found
        found += [
            f"chunk server {server.info.name} "
            + ("has not reported to the new leader yet" if _is_awaited(server) else f"is {server.state}")
            for server in self.cluster.servers
            if server.state != "alive" and not is_excused(server)
        ]
        found += [
            f"disk {disk.path} of chunk server {server.info.name} is {disk.state}"
            for server in self.cluster.servers
            for disk in server.disks
            if disk.state != "ok"
        ]
        space = self.cluster.space
        if space.missing:
            found.append(f"{output.count_text(space.missing, 'chunk')} without any live replica")
        if space.under_replicated_live:
            found.append(f"{output.count_text(space.under_replicated_live, 'chunk')} under-replicated")
        if not self.cluster.servers:
            found.append("no chunk server has registered")
        return found

    @property
    def verdict(self) -> str:
        if self.cluster is None:
            return "unreachable"
        return "degraded" if self.problems else "healthy"

    @property
    def exit_code(self) -> int:
        if self.cluster is None:
            code = wall.exit_code_of(self.error) if self.error is not None else wall.EXIT_UNREACHABLE
            return code if code != wall.EXIT_FAILED else wall.EXIT_UNREACHABLE
        return wall.EXIT_FAILED if self.problems else wall.EXIT_OK

    def lines(self) -> Iterator[str]:
        """Yield the view for people."""
        problems = self.problems
        yield f"{self.verdict}{': ' + '; '.join(problems) if problems else ''}"
        yield ""
        yield from output.table(
            [("MASTER", "ROLE", "TERM", "APPLIED", "LEADER", "UPTIME"), *self._master_rows()], (2, 3)
        )
        if self.cluster is None:
            if self.error is not None:
                yield ""
                yield f"chunk servers unknown: {wall.describe(self.error)}"
            return
        yield ""
        header = ("CHUNK SERVER", "STATE", "HEARTBEAT", "CHUNKS", "CAPACITY", "FREE", "RACK", "ADDRESS")
        servers = sorted(self.cluster.servers, key=lambda server: server.info.name)
        yield from output.table([header, *(_server_row(server) for server in servers)], (2, 3, 4, 5))
        yield ""
        yield from self._totals(self.cluster)

    def _master_rows(self) -> Iterator[tuple[str, ...]]:
        for master in self.masters:
            uptime = output.duration_text(master.uptime_s)
            yield master.name, master.role, str(master.term), str(master.applied), master.leader or "-", uptime
        for silent in self.silent:
            yield silent.name, "refuses us" if silent.is_refusal else "unreachable", "-", "-", "-", "-"

    @staticmethod
    def _totals(cluster: GetClusterStatusReply) -> Iterator[str]:
        space = cluster.space
        yield (
            f"{output.count_text(space.file_count, 'file')} in"
            f" {output.count_text(space.directory_count, 'directory', 'directories')},"
            f" {output.size_text(space.live_size)}; trash {output.size_text(space.trash_size)}"
            + (f"; {output.count_text(space.snapshot_count, 'snapshot')}" if space.snapshot_count else "")
        )
        yield (
            f"{output.count_text(space.chunk_count, 'chunk')},"
            f" {output.size_text(space.chunk_stored_size)} with replicas;"
            f" {space.under_replicated_live} under-replicated, {space.missing} missing,"
            f" {output.count_text(space.garbage_count, 'chunk')} of garbage"
        )
        yield from healing_lines(cluster.healing)

    def as_json(self) -> dict[str, Any]:
        """Return the view with stable keys."""
        masters = [
            {
                "name": master.name,
                "is_reachable": True,
                "role": master.role,
                "term": master.term,
                "applied": master.applied,
                "commit": master.commit,
                "leader": master.leader or None,
                "version": master.version,
                "uptime_s": round(master.uptime_s, 3),
                "error": None,
            }
            for master in self.masters
        ]
        masters += [
            {"name": silent.name, "is_reachable": False, "address": silent.address, "error": silent.error.message}
            for silent in self.silent
        ]
        value: dict[str, Any] = {"health": self.verdict, "problems": self.problems, "masters": masters}
        if self.cluster is None:
            value |= {"chunk_servers": None, "space": None, "error": self.error.message if self.error else None}
        else:
            value |= {
                "chunk_servers": [_server_json(server) for server in self.cluster.servers],
                "space": {name: getattr(self.cluster.space, name) for name in self.cluster.space.__struct_fields__},
                "replication": self.cluster.replication,
                "chunk_size": self.cluster.chunk_size,
                "healing": healing_json(self.cluster.healing),
                "error": None,
            }
        return value


def _ask_masters(
    client: DfsClient, names: Mapping[str, str]
) -> tuple[tuple[MasterStatus, ...], tuple[SilentMaster, ...]]:
    """Return those that answered and those that did not, each sorted by name."""
    masters: list[MasterStatus] = []
    silent: list[SilentMaster] = []
    for answer in client.master_statuses():
        if isinstance(answer, MasterStatus):
            masters.append(answer)
        else:
            address, error = answer
            silent.append(SilentMaster(names.get(address, address), address, error))
    return tuple(sorted(masters, key=lambda m: m.name)), tuple(sorted(silent, key=lambda m: m.name))


def _cause(masters: Sequence[MasterStatus], silent: Sequence[SilentMaster]) -> DfsError:
    """Return why no leader is there: a refusal of all masters tells more than their silence."""
    refusals = [master.error for master in silent if master.is_refusal]
    if refusals and not masters:
        return refusals[0]
    return NoQuorum(f"{len(masters)} of {len(masters) + len(silent)} masters answer and none of them leads")


def _is_awaited(server: ServerStatus) -> bool:
    """Return whether a leader that is new in office just waits for its first heartbeat."""
    return server.state == "late" and server.heartbeat_age_s < 0


def _server_row(server: ServerStatus) -> tuple[str, ...]:
    return (
        server.info.name,
        mode_text(server),
        "never" if server.heartbeat_age_s < 0 else f"{output.duration_text(server.heartbeat_age_s)} ago",
        str(server.chunk_count),
        output.human_size(server.capacity),
        output.human_size(server.free),
        server.info.rack,
        server.info.address,
    )


def _server_json(server: ServerStatus) -> dict[str, Any]:
    return {
        "name": server.info.name,
        "server_id": server.info.server_id.hex(),
        "address": server.info.address,
        "rack": server.info.rack,
        "state": server.state,
        "heartbeat_age_s": None if server.heartbeat_age_s < 0 else round(server.heartbeat_age_s, 3),
        "capacity": server.capacity,
        "free": server.free,
        "chunk_count": server.chunk_count,
        "mode": server.mode or None,
        "mode_until_ms": server.mode_until_ms or None,
        "left_count": server.left_count,
        "left_size": server.left_size,
        "stored_size": server.stored_size,
        "disk_wait_ms": server.disk_wait_ms,
        "disks": disks_json(server.disks),
    }


def disks_json(disks: Iterable[DiskReport]) -> list[dict[str, Any]]:
    """Return the disks of a chunk server for `--json`."""
    return [
        {
            "path": disk.path,
            "state": disk.state,
            "reason": disk.reason or None,
            "capacity": disk.capacity,
            "free": disk.free,
            "chunk_count": disk.chunk_count,
            "quarantined_count": disk.quarantined_count,
            "quarantined_size": disk.quarantined_size,
        }
        for disk in disks
    ]
