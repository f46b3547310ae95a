"""What a chunk server counts while it works.

Owns: times and bytes of reads and writes, refusals by code, when clients were served last. Refuses to know: how it is
shown (dfs.chunk.metrics).
"""

from __future__ import annotations

import time

from dfs.measures import Times, Totals

CLIENT_SEEN_S = 0.5  # how long after a client's request this server counts as serving clients


class ChunkMeter:
    """What is counted as it happens, from any thread."""

    def __init__(self) -> None:
        self.reads, self.writes = Times(), Times()
        self.bytes = Totals()  # in, out; lent: what of `in` came from the memory of writers of this machine
        self.handed_over = Totals()  # replicas, volumes: to readers of this machine; what they read is not counted
        self.refused = Totals()  # by code
        self._client_seen_s = float("-inf")

    def note_client(self) -> None:
        """Hear that a client, and not another chunk server, was served."""
        self._client_seen_s = time.monotonic()

    def is_serving_clients(self) -> bool:
        """Whether clients have read or written here within the last moment."""
        return time.monotonic() - self._client_seen_s < CLIENT_SEEN_S

    def read(self, size: int, begun_s: float) -> None:
        """Count a range that was sent; `begun_s` is of time.perf_counter()."""
        self.reads.observe(time.perf_counter() - begun_s)
        self.bytes.add("out", size)

    def wrote(self, size: int, begun_s: float) -> None:
        """Count a chunk that was written here and along the rest of its chain."""
        self.writes.observe(time.perf_counter() - begun_s)
        self.bytes.add("in", size)
