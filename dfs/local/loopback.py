"""A cluster.ini for a cluster that lives for a while on this machine: free ports, quick to notice deaths.

Owns: its text. Refuses to know: who runs it, and for what.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from dfs.local.ports import free_ports

LOOPBACK: Final = "127.0.0.1"
_FAST: Final = {  # the defaults are for machines rooms apart
    "replication": "3",
    "disk_reserve": "64 MiB",
    "heartbeat_interval": "300 ms",
    "dead_after": "3 s",
    "repair_after": "6 s",
    "balance": "no",
    "client_timeout": "20 s",
}


def cluster_ini(
    masters: int,
    chunk_servers: int,
    disks: int,
    settings: Mapping[str, str],
    hosts: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the text of a cluster.ini on free ports, quick to notice deaths; on loopback where `hosts` is silent."""
    ports = iter(free_ports(2 * masters + chunk_servers))
    values = {"name": "test", "secret_file": "cluster.secret", "run_dir": "run", **_FAST, **settings}
    lines = ["[cluster]", *(f"{key} = {value}" for key, value in values.items())]
    for number in range(1, masters + 1):
        host = hosts.get(f"m{number}", LOOPBACK)
        lines += [
            f"[master:m{number}]",
            f"address = {host}:{next(ports)}",
            f"raft_address = {host}:{next(ports)}",
            f"data_dir = m{number}",
        ]
    for number in range(1, chunk_servers + 1):
        folders = ", ".join(f"c{number}/disk{disk}" for disk in range(1, disks + 1))
        lines += [
            f"[chunk:c{number}]",
            f"address = {hosts.get(f'c{number}', LOOPBACK)}:{next(ports)}",
            f"data_dirs = {folders}",
            f"rack = r{number}",
        ]
    return "\n".join(lines) + "\n"
