"""The machine below the benchmarks: what it is, and what it can do at this moment.

Owns: calibrations, settling the disk, and the facts that stand beside every figure. Refuses to know: which of them are
good enough (bench.noise). Linux: /proc.
"""

from __future__ import annotations

import fcntl
import os
import platform
import resource
import statistics
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Calibration, Machine

ROOT = Path(__file__).resolve().parent.parent
ARITHMETIC = 400_000  # additions
ARITHMETIC_TIMES = 5  # the fastest counts
FSYNCS = 15
WATCH_MIN_S = 0.2  # processor time is counted in ticks of 10 ms
_STEAL = 7  # column of /proc/stat
_IDLE = (3, 4)  # idle, waiting for a disk
_GET_FLAGS, _SET_FLAGS, _TOP_FOLDER = 0x80086601, 0x40086602, 0x00020000  # FS_IOC_*, FS_TOPDIR_FL of linux/fs.h


@dataclass(frozen=True, slots=True)
class Ticks:
    """Processor time of the whole machine since it started, in seconds, and of this process."""

    total_s: float
    busy_s: float
    stolen_s: float
    own_s: float

    @classmethod
    def now(cls, stat: str = "") -> Ticks:
        """Read /proc/stat, or the text that is given."""
        fields = (stat or Path("/proc/stat").read_text(encoding="ascii")).split("\n", 1)[0].split()[1:9]
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        idle_s = sum(ticks[column] for column in _IDLE)
        own = resource.getrusage(resource.RUSAGE_SELF)
        return cls(sum(ticks), sum(ticks) - idle_s - ticks[_STEAL], ticks[_STEAL], own.ru_utime + own.ru_stime)


class Watch:
    """Looks at the machine again and again; stolen time counts since the last look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = Ticks.now()

    def calibrate(self, group: str) -> Calibration:
        """Do the fixed pieces of work; about a third of a second."""
        before, began_s = Ticks.now(), time.perf_counter()
        arithmetic_s = min(arithmetic() for _ in range(ARITHMETIC_TIMES))
        while time.perf_counter() - began_s < WATCH_MIN_S:
            arithmetic()
        after, took_s = Ticks.now(), time.perf_counter() - began_s
        others = max(0.0, (after.busy_s - before.busy_s) - (after.own_s - before.own_s)) / took_s
        elapsed_s = after.total_s - self._last.total_s
        stolen = (after.stolen_s - self._last.stolen_s) / elapsed_s if elapsed_s else 0.0
        self._last = after
        return Calibration(group, arithmetic_s, fsync(self._folder), others, stolen, os.getloadavg()[0])


def arithmetic() -> float:
    """Return the seconds of a fixed piece of work for one processor."""
    start_s = time.perf_counter()
    total = 0
    for number in range(ARITHMETIC):
        total += number
    return time.perf_counter() - start_s


def fsync(folder: Path) -> float:
    """Return the median seconds of a small synced write to a disk."""
    path, taken = folder / "calibration", []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(FSYNCS):
            start_s = time.perf_counter()
            os.write(fd, bytes(4096))
            os.fdatasync(fd)
            taken.append(time.perf_counter() - start_s)
    finally:
        os.close(fd)
        path.unlink()
    return statistics.median(taken)


def spread(folder: Path) -> None:
    """Let folders that are made in `folder` lie far from each other on the disk, where its file system knows that.

    ext4 does not use the number of a file again for a minute after it was deleted, and looks at each such number
    whenever it makes a file in that part of the disk: right after `rm -r` of 2,000 files everybody, cp too, makes files
    20 times more slowly than in a place where nothing was deleted. What is measured is to start in such a place; a new
    name is needed each time, because the place follows from it.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        held = bytearray(struct.calcsize("@l"))
        fcntl.ioctl(fd, _GET_FLAGS, held)
        (flags,) = struct.unpack_from("@i", held)
        fcntl.ioctl(fd, _SET_FLAGS, struct.pack("@l", flags | _TOP_FOLDER))
    except OSError:
        pass  # another file system
    finally:
        os.close(fd)


def settle(folder: Path) -> None:
    """Let nothing that was written before lie on what is measured next."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.sync()
        os.fsync(fd)
    finally:
        os.close(fd)


def describe(folder: Path) -> Machine:
    """Return what runs here, and the file system that holds `folder`."""
    fields = _fields(Path("/proc/cpuinfo"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        cpu=fields.get("model name", platform.machine()),
        memory=memory,
        kernel=platform.release(),
        file_system=file_system(folder),
        python=platform.python_version(),
    )


def file_system(folder: Path, mounts: str = "") -> str:
    """Return the type of the file system that holds a folder, by the longest mount point above it."""
    place = folder.resolve()
    found, depth = "unknown", -1
    for line in (mounts or Path("/proc/mounts").read_text(encoding="utf-8")).splitlines():
        _, point, kind = line.split()[:3]
        root = Path(point.replace("\\040", " "))
        if (root == place or root in place.parents) and len(root.parts) >= depth:
            found, depth = kind, len(root.parts)
    return found


def commit() -> str:
    """Return the commit of the code that runs, "unknown" outside of a repository; changed code is said."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _fields(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found
