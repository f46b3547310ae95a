"""Measure record append beside three local appends with fdatasync, in the same run on the same disk.

Owns: what is measured and how it is printed. Refuses to know: why a figure is what it is.

`local 1`: one file, each record written and fdatasynced, one after the other. `3x local`: three files on the same disk,
each record (or, grouped, each batch of the size that dfs uses) written to all of them and fdatasynced in parallel: what
three replicas cost without any network. Rounds are interleaved; medians are printed. The appenders are processes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.demo import PRODUCTION, roomy_folder
from dfs.client import ClusterAccess, DfsClient
from dfs.config import MIB, load_config
from dfs.testing.cluster import ClusterUnderTest

SMALL, LARGE = 4096, MIB
COPIES = 3
GROUP = MIB // SMALL  # records in one batch of dfs


def local(folder: Path, copies: int, size: int, count: int, group: int) -> float:
    """Append `count` records to each of `copies` files, synced after every `group`; return records per second."""
    data = os.urandom(size) * group
    fds = [os.open(folder / f"local{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for number in range(copies)]

    def append(fd: int) -> None:
        os.write(fd, data)
        os.fdatasync(fd)

    began_s = time.perf_counter()
    with ThreadPoolExecutor(copies) as threads:
        for _ in range(count // group):
            list(threads.map(append, fds))
    took_s = time.perf_counter() - began_s
    for fd in fds:
        os.close(fd)
    return count // group * group / took_s


def appended(config: Path, appenders: int, size: int, count: int, *, one_by_one: bool = False) -> float:
    """Append `count` records in all by so many processes; return records per second from the first to the last."""
    mode = "one" if one_by_one else "many"
    command = [
        sys.executable,
        "-m",
        "bench.append",
        "--appender",
        str(config),
        str(size),
        str(count // appenders),
        mode,
    ]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(appenders)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # it has its tail and waits
    began_s = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    codes = [process.wait() for process in processes]
    took_s = time.perf_counter() - began_s
    for process in processes:
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
    assert codes == [0] * appenders, f"appenders failed: {codes}"
    return count // appenders * appenders / took_s


def run_appender(config: Path, size: int, count: int, mode: str) -> None:
    data = os.urandom(size)
    access = ClusterAccess.from_config(load_config(config))
    with DfsClient(access, timeout_s=120) as client, client.appender("/bench") as appender:
        appender.append(data).result()
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(count):
            outcome = appender.append(data)
            if mode == "one":
                outcome.result()
        appender.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=20_000, help="small records of a measurement")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--appender", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.appender:
        config, size, count, mode = given.appender
        run_appender(Path(config), int(size), int(count), mode)
        return
    with tempfile.TemporaryDirectory(prefix="dfs-bench-", dir=roomy_folder(8 << 30)) as name:
        folder = Path(name)
        with ClusterUnderTest(folder, chunk_servers=4, chunk_size=64 * MIB, settings=PRODUCTION) as cluster:
            path, count, few = cluster.config_path, given.count, max(200, given.count // 20)
            works: dict[str, Callable[[], float]] = {
                "local 1, 4 KiB, each synced": lambda: local(folder, 1, SMALL, few, 1),
                "3x local, 4 KiB, each synced": lambda: local(folder, COPIES, SMALL, few, 1),
                "3x local, 4 KiB, synced by the MiB": lambda: local(folder, COPIES, SMALL, count, GROUP),
                "dfs, 4 KiB, 1 appender, each awaited": lambda: appended(path, 1, SMALL, few, one_by_one=True),
                "dfs, 4 KiB, 16 appenders, each awaited": lambda: appended(path, 16, SMALL, 4 * few, one_by_one=True),
                "dfs, 4 KiB, 1 appender": lambda: appended(path, 1, SMALL, count),
                "dfs, 4 KiB, 16 appenders": lambda: appended(path, 16, SMALL, count),
                "3x local, 1 MiB, each synced": lambda: local(folder, COPIES, LARGE, few // 4, 1),
                "dfs, 1 MiB, 1 appender": lambda: appended(path, 1, LARGE, few // 4),
            }
            found: dict[str, list[float]] = {key: [] for key in works}
            for _ in range(given.rounds):
                for key, work in works.items():
                    os.sync()
                    found[key].append(work())
    medians = {key: statistics.median(values) for key, values in found.items()}
    if given.json:
        print(json.dumps(medians))
        return
    for key, value in medians.items():
        spread = f"{min(found[key]):,.0f} to {max(found[key]):,.0f}"
        print(f"{key:42} {value:10,.0f} records/s   ({spread})")


if __name__ == "__main__":
    main()
