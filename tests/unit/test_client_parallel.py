"""Do the parts of a transfer come in order, stop together, and count each byte once?"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator

import pytest

from dfs.client.parallel import Cancellation, CancelledTransfer, Meter, in_order
from dfs.clock import Deadline
from dfs.errors import Overloaded
from dfs.net.blocking import Channel
from dfs.net.stream import SocketStream


def test_results_come_in_the_order_of_the_items() -> None:
    released = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert released.wait(60)
        if item == 3:
            released.set()
        return item * 10

    assert list(in_order(work, range(8), Cancellation(), workers=4, window=8)) == [item * 10 for item in range(8)]


@pytest.mark.parametrize(("count", "workers"), [(0, 4), (1, 4), (5, 1)])
def test_what_needs_no_threads_gets_none(count: int, workers: int) -> None:
    used = list(in_order(lambda _: threading.current_thread(), range(count), Cancellation(), workers=workers, window=9))
    assert used == [threading.current_thread()] * count


def test_no_more_items_are_taken_than_the_window_allows() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    results = in_order(lambda item: item, items(), Cancellation(), workers=2, window=3)
    assert next(results) == 0
    assert len(taken) == 3
    assert list(results) == list(range(1, 20))


@pytest.mark.parametrize("workers", [1, 3])
def test_items_that_are_done_are_not_kept(workers: int) -> None:
    """An item of a stream holds a chunk's bytes: only as many may live as the window has places."""

    class Item:
        pass

    living: weakref.WeakSet[Item] = weakref.WeakSet()
    most = 0

    def items() -> Iterator[Item]:
        nonlocal most
        for _ in range(10):
            item = Item()
            living.add(item)
            most = max(most, len(living))
            yield item
            del item

    assert len(list(in_order(lambda _: None, items(), Cancellation(), workers=workers, window=3))) == 10
    assert most <= 3 + workers  # a worker that just finished one may not have let go of it yet


def test_the_first_failure_cancels_all_parts_and_is_the_one_that_is_raised() -> None:
    cancellation, failed = Cancellation(), threading.Event()
    ended: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            failed.set()
            raise ValueError("first")
        assert failed.wait(60)
        while True:
            try:
                cancellation.check()
            except CancelledTransfer:
                ended.append(item)
                raise

    with pytest.raises(ValueError, match="first"):
        list(in_order(work, range(3), cancellation, workers=3, window=3))
    assert sorted(ended) in ([1], [1, 2])


def test_leaving_early_ends_the_parts() -> None:
    cancellation = Cancellation()

    def work(item: int) -> int:
        while item > 1:
            cancellation.check()
        return item

    results = in_order(work, range(4), cancellation, workers=2, window=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(CancelledTransfer):
        cancellation.check()


ABANDONED = """
import faulthandler, gc, sys, threading
from dfs.client.parallel import Cancellation, in_order

faulthandler.dump_traceback_later(20, exit=True)
sys.unraisablehook = lambda fault: print("ignored:", fault.exc_value)
is_dropped, is_collected, cancellation = threading.Event(), threading.Event(), Cancellation()


def work(item: int) -> int:
    if item == 1:
        assert is_dropped.wait(20)
        with cancellation._lock:  # as while it watches a connection
            gc.collect()
        is_collected.set()
    return item


class Reader:
    pass


gc.disable()
reader = Reader()
reader.itself, reader.results = reader, in_order(work, range(4), cancellation, workers=2, window=2)
assert next(reader.results) == 0
del reader
is_dropped.set()
assert is_collected.wait(20)
"""


HELD_UP = """
import faulthandler, gc, sys, threading
from dfs.client import parallel

faulthandler.dump_traceback_later(20, exit=True)
sys.unraisablehook = lambda fault: print("ignored:", fault.exc_value)
parallel.LEAVE_WAIT_S = 0.1
lock, is_locked, cancellation = threading.Lock(), threading.Event(), parallel.Cancellation()


def work(item: int) -> int:
    if item == 1:
        assert is_locked.wait(20)
        with lock:  # of the client's connections, say
            pass
    return item


class Reader:
    pass


gc.disable()
reader = Reader()
reader.itself, reader.results = reader, parallel.in_order(work, range(4), cancellation, workers=2, window=2)
assert next(reader.results) == 0
del reader
with lock:
    is_locked.set()
    gc.collect()
"""


def test_a_transfer_that_was_dropped_is_not_waited_for_for_ever_by_who_collects_it() -> None:
    """The collector may run where a lock is held that the threads of the transfer need to end."""
    result = subprocess.run([sys.executable, "-c", HELD_UP], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_a_transfer_that_was_dropped_is_ended_by_whichever_thread_collects_it() -> None:
    """A reader in a circle of references is found by the garbage collector, which runs in any thread at any moment."""
    result = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_without_a_thread_a_transfer_fails_by_name_and_ends_those_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cancellation, start = Cancellation(), threading.Thread.start
    begun: list[threading.Thread] = []

    def refused(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    def work(_: int) -> None:
        while True:
            cancellation.check()

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(Overloaded, match="ulimit -u"):
        list(in_order(work, range(8), cancellation, workers=4, window=8))
    assert not begun[0].is_alive()


def test_a_transfer_that_ends_in_a_forked_child_ends_nothing_in_its_parent() -> None:
    """As when a child that was forked in the midst of a read exits, and Python ends the generators that it has, too."""
    mine, theirs = socket.socketpair()
    cancellation = Cancellation()
    with theirs, Channel(SocketStream(mine, "a server")) as channel, cancellation.watched(channel):
        with cancellation._lock, warnings.catch_warnings():  # another thread may have the lock at this moment
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
            if not child:
                signal.alarm(20)
                try:
                    cancellation.cancel()
                finally:
                    os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not channel.wait_readable(Deadline(0.0)), "the child has shut the connection down"
        cancellation.cancel()
        assert channel.wait_readable(Deadline.after(20))


def test_progress_of_a_repeated_part_is_counted_once() -> None:
    seen: list[int] = []
    meter = Meter(seen.append)
    part, other = meter.part(), meter.part()
    for position in (10, 20, 10, 20, 30):
        part(position)
    other(5)
    assert seen == [10, 10, 10, 5]
    meter.restart()
    assert sum(seen) == 0


def test_a_meter_without_a_callback_counts_nothing() -> None:
    meter = Meter(None)
    meter.advance(5)
    meter.restart()
    assert meter.part()(3) is None
