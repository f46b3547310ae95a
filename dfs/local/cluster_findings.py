"""Judge what nodes answered and what the leader knows: ports, versions, clocks, quorum, journals, servers, chunks.

Owns: these judgements and their thresholds. Refuses to know: how nodes are asked (dfs.client), and this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from dfs.client.inspection import NodeAnswer
from dfs.config import ClusterConfig
from dfs.errors import AuthenticationFailed, DfsError, VersionMismatch
from dfs.local.findings import Finding, fail, names_text, ok, size_text, warn
from dfs.net.messages import GetClusterStatusReply, GetReportReply
from dfs.net.parts import MasterStatus

CLOCK_WARN_S, CLOCK_FAIL_S = 1.0, 60.0  # a clock off by more: graces and tokens shift, or end early
DISK_WAIT_SLOW_MS = 200
LAG_MAX = 10_000  # log entries that a follower may be behind
JOURNAL_LONG = 1_000_000  # entries without a checkpoint; masters write one every 200,000


# --- nodes --------------------------------------------------------------------------------------------


def judge_nodes(answers: Mapping[str, NodeAnswer], version: str) -> Iterator[Finding]:
    """Judge what the nodes, by name, said at their ports; `version` is ours."""
    good = {name: answer for name, answer in answers.items() if answer.error is None}
    for name, answer in answers.items():
        if answer.error is not None:
            yield _unreachable(name, answer, answer.error)
        elif answer.node != name:
            yield fail(
                "ports",
                f"{name} ({answer.address})",
                f"{answer.role} {answer.node} answers there",
                "two nodes have exchanged their addresses, or cluster.ini is not the same everywhere",
                "give every machine the same cluster.ini",
            )
    if good:
        yield ok("ports", names_text(good), "reachable, and they know the secret")
    versions = Counter(answer.version for answer in good.values())
    if len(versions) == 1 and version in versions:
        yield ok("versions", names_text(good), f"all are {version}, as this program")
    elif versions:
        told = "; ".join(
            f"{found}: {names_text({name for name, answer in good.items() if answer.version == found})}"
            for found in sorted(versions)
        )
        yield warn(
            "versions",
            "nodes",
            f"this program is {version}, nodes are {told}",
            "before 1.0 different versions may not understand each other",
            "upgrade the older ones: followers, the leader, chunk servers one at a time",
        )
    yield from _judge_clocks(good)


def _unreachable(name: str, answer: NodeAnswer, error: DfsError) -> Finding:
    where = f"{name} ({answer.address})"
    if isinstance(error, AuthenticationFailed | VersionMismatch):
        return fail("ports", where, error.message, "it is there, and does not let this program in", "see the message")
    return fail(
        "ports",
        where,
        error.message,
        "it is down, or cut off from this machine",
        f"start it (`dfs up`, systemctl start dfs-…@{name}), look at its log, and at the firewall",
    )


def _judge_clocks(good: Mapping[str, NodeAnswer]) -> Iterator[Finding]:
    """Compare all clocks, ours included, with the one in the middle."""
    measured = {
        name: (answer.clock_offset_s, answer.clock_error_s)
        for name, answer in good.items()
        if answer.clock_offset_s is not None
    }
    if not measured:
        return
    clocks = {**measured, "this machine": (0.0, 0.0)}
    middle_s = median(offset_s for offset_s, _ in clocks.values())
    worst_s = 0.0
    for name, (offset_s, error_s) in clocks.items():
        apart_s = offset_s - middle_s
        sure_s = max(0.0, abs(apart_s) - error_s)
        worst_s = max(worst_s, abs(apart_s))
        if sure_s <= CLOCK_WARN_S:
            continue
        make = fail if sure_s > CLOCK_FAIL_S else warn
        yield make(
            "clocks",
            name,
            f"{abs(apart_s):.1f} s {'ahead of' if apart_s > 0 else 'behind'} the others",
            "tokens, the trash and grace periods go by the time of day: reads are refused, or things expire early",
            "run NTP (chrony, systemd-timesyncd) on every machine",
        )
    if worst_s <= CLOCK_WARN_S:
        yield ok("clocks", names_text(measured), f"within {max(worst_s, 0.001):.3f} s of each other")


# --- masters ------------------------------------------------------------------------------------------


def judge_masters(
    masters: Sequence[MasterStatus], silent: Mapping[str, DfsError], rafts: Mapping[str, DfsError | None]
) -> Iterator[Finding]:
    """Judge the quorum and each master. `rafts`: by name, why its raft port cannot be reached, None if it can."""
    count = len(masters) + len(silent)
    needed = count // 2 + 1
    members = [master for master in masters if master.role != "joining"]
    leaders = [master for master in masters if master.role == "leader"]
    shown = f"{len(members)} of {count} masters take part, {needed} are needed"
    if not leaders:
        yield fail(
            "quorum",
            "masters",
            f"{shown}; none leads",
            "no name can be read or changed",
            "ask again in 5 seconds: it may be an election; then start masters, and look at the network between them",
        )
    elif len(members) < count:
        spare = len(members) - needed
        yield warn(
            "quorum",
            "masters",
            f"{shown}; {max(leaders, key=lambda m: m.term).name} leads",
            f"{'one more loss stops every change' if spare == 0 else f'{spare} more may be lost'}",
            "start the others; `dfs admin masters` tells how they are",
        )
    else:
        yield ok("quorum", "masters", f"{shown}; {max(leaders, key=lambda m: m.term).name} leads")
    lead = max((master.commit for master in leaders), default=0)
    for master in masters:
        yield from _judge_master(master, lead)
    for name, error in rafts.items():
        if error is not None and name not in silent:
            yield warn(
                "ports",
                f"{name}: raft_address",
                error.message,
                "the other masters may not reach it either (only they need to; this machine may be outside)",
                "look from another master's machine",
            )


def _judge_master(master: MasterStatus, lead: int) -> Iterator[Finding]:
    lag = lead - master.applied
    yield from _judge_unexpected(master.name, master.unexpected_count)
    if master.role in ("joining", "stopped"):
        yield warn(
            "journal",
            master.name,
            f"it is {master.role}",
            "it has no vote, and does not count for the majority",
            "its log says why; a joining master needs each of the others to answer once",
        )
    elif lead and lag > LAG_MAX:
        yield warn(
            "journal",
            master.name,
            f"{lag} log entries behind the leader",
            "it cannot take over until it has caught up",
            "look at its disk and network; is it still catching up after a start?",
        )
    unsaved = master.applied - master.checkpoint_index
    if unsaved > JOURNAL_LONG:
        yield warn(
            "journal",
            master.name,
            f"{unsaved} log entries since its last checkpoint",
            "checkpoints fail there: its next start takes long, and its journal grows without end",
            "look for checkpoint_failed in its log: space, memory for a fork",
        )
    elif master.role not in ("joining", "stopped") and not lag > LAG_MAX:
        size = (
            f"{size_text(master.checkpoint_size)}, {unsaved} entries behind"
            if master.checkpoint_index
            else "none needed yet"
        )
        yield ok("journal", master.name, f"caught up; checkpoint: {size}")


def _judge_unexpected(name: str, count: int) -> Iterator[Finding]:
    if count:
        yield warn(
            "errors",
            name,
            f"{count} errors since its start that its code did not expect",
            "it logged each and went on, but it is a bug, a broken disk or a broken machine",
            "look for Traceback in its log and report it; metric dfs_unexpected_errors_total tells which part it is",
        )


# --- chunk servers ------------------------------------------------------------------------------------


def judge_cluster(
    status: GetClusterStatusReply, report: GetReportReply, config: ClusterConfig | None
) -> Iterator[Finding]:
    """Judge what the leader knows of the chunk servers and the chunks."""
    known = {server.info.name for server in status.servers}
    if config is not None:
        missing = sorted({server.name for server in config.chunk_servers} - known)
        if missing:
            yield warn(
                "servers",
                names_text(missing),
                "in cluster.ini, and never registered",
                "nothing can be stored there",
                "start it; its log says why it cannot register",
            )
    up = []
    for server in status.servers:
        if server.state == "slow":
            yield warn(
                "servers",
                f"{server.info.name} ({server.info.address})",
                f"slow: a small synced write takes {server.disk_wait_ms} ms there",
                "it gets no new chunks while others are quicker, and every put would wait for it",
                "look at its disks (smartctl) and at what else uses them",
            )
        yield from _judge_unexpected(server.info.name, server.unexpected_count)
        if server.mode and server.state in ("late", "dead"):
            yield warn(
                "servers",
                f"{server.info.name} ({server.info.address})",
                f"{server.state}, as is wanted: {server.mode}",
                "its replicas are not copied in maintenance; a drained server may be gone for good",
                "`dfs admin maintenance` ends it, `dfs admin remove` forgets a server",
            )
        elif server.state in ("late", "dead"):
            make = fail if server.state == "dead" else warn
            age_s = server.heartbeat_age_s
            silent = f"silent for {age_s:.0f} s" if age_s >= 0 else "not heard by this leader yet"
            yield make(
                "servers",
                f"{server.info.name} ({server.info.address})",
                f"{server.state}: {silent}",
                "its replicas do not count; a second loss may make chunks unreadable",
                "start it; if it is gone for good its chunks are copied by themselves",
            )
        else:
            up.append(server.info.name)
        for disk in server.disks:
            if disk.state != "ok":
                yield (fail if disk.state == "failed" else warn)(
                    "disk",
                    f"{server.info.name}: {disk.path}",
                    f"{disk.state}: {disk.reason}",
                    "no new chunk goes there" + (", and those there are lost" if disk.state == "failed" else ""),
                    "see 'a dead disk' in docs/operations.md"
                    if disk.state == "failed"
                    else "free space, or add a disk or a server",
                )
    if up:
        yield ok("servers", names_text(up), "alive")
    yield from _judge_work(status, report)
    if status.healing.blocked_count:
        yield fail(
            "repair",
            "cluster",
            f"{status.healing.blocked_count} chunks cannot be copied: {status.healing.blocked_reason}",
            "they stay under-replicated, and a further loss may make them unreadable",
            "add a chunk server, or space; bring servers back",
        )
    yield _judge_chunks(status)


def _judge_work(status: GetClusterStatusReply, report: GetReportReply) -> Iterator[Finding]:
    names = {server.info.server_id: server.info.name for server in status.servers}
    for load in report.loads:
        name = names.get(load.server_id, load.server_id.hex())
        if load.disk_wait_ms > DISK_WAIT_SLOW_MS:
            yield warn(
                "disk",
                name,
                f"a small synced write takes {load.disk_wait_ms} ms on its slowest disk",
                "every put waits for the slowest server of its chain",
                "look at the disk's health (smartctl) and at what else uses it",
            )
        if load.scrub.corrupt_count:
            yield warn(
                "disk",
                name,
                f"{load.scrub.corrupt_count} replicas were found damaged since it started",
                "they are replaced from good ones; a disk that goes on like this is dying",
                "one: note it. Several: look for replica_quarantined in its log, replace that disk",
            )


def _judge_chunks(status: GetClusterStatusReply) -> Finding:
    space = status.space
    if space.missing:
        return fail(
            "chunks",
            "cluster",
            f"{space.missing} of {space.chunk_count} chunks have no live replica",
            "their files cannot be read",
            "`dfs fsck` names the files, `dfs explain FILE` the servers to bring back",
        )
    if space.under_replicated_live:
        return warn(
            "chunks",
            "cluster",
            f"{space.under_replicated_live} of {space.chunk_count} chunks are under-replicated",
            "further losses may make them unreadable",
            "`dfs explain FILE` tells what happens next; `dfs fsck` names the files",
        )
    return ok("chunks", "cluster", f"all {space.chunk_count} chunks have their replicas")
