"""How much memory a process has needed, and a client in a process of its own that tells it of itself.

Owns: reading the kernel's high-water mark, and the transfers that are measured. Refuses to know: what is too much.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

from dfs.client import ClusterAccess, DfsClient, ReadRules
from dfs.config import MIB, load_config


def peak_size(pid: int | str = "self") -> int:
    """Return the bytes that were resident at most in the life of a process."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"the kernel tells no high-water mark of process {pid}")


class Zeros(io.RawIOBase):
    """A stream of `size` bytes that takes no memory."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), self._left)
        buffer[:count] = bytes(count)
        self._left -= count
        return count


def measure(client: DfsClient, work: str, path: str, local: Path, size: int) -> None:
    """Do one transfer."""
    if work == "put":
        with local.open("wb") as file:
            file.truncate(size)
        client.put(local, path)
    elif work == "put stream":
        client.put(Zeros(size), path)  # type: ignore[arg-type]
    elif work == "get":
        client.get(path, local)
    else:
        total = sum(len(piece) for piece in client.read(path))
        assert total == size, f"{total} bytes of {size} came"


def main() -> None:
    """Do one transfer and print how much memory it needed over that of an idle client."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("work", choices=["put", "put stream", "get", "read"])
    parser.add_argument("path")
    parser.add_argument("local", type=Path)
    parser.add_argument("mib", type=int)
    parser.add_argument("--network", action="store_true")
    given = parser.parse_args()
    access = ClusterAccess.from_config(load_config(given.config))
    with DfsClient(access, timeout_s=60, reads=ReadRules(local=not given.network)) as client:
        client.exists("/")
        idle = peak_size()
        measure(client, given.work, given.path, given.local, given.mib * MIB)
        counts = client.read_counts
    json.dump({"idle": idle, "peak": peak_size(), "local": counts.local, "remote": counts.remote}, sys.stdout)


if __name__ == "__main__":
    main()
