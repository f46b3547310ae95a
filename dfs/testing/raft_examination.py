"""Two questions to healthy masters at the end of a simulated run: what safety alone would never notice.

Owns: the questions and the right answers. Refuses to know: how the masters came here.

1. A follower that was cut off comes back: does the leader lead on in its term? (Raft thesis, 4.2.3 and 9.6)
2. The leader is cut off from the others: does it stop calling itself one, and is there another?
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dfs.testing.raft_referee import RuleBroken
from dfs.testing.raft_world import Life, RaftWorld

CALM_DELAY_S = 0.0002  # of the network, on average: no election may be due to it
CALM_AFTER_S = 1.0  # virtual; what was sent before holds up what follows it on the same connection
PATIENCE_S = 10.0  # virtual


async def examine(world: RaftWorld, timeout_s: tuple[float, float], lives: Callable[[], list[Life]]) -> None:
    """Put both questions; raise `RuleBroken` at a wrong answer. No client may be at work."""
    usual_s, world.net.delay_s = world.net.delay_s, CALM_DELAY_S
    await asyncio.sleep(CALM_AFTER_S)
    longest_s = timeout_s[1]
    await _ask_for_steadiness(world, longest_s, lives)
    await _ask_for_modesty(world, longest_s, lives)
    world.net.delay_s = usual_s


async def _ask_for_steadiness(world: RaftWorld, longest_s: float, lives: Callable[[], list[Life]]) -> None:
    leader = await _leader(lives)
    follower = next(life for life in lives() if life is not leader)
    _isolate(world, follower)
    await asyncio.sleep(4 * longest_s)
    term, is_leader = leader.engine.journal.term, leader.log.is_leader
    world.net.heal()
    await asyncio.sleep(2 * longest_s)
    if not is_leader or not leader.log.is_leader or leader.engine.journal.term != term:
        raise RuleBroken(f"{follower.host.name} came back and disturbed {leader.host.name}, which led term {term}")


async def _ask_for_modesty(world: RaftWorld, longest_s: float, lives: Callable[[], list[Life]]) -> None:
    leader = await _leader(lives)
    _isolate(world, leader)
    await asyncio.sleep(3 * longest_s)
    if leader.log.is_leader:
        raise RuleBroken(f"{leader.host.name}, cut off for {3 * longest_s:.2f} s, still believes that it leads")
    await _leader(lives)
    world.net.heal()


async def _leader(lives: Callable[[], list[Life]]) -> Life:
    """Return the leader once there is one, and all follow it in peace."""
    for _ in range(int(PATIENCE_S / 0.1)):
        leaders = [life for life in lives() if life.log.is_leader]
        if len(leaders) == 1:
            await asyncio.sleep(0.1)
            if leaders[0].log.is_leader and all(_is_quiet(life) for life in lives()):
                return leaders[0]
        await asyncio.sleep(0.1)
    raise RuleBroken(f"no master led within {PATIENCE_S} s although all was well")


def _is_quiet(life: Life) -> bool:
    """Whether all is on disk: a reply that waits for a slow disk can cost a leader its majority."""
    return life.engine.journal.durable == life.engine.journal.sequence


def _isolate(world: RaftWorld, life: Life) -> None:
    for other in world.hosts:
        if other != life.host.name:
            world.net.block(other, life.host.name)
            world.net.block(life.host.name, other)
