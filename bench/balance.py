"""Measure how a new chunk server beside a full cluster of three is filled and, afterwards, drained again.

Owns: what is measured and how it is printed. Refuses to know: how balance decides.
Usage: python -m bench.balance [--disk 512] [--fill 80] [--small 3000] [--rate 20]

Every chunk server has a file system of its own in memory (that needs root), so that its fill means something. Three of
them are filled to the given share; then the fourth is started, and balance acts by itself. What the fourth receives is
read off its file system four times a second: how even it gets, how fast, and how that compares with the cap. Then it is
decommissioned, until it is safe to power off, and is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.demo import roomy_folder
from dfs.client import DfsClient
from dfs.config import MIB
from dfs.errors import DfsError
from dfs.testing.cluster import ClusterUnderTest, wait_until

WAIT_S = 600.0
SAMPLE_S = 0.25
WINDOWS_S = (1.0, 5.0)  # over which the highest rate is looked for
SHOWN = 12  # lines of the course of it
CHUNK_SIZE = 4 * MIB
SMALL_SIZE = 8192
GOAL_SPREAD = 0.1
NEW = "c4"
SETTINGS = {
    "heartbeat_interval": "1 s",
    "dead_after": "10 s",
    "repair_after": "60 s",
    "garbage_grace": "5 s",
    "balance": "yes",
    "disk_reserve": "8 MiB",
    "scrub_period": "0 s",
    "client_timeout": "60 s",
}


@contextlib.contextmanager
def mounted(folders: list[Path], size: int) -> Iterator[None]:
    """Put a file system of `size` bytes in memory over each folder."""
    done: list[Path] = []
    try:
        for folder in folders:
            folder.mkdir(parents=True)
            command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "dfs-bench", str(folder)]
            if subprocess.run(command, check=False).returncode:
                raise SystemExit("file systems in memory cannot be mounted here; that needs root")
            done.append(folder)
        yield
    finally:
        for folder in done:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def used_size(folder: Path) -> int:
    """Return the bytes in use on a file system."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def fill(client: DfsClient, wanted: int, small_count: int) -> int:
    """Store large and small files of `wanted` bytes together; return how many chunks that makes."""
    client.make_directory("/small")
    client.make_directory("/large")

    def put(path: str, size: int) -> None:
        client.put(io.BytesIO(os.urandom(size)), path)

    large_count = max(0, wanted - small_count * SMALL_SIZE) // CHUNK_SIZE
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: put(f"/small/{number}", SMALL_SIZE), range(small_count)))
        list(threads.map(lambda number: put(f"/large/{number}", CHUNK_SIZE), range(large_count)))
    return large_count + small_count


def fills(client: DfsClient) -> dict[str, float]:
    """Return how full each server is: the share of its replicas of what it holds and can still take."""
    servers = [server for server in client.cluster_status().servers if server.state != "dead"]
    return {server.info.name: server.stored_size / max(1, server.stored_size + server.free) for server in servers}


def spread(found: dict[str, float]) -> float:
    return max(found.values()) - min(found.values())


def highest_rate(samples: list[tuple[float, int]], window_s: float) -> float:
    """Return the most bytes per second that came within any window of the samples (moment, bytes in use)."""
    best, start = 0.0, 0
    for moment_s, size in samples:
        while samples[start + 1][0] <= moment_s - window_s:
            start += 1
        begun_s, before = samples[start]
        if moment_s - begun_s >= window_s:
            best = max(best, (size - before) / (moment_s - begun_s))
    return best


def watch(client: DfsClient, disk: Path) -> tuple[list[tuple[float, int]], list[tuple[float, dict[str, float]]]]:
    """Look on until balance says that all is even and nothing is on its way any more."""
    samples: list[tuple[float, int]] = []
    course: list[tuple[float, dict[str, float]]] = []
    began_s = time.monotonic()
    while time.monotonic() - began_s < WAIT_S:
        now_s = time.monotonic() - began_s
        samples.append((now_s, used_size(disk)))
        if not course or now_s - course[-1][0] >= 1.0:
            course.append((now_s, fills(client)))
            status = client.cluster_status().healing
            is_even = status.balance.state == "even" and not status.copying_count and not status.surplus_count
            if is_even and len(course[-1][1]) == 4 and spread(course[-1][1]) <= GOAL_SPREAD:
                return samples, course
        time.sleep(SAMPLE_S)
    raise SystemExit(f"after {WAIT_S:.0f} s the fills are {course[-1][1]}")


