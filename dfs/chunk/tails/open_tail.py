"""One open tail at work: rounds of the head, rounds that come down the chain, and the fence.

Owns: who may write when, what is durable, what is committed, and that nothing is acknowledged after a fence. Refuses to
know: the format of the file, message loops and tokens (docs/adr/0015).

Every failure ends the tail for ever: no step here is tried again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from dfs.checksum import Buffer
from dfs.chunk.tails.log import RESERVE_SIZE, WRITEBACK_SIZE, Round, TailFile
from dfs.chunk.tails.order import Admission, Ledger
from dfs.clock import Deadline
from dfs.errors import DfsError, DiskFailed, InvalidArgument, StaleReplica, TailClosed
from dfs.ids import id_text
from dfs.net.messages import AppendRecords, AppendRecordsReply, ReplicateRecords
from dfs.net.parts import RecordGroup

ROUND_SIZE_MAX = 16 * 1024 * 1024  # bytes taken into one round, if it is more than one group
ROUND_GROUPS_MAX = 256  # groups in one round
ROOM_PLENTY = 8 * RESERVE_SIZE  # bytes above the reserve of a disk from which on room is made ahead in its tails
ROUND_TIMEOUT_S = 5.0  # for the rest of the chain to take a round and sync it


class Receipt(Protocol):
    """A round that is on its way down the chain."""

    def wait(self) -> None:
        """Return when all servers there have it on disk; raise an error whose `failed` names who has not."""

    def abandon(self) -> None:
        """Do not wait for it; harmless after `wait`."""


Forward = Callable[[ReplicateRecords, Buffer, Deadline], Receipt]  # sends a round to the next server
Judge = Callable[[OSError, str], DfsError]  # what an error of the operating system means, and does, to the disk
CheckRoom = Callable[[int], None]  # raises when the disk has no room for so many bytes above its reserve


@dataclass(slots=True)
class _Job:
    """A request that waits for its round."""

    request: AppendRecords
    data: Buffer
    answer: AppendRecordsReply | DfsError | None = None


class OpenTail:
    """A tail that this process made and has served ever since. Safe in any thread."""

    def __init__(
        self,
        file: TailFile,
        ledger: Ledger,
        forward: Forward | None,
        judge: Judge | None = None,
        *,
        is_head: bool = True,
        check_room: CheckRoom = lambda _: None,
    ) -> None:
        """`forward`: the way to the rest of the chain, None at its end. `is_head`: as the master made this tail."""
        self.handle = file.handle
        self.file = file
        self.durable = 0  # bytes on this server's disk
        self._ledger = ledger  # in use at the head only
        self._forward = forward
        self._judge = judge or _failed_disk
        self._check_room = check_room
        self._is_head = is_head
        self._changed = threading.Condition()
        self._writing = threading.Lock()  # held by the one round that comes down the chain
        self._queue: list[_Job] = []
        self._is_running = False
        self._committed = 0  # bytes on all servers of the chain; only the head knows
        self._is_fenced = False
        self._failure = ""
        self._failed = ""  # addresses to leave out in the next chain

    # --- the head ---------------------------------------------------------------------------------------

    def append(self, request: AppendRecords, data: Buffer) -> AppendRecordsReply:
        """Return when the records are durable on the whole chain; raise as `Ledger.admit`, or `TailClosed`."""
        job = _Job(request, data)
        self._check_role(is_head=True)
        with self._changed:
            self._queue.append(job)
        while True:
            with self._changed:
                while job.answer is None and self._is_running:
                    self._changed.wait()
                if isinstance(job.answer, DfsError):
                    raise type(job.answer)(job.answer.message, **job.answer.details)  # see `_admit`
                if job.answer is not None:
                    return job.answer
                self._is_running = True
                jobs = self._take_jobs()
            try:
                self._run_round(jobs)
            except BaseException:  # what was admitted may not be in the file: nothing may be ordered behind it
                self._fail("a round ended without a result; this is a bug of dfs", "")
                raise
            finally:
                with self._changed:
                    self._is_running = False
                    for unanswered in jobs:
                        unanswered.answer = unanswered.answer or self._closed()
                    self._changed.notify_all()

    def _take_jobs(self) -> list[_Job]:
        size, count = 0, 0
        for job in self._queue[:ROUND_GROUPS_MAX]:
            size += len(job.data)
            if count and size > ROUND_SIZE_MAX:
                break
            count += 1
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken

    def _run_round(self, jobs: list[_Job]) -> None:
        """Order, store and replicate what is new in these requests, and answer all of them."""
        with self._changed:
            if self._is_fenced:
                return
            offset = self._ledger.length
            admitted = [(job, admission) for job in jobs if (admission := self._admit(job)) is not None]
        groups = tuple(admission.fresh for _, admission in admitted if admission.fresh is not None)
        if groups:
            pieces = [_fresh_data(job.data, job.request.group, admission) for job, admission in admitted]
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            message = ReplicateRecords(self.handle, jobs[0].request.token, offset, groups)
            if not self._store(message, data, is_head=True):
                return
        for job, admission in admitted:
            job.answer = AppendRecordsReply(admission.offsets, admission.last_sequence)

    def _admit(self, job: _Job) -> Admission | None:
        try:
            return self._ledger.admit(job.request.group)
        except DfsError as error:
            job.answer = error.with_traceback(None)  # it would keep this frame, and so the job's data, in a circle
            return None

    # --- every server -------------------------------------------------------------------------------------

    def replicate(self, message: ReplicateRecords, data: Buffer) -> int:
        """Take the next round from the server before; return the length when it is durable here and below."""
        self._check_role(is_head=False)
        with self._writing:
            if message.offset != self.file.length:
                self._fail(f"a round for {message.offset} came, the tail ends at {self.file.length}", "")
            if not self._store(message, data, is_head=False):
                raise self._closed()
            return self.file.length

    def _check_role(self, *, is_head: bool) -> None:
        """Raise `InvalidArgument` when the tail has the other role: rounds of both kinds would spoil its order."""
        if self._is_head is not is_head:
            role = "the head" if self._is_head else "not the head"
            raise InvalidArgument(f"this server is {role} of the chain of tail {id_text(self.handle)}")

    def _store(self, message: ReplicateRecords, data: Buffer, *, is_head: bool) -> bool:
        """Write a round here and below; whether all of that happened before a fence. A failure ends the tail."""
        if self._is_over():
            return False
        receipt = None
        try:
            self._check_room(len(data))
            if self._forward is not None:  # first: the last server of a chain is what the others wait for
                receipt = self._forward(message, data, Deadline.after(ROUND_TIMEOUT_S))
            if len(data) >= WRITEBACK_SIZE and self._has_plenty():
                self.file.make_room(len(data))
            with self._errors_judged():
                self.file.stage(data)
                self.file.append(Round(message.offset, message.groups))
            with self._changed:
                if self._is_over():
                    return False  # the fence has told a shorter length: this round must never be acknowledged
                self.durable = self.file.length
            if receipt is not None:
                receipt.wait()
        except DfsError as error:
            self._fail(error.message, error.details.get("failed") or error.details.get("address", ""))
            return False
        finally:
            if receipt is not None:
                receipt.abandon()
        if is_head:
            with self._changed:
                self._committed = self.durable
                self._changed.notify_all()
        return True

    def _has_plenty(self) -> bool:
        """Whether room made ahead would leave enough of it to others, and the reserve alone."""
        try:
            self._check_room(ROOM_PLENTY)
        except DfsError:
            return False
        return True

    @contextlib.contextmanager
    def _errors_judged(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._judge(error, f"writing tail {id_text(self.handle)}") from None

    def _is_over(self) -> bool:
        return self._is_fenced

    def _fail(self, reason: str, failed: str) -> None:
        with self._changed:
            self._is_fenced = True
            self._failure = self._failure or reason
            self._failed = self._failed or failed
            self._changed.notify_all()

    def _closed(self) -> TailClosed:
        why = self._failure or "it was sealed"
        text = f"tail {id_text(self.handle)} takes no more records ({why}); ask a master for the next one"
        return TailClosed(text, failed=self._failed) if self._failed else TailClosed(text)

    def fence(self) -> int:
        """Let nothing be acknowledged from now on; return the bytes that are durable here."""
        with self._changed:
            self._is_fenced = True
            self._changed.notify_all()
            return self.durable

    def end(self) -> None:
        """Fence, and let nothing be written to the file any more: it is about to become a sealed replica."""
        self.fence()
        self.file.end_writing()

    # --- reading ------------------------------------------------------------------------------------------

    def wait_committed(self, offset: int, wait_s: float) -> int:
        """Return what is committed as soon as it is beyond `offset`, or after `wait_s`; raise `TailClosed`.

        A fenced tail tells nothing: what was appended after it was sealed stands elsewhere.
        """
        until_s = time.monotonic() + wait_s
        with self._changed:
            while not self._is_fenced and self._committed <= offset:
                left_s = until_s - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            if self._is_fenced:
                raise self._closed()
            return self._committed

    def read(self, offset: int, committed: int, size_max: int) -> tuple[int, list[int], list[int], bytes]:
        """Return committed records as `TailFile.read` does."""
        try:
            return self.file.read(offset, committed, size_max)
        except OSError as error:
            raise self._judge(error, f"reading tail {id_text(self.handle)}") from None


def _failed_disk(error: OSError, doing: str) -> DfsError:
    return DiskFailed(f"{doing} failed: {error.strerror or error}")


def _fresh_data(data: Buffer, group: RecordGroup, admission: Admission) -> Buffer:
    if admission.fresh is None:
        return b""
    return data[sum(group.lengths[: admission.skipped]) :] if admission.skipped else data


def check_read(offset: int, committed: int) -> None:
    """Raise `StaleReplica` when a reader knows of more than is committed here."""
    if offset > committed:
        raise StaleReplica(f"byte {offset} of a tail was asked for, {committed} are committed; locate the file again")
