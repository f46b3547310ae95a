"""Where connections wait for their next request, watched by a few threads for all of them together.

Owns: who waits, which thread may touch a connection at which moment, and how long one may be silent. Refuses to know:
what a request is, and how it is answered (`serve` is told who has something to say).

Each connection has a thread of its own, which does whatever takes long. While it waits it sleeps here, and costs
nothing: what little its peer wants is done by a thread of the lobby, for several peers in one go. A visitor is in the
hands of one thread at any time: of its own, of the one that serves it, or of nobody, when it waits to say something.
"""

from __future__ import annotations

import contextlib
import enum
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from dfs.clock import Deadline
from dfs.errors import DeadlineExceeded, DfsError, InternalError
from dfs.log import get_logger
from dfs.net.blocking import Channel

VISITORS_MAX: Final = 64  # served in one go, of those who speak at the same time
THREAD_END_S: Final = 1.0  # how long those who serve may take to end
IS_POSSIBLE: Final = hasattr(select, "epoll") and hasattr(os, "eventfd")
_EVENTS: Final = select.EPOLLIN | select.EPOLLONESHOT  # one thread hears of a visitor, and once

log = get_logger(__name__)


class _State(enum.Enum):
    AWAY = "in the hands of its own thread"
    WAITING = "of nobody: it may speak at any moment"
    SERVED = "in the hands of a thread of the lobby"


class Visitor:
    """A connection, as long as its own thread lives. `error`: what it ended with while it was served."""

    __slots__ = ("brought", "channel", "error", "is_known", "number", "seen_s", "state", "turn", "wake")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.number = channel.fileno()
        self.state = _State.AWAY
        self.turn = 0  # how many times it was heard: who still serves it knows by this that it is the same time
        self.is_known = False  # to the kernel
        self.seen_s = 0.0
        self.error: DfsError | None = None
        self.brought: Any = None  # what `look` found, for `serve`
        self.wake = threading.Lock()  # held until its own thread is to go on
        self.wake.acquire()


Look = Callable[[Visitor], bool]  # whether it brought what `serve` is for; else it was told to `stay` or `leave`
Serve = Callable[[Sequence[Visitor]], None]  # each of them is then to `stay` or to `leave`, at once or later


