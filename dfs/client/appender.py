"""Record append as a program sees it: records go in, their offsets come out, each exactly once.

Owns: the identity and the sequence of one appender, batches, and sending again until the outcome is known. Refuses to
know: how a tail is opened and sealed, and what a record contains (docs/adr/0015).

One batch is under way at a time; what is appended meanwhile goes into the next one. So many waiting records cost one
round along the chain, and their order is the order of the calls.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_told
from dataclasses import dataclass
from itertools import repeat
from types import TracebackType

from dfs.checksum import Buffer, crc32c
from dfs.client.discovery import Masters
from dfs.client.ownership import Owner
from dfs.client.parallel import begin
from dfs.client.plan import backoff_s
from dfs.client.pool import ChannelPool
from dfs.clock import Deadline
from dfs.errors import (
    MAY_HAVE_HAPPENED,
    AppenderUnknown,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    InvalidArgument,
    LimitExceeded,
    NoQuorum,
    NotEnoughServers,
    ProtocolError,
    Retry,
    TailClosed,
)
from dfs.ids import ID_SIZE, ChunkHandle
from dfs.jitter import draw
from dfs.log import get_logger
from dfs.net.blocking import expect
from dfs.net.messages import (
    GROUP_RECORDS_MAX,
    GROUP_SIZE_MAX,
    AppendRecords,
    AppendRecordsReply,
    OpenTail,
    OpenTailReply,
)
from dfs.net.parts import RecordGroup

CONNECT_TIMEOUT_S = 2.0  # to the head of a tail
APPEND_TIMEOUT_S = 8.0  # for a batch to be durable on a chain; longer than a chain waits for its own servers
BATCH_SIZE_MAX = GROUP_SIZE_MAX  # bytes of several records in one batch
PIECE_SIZE_MIN = (
    64 * 1024
)  # bytes of a record from which it is sent by itself; copying smaller ones together is cheaper
WAITING_SIZE_MAX = 64 * 1024 * 1024  # bytes that wait to be sent; `append` waits then, too
WAITING_COUNT_MAX = 16 * GROUP_RECORDS_MAX  # records, likewise
CLOSE_TIMEOUT_S = 3.0  # to say goodbye; nothing depends on it but the memory of the masters

_NO_TAIL = ChunkHandle(b"")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Target:
    """The tail in use: its head, and what opens it."""

    handle: ChunkHandle
    token: bytes
    head: str


@dataclass(frozen=True, slots=True)
class _Broken:
    """The tail that was in use and is over; whom to leave out of the next one, and what that must be able to take."""

    handle: ChunkHandle = _NO_TAIL
    failed: tuple[str, ...] = ()
    room: int = 0


@dataclass(slots=True)
class _Pending:
    """A record that waits for its offset."""

    data: Buffer
    crc: int
    outcome: Future[int]


class Appender:
    """Appends records to one file. Thread-safe; a context manager, or `close` it.

    A record whose future has a result is in the file exactly once, whole, at that offset, and stays there. When a
    future has an error, its record and those after it may be in the file or not: nothing more is sent. A new `Appender`
    with the same `identity` then finds out (`last_sequence`) and goes on.
    """

    def __init__(
        self,
        masters: Masters,
        pool: ChannelPool,
        path: str,
        *,
        timeout_s: float,
        create: bool = True,
        identity: bytes | None = None,
    ) -> None:
        """`identity`: of an earlier appender of this file that is to be continued; raise as `OpenTail` then."""
        if identity is not None and len(identity) != ID_SIZE:
            raise InvalidArgument(f"the identity of an appender has {ID_SIZE} bytes, not {len(identity)}")
        self.path = path
        self.identity = identity or os.urandom(ID_SIZE)
        self._masters = masters
        self._pool = pool
        self._timeout_s = timeout_s
        self._create = create
        self._target: _Target | None = None
        self._record_size_max = 0
        self._inode = 0  # of the file, once it is known: what is sent again must not reach another one
        self._acknowledged = 0  # sequence of the last record whose outcome is known
        self._changed = threading.Condition()
        self._waiting: deque[_Pending] = deque()
        self._waiting_size = 0
        self._in_flight = 0
        self._telling: dict[int, Sequence[_Pending]] = {}  # by thread: what it tells the outcomes of at this moment
        self._is_closing = False
        self._failure: DfsError | None = None
        self._owner = Owner()
        if identity is not None:
            self._acknowledged = self._resume(Deadline.after(timeout_s))
        self._thread: threading.Thread | None = None

    def _resume(self, deadline: Deadline) -> int:
        """Return the last record of this identity that is in the file.

        The tail is sealed before: what the earlier appender may still have on its way names that tail, and is refused.
        """
        before = self._open(_Broken(), deadline)
        self._open(_Broken(before.handle), deadline)
        return self._send((), deadline).last_sequence

    @property
    def last_sequence(self) -> int:
        """How many records of this identity are in the file, as far as it is known: they count from 1.

        An identity is one program's at a time. Of one that was closed, or silent for more than a day, the masters know
        nothing: this is 0 then.
        """
        self._owner.check()
        with self._changed:
            return self._acknowledged

    # --- appending ----------------------------------------------------------------------------------------

    def append(self, data: Buffer) -> Future[int]:
        """Take a record; the future tells its offset in the file when it is durable on all servers of its chain.

        Waits while too much waits to be sent. `data` must not change before the outcome is known.
        """
        self._owner.check()
        size = memoryview(data).nbytes
        if not size:
            raise InvalidArgument("a record has at least one byte")
        if self._record_size_max and size > self._record_size_max:
            raise _too_large(size, self._record_size_max)
        pending = _Pending(data, crc32c(data), Future())  # here: the thread that sends has other things to wait for
        deadline = Deadline.after(self._timeout_s)
        with self._changed:
            while self._is_full(size) and self._failure is None:
                self._changed.wait(deadline.check("waiting for earlier records of this appender"))
            if self._failure is not None:
                raise self._failure.with_traceback(None)  # see _fail
            if self._is_closing:
                raise InvalidArgument("this appender is closed; make a new one")
            if self._thread is None:
                self._thread = begin(threading.Thread(target=self._run, name="dfs-appender", daemon=True))
            self._waiting.append(pending)
            self._waiting_size += size
            self._changed.notify_all()
        return pending.outcome

    def _is_full(self, size: int) -> bool:
        too_large = self._waiting_size + size > WAITING_SIZE_MAX and bool(self._waiting)
        return too_large or len(self._waiting) >= WAITING_COUNT_MAX

    def flush(self) -> None:
        """Return when the outcome of every record taken so far is known; raise the error of one that failed."""
        self._owner.check()
        with self._changed:
            while (self._waiting or self._in_flight) and self._failure is None:
                self._changed.wait()
            own = threading.get_ident()  # this may be asked by who hears of an outcome: he does not wait for himself
            telling = [item.outcome for thread, items in self._telling.items() if thread != own for item in items]
        wait_told(telling)
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # see _fail

    def close(self) -> None:
        """Flush, and let the masters forget this appender: it is never continued. Again is harmless."""
        if not self._owner.is_here:
            return  # its records are those of the process that made it
        with self._changed:
            is_first, self._is_closing = not self._is_closing, True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # see _fail
        if is_first and self._acknowledged:
            try:
                self._send((), Deadline.after(CLOSE_TIMEOUT_S), is_closing=True)
            except DfsError as error:  # it is forgotten after a day then
                log.debug("appender_not_closed", path=self.path, reason=error.message)

    def abandon(self) -> None:
        """Stop without waiting; records without an outcome may be in the file or not. The identity stays known."""
        if not self._owner.is_here:
            return
        error = DeadlineExceeded("the appender was abandoned; its last records may be in the file or not")
        with self._changed:
            self._is_closing = True
            failed = self._fail(error)
        self._tell(failed, repeat(self._failure or error))

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    # --- the thread that sends -------------------------------------------------------------------------------

    def _run(self) -> None:
        """The root of the appender's thread."""
        batch: list[_Pending] = []
        try:
            self._open(_Broken(), Deadline.after(self._timeout_s))  # also tells how large a batch may be
            while batch := self._next_batch():
                reply = self._send(batch, Deadline.after(self._timeout_s))
                self._finish(batch, reply)
        except DfsError as error:
            self._give_up(batch, error)
        except Exception as error:  # a thread root: whoever waits must hear of it
            log.exception("appender_crashed", path=self.path)
            self._give_up(batch, ProtocolError(f"the appender met a bug: {error!r}"))

    def _next_batch(self) -> list[_Pending]:
        with self._changed:
            while not self._waiting and not self._is_closing:
                self._changed.wait()
            if self._failure is not None:
                return []
            batch: list[_Pending] = []
            size = 0
            while self._waiting and len(batch) < GROUP_RECORDS_MAX:
                size += memoryview(self._waiting[0].data).nbytes
                if batch and size > min(BATCH_SIZE_MAX, self._record_size_max):
                    break
                batch.append(self._waiting.popleft())
            self._waiting_size -= sum(memoryview(item.data).nbytes for item in batch)
            self._in_flight = len(batch)
            self._changed.notify_all()
            return batch

    def _finish(self, batch: list[_Pending], reply: AppendRecordsReply) -> None:
        if len(reply.offsets) != len(batch):
            raise ProtocolError(f"{len(batch)} records were sent, {len(reply.offsets)} were acknowledged")
        with self._changed:
            self._acknowledged += len(batch)
            self._in_flight = 0
            self._telling[threading.get_ident()] = batch
            self._changed.notify_all()
        self._tell(batch, reply.offsets)

    def _give_up(self, batch: list[_Pending], error: DfsError) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(batch))
            self._in_flight = 0
            failed = self._fail(error)
        self._tell(failed, repeat(self._failure or error))

    def _fail(self, error: DfsError) -> Sequence[_Pending]:
        """End for ever; return the records that are to be told of it. The lock is held.

        The error is raised again and again: its traceback would keep all calls that failed, and their records.
        """
        self._failure = self._failure or error
        failed, self._waiting = self._waiting, deque()
        self._telling[threading.get_ident()] = failed
        self._changed.notify_all()
        return failed

    def _tell(self, items: Sequence[_Pending], outcomes: Iterable[int | DfsError]) -> None:
        """Tell outcomes, without the lock: who hears of one may wait for somebody who waits for the lock."""
        try:
            for item, outcome in zip(items, outcomes, strict=False):
                if not item.outcome.set_running_or_notify_cancel():
                    continue
                if isinstance(outcome, DfsError):
                    item.outcome.set_exception(outcome)
                else:
                    item.outcome.set_result(outcome)
        finally:
            with self._changed:
                self._telling.pop(threading.get_ident(), None)

    # --- sending -----------------------------------------------------------------------------------------------

    def _send(self, batch: Sequence[_Pending], deadline: Deadline, *, is_closing: bool = False) -> AppendRecordsReply:
        """Append a batch, again at each new tail under the same sequences, until its outcome is known."""
        next_sequence = self._acknowledged + 1
        records = tuple(item.data for item in batch)
        group = RecordGroup(
            self.identity,
            next_sequence,
            next_sequence,
            tuple(memoryview(record).nbytes for record in records),
            tuple(item.crc for item in batch),
            is_closing,
        )
        attempt = 0
        broken = _Broken()
        while True:
            target = self._target or self._open(broken, deadline, is_again=attempt > 0, may_create=not is_closing)
            if max(group.lengths, default=0) > self._record_size_max:
                raise _too_large(max(group.lengths), self._record_size_max)
            try:
                return self._attempt(target, group, records, deadline)
            except DfsError as error:
                reason = error
            self._target = None
            if isinstance(reason, AppenderUnknown) or (reason.retry is Retry.NEVER and not _is_silence(reason)):
                raise reason
            broken = _broken_by(reason, target)
            log.info("append_tried_again", path=self.path, code=reason.code, reason=reason.message)
            if deadline.has_passed:
                raise self._unknown(reason)
            attempt += 1
            if attempt > 1:
                time.sleep(min(backoff_s(attempt, draw()), deadline.remaining_s()))

    def _attempt(
        self, target: _Target, group: RecordGroup, records: tuple[Buffer, ...], deadline: Deadline
    ) -> AppendRecordsReply:
        size, request = sum(group.lengths), AppendRecords(target.handle, target.token, group)
        is_joined = size < len(records) * PIECE_SIZE_MIN or len(records) < 2
        with self._pool.channel(target.head, deadline.no_later_than(CONNECT_TIMEOUT_S), bulk=True) as channel:
            sending = deadline.no_later_than(APPEND_TIMEOUT_S)
            if is_joined:
                payload = records[0] if len(records) == 1 else b"".join(records)
                channel.send(request, sending, payload=payload)
            else:
                channel.send(request, sending, payload_size=size)
                for record in records:
                    channel.send_bytes(record, sending)
            return expect(channel.receive(sending).message, AppendRecordsReply)

    def _open(self, broken: _Broken, deadline: Deadline, *, is_again: bool = False, may_create: bool = True) -> _Target:
        """Ask for the tail to use.

        `is_again`: for records that were sent before, and may be in the file. `may_create`: not for one that only says
        goodbye, which must not bring back a file that was renamed or deleted.
        """
        is_created = self._create and may_create
        request = OpenTail(self.path, is_created, broken.handle, broken.failed, self._inode, broken.room)
        try:
            reply = self._masters.call(request, OpenTailReply, deadline)
        except (ConnectionFailed, DeadlineExceeded, NoQuorum, NotEnoughServers) as error:
            raise self._unknown(error) from None
        except DfsError as error:
            if is_again:
                error.details[MAY_HAVE_HAPPENED] = "yes"
            raise
        tail = reply.tail
        if not tail.chain or not 0 <= tail.chain[0] < len(reply.servers):
            raise ProtocolError("a master opened a tail on no server; is it of another version?")
        self._record_size_max = reply.record_size_max
        self._inode = reply.inode
        self._target = _Target(tail.handle, tail.token, reply.servers[tail.chain[0]].address)
        return self._target

    def _unknown(self, error: DfsError) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"appending to {self.path!r} did not succeed; the records without an offset may be in the file or not "
            f"({error.message})",
            **{MAY_HAVE_HAPPENED: "yes"},
        )


def _broken_by(error: DfsError, target: _Target) -> _Broken:
    """Return what to tell the masters about a tail at which an attempt failed."""
    if not isinstance(error, TailClosed | ConnectionFailed) and not _is_silence(error):
        return _Broken()
    is_head_lost = isinstance(error, ConnectionFailed) or (_is_silence(error) and not error.details.get("failed"))
    failed = target.head if is_head_lost else error.details.get("failed", "")
    room = error.details.get("room", "")
    return _Broken(target.handle, tuple(filter(None, failed.split(","))), int(room) if room.isdecimal() else 0)


def _is_silence(error: DfsError) -> bool:
    return isinstance(error, DeadlineExceeded)


def _too_large(size: int, size_max: int) -> LimitExceeded:
    return LimitExceeded(
        f"a record of {size} bytes is over the limit of {size_max} (a quarter of a chunk); append it as a file"
    )
