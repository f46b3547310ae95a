"""Measure the masters at a million files: memory, stalls, checkpoint, restart, installation, large commands, reports.

Owns: a synthetic load, and a figure for each promise about size beside its goal. Refuses to know: anything but the
public face of the state and of the checkpoint files.

A stall is told in processor time of the thread that would be the loop, so that a busy machine does not blur it; what
takes seconds is told in seconds. Run it alone all the same.
Usage: python bench/state_scale.py [files] [files per directory]
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.log import configure
from dfs.master.chunk_report import HandleColumn
from dfs.master.daemon import settle_memory
from dfs.master.healing.garbage import OrderBook, plan_garbage
from dfs.master.raft_checkpoint import (
    CheckpointFolder,
    CheckpointHead,
    CheckpointWriter,
    read_pieces,
    verify_checkpoint,
)
from dfs.master.raft_install import Installation
from dfs.master.state.commands import ChangeReplicas, PutServer, ReplicaChange, encode_command
from dfs.master.state.machine import MasterState
from dfs.net.messages import (
    COMMIT_CHUNKS_MAX,
    LIST_LIMIT_MAX,
    REPORT_PAGE_MAX,
    CommitFile,
    Copy,
    Delete,
    ErrorReply,
    MakeDirectory,
    Message,
    SetReplication,
)
from dfs.net.parts import CallId, NewChunk, NewExtent, ReplicaReport
from dfs.testing.masters import MasterTrio, PretendServer

START_MS = 1_750_000_000_000
SERVERS = 12
LENGTH_MAX = 64 * 1024 * 1024
SUBTREE = 24_000  # files of the subtree that is copied: nearly the most that may be
HEAD = CheckpointHead((b"\x01", 1, 1), (b"\x01", 2, 1))
PAGE_SERVERS, PAGES = 4, 4  # of the measured report


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def tell(what: str, figure: str, limit: str = "") -> None:
    print(f"{what:58} {figure:>34}  {limit}", flush=True)


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


class Pauses:
    """The pauses of the garbage collector, in seconds, by generation."""

    def __init__(self) -> None:
        self.longest = [0.0, 0.0, 0.0]
        self._began_s = 0.0
        gc.callbacks.append(self._heard)

    def _heard(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began_s = time.thread_time()
        else:
            generation = info["generation"]
            self.longest[generation] = max(self.longest[generation], time.thread_time() - self._began_s)

    def __str__(self) -> str:
        return " / ".join(f"{pause * 1e3:.1f}" for pause in self.longest) + " ms"


class Load:
    """A state and one client that fills it."""

    def __init__(self, server_count: int = SERVERS) -> None:
        self.rng = random.Random(1)
        self.state = MasterState()
        self.session = SessionId(self.rng.randbytes(16))
        self.servers = [ServerId(self.rng.randbytes(16)) for _ in range(server_count)]
        self.sequence = 0
        for number, server in enumerate(self.servers):
            self.state.apply(START_MS, PutServer(server, f"c{number}", f"10.0.0.{number}:7000", "r"))

    def chunk(self, length: int) -> NewChunk:
        allocated = (START_MS + self.sequence * 7).to_bytes(6, "big")
        handle = ChunkHandle(self.rng.randbytes(10) + allocated)
        return NewChunk(handle, length, self.rng.getrandbits(32), tuple(self.rng.sample(self.servers, 3)))

    def apply(self, make: Callable[[CallId], Message]) -> float:
        """Apply one call as it stands in the log; return the seconds it took."""
        self.sequence += 1
        call = CallId(self.session, self.sequence, self.sequence)
        entry = encode_command(START_MS + self.sequence * 7, make(call))
        began_s = time.thread_time()
        reply = self.state.apply_encoded(entry)
        spent_s = time.thread_time() - began_s
        if isinstance(reply, ErrorReply):
            raise SystemExit(reply.text)
        return spent_s

    def store(self, path: str) -> float:
        chunk = self.chunk(self.rng.randrange(1, LENGTH_MAX))
        return self.apply(lambda call: CommitFile(call, path, (chunk,), (NewExtent(0, 0, chunk.length),), 3))

    def fill(self, files: int, per_directory: int) -> array[float]:
        spent = array("d")
        for number in range(files):
            directory = f"/data/set-{number // per_directory:05d}"
            if number % per_directory == 0:
                self.apply(lambda call, path=directory: MakeDirectory(call, path, True))  # type: ignore[misc]
            spent.append(self.store(f"{directory}/part-{number:08d}.bin"))
        return spent


def slowest(steps: Iterator[Any]) -> tuple[float, float]:
    """Run through; return the seconds of the slowest step and of all."""
    longest_s, began_s = 0.0, time.perf_counter()
    while True:
        step_s = time.thread_time()
        if next(steps, steps) is steps:
            return longest_s, time.perf_counter() - began_s
        longest_s = max(longest_s, time.thread_time() - step_s)


@contextmanager
def measured(what: str, limit: str = "") -> Iterator[None]:
    began_s = time.thread_time()
    yield
    tell(what, ms(time.thread_time() - began_s), limit)


def measure_memory(files: int, per_directory: int) -> Load:
    load, pauses = Load(), Pauses()
    gc.collect()
    before = resident_bytes()
    spent = load.fill(files, per_directory)
    gc.collect()
    tell(f"resident, {files} files with one chunk", f"{(resident_bytes() - before) / files:.0f} B per file", "400")
    last = spent[-100_000:]
    tell("one commit, decoded and applied, at the end", f"{statistics.median(last) * 1e6:.1f} us (median)")
    tell("slowest commit of all", ms(max(spent)), "100 ms")
    tell("garbage collector, longest pause by generation", str(pauses), "50 ms")
    with measured("full garbage collection", "50 ms"):
        gc.collect()
    return load


def measure_checkpoint(load: Load, folder: CheckpointFolder) -> Path:
    """Write as a master does, in a forked child, while commands go on."""
    writer = CheckpointWriter(folder)
    gc.freeze()
    began_s = time.perf_counter()
    with measured("checkpoint: stall by the fork", "50 ms"):
        writer.start(HEAD, load.state.dump)
    longest_s, count = 0.0, 0
    while (done := writer.poll()) is None:
        longest_s = max(longest_s, load.store(f"/meanwhile-{count}"))
        count += 1
    spent_s = time.perf_counter() - began_s
    if not done:
        raise SystemExit("the checkpoint failed")
    path = folder.path(HEAD.index)
    tell("checkpoint: written after", f"{spent_s:.1f} s, {path.stat().st_size / 1e6:.0f} MB")
    tell("checkpoint: slowest commit meanwhile", ms(longest_s), "50 ms")
    tell("checkpoint: commits meanwhile", f"{count / spent_s:,.0f} per second")
    return path


def measure_restart(path: Path) -> MasterState:
    before = resident_bytes()
    began_s = time.perf_counter()
    verify_checkpoint(path)
    state = MasterState()
    state.load(read_pieces(path))
    settle_memory()
    spent_s = time.perf_counter() - began_s
    tell("restart from the checkpoint", f"{spent_s:.1f} s", "15 s")
    grown = resident_bytes() - before
    tell("resident after it", f"{grown / state.space(None).file_count:.0f} B per file", "400")
    return state


def measure_installation(path: Path, follower: MasterState) -> None:
    """Load beside a state of the same size, exchange, and clear the old one away."""
    installation = Installation(path, follower)
    longest_s, spent_s = slowest(iter(installation.step, True))
    tell("installation on a follower: slowest step", ms(longest_s), "50 ms")
    tell("installation on a follower: all steps", f"{spent_s:.1f} s")
    with measured("installation on a follower: the exchange", "50 ms"):
        installation.install()
    longest_s, spent_s = slowest(iter(installation.step, True))
    tell("installation on a follower: old state, slowest step", ms(longest_s), "50 ms")


def measure_commands(load: Load) -> None:
    """The largest commands that there may be, on top of all files."""
    chunks = tuple(load.chunk(1000) for _ in range(COMMIT_CHUNKS_MAX))
    extents = tuple(NewExtent(number, 0, 1000) for number in range(COMMIT_CHUNKS_MAX))

    def run(what: str, make: Callable[[CallId], Message]) -> None:
        gc.collect()
        tell(what, ms(load.apply(make)), "100 ms")

    run(f"commit of {COMMIT_CHUNKS_MAX} chunks", lambda call: CommitFile(call, "/big", chunks, extents, 3))
    run("cp of that file", lambda call: Copy(call, "/big", "/big-copy"))
    run("setrep of that file", lambda call: SetReplication(call, "/big", 5))
    load.apply(lambda call: MakeDirectory(call, "/subtree"))
    for number in range(SUBTREE):
        load.store(f"/subtree/{number:05d}")
    run(f"cp -r of {SUBTREE} files", lambda call: Copy(call, "/subtree", "/subtree-copy", recursive=True))
    run("setrep -R of them", lambda call: SetReplication(call, "/subtree-copy", 2, recursive=True))
    run("rm -r of a million files", lambda call: Delete(call, "/data", recursive=True, skip_trash=True))
    longest_s, count = 0.0, 0
    while load.state.next_trash_expiry_ms() is not None:
        longest_s = max(longest_s, load.apply(lambda call, n=count: MakeDirectory(call, f"/x-{n}")))  # type: ignore[misc]
        count += 1
    tell(f"releasing them, slowest of {count} commands", ms(longest_s), "50 ms")


def measure_walks(load: Load) -> None:
    """What the leader's duties walk through."""
    state, server = load.state, load.servers[0]
    column = HandleColumn()
    column.extend(sorted(handle for handles in state.handles_on(server) for handle in handles))

    def compare() -> Iterator[int]:
        for handles in state.handles_on(server):
            yield sum(handle not in column for handle in handles)

    longest_s, spent_s = slowest(compare())
    tell("comparing a full report with the map, slowest piece", ms(longest_s), "50 ms")
    tell("comparing a full report with the map, all", ms(spent_s))
    with measured("space, everybody alive", "50 ms"):
        state.space(set(load.servers))
    with measured("list, a full page", "50 ms"):
        state.list_directory("/data/set-00000", "", LIST_LIMIT_MAX)


