"""The replicated state of one master: commands go in, and their results and reads that are proved current come out.

Owns: the binding of a state machine to the replicated log, and everybody who waits for it: proposals and reads, their
limits, their ends. Refuses to know: when the node does what (dfs.master.raft_node), pysyncobj (dfs.master.raft_engine),
bytes on wire and disk, and what a command means.

All proposals that come while an entry is on its way become the next one: the more come, the fewer messages and syncs
each of them costs. A read waits for a round of messages shared with all other waiting reads. Every wait ends: with the
result, or with the error that says whether the change may have happened. Whoever waits is told outside of the engine,
in the step of the loop that knows it: a wait costs neither a task nor a turn of the loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dfs.errors import DfsError, LimitExceeded, NoQuorum, NotLeader, OutcomeUnknown, Overloaded
from dfs.log import get_logger
from dfs.master.raft_age import StateAge
from dfs.master.raft_company import COMPANY_WAIT_S, Company
from dfs.master.raft_engine import LEADER, ROLES
from dfs.master.raft_node import RaftNode
from dfs.master.raft_rounds import Round
from dfs.master.raft_wire import AgeQuery, AgeReply, ReadRound
from dfs.master.replicated_log import CheckpointFile, LogStatus, StateMachine, Waiter
from dfs.net.auth import ClusterKey

COMMAND_SIZE_MAX = 8 * 1024 * 1024 + 64 * 1024  # bytes; the largest message of a client in its envelope
ENTRY_SIZE_GOAL = 256 * 1024  # bytes of commands after which the next log entry is begun
ENTRY_COMMANDS_GOAL = 64  # that many commands, or so many bytes, need not wait for more company
PENDING_COMMANDS_MAX = 20_000  # proposals without a result
PENDING_SIZE_MAX = 128 * 1024 * 1024  # bytes of commands without a result
PENDING_READS_MAX = 100_000  # reads without an answer
ASK_ALL_EVERY = 256  # rounds of reads: somebody else may be the faster one by now
EXIT_STATUS = 70  # of a process that must not go on
_NEVER_S = float("inf")

log = get_logger(__name__)


def _exit_process(_error: DfsError) -> NoReturn:
    """End the process at once: what is not on disk was not acknowledged."""
    os._exit(EXIT_STATUS)


class _Proposal:
    """A command and who waits for its result."""

    __slots__ = ("command", "waiter")

    def __init__(self, command: bytes, waiter: Waiter) -> None:
        self.command, self.waiter = command, waiter


class _Wait:
    """A waiter that a coroutine awaits; one that is cancelled gives it up."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def is_known(self) -> bool:
        return self.future.done()

    def ended(self, result: Any, error: DfsError | None) -> None:
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _AgeAsked:
    """A follower that waits for a proof, with all reads; its question is answered when there is one."""

    deadline_s = _NEVER_S
    is_known = False

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer = answer

    def ended(self, _result: Any, error: DfsError | None) -> None:
        if error is None:
            self._answer()


