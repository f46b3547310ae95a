"""Do many threads share few arenas once it was asked for, and have many without?"""

from __future__ import annotations

import subprocess
import sys

import pytest

from dfs.chunk.arenas import ARENAS_MAX

ALLOCATE = """
import threading
from pathlib import Path
from dfs.chunk.arenas import share_arenas
{share}
SIZE = 64 << 20
kept, together = [], threading.Barrier(16)
def allocate():
    together.wait()
    kept.append([bytearray(1000) for _ in range(2000)])
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
areas = [line.split()[:2] for line in Path("/proc/self/maps").read_text().splitlines()]
found = 0
for (used, mode), (rest, rest_mode) in zip(areas, areas[1:]):
    start, end = int(used.split("-")[0], 16), int(rest.split("-")[1], 16)
    found += mode == "rw-p" and rest_mode == "---p" and start % SIZE == 0 and end - start == SIZE
print(found)
"""


def arenas(share: str) -> int:
    """Return how many arenas a process has beside the first one; each is 64 MiB of addresses, a part of it in use."""
    command = [sys.executable, "-c", ALLOCATE.format(share=share)]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


def test_threads_share_arenas() -> None:
    if arenas("") <= ARENAS_MAX:
        pytest.skip("this C library has no arenas to share")
    assert arenas("share_arenas()") < ARENAS_MAX
