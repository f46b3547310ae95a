"""A chunk server is killed at each step of a write, an append, a seal and a repair: is anything lost or doubled?"""

from __future__ import annotations

import functools
import io
import itertools
import os
import signal
from collections.abc import Iterator

import pytest

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.local.health import describe_missing
from dfs.testing.append_chaos import locate
from dfs.testing.chaos import deathtraps
from dfs.testing.chaos.deathtraps import APPEND, COPY, MOMENTS, SEAL, SMALL_WRITE, WRITE, Traps
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(300)
SIZE = 700_000  # bytes of a file of one chunk that is no small one
SMALL_SIZE = 20_000


class Stage:
    """A cluster with traps."""

    def __init__(self, cluster: ClusterUnderTest, traps: Traps) -> None:
        self.cluster, self.traps = cluster, traps

    def revive(self, moment: str, step: str) -> None:
        """Wait until the trap has killed, and bring its victim back."""
        wait_until(lambda: self.traps.is_sprung(moment, step), 60, f"a server came to {moment} {step!r}")
        wait_until(lambda: bool(self.cluster.local.died()), 60, f"the server that came to {moment} {step!r} died")
        for name in self.cluster.local.died():
            self.cluster.start(name)
        self.cluster.wait_healthy()

    def is_held_thrice(self, handle: bytes) -> bool:
        """Return whether three servers hold a sealed replica of a chunk."""
        names = [server.name for server in self.cluster.config.chunk_servers]
        return sum(any(replica.handle == handle for replica in self.cluster.replicas(name)) for name in names) == 3


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("phases")
    traps = Traps(folder / "traps")
    launchers = {name: deathtraps.launcher(folder / "traps") for name in ("c1", "c2", "c3", "c4")}
    with ClusterUnderTest(folder, launchers=launchers) as cluster:
        yield Stage(cluster, traps)


def test_a_server_that_died_a_moment_ago_is_missed_although_its_leader_still_takes_it_for_alive(stage: Stage) -> None:
    cluster = stage.cluster
    with cluster.client() as client:
        wait_until(lambda: describe_missing(cluster.config, cluster.names(), client) is None, 60, "nothing is missing")
        os.kill(cluster.local.pids()["c1"], signal.SIGKILL)
        wait_until(lambda: cluster.local.died() == ["c1"], 60, "c1 has ended")
        assert "c1" in (describe_missing(cluster.config, cluster.names(), client) or "")
    cluster.start("c1")
    cluster.wait_healthy()


@pytest.mark.parametrize(("size", "steps"), [(SIZE, WRITE), (SMALL_SIZE, SMALL_WRITE)], ids=["large", "small"])
def test_a_server_killed_in_any_phase_of_a_chain_write_costs_no_put_and_no_byte(
    stage: Stage, size: int, steps: tuple[str, ...]
) -> None:
    contents = {}
    with stage.cluster.client(timeout_s=60) as client:
        for number, (step, moment) in enumerate(itertools.product(steps, MOMENTS)):
            path = f"/written {size} {number}"
            contents[path] = os.urandom(size)
            stage.traps.set(moment, step)
            client.put(io.BytesIO(contents[path]), path)
            assert b"".join(client.read(path)) == contents[path], (moment, step)
            stage.revive(moment, step)
        for path, content in contents.items():
            assert b"".join(client.read(path)) == content, path


def test_a_server_killed_in_any_phase_of_append_and_seal_neither_loses_nor_doubles_a_record(stage: Stage) -> None:
    told: list[Acknowledged] = []
    with stage.cluster.client(timeout_s=60) as client, client.appender("/log") as appender:

        def append() -> None:
            sequence = len(told) + 1
            offset = appender.append(make_record(1, sequence, 500)).result(60)
            told.append(Acknowledged(1, sequence, offset))

        for step, moment in itertools.product((*APPEND, *SEAL), MOMENTS):
            append()
            stage.traps.set(moment, step)
            append()
            if step in SEAL:
                client.copy("/log", "/copy", overwrite=True)  # seals
                check_exactly_once(b"".join(client.read("/copy")), told)
                append()
            append()
            check_exactly_once(b"".join(client.read("/log")), told)
            stage.revive(moment, step)
        assert len(check_exactly_once(b"".join(client.read("/log")), told)) == len(told) > 24


def test_a_server_killed_in_any_phase_of_repair_leaves_every_chunk_whole_and_the_repair_is_done(stage: Stage) -> None:
    with stage.cluster.client(timeout_s=60) as client:
        for number, (step, moment) in enumerate(itertools.product(COPY, MOMENTS)):
            path = f"/repaired {number}"
            content = os.urandom(SIZE)
            client.put(io.BytesIO(content), path, replication=1)
            (extent,) = locate(client, path).extents
            stage.traps.set(moment, step)
            client.set_replication(path, 3)
            stage.revive(moment, step)
            is_repaired = functools.partial(stage.is_held_thrice, extent.handle)
            wait_until(is_repaired, 60, f"the chunk is repaired: {moment} {step}")
            assert b"".join(client.read(path)) == content
