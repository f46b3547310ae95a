"""Measure how a cluster heals after kill -9 of one of four chunk servers, beside a parallel cp of the same bytes.

Owns: what is measured and how it is printed. Refuses to know: why a figure is what it is.
Usage: python -m bench.repair [--chunks 50] [--chunk-size 20] [--files 2000] [--file-size 4096] [--second]

`cp`: as many cp processes as servers remain write what the dead server held (a file per chunk) and sync it once, in the
same run, before and after. Round 1 kills a server and leaves the others alone. Then it returns, and what became surplus
goes. Round 2 kills another one while a client reads without pause. With --second there is a round 3, with five servers:
one dies, a further one in the midst of its repair; the order of the copies is shown, and all is read back.

10 GiB in 500 chunks and 5,000 files: --chunks 500 --files 5000 --second. That takes 50 GiB of disk for some minutes.
A fast repair has the chunks that a late server holds copied before that server is dead; --rate 40 shows the order.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import io
import itertools
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.demo import roomy_folder
from dfs.client import DfsClient
from dfs.config import MIB
from dfs.errors import DfsError
from dfs.testing.cluster import ClusterUnderTest, wait_until

WAIT_S = 600.0
CALM_S = 10.0  # of reading before the kill
SECOND_AFTER_S = 5.6  # after the first kill: its copies have begun
ORDER_SHOWN = 12  # runs of copies of one kind
SPACE_FACTOR = 5  # of the bytes stored: the source, three replicas, and one more of most while a server is away
REST = 3  # chunk servers that remain of four
SETTINGS = {
    "heartbeat_interval": "1 s",
    "dead_after": "4 s",
    "repair_after": "5 s",
    "garbage_grace": "1 s",
    "scrub_period": "0 s",
    "client_timeout": "60 s",
}
_COPIED = re.compile(r"^(\S+) .* chunk_copied .*\burgent=(\w+)", re.MULTILINE)
_MOMENT = re.compile(r"^(\S+) \S+ \S+ \S+ (repair_begins|repair_done)\b", re.MULTILINE)


@dataclass
class Reader:
    """A foreground client that reads files in random order and compares every byte."""

    client: DfsClient
    digests: dict[str, bytes]
    reads: list[tuple[float, float, int]] = field(default_factory=list)  # wall-clock end, seconds, bytes
    failures: list[str] = field(default_factory=list)

    def read_until(self, stop: threading.Event) -> None:
        """Read until `stop`."""
        paths = sorted(self.digests)
        rng = random.Random(3)
        while not stop.is_set():
            path = rng.choice(paths)
            asked_s = time.perf_counter()
            digest, size = hashlib.sha256(), 0
            try:
                for piece in self.client.read(path):
                    digest.update(piece)
                    size += len(piece)
            except DfsError as error:
                self.failures.append(f"{path}: {error.message}")
                continue
            if digest.digest() != self.digests[path]:
                self.failures.append(f"{path}: wrong bytes")
            self.reads.append((time.time(), time.perf_counter() - asked_s, size))

    def between(self, begun_s: float, ended_s: float) -> tuple[float, list[float]]:
        """Return bytes per second and the latencies of the reads that ended within an interval."""
        found = [(took_s, size) for moment_s, took_s, size in self.reads if begun_s <= moment_s <= ended_s]
        return sum(size for _, size in found) / (ended_s - begun_s), [took_s for took_s, _ in found] or [0.0]

    def check_all(self) -> None:
        """Read everything once."""
        for path, digest in self.digests.items():
            if hashlib.sha256(b"".join(self.client.read(path))).digest() != digest:
                self.failures.append(f"{path}: wrong bytes")
        print(f"all {len(self.digests):,} files read back; {len(self.failures)} wrong")


def write_source(folder: Path, options: argparse.Namespace) -> dict[str, bytes]:
    """Write the files to store; return their digests by name."""
    digests: dict[str, bytes] = {}
    sizes = [("large", options.chunks, options.chunk_size * MIB), ("small", options.files, options.file_size)]
    for kind, count, size in sizes:
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            data = os.urandom(size)
            digests[f"/{kind}/{number}"] = hashlib.sha256(data).digest()
            (folder / kind / str(number)).write_bytes(data)
    return digests


def copy_seconds(source: Path, target: Path, share: float) -> float:
    """Copy this share of the source by parallel cp processes and sync; return the seconds."""
    names: list[Path] = []
    for kind in ("large", "small"):
        found = sorted((source / kind).iterdir())
        names += found[: round(len(found) * share)]
    target.mkdir()
    began_s = time.perf_counter()

    def copy(number: int) -> None:
        own = target / str(number)
        own.mkdir()
        part = b"\0".join(os.fsencode(name) for name in names[number::REST])
        subprocess.run(["xargs", "-0", "cp", "--backup=numbered", "-t", str(own)], input=part, check=True)

    with ThreadPoolExecutor(REST) as threads:
        list(threads.map(copy, range(REST)))
    subprocess.run(["sync", "-f", str(target)], check=True)
    took_s = time.perf_counter() - began_s
    subprocess.run(["rm", "-rf", str(target)], check=True)
    return took_s


def put_one(client: DfsClient, path: Path) -> None:
    client.put(io.BytesIO(path.read_bytes()), f"/small/{path.name}")


def settle() -> None:
    """Let no earlier writing lie on what is measured next."""
    os.sync()


def is_calm(client: DfsClient) -> bool:
    """Whether every chunk has exactly its goal of live replicas, and nothing waits."""
    status = client.cluster_status()
    healing = status.healing
    at_work = sum(healing.waiting) + healing.deferred_count + healing.copying_count + healing.surplus_count
    stored = sum(server.stored_size for server in status.servers if server.state != "dead")
    return (
        healing.is_surveyed
        and not at_work
        and status.space.under_replicated_live == 0
        and stored == 3 * status.space.live_size
    )


def moments(cluster: ClusterUnderTest) -> list[tuple[float, str]]:
    """Return when repairs began and ended, from the logs of all masters, oldest first."""
    found = []
    for name in ("m1", "m2", "m3"):
        for stamp, event in _MOMENT.findall(cluster.log_of(name)):
            found.append((dt.datetime.fromisoformat(stamp).timestamp(), event))
    return sorted(found)


def repair_moments(cluster: ClusterUnderTest, client: DfsClient, victim: str) -> tuple[float, float]:
    """Kill a chunk server, wait until every chunk has its goal again; return when copying began and ended."""
    known = len(moments(cluster))
    killed_s = time.time()
    cluster.kill(victim)

    def is_done() -> bool:
        events = moments(cluster)[known:]
        return bool(events) and events[-1][1] == "repair_done" and is_calm(client)

    wait_until(is_done, WAIT_S, f"all that {victim} held is replicated again", interval_s=0.5)
    events = moments(cluster)[known:]
    begun_s, ended_s = events[0][0], events[-1][0]
    print(
        f"  {victim}: killed, copying began after {begun_s - killed_s:.1f} s and took {ended_s - begun_s:.1f} s",
        flush=True,
    )
    return begun_s, ended_s


def held_by(cluster: ClusterUnderTest, client: DfsClient, name: str) -> tuple[int, int]:
    """Return the bytes and the chunks that a server holds."""
    (server,) = [server for server in client.cluster_status().servers if server.info.name == name]
    return server.stored_size, len(cluster.replicas(name))


def percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def come_back(cluster: ClusterUnderTest, client: DfsClient, name: str) -> None:
    """Start a server that was killed, and wait until nothing is surplus any more."""
    cluster.start(name)
    cluster.wait_healthy(WAIT_S)
    began_s = time.perf_counter()
    wait_until(lambda: is_calm(client), WAIT_S, f"what {name} brought back is trimmed", interval_s=0.5)
    print(f"{name} returned; its surplus was gone after {time.perf_counter() - began_s:.1f} s", flush=True)


def first_round(cluster: ClusterUnderTest, client: DfsClient, source: Path, total: int) -> None:
    size, count = held_by(cluster, client, "c1")
    settle()
    cp_s = copy_seconds(source, cluster.folder / "copied", size / total)
    settle()
    begun_s, ended_s = repair_moments(cluster, client, "c1")
    took_s = ended_s - begun_s
    come_back(cluster, client, "c1")  # now, for the room that it takes
    settle()
    again_s = copy_seconds(source, cluster.folder / "copied", size / total)
    cp_rate = size / statistics.mean((cp_s, again_s)) / MIB
    rate = size / took_s / MIB
    print(f"c1 held {size / MIB:,.0f} MiB in {count:,} chunks")
    print(f"parallel cp, synced: {cp_rate:.0f} MiB/s ({cp_s:.1f} s before, {again_s:.1f} s after the repair)")
    print(f"repair without load: {rate:.0f} MiB/s, {count / took_s:.0f} chunks/s = {percent(rate, cp_rate)} of cp")


def second_round(cluster: ClusterUnderTest, client: DfsClient, reader: Reader) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=reader.read_until, args=(stop,))
    calm_from_s = time.time()
    thread.start()
    try:
        time.sleep(CALM_S)
        calm_until_s = time.time()
        size, _ = held_by(cluster, client, "c2")
        begun_s, ended_s = repair_moments(cluster, client, "c2")
    finally:
        stop.set()
        thread.join()
    calm_rate, calm = reader.between(calm_from_s, calm_until_s)
    busy_rate, busy = reader.between(begun_s, ended_s)
    print(f"repair under load: {size / (ended_s - begun_s) / MIB:.0f} MiB/s")
    print(
        f"foreground gets: {calm_rate / MIB:.0f} MiB/s when all was calm, {busy_rate / MIB:.0f} MiB/s during the repair"
        f" = {percent(busy_rate, calm_rate)}; median {statistics.median(calm) * 1000:.1f} ms, then"
        f" {statistics.median(busy) * 1000:.1f} ms, slowest {max(took_s for _, took_s, _ in reader.reads):.1f} s;"
        f" {len(reader.failures)} failed of {len(reader.reads):,}"
    )
    for failure in reader.failures[:5]:
        print(f"  {failure}")


def third_round(cluster: ClusterUnderTest, client: DfsClient, reader: Reader) -> None:
    """Let a server die in the midst of the repair of another one; tell the order of the copies, and read all back."""
    cluster.start("c5")
    come_back(cluster, client, "c2")
    holders = ("c1", "c2", "c3", "c4", "c5")
    wait_until(  # or what is surplus, and not deleted yet, is used again in place of copies
        lambda: sum(len(cluster.replicas(name)) for name in holders) == 3 * len(reader.digests),
        WAIT_S,
        "no server holds a replica that is not needed",
        interval_s=0.5,
    )
    settle()
    names = ("c1", "c4", "c5")
    known = {name: len(cluster.log_of(name)) for name in names}
    second = threading.Timer(SECOND_AFTER_S, lambda: cluster.kill("c3"))
    second.start()
    repair_moments(cluster, client, "c2")
    second.join()

    def is_over() -> bool:
        dead = {server.info.name for server in client.cluster_status().servers if server.state == "dead"}
        return dead == {"c2", "c3"} and is_calm(client)

    wait_until(is_over, WAIT_S, "all that c3 held is replicated again", interval_s=0.5)
    print(f"  c3: killed {SECOND_AFTER_S} s after c2")
    tell_order({name: _COPIED.findall(cluster.log_of(name)[known[name] :]) for name in names})
    reader.check_all()


def tell_order(copies: dict[str, list[tuple[str, str]]]) -> None:
    """Print in which order each server ended its copies: those of chunks with one replica left are urgent."""
    for name, found in copies.items():
        runs = [(kind, sum(1 for _ in run)) for kind, run in itertools.groupby(kind.lower() for _, kind in found)]
        told = [f"{count} {'urgent' if kind == 'true' else 'ordinary'}" for kind, count in runs]
        print(f"  {name} copied: " + ", ".join(told[:ORDER_SHOWN]) + (", …" if len(told) > ORDER_SHOWN else ""))
    ended = sorted(itertools.chain.from_iterable(copies.values()))
    merged = [kind.lower() == "true" for _, kind in ended]
    if True not in merged:
        print("  no chunk was ever down to one replica")
        return
    first, last = merged.index(True), len(merged) - merged[::-1].index(True)
    print(
        f"  of all copies {first:,} ended before the first urgent one, {merged[first:last].count(False):,} ordinary"
        f" ones between it and the last of {merged.count(True):,} urgent ones, {len(merged) - last:,} afterwards"
    )
    begun_s, urgent_s, ended_s = (
        dt.datetime.fromisoformat(ended[index][0]).timestamp() for index in (first, last - 1, -1)
    )
    print(f"  after the first urgent one the last one ended {urgent_s - begun_s:.1f} s later, the last of all ", end="")
    print(f"{ended_s - begun_s:.1f} s later")


def store(cluster: ClusterUnderTest, client: DfsClient, source: Path) -> None:
    done = cluster.run_cli("put", "-r", str(source / "large"), "/large", timeout_s=WAIT_S)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    client.make_directory("/small")
    with ThreadPoolExecutor(8) as threads:  # one by one: a chunk for each, which is the hard case
        list(threads.map(lambda path: put_one(client, path), sorted((source / "small").iterdir())))


def measure(options: argparse.Namespace, folder: Path) -> int:
    source = folder / "source"
    digests = write_source(source, options)
    total = options.chunks * options.chunk_size * MIB + options.files * options.file_size
    settings = {**SETTINGS, "chunk_size": f"{options.chunk_size} MiB", "repair_rate": f"{options.rate} MiB/s"}
    with (
        ClusterUnderTest(folder, chunk_servers=5 if options.second else 4, settings=settings) as cluster,
        cluster.client(timeout_s=60) as client,
        cluster.client(timeout_s=60) as own,
    ):
        if options.second:
            cluster.stop("c5")
        began_s = time.perf_counter()
        store(cluster, client, source)
        took_s = time.perf_counter() - began_s
        print(f"{total / MIB:,.0f} MiB in {options.chunks} + {options.files} files stored in {took_s:.1f} s")
        first_round(cluster, client, source, total)
        shutil.rmtree(source)
        reader = Reader(own, digests)
        second_round(cluster, client, reader)
        if options.second:
            third_round(cluster, client, reader)
        done = cluster.run_cli("fsck", "/")
        print("fsck: " + (done.stdout.decode().strip().splitlines() or ["-"])[-1])
        return 1 if reader.failures or done.returncode else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=50, help="files of one whole chunk each")
    parser.add_argument("--chunk-size", type=int, default=20, help="MiB")
    parser.add_argument("--files", type=int, default=2000, help="small files")
    parser.add_argument("--file-size", type=int, default=4096, help="bytes of each")
    parser.add_argument("--rate", type=int, default=0, help="repair_rate, MiB per second; 0: the knob is off")
    parser.add_argument("--second", action="store_true", help="let another server die during a third repair")
    options = parser.parse_args()
    needed = SPACE_FACTOR * (options.chunks * options.chunk_size * MIB + options.files * options.file_size)
    with tempfile.TemporaryDirectory(prefix="dfs-bench-", dir=roomy_folder(needed)) as folder:
        return measure(options, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
