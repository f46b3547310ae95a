"""How long a leader with a million chunks looks for those that lack replicas, and how long its loop stands still.

Run `python -m bench.healing [CHUNKS] [SERVERS]`. The map is filled directly; a third of the servers then count as lost.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time

from dfs.ids import ChunkHandle
from dfs.master.healing.survey import Work
from dfs.testing.masters import MIB, MasterTrio, PretendServer


async def longest_stall(stop: asyncio.Event) -> float:
    """Return the longest time in seconds that the loop worked without coming round (of this process: others wait)."""
    longest = 0.0
    while not stop.is_set():
        begun_s = time.process_time()
        await asyncio.sleep(0)
        longest = max(longest, time.process_time() - begun_s)
    return longest


async def measure(chunks: int, servers: int) -> None:
    trio = await MasterTrio(dead_after_s=3.0, repair_after_s=10.0).start()
    pretended = [PretendServer(trio, number, free=chunks * MIB) for number in range(1, servers + 1)]
    for server in pretended:
        await server.join()
    rng = random.Random(5)
    ids = [server.server_id for server in pretended]
    kept = trio.leader.state._parts.chunks
    for _ in range(chunks):
        handle = ChunkHandle(rng.randbytes(16))
        kept.add(handle, MIB, 7, rng.sample(ids, 3))
        kept.reference(handle, 3)
    repair = trio.leader.healing_duties()[0]
    print(f"{chunks:,} chunks on {servers} servers")
    for title, lost in (("all is well", 0), ("one server is lost", 1), ("a third is lost", servers // 3)):
        for _ in range(12):
            trio.clock.advance(1)
            for server in pretended[lost:]:
                await server.beat()
        stop = asyncio.Event()
        watch = asyncio.create_task(longest_stall(stop))
        await asyncio.sleep(0)
        begun_s = time.perf_counter()
        await repair.run_once()
        took_s = time.perf_counter() - begun_s
        stop.set()
        stall_ms = 1000 * await watch
        survey = trio.leader.lookout.survey
        assert survey is not None
        known = sum(len(trio.leader.lookout._backlog[bucket]) for bucket in trio.leader.lookout.waiting(Work.COPY))
        print(
            f"  {title:<18} {took_s * 1000:7.0f} ms, longest stall {stall_ms:5.1f} ms;"
            f" waiting {survey.waiting}, known {known:,}, ordered {len(trio.leader.healing.copies):,}"
        )


if __name__ == "__main__":
    counts = [int(argument) for argument in sys.argv[1:3]] + [1_000_000, 20][len(sys.argv) - 1 :]
    asyncio.run(measure(*counts))