def tell(samples: list[tuple[float, int]], course: list[tuple[float, dict[str, float]]], rate: int) -> None:
    """Print the course of it and the figures."""
    for moment_s, found in course[:: max(1, len(course) // SHOWN)] + course[-1:]:
        shown = "  ".join(f"{name} {share:6.1%}" for name, share in sorted(found.items()))
        print(f"  {moment_s:6.1f} s  {shown}  spread {spread(found):.1%}")
    moved = samples[-1][1] - samples[0][1]
    print(
        f"{NEW} received {moved / MIB:,.0f} MiB in {course[-1][0]:.1f} s; the spread is {spread(course[-1][1]):.1%} now"
    )
    for window_s in WINDOWS_S:
        highest = highest_rate(samples, window_s)
        print(f"highest rate over {window_s:g} s: {highest / MIB:.1f} MiB/s = {highest / rate:.0%} of the cap")


def drain(cluster: ClusterUnderTest, client: DfsClient) -> None:
    """Decommission the new server, wait until it may be powered off, do so, and look whether anything is missed."""
    (held,) = [server.stored_size for server in client.cluster_status().servers if server.info.name == NEW]
    began_s = time.perf_counter()
    done = cluster.run_cli("admin", "decommission", NEW, "--wait", timeout_s=WAIT_S)
    took_s = time.perf_counter() - began_s
    cluster.kill(NEW)
    said = (done.stdout + done.stderr).decode().strip().splitlines() or ["-"]
    print(f"decommission: {held / MIB:,.0f} MiB elsewhere after {took_s:.1f} s = {held / took_s / MIB:.1f} MiB/s;")
    print(f"  {said[-1]}")

    def is_dead() -> bool:
        return any(server.info.name == NEW and server.state == "dead" for server in client.cluster_status().servers)

    wait_until(is_dead, WAIT_S, f"{NEW} is dead", interval_s=0.5)
    done = cluster.run_cli("fsck", "/")
    print(f"{NEW} killed; fsck: " + (done.stdout.decode().strip().splitlines() or ["-"])[-1])
    removed = cluster.run_cli("admin", "remove", NEW)
    print(f"dfs admin remove {NEW}: exit code {removed.returncode}")


def measure(options: argparse.Namespace, folder: Path) -> None:
    settings = {**SETTINGS, "chunk_size": f"{CHUNK_SIZE} B", "balance_rate": f"{options.rate} MiB/s"}
    cluster = ClusterUnderTest(folder, chunk_servers=4, settings=settings)
    disks = {name: cluster.config.chunk_server(name).data_dirs[0] for name in ("c1", "c2", "c3", "c4")}
    with mounted(list(disks.values()), options.disk * MIB), cluster, cluster.client(timeout_s=60) as client:
        cluster.stop(NEW)
        removed = None

        def is_removed() -> bool:
            nonlocal removed
            removed = cluster.run_cli("admin", "remove", NEW)
            return removed.returncode == 0

        wait_until(is_removed, WAIT_S, f"{NEW} is dead and forgotten", interval_s=1.0)
        for entry in disks[NEW].iterdir():
            subprocess.run(["rm", "-rf", str(entry)], check=True)
        began_s = time.perf_counter()
        count = fill(client, round(options.disk * MIB * options.fill / 100), options.small)
        print(f"{count:,} chunks stored in {time.perf_counter() - began_s:.1f} s; fills: ", end="")
        print("  ".join(f"{name} {share:.1%}" for name, share in sorted(fills(client).items())), flush=True)
        cluster.start(NEW)
        samples, course = watch(client, disks[NEW])
        tell(samples, course, options.rate * MIB)
        drain(cluster, client)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", type=int, default=512, help="MiB of each server's file system, in memory")
    parser.add_argument("--fill", type=float, default=80, help="percent of it that three servers hold before")
    parser.add_argument("--small", type=int, default=3000, help=f"small files among it, {SMALL_SIZE} bytes each")
    parser.add_argument("--rate", type=int, default=20, help="balance_rate, MiB per second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dfs-bench-", dir=roomy_folder(1 << 30)) as folder:
        try:
            measure(options, Path(folder))
        except DfsError as error:
            raise SystemExit(error.message) from None
    return 0


if __name__ == "__main__":
    sys.exit(main())
