"""Walks of the chunk map that end early, and go on there the next time, still find what matters most."""

from __future__ import annotations

import asyncio

import pytest

from bench.linear import CRC, SIZE, Filled
from dfs.ids import ChunkHandle
from dfs.master.healing import lookout
from dfs.master.healing.survey import Work
from dfs.master.state.commands import ChangeReplicas, ReplicaChange

KEPT = 10


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "BUCKET_MAX", KEPT)
    monkeypatch.setattr(lookout, "LOW_WATER", KEPT)


async def after_a_loss(endangered: int) -> tuple[Filled, list[ChunkHandle]]:
    """Return a cluster that lost c1, and the last chunks of the map, of which one replica is left."""
    filled = await Filled.fill(300)
    lost, rest = filled.servers[0], filled.servers[1:]
    handles = sorted(lost.replicas)[-endangered:]
    state, now_ms = filled.trio.leader.state, filled.trio.clock.wall_ms()
    for handle in handles:
        other = next(server for server in rest if handle in server.replicas)
        del other.replicas[handle]
        state.apply(now_ms, ChangeReplicas(other.server_id, (ReplicaChange(handle, False),)))
    for _ in range(15):
        filled.trio.clock.advance(1)
        for server in rest:
            await server.beat()
    return filled, handles


def test_the_last_chunk_of_the_map_is_found_though_the_first_ones_fill_the_memory() -> None:
    async def scenario() -> None:
        filled, (endangered,) = await after_a_loss(1)
        sight = filled.trio.leader.lookout
        await sight.look()
        first, *others = sight.waiting(Work.COPY)
        assert first.rank[0] == 1
        assert sight.take(first, KEPT) == [endangered]
        assert [len(sight.take(bucket, 2 * KEPT)) for bucket in others] == [KEPT]

    asyncio.run(scenario())


def test_what_is_known_is_kept_when_a_walk_goes_on_elsewhere() -> None:
    """The known ones wait longest: they come first, unless they wait no longer."""

    async def scenario() -> None:
        filled, _ = await after_a_loss(1)
        sight = filled.trio.leader.lookout
        await sight.look()
        bucket = sight.waiting(Work.COPY)[-1]
        known = sight.take(bucket, KEPT)[: KEPT // 2][::-1]  # not in the order of the map
        sight.give_back(bucket, known)
        healed = known[0]
        state, healthy = filled.trio.leader.state, filled.servers[1:]
        taker = next(server for server in healthy if healed not in server.replicas)
        now_ms = filled.trio.clock.wall_ms()
        state.apply(now_ms, ChangeReplicas(taker.server_id, (ReplicaChange(healed, True, SIZE, CRC),)))
        filled.trio.clock.advance(1)
        for server in healthy:
            await server.beat()
        await sight.look()
        again = sight.take(bucket, KEPT)
        assert len(again) == KEPT
        assert again[: len(known) - 1] == known[1:]
        assert healed not in again

    asyncio.run(scenario())
