"""Start a daemon with one of its safeties taken out: a chaos run against it must find a broken promise.

Owns: what each safety is and how it is taken out. Refuses to know: faults, clients and verdicts.

A judge that never calls anything broken proves nothing. Run as
`python -m dfs.testing.chaos.sabotage DEED … dfs master --name m1`; what stands between the deeds and `dfs` is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from dfs.chunk.tails.open_tail import OpenTail
from dfs.client import local_replicas, readings
from dfs.clock import Deadline
from dfs.master import access, raft_journal
from dfs.master.leadership import Leadership
from dfs.master.service import MasterService
from dfs.master.state.machine import MasterState
from dfs.master.state.views import ExtentsView
from dfs.net.aio import RequestContext
from dfs.net.messages import Locate, Message
from dfs.testing.chaos.wrapping import run_dfs, words_before, wrapped

SMALL_PAGES = "small_pages"
PAGE_PAUSE_S = 0.05  # between two pages of a file, so that somebody surely writes it anew meanwhile
LATE_S = 1.0  # how long a lying disk holds back what it called durable


class Saboteur:
    """Takes safeties out of this process: of a daemon, or of the clients."""

    of_clients = frozenset({"block_checksums"})

    def __init__(self) -> None:
        self._deeds: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
            "fsync_gate": self._fsync_gate,
            "read_barrier": self._read_barrier,
            "session_dedupe": self._session_dedupe,
            "block_checksums": self._block_checksums,
            "sealing_fence": self._sealing_fence,
            "version_pin": self._version_pin,
            SMALL_PAGES: self._small_pages,
        }

    @property
    def safeties(self) -> tuple[str, ...]:
        return tuple(name for name in self._deeds if name != SMALL_PAGES)

    def knows(self, word: str) -> bool:
        return word in self._deeds

    @contextlib.contextmanager
    def without(self, safety: str) -> Iterator[None]:
        """Do without one as long as the `with` block lasts."""
        with self._deeds[safety]():
            yield

    @staticmethod
    def _fsync_gate() -> contextlib.AbstractContextManager[Any]:
        """Acknowledge journal records before they are on disk: they are written a second later."""
        waiting: deque[tuple[float, Any, bytes, int]] = deque()
        write = raft_journal.write_all

        def write_later() -> None:
            while True:
                while waiting and waiting[0][0] <= time.monotonic():
                    _, fd, data, offset = waiting.popleft()
                    with contextlib.suppress(OSError):  # its segment was closed meanwhile
                        write(fd, data, offset)
                time.sleep(LATE_S / 20)

        def pretend(fd: int, data: bytes, offset: int) -> None:
            if offset == 0:  # the head of a segment: without it a master would notice at once
                write(fd, data, offset)
                return
            waiting.append((time.monotonic() + LATE_S, fd, bytes(data), offset))

        threading.Thread(target=write_later, daemon=True).start()
        return mock.patch.object(raft_journal, "write_all", pretend)

    @staticmethod
    def _read_barrier() -> contextlib.AbstractContextManager[Any]:
        """Answer reads from the local state, whoever leads."""

        async def settle(_self: Leadership, _deadline: Deadline) -> None:
            return

        return mock.patch.object(Leadership, "barrier", settle)

    @staticmethod
    def _session_dedupe() -> contextlib.AbstractContextManager[Any]:
        """Apply a resent call again."""
        return mock.patch.object(MasterState, "_apply_once", lambda self, *call: self._run(*call))

    @staticmethod
    def _block_checksums() -> contextlib.AbstractContextManager[Any]:
        """Believe any bytes that a chunk server sends; for clients."""
        stack = contextlib.ExitStack()
        for module, name in (
            (readings, "first_bad_block"),
            (readings, "first_bad_cut"),
            (local_replicas, "first_bad_block"),
        ):
            stack.enter_context(mock.patch.object(module, name, return_value=None))
        return stack

    @staticmethod
    def _sealing_fence() -> contextlib.AbstractContextManager[Any]:
        """Tell a master how long a tail is, and go on appending to it."""
        return mock.patch.multiple(OpenTail, fence=lambda self: self.durable, end=lambda _self: None)

    @staticmethod
    def _version_pin() -> contextlib.AbstractContextManager[Any]:
        """Locate the next page of a file whatever version of it the reader began with, and not too soon."""
        extents, handle = MasterState.extents, MasterService.handle

        def unpinned(self: MasterState, path: str, first_extent: int, count: int, _version: int) -> ExtentsView:
            return extents(self, path, first_extent, count, 0)

        async def locate_late(self: MasterService, message: Message, context: RequestContext) -> Message:
            if isinstance(message, Locate) and message.first_extent:
                await asyncio.sleep(PAGE_PAUSE_S)
            return await handle(self, message, context)

        stack = contextlib.ExitStack()
        stack.enter_context(mock.patch.object(MasterState, "extents", unpinned))
        stack.enter_context(mock.patch.object(MasterService, "handle", locate_late))
        return stack

    @staticmethod
    def _small_pages() -> contextlib.AbstractContextManager[Any]:
        """No safety: tell readers one extent at a time, so that files of a test have many pages."""
        return mock.patch.object(access, "LOCATE_EXTENTS_MAX", 1)


SABOTEUR = Saboteur()


def launcher(*deeds: str) -> tuple[str, ...]:
    """Return the words before a daemon's command that do this to it."""
    return wrapped("dfs.testing.chaos.sabotage", *deeds) if deeds else ()


def main() -> None:
    """Run `dfs` without what the words before it name."""
    with contextlib.ExitStack() as stack:
        for deed in itertools.takewhile(SABOTEUR.knows, words_before()):
            stack.enter_context(SABOTEUR.without(deed))
        run_dfs()


if __name__ == "__main__":
    main()
