"""Does a cluster of real processes heal itself after kills, wipes and additions, without losing a byte on the way?

One cluster lives through all of it; every test finds c1 to c4 healthy and leaves them so, for workers may share the
tests out in any way. A fifth server may be left running: who wants it enlists it, who does not sends it away.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.client import DfsClient
from dfs.net.messages import GetClusterStatusReply
from dfs.testing.cluster import ClusterUnderTest, copy_living, wait_until

pytestmark = pytest.mark.timeout(180)
KIB = 1024
WAIT_S = 60.0
QUICK = {
    "heartbeat_interval": "200 ms",
    "dead_after": "3 s",  # a busy machine is no dead one
    "repair_after": "4500 ms",
    "garbage_grace": "1 s",
}


class Patient:
    """The cluster, its one client, and what it holds."""

    def __init__(self, cluster: ClusterUnderTest, client: DfsClient) -> None:
        self.cluster, self.client = cluster, client
        rng = random.Random(4)
        self.files = {f"/large{number}": rng.randbytes(4 * 256 * KIB) for number in range(8)}
        self.files |= {f"/small{number}": rng.randbytes(rng.randrange(1, 9 * KIB)) for number in range(30)}

    def store(self) -> None:
        for path, content in self.files.items():
            self.client.put(io.BytesIO(content), path)

    def check_bytes(self) -> None:
        for path, content in self.files.items():
            assert b"".join(self.client.read(path)) == content, path

    def status(self) -> GetClusterStatusReply:
        return self.client.cluster_status()

    def names(self) -> list[str]:
        return sorted(server.info.name for server in self.status().servers)

    def ids(self, name: str) -> set[str]:
        return {server.info.server_id.hex() for server in self.status().servers if server.info.name == name}

    def is_whole(self) -> bool:
        """Whether every chunk has its goal of live replicas, and no more."""
        status = self.status()
        space, healing = status.space, status.healing
        goal = 3 * sum(map(len, self.files.values()))
        return (
            healing.is_surveyed
            and not space.under_replicated_live + sum(healing.waiting) + healing.surplus_count
            and space.chunk_stored_size >= goal
        )

    def is_trimmed(self) -> bool:
        """Whether it is whole, and no server holds a replica too many."""
        stored = sum(server.stored_size for server in self.status().servers)
        return self.is_whole() and stored == 3 * sum(map(len, self.files.values()))

    def is_rid_of_surplus(self) -> bool:
        """Whether it is trimmed, and the servers have deleted what was: until then it may be used again."""
        listed = {server.info.name: server.chunk_count for server in self.status().servers}
        return self.is_trimmed() and all(len(self.cluster.replicas(name)) == count for name, count in listed.items())

    def copies(self) -> int:
        """How many replicas were copied so far, whoever has led meanwhile."""
        names = [server.name for server in self.cluster.config.chunk_servers]
        return sum(self.cluster.log_of(name).count(" chunk_copied ") for name in names)

    def wait_whole(self) -> None:
        wait_until(self.is_whole, WAIT_S, "every chunk has its goal of live replicas")

    def wait_state(self, name: str, *states: str) -> None:
        def is_so() -> bool:
            return any(server.info.name == name and server.state in states for server in self.status().servers)

        wait_until(is_so, WAIT_S, f"{name} is {' or '.join(states)}")

    def wait_alive(self, *names: str) -> None:
        for name in names:
            self.wait_state(name, "alive", "slow")

    def enlist(self, name: str) -> None:
        """Let a server run, whether or not an earlier test left it running."""
        if name not in self.names():
            self.cluster.start(name)
        self.wait_alive(name)
        wait_until(lambda: all(server.free for server in self.status().servers), WAIT_S, f"{name} has told of its disk")

    def forget(self, name: str) -> None:
        """Stop a server and remove it, with all that it holds."""
        self.cluster.stop(name)
        self.wait_state(name, "dead")
        done = self.cluster.run_cli("admin", "remove", name)
        assert done.returncode == 0, done.stderr
        self.wipe(name)

    def send_away(self, name: str) -> None:
        """Let a server be unknown and empty, whether or not an earlier test left it running or its disk full."""
        if name in self.names():
            self.forget(name)
            self.wait_whole()
        self.wipe(name)

    def wipe(self, name: str) -> None:
        for folder in self.cluster.config.chunk_server(name).data_dirs:
            shutil.rmtree(folder, ignore_errors=not folder.exists())

    def cli_json(self, *arguments: str) -> Any:
        done = self.cluster.run_cli(*arguments, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    folder = tmp_path_factory.mktemp("healing")
    with (
        ClusterUnderTest(folder, chunk_servers=5, chunk_size=256 * KIB, settings=QUICK) as cluster,
        cluster.client(timeout_s=30) as client,
    ):
        patient = Patient(cluster, client)
        patient.forget("c5")
        patient.store()
        yield patient


def test_a_killed_server_is_replaced_by_copies_and_its_return_is_trimmed(patient: Patient) -> None:
    patient.wait_whole()
    before = patient.copies()
    patient.cluster.kill("c1")
    patient.wait_state("c1", "dead")
    patient.wait_whole()
    assert patient.copies() > before
    patient.check_bytes()
    patient.cluster.start("c1")
    patient.wait_alive("c1")
    wait_until(patient.is_trimmed, WAIT_S, "what c1 brought back is trimmed")
    patient.check_bytes()


def test_a_second_death_during_the_repair_loses_no_byte(patient: Patient) -> None:
    patient.enlist("c5")
    before = patient.copies()
    patient.cluster.kill("c1")

    def is_repairing() -> bool:
        healing = patient.status().healing
        return healing.deferred_count + sum(healing.waiting) + healing.copying_count > 0

    wait_until(is_repairing, WAIT_S, "the first death leaves chunks short")
    patient.cluster.kill("c2")
    patient.check_bytes()
    patient.wait_state("c2", "dead")
    patient.wait_whole()
    patient.check_bytes()
    assert patient.copies() > before
    patient.cluster.start("c1")
    patient.cluster.start("c2")
    patient.wait_alive("c1", "c2")
    patient.forget("c5")
    patient.wait_whole()


def test_a_wiped_server_returns_empty_under_its_old_name_and_is_filled(patient: Patient) -> None:
    patient.send_away("c5")
    patient.send_away("c4")  # else the others may have it all again before the wiped one is back
    wait_until(patient.is_rid_of_surplus, WAIT_S, "no server holds more than it is asked to")
    before = patient.ids("c3")
    patient.cluster.kill("c3")
    patient.wipe("c3")
    patient.cluster.start("c3")
    wait_until(lambda: not before & patient.ids("c3"), WAIT_S, "the old identity is forgotten, the new one is there")
    patient.wait_alive("c3")
    patient.wait_whole()
    assert len(patient.cluster.replicas("c3")) > 0
    patient.check_bytes()
    patient.enlist("c4")


def test_a_copied_data_directory_is_refused_with_the_reason(patient: Patient) -> None:
    patient.send_away("c5")
    (original,) = patient.cluster.config.chunk_server("c2").data_dirs
    (copied,) = patient.cluster.config.chunk_server("c5").data_dirs
    copy_living(original, copied)
    patient.cluster.start("c5")
    wait_until(lambda: "registration_refused" in patient.cluster.log_of("c5"), WAIT_S, "the twin is refused")
    assert "a data directory was copied" in patient.cluster.log_of("c5")
    assert patient.names() == ["c1", "c2", "c3", "c4"]
    patient.cluster.stop("c5")
    patient.wipe("c5")
    patient.check_bytes()


def test_a_new_server_is_balanced_until_fills_are_even(patient: Patient) -> None:
    patient.send_away("c5")
    patient.wait_whole()
    patient.enlist("c5")
    servers = patient.status().servers
    room = min(server.free for server in servers)
    threshold = 100 * 1024 * KIB / room  # in percent: a MiB of the common disk
    plan = patient.cli_json("admin", "balance", "--plan", "--threshold", f"{threshold:.9f}")
    assert "c5" in {move["target"] for move in plan["moves"]}
    patient.cli_json("admin", "balance", "--threshold", f"{threshold:.9f}")

    def spread() -> int:
        stored = [server.stored_size for server in patient.status().servers]
        return max(stored) - min(stored)

    wait_until(lambda: spread() <= 2 * 1024 * KIB and patient.is_trimmed(), WAIT_S, "five servers hold about as much")
    assert len(patient.cluster.replicas("c5")) > 0
    patient.check_bytes()


def test_moves_of_balance_never_come_faster_than_balance_rate(tmp_path: Path) -> None:
    """Ratios only: what arrived is compared with what the rate allows for the time that really passed."""
    rate, chunk = 512 * KIB, 64 * KIB
    settings = {**QUICK, "repair_after": "1 h", "balance_rate": f"{rate} B/s"}  # no copy but those of balance
    with (
        ClusterUnderTest(tmp_path, masters=1, chunk_servers=4, chunk_size=chunk, settings=settings) as cluster,
        cluster.client(timeout_s=30) as client,
    ):
        patient = Patient(cluster, client)
        patient.forget("c4")
        patient.files = {f"/f{number}": random.Random(number).randbytes(chunk) for number in range(60)}
        patient.store()
        patient.wait_whole()
        cluster.start("c4")
        patient.wait_alive("c4")
        wait_until(lambda: all(server.free for server in patient.status().servers), WAIT_S, "c4 has told of its disk")
        room = min(server.free for server in patient.status().servers)
        began_s = time.monotonic()
        patient.cli_json("admin", "balance", "--threshold", f"{100 * 2 * chunk / room:.9f}")
        samples: list[tuple[float, int]] = []

        def is_even() -> bool:
            servers = patient.status().servers
            stored = {server.info.name: server.stored_size for server in servers}
            samples.append((time.monotonic() - began_s, stored["c4"]))
            return max(stored.values()) - min(stored.values()) <= 0.1 * max(stored.values()) and patient.is_trimmed()

        wait_until(is_even, WAIT_S, "the fills are within 10 % of each other")
        assert samples[-1][1] >= 40 * chunk
        spared = 4 * chunk  # what the bucket had saved, and a debt
        for passed_s, arrived in samples:
            assert arrived <= rate * passed_s + spared
        patient.check_bytes()


def test_a_drained_server_is_safe_to_power_off(patient: Patient) -> None:
    patient.enlist("c5")
    refused = patient.cluster.run_cli("admin", "remove", "c5")
    assert refused.returncode == 1
    assert b"runs, and would register again" in refused.stderr
    done = patient.cluster.run_cli("admin", "decommission", "c5", "--wait")
    assert b"safe to power off" in done.stdout, done.stderr
    shown = patient.cluster.run_cli("status")
    assert b"safe to power off" in shown.stdout
    patient.cluster.kill("c5")
    patient.wait_state("c5", "dead")
    patient.check_bytes()
    removed = patient.cluster.run_cli("admin", "remove", "c5")
    assert removed.returncode == 0, removed.stderr
    assert patient.names() == ["c1", "c2", "c3", "c4"]
    wait_until(patient.is_trimmed, WAIT_S, "nothing is missing")
    too_few = patient.cluster.run_cli("setrep", "4", "/large0")
    assert too_few.returncode == 0, too_few.stderr
    refusal = patient.cluster.run_cli("admin", "decommission", "c4")
    assert refusal.returncode == 1
    assert b"3 are left that can take chunks, and chunks want 4 replicas each" in refusal.stderr
    again = patient.cluster.run_cli("setrep", "3", "/large0")
    assert again.returncode == 0, again.stderr


def test_maintenance_keeps_a_restart_from_moving_anything(patient: Patient) -> None:
    patient.wait_whole()
    copied = patient.copies()
    assert patient.cluster.run_cli("admin", "maintenance", "on", "c4", "--for", "10m").returncode == 0
    patient.cluster.kill("c4")
    patient.wait_state("c4", "dead")
    wait_until(lambda: patient.status().healing.deferred_count > 0, WAIT_S, "its chunks wait")
    age_s = patient.cluster.config.repair_after_s + 1
    wait_until(
        lambda: any(s.info.name == "c4" and s.heartbeat_age_s > age_s for s in patient.status().servers),
        WAIT_S,
        "repair would have begun",
    )
    assert (patient.copies(), sum(patient.status().healing.waiting)) == (copied, 0)
    patient.cluster.start("c4")
    patient.wait_alive("c4")
    assert patient.cluster.run_cli("admin", "maintenance", "off", "c4").returncode == 0
    patient.check_bytes()


def test_status_tells_the_numbers_of_healing_as_json(patient: Patient) -> None:
    patient.wait_whole()
    healing = patient.cli_json("status")["healing"]
    assert healing["waiting"] == {"none": 0, "one": 0, "more": 0}
    assert healing["is_surveyed"] is True
    assert healing["balance"]["state"] in ("off", "even", "running")
