"""Ports of tests: what one process was given, no other one gets, also while nobody listens there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dfs.local.ports import BLOCK_SIZE, free_ports


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
