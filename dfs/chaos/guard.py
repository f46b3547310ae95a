"""The blast radius: which faults a cluster may be given now, and when a run must stop at once.

Owns: the rules, each with its words. Refuses to know: where a view comes from (dfs.chaos.watch), clocks, and how faults
are done.

The invariant: at any moment the masters that were not broken on purpose are a quorum, no more than `servers_max` chunk
servers are away, and every chunk has a live replica on a server that was not touched. So whatever the run does, every
name and every byte stays available; and whatever else happens to the cluster meanwhile ends the run.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dfs.chaos.scenario import Fault, FaultKind

SILENT_S_MAX = 10.0  # a master that nobody broke may be slow to answer for so long
SINGLE_S_MAX = 15.0  # a last replica is copied at once; a write that met the fault may leave one for a moment
BLIND_S_MAX = 30.0  # no leader has told anything for so long: far beyond any election


@dataclass(frozen=True, slots=True)
class MasterView:
    """`role` "" and `silent_s` > 0: it does not answer, since when."""

    name: str
    role: str
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerView:
    """`state`: alive, slow, late, dead. `mode`: "", draining, drained, maintenance."""

    name: str
    state: str
    mode: str = ""
    has_bad_disk: bool = False


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster as seen in the round that began at `at_s`. `blind_s`: how old what the leader told is."""

    at_s: float
    masters: tuple[MasterView, ...]
    servers: tuple[ServerView, ...] = ()
    replication: int = 0
    under_replicated: int = 0  # chunks with fewer live replicas than their goal
    missing: int = 0  # chunks without any
    single: int = 0  # chunks that wait for repair and have one
    single_s: float = 0.0  # for how long there has been such a chunk
    blind_s: float = 0.0

    @property
    def leader(self) -> str:
        """The one that says that it leads; "" for none or two."""
        found = [master.name for master in self.masters if master.role == "leader"]
        return found[0] if len(found) == 1 else ""

    @property
    def quorum(self) -> int:
        return len(self.masters) // 2 + 1


@dataclass(frozen=True, slots=True)
class Weakest:
    """The chunk of the users' files with the fewest live replicas; `path` "" when there is no chunk at all."""

    path: str = ""
    replicas: int = 0


def troubles(view: ClusterView, away: Collection[str] = ()) -> list[str]:
    """Return why the cluster is not whole, in words; nothing when it is. Nodes that are `away` on purpose are excused,
    and so are the chunks that only have fewer replicas because a chunk server is away."""
    masters = [master for master in view.masters if master.name not in away]
    servers = [server for server in view.servers if server.name not in away]
    found = [f"master {master.name} {_state_of(master)}" for master in masters if not _works(master)]
    if not view.leader:
        return [*found, "no master leads"]
    if view.blind_s > 0:
        return [*found, "the leader does not answer"]
    found += [f"chunk server {server.name} is {server.state}" for server in servers if not _is_heard(server)]
    found += [f"chunk server {server.name} is in mode {server.mode}" for server in servers if server.mode]
    found += [f"chunk server {server.name} has a disk that is not ok" for server in servers if server.has_bad_disk]
    if not view.servers:
        found.append("no chunk server has registered")
    if view.missing:
        found.append(f"{view.missing} chunks have no live replica")
    if view.under_replicated and len(servers) == len(view.servers):
        found.append(f"{view.under_replicated} chunks are under-replicated")
    return found


def refusals(view: ClusterView, kinds: Collection[FaultKind], servers_max: int, weakest: Weakest) -> list[str]:
    """Return why a run with such faults must not begin, in words; nothing when it may."""
    found = troubles(view)
    if any(kind.victim.is_master for kind in kinds) and len(view.masters) - 1 < view.quorum:
        found.append(f"{len(view.masters)} masters cannot lose one and keep a quorum; break chunk servers only")
    if any(not kind.victim.is_master for kind in kinds):
        if servers_max > view.replication - 1:
            found.append(
                f"with replication {view.replication} at most {max(0, view.replication - 1)} chunk servers may be away,"
                f" not {servers_max}"
            )
        if len(view.servers) - servers_max < 1:
            found.append(f"with {servers_max} of {len(view.servers)} chunk servers away nothing could be written")
        if weakest.path and weakest.replicas <= servers_max:
            found.append(
                f"{weakest.path} has a chunk with {weakest.replicas} live replicas: losing {servers_max} servers could"
                " take it away; raise it with `dfs setrep`, or break masters only"
            )
    return found


def objection(view: ClusterView, fault: Fault, targets: Sequence[str], away: Collection[str], servers_max: int) -> str:
    """Return why a fault must not strike now; "" when it may. `away`: what is broken on purpose already."""
    if found := troubles(view, away):
        return found[0]
    masters = {master.name for master in view.masters}
    if fault.kind.victim.is_master:
        if len(masters - {*away, *targets}) < view.quorum or masters & set(away):
            return "more than one master would be away, or the quorum lost"
        return ""
    servers_away = set(away) - masters
    if len(servers_away | set(targets)) > servers_max:
        return f"more than {servers_max} chunk servers would be away"
    if view.single or view.under_replicated:
        return "a chunk has fewer live replicas than it should have"
    return ""


def alarm(view: ClusterView, away: Collection[str], servers_max: int) -> str:
    """Return why the run must stop and undo at once; "" when it may go on. `away`: broken, or not whole again yet."""
    masters = {master.name for master in view.masters}
    silent = [m for m in view.masters if not m.role and m.silent_s > SILENT_S_MAX and m.name not in away]
    if silent:
        return f"master {silent[0].name}, which was not touched, has not answered for {silent[0].silent_s:.0f} s"
    if view.blind_s > BLIND_S_MAX:
        return f"no leader has answered for {view.blind_s:.0f} s"
    if view.missing:
        return f"{view.missing} chunks have no live replica"
    gone = [s.name for s in view.servers if s.state == "dead" and s.name not in away]
    if gone:
        return f"chunk server {gone[0]}, which was not touched, is dead"
    moved = [s for s in view.servers if s.mode and s.name not in away]
    if moved:
        return f"chunk server {moved[0].name} is in mode {moved[0].mode} now: somebody works on the cluster"
    left = view.replication - len(set(away) - masters)
    if view.single_s > SINGLE_S_MAX and left > 1:
        return f"{view.single} chunks have had one live replica for {view.single_s:.0f} s, though {left} should be"
    if len(set(away) - masters) > servers_max:
        return f"more than {servers_max} chunk servers are away"
    return ""


def _works(master: MasterView) -> bool:
    return master.role in ("leader", "follower")


def _state_of(master: MasterView) -> str:
    return f"is {master.role}" if master.role else "does not answer"


def _is_heard(server: ServerView) -> bool:
    return server.state in ("alive", "slow")
