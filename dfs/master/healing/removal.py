"""Take a chunk server out of the replicated state: its replicas, its garbage, its entry.

Owns: the order of these steps and their size. Refuses to know: who asked for it, and whether the server runs.

Each step is bounded and says what shall be: a removal that a change of leader interrupted is simply done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from dfs.errors import Conflict
from dfs.ids import ChunkHandle, ServerId, id_text
from dfs.log import get_logger
from dfs.master.leadership import Leadership
from dfs.master.state.commands import ChangeReplicas, ForgetGarbage, ForgetServer, ReplicaChange
from dfs.master.state.machine import MasterState
from dfs.master.state.views import RegisteredServer

CHUNKS_PER_SLICE = 5_000  # looked up between two breaths of the loop: about 3 ms
CHANGES_PER_COMMAND = 1_000  # in one log entry: its apply stays short
ROUNDS_MAX = 3  # commits that were on their way may name the server once more

log = get_logger(__name__)
ItemT = TypeVar("ItemT")


class Removal:
    """Removes servers on behalf of administrators and duties."""

    def __init__(self, state: MasterState, leadership: Leadership, is_dead: Callable[[RegisteredServer], bool]) -> None:
        self._state, self._leadership, self._is_dead = state, leadership, is_dead
        self._turn = asyncio.Lock()  # two at once would each take the other's replicas for what is left

    def only_there(self, server_id: ServerId) -> int:
        """Count the chunks that have their only registered replica on this server."""
        return sum(row.chunk_count for row in self._state.tallies_on(server_id) if len(row.servers) == 1)

    async def forget(self, server_id: ServerId, *, is_forced: bool) -> tuple[int, int]:
        """Forget a server; return how many replicas the map forgot with it, and how many chunks and tails are lost.

        Raise `Conflict` when chunks have their only replica there, unless `is_forced`, or when it comes back meanwhile.
        """
        async with self._turn:
            return await self._forget(server_id, is_forced=is_forced)

    async def _forget(self, server_id: ServerId, *, is_forced: bool) -> tuple[int, int]:
        lost = self.only_there(server_id)
        if lost and not is_forced:
            raise Conflict(
                f"{lost} chunks have their only registered replica on it; bring it back, or wait for the repair. To"
                " give these chunks up, and the files that use them, force the removal"
            )
        count = 0
        for _ in range(ROUNDS_MAX):
            dropped = await self._drop_replicas(server_id, is_forced=is_forced)
            count += dropped
            if not dropped + await self._drop_garbage(server_id):
                break
        if is_forced:
            lost += await self._leave_chains(server_id)
        await self._leadership.decree(ForgetServer(server_id))
        log.warning("server_forgotten", server_id=id_text(server_id), replicas=count, lost=lost)
        return count, lost

    async def _drop_replicas(self, server_id: ServerId, *, is_forced: bool) -> int:
        if not self._state.tallies_on(server_id):
            return 0
        found: list[ChunkHandle] = []
        for handles in self._state.handles_on(server_id):
            found += handles
            await asyncio.sleep(0)
        for batch in _slices(found, CHANGES_PER_COMMAND):
            changes = tuple(ReplicaChange(handle, False) for handle in batch if is_forced or not self._is_last(handle))
            await self._leadership.decree(ChangeReplicas(server_id, changes))
        return len(found)

    def _is_last(self, handle: ChunkHandle) -> bool:
        """Whether only one replica is left by now; then the server cannot be forgotten, which is said at the end."""
        chunk = self._state.chunk(handle)
        return chunk is not None and len(chunk.servers) == 1

    async def _leave_chains(self, server_id: ServerId) -> int:
        """Give up its part of open tails that no running server can seal; return how many of them go with it.

        The others are sealed by the leader, which takes a moment: until then the server cannot be forgotten.
        """
        stuck = []
        for tail in self._state.tails.all():
            chain = [self._state.server(known) for known in tail.servers if known != server_id]
            if server_id in tail.servers and all(server is None or self._is_dead(server) for server in chain):
                stuck.append(tail)
        for batch in _slices(stuck, CHANGES_PER_COMMAND):
            changes = tuple(ReplicaChange(tail.handle, False) for tail in batch)
            await self._leadership.decree(ChangeReplicas(server_id, changes))
        lost = [tail for tail in stuck if len(tail.servers) == 1]
        for tail in lost:
            log.error("tail_given_up", path=tail.path, handle=tail.handle)
        return len(lost)

    async def _drop_garbage(self, server_id: ServerId) -> int:
        if not self._state.garbage_count_of(server_id):
            return 0
        found: list[ChunkHandle] = []
        for handles in _slices(self._state.garbage_handles(), CHUNKS_PER_SLICE):
            found += [handle for handle in handles if self._state.is_garbage_on(handle, server_id)]
            await asyncio.sleep(0)
        for handles in _slices(found, CHANGES_PER_COMMAND):
            await self._leadership.decree(ForgetGarbage(server_id, tuple(handles)))
        return len(found)


def _slices(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