class RaftLog:
    """A `ReplicatedLog` over the masters in `peers` (name to raft address, itself included).

    `on_failure` is called once when the node stopped for good; without it the process ends with `EXIT_STATUS`.
    `node` is for those who examine it.
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
        self.node = RaftNode(
            name=name,
            peers=peers,
            data_dir=data_dir,
            key=key,
            machine=machine,
            election_timeout_s=election_timeout_s,
            fsync=fsync,
            user=self,
            on_failure=on_failure,
        )
        self._on_leadership = on_leadership
        self._fresh: list[_Proposal] = []  # not yet given to the engine
        self._fresh_size = 0  # bytes of their commands
        self._company = Company()
        self._company_timer: asyncio.TimerHandle | None = None
        self._proposals: dict[_Proposal, None] = {}  # given to the engine; a set in order
        self._pending_size = 0
        self._ended: list[tuple[Waiter, Any, DfsError | None]] = []  # not yet told: the engine is at work
        self._next_expiry_s = _NEVER_S
        self._reads: list[Waiter] = []  # wait for the next round
        self._reads_in_round: list[Waiter] = []
        self._next_read_expiry_s = _NEVER_S
        self._unready_reads: list[Waiter] = []  # wait for the first entry of the own term
        self._leader_round = Round(len(peers) - 1)
        self._prompt: frozenset[str] = frozenset()  # who made up a majority when all were asked; empty: ask all
        self._round_begun_s = 0.0
        self._age = StateAge()

    # --- life -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load what is on disk and join; raise `StorageCorrupt`, `ConfigError`, `DiskFull` or `DiskFailed`."""
        await self.node.start()

    async def close(self) -> None:
        """Stop taking part; safe at any moment, as is a kill."""
        await self.node.close()

    def checkpoint(self) -> None:
        """Begin a checkpoint now, unless one is being written."""
        self.node.engine.checkpoint_soon()
        self.node.wake()

    async def write_checkpoint(self, timeout_s: float) -> CheckpointFile:
        """Write the present state to disk; return when it is there. Changes that came meanwhile are not in it."""
        return await self.node.planned.write_checkpoint(timeout_s)

    def checkpoint_file(self, index: int | None = None) -> CheckpointFile | None:
        """Return a checkpoint of this master, the newest one without an `index`."""
        return self.node.engine.checkpoints.folder.find(index) if self.node.is_open else None

    def transfer_leadership(self) -> bool:
        """Ask the follower with the longest log to take over; return False when there is none or this one is behind."""
        return self.node.planned.ask_to_take_over()

    async def hand_over(self, target: str, timeout_s: float) -> None:
        """Let `target` lead. New proposals wait meanwhile: the successor must have the whole log."""
        if not self.is_leader:
            raise self._not_leader()
        await self.node.planned.hand_over(target, timeout_s)

    # --- what the node tells (dfs.master.raft_node.NodeUser) ------------------------------------------------

    def turn_begins(self) -> None:
        if self._may_submit:
            self._submit_fresh()

    @property
    def _may_submit(self) -> bool:
        """Whether what waits is to become an entry now: it is full, or none is on its way and nobody is waited for."""
        count = len(self._fresh)
        if not count:
            return False
        is_full = self._fresh_size >= ENTRY_SIZE_GOAL or count >= ENTRY_COMMANDS_GOAL
        if not is_full and not (self._company.is_enough(count) and self.node.engine.is_log_applied):
            return False
        return not self.node.planned.is_handing_over

    def turn_ended(self) -> None:
        if self._ended:
            self._tell()
        if self.node.engine.is_log_applied and self._company.all_applied(len(self._fresh), time.monotonic()):
            self._company_timer = self.node.loop.call_later(COMPANY_WAIT_S, self._company_waited)
        if self._may_submit:
            self.node.wake()  # what was under way has been decided in this turn: the next ones may go
        if self._unready_reads:
            self._admit_reads()

    def _company_waited(self) -> None:
        self._stop_company_timer()
        self._company.waited()
        if self._may_submit:
            self.node.wake()

    def _stop_company_timer(self) -> None:
        if self._company_timer is not None:
            self._company_timer.cancel()
            self._company_timer = None

    def timers_due(self, now_s: float) -> None:
        is_round_late = bool(self._reads_in_round) and now_s - self._round_begun_s >= self.node.heartbeat_s
        if self.is_leader and is_round_late:
            self._prompt = frozenset()
            self._begin_leader_round()  # unanswered so far: ask again, and all
        if self._next_expiry_s <= now_s:
            self._expire_proposals(now_s)
        if self._next_read_expiry_s <= now_s:
            self._expire_reads(now_s)
        if not self.is_leader:
            self._ask_age(now_s)

    def role_changed(self, old: int, new: int) -> None:
        self._leader_round.cancel()
        self._prompt = frozenset()
        if old == LEADER:
            self._fail_waiting("leadership was lost")
        if LEADER in (old, new):
            self.node.loop.call_soon(self._on_leadership, new == LEADER)

    def halted(self, why: str, *, was_leader: bool) -> None:
        self._fail_waiting(why)
        if was_leader:
            self.node.loop.call_soon(self._on_leadership, False)

    def prevote_granted(self, peer: str, number: int) -> None:
        self.node.prevote_granted(peer, number)

    # --- proposals ------------------------------------------------------------------------------------------

    async def propose(self, command: bytes, timeout_s: float) -> Any:
        """Return the state machine's result once the command is committed and applied here."""
        wait = _Wait(time.monotonic() + timeout_s)
        self.submit(command, wait)
        return await wait.future

    def submit(self, command: bytes, waiter: Waiter) -> None:
        """Tell `waiter` the state machine's result once the command is committed and applied here."""
        if not self.is_leader:
            raise self._not_leader()
        size = len(command)
        if size > COMMAND_SIZE_MAX:
            raise LimitExceeded(f"a command of {size} bytes is over the limit of {COMMAND_SIZE_MAX}; split it")
        if (
            len(self._fresh) + len(self._proposals) >= PENDING_COMMANDS_MAX
            or self._pending_size + size > PENDING_SIZE_MAX
        ):
            raise Overloaded(f"master {self.node.name} has too many changes waiting; try again in a moment")
        self._fresh.append(_Proposal(command, waiter))
        self._fresh_size += size
        self._pending_size += size
        self._next_expiry_s = min(self._next_expiry_s, waiter.deadline_s)
        if not self.node.is_woken and self._may_submit:
            self.node.wake()

    def _tell(self) -> None:
        """Tell those whose wait has ended. Not from inside of the engine: they do what they like with it."""
        ended, self._ended = self._ended, []
        for waiter, result, error in ended:
            try:
                if not waiter.is_known:
                    waiter.ended(result, error)
            except Exception:  # a bug, of one who waits: the others are told nevertheless
                log.exception("waiter_failed")

    def _tell_soon(self) -> None:
        if self._ended:
            self.node.loop.call_soon(self._tell)

    def _take_fresh(self) -> list[_Proposal]:
        fresh, self._fresh, self._fresh_size = self._fresh, [], 0
        return fresh

    def _submit_fresh(self) -> None:
        fresh = self._take_fresh()
        if not self.node.engine.is_leader:
            for proposal in fresh:
                self._finish(proposal, None, self._not_leader())
            self._tell_soon()
            return
        batch: list[_Proposal] = []
        size = 0
        for proposal in fresh:
            if proposal.waiter.is_known:  # its caller has given up: it never happens
                self._pending_size -= len(proposal.command)
                continue
            if size + len(proposal.command) > ENTRY_SIZE_GOAL and batch:
                self._submit(batch)
                batch, size = [], 0
            batch.append(proposal)
            size += len(proposal.command)
        if batch:
            self._submit(batch)
            self._company.entry_made(time.monotonic())
            self._stop_company_timer()

    def _submit(self, batch: list[_Proposal]) -> None:
        self._proposals.update(dict.fromkeys(batch))

        def done(results: list[Any] | None, reason: int) -> None:
            if batch[0] not in self._proposals:
                return  # all have been told already that leadership was lost
            for proposal in batch:
                self._proposals.pop(proposal, None)
            self._company.decided(len(batch))
            if results is None:
                error = OutcomeUnknown(f"the log entry of the change was not confirmed (Raft: {reason})")
                for proposal in batch:
                    self._finish(proposal, None, error)
                return
            for proposal, result in zip(batch, results, strict=True):
                self._finish(proposal, result, None)

        self.node.engine.submit([proposal.command for proposal in batch], done)

    def _finish(self, proposal: _Proposal, result: Any, error: DfsError | None) -> None:
        self._pending_size -= len(proposal.command)
        self._ended.append((proposal.waiter, result, error))

    def _expire_proposals(self, now: float) -> None:
        """End the waits whose time is over. What is in the log stays there: it may still be committed."""
        self._next_expiry_s = _NEVER_S
        for proposal in (*self._proposals, *self._fresh):
            waiter = proposal.waiter
            if waiter.is_known:
                continue
            if waiter.deadline_s <= now:
                error = OutcomeUnknown("no majority of the masters confirmed the change in time; check that they run")
                self._ended.append((waiter, None, error))
            else:
                self._next_expiry_s = min(self._next_expiry_s, waiter.deadline_s)
        self._tell()

    def _fail_waiting(self, why: str) -> None:
        """End every wait: fresh proposals did not happen, the others may yet."""
        self._stop_company_timer()
        self._company = Company()
        for proposal in self._take_fresh():
            self._finish(proposal, None, self._not_leader())
        proposals, self._proposals = self._proposals, {}
        for proposal in proposals:
            self._finish(proposal, None, OutcomeUnknown(f"{why} while the change was on its way"))
        self._pending_size = 0
        reads = [*self._reads, *self._reads_in_round, *self._unready_reads]
        self._reads, self._reads_in_round, self._unready_reads = [], [], []
        self._ended += ((read, None, self._not_leader()) for read in reads)
        self._tell_soon()

    # --- reads ----------------------------------------------------------------------------------------------

    async def read_barrier(self, timeout_s: float) -> None:
        """Return when the local state holds all that was acknowledged before the call."""
        wait = _Wait(time.monotonic() + timeout_s)
        self.prove(wait)
        await wait.future

    def prove(self, waiter: Waiter) -> None:
        """Tell `waiter` when the local state holds all that was acknowledged before the call."""
        if not self.is_leader:
            raise self._not_leader()
        if len(self._reads) + len(self._reads_in_round) + len(self._unready_reads) >= PENDING_READS_MAX:
            raise Overloaded(f"master {self.node.name} has {PENDING_READS_MAX} reads waiting; try again in a moment")
        self._next_read_expiry_s = min(self._next_read_expiry_s, waiter.deadline_s)
        if self.node.engine.leads_with_own_entry:
            self._queue_read(waiter)
        else:
            self._unready_reads.append(waiter)

    def _expire_reads(self, now: float) -> None:
        """End the waits whose time is over."""
        waiting = [*self._reads, *self._reads_in_round, *self._unready_reads]
        self._next_read_expiry_s = min((read.deadline_s for read in waiting if read.deadline_s > now), default=_NEVER_S)
        count = len(self.node.peers)
        why = (
            f"master {self.node.name} could not prove in time that it leads; check that at least {count // 2 + 1} of "
            f"the {count} masters run and reach each other"
        )
        self._ended += ((read, None, NoQuorum(why)) for read in waiting if read.deadline_s <= now)
        for reads in (self._reads, self._reads_in_round, self._unready_reads):
            reads[:] = [read for read in reads if read.deadline_s > now]
        self._tell()

    def _admit_reads(self) -> None:
        if self.node.engine.leads_with_own_entry:
            reads, self._unready_reads = self._unready_reads, []
            for read in reads:
                self._queue_read(read)

    def _queue_read(self, read: Waiter) -> None:
        """Let a read take part in the next round: one that began before the call would prove nothing for it."""
        self._reads.append(read)
        if len(self._reads) == 1 and not self._reads_in_round:
            self.node.loop.call_soon(self._begin_leader_round)

    def _begin_leader_round(self) -> None:
        """Ask whether this master still leads, for all reads that wait: those who answered first when all were asked.

        A majority is enough, and the others have better things to do. Who is late loses that place.
        """
        if not self.node.is_running or not self.node.engine.is_leader:
            return
        self._reads_in_round += self._reads
        self._reads = []
        self._round_begun_s = time.monotonic()
        question = ReadRound(self.node.journal.term, self._leader_round.begin())
        if question.round % ASK_ALL_EVERY == 0 or not self._prompt.issubset(self.node.transport.connected):
            self._prompt = frozenset()
        if self._prompt:
            for peer in sorted(self._prompt):
                self.node.transport.put(peer, question, self.node.journal.vote_sequence)
        else:
            self.node.transport.broadcast(question)
        if self.node.is_solo:
            self._finish_leader_round()
        self.node.transport.flush()

    def leadership_confirmed(self, peer: str, number: int) -> None:
        self._leader_round.answer(peer, number)
        self._finish_leader_round()

    def _finish_leader_round(self) -> None:
        if not self._leader_round.take():
            return
        self._prompt = self._prompt or self._leader_round.answered
        reads, self._reads_in_round = self._reads_in_round, []
        if self.node.engine.leads_with_own_entry:
            self._age.proved(self._round_begun_s)
        for read in reads:
            self._ended.append((read, None, None))
        self._tell()
        if self._reads:
            self.node.loop.call_soon(self._begin_leader_round)

    def age_asked(self, peer: str, number: int) -> None:
        """Answer a follower once a round that begins now has proved that this master leads."""
        if not self.node.engine.leads_with_own_entry:
            return

        def answer() -> None:
            if self.node.is_running:
                reply = AgeReply(self.node.journal.term, number, self.node.engine.commit_index)
                self.node.transport.put(peer, reply, self.node.journal.vote_sequence)
                self.node.wake()

        self._queue_read(_AgeAsked(answer))

    def age_answered(self, number: int, commit_index: int) -> None:
        self._age.answered(number, commit_index)

    def _ask_age(self, now: float) -> None:
        leader = self.node.engine.leader_name
        if leader in self.node.transport.connected and (number := self._age.question_due(now)) is not None:
            self.node.transport.put(leader, AgeQuery(self.node.journal.term, number), self.node.journal.vote_sequence)
            self.node.wake()

    def staleness_s(self) -> float | None:
        """Return how old the local state is at most, None when nothing is known (dfs.master.raft_age)."""
        if not self.node.is_running:
            return None
        if self.node.is_solo and self.is_leader:
            return 0.0
        return self._age.staleness_s(time.monotonic(), self.node.engine.applied_index)

    # --- facts ----------------------------------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this node believes that it leads (a hint; only `read_barrier` proves it)."""
        return self.node.is_leader

    def status(self) -> LogStatus:
        if not self.node.is_running:
            return LogStatus("stopped", 0, 0, 0, None)
        engine = self.node.engine
        leader = engine.leader_name
        if not engine.is_leader and time.monotonic() - engine.heard_at_s > 2 * self.node.timeouts_s[1]:
            leader = None  # the one that was is not heard of any more
        role = ROLES[engine.role] if self.node.membership.is_member else "joining"
        return LogStatus(role, self.node.journal.term, engine.commit_index, engine.applied_index, leader)

    def _not_leader(self) -> DfsError:
        if self.node.failure is not None:
            return NotLeader(f"master {self.node.name} has stopped: {self.node.failure}")
        return NotLeader(f"master {self.node.name} does not lead")
