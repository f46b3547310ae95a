"""One large file: put and get beside cp, the raw loopback, and a peer.

Owns: these measures. Refuses to know: why a figure is what it is.

`3x` makes three copies one after the other, as replication 3 stores three. `put, unsynced` runs on a cluster with
`fsync = no`. All files come from the page cache. A peer's reads follow a request to drop what its mount has cached.

The last copies are removed right before a measure, not after the one that made them: a virtual machine may give memory
back to its host that was free for seconds, and whoever needs it first waits for it (up to 9 times the processor time of
a copy). So all find memory that was freed a moment ago.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.aims import DFS, PEER
from bench.crowd import ONCE, Job, Step, rate, run_crowd
from bench.demo import write_random
from bench.figures import Key
from bench.loopback import serving
from bench.rounds import Measure, Site
from bench.targets import FolderTarget, Target, Where, copy, sync_file
from dfs.config import MIB

COPIES = 3
UNIT = "MiB"
STORED = "/large.bin"


@contextmanager
def fsynced(site: Site) -> Iterator[list[Measure]]:
    """Put durably, get into a file, read."""
    bulk = _Bulk(site)
    with serving(bulk.source) as loopback:
        workload = "put, fsynced"
        yield [
            bulk.cp(workload, "cp + fsync", 1, synced=True),
            bulk.cp(workload, "3x cp + fsync", COPIES, synced=True),
            *bulk.puts(workload, synced=True),
            bulk.cp("get to a file", "cp", 1, synced=False),
            *bulk.gets("get to a file"),
            bulk.loopback("read, verified", "loopback", lambda: loopback.receive(verified=False)),
            bulk.loopback("read, verified", "loopback, verified", lambda: loopback.receive(verified=True)),
            *bulk.reads("read, verified"),
        ]


@contextmanager
def unsynced(site: Site) -> Iterator[list[Measure]]:
    """Put into the page cache; the cluster has `fsync = no`."""
    bulk = _Bulk(site)
    workload = "put, unsynced"
    yield [
        bulk.cp(workload, "cp", 1, synced=False),
        bulk.cp(workload, "3x cp", COPIES, synced=False),
        *bulk.puts(workload, synced=False),
    ]


class _Bulk:
    """The large file and those who store it; each has it already, for the gets."""

    def __init__(self, site: Site) -> None:
        self.source = site.folder / "large.bin"
        self._mebibytes = site.sizes.large / MIB
        self._folder = site.folder
        self._numbers = itertools.count()
        self._copies = site.folder / "none-yet"  # each measure gets a new one: see `bench.machine.spread`
        self._targets = [Where(DFS, access=site.cluster.access)]
        if site.peer is not None:
            self._targets.append(Where(PEER, root=site.peer))
        write_random(self.source, site.sizes.large)
        for where in self._targets:
            self._once(where, lambda target: target.put_file(self.source, STORED))

    def _once(self, where: Where, work: Callable[[Target], object]) -> None:
        """Do something in a process of its own: threads of a client must not be there when others fork."""

        @contextmanager
        def job(_: int) -> Iterator[Step]:
            with where.opened() as target:
                yield lambda _: work(target)

        run_crowd(1, job, ONCE)

    def cp(self, workload: str, subject: str, copies: int, *, synced: bool) -> Measure:
        def work(_: int) -> None:
            for number in range(copies):
                target = self._copies / f"copy-{number}"
                copy(self.source, target)
                if synced:
                    sync_file(target)

        return self.measure(workload, subject, work)

    def puts(self, workload: str, *, synced: bool) -> Iterator[Measure]:
        for where in self._targets:

            @contextmanager
            def job(_: int, where: Where = where) -> Iterator[Step]:
                def put(_: int) -> None:
                    target.put_file(self.source, "/put")
                    if synced:
                        target.sync("/put")

                with where.opened() as target:
                    yield put
                    target.remove("/put")
                    target.drain()

            yield self._by_process(workload, where, job)

    def gets(self, workload: str) -> Iterator[Measure]:
        for where in self._targets:

            @contextmanager
            def job(_: int, where: Where = where) -> Iterator[Step]:
                with where.opened() as target:
                    forget(target)
                    yield lambda _: target.get_file(STORED, self._copies / "got")

            yield self._by_process(workload, where, job)

    def reads(self, workload: str) -> Iterator[Measure]:
        for where in self._targets:

            @contextmanager
            def job(_: int, where: Where = where) -> Iterator[Step]:
                with where.opened() as target:
                    if where.subject == DFS:
                        target.get(STORED)  # else the first look at memory of long ago is measured; see `loopback`
                    forget(target)
                    yield lambda _: target.get(STORED)

            yield self._by_process(workload, where, job)

    def loopback(self, workload: str, subject: str, receive: Callable[[], object]) -> Measure:
        """Measure the second of two readings, as with dfs: what was not touched for seconds comes half as fast."""

        @contextmanager
        def job(_: int) -> Iterator[Step]:
            receive()
            yield lambda _: receive()

        return Measure(Key(workload, subject), UNIT, lambda _: self._run(job))

    def measure(self, workload: str, subject: str, work: Step) -> Measure:
        """Measure something that needs no cluster, likewise in a process of its own."""

        @contextmanager
        def job(_: int) -> Iterator[Step]:
            yield work

        return Measure(Key(workload, subject), UNIT, lambda _: self._run(job))

    def _by_process(self, workload: str, where: Where, job: Job) -> Measure:
        return Measure(Key(workload, where.subject), UNIT, lambda _: self._run(job))

    def _run(self, job: Job) -> float:
        shutil.rmtree(self._copies, ignore_errors=True)
        self._copies = self._folder / f"copies-{next(self._numbers)}"
        self._copies.mkdir()
        return self._mebibytes * rate(run_crowd(1, job, ONCE))


def forget(target: Target) -> None:
    if isinstance(target, FolderTarget):
        target.forget(STORED)
