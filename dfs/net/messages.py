"""Every message of the system, typed: what may be said, by whom, and in which words.

Owns: message types, their wire numbers, and the encoding of headers. Refuses to know: sockets, and what receivers do.

A header is a msgpack array of the fields below in order (msgspec, array-like). New fields go to the end with a default,
so that neighbouring versions understand each other. Sizes are bytes, times are milliseconds since 1970.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import msgspec

from dfs.errors import DfsError, ProtocolError, from_code
from dfs.ids import ChunkHandle, ServerId
from dfs.net.parts import (
    AllocatedChunk,
    CallId,
    CheckpointStatus,
    DeleteReplica,
    DiskReport,
    FileStatus,
    Kind,
    LocatedExtent,
    MasterStatus,
    NewChunk,
    NewExtent,
    ReplicaReport,
    ServerInfo,
    ServerStatus,
    SpaceStatus,
    TrashEntry,
)

LIST_LIMIT_MAX = 1000  # entries in a ListDirectoryReply or ListTrashReply
LOCATE_EXTENTS_MAX = 1000  # extents in a LocateReply
ALLOCATE_COUNT_MAX = 64  # chunks in one Allocate
COMMIT_CHUNKS_MAX = 65_536  # chunks or extents in one CommitFile or AppendExtents (4 TiB of 64 MiB chunks)
EXCLUDE_MAX = 64  # servers that an Allocate may leave out
REPORT_PAGE_MAX = 5000  # replicas in one ChunkReport
HEARTBEAT_CHANGES_MAX = 5000  # added and removed replicas in one Heartbeat
ORDERS_MAX = 1000  # orders in one reply
REPLICATION_MAX = 16  # replicas of one chunk, and servers in one chain
CHECKPOINT_PIECE_MAX = 1024 * 1024  # bytes of a checkpoint in one ReadCheckpointReply
OUTSTANDING_CALLS_MAX = 1024  # unacknowledged calls of one session


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages. `type_code` is the number in the frame."""

    type_code: ClassVar[int] = 0


class Mutation(Message, frozen=True, array_like=True):
    """Base of the client's replicated calls: applied exactly once for each `call`."""

    call: CallId


MessageT = TypeVar("MessageT", bound=type[Message])
_TYPES: dict[int, type[Message]] = {}
_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {}
_ENCODER = msgspec.msgpack.Encoder()


def message(code: int) -> Any:
    """Register a message class under its wire number (class decorator)."""

    def register(cls: MessageT) -> MessageT:
        if code in _TYPES:
            raise ValueError(f"message number {code:#06x} is taken by {_TYPES[code].__name__}")
        cls.type_code = code
        _TYPES[code] = cls
        return cls

    return register


def encode(value: Message) -> bytes:
    """Return the header bytes of a message."""
    return _ENCODER.encode(value)


def decode(type_code: int, header: bytes | bytearray | memoryview) -> Message:
    """Return the message of a received header; raise `ProtocolError` when type or content is not one of ours."""
    decoder = _DECODERS.get(type_code)
    if decoder is None:
        cls = _TYPES.get(type_code)
        if cls is None:
            raise ProtocolError(f"unknown message type {type_code:#06x}; the peer may be a newer version")
        decoder = _DECODERS[type_code] = msgspec.msgpack.Decoder(cls)
    try:
        value: Message = decoder.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"bad {_TYPES[type_code].__name__} header: {error}") from None
    return value


# --- any daemon ---------------------------------------------------------------------------------------


@message(0x0001)
class ErrorReply(Message, frozen=True, array_like=True):
    """Any call may end in this instead of its reply."""

    code: str
    text: str
    details: dict[str, str] = {}

    def error(self) -> DfsError:
        return from_code(self.code, self.text, self.details)

    @classmethod
    def of(cls, error: DfsError) -> ErrorReply:
        return cls(error.code, error.message, error.details)


@message(0x0002)
class Ping(Message, frozen=True, array_like=True):
    """Answered by every daemon, whatever its state."""


