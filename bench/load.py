"""200 clients at once for minutes: does any call fail that should not, and does any daemon grow?

Run `python -m bench.load [--clients 200] [--minutes 10] [--json FILE]`. A fresh local cluster of three masters and four
chunk servers; the clients live in a few processes of their own. The exit code is 1 when a call ended with another
error than the documented "try again later" of an overloaded node, or when a daemon's memory was not flat.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean

from dfs.client import ClusterAccess, DfsClient
from dfs.errors import DfsError, Overloaded
from dfs.testing.cluster import ClusterUnderTest

PROCESSES = 4  # the clients share them: one Python process alone would be the bottleneck
CALL_TIMEOUT_S = 60.0
SIZE_MAX = 16_000  # bytes of a file
FILES_MAX = 20  # that a client has at a time
LOGS = 20  # shared by all clients
LOG_MINUTES = 1.0  # after so long a log goes on under another name, and the one before it is deleted
SAMPLE_S = 2.0
CHECKPOINT_EVERY_S = 30.0  # or what the log holds until one is due (64 MiB) would look like growth
SHOWN = 12  # samples of a daemon's memory that are printed
WARM_UP = 0.5  # share of a run that does not count: until pools of buffers have seen the most that are wanted at once,
# the log behind a checkpoint (8 MiB) and a leader's memory of changes are full, and files are deleted as fast as made
GROWTH_MAX = 1.10  # of the mean of the last third over that of the first, and:
GROWTH_FLOOR_MIB = 8.0  # what is always allowed: caches that were not full
MIB = 1 << 20
PERCENTILES = (0.5, 0.99, 1.0)
DOCUMENTED = frozenset({Overloaded.code})
SETTINGS = {"garbage_grace": "20 s", "client_timeout": "60 s"}  # garbage must come to its end within the run


@dataclass
class Record:
    """What the clients of one process did."""

    durations_s: dict[str, list[float]] = field(default_factory=dict)  # by call; of those that succeeded
    errors: Counter[str] = field(default_factory=Counter)  # "call: code"
    words: dict[str, str] = field(default_factory=dict)  # an example for each of them


class LoadClient:
    """One client: small files in a directory of its own, records into logs of all."""

    def __init__(self, number: int, client: DfsClient, record: Record, lock: threading.Lock) -> None:
        self._rng = random.Random(number)
        self._client, self._record, self._lock = client, record, lock
        self._number, self._folder, self._folders = number, "", 0
        self._files: dict[str, bytes] = {}
        self._count = 0
        self._calls: dict[str, tuple[int, Callable[[], object]]] = {
            "put": (3, self._put),
            "get": (4, self._get),
            "list": (1, self._list),
            "rename": (1, self._rename),
            "delete": (2, self._delete),
            "append": (2, self._append),
        }
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Go on in an empty directory: what is in it is known then."""
        self._folders += 1
        folder = f"/load/{self._number}.{self._folders}"
        self._client.make_directory(folder)
        self._folder, self._files = folder, {}

    def step(self) -> None:
        """Make one call and note how it ended."""
        names = list(self._calls)
        (name,) = self._rng.choices(names, [self._calls[name][0] for name in names])
        if not self._files or (name == "delete" and len(self._files) < FILES_MAX // 2):
            name = "put"
        elif name == "put" and len(self._files) >= FILES_MAX:
            name = "delete"
        begun_s = time.perf_counter()
        try:
            self._calls[name][1]()
        except DfsError as error:
            with self._lock:
                self._record.errors[f"{name}: {error.code}"] += 1
                self._record.words.setdefault(f"{name}: {error.code}", error.message)
            if error.may_have_happened:
                self._begin_anew()
        else:
            with self._lock:
                self._record.durations_s.setdefault(name, []).append(time.perf_counter() - begun_s)

    def _put(self) -> None:
        self._count += 1
        path = f"{self._folder}/{self._count}"
        content = self._rng.randbytes(self._rng.randint(1, SIZE_MAX))
        self._client.put(io.BytesIO(content), path)
        self._files[path] = content

    def _get(self) -> None:
        path = self._rng.choice(list(self._files))
        if b"".join(self._client.read(path)) != self._files[path]:
            raise AssertionError(f"{path} has other bytes than were put")

    def _list(self) -> None:
        found = {entry.path for entry in self._client.list(self._folder)}
        if found != {path.rpartition("/")[2] for path in self._files}:
            raise AssertionError(f"{self._folder} lists {sorted(found)}, it should have {sorted(self._files)}")

    def _rename(self) -> None:
        self._count += 1
        path = self._rng.choice(list(self._files))
        target = f"{self._folder}/{self._count}"
        self._client.rename(path, target)
        self._files[target] = self._files.pop(path)

    def _delete(self) -> None:
        path = self._rng.choice(list(self._files))
        self._client.delete(path, skip_trash=True)
        del self._files[path]

    def _append(self) -> None:
        generation = int(time.monotonic() / (60 * LOG_MINUTES))
        path = f"/load/log{self._rng.randrange(LOGS)}.{generation}"
        self._client.append_record(path, self._rng.randbytes(self._rng.randint(1, 2_000)))


def run_clients(access: ClusterAccess, numbers: Sequence[int], until_s: float, pipe: Connection) -> None:
    """Be one process of clients; send what they did, or the traceback's words when one met a bug."""
    record, lock = Record(), threading.Lock()
    crashes: list[str] = []

    def live(number: int) -> None:
        try:
            with DfsClient(access, timeout_s=CALL_TIMEOUT_S) as client:
                load = LoadClient(number, client, record, lock)
                while time.monotonic() < until_s and not crashes:
                    load.step()
        except Exception as error:  # noqa: BLE001 - a thread root: the main process must hear of it
            crashes.append(f"client {number}: {error!r}")

    threads = [threading.Thread(target=live, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send((record, crashes))


def sweep_logs(client: DfsClient) -> None:
    """Delete the logs that nobody writes to any more."""
    present = int(time.monotonic() / (60 * LOG_MINUTES))
    for entry in list(client.list("/load")):
        name, _, generation = entry.path.partition(".")
        if name.startswith("log") and generation and int(generation) < present - 1:
            client.delete(f"/load/{entry.path}", skip_trash=True)


def sweep_noting(client: DfsClient, record: Record) -> None:
    """Delete old logs, and note an error as one of a client's."""
    try:
        sweep_logs(client)
    except DfsError as error:
        record.errors[f"sweep: {error.code}"] += 1
        record.words.setdefault(f"sweep: {error.code}", error.message)


def resident_mib(pid: int) -> float:
    """Return the memory that a process has in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


@dataclass
class Report:
    """The figures of a run."""

    clients: int
    minutes: float
    calls: dict[str, dict[str, float]]
    errors: dict[str, int]
    words: dict[str, str]
    crashes: list[str]
    memory_mib: dict[str, dict[str, float]]  # by daemon: first third and last third after the warm-up, most
    samples_mib: dict[str, list[float]]  # by daemon, every SAMPLE_S or a bit more

    @property
    def unexpected(self) -> list[str]:
        return [name for name in self.errors if name.partition(": ")[2] not in DOCUMENTED]

    @property
    def grown(self) -> list[str]:
        return [
            name
            for name, memory in self.memory_mib.items()
            if memory["last"] > max(memory["first"] * GROWTH_MAX, memory["first"] + GROWTH_FLOOR_MIB)
        ]

    @property
    def verdict(self) -> str:
        """GOOD, or BAD and why."""
        why = [*self.crashes, *(f"unexpected error: {name}" for name in self.unexpected)]
        why += [f"the memory of {name} was not flat" for name in self.grown]
        why += [] if self.calls else ["no call succeeded"]
        return f"BAD: {'; '.join(why)}" if why else "GOOD"

    @property
    def is_good(self) -> bool:
        return self.verdict == "GOOD"

    def text(self) -> str:
        total = sum(int(call["count"]) for call in self.calls.values())
        lines = [f"{self.clients} clients, {self.minutes:g} minutes: {total} calls, {total / self.minutes / 60:.0f}/s"]
        for name, call in sorted(self.calls.items()):
            lines.append(
                f"  {name:<8} {call['count']:>8.0f}   p50 {call['p50_ms']:7.1f} ms   p99 {call['p99_ms']:8.1f} ms   "
                f"max {call['p100_ms']:8.1f} ms"
            )
        lines += [f"  {count} times {name}: {self.words[name]}" for name, count in sorted(self.errors.items())]
        lines += [f"  CRASHED {words}" for words in self.crashes]
        for name, memory in self.memory_mib.items():
            change = 100 * (memory["last"] / memory["first"] - 1)
            lines.append(
                f"  {name}   {memory['first']:6.1f} MiB in the first third, {memory['last']:6.1f} in the last "
                f"({change:+.1f} %), most {memory['most']:6.1f}"
            )
        for name, values in self.samples_mib.items():
            shown = [values[place * (len(values) - 1) // (SHOWN - 1)] for place in range(SHOWN)] if values else []
            lines.append(f"  {name}   over time, MiB: {' '.join(f'{value:.0f}' for value in shown)}")
        lines.append(f"  unexpected errors: {self.unexpected or 'none'}; grown: {self.grown or 'none'}")
        lines.append(f"verdict: {self.verdict}")
        return "\n".join(lines)


def summary(
    samples: Mapping[str, Sequence[float]], records: Sequence[Record]
) -> tuple[dict[str, dict[str, float]], ...]:
    """Return the figures of all calls, and of the memory of all daemons."""
    calls: dict[str, dict[str, float]] = {}
    for name in sorted({name for record in records for name in record.durations_s}):
        ordered = sorted(took_s for record in records for took_s in record.durations_s.get(name, ()))
        calls[name] = {"count": len(ordered)}
        for share in PERCENTILES:
            at = min(len(ordered) - 1, int(share * len(ordered)))
            calls[name][f"p{100 * share:.0f}_ms"] = round(1000 * ordered[at], 2)
    memory = {}
    for name, all_values in samples.items():
        values = all_values[int(len(all_values) * WARM_UP) :]
        third = max(1, len(values) // 3)
        first, last = mean(values[:third]), mean(values[-third:])
        memory[name] = {"first": round(first, 1), "last": round(last, 1), "most": round(max(values), 1)}
    return calls, memory


def write_checkpoints(client: DfsClient, record: Record) -> None:
    """Have each master drop what its log keeps in memory until 64 MiB or 200,000 entries make a checkpoint due."""
    try:
        for master in client.admin.masters():
            client.admin.write_checkpoint(master.address)
    except DfsError as error:
        record.errors[f"checkpoint: {error.code}"] += 1
        record.words[f"checkpoint: {error.code}"] = error.message


def measure(clients: int, minutes: float) -> Report:
    """Run it against a fresh cluster."""
    with ClusterUnderTest(settings=SETTINGS) as cluster, cluster.client() as client:
        client.make_directory("/load")
        swept = Record()
        until_s = time.monotonic() + 60 * minutes
        context = multiprocessing.get_context("spawn")
        workers = []
        for place in range(PROCESSES):
            ours, theirs = context.Pipe(duplex=False)
            numbers = range(place, clients, PROCESSES)
            arguments = (cluster.access, numbers, until_s, theirs)
            process = context.Process(target=run_clients, args=arguments, daemon=True)
            process.start()
            theirs.close()
            workers.append((process, ours))
        samples: dict[str, list[float]] = {name: [] for name in cluster.names()}
        checkpoint_s = time.monotonic()
        while time.monotonic() < until_s:
            if time.monotonic() >= checkpoint_s:
                checkpoint_s += CHECKPOINT_EVERY_S
                write_checkpoints(client, swept)
            for name, pid in cluster.local.pids().items():
                samples[name].append(round(resident_mib(pid), 1))
            sweep_noting(client, swept)
            time.sleep(min(SAMPLE_S, max(0.0, until_s - time.monotonic())))
        answers = [pipe.recv() for _, pipe in workers]
        for process, _ in workers:
            process.join()
        died = cluster.local.died()
    records = [swept, *(record for record, _ in answers)]
    calls, memory = summary(samples, records)
    errors = sum((record.errors for record in records), Counter[str]())
    words = {name: text for record in records for name, text in record.words.items()}
    crashes = [words for _, crashed in answers for words in crashed] + [f"{name} died" for name in died]
    return Report(clients, minutes, calls, dict(errors), words, crashes, memory, samples)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write the figures into this file, too")
    given = parser.parse_args()
    report = measure(given.clients, given.minutes)
    print(report.text())
    if given.json is not None:
        figures = {"verdict": report.verdict, **vars(report), "grown": report.grown, "unexpected": report.unexpected}
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
