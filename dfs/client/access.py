"""What a client must know to find its cluster, a name, some masters and the secret's file, and how it is to read.

Owns: `ClusterAccess` and `ReadRules`. Refuses to know: where a user's settings come from, and how masters are talked
to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfs.client.plan import MASTERS_MAX
from dfs.config import ClusterConfig
from dfs.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """`masters` are client addresses (host:port) of some or all masters; one that answers is enough."""

    cluster: str
    masters: tuple[str, ...]
    secret_file: Path

    def __post_init__(self) -> None:
        if not self.masters:
            raise ConfigError(f"no master address of cluster {self.cluster!r} is known; give at least one host:port")
        if len(self.masters) > MASTERS_MAX:
            raise ConfigError(f"{len(self.masters)} master addresses are given, the limit is {MASTERS_MAX}")

    @classmethod
    def from_config(cls, config: ClusterConfig) -> ClusterAccess:
        """Return the access that cluster.ini describes."""
        return cls(config.name, tuple(master.address for master in config.masters), config.secret_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRules:
    """How chunks are read. None of it changes what is read: every way is verified block by block.

    `local`: through open files that chunk servers of this machine hand over. `hedged`: a slow replica gets a rival.
    `rack`: where this client is; replicas of the same rack are near ("": not known).
    """

    local: bool = True
    hedged: bool = True
    rack: str = ""


READ_RULES = ReadRules()
