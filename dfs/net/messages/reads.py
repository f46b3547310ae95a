"""What clients ask masters without changing the state.

Owns: the reading calls, their replies and their limits. Refuses to know: how a master knows the answer.

Sizes are bytes, times are milliseconds since 1970.
"""

from __future__ import annotations

from dfs.ids import ServerId
from dfs.net.messages.base import Message, message
from dfs.net.parts import (
    AllocatedChunk,
    CheckpointStatus,
    FileStatus,
    HealingStatus,
    LocatedExtent,
    LocatedTail,
    MasterStatus,
    ServerInfo,
    ServerStatus,
    SpaceStatus,
    TrashEntry,
)

LIST_LIMIT_MAX = 1000  # entries in a ListDirectoryReply or ListTrashReply
LOCATE_EXTENTS_MAX = 1000  # extents in a LocateReply
ALLOCATE_COUNT_MAX = 64  # chunks in one Allocate
EXCLUDE_MAX = 64  # servers that an Allocate may leave out
CHECKPOINT_PIECE_MAX = 1024 * 1024  # bytes of a checkpoint in one ReadCheckpointReply


@message(0x0100)
class GetMasterStatus(Message, frozen=True, array_like=True):
    """Answered by every master, leader or not."""


@message(0x0101)
class GetMasterStatusReply(Message, frozen=True, array_like=True):
    master: MasterStatus
    cluster: str


@message(0x0102)
class GetClusterStatus(Message, frozen=True, array_like=True):
    """Answered by the leader."""


@message(0x0103)
class GetClusterStatusReply(Message, frozen=True, array_like=True):
    servers: tuple[ServerStatus, ...]
    space: SpaceStatus
    replication: int  # the cluster's default
    chunk_size: int
    healing: HealingStatus = HealingStatus()


@message(0x0105)
class TransferLeadership(Message, frozen=True, array_like=True):
    """Hand the leadership over to the master `target`. Answered by the leader, also when it is `target` already."""

    target: str


@message(0x0106)
class TransferLeadershipReply(Message, frozen=True, array_like=True):
    """`leader` leads now, as far as the master that was asked knows."""

    leader: str


@message(0x0107)
class WriteCheckpoint(Message, frozen=True, array_like=True):
    """Write a checkpoint now and answer when it is on disk. Answered by every master, leader or not.

    `is_current`: the leader's alone, and the checkpoint holds all that was acknowledged before the call.
    """

    is_current: bool = False


@message(0x0108)
class WriteCheckpointReply(Message, frozen=True, array_like=True):
    checkpoint: CheckpointStatus


@message(0x0109)
class ReadCheckpoint(Message, frozen=True, array_like=True):
    """Read a piece of the asked master's own checkpoint `index`, at most CHECKPOINT_PIECE_MAX bytes from `offset`.

    `Conflict` when newer ones have replaced it."""

    index: int
    offset: int


@message(0x010A)
class ReadCheckpointReply(Message, frozen=True, array_like=True):
    data: bytes
    is_last: bool


@message(0x0110)
class Stat(Message, frozen=True, array_like=True):
    """`stale_ms`: a master that does not lead may answer, too, if its state is provably at most so old."""

    path: str
    stale_ms: int = 0


@message(0x0111)
class StatReply(Message, frozen=True, array_like=True):
    status: FileStatus
    is_open: bool = False  # the file has an open tail: what was appended to it lately is not in `status.size` yet


@message(0x0112)
class ListDirectory(Message, frozen=True, array_like=True):
    """Entries sorted by name (code points), those after `after` only; at most `limit` (1..LIST_LIMIT_MAX)."""

    path: str
    after: str
    limit: int
    stale_ms: int = 0  # as in Stat


@message(0x0113)
class ListDirectoryReply(Message, frozen=True, array_like=True):
    entries: tuple[FileStatus, ...]
    has_more: bool


@message(0x0114)
class Locate(Message, frozen=True, array_like=True):
    """Where the bytes of a file are, from extent number `first_extent` on.

    `version` 0 asks for the present one; another one must still be the file's version (`Conflict` otherwise).
    """

    path: str
    first_extent: int = 0
    version: int = 0
    stale_ms: int = 0  # as in Stat


@message(0x0115)
class LocateReply(Message, frozen=True, array_like=True):
    status: FileStatus
    first_offset: int  # file offset of the first extent below
    extents: tuple[LocatedExtent, ...]
    servers: tuple[ServerInfo, ...]
    has_more: bool
    tail: tuple[LocatedTail, ...] = ()  # the open tail, if there is one, in every page; it follows the last extent


@message(0x0116)
class Allocate(Message, frozen=True, array_like=True):
    """Ask for fresh chunks to write. `replication` 0 = the cluster's default; `exclude` = servers that just failed."""

    count: int
    replication: int = 0
    exclude: tuple[ServerId, ...] = ()


@message(0x0117)
class AllocateReply(Message, frozen=True, array_like=True):
    chunks: tuple[AllocatedChunk, ...]
    servers: tuple[ServerInfo, ...]
    chunk_size: int
    replication: int  # the goal; a chain may be shorter when servers are few
    commit_within_s: int  # uncommitted chunks are garbage after that
    write_within_s: int = 0  # the tokens are good for so long; 0 = not said


@message(0x0118)
class ListTrash(Message, frozen=True, array_like=True):
    """Trash entries, oldest first, those with an id above `after` only."""

    after: int = 0


@message(0x0119)
class ListTrashReply(Message, frozen=True, array_like=True):
    entries: tuple[TrashEntry, ...]
    has_more: bool
