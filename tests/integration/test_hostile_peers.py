"""Does anybody get in, or do harm, without the cluster's secret? Every port of a real cluster is attacked."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.clock import Deadline
from dfs.config import split_address
from dfs.errors import AuthenticationFailed, DfsError
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel
from dfs.net.messages import Ping
from dfs.testing.cluster import ClusterUnderTest

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterUnderTest]:
    with ClusterUnderTest(tmp_path_factory.mktemp("hostile")) as running:
        yield running


def ports(cluster: ClusterUnderTest) -> list[str]:
    config = cluster.config
    return [
        *(master.address for master in config.masters),
        *(master.raft_address for master in config.masters),
        *(server.address for server in config.chunk_servers),
    ]


def assert_unharmed(cluster: ClusterUnderTest, name: str) -> None:
    with cluster.client() as client:
        client.make_directory(f"/{name}")
        assert client.exists(f"/{name}")


def attack(address: str, payload: bytes) -> None:
    """Send bytes and read until the peer closes or says nothing more."""
    with socket.create_connection(split_address(address), timeout=5) as sock:
        sock.settimeout(2)
        try:
            sock.sendall(payload)
            while sock.recv(65536):
                pass
        except OSError:
            pass


def test_wrong_secret_is_refused_on_every_port_with_advice(cluster: ClusterUnderTest) -> None:
    key = ClusterKey.from_secret(b"not the secret of this cluster!!", cluster.config.name)
    for address in [*(m.address for m in cluster.config.masters), *(c.address for c in cluster.config.chunk_servers)]:
        with pytest.raises(AuthenticationFailed, match="secret"):
            Channel.connect(address, key, Deadline.after(10))
    assert_unharmed(cluster, "after-wrong-secret")


def test_refused_peers_are_logged(cluster: ClusterUnderTest) -> None:
    key = ClusterKey.from_secret(b"not the secret of this cluster!!", cluster.config.name)
    with pytest.raises(DfsError):
        Channel.connect(cluster.config.masters[0].address, key, Deadline.after(10))
    assert "127.0.0.1" in cluster.log_of(cluster.config.masters[0].name)


@pytest.mark.parametrize("size", [1, 36, 4096, 1 << 20])
def test_random_bytes_on_any_port_harm_nobody(cluster: ClusterUnderTest, size: int) -> None:
    for address in ports(cluster):
        attack(address, os.urandom(size))
    assert_unharmed(cluster, f"after-random-{size}")


def test_oversized_lengths_are_refused_before_they_are_buffered(cluster: ClusterUnderTest) -> None:
    huge = struct.pack("<4sBBHQIIII", b"DFSf", 1, 0, 0x100, 1, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0) + bytes(4)
    for address in ports(cluster):
        attack(address, huge + bytes(1 << 16))
    assert_unharmed(cluster, "after-oversized")


def test_silent_connections_do_not_keep_others_out(cluster: ClusterUnderTest) -> None:
    silent = [socket.create_connection(split_address(a), timeout=5) for a in ports(cluster) for _ in range(30)]
    try:
        assert_unharmed(cluster, "beside-silent")
        key = ClusterKey.load(cluster.config.secret_file, cluster.config.name)
        for address in (cluster.config.masters[0].address, cluster.config.chunk_servers[0].address):
            channel = Channel.connect(address, key, Deadline.after(10))
            channel.call(Ping(), Deadline.after(10))
            channel.close()
    finally:
        for sock in silent:
            sock.close()


def test_daemons_listen_on_the_configured_address_only(cluster: ClusterUnderTest) -> None:
    """/proc/net/tcp shows listening sockets; ours must all be on 127.0.0.1."""
    wanted = {split_address(address)[1] for address in ports(cluster)}
    seen: set[int] = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            host, port = fields[1].split(":")
            if fields[3] == "0A" and int(port, 16) in wanted:
                assert host == "0100007F", line
                seen.add(int(port, 16))
    assert seen == wanted
