"""The replicated log of one master on hardened Raft: proposals in, results out, reads that are proved current.

Owns: the life of a node, the rhythm of its loop, waiting proposals and reads, and when to write a checkpoint.
Refuses to know: pysyncobj (dfs.master.raft_engine), bytes on wire and disk, and what a command means.

All proposals of one loop turn become one log entry, one fdatasync and one message per follower. A read waits for a
round of messages shared with all other waiting reads. No clock of another machine is trusted, and none of this one for
more than waiting. A failure that could lose or invent data stops the node for good and loudly (`on_failure`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dfs.errors import (
    ConfigError,
    DfsError,
    InternalError,
    LimitExceeded,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
)
from dfs.log import get_logger
from dfs.master.raft_age import StateAge
from dfs.master.raft_checkpoint import CheckpointFolder
from dfs.master.raft_engine import LEADER, ROLES, Engine, EngineJournal, EngineStopped
from dfs.master.raft_gate import Gate
from dfs.master.raft_join import Membership
from dfs.master.raft_journal import disk_error, make_folder
from dfs.master.raft_planned import PlannedWork
from dfs.master.raft_rounds import Round
from dfs.master.raft_transport import RaftTransport
from dfs.master.raft_wire import AgeQuery, AgeReply, JoinQuery, PreVote, ReadRound
from dfs.master.replicated_log import CheckpointFile, LogStatus, StateMachine
from dfs.net.auth import ClusterKey

COMMAND_SIZE_MAX = 8 * 1024 * 1024 + 64 * 1024  # bytes; the largest message of a client in its envelope
ENTRY_SIZE_GOAL = 256 * 1024  # bytes of commands after which the next log entry is begun
PENDING_COMMANDS_MAX = 20_000  # proposals without a result
PENDING_SIZE_MAX = 128 * 1024 * 1024  # bytes of commands without a result
PENDING_READS_MAX = 100_000  # reads without an answer
TICK_S = 0.02  # longest time between two looks at timers
HEARTBEAT_S = 0.1
CHECKPOINT_ENTRIES = 200_000  # log entries after which a checkpoint is written
CHECKPOINT_SIZE = 64 * 1024 * 1024  # bytes of commands after which a checkpoint is written
CHECKPOINT_RETRY_S = 30.0  # after a failed one
EXIT_STATUS = 70  # of a process that must not go on
_NEVER_S = float("inf")

_log = get_logger(__name__)


def _exit_process(_error: DfsError) -> NoReturn:
    """End the process at once: what is not on disk was not acknowledged."""
    os._exit(EXIT_STATUS)


class _Proposal:
    """A command and who waits for its result."""

    __slots__ = ("command", "deadline_s", "future")

    def __init__(self, command: bytes, future: asyncio.Future[Any], deadline_s: float) -> None:
        self.command, self.future, self.deadline_s = command, future, deadline_s


class HardenedRaftLog:
    """A `ReplicatedLog` over the masters in `peers` (name to raft address, itself included).

    `on_failure` is called once when the node stopped for good; without it the process ends with `EXIT_STATUS`.
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
        on_leadership: Callable[[bool], None],
        on_failure: Callable[[DfsError], None] = _exit_process,
    ) -> None:
        if name not in peers:
            raise ConfigError(f"master {name!r} is not among the masters {', '.join(sorted(peers))}")
        self._name, self._peers, self._key = name, dict(peers), key
        self._folder = data_dir / "raft"
        self._machine, self._timeouts_s, self._fsync = machine, election_timeout_s, fsync
        self._on_leadership, self._on_failure = on_leadership, on_failure
        self._heartbeat_s = min(HEARTBEAT_S, election_timeout_s[0] / 4)
        self._is_solo = len(peers) == 1
        self._failure: DfsError | None = None
        self._is_running = False
        self._is_pump_due = False
        self._timer: asyncio.TimerHandle | None = None
        self._lock = -1
        self._fresh: list[_Proposal] = []  # not yet given to the engine
        self._proposals: dict[_Proposal, None] = {}  # given to the engine; a set in order
        self._pending_size = 0
        self._next_expiry_s = _NEVER_S
        self._reads: list[asyncio.Future[None]] = []  # wait for the next round
        self._reads_in_round: list[asyncio.Future[None]] = []
        self._read_expiries: list[tuple[float, float, asyncio.Future[None]]] = []  # deadline, timeout, read
        self._unready_reads: list[asyncio.Future[None]] = []  # wait for the first entry of the own term
        self._leader_round = Round(len(peers) - 1)
        self._prevote_round = Round(len(peers) - 1)
        self._round_begun_s = self._looked_at_s = 0.0
        self._age = StateAge()

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load what is on disk and join; raise `StorageCorrupt`, `ConfigError`, `DiskFull` or `DiskFailed`."""
        self._loop = asyncio.get_running_loop()
        self._lock = self._lock_folder()
        journal: EngineJournal | None = None
        try:
            others = [peer for peer in self._peers if peer != self._name]
            self._membership = Membership(self._folder, self._name, others, fsync=self._fsync)
            journal = self._journal = EngineJournal(self._folder / "log", name=self._name, fsync=self._fsync)
            self._membership.check(has_journal=bool(journal.entries))
            self._transport = RaftTransport(
                name=self._name,
                peers=self._peers,
                key=self._key.raft_key,
                dead_after_s=2 * self._timeouts_s[1],
            )
            self._engine = self._make_engine()
            self._planned = PlannedWork(
                name=self._name,
                engine=self._engine,
                transport=self._transport,
                wake=self._wake,
                is_running=lambda: self._is_running,
            )
            self._gate = Gate(self._engine, self._transport, self, self._membership)
            journal.attach(self._loop.call_soon_threadsafe, self._journal_synced, self._stop_failed)
            await self._transport.start(self._gate, self._messages_handled)
        except OSError as error:
            self._release(journal)
            raise disk_error(error, self._folder, "opening the Raft state") from error
        except BaseException:
            self._release(journal)
            raise
        self._is_running = True
        self._engine.election_deadline_s = time.monotonic() + self._engine.random_timeout_s()
        _log.info("raft_started", term=journal.term, log_end=journal.last_index, applied=self._engine.applied_index)
        self._tick()

    def _make_engine(self) -> Engine:
        return Engine(
            name=self._name,
            peers=list(self._transport.peers),
            journal=self._journal,
            folder=CheckpointFolder(self._folder / "checkpoints", fsync=self._fsync),
            machine=self._machine,
            transport=self._transport,
            is_congested=self._transport.is_congested,
            election_timeout_s=self._timeouts_s,
            heartbeat_s=self._heartbeat_s,
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
            raise ConfigError(f"{self._folder} is in use by another process; is master {self._name} running?") from None
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
        if self.is_leader and self._transport.connected:
            await self._planned.leave()
        self._halt("this master stops")
        self._transport.close()
        self._engine.stop()
        journal, lock, self._lock = self._journal, self._lock, -1
        await self._loop.run_in_executor(None, journal.close)
        await self._transport.drain()
        os.close(lock)

    def _halt(self, why: str) -> None:
        was_leader = self._is_running and self._engine.role == LEADER
        self._is_running = False
        if self._timer is not None:
            self._timer.cancel()
        self._fail_waiting(why)
        if was_leader:
            self._loop.call_soon(self._on_leadership, False)

    def _stop_failed(self, error: DfsError) -> None:
        """Stop for good after a failure of the disk, or one that a bug must have made."""
        if self._failure is not None or self._lock < 0:
            return
        self._halt(str(error))
        self._failure = error
        _log.error("raft_stopped", node=self._name, why=str(error))
        self._transport.close()
        self._engine.stop()
        self._on_failure(error)

    # --- the rhythm -----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """One turn: propose what has come, let the engine work, send, sync."""
        self._is_pump_due = False
        if not self._is_running:
            return
        engine, journal = self._engine, self._journal
        if self._is_solo and journal.durable < journal.sequence:
            journal.flush()  # alone, an entry is committed by our disk: nothing may happen before it is there
            return
        if self._fresh and not self._planned.is_handing_over:
            self._submit_fresh()
        try:
            engine.tick()
            engine.replicate()
        except EngineStopped:
            return
        except Exception as error:  # noqa: BLE001 - the engine is in the middle of something: it must not go on
            _log.exception("raft_tick_failed", node=self._name)
            self._stop_failed(
                InternalError(f"a turn of the Raft engine raised {error!r}: a bug, report it with the log")
            )
            return
        self._transport.flush()  # first: the way over a follower is the longer one
        journal.flush()
        if engine.has_more_work:
            self._wake()
        if self._unready_reads:
            self._admit_reads()
        self._checkpoint_if_due()

    def _tick(self) -> None:
        """Look at the timers."""
        if not self._is_running:
            return
        self._timer = self._loop.call_later(TICK_S, self._tick)
        now = time.monotonic()
        if self._engine.is_leader:
            if self._reads_in_round and now - self._round_begun_s >= self._heartbeat_s:
                self._begin_leader_round()  # unanswered so far: ask again
        elif not self._membership.is_member:
            self._join(now)
        elif self._engine.election_deadline_s < now:
            self._begin_prevote(now)
        if self._next_expiry_s <= now:
            self._expire_proposals(now)
        if self._read_expiries:
            self._expire_reads(now)
        if not self._engine.is_leader:
            self._ask_age(now)
        if now - self._looked_at_s >= self._heartbeat_s / 2:
            self._looked_at_s = now
            self._transport.check_links()
            self._wake()

    def _messages_handled(self) -> None:
        """Sync and answer at once what messages have brought; the turn that follows does the rest."""
        if self._is_running:
            self._journal.flush()
            self._transport.flush()
            self._wake()

    def _journal_synced(self) -> None:
        if self._is_running:
            try:
                is_news = self._gate.release_held()
            except EngineStopped:
                return
            self._transport.flush()
            if is_news or self._is_solo:
                self._wake()

    def _checkpoint_if_due(self) -> None:
        engine = self._engine
        entries = engine.applied_index - engine.checkpoint_index
        size = self._journal.appended_size - engine.checkpoint_size
        failed_at_s = engine.checkpoint_failed_at_s
        is_due = entries >= CHECKPOINT_ENTRIES or (size >= CHECKPOINT_SIZE and entries > 1) or failed_at_s is not None
        if is_due and (failed_at_s is None or time.monotonic() - failed_at_s >= CHECKPOINT_RETRY_S):
            engine.checkpoint_soon()

    def checkpoint(self) -> None:
        """Begin a checkpoint now, unless one is being written."""
        self._engine.checkpoint_soon()
        self._wake()

    async def write_checkpoint(self, timeout_s: float) -> CheckpointFile:
        """Write the present state to disk; return when it is there. Changes that came meanwhile are not in it."""
        return await self._planned.write_checkpoint(timeout_s)

    def checkpoint_file(self, index: int | None = None) -> CheckpointFile | None:
        """Return a checkpoint of this master, the newest one without an `index`."""
        return self._engine.checkpoints.folder.find(index) if self._lock >= 0 else None

    # --- joining --------------------------------------------------------------------------------------------

    def _join(self, now: float) -> None:
        """Do the next step of a master whose disk was empty (dfs.master.raft_join)."""
        membership, journal = self._membership, self._journal
        number = membership.round_due(now)
        if number is not None:
            self._transport.broadcast(JoinQuery(journal.term, number))
            self._wake()
        is_founder = membership.is_founder
        is_ready = is_founder or membership.is_caught_up(journal.term, journal.durable_index)
        if is_ready and journal.durable == journal.sequence:
            try:
                membership.admit()
            except OSError as error:
                self._stop_failed(disk_error(error, self._folder, "noting the membership"))
                return
            _log.info("raft_member", node=self._name, is_new_cluster=is_founder, term=journal.term)
            self._engine.election_deadline_s = now + self._engine.random_timeout_s()

    # --- elections ------------------------------------------------------------------------------------------

    def _begin_prevote(self, now: float) -> None:
        """Ask whether an election could be won before disturbing anybody with one."""
        engine, journal = self._engine, self._journal
        engine.election_deadline_s = now + engine.random_timeout_s()
        engine.is_forced = False
        number = self._prevote_round.begin()
        self._transport.broadcast(
            PreVote(journal.term, number, journal.term + 1, journal.last_index, journal.last_term)
        )
        self._count_prevotes()

    def prevote_granted(self, peer: str, number: int) -> None:
        self._prevote_round.answer(peer, number)
        self._count_prevotes()

    def _count_prevotes(self) -> None:
        if self._prevote_round.take() and not self._engine.is_leader:
            self._engine.may_campaign = True
            self._wake()

    def _role_changed(self, old: int, new: int) -> None:
        _log.info("raft_role", node=self._name, old=ROLES[old], new=ROLES[new], term=self._journal.term)
        self._leader_round.cancel()
        if old == LEADER:
            self._fail_waiting("leadership was lost")
        if LEADER in (old, new):
            self._loop.call_soon(self._on_leadership, new == LEADER)

    def transfer_leadership(self) -> bool:
        """Ask the follower with the longest log to take over; return False when there is none or this one is behind."""
        return self._planned.ask_to_take_over()

    async def hand_over(self, target: str, timeout_s: float) -> None:
        """Let `target` lead. New proposals wait meanwhile: the successor must have the whole log."""
        if not self.is_leader:
            raise self._not_leader()
        await self._planned.hand_over(target, timeout_s)

    # --- proposals ------------------------------------------------------------------------------------------

    async def propose(self, command: bytes, timeout_s: float) -> Any:
        """Return the state machine's result once the command is committed and applied here."""
        if not self.is_leader:
            raise self._not_leader()
        if len(command) > COMMAND_SIZE_MAX:
            raise LimitExceeded(f"a command of {len(command)} bytes is over the limit of {COMMAND_SIZE_MAX}; split it")
        if (
            len(self._fresh) + len(self._proposals) >= PENDING_COMMANDS_MAX
            or self._pending_size + len(command) > PENDING_SIZE_MAX
        ):
            raise Overloaded(f"master {self._name} has too many changes waiting; try again in a moment")
        deadline_s = time.monotonic() + timeout_s
        proposal = _Proposal(command, self._loop.create_future(), deadline_s)
        self._fresh.append(proposal)
        self._pending_size += len(command)
        self._next_expiry_s = min(self._next_expiry_s, deadline_s)
        self._wake()
        return await proposal.future

    def _submit_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        if not self._engine.is_leader:
            for proposal in fresh:
                self._finish(proposal, self._not_leader())
            return
        batch: list[_Proposal] = []
        size = 0
        for proposal in fresh:
            if size + len(proposal.command) > ENTRY_SIZE_GOAL and batch:
                self._submit(batch)
                batch, size = [], 0
            batch.append(proposal)
            size += len(proposal.command)
        self._submit(batch)

    def _submit(self, batch: list[_Proposal]) -> None:
        self._proposals.update(dict.fromkeys(batch))

        def done(results: list[Any] | None, reason: int) -> None:
            if batch[0] not in self._proposals:
                return  # all have been told already that leadership was lost
            for proposal in batch:
                self._proposals.pop(proposal, None)
            if results is None:
                error = OutcomeUnknown(f"the log entry of the change was not confirmed (Raft: {reason})")
                for proposal in batch:
                    self._finish(proposal, error)
                return
            for proposal, result in zip(batch, results, strict=True):
                self._pending_size -= len(proposal.command)
                if not proposal.future.done():
                    proposal.future.set_result(result)

        self._engine.submit([proposal.command for proposal in batch], done)

    def _finish(self, proposal: _Proposal, error: DfsError) -> None:
        self._pending_size -= len(proposal.command)
        if not proposal.future.done():
            proposal.future.set_exception(error)

    def _expire_proposals(self, now: float) -> None:
        """End the waits whose time is over. The entries stay: they may still be committed."""
        waiting = [proposal for proposal in (*self._proposals, *self._fresh) if not proposal.future.done()]
        for proposal in waiting:
            if proposal.deadline_s <= now:
                proposal.future.set_exception(
                    OutcomeUnknown("no majority of the masters confirmed the change in time; check that they run")
                )
        self._next_expiry_s = min((one.deadline_s for one in waiting if one.deadline_s > now), default=_NEVER_S)

    def _fail_waiting(self, why: str) -> None:
        """End every wait: fresh proposals did not happen, the others may yet."""
        fresh, self._fresh = self._fresh, []
        for proposal in fresh:
            self._finish(proposal, self._not_leader())
        proposals, self._proposals = self._proposals, {}
        for proposal in proposals:
            if not proposal.future.done():
                proposal.future.set_exception(OutcomeUnknown(f"{why} while the change was on its way"))
        self._pending_size = 0
        reads = [*self._reads, *self._reads_in_round, *self._unready_reads]
        self._reads, self._reads_in_round, self._unready_reads = [], [], []
        for read in reads:
            if not read.done():
                read.set_exception(self._not_leader())

    # --- reads ----------------------------------------------------------------------------------------------

    async def read_barrier(self, timeout_s: float) -> None:
        """Return when the local state holds all that was acknowledged before the call."""
        if not self.is_leader:
            raise self._not_leader()
        if len(self._reads) + len(self._reads_in_round) + len(self._unready_reads) >= PENDING_READS_MAX:
            raise Overloaded(f"master {self._name} has {PENDING_READS_MAX} reads waiting; try again in a moment")
        read: asyncio.Future[None] = self._loop.create_future()
        self._read_expiries.append((time.monotonic() + timeout_s, timeout_s, read))
        if self._engine.leads_with_own_entry:
            self._queue_read(read)
        else:
            self._unready_reads.append(read)
        await read

    def _expire_reads(self, now: float) -> None:
        """End the waits whose time is over, and forget those that have ended."""
        waiting = [expiry for expiry in self._read_expiries if not expiry[2].done()]
        self._read_expiries = [expiry for expiry in waiting if expiry[0] > now]
        majority = len(self._peers) // 2 + 1
        for deadline_s, timeout_s, read in waiting:
            if deadline_s <= now:
                read.set_exception(
                    NoQuorum(
                        f"master {self._name} could not prove within {timeout_s:.1f} s that it leads; check that at "
                        f"least {majority} of the {len(self._peers)} masters run and reach each other"
                    )
                )

    def _admit_reads(self) -> None:
        if self._engine.leads_with_own_entry:
            reads, self._unready_reads = self._unready_reads, []
            for read in reads:
                self._queue_read(read)

    def _queue_read(self, read: asyncio.Future[None]) -> None:
        """Let a read take part in the next round: one that began before the call would prove nothing for it."""
        self._reads.append(read)
        if len(self._reads) == 1 and not self._reads_in_round:
            self._loop.call_soon(self._begin_leader_round)

    def _begin_leader_round(self) -> None:
        """Ask all others whether this master still leads, for all reads that wait."""
        if not self._is_running or not self._engine.is_leader:
            return
        self._reads_in_round += self._reads
        self._reads = []
        self._round_begun_s = time.monotonic()
        self._transport.broadcast(ReadRound(self._journal.term, self._leader_round.begin()))
        self._finish_leader_round()
        self._transport.flush()

    def leadership_confirmed(self, peer: str, number: int) -> None:
        self._leader_round.answer(peer, number)
        self._finish_leader_round()

    def _finish_leader_round(self) -> None:
        if not self._leader_round.take():
            return
        reads, self._reads_in_round = self._reads_in_round, []
        if self._engine.leads_with_own_entry:
            self._age.proved(self._round_begun_s)
        for read in reads:
            if not read.done():
                read.set_result(None)
        if self._reads:
            self._loop.call_soon(self._begin_leader_round)

    def age_asked(self, peer: str, number: int) -> None:
        """Answer a follower once a round that begins now has proved that this master leads."""
        if not self._engine.leads_with_own_entry:
            return

        def answer(read: asyncio.Future[None]) -> None:
            if not read.cancelled() and read.exception() is None and self._is_running:
                reply = AgeReply(self._journal.term, number, self._engine.commit_index)
                self._transport.put(peer, reply, self._journal.vote_sequence)
                self._wake()

        read: asyncio.Future[None] = self._loop.create_future()
        read.add_done_callback(answer)
        self._queue_read(read)

    def age_answered(self, number: int, commit_index: int) -> None:
        self._age.answered(number, commit_index)

    def _ask_age(self, now: float) -> None:
        leader = self._engine.leader_name
        if leader in self._transport.connected and (number := self._age.question_due(now)) is not None:
            self._transport.put(leader, AgeQuery(self._journal.term, number), self._journal.vote_sequence)
            self._wake()

    def staleness_s(self) -> float | None:
        """Return how old the local state is at most, None when nothing is known (dfs.master.raft_age)."""
        if not self._is_running:
            return None
        if self._is_solo and self.is_leader:
            return 0.0
        return self._age.staleness_s(time.monotonic(), self._engine.applied_index)

    # --- facts ----------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads (a hint; only `read_barrier` proves it)."""
        return self._is_running and self._engine.is_leader

    def status(self) -> LogStatus:
        if not self._is_running:
            return LogStatus("stopped", 0, 0, 0, None)
        engine = self._engine
        leader = engine.leader_name
        if not engine.is_leader and time.monotonic() - engine.heard_at_s > 2 * self._timeouts_s[1]:
            leader = None  # the one that was is not heard of any more
        role = ROLES[engine.role] if self._membership.is_member else "joining"
        return LogStatus(role, self._journal.term, engine.commit_index, engine.applied_index, leader)

    def _not_leader(self) -> DfsError:
        if self._failure is not None:
            return NotLeader(f"master {self._name} has stopped: {self._failure}")
        return NotLeader(f"master {self._name} does not lead")
