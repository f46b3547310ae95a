"""Append of records: one appender and many, beside local appends with fdatasync and a peer.

Owns: these measures. Refuses to know: why a figure is what it is.

`local`: one file, each record written and fdatasynced, one after the other. `3x local`: three files on the same disk,
each record (or, grouped, each batch of the size that dfs uses) written to all of them and fdatasynced in parallel: what
three replicas cost without any network. A peer's writers append to one file, each record synced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.aims import DFS, PEER
from bench.crowd import ONCE, Step, rate, run_crowd
from bench.figures import Key
from bench.rounds import Measure, Site
from bench.targets import TIMEOUT_S
from dfs.client import DfsClient
from dfs.config import MIB

SMALL, LARGE = 4096, MIB
COPIES = 3
GROUP = MIB // SMALL  # records in one batch of dfs
SHARE_AWAITED = 20  # so many times fewer records when each is awaited
SHARE_LARGE = 80
UNIT = "records"
PIPELINED, AWAITED, BIG = "append 4 KiB", "append 4 KiB, each awaited", "append 1 MiB"


@contextmanager
def appends(site: Site) -> Iterator[list[Measure]]:
    yield list(_Appends(site).measures())


class _Appends:
    def __init__(self, site: Site) -> None:
        self._site = site

    def measures(self) -> Iterator[Measure]:
        sizes = self._site.sizes
        few, large = max(8, sizes.records // SHARE_AWAITED), max(4, sizes.records // SHARE_LARGE)
        yield self._local(AWAITED, "local", 1, SMALL, few, 1)
        yield self._local(AWAITED, "3x local", COPIES, SMALL, few, 1)
        for clients in (1, sizes.appenders):
            yield self._dfs(AWAITED, clients, SMALL, few, is_awaited=True)
            if self._site.peer is not None:
                yield self._peer(AWAITED, self._site.peer, clients, SMALL, few)
        yield self._local(PIPELINED, "3x local, by the MiB", COPIES, SMALL, sizes.records, min(GROUP, sizes.records))
        for clients in (1, sizes.appenders):
            yield self._dfs(PIPELINED, clients, SMALL, sizes.records, is_awaited=False)
        yield self._local(BIG, "3x local", COPIES, LARGE, large, 1)
        yield self._dfs(BIG, 1, LARGE, large, is_awaited=False)

    def _dfs(self, workload: str, clients: int, size: int, count: int, *, is_awaited: bool) -> Measure:
        each, data = max(1, count // clients), os.urandom(size)

        @contextmanager
        def job(_: int) -> Iterator[Step]:
            with (
                DfsClient(self._site.cluster.access, timeout_s=TIMEOUT_S) as client,
                client.appender("/records") as appender,
            ):
                appender.append(data).result()  # it has its tail

                def append_all(_: int) -> None:
                    for _ in range(each):
                        outcome = appender.append(data)
                        if is_awaited:
                            outcome.result()
                    appender.flush()

                yield append_all

        return Measure(Key(workload, DFS, clients), UNIT, lambda _: each * rate(run_crowd(clients, job, ONCE)))

    def _local(self, workload: str, subject: str, copies: int, size: int, count: int, group: int) -> Measure:
        batches, data = max(1, count // group), os.urandom(size) * group
        paths = [self._site.folder / f"records-{number}" for number in range(copies)]

        @contextmanager
        def job(_: int) -> Iterator[Step]:
            fds = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in paths]

            def append(fd: int) -> None:
                write_all(fd, data)
                os.fdatasync(fd)

            def append_all(_: int) -> None:
                for _ in range(batches):
                    list(threads.map(append, fds))

            with ThreadPoolExecutor(copies) as threads:
                yield append_all

        return Measure(Key(workload, subject), UNIT, lambda _: batches * group * rate(run_crowd(1, job, ONCE)))

    def _peer(self, workload: str, root: Path, clients: int, size: int, count: int) -> Measure:
        each, data = max(1, count // clients), os.urandom(size)

        @contextmanager
        def job(_: int) -> Iterator[Step]:
            fd = os.open(root / "records", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

            def append_all(_: int) -> None:
                for _ in range(each):
                    write_all(fd, data)
                    os.fsync(fd)

            yield append_all

        return Measure(Key(workload, PEER, clients), UNIT, lambda _: each * rate(run_crowd(clients, job, ONCE)))


def write_all(fd: int, data: bytes) -> None:
    """Write all of it: a large write may be cut short."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
