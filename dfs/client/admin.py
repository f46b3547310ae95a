"""What an administrator does with the masters: look at each, hand the leadership over, have a checkpoint written.

Owns: which master is asked for what, and waiting until it is done.
Refuses to know: what is in a checkpoint, and output.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from dfs.client.discovery import Masters
from dfs.clock import Deadline
from dfs.errors import ConnectionFailed, DeadlineExceeded, DfsError, InvalidArgument, NoQuorum, NotLeader
from dfs.net.messages import (
    GetMasterStatus,
    GetMasterStatusReply,
    Message,
    ReadCheckpoint,
    ReadCheckpointReply,
    Stat,
    StatReply,
    TransferLeadership,
    TransferLeadershipReply,
    WriteCheckpoint,
    WriteCheckpointReply,
)
from dfs.net.parts import CheckpointStatus, MasterStatus

STATUS_TIMEOUT_S = 3.0  # a master that says nothing for so long counts as silent
POLL_INTERVAL_S = 0.02
ATTEMPT_TIMEOUT_S = 1.0  # of asking whether a new leader answers
CHECKPOINT_TIMEOUT_S = 1800.0  # a master gives up by itself then

T = TypeVar("T", bound=Message)


@dataclass(frozen=True, slots=True)
class MasterAnswer:
    """What the master at `address` said of itself; `error` when it said nothing."""

    address: str
    status: MasterStatus | None
    error: DfsError | None

    @property
    def name(self) -> str:
        """Its name, empty when it said nothing."""
        return "" if self.status is None else self.status.name

    @property
    def rank(self) -> tuple[int, int, str]:
        """Greater for one that is further ahead."""
        return (0, 0, "") if self.status is None else (self.status.term, self.status.applied, self.status.name)


@dataclass(frozen=True, slots=True)
class HandOver:
    """A planned change of leader. `duration_s`: from asking for it until the new leader answered a read."""

    old: str
    new: str
    duration_s: float


class ClusterAdmin:
    """The masters of one cluster, each by its name. Get one from `DfsClient.admin`. Thread-safe."""

    def __init__(self, masters: Masters, timeout_s: float) -> None:
        self._masters, self._timeout_s = masters, timeout_s

    def masters(self) -> list[MasterAnswer]:
        """Ask each known master for itself, all at once."""
        deadline = Deadline.after(min(self._timeout_s, STATUS_TIMEOUT_S))

        def ask(address: str) -> MasterAnswer:
            try:
                reply = self._masters.ask(address, GetMasterStatus(), GetMasterStatusReply, deadline)
            except DfsError as error:
                return MasterAnswer(address, None, error)
            return MasterAnswer(address, reply.master, None)

        addresses = self._masters.addresses
        with ThreadPoolExecutor(len(addresses), "dfs-masters") as executor:
            return [*executor.map(ask, addresses)]

    # --- leadership -----------------------------------------------------------------------------------------

    def transfer_leadership(self, target: str | None = None) -> HandOver:
        """Let `target` lead (None: the follower that is most caught up); return when it answers.

        Raise `InvalidArgument` when there is no such master or it does not answer, and `NoQuorum` when nobody leads or
        the target did not come to lead; then the cluster goes on as it was, or elects by itself.
        """
        deadline = Deadline.after(self._timeout_s)
        while True:
            leader, answers = self._leader(deadline)
            successor = _successor(target, leader, answers)
            if successor.name == leader.name:
                return HandOver(leader.name, leader.name, 0.0)
            begun_s = time.monotonic()
            try:
                message = TransferLeadership(successor.name)
                self._masters.ask(leader.address, message, TransferLeadershipReply, deadline)
            except NotLeader:  # it lost the leadership meanwhile
                time.sleep(POLL_INTERVAL_S)
                continue
            self._wait_until_leads(successor, deadline)
            return HandOver(leader.name, successor.name, time.monotonic() - begun_s)

    def _leader(self, deadline: Deadline) -> tuple[MasterAnswer, list[MasterAnswer]]:
        """Return the master that leads, waiting for an election, and what all said."""
        while True:
            answers = self.masters()
            leaders = [answer for answer in answers if answer.status is not None and answer.status.role == "leader"]
            if leaders:
                return max(leaders, key=lambda answer: answer.rank), answers
            if deadline.has_passed:
                raise NoQuorum("no master leads at this moment; look with `dfs status`")
            time.sleep(POLL_INTERVAL_S)

    def _wait_until_leads(self, master: MasterAnswer, deadline: Deadline) -> None:
        while True:
            try:
                self._masters.ask(master.address, Stat("/"), StatReply, deadline.no_later_than(ATTEMPT_TIMEOUT_S))
            except (NotLeader, NoQuorum, ConnectionFailed, DeadlineExceeded) as error:
                if deadline.has_passed:
                    raise NoQuorum(f"master {master.name} was to lead and does not answer: {error}") from error
                time.sleep(POLL_INTERVAL_S)
            else:
                return

    # --- checkpoints ----------------------------------------------------------------------------------------

    def write_checkpoint(self, address: str, *, is_current: bool = False) -> CheckpointStatus:
        """Have the master at `address` write a checkpoint; return when it is on its disk.

        `is_current`: only the leader does it, and the checkpoint holds all that was acknowledged before this call.
        """
        deadline = Deadline.after(max(self._timeout_s, CHECKPOINT_TIMEOUT_S))
        return self._masters.ask(address, WriteCheckpoint(is_current), WriteCheckpointReply, deadline).checkpoint

    def fetch_state(self, target: BinaryIO) -> CheckpointStatus:
        """Write the leader's state of one instant, which is not before this call, to `target`: a checkpoint file."""
        address = self._leader(Deadline.after(self._timeout_s))[0].address
        checkpoint = self.write_checkpoint(address, is_current=True)
        offset = 0
        while True:
            piece = self._masters.ask(
                address, ReadCheckpoint(checkpoint.index, offset), ReadCheckpointReply, Deadline.after(self._timeout_s)
            )
            target.write(piece.data)
            offset += len(piece.data)
            if piece.is_last:
                return checkpoint
            if not piece.data:
                raise ConnectionFailed(f"the master at {address} sent nothing of a checkpoint that goes on")


def _successor(target: str | None, leader: MasterAnswer, answers: list[MasterAnswer]) -> MasterAnswer:
    """Return the master named `target`; without a name the follower that is most caught up."""
    if target is None:
        followers = [answer for answer in answers if answer.status is not None and answer.status.role == "follower"]
        if not followers:
            raise NoQuorum(f"no other master could lead instead of {leader.name}; look with `dfs admin masters`")
        return max(followers, key=lambda answer: answer.rank)
    found = next((answer for answer in answers if answer.name == target), None)
    if found is None:
        known = ", ".join(sorted(answer.name for answer in answers if answer.status is not None))
        silent = ", ".join(answer.address for answer in answers if answer.status is None)
        raise InvalidArgument(
            f"no master {target!r} answers; those that do: {known}" + (f"; silent: {silent}" if silent else "")
        )
    return found
