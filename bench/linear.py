"""Does cost grow with the number of files, or faster? The same work at 10,000 and at 1,000,000 files, per item.

Owns: the state that is filled, the works on it, and the ratio of their costs per item. Refuses to know: anything but
the messages that masters answer. Run `python -m bench.linear [FILES ...]`; the aim is a ratio of at most 2.

A real master service works in this process over a log in memory; each file is a chunk of its own, on 3 of 12 servers.
Costs are processor time of the whole process, the pretended servers of the repair included. `put -r`: 10,000 files
more, packed, a thousand by one call. `repair`: one server is lost; until every chunk has its goal again.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from dfs.ids import ChunkHandle
from dfs.log import configure
from dfs.master.daemon import settle_memory
from dfs.net.messages import (
    LIST_LIMIT_MAX,
    LOCATE_FILES_MAX,
    PACKED_FILES_MAX,
    CommitFile,
    CommitMany,
    CommitManyReply,
    ErrorReply,
    ListDirectory,
    ListDirectoryReply,
    LocateMany,
    LocateManyReply,
    MakeDirectory,
)
from dfs.net.parts import NewChunk, NewExtent, PackedFile
from dfs.testing.masters import MIB, MasterTrio, PretendServer

COUNTS = (10_000, 1_000_000)
SERVERS = 12
REPLICAS = 3
PER_DIRECTORY = 1_000
PUT_FILES = 10_000
SIZE, CRC = 4096, 7
RATIO_MAX = 2.0
ROUNDS_MAX = 5_000  # turns of a repair: it does not come to an end


@dataclass
class Filled:
    """One master with files, and servers that hold them. A directory `/flat` has as many entries as there are files."""

    trio: MasterTrio
    servers: list[PretendServer]
    rng: random.Random
    count: int = 0
    spent: dict[str, float] = field(default_factory=dict)  # microseconds per item

    @classmethod
    async def fill(cls, count: int) -> Filled:
        trio = await MasterTrio(["m1"], dead_after_s=3.0, repair_after_s=10.0, balance=False, repair_rate=0).start()
        servers = [PretendServer(trio, number, free=4 * count * MIB) for number in range(1, SERVERS + 1)]
        for server in servers:
            await server.join()
        filled = cls(trio, servers, random.Random(5))
        filled.add(count)
        for server in servers:
            await server.report()
        gc.collect()
        settle_memory()
        return filled

    def chunk(self, length: int) -> NewChunk:
        handle = ChunkHandle(self.rng.randbytes(10) + self.trio.clock.wall_ms().to_bytes(6, "big"))
        chosen = self.rng.sample(self.servers, REPLICAS)
        for server in chosen:
            server.put(handle, length, CRC)
        return NewChunk(handle, length, CRC, tuple(server.server_id for server in chosen))

    def add(self, count: int) -> None:
        """Apply the commands that make the files, as they come out of the log."""
        state, now_ms = self.trio.leader.state, self.trio.clock.wall_ms()
        must(state.apply(now_ms, MakeDirectory(self.trio.call(), "/flat")))
        for number in range(count):
            directory = f"/deep/{number // PER_DIRECTORY:05d}"
            if number % PER_DIRECTORY == 0:
                must(state.apply(now_ms, MakeDirectory(self.trio.call(), directory, True)))
            chunk, extents = self.chunk(SIZE), (NewExtent(0, 0, SIZE),)
            path = f"{directory}/{number:08d}"
            must(state.apply(now_ms, CommitFile(self.trio.call(), path, (chunk,), extents, REPLICAS)))
            must(state.apply(now_ms, CommitFile(self.trio.call(), f"/flat/{number:08d}", (), (), REPLICAS)))
        self.count = count


def must(reply: object) -> None:
    if isinstance(reply, ErrorReply):
        raise SystemExit(f"the state cannot be filled: {reply.text}")


# --- the works: each does its part and returns how many items that were -----------------------------------


async def list_flat(filled: Filled) -> int:
    """List one directory that holds everything."""
    found, after = 0, ""
    while True:
        reply = await filled.trio.expect(ListDirectoryReply, ListDirectory("/flat", after, LIST_LIMIT_MAX))
        found += len(reply.entries)
        if not reply.has_more:
            return found
        after = reply.entries[-1].path


async def list_deep(filled: Filled) -> int:
    """List directories of a thousand files."""
    found = 0
    for number in range(-(-filled.count // PER_DIRECTORY)):
        message = ListDirectory(f"/deep/{number:05d}", "", LIST_LIMIT_MAX)
        found += len((await filled.trio.expect(ListDirectoryReply, message)).entries)
    return found


async def locate(filled: Filled) -> int:
    """Tell where everything is, as for `get -r`."""
    found, after = 0, ""
    while True:
        reply = await filled.trio.expect(LocateManyReply, LocateMany("/deep", after, LOCATE_FILES_MAX))
        found += len(reply.files)
        if not reply.has_more:
            return found
        after = reply.files[-1].path


async def put(filled: Filled) -> int:
    """Store files by the thousand, as `put -r` does, on top of what is there."""
    for start in range(0, PUT_FILES, PACKED_FILES_MAX):
        chunk = filled.chunk(PACKED_FILES_MAX * SIZE)
        files = tuple(
            PackedFile(f"/new/{start:06d}/{number:06d}", (NewExtent(0, number * SIZE, SIZE),))
            for number in range(PACKED_FILES_MAX)
        )
        call = filled.trio.call()
        reply = await filled.trio.expect(CommitManyReply, CommitMany(call, (chunk,), files, REPLICAS, parents=True))
        assert not reply.failures, reply.failures[0]
    return PUT_FILES


async def repair(filled: Filled) -> int:
    """Lose a server, and copy until every chunk has its goal again."""
    trio, lost, rest = filled.trio, filled.servers[0], filled.servers[1:]
    duty = trio.leader.healing_duties()[0]
    for _ in range(15):  # until it counts as lost
        trio.clock.advance(1)
        for server in rest:
            await server.beat()
    for _ in range(ROUNDS_MAX):
        await duty.run_once()
        survey = trio.leader.lookout.survey
        if survey is not None and sum(survey.waiting) == 0:
            return len(lost.replicas)
        trio.clock.advance(1)
        for server in rest:
            await server.work()
    raise SystemExit(f"the repair did not end within {ROUNDS_MAX} turns: {survey}")


WORKS: dict[str, Callable[[Filled], Awaitable[int]]] = {
    "ls of one directory with all": list_flat,
    "ls of directories of 1,000": list_deep,
    "locate, as for get -r": locate,
    "put -r of 10,000 more": put,
    "repair of a lost server": repair,
}


async def measure(count: int) -> dict[str, float]:
    """Return the microseconds per item of each work at so many files."""
    filled = await Filled.fill(count)
    for name, work in WORKS.items():
        gc.collect()
        began_s = time.process_time()
        items = await work(filled)
        filled.spent[name] = 1e6 * (time.process_time() - began_s) / items
        print(f"{count:10,} files  {name:32} {items:10,} items {filled.spent[name]:10.2f} us each", file=sys.stderr)
    return filled.spent


def main() -> None:
    counts = sorted({int(argument.replace(",", "")) for argument in sys.argv[1:]}) or list(COUNTS)
    configure("bench", "linear", "error", None)
    found = {count: asyncio.run(measure(count)) for count in counts}
    table = Table("microseconds per item", *[f"{count:,} files" for count in counts], "ratio", "aim")
    for name in WORKS:
        costs = [found[count][name] for count in counts]
        ratio = costs[-1] / costs[0]
        verdict = "met" if ratio <= RATIO_MAX else "MISSED"
        table.add_row(name, *[f"{cost:.2f}" for cost in costs], f"{ratio:.2f}x", f"<= {RATIO_MAX:g}x {verdict}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
