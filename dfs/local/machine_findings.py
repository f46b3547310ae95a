"""Judge the configuration and this machine: layout, secret, disks, syncs, limits, memory.

Owns: these judgements, the facts that they are about, and their thresholds. Refuses to know: how facts are gathered
(dfs.local.machine), and the cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dfs.config import ClusterConfig
from dfs.errors import DfsError
from dfs.local.findings import (
    NAMES_MAX,
    Finding,
    duration_text,
    fail,
    host_of,
    is_loopback,
    names_text,
    ok,
    size_text,
    warn,
)

SYNC_FAST_S = 10e-6  # no medium keeps a synced write in less: something on the way only says so
SYNC_FAST_SPINNING_S = 1e-3  # a disk turns once in 4 to 11 ms
SYNC_SLOW_S = 0.05  # every change of names waits for it
MASTER_FREE_WARN, MASTER_FREE_FAIL = 1 << 30, 128 << 20  # bytes: the journal and two checkpoints must fit
FILES_LEFT_MIN = 10_000  # inodes
DESCRIPTORS_MIN = 4096 + 256  # of a daemon: connections and files
SWAPPINESS_MAX = 10
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"})
NO_BARRIERS = frozenset({"nobarrier", "barrier=0"})


# --- facts of this machine ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A data directory on this machine. `sync_s`: the median time of a small synced write, None: not measured."""

    path: str
    node: str
    is_master: bool
    exists: bool
    is_writable: bool = True
    device: int = 0
    capacity: int = 0
    free: int = 0
    files_left: int = 1 << 40
    file_system: str = ""
    mount_options: frozenset[str] = frozenset()
    is_spinning: bool | None = None
    sync_s: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """This machine. `descriptors`: the limit on open files by who has it."""

    folders: tuple[FolderFacts, ...] = ()
    descriptors: Mapping[str, int] = field(default_factory=dict)
    swap_size: int = 0
    swappiness: int = 60
    overcommit: int = 0
    has_master: bool = False


# --- configuration ------------------------------------------------------------------------------------


def judge_config(config: ClusterConfig) -> Iterator[Finding]:
    """Judge what a correct cluster.ini says."""
    where = str(config.source)
    masters, servers = len(config.masters), len(config.chunk_servers)
    for text in config.warnings:
        what = text.removeprefix(f"{config.source}: ")
        if not what.startswith("fsync"):
            yield warn("config", where, what, "it is legal, and rarely meant", "change it, or know why not")
    if not config.warnings:
        yield ok("config", where, f"{masters} masters, {servers} chunk servers, replication {config.replication}")
    if not config.fsync:
        yield warn(
            "fsync",
            where,
            "fsync = no",
            "a power cut loses writes that were acknowledged, and can damage the masters' journals",
            "set fsync = yes, restart the daemons one at a time",
        )
    yield from _judge_layout(config)


def _judge_layout(config: ClusterConfig) -> Iterator[Finding]:
    where, servers = str(config.source), config.chunk_servers
    hosts = [host_of(server.address) for server in servers]
    racks = Counter(server.rack for server in servers)
    wanted = config.replication
    if all(is_loopback(host) for host in (*hosts, *(host_of(master.address) for master in config.masters))):
        yield ok("layout", where, "all nodes are on this machine: good for trying out, it survives no machine's death")
    elif servers:
        master_hosts = Counter(host_of(master.address) for master in config.masters)
        crowded = [host for host, count in master_hosts.items() if 2 * count > len(config.masters) > 1]
        if crowded:
            yield warn(
                "layout",
                where,
                f"a majority of the masters is on one machine ({crowded[0]})",
                "its death stops every change and every read of names",
                "put each master on a machine of its own",
            )
        if wanted > 1 and len(set(hosts)) < min(wanted, len(servers)):
            yield warn(
                "layout",
                where,
                f"{len(servers)} chunk servers are on {len(set(hosts))} machines, replication is {wanted}",
                "two replicas of a chunk may be on one machine and die together",
                "give chunk servers of one machine the same rack, and have more machines than replicas",
            )
    if wanted > 1 and len(servers) > wanted and len(racks) == 1:
        yield warn(
            "layout",
            where,
            f"all {len(servers)} chunk servers are in one rack ({next(iter(racks))})",
            "one switch or one power line takes all replicas of a chunk",
            "set rack = … in each [chunk:NAME] section by what fails together",
        )
    elif len(racks) > 1:
        yield ok(
            "layout", where, f"{len(racks)} racks: {', '.join(f'{name} {count}' for name, count in racks.items())}"
        )
    if 1 < wanted == len(servers):
        yield warn(
            "layout",
            where,
            f"replication {wanted} with {len(servers)} chunk servers",
            "when one is lost, no other can take its replicas: everything stays under-replicated until it is back",
            "add a chunk server",
        )