class Lobby:
    """Thread-safe. Its threads begin with the first visitor."""

    def __init__(
        self, look: Look, serve: Serve, *, threads: int, patience_s: float = 0.0, visitors_max: int = VISITORS_MAX
    ) -> None:
        """`visitors_max`: how many may be served in one go.

        `patience_s`: how long to wait for who serves already, and then serve all that came meanwhile. Whoever waited in
        vain serves, too; as long as one does that, the last of the threads listens, which sleeps otherwise. 0: nobody
        waits and nobody sleeps.
        """
        self._look = look
        self._serve = serve
        self._thread_count = threads
        self._patience_s = patience_s
        self._visitors_max = visitors_max
        self._post = threading.Lock()  # of the one that serves, while its patience lasts
        self._late_count = 0  # of those who serve without it
        self._is_late = threading.Event()  # whether there are any: then the spare thread listens
        self._lock = threading.Lock()
        self._waiting: dict[int, Visitor] = {}  # by descriptor; those that are served, too
        self._served_count = 0
        self._threads: list[threading.Thread] = []
        self._is_closed = False
        self._epoll = select.epoll()
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._end, select.EPOLLIN)

    @property
    def served_count(self) -> int:
        return self._served_count

    def wait(self, visitor: Visitor, idle_s: float) -> None:
        """Sleep until the visitor's own thread is to go on: something came that is not for the lobby, or its end.

        Raise what it ended with while it was served, and `DeadlineExceeded` when nothing came for so long.
        """
        if visitor.channel.has_unread:
            return
        with self._lock:
            if self._is_closed or not self._begin_threads():
                return
            visitor.state, visitor.seen_s = _State.WAITING, time.monotonic()
            self._waiting[visitor.number] = visitor
        self._listen(visitor)
        left_s = idle_s
        while not visitor.wake.acquire(timeout=left_s):
            left_s = visitor.seen_s + idle_s - time.monotonic()
            if left_s <= 0 and self._take_back(visitor):
                raise DeadlineExceeded(f"{visitor.channel.address} asked nothing for {idle_s:g} s")
            left_s = max(left_s, 1.0)  # it was served since, or is at this moment
        if visitor.error is not None:
            raise visitor.error

    def _begin_threads(self) -> bool:
        """Return whether there are any; the lock is held."""
        while len(self._threads) < self._thread_count:
            is_spare = self._patience_s > 0 and len(self._threads) == self._thread_count - 1
            name = f"dfs lobby {len(self._threads) + 1}"
            thread = threading.Thread(target=self._run, args=(is_spare,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has none for us: each connection has its own for all it wants
                log.debug("lobby_thread_not_started", reason=str(error))
                break
            self._threads.append(thread)
        return bool(self._threads)

    def _listen(self, visitor: Visitor) -> None:
        """Let the next word of a visitor, or its end, wake a thread."""
        listen = self._epoll.modify if visitor.is_known else self._epoll.register
        visitor.is_known = True
        with contextlib.suppress(OSError, ValueError):  # this server ends, and its own thread has ended it already
            listen(visitor.number, _EVENTS)

    def _take_back(self, visitor: Visitor) -> bool:
        """Give a visitor back to its own thread, which asks; False when it is being served."""
        with self._lock:
            if visitor.state is not _State.WAITING:
                return False
            visitor.state = _State.AWAY
            del self._waiting[visitor.number]
            return True

    # --- the threads of the lobby -------------------------------------------------------------------------

    def _run(self, is_spare: bool) -> None:
        """The root of a thread."""
        while True:
            if is_spare:
                self._is_late.wait()
            visitors = self._heard(None)
            if self._is_closed:
                self._send_away([(visitor, visitor.turn) for visitor in visitors], None)
                return
            if not visitors:
                continue
            has_post = self._patience_s > 0 and self._post.acquire(timeout=self._patience_s)
            if has_post:
                visitors += self._heard(0.0)  # who spoke meanwhile
            else:
                self._count_late(1)
            turns = [(visitor, visitor.turn) for visitor in visitors]  # while they are in nobody else's hands
            try:
                self._serve(visitors)
            except Exception as error:
                log.exception("lobby_failed")
                self._send_away(turns, _bug(error))
            if has_post:
                self._post.release()
            else:
                self._count_late(-1)

    def _count_late(self, change: int) -> None:
        with self._lock:
            self._late_count += change
            if self._late_count:
                self._is_late.set()
            elif not self._is_closed:
                self._is_late.clear()

    def _heard(self, wait_s: float | None) -> list[Visitor]:
        """Wait until somebody speaks; return those who brought something for the lobby, the others have left."""
        spoken = self._epoll.poll(wait_s, self._visitors_max)
        now_s, visitors = time.monotonic(), []
        with self._lock:
            for number, _ in spoken:
                visitor = self._waiting.get(number)
                if visitor is not None and visitor.state is _State.WAITING:
                    visitor.state, visitor.seen_s = _State.SERVED, now_s
                    visitor.turn += 1
                    visitors.append(visitor)
            self._served_count += len(visitors)
        return [visitor for visitor in visitors if self._has_brought(visitor)]

    def _has_brought(self, visitor: Visitor) -> bool:
        turn = visitor.turn
        try:
            return self._look(visitor)
        except Exception as error:
            log.exception("lobby_failed")
            self._send_away([(visitor, turn)], _bug(error))
            return False

    def _send_away(self, turns: list[tuple[Visitor, int]], error: DfsError | None) -> None:
        """Give back those whom nobody has told how it went, so that their peers see the end, and go elsewhere.

        Somebody may tell one of them yet, at this moment or later: that is the first or the second word, and the second
        changes nothing.
        """
        for visitor, turn in turns:
            with self._lock:
                if visitor.state is not _State.SERVED or visitor.turn != turn:
                    continue  # it was told, and may have spoken again
                visitor.channel.interrupt()
                self._give_back(visitor, error)
            visitor.wake.release()

    def stay(self, visitor: Visitor) -> None:
        """Hear that a visitor was served, and waits for its next request."""
        with self._lock:
            if visitor.state is not _State.SERVED:
                return  # it was sent away
            # Of what it said already the kernel does not tell, and when the lobby is closed nobody listens.
            is_heard = not (visitor.channel.has_unread or self._is_closed)
            if is_heard:
                self._served_count -= 1
                visitor.state = _State.WAITING
        if is_heard:
            self._listen(visitor)
        else:
            self.leave(visitor)

    def leave(self, visitor: Visitor, error: DfsError | None = None) -> None:
        """Hear that a visitor's own thread is to go on, with an error when its connection is of no use any more."""
        with self._lock:
            if visitor.state is not _State.SERVED:
                return  # it was sent away
            self._give_back(visitor, error)
        visitor.wake.release()

    def _give_back(self, visitor: Visitor, error: DfsError | None) -> None:
        """The lock is held, and released before the visitor's own thread is woken."""
        self._served_count -= 1
        visitor.state, visitor.error = _State.AWAY, error
        del self._waiting[visitor.number]

    def close(self) -> None:
        """End the threads, after the connections have ended; again is harmless."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            threads, self._threads = self._threads, []
            left = [visitor for visitor in self._waiting.values() if visitor.state is _State.WAITING]
            for visitor in left:
                visitor.state = _State.AWAY
                del self._waiting[visitor.number]
        for visitor in left:
            visitor.wake.release()
        os.eventfd_write(self._end, 1)
        self._is_late.set()
        deadline = Deadline.after(THREAD_END_S)
        for thread in threads:
            thread.join(deadline.remaining_s())
        if not any(thread.is_alive() for thread in threads):  # one that waits for a disk needs them yet
            self._epoll.close()
            os.close(self._end)


def _bug(error: Exception) -> InternalError:
    return InternalError(f"a request was not served: {type(error).__name__}: {error}; this is a bug of dfs")
