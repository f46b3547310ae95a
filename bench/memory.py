"""Measure what memory large transfers need: of a chunk server that many read from at once, and of a client.

Owns: the load, the measuring and the printed table. Refuses to know: why a figure is what it is.

`python -m bench.memory` puts one file on one chunk server, reads it with 64 clients at the same time over the network,
and then moves a larger file with one client. The source is a hole: only the chunk server's copy takes space. Figures
are the kernel's high-water marks (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.demo import PRODUCTION, roomy_folder
from dfs.client import ClusterAccess, DfsClient, ReadRules
from dfs.config import MIB, load_config
from dfs.testing.cluster import ClusterUnderTest
from dfs.testing.memory_use import peak_size

SERVER_MAX = 300 * MIB
CLIENT_MAX = 64 * MIB  # over the interpreter with the library in it
PROCESSES = 8  # that the streams are spread over: one interpreter would not keep up


def stream_all(config_path: str, streams: int, size: int) -> None:
    """Read the file `streams` times at once in this process; each by a client and a connection of its own."""
    access = ClusterAccess.from_config(load_config(Path(config_path)))

    def read(_number: int) -> int:
        with DfsClient(access, timeout_s=120, parallel=1, reads=ReadRules(local=False, hedged=False)) as client:
            return sum(len(piece) for piece in client.read("/shared"))

    with ThreadPoolExecutor(streams) as executor:
        if {*executor.map(read, range(streams))} != {size}:
            raise SystemExit("FAILED: a stream did not bring the whole file")


def transfer(cluster: ClusterUnderTest, work: str, mib: int, local: Path, *options: str) -> tuple[int, int, float]:
    """Do one transfer in a process of its own; return its idle and its highest memory, and the seconds it took."""
    command = [sys.executable, "-P", "-m", "dfs.testing.memory_use", str(cluster.config_path)]
    begun = time.perf_counter()
    done = subprocess.run([*command, work, "/large", str(local), str(mib), *options], capture_output=True, check=True)
    sizes = json.loads(done.stdout)
    return sizes["idle"], sizes["peak"], time.perf_counter() - begun


def serve_many(cluster: ClusterUnderTest, streams: int, mib: int) -> None:
    pid = cluster.local.pids()["c1"]
    idle, begun = peak_size(pid), time.perf_counter()
    arguments = f"{str(cluster.config_path)!r}, {streams // PROCESSES}, {mib * MIB}"
    script = f"from bench.memory import stream_all; stream_all({arguments})"
    children = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(PROCESSES)]
    if any(child.wait() for child in children):
        raise SystemExit("FAILED: a reader ended with an error")
    taken, peak = time.perf_counter() - begun, peak_size(pid)
    print(
        f"chunk server, {streams} streams of {mib} MiB: {idle / MIB:.0f} MiB before, {peak / MIB:.0f} MiB at most "
        f"(aim < {SERVER_MAX // MIB}): {'met' if peak < SERVER_MAX else 'MISSED'}; "
        f"{streams * mib / taken:.0f} MiB/s in all"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of large transfers.")
    parser.add_argument("--streams", type=int, default=64, help="that read at once (default 64)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of each stream (default 1024)")
    parser.add_argument("--large", type=int, default=4096, metavar="MIB", help="the client's file (default 4096)")
    given = parser.parse_args()
    needed = (given.size + 2 * given.large) * MIB
    with tempfile.TemporaryDirectory(prefix="dfs-bench-", dir=roomy_folder(needed)) as name:
        folder = Path(name)
        settings = {**PRODUCTION, "replication": "1", "garbage_grace": "1 s"}
        with ClusterUnderTest(folder, masters=1, chunk_servers=1, chunk_size=64 * MIB, settings=settings) as cluster:
            source = folder / "hole"
            with source.open("wb") as file:
                file.truncate(given.size * MIB)
            with cluster.client() as client:
                client.put(source, "/shared")
            serve_many(cluster, given.streams, given.size)
            for work, options in (("put", ()), ("get", ()), ("get", ("--network",)), ("read", ("--network",))):
                local = folder / "large"
                idle, peak, taken = transfer(cluster, work, given.large, local, *options)
                more = peak - idle
                print(
                    f"client, {' '.join((work, *options))} of {given.large} MiB: {more / MIB:.0f} MiB over "
                    f"{idle / MIB:.0f} MiB when idle (aim < {CLIENT_MAX // MIB}): "
                    f"{'met' if more < CLIENT_MAX else 'MISSED'}; {given.large / taken:.0f} MiB/s"
                )
                local.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
