"""A cluster that exists for one run: three masters and four chunk servers on loopback, in a temporary folder.

Owns: making it, and the journal's step that removes it. Refuses to know: what is done to it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from dfs.chaos import memory_disks
from dfs.chaos.journal import Journal, RemoveCluster
from dfs.config import ClusterConfig, load_config
from dfs.local.cluster import LocalCluster
from dfs.local.loopback import cluster_ini

MASTERS, CHUNK_SERVERS, REPLICATION = 3, 4, 3
CHUNK_SIZE = 128 * 1024  # bytes: the larger files of the run have three chunks
UP_WAIT_S = 120.0
PREFIX = "dfs-chaos-"


@dataclass(frozen=True, slots=True)
class ThrowAway:
    """`disks`: the small disks of the nodes, none where mounting is not permitted."""

    config: ClusterConfig
    disks: dict[str, Path]


def folder_for(parent: Path | None = None) -> Path:
    """Make the temporary folder of a throw-away cluster."""
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))


def write_config(folder: Path) -> ClusterConfig:
    """Write the cluster.ini on free ports and load it."""
    path = folder / "cluster.ini"
    settings = {
        "name": "throw-away",
        "chunk_size": f"{CHUNK_SIZE} B",
        "replication": str(REPLICATION),
        "dead_after": "5 s",  # the machine may be busy, and a server that is called dead ends a run
        "repair_after": "10 s",
    }
    path.write_text(cluster_ini(MASTERS, CHUNK_SERVERS, 1, settings), encoding="utf-8")
    return load_config(path)


def start(config: ClusterConfig, journal: Journal, *, with_disks: bool) -> ThrowAway:
    """Start it. What removes it again is in the journal before anything of it runs."""
    folder = config.source.parent
    local = LocalCluster(config)
    disks = {name: folder / name for name in local.names} if with_disks and memory_disks.is_permitted() else {}
    journal.add(RemoveCluster(str(folder), str(config.source), tuple(map(str, disks.values()))))
    for disk in disks.values():
        memory_disks.mount(disk)
    local.up(UP_WAIT_S)
    return ThrowAway(config, disks)
