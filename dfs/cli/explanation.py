"""Explain in words how a path's bytes are kept: where they are, why, what is missing, what happens next and when.

Owns: the sentences. Refuses to know: clocks (the present is among the facts), the wire, and how anything is repaired
beyond the rules that the masters tell (dfs.master.healing.repair decides).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dfs.cli import output
from dfs.client.fsck import ChunkVerdict, Problem, Totals
from dfs.ids import ServerId
from dfs.net.messages import GetClusterStatusReply, GetReportReply
from dfs.net.parts import FileStatus, HealingRules, HealingStatus, Kind, ServerStatus, TrashEntry

NAMES_MAX = 8  # servers or files named in one sentence
UP = frozenset({"alive", "slow"})  # states of servers that can take new replicas
NOT_SURVEYED = HealingStatus()


@dataclass(frozen=True, slots=True)
class Facts:
    """The cluster at one moment."""

    servers: Mapping[ServerId, ServerStatus]
    rules: HealingRules
    now_ms: int
    leading_s: float  # how long the present leader has led
    chunk_size: int
    default_replication: int
    garbage_count: int
    garbage_size: int
    healing: HealingStatus = NOT_SURVEYED

    @classmethod
    def of(cls, status: GetClusterStatusReply, report: GetReportReply) -> Facts:
        return cls(
            {server.info.server_id: server for server in status.servers},
            report.rules,
            report.now_ms,
            report.leading_s,
            status.chunk_size,
            status.replication,
            status.space.garbage_count,
            status.space.garbage_stored_size,
            status.healing,
        )


@dataclass(slots=True)
class Group:
    """Chunks of one file that are kept alike: on the same servers, with the same goal."""

    verdict: ChunkVerdict  # of one of them
    numbers: list[int] = field(default_factory=list)
    size: int = 0


def group_chunks(chunks: Sequence[tuple[int, int, ChunkVerdict]]) -> list[Group]:
    """Return the chunks of a file, given as (number, bytes used, verdict), in groups; the first chunk's group first."""
    groups: dict[object, Group] = {}
    for number, size, verdict in chunks:
        key = (verdict.chunk.goal, tuple((r.server.server_id, r.state) for r in verdict.replicas))
        group = groups.setdefault(key, Group(verdict))
        group.numbers.append(number)
        group.size += size
    return list(groups.values())


# --- what exists ------------------------------------------------------------------------------------


def explain_file(status: FileStatus, groups: Sequence[Group], facts: Facts) -> list[str]:
    """Return the story of a file in lines; those of a group of chunks are indented below it."""
    shown = output.display(status.path)
    if not status.extent_count:
        return [f"{shown} is an empty file: it has no bytes, so there is nothing to keep."]
    count = output.count_text(status.extent_count, "chunk")
    lines = [
        (
            f"{shown} is a file of {output.size_text(status.size)} in {count}, last changed"
            f" {_ago(facts.now_ms - status.mtime_ms)}. {_wanted(status, facts)}"
        )
    ]
    for group in groups:
        lines.append("")
        lines.append(f"{_numbers(group.numbers, status.extent_count)} ({output.size_text(group.size)}): {_kept(group)}")
        lines += (f"  {text}" for text in _replica_lines(group.verdict, facts))
        lines += (f"  {text}" for text in explain_chunk(group.verdict, status.replication, facts))
    return lines


def explain_directory(status: FileStatus, totals: Totals, endangered: Sequence[str], facts: Facts) -> list[str]:
    """Return the story of a directory; `endangered` are the first of its files that are not as they should be."""
    shown = output.display(status.path)
    lines = [
        (
            f"{shown} is a directory with {output.count_text(totals.file_count, 'file')}"
            f" ({output.size_text(totals.size)}) in {output.count_text(totals.chunk_count, 'chunk')}."
        )
    ]
    if totals.is_healthy:
        lines.append("Every chunk has all its replicas on live servers: nothing is to be done.")
    for problem, text in (
        (Problem.MISSING, "cannot be read now: no live server has it"),
        (Problem.UNDER_REPLICATED, "can be read, with fewer live replicas than wanted"),
        (Problem.MISPLACED, "has all live replicas in one rack"),
    ):
        if count := totals.problems[problem]:
            lines.append(f"{output.count_text(count, 'chunk')} {text if count == 1 else _plural(text)}.")
    if endangered:
        more = " and others" if totals.bad_files > len(endangered) else ""
        names = ", ".join(map(output.display, endangered))
        lines.append(f"It concerns {output.count_text(totals.bad_files, 'file')}: {names}{more}.")
        lines += _silent_servers(facts)
        lines.append("`dfs explain FILE` tells what happens to one of them, `dfs fsck` lists all.")
    return lines


