"""Look at this machine: the folders and disks of the nodes that live here, limits and memory.

Owns: how each fact is measured, within a bounded time and without leaving a trace. Refuses to know: what is good or bad
(dfs.local.machine_findings).
"""

from __future__ import annotations

import os
import resource
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dfs.config import ClusterConfig, split_address
from dfs.errors import DfsError
from dfs.local.cluster import LocalCluster
from dfs.local.machine_findings import FolderFacts, MachineFacts

SYNC_ROUNDS = 25  # synced writes of one measurement
SYNC_TIME_MAX_S = 0.5  # after which it ends with what it has
SYNC_WRITE = b"\0" * 4096
_PROC = Path("/proc")
_DEVICES = Path("/sys/dev/block")
_VIRTUAL_DISKS = ("vd", "xvd", "nbd", "rbd", "loop", "dm-", "zd")  # their names say nothing about what is below
_VIRTUAL_MAKERS = frozenset({"QEMU", "VMware", "Msft", "VBOX", "Google", "AMAZON", "Nutanix"})
_MOUNT_FIELDS_MIN = 10  # of a line in mountinfo
_TEXT_SIZE_MAX = 1 << 20  # bytes read from one file below /proc


@dataclass(frozen=True, slots=True)
class _Mount:
    file_system: str
    options: frozenset[str]


def look_at_machine(config: ClusterConfig) -> MachineFacts:
    """Return the facts of this machine that concern the nodes which `config` puts here."""
    mounts = _mounts()
    folders: list[FolderFacts] = []
    synced: dict[int, float | None] = {}  # by device: a disk is measured once
    for node, path, is_master in _local_folders(config):
        folders.append(_look_at(node, path, is_master=is_master, mounts=mounts, synced=synced))
    return MachineFacts(
        folders=tuple(folders),
        descriptors=_descriptor_limits(config),
        swap_size=_swap_size(),
        swappiness=_number(_PROC / "sys/vm/swappiness", 0),
        overcommit=_number(_PROC / "sys/vm/overcommit_memory", 0),
        has_master=any(folder.is_master for folder in folders),
    )


def is_local(address: str) -> bool:
    """Whether `host:port` is an address of this machine: only then can a socket be bound to its host."""
    host = split_address(address)[0]
    try:
        family, kind, protocol, _, name = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(name)
    except (OSError, UnicodeError):
        return False
    return True


def is_writable_by_others(folder: Path) -> bool:
    """Whether others than its owner may replace files in a folder (a sticky one, like /tmp, is safe)."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return False
    return bool(mode & 0o022) and not mode & stat.S_ISVTX


def _local_folders(config: ClusterConfig) -> Iterator[tuple[str, Path, bool]]:
    for master in config.masters:
        if is_local(master.address):
            yield master.name, master.data_dir, True
    for server in config.chunk_servers:
        if is_local(server.address):
            for path in server.data_dirs:
                yield server.name, path, False


def _look_at(
    node: str, path: Path, *, is_master: bool, mounts: dict[int, _Mount], synced: dict[int, float | None]
) -> FolderFacts:
    try:
        device = path.stat().st_dev
        space = os.statvfs(path)
    except (FileNotFoundError, NotADirectoryError):
        return FolderFacts(str(path), node, is_master, exists=False)
    except OSError as error:
        return FolderFacts(str(path), node, is_master, exists=True, error=error.strerror or str(error))
    is_writable = os.access(path, os.W_OK | os.X_OK)
    if is_writable and device not in synced:
        synced[device] = measure_sync(path)
    mount = mounts.get(device, _Mount("", frozenset()))
    return FolderFacts(
        path=str(path),
        node=node,
        is_master=is_master,
        exists=True,
        is_writable=is_writable,
        device=device,
        capacity=space.f_blocks * space.f_frsize,
        free=space.f_bavail * space.f_frsize,
        files_left=space.f_favail if space.f_files else 1 << 40,  # some file systems do not count them
        file_system=mount.file_system,
        mount_options=mount.options,
        is_spinning=_is_spinning(device),
        sync_s=synced.get(device),
    )


def measure_sync(folder: Path) -> float | None:
    """Return the median seconds of a small synced write to a file without a name; None where that cannot be made."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    times = []
    try:
        os.pwrite(fd, SYNC_WRITE * SYNC_ROUNDS, 0)
        os.fsync(fd)  # space and size are settled: what is measured is the way of the bytes
        begun_s = time.perf_counter()
        for number in range(SYNC_ROUNDS):
            start_s = time.perf_counter()
            os.pwrite(fd, os.urandom(16) + SYNC_WRITE[16:], number * len(SYNC_WRITE))
            os.fdatasync(fd)
            times.append(time.perf_counter() - start_s)
            if time.perf_counter() - begun_s > SYNC_TIME_MAX_S:
                break
    except OSError:
        return None
    finally:
        os.close(fd)
    return median(times)


def _is_spinning(device: int) -> bool | None:
    """Return whether the disk below a device turns; None when the kernel does not tell."""
    try:
        block = (_DEVICES / f"{os.major(device)}:{os.minor(device)}").resolve(strict=True)
    except OSError:
        return None
    for folder in (block, block.parent):  # a partition has its queue in its disk
        text = _text(folder / "queue" / "rotational").strip()
        if text:
            maker = _text(folder / "device" / "vendor").strip()
            is_virtual = folder.name.startswith(_VIRTUAL_DISKS) or maker in _VIRTUAL_MAKERS
            return None if is_virtual else text == "1"  # a virtual disk says that it turns, and does not
    return None


def _mounts() -> dict[int, _Mount]:
    """Return the mounted file systems by device number."""
    found: dict[int, _Mount] = {}
    for line in _text(_PROC / "self" / "mountinfo").splitlines():
        words = line.split()
        if len(words) < _MOUNT_FIELDS_MIN or "-" not in words:
            continue
        major, _, minor = words[2].partition(":")
        kind = words[words.index("-") + 1 :]
        options = frozenset(words[5].split(",")) | frozenset(kind[2].split(",") if len(kind) > 2 else ())
        if major.isdigit() and minor.isdigit():
            found[os.makedev(int(major), int(minor))] = _Mount(kind[0], options)
    return found


def _descriptor_limits(config: ClusterConfig) -> dict[str, int]:
    """Return the limit on open files of each daemon that runs here under `dfs up`, and what one started now gets."""
    limits = {"this shell": _limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1])}
    try:
        pids = LocalCluster(config).pids()
    except DfsError:
        return limits
    for name, pid in pids.items():
        for line in _text(_PROC / str(pid) / "limits").splitlines():
            if line.startswith("Max open files"):
                soft = line.split()[3]
                limits[name] = int(soft) if soft.isdigit() else _limit(resource.RLIM_INFINITY)
    return limits


def _limit(value: int) -> int:
    return 1 << 40 if value == resource.RLIM_INFINITY else value


def _swap_size() -> int:
    """Return the bytes of swap that are switched on."""
    sizes = (line.split()[2:3] for line in _text(_PROC / "swaps").splitlines()[1:])
    return sum(int(size[0]) * 1024 for size in sizes if size and size[0].isdigit())


def _number(path: Path, default: int) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else default


def _text(path: Path) -> str:
    """Return a file below /proc or /sys, nothing when it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_TEXT_SIZE_MAX)
    except OSError:
        return ""
