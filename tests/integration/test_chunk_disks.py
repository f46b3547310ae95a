"""Do disks that fill, vanish, are wiped or were copied cost anything but themselves? Real processes and a tmpfs."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.checksum import first_bad_block
from dfs.chunk.identity import IDENTITY_FILE
from dfs.chunk.layout import data_length, decode_tail
from dfs.client import DfsClient
from dfs.ids import ChunkHandle
from dfs.net.parts import DiskReport, ServerStatus
from dfs.testing.cluster import ClusterUnderTest, copy_living, wait_until
from dfs.testing.replicas import flip

pytestmark = pytest.mark.timeout(240)
MIB = 1 << 20
DISK_SIZE = 64 * MIB
WAIT_S = 60.0


def run(*command: str) -> str:
    """Run a command of the system; return "" or its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"{command[0]} failed"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterUnderTest]:
    """One master and three chunk servers; the disk of c1 is a tmpfs of its own. No test sees the damage of another."""
    made = ClusterUnderTest(
        tmp_path,
        masters=1,
        chunk_servers=3,
        chunk_size=4 * MIB,
        settings={"disk_reserve": "1 MiB", "scrub_period": "1 s", "scrub_rate": "512 MiB"},
    )
    disk = disk_of(made, "c1")
    disk.mkdir(parents=True)
    if complaint := run("mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", str(disk)):
        made.close()
        pytest.skip(f"a tmpfs cannot be mounted here: {complaint}")
    try:
        with made:
            yield made
    finally:
        run("umount", "-l", str(disk))


def disk_of(cluster: ClusterUnderTest, name: str) -> Path:
    (folder,) = cluster.config.chunk_server(name).data_dirs
    return folder


def servers_named(client: DfsClient, name: str) -> list[ServerStatus]:
    return [server for server in client.cluster_status().servers if server.info.name == name]


def report_of(client: DfsClient, name: str) -> DiskReport:
    (server,) = [server for server in servers_named(client, name) if server.state != "dead"]
    (disk,) = server.disks
    return disk


def check_whole(path: Path) -> None:
    """Assert that a file of a replica is sound from its first to its last byte."""
    data = path.read_bytes()
    length = data_length(len(data))
    tail = decode_tail(data[length:], length, ChunkHandle(bytes.fromhex(path.name)))
    assert first_bad_block(data[:length], tail.checksums) is None


def test_a_disk_that_fills_during_puts_costs_no_put_and_keeps_no_half_chunk(cluster: ClusterUnderTest) -> None:
    disk = disk_of(cluster, "c1")
    ballast = disk / "ballast"
    assert disk.is_mount(), "this test fills a disk: it must be the small one"

    def fill(_size: int) -> None:
        """Take all that is left of the disk while chunks are on their way to it."""
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while file.write(bytes(MIB)):
                pass

    files = {f"/full-{number}": os.urandom(24 * MIB) for number in range(3)}
    with cluster.client() as client:
        for path, data in files.items():
            client.put(io.BytesIO(data), path, progress=fill)
        for path, data in files.items():
            assert b"".join(client.read(path)) == data
        assert "disk_full" in cluster.log_of("c1"), "a chunk met the full disk"
        wait_until(lambda: not list((disk / "tmp").iterdir()), WAIT_S, "what was half written is gone")
        fill(0)
        wait_until(lambda: report_of(client, "c1").state == "full", WAIT_S, "the leader hears of the full disk")
        assert report_of(client, "c2").state == "ok"
        status = cluster.run_cli("status")
        assert status.returncode == 1
        assert f"disk {disk} of chunk server c1 is full" in status.stdout.decode()
        for replica in cluster.replicas("c1"):
            check_whole(replica.path)
        ballast.unlink()
        wait_until(lambda: report_of(client, "c1").state == "ok", WAIT_S, "a disk with room is used again")


