"""Measure what one chunk server costs that holds many replicas: its start, its memory, its idle load, its full report.

Owns: a data directory full of small sealed replicas, and a real master and chunk server process over it. Refuses to
know: anything but files, processes and logs.
Usage: python bench/chunk_server_scale.py [replicas] [bytes of each] [volumes | files]
Replicas lie in volumes, as small ones do, or in a file each, as large ones do.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfs.checksum import block_checksums, combine_blocks
from dfs.chunk.disk import FOLDER_COUNT
from dfs.chunk.layout import encode_tail
from dfs.chunk.store import FileStore
from dfs.ids import ChunkHandle, id_text, new_chunk_handle
from dfs.net.messages import REPORT_PAGE_MAX
from dfs.testing.cluster import ClusterUnderTest, wait_until
from dfs.testing.replicas import put

IDLE_S = 20.0  # of the measurement of the idle load
WAIT_S = 120.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def fill(disk: Path, count: int, data: bytes, kind: str) -> list[ChunkHandle]:
    """Write `count` sealed replicas of `data` into a data directory that no server uses now; return their handles."""
    return fill_volumes(disk, count, data) if kind == "volumes" else fill_files(disk, count, data)


def fill_volumes(disk: Path, count: int, data: bytes) -> list[ChunkHandle]:
    """Store them as a chunk server does, but for the syncs."""
    store = FileStore([disk], "test", disk_reserve=0, fsync=False, volume_chunk_max=len(data))
    handles = [put(store, data, new_chunk_handle(now_ms())).handle for _ in range(count)]
    store.close()
    os.sync()
    return handles


def fill_files(disk: Path, count: int, data: bytes) -> list[ChunkHandle]:
    checksums = block_checksums(data)
    crc = combine_blocks(checksums, len(data))
    for number in range(FOLDER_COUNT):
        (disk / "chunks" / f"{number:02x}").mkdir(parents=True, exist_ok=True)
    handles = [new_chunk_handle(now_ms()) for _ in range(count)]
    for handle in handles:
        name = id_text(handle)
        (disk / "chunks" / name[:2] / name).write_bytes(data + encode_tail(handle, len(data), crc, checksums))
    return handles


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def resident(pid: int) -> int:
    """Return the resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def cpu_s(pid: int) -> float:
    """Return the processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def measure_store(disk: Path, count: int) -> None:
    """Measure opening the store alone, in this process."""
    before, began_s, began_cpu_s = resident(os.getpid()), time.perf_counter(), time.process_time()
    store = FileStore([disk], "test", disk_reserve=0)
    lasted_s, used_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    held = len(store.handles())
    grown = resident(os.getpid()) - before
    store.close()
    if held != count:
        raise SystemExit(f"{count} replicas were written, {held} were found")
    print(f"store opened with {count:,} replicas: {lasted_s:.2f} s ({used_s:.2f} s of processor)")
    print(f"store: {grown / count:.0f} resident bytes per replica")


def measure_server(cluster: ClusterUnderTest, disk: Path, count: int, size: int, kind: str) -> None:
    """Measure the whole process: its start, its full report, its idle load."""
    with cluster:
        pids = cluster.local.pids()
        empty_size = resident(pids["c1"])
        cluster.stop("c1")
        began_s = time.perf_counter()
        fill(disk, count, os.urandom(size), kind)
        print(f"{count:,} replicas of {size:,} bytes written into {kind} in {time.perf_counter() - began_s:.1f} s")
        measure_store(disk, count)
        began_s = time.perf_counter()
        cluster.start("c1")
        reported = re.compile(rf"reported .*replicas={count}\b")
        wait_until(lambda: "store_opened" in _life(cluster), WAIT_S, "the store is open")
        print(f"process up and serving: {time.perf_counter() - began_s:.2f} s")
        wait_until(lambda: reported.search(_life(cluster)) is not None, WAIT_S, "the full report is through")
        pages = -(-count // REPORT_PAGE_MAX)
        print(f"{pages} pages of the full report acknowledged: {time.perf_counter() - began_s:.2f} s after the start")
        pid = cluster.local.pids()["c1"]
        print(f"process: {(resident(pid) - empty_size) / count:.0f} resident bytes per replica")
        began_s, began_cpu_s = time.perf_counter(), cpu_s(pid)
        time.sleep(IDLE_S)
        share = (cpu_s(pid) - began_cpu_s) / (time.perf_counter() - began_s)
        print(f"idle: {share:.2%} of a core, a heartbeat each {cluster.config.heartbeat_interval_s:g} s")


def _life(cluster: ClusterUnderTest) -> str:
    """Return what the present life of the chunk server has logged."""
    return cluster.log_of("c1").rpartition("stopped")[2]


def read_words() -> tuple[int, int, str]:
    """Return what the command line asks for: how many replicas, the bytes of each, and where they lie."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    kind = sys.argv[3] if len(sys.argv) > 3 else "volumes"
    if kind not in ("volumes", "files"):
        raise SystemExit(f"{kind}: replicas lie in volumes or in files")
    return count, size, kind


def main() -> None:
    count, size, kind = read_words()
    with tempfile.TemporaryDirectory(prefix="dfs-bench-") as folder:
        settings = {"heartbeat_interval": "1 s", "dead_after": "10 s", "repair_after": "60 s", "scrub_period": "0 s"}
        cluster = ClusterUnderTest(Path(folder), masters=1, chunk_servers=1, settings=settings)
        (disk,) = cluster.config.chunk_server("c1").data_dirs
        measure_server(cluster, disk, count, size, kind)


if __name__ == "__main__":
    main()
