"""The pieces that messages are made of: statuses, places, reports and ids of calls.

Owns: the fields of each piece and their units. Refuses to know: which messages carry them (dfs.net.messages).

Sizes are bytes, times are milliseconds since 1970 unless a name ends in `_s`.
"""

from __future__ import annotations

import enum

import msgspec

from dfs.ids import ChunkHandle, ServerId, SessionId


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Base of the pieces that messages are made of."""


class CallId(Part, frozen=True, array_like=True, gc=False):
    """Names one replicated call for ever. Results of calls before `first_unacked` may be forgotten.

    `sequence` starts at 1 and grows by 1 per new call of a session; a resend repeats it.
    """

    session: SessionId
    sequence: int
    first_unacked: int


class Kind(enum.IntEnum):
    FILE = 1
    DIRECTORY = 2


class FileStatus(Part, frozen=True, array_like=True, gc=False):
    """What `stat` tells. For a directory the counts are of its whole subtree, itself not counted."""

    path: str  # the full path; in a ListReply the name only
    kind: Kind
    size: int  # bytes; of a directory: all files below
    stored_size: int  # size times replication, likewise summed
    mtime_ms: int
    inode: int  # grows with each created file or directory; what is in a snapshot or was restored has the one it had
    version: int  # of a file: grows with each change of content
    replication: int  # 0 for a directory
    extent_count: int  # 0 for a directory
    file_count: int = 0
    directory_count: int = 0


class ServerInfo(Part, frozen=True, array_like=True, gc=False):
    """A chunk server as clients need it."""

    server_id: ServerId
    name: str
    address: str  # host:port
    rack: str
    is_alive: bool


class LocatedExtent(Part, frozen=True, array_like=True, gc=False):
    """Bytes [`chunk_offset`, +`length`) of a sealed chunk. Extents of a reply follow each other in the file."""

    handle: ChunkHandle
    chunk_offset: int
    length: int
    chunk_length: int
    chunk_crc: int  # CRC32C of the whole chunk
    token: bytes  # READ token
    replicas: tuple[int, ...]  # indexes into `servers` of the reply, live ones first


class AllocatedChunk(Part, frozen=True, array_like=True, gc=False):
    handle: ChunkHandle
    token: bytes  # WRITE token
    chain: tuple[int, ...]  # indexes into `servers` of the reply, in chain order


class NewChunk(Part, frozen=True, array_like=True, gc=False):
    """A chunk that was written and acknowledged by `servers` and now becomes known to the masters."""

    handle: ChunkHandle
    length: int
    crc: int
    servers: tuple[ServerId, ...]


class NewExtent(Part, frozen=True, array_like=True, gc=False):
    """A range of the call's `chunks[chunk]`."""

    chunk: int
    offset: int
    length: int


class PackedFile(Part, frozen=True, array_like=True, gc=False):
    """One of many files that one call stores: ranges of the call's chunks, which the files share.

    `version` 0: the call says whether an existing file may be replaced; another one: the file must still have it."""

    path: str
    extents: tuple[NewExtent, ...]
    mtime_ms: int = 0  # 0 = now
    version: int = 0


class FileFailure(Part, frozen=True, array_like=True, gc=False):
    """Why number `index` of the files of one call was not stored; `code` is that of the error."""

    index: int
    code: str
    text: str


class LocatedChunk(Part, frozen=True, array_like=True, gc=False):
    """A sealed chunk that files of one reply share."""

    handle: ChunkHandle
    length: int
    crc: int
    token: bytes  # READ token
    replicas: tuple[int, ...]  # indexes into `servers` of the reply, live ones first


class LocatedFile(Part, frozen=True, array_like=True, gc=False):
    """A file or directory below the asked one. A file of more extents than a reply takes, or one that records are
    being appended to, has `is_partial` set: locate it by itself."""

    path: str  # relative to the asked directory
    kind: Kind
    size: int
    mtime_ms: int
    version: int
    replication: int
    extents: tuple[NewExtent, ...]  # ranges of the reply's chunks
    is_partial: bool = False


class TrashEntry(Part, frozen=True, array_like=True, gc=False):
    trash_id: int
    path: str  # where it was deleted from, and where undelete puts it
    kind: Kind
    size: int
    deleted_ms: int
    expires_ms: int


class SnapshotStatus(Part, frozen=True, array_like=True):
    """A snapshot of a directory. The sizes are of its files; what it shares with live files costs no space."""

    directory: str
    name: str
    created_ms: int
    file_count: int
    directory_count: int
    size: int
    stored_size: int


class QuotaStatus(Part, frozen=True, array_like=True):
    """The limits of a directory, 0 = none, and what is used of them: all that is live below it, itself not counted."""

    path: str
    names: int  # files and directories
    stored_size: int  # bytes, size times replication
    names_used: int
    stored_size_used: int


