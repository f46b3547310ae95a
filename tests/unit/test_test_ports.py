"""Ports of tests: what one process was given, no other one gets, also while nobody listens there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from dfs.local.ports import BLOCK_SIZE, _is_free, free_ports


def test_two_processes_are_never_given_the_same_port(tmp_path: Path) -> None:
    """Also when their temporary files are apart."""
    own = {port for _ in range(40) for port in free_ports(BLOCK_SIZE // 20)}
    program = f"from dfs.local.ports import *; print(*(p for _ in range(40) for p in free_ports({BLOCK_SIZE // 20})))"
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    other = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60, env=environ
    )
    others = {int(port) for port in other.stdout.split()}
    assert others
    assert not own & others


def test_a_port_comes_round_again_only_after_all_others() -> None:
    first = free_ports(10)
    assert not set(first) & set(free_ports(BLOCK_SIZE // 2))


def test_a_port_is_free_as_soon_as_nobody_listens_although_its_connections_are_remembered() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)) as listening:
        assert not _is_free(port)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            listening.accept()[0].close()  # who closes first remembers the connection for a minute
            assert client.recv(1) == b""
    assert _is_free(port)
