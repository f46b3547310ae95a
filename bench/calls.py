"""Single calls by one client and by many: small files, names, random reads; on the cluster, the local disk and a peer.

Owns: these measures. Refuses to know: why a figure is what it is.

Each client has a directory of its own and works on what an earlier work of the same round has made there. The local
disk gets a third of the time: it needs less of it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.aims import DFS, PEER
from bench.crowd import ONCE, Effort, Step, rate, run_crowd
from bench.demo import write_random
from bench.figures import Key
from bench.rounds import Measure, Site
from bench.targets import Target, Where

KIB = 1024
LARGE_SHARE = 4  # random reads go to a file of a quarter of the large one
LOCAL_SHARE = 3
LOCAL = "local"
UNIT = "calls"


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to do again and again.

    `ready(target, own directory, number of things to use)` returns the step. `makes` names the things of which the n-th
    step makes the n-th; `uses` those that it needs; `takes`: each step uses one up.
    """

    workload: str
    ready: Callable[[Target, str, int], Step]
    makes: str = ""
    uses: str = ""
    takes: bool = False


def small_files() -> list[Work]:
    """Create, read, and at the end remove."""
    small, medium = os.urandom(4 * KIB), os.urandom(100 * KIB)
    return [
        Work("create 4 KiB", lambda target, own, _: lambda n: target.put(f"{own}/s{n}", small), makes="s"),
        Work("read 4 KiB", lambda target, own, count: lambda n: target.get(f"{own}/s{n % count}"), uses="s"),
        Work("create 100 KiB", lambda target, own, _: lambda n: target.put(f"{own}/m{n}", medium), makes="m"),
        Work("read 100 KiB", lambda target, own, count: lambda n: target.get(f"{own}/m{n % count}"), uses="m"),
    ]


def names(listed: int) -> list[Work]:
    """The verbs that only the masters see."""
    return [
        Work("mkdir", lambda target, own, _: lambda n: target.mkdir(f"{own}/d{n}"), makes="d"),
        Work("touch", lambda target, own, _: lambda n: target.touch(f"{own}/t{n}"), makes="t"),
        Work("stat", lambda target, own, count: lambda n: target.stat(f"{own}/t{n % count}"), uses="t"),
        Work(
            "rename",
            lambda target, own, _: lambda n: target.rename(f"{own}/d{n}", f"{own}/r{n}"),
            uses="d",
            takes=True,
        ),
        Work("rm", lambda target, own, _: lambda n: target.remove(f"{own}/t{n}"), uses="t", takes=True),
        Work(f"list {listed:,} entries", lambda target, _, __: lambda _: target.count("/listed")),
    ]


def random_reads(size: int) -> list[Work]:
    """4 KiB at a time of one open file."""
    blocks = size // (4 * KIB)

    def ready(target: Target, _: str, __: int) -> Step:
        read_at = target.opened("/large")
        return lambda _: read_at(random.randrange(blocks) * 4 * KIB, 4 * KIB)

    return [Work("4 KiB at random", ready)]


class Crew:
    """The targets, and how many things each client has made in this round."""

    def __init__(self, targets: Sequence[Where], site: Site) -> None:
        self._targets = targets
        self._sizes = site.sizes
        self._made: dict[tuple[str, str, int], int] = {}

    def prepare(self, large: Path) -> None:
        """Make the directories of all clients and rounds, the listed one, and the large file."""
        for where in self._targets:

            @contextmanager
            def job(_: int, where: Where = where) -> Iterator[Step]:
                with where.opened() as target:
                    yield lambda _: self._prepare(target, large)

            run_crowd(1, job, ONCE)

    def _prepare(self, target: Target, large: Path) -> None:
        for round_ in self._sizes.all_rounds:
            for clients in (1, self._sizes.crowd):
                for number in range(clients):
                    target.mkdir(own_directory(round_, clients, number))
        target.mkdir("/listed")
        for number in range(self._sizes.listed):
            target.touch(f"/listed/{number:06d}")
        target.put_file(large, "/large")

    def measures(self, works: Sequence[Work]) -> Iterator[Measure]:
        for work in works:
            for clients in (1, self._sizes.crowd):
                for where in self._targets:
                    yield self._measure(work, where, clients)

    def _measure(self, work: Work, where: Where, clients: int) -> Measure:
        def run(round_: int) -> float:
            count = self._made[where.subject, work.uses, clients] if work.uses else 0

            @contextmanager
            def job(number: int) -> Iterator[Step]:
                with where.opened() as target:
                    yield work.ready(target, own_directory(round_, clients, number), count)

            done = run_crowd(clients, job, self._effort(where, work, count))
            if work.makes:
                self._made[where.subject, work.makes, clients] = min(each.count for each in done)
            return rate(done)

        return Measure(Key(work.workload, where.subject, clients), UNIT, run)

    def _effort(self, where: Where, work: Work, count: int) -> Effort:
        seconds = self._sizes.seconds / (LOCAL_SHARE if where.subject == LOCAL else 1)
        effort = Effort(seconds)
        return replace(effort, count=count) if work.takes else effort


def own_directory(round_: int, clients: int, number: int) -> str:
    return f"/round{round_}-{clients}-{number}"


@contextmanager
def calls(site: Site) -> Iterator[list[Measure]]:
    local, large = site.folder / "local", site.folder / "random.bin"
    local.mkdir()
    size = site.sizes.large // LARGE_SHARE
    write_random(large, size)
    targets = [Where(DFS, access=site.cluster.access), Where(LOCAL, root=local)]
    if site.peer is not None:
        targets.append(Where(PEER, root=site.peer))
    crew = Crew(targets, site)
    crew.prepare(large)
    yield list(crew.measures([*small_files(), *names(site.sizes.listed), *random_reads(size)]))
