"""One master's part in Raft: the life of a node and the rhythm of its loop, around the engine.

Owns: the locked folder, the parts of a node, when it does a turn, joins, asks for an election or writes a checkpoint,
and its end. Refuses to know: proposals, reads and who waits for them (dfs.master.raft_state), pysyncobj
(dfs.master.raft_engine), bytes on wire and disk.

All that came in one turn of the loop becomes one fdatasync and one message per follower. No clock of another machine
is trusted, and none of this one for more than waiting. A failure that could lose or invent data stops the node for
good and loudly (`on_failure`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from dfs.errors import ConfigError, DfsError, InternalError
from dfs.log import get_logger
from dfs.master.raft_checkpoint import CheckpointFolder
from dfs.master.raft_engine import LEADER, ROLES, Engine, EngineJournal, EngineStopped
from dfs.master.raft_gate import Gate, GateOwner
from dfs.master.raft_join import Membership
from dfs.master.raft_journal import disk_error, make_folder
from dfs.master.raft_planned import PlannedWork
from dfs.master.raft_rounds import Round
from dfs.master.raft_transport import RaftTransport
from dfs.master.raft_wire import JoinQuery, PreVote
from dfs.master.replicated_log import StateMachine
from dfs.net.auth import ClusterKey

TICK_S = 0.02  # longest time between two looks at timers
HEARTBEAT_S = 0.1
CHECKPOINT_ENTRIES = 200_000  # log entries after which a checkpoint is written
CHECKPOINT_SIZE = 64 * 1024 * 1024  # bytes of commands after which a checkpoint is written
CHECKPOINT_RETRY_S = 30.0  # after a failed one

_log = get_logger(__name__)


class NodeUser(GateOwner, Protocol):
    """Who has work for the log. All calls come from the node's loop, and none may call the engine but `turn_begins`."""

    def turn_begins(self) -> None:
        """Give the engine what has come since the last turn."""

    def turn_ended(self) -> None:
        """Look at what the turn has applied."""

    def timers_due(self, now_s: float) -> None:
        """End the waits whose time is over; called every `TICK_S`."""

    def role_changed(self, old: int, new: int) -> None:
        """End the waits of a leader that was; called from inside the engine."""

    def halted(self, why: str, *, was_leader: bool) -> None:
        """End all waits: the node stops."""


