"""What is said about open tails: record append, reading what it appended, and sealing.

Owns: the messages of appenders, readers, chunk servers and masters about tails, and their limits. Refuses to know:
files on disk, and how a seal is decided. The protocol: docs/adr/0015.

Sizes are bytes, times are milliseconds since 1970.
"""

from __future__ import annotations

from dfs.ids import ChunkHandle, ServerId
from dfs.net.messages.base import Message, message
from dfs.net.parts import AppenderState, HeldTail, LocatedTail, RecordGroup, ServerInfo

GROUP_RECORDS_MAX = 1024  # records in one AppendRecords
GROUP_SIZE_MAX = 4 * 1024 * 1024  # bytes in one AppendRecords of several records
RESULTS_MAX = 2048  # offsets kept of one appender that it did not acknowledge
OFFSETS_MAX = 262_144  # offsets kept of all appenders of a file: they travel in one message at each seal
APPENDERS_MAX = 1024  # of one file, that did not close and were not silent for a day
RECORDS_PER_CHUNK_MIN = 4  # a record is at most this part of a chunk
TAIL_WAIT_MAX_MS = 10_000  # longest that a ReadTail may wait for new records
TAIL_REPORT_MAX = 4096  # tails in one TailReport


# --- clients to masters


@message(0x0150)
class OpenTail(Message, frozen=True, array_like=True):
    """Ask for the open tail of a file; one is opened when there is none.

    `broken`: the tail that did not work, it is sealed first; `failed`: addresses that are to be left out. `inode`: only
    if the path is still that file (`Conflict`, or `NotFound`); `room`: bytes that the tail must be able to take.
    """

    path: str
    create: bool = False
    broken: ChunkHandle = ChunkHandle(b"")
    failed: tuple[str, ...] = ()
    inode: int = 0
    room: int = 0


@message(0x0151)
class OpenTailReply(Message, frozen=True, array_like=True):
    tail: LocatedTail
    servers: tuple[ServerInfo, ...]
    record_size_max: int
    inode: int = 0  # of the file: whoever sends a record again must not reach another one


@message(0x0152)
class CloseTail(Message, frozen=True, array_like=True):
    """Seal this tail if it is still the file's open one. Reply: Done."""

    path: str
    handle: ChunkHandle


# --- chunk servers to masters


@message(0x0308)
class TailReport(Message, frozen=True, array_like=True):
    """Now and then: the tails that a server holds, sealed or not."""

    server_id: ServerId
    tails: tuple[HeldTail, ...]


@message(0x0309)
class TailReportReply(Message, frozen=True, array_like=True):
    """`drops`: no command can make these part of a file any more, or the sealed replica has taken their place."""

    drops: tuple[ChunkHandle, ...]


# --- to chunk servers


@message(0x0410)
class CreateTail(Message, frozen=True, array_like=True):
    """A master makes a tail here, and on the servers of `chain` after this one. Reply: CreateTailReply.

    `is_head`: this server orders the records, and takes them from appenders; the others take rounds only.
    """

    handle: ChunkHandle
    token: bytes  # SEAL
    chain: tuple[str, ...]  # addresses of the servers after this one
    base: int  # file offset of its first byte
    size_max: int
    record_size_max: int
    appenders: tuple[AppenderState, ...]
    is_head: bool


@message(0x0411)
class CreateTailReply(Message, frozen=True, array_like=True):
    """The tail is durable and empty on all of `servers`, in chain order."""

    servers: tuple[ServerId, ...]


@message(0x0412)
class AppendRecords(Message, frozen=True, array_like=True):
    """Append the records of `group`, which are the payload, to the tail that this server is the head of.

    An empty group that starts at 1 asks for `last_sequence` only.
    """

    handle: ChunkHandle
    token: bytes  # APPEND
    group: RecordGroup


@message(0x0413)
class AppendRecordsReply(Message, frozen=True, array_like=True):
    """Each record is durable on the whole chain; `offsets` are in the file, of a repeated record its first one."""

    offsets: tuple[int, ...]
    last_sequence: int


@message(0x0414)
class ReplicateRecords(Message, frozen=True, array_like=True):
    """The next round of a tail, from the server before in its chain; the new records' bytes are the payload."""

    handle: ChunkHandle
    token: bytes  # APPEND
    offset: int  # in the chunk; exactly the length that the receiver holds
    groups: tuple[RecordGroup, ...]


@message(0x0415)
class ReplicateRecordsReply(Message, frozen=True, array_like=True):
    """The tail is durable up to `length` here and on all servers after this one."""

    length: int


@message(0x0416)
class ReadTail(Message, frozen=True, array_like=True):
    """Read whole committed records from the one that holds `offset` (in the chunk) on; answered by the head.

    Waits `wait_ms` for a record when there is none yet. At least one record comes, and no more than `size_max` bytes
    when it is several.
    """

    handle: ChunkHandle
    token: bytes  # READ
    offset: int
    size_max: int  # 0: only tell what is committed
    wait_ms: int = 0


@message(0x0417)
class ReadTailReply(Message, frozen=True, array_like=True):
    """The payload are records, the first one at `start`; the reader verifies each against `crcs`."""

    committed: int
    start: int
    lengths: tuple[int, ...]
    crcs: tuple[int, ...]


@message(0x0418)
class FenceTail(Message, frozen=True, array_like=True):
    """Take nothing more for this tail, for ever. Reply: FenceTailReply, again and again the same."""

    handle: ChunkHandle
    token: bytes  # SEAL


@message(0x0419)
class FenceTailReply(Message, frozen=True, array_like=True):
    server_id: ServerId
    length: int  # bytes that are durable here
    is_fresh: bool  # this server did not restart since the tail was made
    published_length: int = -1  # of the sealed replica that was made of it already


@message(0x041A)
class PublishTail(Message, frozen=True, array_like=True):
    """Make a sealed replica of the first `length` bytes of a fenced tail. Reply: PublishTailReply."""

    handle: ChunkHandle
    token: bytes  # SEAL
    length: int


@message(0x041B)
class PublishTailReply(Message, frozen=True, array_like=True):
    """`appenders`: what is to be kept of those that these bytes changed; `closed`: which are to be dropped."""

    server_id: ServerId
    length: int
    crc: int
    appenders: tuple[AppenderState, ...]
    closed: tuple[bytes, ...]
