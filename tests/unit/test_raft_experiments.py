"""The experiments of the study of pysyncobj that are more than one message: callbacks, floods, waits for checkpoints.

docs/raft-simulation.md has the table of all faults and their tests.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.errors import DfsError
from dfs.master.raft_engine import EngineStopped
from dfs.master.raft_state import RaftLog
from dfs.master.raft_transport import RaftTransport
from dfs.net.auth import ClusterKey
from dfs.testing.raft_group import CommandList
from dfs.testing.raft_single import SingleNode, append, entry

FLOOD = 70_000  # commands; a pipe of 64 KiB takes a byte for each of 65,536


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def node(folder: Path) -> Iterator[SingleNode]:
    node = SingleNode(folder)
    yield node
    node.close()


def test_fault_e6_an_exception_in_a_callback_stops_the_node_and_applies_nothing_twice(folder: Path) -> None:
    machine, failures = CommandList(), []

    def raise_error(_results: Any, _reason: int) -> None:
        raise ZeroDivisionError

    async def run() -> None:
        leading, stopped = asyncio.Event(), asyncio.Event()

        def fail(error: DfsError) -> None:
            failures.append(error)
            stopped.set()

        log = RaftLog(
            name="a",
            peers={"a": "127.0.0.1:0"},
            data_dir=folder,
            key=ClusterKey.from_secret(b"a secret of thirty-two bytes, ok", "test"),
            machine=machine,
            election_timeout_s=(0.01, 0.02),
            fsync=False,
            on_leadership=lambda _leads: leading.set(),
            on_failure=fail,
        )
        await log.start()
        async with asyncio.timeout(60):
            await leading.wait()
            log.node.engine.submit([b"once"], raise_error)
            log.node.wake()
            await stopped.wait()
        await log.close()

    asyncio.run(run())
    assert machine.commands == [b"once"]
    assert "raised ZeroDivisionError" in str(failures[0])
    assert len(failures) == 1


def test_fault_e7_an_entry_of_a_kind_unknown_here_is_not_skipped(node: SingleNode) -> None:
    newer = (b"\x05of a newer version", 2, 1)
    node.get("b", append(1, [newer, entry(3, 1)], previous_term=0, commit=3))
    with pytest.raises(EngineStopped):
        node.engine.tick()
    assert "of a newer version: upgrade" in str(node.failures[0])
    assert node.machine.commands == []


def test_fault_j2_a_flood_of_commands_in_one_turn_is_taken(node: SingleNode) -> None:
    node.lead()
    node.engine._SyncObj__conf.leaderFallbackTimeout = 1e9  # nobody answers here: it must not step down meanwhile
    for _ in range(FLOOD):
        node.engine.submit([b"x"], lambda _results, _reason: None)
    for _ in range(FLOOD):  # a tick takes as many as it has time for, one at least
        node.engine.tick()
        if node.journal.last_index > FLOOD:
            break
    assert node.journal.last_index > FLOOD


def test_fault_j9_a_follower_that_waits_for_a_checkpoint_is_left_alone() -> None:
    class Link:
        is_paused = False
        backlog = 0
        peer = "b"

    link = Link()
    told: list[Any] = []
    transport = RaftTransport(name="a", peers=dict.fromkeys("abc", "127.0.0.1:1"), key=b"k" * 32, dead_after_s=9)
    transport._links["b"] = link  # type: ignore[assignment]  # as much of one as is asked
    transport.setOnNodeDisconnectedCallback(told.append)
    nothing_yet = {"type": "append_entries", "term": 1, "commit_index": 1, "serialized": None}
    assert not transport.send(transport._nodes["b"], nothing_yet)
    assert link.is_paused, "the library sends on for a whole heartbeat period as long as it calls the peer connected"
    assert [str(peer.id) for peer in told] == ["b"]
