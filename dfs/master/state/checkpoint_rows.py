"""The rows and tables of a dumped state: what a checkpoint consists of.

Owns: their fields and tags; new fields go to the end with a default, so that old dumps can be loaded. Refuses to know:
how a state is turned into them and back (dfs.master.state.checkpoint).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.state.commands import BALANCE_AUTOMATIC, ORPHAN_GRACE_MS


class Start(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first piece."""

    version: int
    clock_ms: int
    trash_keep_ms: int
    replication: int
    next_id: int
    next_trash_id: int
    born_ms: int = 0
    horizon_ms: int = 0
    orphan_grace_ms: int = ORPHAN_GRACE_MS
    balance_mode: int = BALANCE_AUTOMATIC
    balance_threshold_ppm: int = 0


class ServerRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A registered chunk server."""

    server_id: ServerId
    name: str
    address: str
    rack: str


class Servers(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The registry, in the order of joining."""

    rows: list[ServerRow]


class ChunkRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A chunk and its registered replicas; references and goal follow from the trees."""

    handle: ChunkHandle
    length: int
    crc: int
    servers: tuple[ServerId, ...]


class Chunks(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The chunk map, in its order."""

    rows: list[ChunkRow]


class GarbageRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A released chunk; the fields of `GarbageChunk`."""

    handle: ChunkHandle
    length: int
    servers: tuple[ServerId, ...]
    since_ms: int


class GarbageRows(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Garbage, oldest first."""

    rows: list[GarbageRow]


class NodeRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node below the last row of one `depth` less; depth 0 is a root. `replication` 0 marks a directory.

    `version` of a directory: 0, or the number of the directory row (from 1, all trees together) whose entries it
    shares; no rows of its own follow then.
    """

    depth: int
    name: str
    inode: int
    mtime_ms: int
    version: int = 0
    replication: int = 0
    size: int = 0
    extents: bytes = b""


class Nodes(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Trees one after another: the live one, those of the trash entries in their order, those of the snapshots in
    theirs, those being released, and copies of large shared directories in the making.

    The root row of such a copy has the name SEPARATION, and as `size` the number of the directory row (from 1, all
    trees together) whose entries are being copied."""

    rows: list[NodeRow]


class TrashRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A trash entry; its subtree is among the trees of `Nodes`."""

    trash_id: int
    path: str
    deleted_ms: int


class TrashRows(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The trash by id."""

    rows: list[TrashRow]


class SessionRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`results`: pairs of sequence and encoded reply, a row may continue the one before it (same session)."""

    session: SessionId
    first_unacked: int
    last_used_ms: int
    results: tuple[tuple[int, bytes], ...]


class Sessions(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Sessions in the order of their last use."""

    rows: list[SessionRow]


class ModeRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an administrator wants of a registered server, where that is anything."""

    server_id: ServerId
    is_leaving: bool
    maintenance_until_ms: int


class ServerModes(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Modes of servers, in the order of the registry."""

    rows: list[ModeRow]


class SnapshotRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A snapshot; its subtree is among the trees of `Nodes`. `shelf_inode` and `shelf_ms` are those of its shelf."""

    directory: str
    name: str
    created_ms: int
    shelf_inode: int
    shelf_ms: int


class SnapshotRows(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Snapshots by directory and name."""

    rows: list[SnapshotRow]


class QuotaRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The quota of a directory."""

    path: str
    names: int
    stored_size: int


class QuotaRows(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Quotas by path."""

    rows: list[QuotaRow]


class End(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The last piece: how many rows went before, so that a dump cut short is noticed."""

    row_count: int


class TailRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The open tail of a file."""

    path: str
    handle: ChunkHandle
    servers: tuple[ServerId, ...]
    begun_ms: int
    reserved: int = 0


class TailRows(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Open tails, in the order they were opened."""

    rows: list[TailRow]


class AppenderRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One remembered appender of a file (`appender` empty: the file's history has none); rows of one file follow."""

    inode: int
    versions: tuple[int, ...]
    appender: bytes
    last_sequence: int
    offsets: tuple[int, ...]
    used_ms: int


class AppenderRows(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """The histories of files that records were appended to."""

    rows: list[AppenderRow]


Row: TypeAlias = (
    ServerRow
    | ChunkRow
    | GarbageRow
    | NodeRow
    | TrashRow
    | SnapshotRow
    | QuotaRow
    | SessionRow
    | TailRow
    | AppenderRow
    | ModeRow
)
Table: TypeAlias = (
    Servers
    | Chunks
    | GarbageRows
    | Nodes
    | TrashRows
    | SnapshotRows
    | QuotaRows
    | Sessions
    | TailRows
    | AppenderRows
    | ServerModes
)
Piece: TypeAlias = Start | Table | End