def _plural(text: str) -> str:
    return text.replace("has it", "has them").replace("has all", "have all")


def _wanted(status: FileStatus, facts: Facts) -> str:
    default = "the cluster's default" if status.replication == facts.default_replication else "set for this file"
    return f"Each chunk shall have {output.count_text(status.replication, 'replica')} ({default})."


def _numbers(numbers: Sequence[int], total: int) -> str:
    """Return `Chunk 3`, `Chunks 0-4, 7`, `All 12 chunks`."""
    if len(numbers) == total > 1:
        return f"All {total} chunks"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    more = ", …" if len(texts) > NAMES_MAX else ""
    return f"Chunk{'s' if len(numbers) > 1 else ''} {', '.join(texts[:NAMES_MAX])}{more}"


def _kept(group: Group) -> str:
    verdict = group.verdict
    goal, good = verdict.chunk.goal, verdict.good_count
    each = "each " if len(group.numbers) > 1 else ""
    if Problem.MISSING in verdict.problems:
        return f"{each}NO live replica of {goal}"
    if good < goal:
        return f"{each}{good} of {goal} replicas can be read"
    racks = len({replica.server.rack for replica in verdict.replicas if replica.is_good})
    return f"{each}{output.count_text(good, 'live replica')} in {output.count_text(racks, 'rack')}"


def _replica_lines(verdict: ChunkVerdict, facts: Facts) -> Iterator[str]:
    for replica in verdict.replicas:
        server = facts.servers.get(replica.server.server_id)
        condition = "not registered any more" if server is None else _condition(server, facts)
        yield f"{replica.server.name} (rack {replica.server.rack}, {replica.server.address}) is {condition}"


def _condition(server: ServerStatus, facts: Facts) -> str:
    """Return what can be said of a server: `alive`, `dead: silent for 31s`."""
    text = server.state
    if server.state not in UP:
        if server.heartbeat_age_s < 0:
            text += f": this leader, {output.duration_text(facts.leading_s)} in office, has not heard it yet"
        else:
            text += f": silent for {output.duration_text(server.heartbeat_age_s)}"
    match server.mode:
        case "draining":
            text += f", being drained ({output.count_text(server.left_count, 'chunk')} left)"
        case "drained":
            text += ", drained: safe to power off"
        case "maintenance":
            text += f", in maintenance until {output.local_time(server.mode_until_ms)}"
    full = [disk.path for disk in server.disks if disk.state == "full"]
    failed = [disk.path for disk in server.disks if disk.state == "failed"]
    if failed:
        text += f", disk {', '.join(failed)} failed"
    if full and len(full) == len(server.disks):
        text += ", full"
    return text


# --- what happens next ------------------------------------------------------------------------------------


def explain_chunk(verdict: ChunkVerdict, replication: int, facts: Facts) -> Iterator[str]:
    """Yield why a chunk is not as it should be, and what happens next and when."""
    chunk = verdict.chunk
    if chunk.goal > replication:
        yield f"Another file shares it and wants {chunk.goal} replicas, this one {replication}: the higher one counts."
    names = [replica.server.name for replica in verdict.replicas]
    if Problem.MISSING in verdict.problems:
        yield from _explain_missing(verdict, names)
        return
    if verdict.good_count < chunk.goal:
        yield from _explain_short(verdict, facts)
        yield from _progress(facts)
        return
    if draining := [server.info.name for server in _holders(verdict, facts) if server.mode == "draining"]:
        yield (
            f"Next: {_listed(draining)} {_is(len(draining))} being drained: what is there is copied to another server,"
            " and counts until then."
        )
        yield from _progress(facts)
        return
    if verdict.good_count > chunk.goal:
        surplus = output.count_text(verdict.good_count - chunk.goal, "replica")
        yield f"Next: {surplus} more than wanted; what is too much is removed, from the fullest server first."
    elif Problem.MISPLACED in verdict.problems:
        rack = verdict.replicas[0].server.rack
        yield (
            f"Next: all replicas are in rack {rack}, though there are others: one is moved to another rack when nothing"
            " more urgent is left and a server there has room."
        )
    else:
        yield "Next: nothing is to be done."


