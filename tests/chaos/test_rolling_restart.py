"""Every daemon is restarted, one after the other, as for an upgrade: does one client see one failed call?"""

from __future__ import annotations

import io
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.client import DfsClient
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(300)
CALL_TIMEOUT_S = 20.0  # the default of a cluster under test
CONTENT = os.urandom(300_000)
CALLS_BETWEEN = 8  # calls that every client must have done before the next daemon is stopped


class Load:
    """Clients that call all the time; the first error of each ends it and is kept."""

    def __init__(self, cluster: ClusterUnderTest) -> None:
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.told: list[Acknowledged] = []
        self._cluster = cluster
        self._stop = threading.Event()
        works = {"names": self._names, "puts": self._puts, "gets": self._gets, "appends": self._appends}
        self._threads = [threading.Thread(target=self._run, args=item, daemon=True) for item in works.items()]
        for thread in self._threads:
            thread.start()

    def wait_calls(self, count: int) -> None:
        """Return when every client has made so many calls more, or failed."""
        before = self.counts.copy()

        def is_done() -> bool:
            return bool(self.failures) or all(
                self.counts[name] - before[name] >= count for name in ("names", "puts", "gets", "appends")
            )

        wait_until(is_done, 120, f"every client makes {count} calls")

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, name: str, work: Callable[[DfsClient, int], None]) -> None:
        try:
            with self._cluster.client(timeout_s=CALL_TIMEOUT_S) as client:
                while not self._stop.is_set():
                    work(client, self.counts[name])
                    self.counts[name] += 1
        except Exception as error:  # noqa: BLE001 - a thread root; the test asserts that there is none
            self.failures.append(f"{name}, call {self.counts[name]}: {error!r}")

    def _names(self, client: DfsClient, number: int) -> None:
        client.make_directory(f"/names/{number}", parents=True)
        client.rename(f"/names/{number}", f"/names/moved {number}")
        assert client.exists(f"/names/moved {number}")
        client.remove_directory(f"/names/moved {number}")

    def _puts(self, client: DfsClient, number: int) -> None:
        client.put(io.BytesIO(CONTENT[: 1 + number * 7919 % len(CONTENT)]), f"/put {number % 5}", overwrite=True)

    def _gets(self, client: DfsClient, _number: int) -> None:
        assert b"".join(client.read("/still")) == CONTENT

    def _appends(self, client: DfsClient, number: int) -> None:
        with client.appender("/log") as appender:
            for sequence in (1, 2, 3):
                offset = appender.append(make_record(number, sequence, 300)).result()
                self.told.append(Acknowledged(number, sequence, offset))


def test_a_rolling_restart_of_all_daemons_fails_not_one_call(tmp_path: Path) -> None:
    with ClusterUnderTest(tmp_path) as cluster:
        with cluster.client() as client:
            client.put(io.BytesIO(CONTENT), "/still")
        load = Load(cluster)
        load.wait_calls(CALLS_BETWEEN)
        leader = cluster.leader()
        masters = [name for name in cluster.names() if name.startswith("m") and name != leader]
        servers = [name for name in cluster.names() if name.startswith("c")]
        for name in (*masters, leader, *servers):
            cluster.stop(name)
            cluster.start(name)
            cluster.wait_healthy()
            load.wait_calls(CALLS_BETWEEN)
            assert not load.failures, f"while {name} was restarted: {load.failures}"
        load.end()
        assert not load.failures
        with cluster.client() as client:
            check_exactly_once(b"".join(client.read("/log")), load.told)