class RaftNode:
    """The node of one master among `peers` (name to raft address, itself included).

    Its parts are there from `start` on. `on_failure` is called once when the node stopped for good.
    """

    def __init__(
        self,
        *,
        name: str,
        peers: Mapping[str, str],
        data_dir: Path,
        key: ClusterKey,
        machine: StateMachine,
        election_timeout_s: tuple[float, float],
        fsync: bool,
        user: NodeUser,
        on_failure: Callable[[DfsError], None],
    ) -> None:
        if name not in peers:
            raise ConfigError(f"master {name!r} is not among the masters {', '.join(sorted(peers))}")
        self.name, self.peers = name, dict(peers)
        self.is_solo = len(peers) == 1
        self.is_running = False
        self.failure: DfsError | None = None
        self.engine: Engine
        self.journal: EngineJournal
        self.transport: RaftTransport
        self.loop: asyncio.AbstractEventLoop
        self.gate: Gate
        self.membership: Membership
        self.planned: PlannedWork
        self.timeouts_s = election_timeout_s
        self.heartbeat_s = min(HEARTBEAT_S, election_timeout_s[0] / 4)
        self._folder, self._key, self._fsync = data_dir / "raft", key, fsync
        self._machine, self._user, self._on_failure = machine, user, on_failure
        self.is_woken = False  # a turn comes when what runs now is done
        self._timer: asyncio.TimerHandle | None = None
        self._lock = -1
        self._prevote_round = Round(len(peers) - 1)
        self._looked_at_s = 0.0

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load what is on disk and join; raise `StorageCorrupt`, `ConfigError`, `DiskFull` or `DiskFailed`."""
        self.loop = asyncio.get_running_loop()
        self._lock = self._lock_folder()
        journal: EngineJournal | None = None
        try:
            others = [peer for peer in self.peers if peer != self.name]
            self.membership = Membership(self._folder, self.name, others, fsync=self._fsync)
            journal = self.journal = EngineJournal(self._folder / "log", name=self.name, fsync=self._fsync)
            self.membership.check(has_journal=bool(journal.entries))
            self.transport = RaftTransport(
                name=self.name,
                peers=self.peers,
                key=self._key.raft_key,
                dead_after_s=2 * self.timeouts_s[1],
            )
            self.engine = self._make_engine()
            self.planned = PlannedWork(
                name=self.name,
                engine=self.engine,
                transport=self.transport,
                wake=self.wake,
                is_running=lambda: self.is_running,
            )
            self.gate = Gate(self.engine, self.transport, self._user, self.membership)
            journal.attach(self.loop.call_soon_threadsafe, self._journal_synced, self._stop_failed)
            await self.transport.start(self.gate, self.messages_handled)
        except OSError as error:
            self._release(journal)
            raise disk_error(error, self._folder, "opening the Raft state") from error
        except BaseException:
            self._release(journal)
            raise
        self.is_running = True
        self.engine.election_deadline_s = time.monotonic() + self.engine.random_timeout_s()
        _log.info("raft_started", term=journal.term, log_end=journal.last_index, applied=self.engine.applied_index)
        self._tick()

    def _make_engine(self) -> Engine:
        return Engine(
            name=self.name,
            peers=list(self.transport.peers),
            journal=self.journal,
            folder=CheckpointFolder(self._folder / "checkpoints", fsync=self._fsync),
            machine=self._machine,
            transport=self.transport,
            is_congested=self.transport.is_congested,
            election_timeout_s=self.timeouts_s,
            heartbeat_s=self.heartbeat_s,
            on_role=self._role_changed,
            on_failure=self._stop_failed,
        )

    def _lock_folder(self) -> int:
        """Hold the folder for this process: two masters on one journal would destroy it."""
        try:
            make_folder(self._folder)
            fd = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(error, self._folder, "opening the data directory") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise ConfigError(f"{self._folder} is in use by another process; is master {self.name} running?") from None
        return fd

    def _release(self, journal: EngineJournal | None) -> None:
        if journal is not None:
            journal.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def close(self) -> None:
        """Stop taking part; safe at any moment, as is a kill."""
        if self._lock < 0:
            return
        if self.is_leader and self.transport.connected:
            await self.planned.leave()
        self._halt("this master stops")
        self.transport.close()
        self.engine.stop()
        journal, lock, self._lock = self.journal, self._lock, -1
        journal.stop()  # here: a batch that the loop has still to hear of would hand the same records on
        await self.loop.run_in_executor(None, journal.close)
        await self.transport.drain()
        os.close(lock)

    def _halt(self, why: str) -> None:
        was_leader = self.is_running and self.engine.role == LEADER
        self.is_running = False
        if self._timer is not None:
            self._timer.cancel()
        self._user.halted(why, was_leader=was_leader)

    def _stop_failed(self, error: DfsError) -> None:
        """Stop for good after a failure of the disk, or one that a bug must have made."""
        if self.failure is not None or self._lock < 0:
            return
        self._halt(str(error))
        self.failure = error
        _log.error("raft_stopped", node=self.name, why=str(error))
        self.transport.close()
        self.engine.stop()
        self._on_failure(error)

    @property
    def is_leader(self) -> bool:
        return self.is_running and self.engine.is_leader

    @property
    def is_open(self) -> bool:
        """Whether the folder belongs to this node: from `start` to `close`, also after a failure."""
        return self._lock >= 0

    # --- the rhythm -----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Let a turn come, once, when what runs now is done."""
        if not self.is_woken:
            self.is_woken = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """One turn: propose what has come, let the engine work, send, sync."""
        self.is_woken = False
        if not self.is_running:
            return
        engine, journal = self.engine, self.journal
        if self.is_solo and journal.durable < journal.sequence:
            journal.flush()  # alone, an entry is committed by our disk: nothing may happen before it is there
            return
        self._user.turn_begins()
        try:
            engine.tick()
            engine.replicate()
        except EngineStopped:
            return
        except Exception as error:  # noqa: BLE001 - the engine is in the middle of something: it must not go on
            _log.exception("raft_tick_failed", node=self.name)
            self._stop_failed(
                InternalError(f"a turn of the Raft engine raised {error!r}: a bug, report it with the log")
            )
            return
        self.transport.flush()  # first: the way over a follower is the longer one
        if not journal.is_quick:
            journal.flush()
        elif journal.has_waiting:
            self.loop.call_soon(self._sync)  # not before that has left: some loops send at the end of a step
        if engine.has_more_work:
            self.wake()
        self._user.turn_ended()
        self._checkpoint_if_due()

    def _sync(self) -> None:
        if self.is_running:
            self.journal.flush()

    def _tick(self) -> None:
        """Look at the timers."""
        if not self.is_running:
            return
        self._timer = self.loop.call_later(TICK_S, self._tick)
        now = time.monotonic()
        if not self.engine.is_leader:
            if not self.membership.is_member:
                self._join(now)
            elif self.engine.election_deadline_s < now:
                self._begin_prevote(now)
        self._user.timers_due(now)
        if now - self._looked_at_s >= self.heartbeat_s / 2:
            self._looked_at_s = now
            self.transport.check_links()
            self.wake()

    def messages_handled(self) -> None:
        """Sync and answer at once what messages have brought; the turn that follows does the rest, if there is any."""
        if self.is_running:
            self.journal.flush()
            self.transport.flush()
            if self.engine.is_turn_due:
                self.wake()

    def _journal_synced(self) -> None:
        if self.is_running:
            try:
                self.gate.release_held()
            except EngineStopped:
                return
            self.transport.flush()
            if self.is_solo or self.engine.is_turn_due:
                self.wake()

    def _checkpoint_if_due(self) -> None:
        engine = self.engine
        entries = engine.applied_index - engine.checkpoint_index
        size = self.journal.appended_size - engine.checkpoint_size
        failed_at_s = engine.checkpoint_failed_at_s
        is_due = entries >= CHECKPOINT_ENTRIES or (size >= CHECKPOINT_SIZE and entries > 1) or failed_at_s is not None
        if is_due and (failed_at_s is None or time.monotonic() - failed_at_s >= CHECKPOINT_RETRY_S):
            engine.checkpoint_soon()

    # --- joining --------------------------------------------------------------------------------------------

    def _join(self, now: float) -> None:
        """Do the next step of a master whose disk was empty (dfs.master.raft_join)."""
        membership, journal = self.membership, self.journal
        number = membership.round_due(now)
        if number is not None:
            self.transport.broadcast(JoinQuery(journal.term, number))
            self.wake()
        is_founder = membership.is_founder
        is_ready = is_founder or membership.is_caught_up(journal.term, journal.durable_index)
        if is_ready and journal.durable == journal.sequence:
            try:
                membership.admit()
            except OSError as error:
                self._stop_failed(disk_error(error, self._folder, "noting the membership"))
                return
            _log.info("raft_member", node=self.name, is_new_cluster=is_founder, term=journal.term)
            self.engine.election_deadline_s = now + self.engine.random_timeout_s()

    # --- elections ------------------------------------------------------------------------------------------

    def _begin_prevote(self, now: float) -> None:
        """Ask whether an election could be won before disturbing anybody with one."""
        engine, journal = self.engine, self.journal
        engine.election_deadline_s = now + engine.random_timeout_s()
        engine.is_forced = False
        number = self._prevote_round.begin()
        self.transport.broadcast(PreVote(journal.term, number, journal.term + 1, journal.last_index, journal.last_term))
        self._count_prevotes()

    def prevote_granted(self, peer: str, number: int) -> None:
        """Count an answer that the gate has checked."""
        self._prevote_round.answer(peer, number)
        self._count_prevotes()

    def _count_prevotes(self) -> None:
        if self._prevote_round.take() and not self.engine.is_leader:
            self.engine.may_campaign = True
            self.wake()

    def _role_changed(self, old: int, new: int) -> None:
        _log.info("raft_role", node=self.name, old=ROLES[old], new=ROLES[new], term=self.journal.term)
        self._user.role_changed(old, new)
        self.wake()
