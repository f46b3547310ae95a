"""A few threads that work off independent tasks, for trees of many files.

Owns: the threads, their bounded queue, and how a fatal error or an interruption ends them all.
Refuses to know: what a task does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final

from dfs.cli.wall import EXPECTED, is_fatal
from dfs.client.parallel import begin
from dfs.errors import Overloaded

WORKERS: Final = 8  # files at once: small files wait for fsyncs, not for this machine
QUEUE_MAX: Final = 64  # tasks that wait; the planner of a tree stays just ahead
STOP_WAIT_S: Final = 5.0  # for running transfers to notice an interruption and remove their temporary files


class Stopped(Exception):
    """Raised inside a task whose run is over; ends its transfer."""


class Workers:
    """Run submitted tasks on `count` threads (context manager).

    An expected error of a task goes to `on_failure(label, error)`, and the others go on. An error that every task would
    meet (no quorum, wrong secret) or a bug ends the run and is raised by `finish`.
    """

    def __init__(self, on_failure: Callable[[str, BaseException], None], count: int = WORKERS) -> None:
        self._on_failure = on_failure
        self._tasks: queue.Queue[tuple[str, Callable[[], None]] | None] = queue.Queue(QUEUE_MAX)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._fatal: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"dfs-worker-{index}", daemon=True) for index in range(count)
        ]

    def __enter__(self) -> Workers:
        planned, self._threads = self._threads, []
        for thread in planned:
            try:
                self._threads.append(begin(thread))
            except Overloaded:
                if not self._threads:
                    raise
                break  # the others do all of it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no thread behind: an ended run waits only until running tasks noticed."""
        self._stop.set()
        for thread in self._threads:
            thread.join(STOP_WAIT_S)

    def check(self) -> None:
        """Raise `Stopped` when the run is over; called from inside tasks as they progress."""
        if self._stop.is_set():
            raise Stopped

    def submit(self, label: str, task: Callable[[], None]) -> None:
        """Queue a task; waits while the queue is full; raises what ended the run."""
        while True:
            if self._stop.is_set():
                self._raise_fatal()
                raise Stopped
            try:
                self._tasks.put((label, task), timeout=0.2)
                return
            except queue.Full:
                continue  # look whether the run is over, then wait again

    def finish(self) -> None:
        """Wait until all tasks are done; raise what ended the run early."""
        for _ in self._threads:
            self._put_end()
        for thread in self._threads:
            thread.join()
        self._raise_fatal()

    def _put_end(self) -> None:
        while not self._stop.is_set():
            try:
                self._tasks.put(None, timeout=0.2)
                return
            except queue.Full:
                continue

    def _raise_fatal(self) -> None:
        if self._fatal is not None:
            raise self._fatal

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._tasks.get(timeout=0.2)
            except queue.Empty:
                continue
            if item is None:
                return
            try:
                self._do(*item)
            except Stopped:
                return
            except Exception as error:  # noqa: BLE001 - the thread's root: a bug ends the run and is raised by finish
                self._end(error)

    def _do(self, label: str, task: Callable[[], None]) -> None:
        try:
            task()
        except EXPECTED as error:
            if is_fatal(error):
                self._end(error)
            else:
                self._on_failure(label, error)

    def _end(self, error: BaseException) -> None:
        with self._lock:
            self._fatal = self._fatal or error
        self._stop.set()
