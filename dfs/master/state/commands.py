"""The commands that change the replicated state, and how they stand in the Raft log.

Owns: duty commands of the leader, the envelope, and its encoding. Refuses to know: what a command does.

A client's mutation (dfs.net.messages.Mutation) is a command as it is. The leader's own commands are below; their type
numbers are never accepted at a port. Time, ids and placement are drawn by the leader before and travel inside.
"""

from __future__ import annotations

import msgspec

from dfs.decoders import msgpack_decoder
from dfs.ids import ChunkHandle, ServerId
from dfs.net.messages import Message, decode, encode, message
from dfs.net.parts import AppenderState, Part

ORPHAN_GRACE_MS = 24 * 60 * 60 * 1000  # until a leader proposes what its configuration says

BALANCE_AUTOMATIC, BALANCE_ASKED, BALANCE_STOPPED = BALANCE_MODES = (0, 1, 2)
BALANCE_THRESHOLD_MAX_PPM = 1_000_000


class ReplicaChange(Part, frozen=True, array_like=True):
    """A server got (`is_added`) or lost a replica. An added one of another length or CRC than the map's is ignored."""

    handle: ChunkHandle
    is_added: bool
    length: int = 0
    crc: int = 0


@message(0x0800)
class PutServer(Message, frozen=True, array_like=True):
    """Add a chunk server to the registry, or change its name, address or rack."""

    server_id: ServerId
    name: str
    address: str
    rack: str


@message(0x0801)
class ChangeReplicas(Message, frozen=True, array_like=True):
    """Correct the chunk map by what one server said. Unknown handles and unknown servers are ignored."""

    server_id: ServerId
    changes: tuple[ReplicaChange, ...]


@message(0x0802)
class ExpireTrash(Message, frozen=True, array_like=True):
    """Release at most `limit` trash entries whose time has come by the state clock. Reply: EmptyTrashReply."""

    limit: int


@message(0x0803)
class ForgetGarbage(Message, frozen=True, array_like=True):
    """`server_id` confirmed that these garbage chunks are gone from it."""

    server_id: ServerId
    handles: tuple[ChunkHandle, ...]


@message(0x0804)
class ExpireSessions(Message, frozen=True, array_like=True):
    """Drop at most `limit` sessions unused since `idle_ms` by the state clock."""

    idle_ms: int
    limit: int


@message(0x0805)
class SetOptions(Message, frozen=True, array_like=True):
    """Replicated settings; a new leader proposes them when its configuration differs from the state's.

    `trash_keep_ms` counts for entries that are in the trash already, too; 0 switches the trash off. `replication` is
    the default of files that are created without one. `orphan_grace_ms`: how long after its allocation a chunk may be
    committed; later its replicas are orphans, and deleted.
    """

    trash_keep_ms: int
    replication: int
    orphan_grace_ms: int = ORPHAN_GRACE_MS


@message(0x0806)
class SetServerMode(Message, frozen=True, array_like=True):
    """What an administrator wants of a server: it shall be drained, or its silence be borne until a moment of the
    state clock (0 = it is not). Both stay through leader changes and new registrations."""

    server_id: ServerId
    is_leaving: bool
    maintenance_until_ms: int


@message(0x0807)
class ForgetServer(Message, frozen=True, array_like=True):
    """Take a server out of the registry. `Conflict` while a chunk or garbage still names it."""

    server_id: ServerId


@message(0x0808)
class TrimReplicas(Message, frozen=True, array_like=True):
    """Unlist replicas of one server, of those chunks only that have more registered replicas than their goal."""

    server_id: ServerId
    handles: tuple[ChunkHandle, ...]


@message(0x0809)
class SetBalance(Message, frozen=True, array_like=True):
    """What an administrator wants of balance: `mode` is one of BALANCE_MODES; `threshold_ppm` counts when it is asked
    for, in millionths."""

    mode: int
    threshold_ppm: int = 0


@message(0x0818)
class BeginTail(Message, frozen=True, array_like=True):
    """Make a chunk the open tail of a file; the chain has created it already. Reply: Done.

    `inode` and `version` are the file's when its appenders were read (`Conflict` otherwise); 0 makes the file.
    `reserves`: all that the tail may take counts for the quotas; commands from before that was so do not say it, and
    must have the outcome they had: records were acknowledged since.
    """

    path: str
    inode: int
    version: int
    handle: ChunkHandle
    servers: tuple[ServerId, ...]  # head first
    size_max: int
    reserves: bool = False


@message(0x0819)
class CommitTail(Message, frozen=True, array_like=True):
    """The open tail of a file was sealed: its bytes become an extent, its appenders are remembered. Reply: Done.

    `length` 0: nothing was appended, and there is no chunk.
    """

    path: str
    handle: ChunkHandle
    length: int
    crc: int
    servers: tuple[ServerId, ...]
    appenders: tuple[AppenderState, ...]
    closed: tuple[bytes, ...]


@message(0x081A)
class ForgetAppenders(Message, frozen=True, array_like=True):
    """Drop at most `limit` appenders that were silent for `idle_ms` by the state clock."""

    idle_ms: int
    limit: int


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A command in the log: the leader's wall clock at proposal, the type number and the encoded command."""

    now_ms: int
    type_code: int
    body: bytes


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Envelope] = msgpack_decoder(Envelope)


def encode_command(now_ms: int, command: Message) -> bytes:
    return _ENCODER.encode(Envelope(now_ms, command.type_code, encode(command)))


def decode_command(data: bytes) -> tuple[int, Message]:
    """Return (now_ms, command) of a log entry; raise `ProtocolError` or `msgspec.DecodeError` when it is not one."""
    envelope = _DECODER.decode(data)
    return envelope.now_ms, decode(envelope.type_code, envelope.body)