def measure_garbage(load: Load) -> None:
    books = {server: OrderBook() for server in load.servers}
    count = load.state.space(None).garbage_count
    with measured(f"planning garbage, the first of {count}", "50 ms"):
        plan_garbage(load.state.garbage(), books, load.servers, collect_until_ms=1 << 60, start_at=0)
    start_at = max(0, count - 1000)
    with measured("planning garbage, the last of them", "50 ms"):
        plan_garbage(load.state.garbage(start_at), books, load.servers, collect_until_ms=1 << 60, start_at=start_at)


def measure_replica_sets(files: int) -> None:
    """A hundred servers: nearly every chunk has a set of its own."""
    load = Load(100)
    gc.collect()
    before = resident_bytes()
    load.fill(files, 1000)
    gc.collect()
    tell(f"resident, 100 servers, {files} files", f"{(resident_bytes() - before) / files:.0f} B per file", "600")
    with measured("space, 100 servers, one of them dead", "50 ms"):
        load.state.space(set(load.servers[1:]))


async def measure_reports() -> None:
    """Full reports of `PAGE_SERVERS` servers that hold the same chunks, some of them news to the map."""
    trio = await MasterTrio(["m1"]).start()
    servers = [PretendServer(trio, number) for number in range(1, PAGE_SERVERS + 1)]
    for server in servers:
        await server.register()
        await server.beat()
    state, rng, now_ms = trio.leader.state, random.Random(1), trio.clock.wall_ms()
    count = PAGES * REPORT_PAGE_MAX
    ids = tuple(server.server_id for server in servers)
    for start in range(0, count, 10_000):
        chunks = tuple(
            NewChunk(ChunkHandle(rng.randbytes(10) + now_ms.to_bytes(6, "big")), 100, 7, ids) for _ in range(10_000)
        )
        extents = tuple(NewExtent(number, 0, 100) for number in range(10_000))
        await trio.ask(CommitFile(trio.call(), f"/f{start}", chunks, extents, PAGE_SERVERS))
    handles = sorted(state.chunk_handles())
    for server in servers:
        server.replicas = {handle: ReplicaReport(handle, 100, 7) for handle in handles}
    news = servers[-1]
    for start in range(0, count, 5 * 1000):
        lost = tuple(ReplicaChange(handle, False) for handle in handles[start : start + 5 * 1000 : 5])
        state.apply(now_ms, ChangeReplicas(news.server_id, lost))
    for server, what in ((servers[0], "all known"), (news, "a fifth of it news, which is then applied")):
        pages = server.pages(REPORT_PAGE_MAX)
        began_s = time.thread_time()
        for page in pages:
            await trio.ask(page)
        per_page_s = (time.thread_time() - began_s) / len(pages)
        tell(f"report page of {REPORT_PAGE_MAX} replicas, {what}", ms(per_page_s), "20 ms")


def measure_state(files: int, per_directory: int, folder: Path) -> None:
    load = measure_memory(files, per_directory)
    measure_walks(load)
    measure_checkpoint(load, CheckpointFolder(folder, fsync=True))
    measure_commands(load)
    measure_garbage(load)


def measure_loading(folder: Path) -> None:
    path = CheckpointFolder(folder, fsync=True).path(HEAD.index)
    measure_installation(path, measure_restart(path))


def main() -> None:
    """Run each part in a process of its own: memory that one has freed would hide what the next one takes."""
    arguments = [int(argument) for argument in sys.argv[1:3]]
    files, per_directory = (*arguments, *(1_000_000, 1_000)[len(arguments) :])
    tell("", "measured", "goal")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "checkpoints"
        parts: tuple[Callable[[], object], ...] = (
            lambda: asyncio.run(measure_reports()),
            lambda: measure_state(files, per_directory, folder),
            lambda: measure_loading(folder),
            lambda: measure_replica_sets(files // 5),
        )
        for part in parts:
            child = os.fork()
            if not child:
                configure("bench", "state", "error", None)
                settle_memory()
                part()
                sys.stdout.flush()
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit("a part of the measurement failed")


if __name__ == "__main__":
    main()
