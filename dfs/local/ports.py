"""Loopback ports that belong to one process for as long as it lives, also while nobody listens on them.

Owns: the claim of a block of ports, and the turn in which they are given out. Refuses to know: who listens.

A probe alone is not enough where several processes run clusters at once: the port of a daemon that was killed a moment
ago is free, and would be taken from under its restart. So each process claims a block of its own, by a name in the
place where the ports are, too: the network namespace, whoever the user is and wherever temporary files go.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle

from dfs.errors import DfsError

PORTS = range(20_000, 32_000)  # below the ports that the system hands out to outgoing connections
BLOCK_SIZE = 400  # ports of one process: about thirty clusters until the first port comes round again


def free_ports(count: int) -> list[int]:
    """Return different loopback ports that nobody listens on, that no other such process was given, and that no
    outgoing connection takes by chance."""
    turn = _turn()
    chosen: list[int] = []
    for port in (next(turn) for _ in range(BLOCK_SIZE)):
        if _is_free(port):
            chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise DfsError(f"no {count} free ports in a block of {BLOCK_SIZE} on 127.0.0.1")


@cache
def _turn() -> Iterator[int]:
    for first in PORTS[::BLOCK_SIZE]:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0dfs-ports/{first}")
        except OSError:
            claim.close()
            continue
        claim.detach()  # held until this process ends
        return cycle(range(first, first + BLOCK_SIZE))
    raise DfsError(f"all {len(PORTS) // BLOCK_SIZE} blocks of ports for local clusters are taken; too many run at once")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as daemons do: ended connections are in no way
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
