"""Does every tail that ended get its turn to be sealed, however many others cannot be reached?"""

from __future__ import annotations

import asyncio
from typing import cast

from dfs.errors import NotEnoughServers
from dfs.ids import ChunkHandle, ServerId
from dfs.master.leadership import Leadership
from dfs.master.state.machine import MasterState
from dfs.master.state.tails import TailRecord
from dfs.master.tail_desk import TailDesk
from dfs.master.tail_duty import SEALS_PER_TURN, TailDuty

LOST = 2 * SEALS_PER_TURN + 5
SERVERS = (ServerId(b"s" * 16),)


class Desk:
    """Tails that ended: the first LOST of them are on servers that never answer."""

    def __init__(self) -> None:
        self.tails = [TailRecord(f"/{n}", ChunkHandle(b"%016d" % n), SERVERS, 0, 0) for n in range(LOST + 1)]
        self.asked: list[str] = []

    def due(self) -> list[tuple[TailRecord, str]]:
        return [(tail, "idle") for tail in self.tails]

    async def seal(self, path: str, _handle: ChunkHandle) -> None:
        self.asked.append(path)
        if int(path[1:]) < LOST:
            raise NotEnoughServers("nobody answers")
        self.tails = [tail for tail in self.tails if tail.path != path]


def test_tails_that_cannot_be_reached_do_not_keep_the_others_waiting() -> None:
    desk = Desk()
    duty = TailDuty(cast(TailDesk, desk), MasterState(), cast(Leadership, None))

    async def turns(count: int) -> None:
        for _ in range(count):
            await duty.run_once()

    asyncio.run(turns(3))
    assert len(desk.tails) == LOST, "sealed within three turns"
    assert len(desk.asked) <= 3 * SEALS_PER_TURN
    asyncio.run(turns(3))
    assert all(desk.asked.count(f"/{number}") >= 2 for number in range(LOST)), "the others are tried again and again"
