"""What does it cost clients when somebody sets the clock of the leading master?"""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dfs.clock import SYSTEM_CLOCK
from dfs.errors import Conflict
from dfs.fast_paths import FastPath, is_on
from dfs.testing.memory_cluster import MemoryCluster


class SetClock:
    """The system's clock, with another time of day."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic()

    def wall_ms(self) -> int:
        return SYSTEM_CLOCK.wall_ms() + round(self.ahead_s * 1000)


def test_a_clock_set_ahead_costs_a_client_one_put_at_most(tmp_path: Path) -> None:
    """What it has set aside is too old then; it must not meet that chunk by chunk."""
    clock = SetClock()
    with MemoryCluster(tmp_path, clock=clock) as cluster, cluster.client() as client:
        for number in range(20):  # so many that a batch of chunks is set aside
            client.put(io.BytesIO(b"data"), f"/before{number}")
        clock.ahead_s = 2 * cluster.config.orphan_grace_s
        client.make_directory("/the-masters-hear-of-it")
        if is_on(FastPath.RESERVE):
            with pytest.raises(Conflict, match="longer ago"):
                client.put(io.BytesIO(b"data"), "/old")
        for number in range(20):
            client.put(io.BytesIO(b"data"), f"/after{number}")
        assert b"".join(client.read("/after19")) == b"data"
