"""What do snapshots cost the masters' loop: making one, the first change after it, going back; and a copy, beside them?

    python -m bench.snapshots [ENTRIES]        # of the largest single directory, 300,000

Times are processor times of one command in the replicated state: what the loop stands still for.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable
from random import Random

from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.state.commands import PutServer
from dfs.master.state.machine import MasterState
from dfs.net.messages import (
    CommitFile,
    Copy,
    CreateSnapshot,
    ErrorReply,
    MakeDirectory,
    Message,
    Mutation,
    RestoreSnapshot,
    Touch,
)
from dfs.net.parts import CallId, NewChunk, NewExtent

NOW_MS = 1_000
SERVERS = tuple(ServerId(bytes([number]) * 16) for number in (1, 2, 3))


class Master:
    """A state, and one client that acknowledges each call."""

    def __init__(self) -> None:
        self.state = MasterState()
        self._sequences = itertools.count(1)
        self._rng = Random(1)
        for server_id in SERVERS:
            self.state.apply(NOW_MS, PutServer(server_id, "c", "host:1", "rack"))

    def call(self, build: Callable[[CallId], Mutation]) -> tuple[float, Message]:
        """Return the milliseconds that a call took, and its reply."""
        sequence = next(self._sequences)
        command = build(CallId(SessionId(b"s" * 16), sequence, sequence))
        began_s = time.process_time()
        reply = self.state.apply(NOW_MS, command)
        return (time.process_time() - began_s) * 1000, reply

    def ok(self, build: Callable[[CallId], Mutation]) -> float:
        took_ms, reply = self.call(build)
        if isinstance(reply, ErrorReply):
            raise reply.error()
        return took_ms

    def fill(self, directory: str, count: int) -> None:
        self.ok(lambda call: MakeDirectory(call, directory))
        for number in range(count):
            chunk = NewChunk(ChunkHandle(self._rng.randbytes(16)), 1000, 7, SERVERS)
            path = f"{directory}/{number:07}"
            self.ok(lambda call, path=path, chunk=chunk: CommitFile(call, path, (chunk,), (NewExtent(0, 0, 1000),), 3))  # type: ignore[misc]


def main() -> None:
    largest = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    master = Master()
    for count in (10_000, 50_000, largest):
        directory = f"/{count}"
        master.fill(directory, count)
        gc.collect()
        gc.freeze()
        made_ms = master.ok(lambda call, path=directory: CreateSnapshot(call, path, "s"))  # type: ignore[misc]
        tries: list[float] = []
        reply: Message | None = None
        while reply is None or isinstance(reply, ErrorReply):
            took_ms, reply = master.call(lambda call, path=directory: Touch(call, f"{path}/0000000"))  # type: ignore[misc]
            tries.append(took_ms)
        back_ms = master.ok(lambda call, path=directory: RestoreSnapshot(call, path, "s", "", "before"))  # type: ignore[misc]
        print(
            f"{count:>9,} entries: snapshot {made_ms:.2f} ms, first change {len(tries)} commands of at most "
            f"{max(tries):.1f} ms, restore {back_ms:.2f} ms"
        )
    print(f"cp -r of 10,000 files: {master.ok(lambda call: Copy(call, '/10000', '/copy', recursive=True)):.1f} ms")


if __name__ == "__main__":
    main()