def _holders(verdict: ChunkVerdict, facts: Facts) -> Iterator[ServerStatus]:
    for replica in verdict.replicas:
        server = facts.servers.get(replica.server.server_id)
        if server is not None:
            yield server


def _progress(facts: Facts) -> Iterator[str]:
    """Yield how far repair is in the whole cluster, when it is at work."""
    healing = facts.healing
    chunks = sum(healing.waiting)
    if not chunks:
        return
    rate = f" at {output.size_text(healing.rate)}/s" if healing.rate else ""
    eta = f", done in about {output.duration_text(healing.eta_s)}" if healing.eta_s > 0 else ""
    verb = "waits" if chunks == 1 else "wait"
    yield (
        f"Repair: {output.count_text(chunks, 'chunk')} of the cluster {verb} for copies"
        f" ({output.size_text(healing.waiting_size)}), {healing.copying_count} under way{rate}{eta}."
    )


def _explain_missing(verdict: ChunkVerdict, names: Sequence[str]) -> Iterator[str]:
    corrupt = [replica.server.name for replica in verdict.replicas if replica.state == "corrupt"]
    if corrupt:
        yield f"The replicas on {_listed(corrupt)} are damaged."
    dead = [replica.server.name for replica in verdict.replicas if replica.state == "dead"]
    if dead:
        yield (
            f"These bytes cannot be read until {_listed(dead, 'or')} comes back: nobody else has them, so nothing can"
            " be copied. Start it, or bring its disks to another machine under the same name."
        )
    elif not names:
        yield (
            "No server is registered to hold it: these bytes are lost, unless a server that has them comes back and"
            " reports them."
        )


def _explain_short(verdict: ChunkVerdict, facts: Facts) -> Iterator[str]:
    chunk = verdict.chunk
    holders = {replica.server.server_id for replica in verdict.replicas}
    dead = [
        server
        for replica in verdict.replicas
        if not replica.is_good and (server := facts.servers.get(replica.server.server_id)) is not None
        if server.state == "dead"
    ]
    short = chunk.goal - verdict.good_count
    never = short - len(dead)
    if never > 0:
        yield (
            f"{output.count_text(never, 'replica has', 'replicas have')} no server (of {chunk.goal} wanted): written"
            " while too few servers could take them, lost since, or wanted only lately (setrep)."
        )
    takers = [
        server.info.name
        for server_id, server in facts.servers.items()
        if server_id not in holders and server.state in UP and not server.mode and _has_room(server, facts)
    ]
    if not takers:
        yield from _explain_blocked(short, dead, facts)
        return
    copies = output.count_text(short, "copy", "copies")
    if verdict.good_count == 1 and chunk.goal > 1:
        yield (
            f"Next: one live replica is left, so {copies} {_is(short)} made at once, before all others, to"
            f" {_listed(takers, 'or')}."
        )
        return
    yield from _explain_wait(dead, never, takers, facts)


def _explain_blocked(short: int, dead: Sequence[ServerStatus], facts: Facts) -> Iterator[str]:
    up = sum(server.state in UP for server in facts.servers.values())
    back = f"bring {_listed([server.info.name for server in dead], 'or')} back, or " if dead else ""
    yield (
        f"Next: nothing can be done: {output.count_text(up, 'server is', 'servers are')} alive, and none of them"
        f" without it has room. {back[:1].upper()}{back[1:]}{'add' if back else 'Add'} a chunk server: then"
        f" {output.count_text(short, 'copy is', 'copies are')} made."
    )