class ReplicaReport(Part, frozen=True, array_like=True, gc=False):
    """A chunk that a server holds."""

    handle: ChunkHandle
    length: int
    crc: int


class DiskReport(Part, frozen=True, array_like=True):
    """One data directory. `state`: ok, full, failed. `quarantined_*`: damaged files in its quarantine."""

    path: str
    capacity: int
    free: int
    chunk_count: int
    state: str
    reason: str = ""
    quarantined_count: int = 0
    quarantined_size: int = 0  # bytes


class DeleteReplica(Part, frozen=True, array_like=True):
    """An order: remove this replica. Reported back in `Heartbeat.removed`."""

    handle: ChunkHandle


class CopyReplica(Part, frozen=True, array_like=True):
    """An order: fetch this sealed chunk from one of `sources`, verify it, publish it. Reported back in
    `Heartbeat.added`, or in `Heartbeat.copy_failures`."""

    handle: ChunkHandle
    length: int
    crc: int  # CRC32C of the whole chunk
    sources: tuple[str, ...]  # addresses of servers that hold it, the best one first
    token: bytes  # READ token
    is_urgent: bool = False  # one live replica is left: before all others, and without a rate limit


COPY_GAVE_WAY = "gave_way"  # an urgent order took its place: no failure, and no error has this code


class CopyFailure(Part, frozen=True, array_like=True):
    """An order to copy that came to nothing; `code` is that of the error, or COPY_GAVE_WAY."""

    handle: ChunkHandle
    code: str
    text: str


class ScrubStatus(Part, frozen=True, array_like=True):
    """How far a chunk server's scrubber is in verifying all that it holds."""

    verified_count: int = 0  # replicas verified since the daemon started
    verified_size: int = 0  # bytes
    corrupt_count: int = 0  # replicas found damaged or gone since then, by the scrubber or by a reader
    lap_progress: float = 0.0  # of the present walk over all replicas, 0.0 to 1.0
    last_lap_ms: int = 0  # when the last whole walk ended; 0 = never yet


class CheckpointStatus(Part, frozen=True, array_like=True):
    """A checkpoint of one master. `index`: the last log entry that it holds."""

    index: int
    size: int  # bytes
    age_s: float  # since it was written
    duration_s: float = 0.0  # that writing it took, when it was asked for


class MasterStatus(Part, frozen=True, array_like=True):
    """One master's own view. `role`: leader, follower, candidate, joining (its disk was empty), stopped."""

    name: str
    role: str
    term: int
    applied: int  # log index
    commit: int
    leader: str  # name of the leader it follows, "" when none
    version: str
    uptime_s: float
    checkpoint_index: int = 0  # log index of the newest checkpoint on its disk, 0 when there is none
    checkpoint_size: int = 0  # bytes
    checkpoint_age_s: float = -1.0
    stale_s: float = -1.0  # its state is at most so old; -1.0 when it cannot tell
    unexpected_count: int = 0  # errors since its start that its code did not expect; each is in its log


class BalanceStatus(Part, frozen=True, array_like=True):
    """How evenly chunk servers are filled. `state`: off, even, running, waiting (repair goes first),
    settled (uneven, but no single chunk can be moved to better it), stopped.

    A server's fill is the share of its room (its replicas and what is free) that replicas take, 0.0 to 1.0."""

    state: str = "off"
    threshold: float = 0.0  # a wider spread than that is balanced
    spread: float = 0.0  # between the fullest and the emptiest server
    left_size: int = 0  # bytes to move
    rate: int = 0  # bytes per second, lately
    eta_s: float = -1.0  # -1.0 when it cannot be told


class HealingStatus(Part, frozen=True, array_like=True):
    """What the leader does to bring every chunk to its goal. Counts are of chunks, sizes bytes to copy."""

    waiting: tuple[int, ...] = (0, 0, 0)  # chunks to copy by live replicas: none (no source!), one, more
    waiting_size: int = 0
    deferred_count: int = 0  # chunks that wait for a silent server until repair_after, or for the end of maintenance
    blocked_count: int = 0  # of `waiting`: chunks for which no server can take a copy
    blocked_reason: str = ""
    copying_count: int = 0  # orders that chunk servers have
    copied_count: int = 0  # since this leader began
    copied_size: int = 0
    failed_count: int = 0
    rate: int = 0  # bytes per second, lately
    eta_s: float = -1.0  # until nothing waits; -1.0 when it cannot be told
    safe_eta_s: float = -1.0  # until no chunk is down to one live replica
    surplus_count: int = 0  # chunks with more live replicas than their goal
    misplaced_count: int = 0  # chunks in one rack that could be in several
    is_surveyed: bool = False  # false until this leader has looked at the whole chunk map once
    balance: BalanceStatus = BalanceStatus()


