"""Do the parts of a transfer in several threads, in order, and stop them all at once.

Owns: the threads of one transfer, their number and their end; the meter of progress they share. Refuses to know: what
the parts are.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from dfs.client.ownership import Owner
from dfs.clock import Deadline
from dfs.errors import Overloaded
from dfs.net.blocking import Channel

LEAVE_WAIT_S = 5.0  # for the threads of a transfer that nobody wants any more; they end as soon as they notice

T = TypeVar("T")
R = TypeVar("R")


class CancelledTransfer(Exception):
    """Ends a worker of a transfer that is over: another part failed, or the user left. Never leaves dfs.client."""


class Cancellation:
    """The end of one transfer, as its workers see it: a flag, and a wake-up for those that wait for a server."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may end the transfer in the midst of `watch`
        self._is_cancelled = False
        self._owner = Owner()
        self._channels: set[Channel] = set()

    def check(self) -> None:
        """Raise `CancelledTransfer` when the transfer is over."""
        if self._is_cancelled:
            raise CancelledTransfer

    @contextmanager
    def watched(self, *channels: Channel) -> Iterator[None]:
        """Let `cancel` wake whoever waits on one of `channels` inside the block."""
        self.watch(*channels)
        try:
            yield
        finally:
            self.unwatch(*channels)

    def watch(self, *channels: Channel) -> None:
        """Let `cancel` wake whoever waits on one of `channels`, until `unwatch`."""
        with self._lock:
            self.check()
            self._channels.update(channels)

    def unwatch(self, *channels: Channel) -> None:
        with self._lock:
            self._channels.difference_update(channels)

    def cancel(self) -> None:
        """End the transfer. Not in a forked child, where a generator may end that the parent reads on from: it would
        shut down the parent's connections."""
        if not self._owner.is_here:
            return
        with self._lock:
            self._is_cancelled = True
            for channel in self._channels:
                channel.interrupt()


class Meter:
    """Sums progress of several threads into one callback; what is done again is not counted again."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._total = 0

    def advance(self, size: int) -> None:
        if self._progress is not None and size:
            with self._lock:
                self._total += size
                self._progress(size)

    def restart(self) -> None:
        """Take back all that was counted: the transfer begins anew."""
        self.advance(-self._total)

    def part(self) -> Callable[[int], None]:
        """Return a counter for one part: it takes the position reached in the part, and counts new ground only."""
        reached = 0

        def at(position: int) -> None:
            nonlocal reached
            if position > reached:
                self.advance(position - reached)
                reached = position

        return at


def begin(thread: threading.Thread) -> threading.Thread:
    """Start a thread and return it; raise `Overloaded` when the system has none for us."""
    try:
        thread.start()
    except RuntimeError as error:
        raise _no_thread(error) from None
    return thread


def _no_thread(error: RuntimeError) -> Overloaded:
    return Overloaded(f"this process can start no more threads ({error}); raise the limit of its user (ulimit -u)")


def in_order(
    work: Callable[[T], R], items: Iterable[T], cancellation: Cancellation, *, workers: int, window: int
) -> Iterator[R]:
    """Yield `work(item)` for each item in order, done by up to `workers` threads, at most `window` ahead.

    A single item is done by the caller's thread. When a part fails all parts are cancelled and waited for before this
    generator ends, so that nobody writes any more; when the caller stops, for up to LEAVE_WAIT_S.
    """
    iterator = iter(items)
    head = deque(itertools.islice(iterator, 2))
    is_single = len(head) < 2
    all_items = _drained(head, iterator)
    if is_single or workers == 1:
        for item in all_items:
            yield work(item)
        return
    own: list[threading.Thread] = []
    executor = ThreadPoolExecutor(workers, "dfs-transfer", initializer=lambda: own.append(threading.current_thread()))
    is_left = False
    waiting: deque[Future[R]] = deque()
    try:
        for item in all_items:
            waiting.append(_submitted(executor, work, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException as error:
        is_left = isinstance(error, GeneratorExit)
        cancellation.cancel()
        raise
    finally:
        executor.shutdown(wait=not is_left, cancel_futures=True)
        if is_left:
            _wait_a_while(own)


def _wait_a_while(threads: list[threading.Thread]) -> None:
    """Wait for the end of threads that were cancelled, but not for ever.

    The garbage collector may have brought us here: in one of them, or where a lock is held that they need.
    """
    deadline = Deadline.after(LEAVE_WAIT_S)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(deadline.remaining_s())


def _submitted(executor: ThreadPoolExecutor, work: Callable[[T], R], item: T) -> Future[R]:
    try:
        return executor.submit(work, item)
    except RuntimeError as error:
        raise _no_thread(error) from None


def _drained(head: deque[T], rest: Iterator[T]) -> Iterator[T]:
    """Yield all items without keeping one: an item may hold the bytes of a chunk."""
    while head:
        yield head.popleft()
    yield from rest