def _explain_wait(dead: Sequence[ServerStatus], never: int, takers: Sequence[str], facts: Facts) -> Iterator[str]:
    after_s = facts.rules.repair_after_s
    where = f"to {_listed(takers, 'or')}"
    for server in dead:
        silent_s = server.heartbeat_age_s if server.heartbeat_age_s >= 0 else facts.leading_s
        name, silent = server.info.name, output.duration_text(silent_s)
        if server.mode == "maintenance":
            yield (
                f"Next: {name} is in maintenance until {output.local_time(server.mode_until_ms)}: until then its"
                " replica counts, though it is silent, and is not copied."
            )
        elif silent_s < after_s:
            yield (
                f"Next: {name} is silent for {silent}; its replicas are copied {where} from"
                f" {output.duration_text(after_s)} on, in about {output.duration_text(after_s - silent_s)}. When it"
                " comes back before, its replica counts again at once."
            )
        else:
            yield (
                f"Next: {name} is silent for {silent}, longer than {output.duration_text(after_s)} (repair_after): its"
                f" replica is copied {where}, in its turn."
            )
    if never > 0:
        copies, whose = output.count_text(never, "copy is", "copies are"), "its" if never == 1 else "their"
        yield f"Next: {copies} made {where}, in {whose} turn."


def _has_room(server: ServerStatus, facts: Facts) -> bool:
    if not server.disks:
        return server.free >= facts.chunk_size
    return any(disk.state == "ok" and disk.free >= facts.chunk_size for disk in server.disks)


def _silent_servers(facts: Facts) -> Iterator[str]:
    for server in facts.servers.values():
        if server.state not in UP:
            yield f"Chunk server {server.info.name} (rack {server.info.rack}) is {_condition(server, facts)}."


# --- what was deleted -------------------------------------------------------------------------------------


def explain_absent(path: str, trashed: Sequence[TrashEntry], facts: Facts) -> list[str]:
    """Return the story of a path that does not exist; `trashed`: what was deleted from it or above it, newest last."""
    shown = output.display(path)
    grace = output.duration_text(facts.rules.garbage_grace_s)
    if not trashed:
        garbage = (
            f" {output.count_text(facts.garbage_count, 'released chunk')} ({output.size_text(facts.garbage_size)} on"
            f" disk) of all files together {'waits' if facts.garbage_count == 1 else 'wait'} to be removed."
            if facts.garbage_count
            else ""
        )
        return [
            f"{shown} does not exist, and nothing that was deleted from there is in the trash.",
            (
                "If it was there: it was removed with --skip-trash, or its time in the trash is over, or it was"
                " replaced by another one. It cannot be brought back; its chunks are released, and leave the disks"
                f" {grace} later.{garbage}"
            ),
        ]
    lines = [f"{shown} does not exist."]
    for entry in reversed(trashed):
        lines += _trash_lines(path, entry, facts)
    return lines


def explain_trash_below(path: str, trashed: Sequence[TrashEntry], facts: Facts) -> list[str]:
    """Return what is to be said of older things that were deleted from a path where something is again."""
    return [text for entry in reversed(trashed) if entry.path == path for text in _trash_lines(path, entry, facts)]


def _trash_lines(path: str, entry: TrashEntry, facts: Facts) -> list[str]:
    what = "directory" if entry.kind is Kind.DIRECTORY else "file"
    shown = output.display(entry.path)
    lines = []
    if entry.path == path:
        subject = f"A {what} of {output.size_text(entry.size)} was deleted from here"
    else:
        subject = f"The directory {shown} above it was deleted, with whatever was in it,"
    lines.append(f"{subject} {_ago(facts.now_ms - entry.deleted_ms)} ({output.local_time(entry.deleted_ms)}).")
    left_ms = entry.expires_ms - facts.now_ms
    if left_ms > 0:
        lines.append(
            f"Next: `dfs undelete {shown}` brings it back until {output.local_time(entry.expires_ms)}, for another"
            f" {output.duration_text(left_ms / 1000)}. Then its chunks are released, and the space is free"
            f" {output.duration_text(facts.rules.garbage_grace_s)} (garbage_grace) later."
        )
    else:
        lines.append("Next: its time is over; it is released at any moment.")
    return lines


# --- words ------------------------------------------------------------------------------------------------


def _ago(age_ms: int) -> str:
    return f"{output.duration_text(max(0, age_ms) / 1000)} ago"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _listed(names: Sequence[str], word: str = "and") -> str:
    """Return `c1`, `c1 or c2`, `c1, c2 or c3`."""
    names = [*names[:NAMES_MAX], "another one"] if len(names) > NAMES_MAX else names
    if len(names) <= 1:
        return "".join(names)
    return f"{', '.join(names[:-1])} {word} {names[-1]}"
