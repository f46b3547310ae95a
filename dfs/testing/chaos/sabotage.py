"""Start a daemon with one of its safeties taken out: a chaos run against it must find a broken promise.

Owns: what each safety is and how it is taken out. Refuses to know: faults, clients and verdicts.

A judge that never calls anything broken proves nothing. Run as
`python -m dfs.testing.chaos.sabotage SAFETY … dfs master --name m1`; what stands before `dfs` is left out.
"""

from __future__ import annotations

import contextlib
import runpy
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from dfs.client import transfer
from dfs.master import raft_journal
from dfs.master.service import MasterService
from dfs.master.state import MasterState

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
        }

    @property
    def safeties(self) -> tuple[str, ...]:
        return tuple(self._deeds)

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

        async def settle(_self: MasterService, _stale_ms: int, _context: object) -> None:
            return

        return mock.patch.object(MasterService, "_settle", settle)

    @staticmethod
    def _session_dedupe() -> contextlib.AbstractContextManager[Any]:
        """Apply a resent call again."""
        return mock.patch.object(MasterState, "_apply_once", lambda self, *call: self._run(*call))

    @staticmethod
    def _block_checksums() -> contextlib.AbstractContextManager[Any]:
        """Believe any bytes that a chunk server sends; for clients."""
        return mock.patch.object(transfer, "first_bad_block", return_value=None)


SABOTEUR = Saboteur()


def launcher(safety: str) -> tuple[str, ...]:
    """Return the words before a daemon's command that take `safety` out of it."""
    return (sys.executable, "-P", "-m", "dfs.testing.chaos.sabotage", safety)


def main() -> None:
    """Run `dfs` with the arguments after the first word `dfs`."""
    safety, rest = sys.argv[1], sys.argv[2:]
    sys.argv = rest[rest.index("dfs") :]
    with SABOTEUR.without(safety):
        runpy.run_module("dfs", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
