"""Who leads, and what is done only by the leader: proposals, read barriers, and the refusal of everybody else.

Owns: the time budgets of the log, the envelope of proposals, and the words for "not me" and "nobody".
Refuses to know: what a command or a read is about.
"""

from __future__ import annotations

from dfs.clock import Clock, Deadline
from dfs.config import ClusterConfig
from dfs.errors import DfsError, InternalError, InvalidArgument, NoQuorum, NotLeader
from dfs.log import get_logger
from dfs.master.replicated_log import LogStatus, ReplicatedLog, Waiter
from dfs.master.state.commands import encode_command
from dfs.net.messages import ErrorReply, Message

PROPOSE_TIMEOUT_S = 10.0  # a majority on slow disks answers well before; the client resends after OutcomeUnknown
BARRIER_TIMEOUT_S = 5.0
HAND_OVER_TIMEOUT_S = 5.0
DUTY_TIMEOUT_S = 10.0  # for the leader's own commands

log = get_logger(__name__)


class Leadership:
    """This master's way to the replicated log."""

    def __init__(self, log: ReplicatedLog, config: ClusterConfig, name: str, clock: Clock) -> None:
        self._log = log
        self._config = config
        self._clock = clock
        self.name = name

    @property
    def is_leader(self) -> bool:
        return self._log.is_leader

    def status(self) -> LogStatus:
        return self._log.status()

    def require(self) -> None:
        """Raise `NotLeader` or `NoQuorum` unless this master believes that it leads (no proof: see `barrier`)."""
        if not self._log.is_leader:
            raise self.refusal()

    def refusal(self) -> DfsError:
        """Return the error that sends a caller to the leader, or says which masters are needed to have one."""
        status, config = self._log.status(), self._config
        known = None if status.role == "candidate" else status.leader  # a candidate has given its last leader up
        leader = next((m for m in config.masters if m.name == known and m.name != self.name), None)
        if leader is not None:
            return NotLeader(
                f"master {self.name} does not lead; ask master {leader.name} at {leader.address}", leader=leader.address
            )
        others = ", ".join(f"{master.name} ({master.address})" for master in config.masters if master.name != self.name)
        count, where = len(config.masters), f"master {self.name} ({status.role}, term {status.term})"
        return NoQuorum(
            f"cluster {config.name} has no leader at this moment: {where} follows none; {count // 2 + 1} of the {count}"
            " masters must run and reach each other; try again, and if it stays so, check the others: "
            f"{others or 'there are none'}"
        )

    def is_within(self, age_s: float) -> bool:
        """Whether the local state is provably at most `age_s` old, whoever leads."""
        staleness_s = self._log.staleness_s()
        return staleness_s is not None and staleness_s <= age_s

    async def hand_over(self, target: str, deadline: Deadline) -> None:
        """Let the master `target` lead; raise as `ReplicatedLog.hand_over` does."""
        known = [master.name for master in self._config.masters]
        if target not in known:
            raise InvalidArgument(f"cluster {self._config.name} has no master {target!r}; it has {', '.join(known)}")
        try:
            await self._log.hand_over(target, min(deadline.check("handing over the leadership"), HAND_OVER_TIMEOUT_S))
        except NotLeader:
            raise self.refusal() from None

    async def retire(self, deadline: Deadline) -> None:
        """Give the leadership away, if this master has it, to the first other one that can take it; for its stop.

        Callers are sent to the successor while this master still answers: none waits for an election.
        """
        for other in self._config.masters:
            if other.name == self.name or not self._log.is_leader or deadline.has_passed:
                continue
            try:
                await self.hand_over(other.name, deadline)
                return
            except DfsError as error:
                log.info("master_cannot_take_over", other=other.name, code=error.code, reason=error.message)

    async def barrier(self, deadline: Deadline) -> None:
        """Return when the local state may be read on behalf of a client; the caller reads it without awaiting."""
        try:
            await self._log.read_barrier(min(deadline.check("waiting for the masters"), BARRIER_TIMEOUT_S))
        except NotLeader:
            raise self.refusal() from None

    async def propose(self, command: Message, deadline: Deadline) -> Message:
        """Return the state machine's reply, which may be an `ErrorReply`. Raise as `ReplicatedLog.propose` does."""
        self.require()
        budget_s = min(deadline.check("handing the call to the masters"), PROPOSE_TIMEOUT_S)
        try:
            reply = await self._log.propose(encode_command(self._clock.wall_ms(), command), budget_s)
        except NotLeader:
            raise self.refusal() from None
        if not isinstance(reply, Message):
            raise self.no_reply(command, reply)
        return reply

    def prove(self, waiter: Waiter) -> None:
        """Tell `waiter` when the local state may be read on behalf of a client, or how that failed (see `failure`)."""
        try:
            self._log.prove(waiter)
        except NotLeader:
            raise self.refusal() from None

    def submit(self, command: Message, waiter: Waiter) -> None:
        """Tell `waiter` the state machine's reply, or how that failed (see `failure`)."""
        try:
            self._log.submit(encode_command(self._clock.wall_ms(), command), waiter)
        except NotLeader:
            raise self.refusal() from None

    def failure(self, error: DfsError) -> DfsError:
        """Return what a caller is to hear of an error that the log has told."""
        return self.refusal() if isinstance(error, NotLeader) else error

    @staticmethod
    def no_reply(command: Message, result: object) -> InternalError:
        """Return the error about a state machine that answers a command with something else than a message."""
        return InternalError(f"the state machine answered {type(command).__name__} with {type(result).__name__}")

    async def decree(self, command: Message) -> Message:
        """Carry out one of the leader's own commands; an `ErrorReply` is raised as its error."""
        reply = await self.propose(command, Deadline.after(DUTY_TIMEOUT_S))
        if isinstance(reply, ErrorReply):
            raise reply.error()
        return reply