@message(0x0003)
class Pong(Message, frozen=True, array_like=True):
    node: str
    role: str  # master, chunk
    version: str


@message(0x0004)
class Done(Message, frozen=True, array_like=True):
    """A call succeeded and has nothing to tell."""


# --- client to master: reads ----------------------------------------------------------------------------


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


@message(0x0118)
class ListTrash(Message, frozen=True, array_like=True):
    """Trash entries, oldest first, those with an id above `after` only."""

    after: int = 0


@message(0x0119)
class ListTrashReply(Message, frozen=True, array_like=True):
    entries: tuple[TrashEntry, ...]
    has_more: bool


# --- client to master: mutations, replicated as they are ----------------------------------------------------


@message(0x0200)
class MakeDirectory(Mutation, frozen=True, array_like=True):
    """mkdir; with `parents` missing ancestors are made and an existing directory is fine. Reply: StatReply."""

    path: str
    parents: bool = False


@message(0x0201)
class RemoveDirectory(Mutation, frozen=True, array_like=True):
    """rmdir: the directory must be empty. Reply: Done."""

    path: str


@message(0x0202)
class Delete(Mutation, frozen=True, array_like=True):
    """rm: move to the trash, or with `skip_trash` release at once. Directories need `recursive`. Reply: DeleteReply."""

    path: str
    recursive: bool = False
    skip_trash: bool = False


@message(0x0203)
class DeleteReply(Message, frozen=True, array_like=True):
    kind: Kind
    file_count: int  # files removed, 1 for a file
    size: int
    expires_ms: int  # when the trash gives the space back; 0 = released now
    trash_id: int  # 0 when it skipped the trash


@message(0x0204)
class Rename(Mutation, frozen=True, array_like=True):
    """mv: atomic. `target` is the full new path. A file at `target` is replaced by a file with `overwrite` (its old
    content is released at once, as by put and cp: only delete goes to the trash), a directory never. A directory cannot
    move into itself. Same path: no change. Reply: StatReply."""

    source: str
    target: str
    overwrite: bool = False


@message(0x0205)
class Copy(Mutation, frozen=True, array_like=True):
    """cp: the copy shares the chunks; no byte moves. Directories need `recursive`. Reply: StatReply of the copy."""

    source: str
    target: str
    recursive: bool = False
    overwrite: bool = False


@message(0x0206)
class CommitFile(Mutation, frozen=True, array_like=True):
    """put: create or, with `overwrite`, replace a file with these extents, at once. Reply: StatReply."""

    path: str
    chunks: tuple[NewChunk, ...]
    extents: tuple[NewExtent, ...]
    replication: int  # 0 = the cluster's default, drawn by the leader
    overwrite: bool = False
    parents: bool = False  # make missing ancestor directories
    mtime_ms: int = 0  # 0 = now


@message(0x0207)
class AppendExtents(Mutation, frozen=True, array_like=True):
    """append: add extents at the end of a file, at once; with `create` a missing file is made. Reply: StatReply."""

    path: str
    chunks: tuple[NewChunk, ...]
    extents: tuple[NewExtent, ...]
    create: bool = False


@message(0x0208)
class Touch(Mutation, frozen=True, array_like=True):
    """touch: set the time (0 = now); create an empty file when missing unless `no_create`. Reply: StatReply."""

    path: str
    mtime_ms: int = 0
    no_create: bool = False


@message(0x0209)
class SetReplication(Mutation, frozen=True, array_like=True):
    """setrep: new replication goal of a file, or of all files below a directory with `recursive`."""

    path: str
    replication: int
    recursive: bool = False


@message(0x020A)
class SetReplicationReply(Message, frozen=True, array_like=True):
    file_count: int


@message(0x020B)
class Undelete(Mutation, frozen=True, array_like=True):
    """Put a trash entry back to its path (`trash_id` 0: the newest one deleted from `path`). Reply: StatReply."""

    path: str
    trash_id: int = 0