def judge_secret(where: str, error: DfsError | None, *, is_folder_open: bool = False) -> Iterator[Finding]:
    if error is not None:
        yield fail(
            "secret",
            where,
            error.message,
            "without it no node lets this one in, and whoever reads it is inside",
            "the same file on every node, mode 0600, owned by the user of the daemons",
        )
    elif is_folder_open:
        yield warn(
            "secret",
            where,
            "its folder can be written by others",
            "they can replace the file, and lock every node out at its next start",
            "chmod go-w the folder",
        )
    else:
        yield ok("secret", where, "readable, and by its owner only")


# --- this machine -------------------------------------------------------------------------------------


def judge_machine(facts: MachineFacts, config: ClusterConfig) -> Iterator[Finding]:
    for folder in facts.folders:
        yield from _judge_folder(folder, config)
    yield from _judge_syncs(facts.folders)
    yield from _judge_shared_disks(facts.folders)
    for who, limit in facts.descriptors.items():
        if limit < DESCRIPTORS_MIN:
            yield warn(
                "limits",
                who,
                f"at most {limit} open files",
                "when they are used up, connections are refused and disks look broken",
                "raise `ulimit -n` (LimitNOFILE in the unit) to 65536",
            )
        else:
            yield ok("limits", who, f"{limit} open files")
    if facts.has_master:
        yield from _judge_memory(facts)


def _judge_memory(facts: MachineFacts) -> Iterator[Finding]:
    is_sound = True
    if facts.overcommit == 2:
        is_sound = False
        yield warn(
            "memory",
            "vm.overcommit_memory",
            "2: the kernel promises no memory that it does not have",
            "a master writes checkpoints from a forked copy of itself; the fork fails when the state is large",
            "sysctl vm.overcommit_memory=0",
        )
    if facts.swap_size and facts.swappiness > SWAPPINESS_MAX:
        is_sound = False
        yield warn(
            "memory",
            "vm.swappiness",
            f"{facts.swappiness}, with {facts.swap_size >> 20} MiB of swap",
            "a master that is swapped out stands still, and loses the leadership",
            "sysctl vm.swappiness=1, or swapoff -a on machines with masters",
        )
    if is_sound:
        yield ok("memory", "this machine", "swapping and overcommit do not harm masters")


def _judge_folder(folder: FolderFacts, config: ClusterConfig) -> Iterator[Finding]:
    where = f"{folder.node}: {folder.path}"
    if not folder.exists:
        yield ok("disk", where, "not there yet: it is made at the first start")
        return
    if folder.error or not folder.is_writable:
        yield fail(
            "disk",
            where,
            folder.error or "this user cannot write there",
            "its daemon cannot start, or takes this disk out of use",
            "mend or mount the disk; chown the folder to the user of the daemon",
        )
        return
    yield _judge_room(folder, where, config)
    if folder.files_left < FILES_LEFT_MIN:
        yield warn(
            "disk",
            where,
            f"{folder.files_left} more files fit on the file system",
            "every chunk is a file; without inodes the disk is full, whatever space is left",
            "make a file system with more inodes, or delete other files",
        )