class PlannedMove(Part, frozen=True, array_like=True):
    """Bytes that balance takes from one server to another; both by name."""

    source: str
    target: str
    size: int


class ServerStatus(Part, frozen=True, array_like=True):
    """The leader's view of a chunk server. `state`: alive, slow, late, dead.

    `mode`: what an administrator wants of it: "", draining, drained (safe to power off), maintenance."""

    info: ServerInfo
    state: str
    heartbeat_age_s: float  # -1.0 when this leader never heard from it
    capacity: int
    free: int
    chunk_count: int
    disks: tuple[DiskReport, ...]
    mode: str = ""
    mode_until_ms: int = 0  # when maintenance ends
    left_count: int = 0  # of a draining server: chunks that still need a copy elsewhere
    left_size: int = 0  # bytes of these copies
    stored_size: int = 0  # bytes of its replicas by the chunk map
    disk_wait_ms: int = 0  # how long a small synced write takes on its slowest disk
    unexpected_count: int = 0  # errors since its start that its code did not expect; each is in its log


class SpaceStatus(Part, frozen=True, array_like=True):
    """All counted in the replicated state. Sizes are logical unless they say stored (summed over replicas)."""

    file_count: int
    directory_count: int
    live_size: int
    trash_size: int
    trash_count: int
    chunk_count: int
    chunk_stored_size: int
    garbage_count: int
    garbage_stored_size: int
    under_replicated: int  # chunks with fewer registered replicas than their goal
    under_replicated_live: int  # the same, counting live servers only
    missing: int  # chunks without any live replica
    snapshot_count: int = 0
    snapshot_size: int = 0  # bytes of the files in all snapshots; what they share with live files costs no space


class SurveyedExtent(Part, frozen=True, array_like=True, gc=False):
    """Bytes [`chunk_offset`, +`length`) of `chunks[chunk]` of the reply."""

    chunk: int
    chunk_offset: int
    length: int


class SurveyedFile(Part, frozen=True, array_like=True):
    """A file, or the part of it that begins with extent number `first_extent`, as one page of a survey tells it."""

    path: str  # below the surveyed path; "" when that one is the file itself
    size: int
    replication: int
    version: int
    extent_count: int  # of the whole file
    first_extent: int
    extents: tuple[SurveyedExtent, ...]


class SurveyedChunk(Part, frozen=True, array_like=True):
    """A chunk with its registered replicas. `goal`: the highest replication of all files that use it.

    `is_open`: records are being appended to it; `replicas` is its chain, and its length and CRC are not known yet."""

    handle: ChunkHandle
    length: int
    crc: int
    goal: int
    replicas: tuple[int, ...]  # indexes into `servers` of the reply
    token: bytes = b""
    is_open: bool = False


class ServerLoad(Part, frozen=True, array_like=True):
    """What a chunk server was busy with at its last heartbeat."""

    server_id: ServerId
    active_streams: int
    disk_wait_ms: int  # how long a small synced write took lately on its slowest working disk
    copying: int  # orders to copy that wait or are under way there
    deleting: int  # orders to delete that the leader holds for it
    scrub: ScrubStatus


class HealingRules(Part, frozen=True, array_like=True):
    """The cluster's times that decide when something is done about a lost replica or a deleted file."""

    heartbeat_interval_s: float
    dead_after_s: float
    repair_after_s: float
    garbage_grace_s: float
    trash_keep_s: float


class AppenderState(Part, frozen=True, array_like=True):
    """What is kept of one appender of a file: its last record, and where its latest records stand in the file."""

    appender: bytes  # 16 bytes, drawn by the appender
    last_sequence: int
    offsets: tuple[int, ...]  # in the file, of the last len(offsets) records


class RecordGroup(Part, frozen=True, array_like=True):
    """Consecutive records of one appender, in order; their bytes stand one after the other."""

    appender: bytes
    first_sequence: int  # of the first record; an appender counts from 1
    first_unacked: int  # offsets of records before it may be forgotten
    lengths: tuple[int, ...]
    crcs: tuple[int, ...]  # CRC32C of each record, computed by its writer
    is_closing: bool = False  # the appender has heard of all before, and will not come back


class LocatedTail(Part, frozen=True, array_like=True):
    """The open tail of a file: what is appended stands there, from file offset `base` on."""

    handle: ChunkHandle
    base: int
    token: bytes  # READ, or for an appender APPEND
    chain: tuple[int, ...]  # indexes into `servers` of the reply, head first


class HeldTail(Part, frozen=True, array_like=True):
    """A tail that a chunk server holds, and how much of it is durable there."""

    handle: ChunkHandle
    length: int