@message(0x020C)
class EmptyTrash(Mutation, frozen=True, array_like=True):
    """expunge: release trash entries now: one (`trash_id`) or all deleted until now (0). Reply: EmptyTrashReply."""

    trash_id: int = 0


@message(0x020D)
class EmptyTrashReply(Message, frozen=True, array_like=True):
    entry_count: int
    size: int
    has_more: bool  # a bounded number goes per call: call again


# --- chunk server to the leading master ------------------------------------------------------------------------


@message(0x0300)
class RegisterServer(Message, frozen=True, array_like=True):
    """First words of a chunk server to a leader. `incarnation` is drawn at each start of the daemon.

    `capacity` 0 is refused. Another live server with the same id is refused (a copied data directory).
    """

    server_id: ServerId
    name: str
    address: str
    rack: str
    incarnation: bytes
    capacity: int


@message(0x0301)
class RegisterServerReply(Message, frozen=True, array_like=True):
    cluster: str


@message(0x0302)
class Heartbeat(Message, frozen=True, array_like=True):
    """Each second. `added` and `removed` are changes since the last acknowledged heartbeat (at most
    HEARTBEAT_CHANGES_MAX together; the rest waits for the next one)."""

    server_id: ServerId
    incarnation: bytes
    capacity: int
    free: int
    chunk_count: int
    active_streams: int
    disks: tuple[DiskReport, ...]
    added: tuple[ReplicaReport, ...] = ()
    removed: tuple[ChunkHandle, ...] = ()


@message(0x0303)
class HeartbeatReply(Message, frozen=True, array_like=True):
    """`must_register`: this leader does not know the server: register and report. `must_report`: send a full report."""

    must_register: bool
    must_report: bool
    orders: tuple[DeleteReplica, ...] = ()


@message(0x0304)
class ChunkReport(Message, frozen=True, array_like=True):
    """A page of a full report, handles ascending. Pages of one `report_id` are sent in order, `page` from 0."""

    server_id: ServerId
    incarnation: bytes
    report_id: int
    page: int
    is_last: bool
    replicas: tuple[ReplicaReport, ...]


@message(0x0305)
class ChunkReportReply(Message, frozen=True, array_like=True):
    orders: tuple[DeleteReplica, ...] = ()


# --- client (or the server before it in the chain) to chunk server ------------------------------------------------


@message(0x0400)
class WriteChunk(Message, frozen=True, array_like=True):
    """Open a new chunk here and forward it along `chain` (addresses of the servers after this one).

    Followed by `WriteData` frames and one `FinishChunk`; the receiver says nothing until then, or an ErrorReply.
    """

    handle: ChunkHandle
    token: bytes
    chain: tuple[str, ...]


@message(0x0401)
class WriteData(Message, frozen=True, array_like=True):
    """The next bytes of the chunk; they are the frame's payload: whole blocks, only the last may be short."""

    checksums: bytes  # list as in dfs.checksum


@message(0x0402)
class FinishChunk(Message, frozen=True, array_like=True):
    length: int
    crc: int


@message(0x0403)
class WriteChunkReply(Message, frozen=True, array_like=True):
    """The chunk is fsynced and published on all of `servers`, in chain order."""

    servers: tuple[ServerId, ...]


@message(0x0404)
class ReadChunk(Message, frozen=True, array_like=True):
    """Read whole blocks: `offset` is block-aligned; `length` is too, or ends at the chunk's end."""

    handle: ChunkHandle
    token: bytes
    offset: int
    length: int


@message(0x0405)
class ReadChunkReply(Message, frozen=True, array_like=True):
    """The bytes are the frame's payload, unverified: the reader verifies them against `checksums`."""

    chunk_length: int
    checksums: bytes


@message(0x0406)
class VerifyReplica(Message, frozen=True, array_like=True):
    """A reader found a mismatch: check this replica. A bad one is quarantined and reported.

    Reply: VerifyReplicaReply."""

    handle: ChunkHandle
    token: bytes


@message(0x0407)
class VerifyReplicaReply(Message, frozen=True, array_like=True):
    is_good: bool
