"""Read-only answers of the replicated state to the rest of the master.

Owns: the shapes that queries of `MasterState` return. Refuses to know: how the state keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dfs.ids import ChunkHandle, ServerId
from dfs.net.parts import FileStatus


@dataclass(frozen=True, slots=True)
class RegisteredServer:
    """A chunk server that ever registered, alive or not."""

    server_id: ServerId
    name: str
    address: str  # host:port
    rack: str
    is_leaving: bool = False  # it is being drained: its replicas do not count for the goal
    maintenance_until_ms: int = 0  # until then its silence is no loss


class ReplicaTally(NamedTuple):
    """How many chunks have just these registered `servers` and this `goal`, and their bytes (once each)."""

    servers: tuple[ServerId, ...]
    goal: int
    chunk_count: int
    size: int


class Extent(NamedTuple):
    """Bytes [`chunk_offset`, +`length`) of a chunk."""

    handle: ChunkHandle
    chunk_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ExtentsView:
    """A window of a file's extent list; `first_offset` is the file offset of its first extent."""

    status: FileStatus
    first_offset: int
    extents: tuple[Extent, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class ChunkView:
    """A sealed chunk of the map. `goal`: the highest replication of any file (live or in the trash) that uses it."""

    length: int
    crc: int
    goal: int
    servers: tuple[ServerId, ...]  # registered replicas, by ascending id
    reference_count: int  # extents that use it


class GarbageChunk(NamedTuple):
    """A released chunk that `servers` may still hold, since `since_ms` of the state clock."""

    handle: ChunkHandle
    length: int
    servers: tuple[ServerId, ...]
    since_ms: int
