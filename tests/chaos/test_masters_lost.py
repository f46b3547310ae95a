"""Does every promise hold when most masters are gone, all of them, their disks, or the links between them?"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.client import DfsClient
from dfs.client.discovery import Masters
from dfs.client.pool import ChannelPool
from dfs.clock import Deadline
from dfs.errors import DfsError, NoQuorum
from dfs.ids import new_session_id
from dfs.net.auth import ClusterKey
from dfs.net.messages import MakeDirectory, Stat, StatReply
from dfs.net.parts import CallId
from dfs.testing.chaos.namespaces import Namespaces, is_permitted
from dfs.testing.chaos.run import run_chaos
from dfs.testing.chaos.schedule import FaultKind, Plan, one_after_another
from dfs.testing.cluster import ClusterUnderTest, wait_until

pytestmark = pytest.mark.timeout(300)
MASTERS, SERVERS = ("m1", "m2", "m3"), ("c1", "c2", "c3", "c4")
CHUNK_SIZE = 64 * 1024
PATIENT_S, IMPATIENT_S = 60.0, 4.0
LATE_S = 60.0  # that a busy machine may take for the planned faults, and their recovery, in addition


class Writer:
    """Puts one small file after the other until it is told to stop, and notes what it was told of each."""

    def __init__(self, cluster: ClusterUnderTest) -> None:
        self.stored: list[str] = []
        self.in_doubt: list[str] = []
        self.refused: list[str] = []
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with self._cluster.client(timeout_s=IMPATIENT_S) as client:
            while not self._stop.is_set():
                number += 1
                path = f"/written-{number}"
                try:
                    client.put(io.BytesIO(path.encode()), path)
                except DfsError as error:
                    (self.in_doubt if error.may_have_happened else self.refused).append(path)
                else:
                    self.stored.append(path)

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def check(self, client: DfsClient) -> None:
        """What was stored is there; what is in doubt is there whole, or not at all; what was refused is not there."""
        assert self.stored
        for path in self.stored:
            assert content(client, path) == path.encode()
        for path in self.in_doubt:
            assert not client.exists(path) or content(client, path) == path.encode()
        assert not [path for path in self.refused if client.exists(path)]


def content(client: DfsClient, path: str) -> bytes:
    return b"".join(client.read(path))


def test_two_masters_killed_refuse_clearly_lose_nothing_and_one_that_returns_is_enough(tmp_path: Path) -> None:
    big = os.urandom(20 * CHUNK_SIZE)
    with ClusterUnderTest(tmp_path, chunk_size=CHUNK_SIZE) as cluster, cluster.client(timeout_s=PATIENT_S) as client:
        client.put(io.BytesIO(big), "/big")
        writer = Writer(cluster)
        wait_until(lambda: len(writer.stored) > 10, PATIENT_S, "files are being stored")
        pieces = client.read("/big")
        first = bytes(next(pieces))
        leader = cluster.leader()
        follower = next(name for name in MASTERS if name != leader)
        cluster.kill(leader)
        cluster.kill(follower)
        assert first + b"".join(pieces) == big, "what was located is read on without any master"
        with cluster.client(timeout_s=IMPATIENT_S) as impatient:
            with pytest.raises(NoQuorum, match=r"2 of (the )?3") as refusal:
                impatient.stat("/big")
            assert not refusal.value.may_have_happened
            with pytest.raises(NoQuorum, match=r"2 of (the )?3") as refusal:
                impatient.put(io.BytesIO(b"x"), "/refused")
            assert not refusal.value.may_have_happened
        done = len(writer.stored)
        wait_until(lambda: len(writer.refused) > 0, PATIENT_S, "the writer is refused as well")
        assert len(writer.stored) == done, "nothing is acknowledged by a minority"
        cluster.start(follower)
        wait_until(lambda: len(writer.stored) > done + 10, PATIENT_S, "two of three masters store files again")
        writer.end()
        writer.check(client)
        assert not client.exists("/refused")
        assert content(client, "/big") == big


def test_all_masters_killed_and_wiped_ones_rejoin_under_load_without_a_promise_broken(tmp_path: Path) -> None:
    kinds = (
        FaultKind.KILL_ALL_MASTERS,
        FaultKind.WIPE_FOLLOWER,
        FaultKind.KILL_ALL_MASTERS,
    )
    masters = one_after_another(*kinds, lasts_s=0.3, calm_s=0.7)
    verdict = run_chaos(4, 8, folder=tmp_path, plan=Plan(masters, ()), late_s=LATE_S)
    assert verdict.is_clean, verdict.text()
    assert verdict.faults.get("kill_all_masters", 0) >= 1, verdict.text()
    assert verdict.faults.get("wipe_follower", 0) >= 1, (
        verdict.text()
    )  # it has a vote again, or the run would have failed
    assert all(verdict.calls.get(f"{name} done", 0) > 5 for name in ("touch", "move", "put", "read")), verdict.text()


@pytest.fixture
def network() -> Iterator[Namespaces]:
    if not is_permitted():
        pytest.skip("cutting links needs root and network namespaces; run as root on Linux with iproute2")
    with Namespaces((*MASTERS, *SERVERS)) as made:
        yield made


class AtOneMaster:
    """A client that knows one master only, and asks it again and again: what is there, and to make a directory."""

    def __init__(self, cluster: ClusterUnderTest, name: str) -> None:
        self.seen: list[tuple[float, int]] = []  # when the question was asked, and the time stamp of the answer
        self.made: list[str] = []
        self.refused: list[str] = []
        self.refusals = 0
        self._address = cluster.config.master(name).address
        self._pool = ChannelPool(ClusterKey.load(cluster.access.secret_file, cluster.access.cluster))
        self._masters = Masters(cluster.access.cluster, (self._address,), self._pool)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._look, self._make)]
        for thread in self._threads:
            thread.start()

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            asked_s = time.monotonic()
            try:
                reply = self._masters.ask(self._address, Stat("/clock"), StatReply, Deadline.after(IMPATIENT_S))
            except DfsError:
                self.refusals += 1
            else:
                self.seen.append((asked_s, reply.status.mtime_ms))

    def _make(self) -> None:
        while not self._stop.wait(0.05):
            path = f"/made-{len(self.made) + len(self.refused)}"
            message = MakeDirectory(CallId(new_session_id(), 1, 1), path)
            try:
                self._masters.ask(self._address, message, StatReply, Deadline.after(IMPATIENT_S))
            except DfsError:
                self.refused.append(path)  # or in doubt: it may be there or not
            else:
                self.made.append(path)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._pool.close()


def test_a_leader_cut_off_from_its_followers_but_not_from_clients_is_never_stale_and_loses_nothing(
    tmp_path: Path, network: Namespaces
) -> None:
    """Clients still reach it, and ask nobody else: it must refuse what another leader may have changed."""
    names = (*MASTERS, *SERVERS)
    with (
        ClusterUnderTest(
            tmp_path,
            hosts={name: network.address(name) for name in names},
            launchers={name: network.launcher(name) for name in names},
        ) as cluster,
        cluster.client(timeout_s=PATIENT_S) as client,
    ):
        client.touch("/clock", mtime_ms=1)
        old = cluster.leader()
        stubborn = AtOneMaster(cluster, old)
        acknowledged: list[tuple[float, int]] = []  # when it was, and the time stamp that was written

        def tick(count: int) -> None:
            for _ in range(count):
                stamp = len(acknowledged) + 2
                client.touch("/clock", mtime_ms=stamp)
                acknowledged.append((time.monotonic(), stamp))

        tick(20)
        wait_until(lambda: len(stubborn.seen) > 10 and len(stubborn.made) > 2, PATIENT_S, "the leader answers")
        for other in MASTERS:
            if other != old:
                network.cut(old, other)
                network.cut(other, old)
        tick(50)  # the first of them waits for another leader
        refusals = stubborn.refusals
        wait_until(lambda: stubborn.refusals > refusals, PATIENT_S, "the old leader refuses to answer")
        assert cluster.leader() != old
        network.heal()
        tick(20)
        stubborn.end()
        for asked_s, stamp in stubborn.seen:
            newest = max((written for at_s, written in acknowledged if at_s <= asked_s), default=1)
            assert stamp >= newest, f"{stamp} was read when {newest} had been acknowledged"
        assert client.stat("/clock").mtime_ms == acknowledged[-1][1]
        present = {entry.path for entry in client.list("/")}
        assert {path[1:] for path in stubborn.made} <= present, "what the old leader acknowledged is there"
