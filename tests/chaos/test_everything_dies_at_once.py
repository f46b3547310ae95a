"""All daemons are killed at one moment, again and again, under load: is anything acknowledged lost?

`DFS_ROUNDS=50 make test ARGS=tests/chaos/test_everything_dies_at_once.py` does as many rounds.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.client import DfsClient
from dfs.errors import DfsError, NotFound
from dfs.testing.cluster import ClusterUnderTest, wait_until

ROUNDS = int(os.environ.get("DFS_ROUNDS", "3"))
pytestmark = pytest.mark.timeout(120 + 30 * ROUNDS)
CALL_TIMEOUT_S = 60.0  # a call that a kill meets is answered after the restart: it has no unknown outcome


class Writers:
    """Clients that put, remove and append, each with names of its own, and note what was acknowledged."""

    def __init__(self, cluster: ClusterUnderTest) -> None:
        self.crash: Exception | None = None
        self.acknowledged = 0
        self.files: dict[str, bytes | None] = {}  # digest of the content; None: it was deleted
        self.told: list[Acknowledged] = []
        self._cluster = cluster
        self._stop = threading.Event()
        works = (self._put_and_delete, self._append, self._put_and_delete)
        self._threads = [threading.Thread(target=self._run, args=item, daemon=True) for item in enumerate(works)]
        for thread in self._threads:
            thread.start()

    def is_past(self, count: int) -> bool:
        """Return whether more calls than `count` were acknowledged, or none will come any more."""
        return self.acknowledged > count or self.crash is not None

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.crash is not None:
            raise self.crash

    def _run(self, number: int, work: Callable[[DfsClient, int, int], None]) -> None:
        turn = 0
        try:
            with self._cluster.client(timeout_s=CALL_TIMEOUT_S) as client:
                while not self._stop.is_set():
                    turn += 1
                    work(client, number, turn)
        except Exception as error:  # noqa: BLE001 - a thread root; `end` raises it
            self.crash = error

    def _put_and_delete(self, client: DfsClient, number: int, turn: int) -> None:
        path = f"/file {number} {turn}"
        content = os.urandom(1 + turn * 7919 % 300_000)
        self._note(path, client, content)
        gone = f"/file {number} {turn - 1}"
        if turn % 3 == 0 and gone in self.files:  # its put may have failed
            client.delete(gone, skip_trash=True)
            self.files[gone] = None
            self.acknowledged += 1

    def _note(self, path: str, client: DfsClient, content: bytes) -> None:
        try:
            client.put(io.BytesIO(content), path)
        except DfsError:  # bytes on the way to servers that died: a put may fail, but not half
            return
        self.files[path] = hashlib.sha256(content).digest()
        self.acknowledged += 1

    def _append(self, client: DfsClient, _number: int, turn: int) -> None:
        with client.appender("/log") as appender:
            for sequence in (1, 2, 3, 4):
                offset = appender.append(make_record(turn, sequence, 200)).result()
                self.told.append(Acknowledged(turn, sequence, offset))
                self.acknowledged += 1


def check_nothing_lost(client: DfsClient, writers: Writers) -> None:
    for path, digest in writers.files.items():
        try:
            found = hashlib.sha256(b"".join(client.read(path))).digest()
        except NotFound:
            found = None
        assert found == digest, f"{path} is lost, changed or came back"
    check_exactly_once(b"".join(client.read("/log")), writers.told)


def has_ended(cluster: ClusterUnderTest, name: str) -> bool:
    return name not in cluster.local.pids()


def test_everything_killed_at_once_again_and_again_loses_nothing_acknowledged(tmp_path: Path) -> None:
    with ClusterUnderTest(tmp_path) as cluster:
        writers = Writers(cluster)
        for turn in range(ROUNDS):
            enough = writers.acknowledged + 20
            wait_until(functools.partial(writers.is_past, enough), 120, "clients work")
            pids = cluster.local.pids()
            for pid in pids.values():  # at one moment, before any of them can notice
                os.kill(pid, signal.SIGKILL)
            for name in pids:
                wait_until(functools.partial(has_ended, cluster, name), 60, f"{name} has ended")
                cluster.start(name)
            cluster.wait_healthy()
            assert writers.crash is None, f"round {turn + 1}: {writers.crash!r}"
        writers.end()
        with cluster.client(timeout_s=60) as client:
            check_nothing_lost(client, writers)
        assert len(writers.told) > 4