def _judge_syncs(folders: Sequence[FolderFacts]) -> Iterator[Finding]:
    """Judge each disk once, however many nodes have their folders on it."""
    by_disk: dict[int, list[FolderFacts]] = {}
    for folder in folders:
        if folder.exists and not folder.error and folder.is_writable:
            by_disk.setdefault(folder.device, []).append(folder)
    for shared in by_disk.values():
        nodes = names_text(dict.fromkeys(folder.node for folder in shared))
        yield _judge_sync(shared[0], f"{nodes}: the disk of {shared[0].path}")


def _judge_room(folder: FolderFacts, where: str, config: ClusterConfig) -> Finding:
    shown = (
        f"{size_text(folder.free)} of {size_text(folder.capacity)} free ({folder.file_system or 'unknown file system'})"
    )
    if folder.is_master:
        if folder.free >= MASTER_FREE_WARN:
            return ok("disk", where, shown)
        make = fail if folder.free < MASTER_FREE_FAIL else warn
        return make(
            "disk",
            where,
            shown,
            "a master whose journal cannot be written stops",
            "free space, or move data_dir to a larger disk",
        )
    left = folder.free - config.disk_reserve
    if left < config.chunk_size:
        return fail(
            "disk",
            where,
            f"full: {shown}, {size_text(config.disk_reserve)} of it kept (disk_reserve)",
            "no new chunk goes there",
            "free space with `dfs expunge`, add a disk to data_dirs, or add a chunk server",
        )
    if left < max(10 * config.chunk_size, folder.capacity // 20):
        return warn(
            "disk",
            where,
            f"nearly full: {shown}",
            "repair needs room on the servers that are left when one is lost",
            "add a disk or a chunk server before it is full",
        )
    return ok("disk", where, shown)


def _judge_sync(folder: FolderFacts, where: str) -> Finding:
    """Judge whether what is synced there is safe from a power cut, by what the medium can do."""
    topic, doing = "fsync", "put data_dir(s) on a local disk"
    lost = "a power cut loses writes that were acknowledged"
    if folder.file_system in MEMORY_FILE_SYSTEMS:
        return fail(topic, where, f"it lies in memory ({folder.file_system})", f"{lost}: all of them", doing)
    if folder.file_system in NETWORK_FILE_SYSTEMS:
        return warn(
            topic, where, f"it is on a network ({folder.file_system})", "one failure takes all, and syncs lie", doing
        )
    if bad := sorted(folder.mount_options & NO_BARRIERS):
        return fail(
            topic, where, f"mounted with {bad[0]}", f"the disk's cache is never flushed: {lost}", "mount it without"
        )
    if folder.sync_s is None:
        return ok(topic, where, "not measured: this file system has no unnamed files")
    rate = f"a synced write takes {duration_text(folder.sync_s)}"
    limit_s = SYNC_FAST_SPINNING_S if folder.is_spinning else SYNC_FAST_S
    if folder.sync_s < limit_s:
        medium = "a spinning disk, which turns once in 4 to 11 ms" if folder.is_spinning else "any medium"
        return warn(
            topic,
            where,
            f"{rate}: too fast for {medium}",
            f"a cache says that it is done before it is. Unless that cache survives a power cut, {lost}",
            "switch the write cache off (hdparm -W 0), or be sure of its battery; for virtual disks, of the host",
        )
    if folder.sync_s > SYNC_SLOW_S:
        return warn(
            topic,
            where,
            f"{rate}: slow",
            "every change of names waits for it on a majority of masters, every put on each server of its chain",
            "a disk with fast syncs; is something else writing to it?",
        )
    return ok(topic, where, rate)


def _judge_shared_disks(folders: Sequence[FolderFacts]) -> Iterator[Finding]:
    by_disk: dict[tuple[str, int], list[FolderFacts]] = {}
    for folder in folders:
        if folder.exists and not folder.error and not folder.is_master:
            by_disk.setdefault((folder.node, folder.device), []).append(folder)
    for (node, _), shared in by_disk.items():
        if len(shared) > 1:
            yield warn(
                "disk",
                node,
                f"{', '.join(folder.path for folder in shared[:NAMES_MAX])} are on one disk",
                "they fill, slow down and die together; more folders on one disk bring nothing",
                "one folder for each disk in data_dirs",
            )