def test_damage_that_no_reader_met_is_found_by_the_scrubber_and_told(cluster: ClusterUnderTest) -> None:
    data = os.urandom(12 * MIB)
    with cluster.client() as client:
        before = {replica.path for replica in cluster.replicas("c2")}
        client.put(io.BytesIO(data), "/scrubbed")
        flipped, cut_off, removed = sorted({replica.path for replica in cluster.replicas("c2")} - before)
        flip(flipped, 3 * MIB)
        os.truncate(cut_off, 1000)
        removed.unlink()
        wait_until(
            lambda: report_of(client, "c2").quarantined_count >= 2,
            WAIT_S,
            "the leader hears of a flipped and a cut file",
        )
        kept = {path.name.partition(".")[0] for path in (disk_of(cluster, "c2") / "quarantine").iterdir()}
        assert {flipped.name, cut_off.name} <= kept
        wait_until(
            lambda: f"replica_vanished path={removed}" in cluster.log_of("c2"), WAIT_S, "the removed file is missed"
        )
        assert b"".join(client.read("/scrubbed")) == data


def test_a_copied_data_directory_is_refused_in_words_and_its_original_goes_on(cluster: ClusterUnderTest) -> None:
    data = os.urandom(8 * MIB)
    with cluster.client() as client:
        client.put(io.BytesIO(data), "/copied")
        cluster.kill("c3")
        own, copied = disk_of(cluster, "c3"), disk_of(cluster, "c2")
        kept = own.with_name("kept")
        own.rename(kept)
        copy_living(copied, own)
        cluster.start("c3")
        wait_until(lambda: "registration_refused" in cluster.log_of("c3"), WAIT_S, "the twin is refused")
        (line,) = [line for line in cluster.log_of("c3").splitlines() if "registration_refused" in line][:1]
        for words in ("a data directory was copied", cluster.config.chunk_server("c2").address, "Stop one of them"):
            assert words in line
        (original,) = servers_named(client, "c2")
        assert original.state != "dead"
        assert b"".join(client.read("/copied")) == data
        wait_until(lambda: cluster.run_cli("status").returncode == 1, WAIT_S, "the status says that c3 is missing")
        cluster.kill("c3")
        shutil.rmtree(own)
        kept.rename(own)
        cluster.start("c3")
        cluster.wait_healthy(WAIT_S)
        assert b"".join(client.read("/copied")) == data


def test_a_vanished_disk_is_out_and_a_wiped_server_returns_empty_under_its_old_name(cluster: ClusterUnderTest) -> None:
    data = os.urandom(8 * MIB)
    disk = disk_of(cluster, "c1")
    with cluster.client() as client:
        client.put(io.BytesIO(data), "/before")
        assert cluster.replicas("c1")
        (before,) = servers_named(client, "c1")
        assert run("umount", "-l", str(disk)) == ""
        wait_until(lambda: report_of(client, "c1").state == "failed", WAIT_S, "the leader hears of the vanished disk")
        assert "vanished" in report_of(client, "c1").reason
        assert list(disk.iterdir()) == [], "nothing was written to where the disk is not mounted"
        assert b"".join(client.read("/before")) == data
        client.put(io.BytesIO(data), "/meanwhile")
        cluster.kill("c1")
        cluster.start("c1")

        def is_back() -> bool:
            found = {server.info.server_id: server for server in servers_named(client, "c1")}
            old = found.pop(before.info.server_id, None)
            has_reported = [server.state != "dead" for server in found.values() if server.disks] == [True]
            return has_reported and (old is None or old.state == "dead")

        wait_until(is_back, WAIT_S, "the server is back as another one, and the old one is dead")
        assert cluster.log_of("c1").count("new_chunk_server") == 2
        assert (disk / IDENTITY_FILE).exists()
        client.put(io.BytesIO(data), "/after")
        for path in ("/before", "/meanwhile", "/after"):
            assert b"".join(client.read(path)) == data
        assert cluster.replicas("c1"), "it takes new chunks"
