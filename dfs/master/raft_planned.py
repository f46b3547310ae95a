"""What is done to a master of the hardened log on purpose: the leadership handed over, a checkpoint written now.

Owns: the waiting for both and the words when they do not come about. Refuses to know: proposals, reads, pysyncobj.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from dfs.errors import DeadlineExceeded, DiskFailed, InvalidArgument, NoQuorum, Overloaded
from dfs.master.raft_engine import Engine
from dfs.master.raft_transport import RaftTransport
from dfs.master.raft_wire import TakeOver
from dfs.master.replicated_log import CheckpointFile

POLL_INTERVAL_S = 0.01
ASK_AGAIN_S = 0.03  # a successor that hears the leader right after being asked forgets that it was asked
_NEVER_S = float("-inf")
HANDOVER_S = 1.0  # a successor has this long to come to lead; new proposals wait meanwhile


class PlannedWork:
    """One master's planned work. `wake` lets the loop do a turn; `is_handing_over`: no new entry may enter the log."""

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        transport: RaftTransport,
        wake: Callable[[], None],
        is_running: Callable[[], bool],
    ) -> None:
        self._name, self._engine, self._transport = name, engine, transport
        self._wake, self._is_running = wake, is_running
        self.is_handing_over = False

    # --- leadership ------------------------------------------------------------------------------------------

    def ask_to_take_over(self, peer: str | None = None) -> bool:
        """Ask a follower (None: the one with the longest log) to take over; return False when it could not lead now."""
        engine, transport = self._engine, self._transport
        if not engine.is_leader or not transport.connected:
            return False
        chosen = max(transport.connected, key=engine.match_index) if peer is None else peer
        if engine.match_index(chosen) != engine.journal.last_index:
            return False
        transport.put(chosen, TakeOver(engine.journal.term), engine.journal.sequence)
        self._wake()
        return True

    async def leave(self) -> None:
        """Give the leadership away before this master stops, so that nobody waits for a timeout."""
        deadline_s, asked_s = time.monotonic() + HANDOVER_S, _NEVER_S
        while self._engine.is_leader and self._is_running() and (now_s := time.monotonic()) < deadline_s:
            if now_s - asked_s > ASK_AGAIN_S and self.ask_to_take_over():
                asked_s = now_s
            await asyncio.sleep(POLL_INTERVAL_S)

    async def hand_over(self, target: str, timeout_s: float) -> None:
        """Let `target` lead; return when this master, which led, follows it."""
        if target == self._name:
            return
        if target not in self._transport.peers:
            raise InvalidArgument(f"there is no other master {target!r}")
        if self.is_handing_over:
            raise Overloaded(f"master {self._name} is handing over already; look with `dfs admin masters`")
        timeout_s = min(timeout_s, HANDOVER_S)
        deadline_s, asked_s = time.monotonic() + timeout_s, _NEVER_S
        self.is_handing_over = True
        try:
            while (now_s := time.monotonic()) < deadline_s and self._is_running():
                if not self._engine.is_leader and self._engine.leader_name == target:
                    return
                if target not in self._transport.connected:
                    break
                if now_s - asked_s > ASK_AGAIN_S and self.ask_to_take_over(target):
                    asked_s = now_s
                await asyncio.sleep(POLL_INTERVAL_S / 4)
        finally:
            self.is_handing_over = False
            self._wake()
        state = "is not connected" if target not in self._transport.connected else "did not come to lead"
        held, last = self._engine.match_index(target), self._engine.journal.last_index
        was = "it was asked to lead" if asked_s > _NEVER_S else f"it is known to hold {held} of {last} log entries"
        raise NoQuorum(f"master {target} {state} within {timeout_s:g} s ({was}); look with `dfs admin masters`")

    # --- checkpoints -----------------------------------------------------------------------------------------

    async def write_checkpoint(self, timeout_s: float) -> CheckpointFile:
        """Write the present state to disk; return when it is there."""
        engine, begun_s = self._engine, time.monotonic()
        wanted = engine.applied_index
        if wanted < 2:  # what every log begins with, and the first entry of a leader
            raise Overloaded(f"master {self._name} has no state yet; look with `dfs admin masters`, and try again")
        while True:
            found = engine.checkpoints.folder.find()
            if found is not None and found.index >= wanted:
                return found
            if not self._is_running() or (engine.checkpoint_failed_at_s or 0) > begun_s:
                raise DiskFailed(f"master {self._name} could not write a checkpoint; its log has the reason")
            if time.monotonic() - begun_s > timeout_s:
                raise DeadlineExceeded(f"master {self._name} wrote no checkpoint within {timeout_s:.0f} s")
            engine.checkpoint_soon()
            self._wake()
            await asyncio.sleep(POLL_INTERVAL_S)
