"""A tree of many small files in bulk: put -r, get -r and rm -r beside cp -r, three of them synced, and a peer.

Owns: these measures. Refuses to know: why a figure is what it is.

`dfs` runs the command within a process that has loaded it; `dfs command` is the whole command, the start of Python
included. The synced copies are synced as a whole, which is cheaper than file by file.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.aims import DFS, PEER
from bench.crowd import ONCE, Step, rate, run_crowd
from bench.figures import Key
from bench.rounds import Measure, Site
from bench.targets import Where
from dfs.cli.group import cli
from dfs.cli.verbs import VERBS
from dfs.errors import DfsError
from dfs.testing.cluster import ClusterUnderTest

SIZE = 4096
PER_FOLDER = 100
COPIES = 3
UNIT = "files"
TIMEOUT_S = 600.0
PUT, GET, REMOVE = ("put -r of 4 KiB files", "get -r of 4 KiB files", "rm -r of 4 KiB files")


@contextmanager
def trees(site: Site) -> Iterator[list[Measure]]:
    source = site.folder / "tree"
    write_tree(source, site.sizes.tree)
    load_verbs()
    yield list(_Trees(site, source).measures())


def write_tree(root: Path, count: int, size: int = SIZE) -> None:
    """Write so many files of random bytes, a hundred in a directory."""
    for number in range(count):
        if number % PER_FOLDER == 0:
            (root / f"{number // PER_FOLDER:04d}").mkdir(parents=True)
        (root / f"{number // PER_FOLDER:04d}" / f"{number:07d}").write_bytes(os.urandom(size))


def load_verbs() -> None:
    """Import what the command imports late, so that it is not within what is timed."""
    for verb in ("put", "get"):
        importlib.import_module(VERBS[verb].module)


class _Trees:
    def __init__(self, site: Site, source: Path) -> None:
        self._source = source
        self._count = site.sizes.tree
        self._cluster = site.cluster
        self._folder = site.folder
        self._numbers = itertools.count()
        self._copies = (
            site.folder
        )  # each measure gets one of its own, under a name of its own: see `bench.machine.spread`
        self._peer = site.peer

    def measures(self) -> Iterator[Measure]:
        """Yield puts, gets, removals: within a round each finds what the one before has left."""
        yield self._measure(PUT, "cp -r", lambda _: self._cp(1, synced=False))
        yield self._measure(PUT, "3x cp -r + sync", lambda _: self._cp(COPIES, synced=True))
        yield self._measure(PUT, DFS, lambda _: in_process(self._cluster, "put", "-r", str(self._source), "/tree"))
        yield self._measure(
            PUT, "dfs command", lambda _: self._command("put", "-r", str(self._source), "/tree-of-command")
        )
        yield self._measure(GET, "cp -r", lambda _: self._cp(1, synced=False))
        yield self._measure(
            GET, DFS, lambda _: in_process(self._cluster, "get", "-r", "/tree", str(self._copies / "back"))
        )
        yield self._measure(
            GET, "dfs command", lambda _: self._command("get", "-r", "/tree", str(self._copies / "back"))
        )
        if self._peer is not None:
            yield self._measure(PUT, PEER, lambda _: copy_tree(self._source, self._at_peer, synced=True))
            yield self._measure(GET, PEER, lambda _: copy_tree(self._at_peer, self._copies / "back", synced=False))
            yield self._measure(REMOVE, PEER, lambda _: remove(self._at_peer))
        yield Measure(Key(REMOVE, "rm -r"), UNIT, lambda _: self._rate(lambda _: remove(self._copies), is_fresh=False))
        yield Measure(Key(REMOVE, DFS), UNIT, lambda _: self._removed())

    @property
    def _at_peer(self) -> Path:
        assert self._peer is not None, "there is no peer"
        return self._peer / "tree"

    def _measure(self, workload: str, subject: str, work: Step) -> Measure:
        return Measure(Key(workload, subject), UNIT, lambda _: self._rate(work))

    def _rate(self, work: Step, *, is_fresh: bool = True) -> float:
        """Do it in a process of its own, with an empty folder for copies or (for rm) with one copy in it."""
        self._copies = self._folder / f"copies-{next(self._numbers)}"
        self._copies.mkdir()
        if not is_fresh:
            self._cp(1, synced=True)

        @contextmanager
        def job(_: int) -> Iterator[Step]:
            yield work

        try:
            return self._count * rate(run_crowd(1, job, ONCE))
        finally:
            shutil.rmtree(self._copies, ignore_errors=True)  # now: the disk is settled before the next measure

    def _removed(self) -> float:
        where = Where(DFS, access=self._cluster.access)

        @contextmanager
        def job(_: int) -> Iterator[Step]:
            with where.opened() as target:
                yield lambda _: target.remove_tree("/tree")
                target.remove_tree("/tree-of-command")
                target.drain()

        return self._count * rate(run_crowd(1, job, ONCE))

    def _cp(self, copies: int, *, synced: bool) -> None:
        for number in range(copies):
            copy_tree(self._source, self._copies / f"copy-{number}", synced=synced)

    def _command(self, *arguments: str) -> None:
        done = self._cluster.run_cli(*arguments, timeout_s=TIMEOUT_S)
        if done.returncode != 0:
            raise DfsError(f"dfs {' '.join(arguments)}: {done.stderr.decode(errors='replace')}")


def in_process(cluster: ClusterUnderTest, *arguments: str) -> None:
    """Run a command in this (forked) process, as `dfs` runs it after its start."""
    os.environ["DFS_CONFIG"] = str(cluster.config_path)
    os.environ["DFS_SETTINGS"] = str(cluster.folder / "metadata.json")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    try:
        cli.main(list(arguments), prog_name="dfs")
    except SystemExit as end:
        if end.code:
            raise DfsError(f"dfs {' '.join(arguments)} ended with {end.code}") from None


def copy_tree(source: Path, target: Path, *, synced: bool) -> None:
    subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)
    if synced:
        subprocess.run(["sync", "-f", str(target)], check=True)


def remove(path: Path) -> None:
    subprocess.run(["rm", "-r", str(path)], check=True)
