"""What masters say to each other about the Raft log, and how it is encoded.

Owns: the message types and their codec. Refuses to know: sockets, authentication, pysyncobj and when to say what.

A body is a msgpack array of messages, each a tagged array that is checked against its type. Every message begins with
`term`, the sender's current term.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from dfs.decoders import msgpack_decoder
from dfs.errors import ProtocolError


class Append(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Entries (command, index, term) that follow the entry `previous_index`; empty to tell the commit index.

    `serial` counts what the leader sent to this follower; replies name it.
    """

    term: int
    serial: int
    commit_index: int
    previous_index: int
    previous_term: int
    entries: list[tuple[bytes, int, int]]


class AppendPiece(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A piece of the leader's checkpoint `index`, for a follower that is behind the log."""

    term: int
    serial: int
    commit_index: int
    index: int
    offset: int
    data: bytes
    is_last: bool


class AppendReply(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """The follower holds, on disk, what is below `next_index`; or asks for it from there (`is_reset`)."""

    term: int
    serial: int
    next_index: int
    is_reset: bool
    is_success: bool


class RequestVote(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """`is_forced`: the leader itself asked for this election, so a live leader is no reason to refuse."""

    term: int
    last_index: int
    last_term: int
    is_forced: bool


class Vote(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """A vote in `term`, which is on the voter's disk."""

    term: int


class PreVote(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    """Would you vote for me in `wanted_term`? Changes nothing at either side."""

    term: int
    round: int
    wanted_term: int
    last_index: int
    last_term: int


class PreVoteReply(msgspec.Struct, frozen=True, array_like=True, tag=7, gc=False):
    """Whether I would; an answer to the round that is named."""

    term: int
    round: int
    is_granted: bool


class ReadRound(msgspec.Struct, frozen=True, array_like=True, tag=8, gc=False):
    """Am I still your leader?"""

    term: int
    round: int


class ReadRoundReply(msgspec.Struct, frozen=True, array_like=True, tag=9, gc=False):
    """You are, as far as I know at this moment."""

    term: int
    round: int


class StaleTerm(msgspec.Struct, frozen=True, array_like=True, tag=10, gc=False):
    """You spoke in an older term than `term`."""

    term: int


class TakeOver(msgspec.Struct, frozen=True, array_like=True, tag=11, gc=False):
    """The leader hands over: start an election now."""

    term: int


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=12, gc=False):
    """Nothing to say, but alive."""

    term: int


class JoinQuery(msgspec.Struct, frozen=True, array_like=True, tag=13, gc=False):
    """This master's disk is empty: what do you know? (dfs.master.raft_join). `round` cannot be guessed."""

    term: int
    round: int


class JoinReply(msgspec.Struct, frozen=True, array_like=True, tag=14, gc=False):
    """`standing`: a `raft_join.Standing`. `last_index`: the end of the log; what the sender says is on its disk."""

    term: int
    round: int
    standing: int
    last_index: int


class AgeQuery(msgspec.Struct, frozen=True, array_like=True, tag=15, gc=False):
    """A follower asks how far the log was committed at a moment after its question."""

    term: int
    number: int


class AgeReply(msgspec.Struct, frozen=True, array_like=True, tag=16, gc=False):
    """The leader proved, after `number` was asked, that it led; all that was acknowledged is in the log up to
    `commit_index`."""

    term: int
    number: int
    commit_index: int


RaftMessage: TypeAlias = (
    Append
    | AppendPiece
    | AppendReply
    | RequestVote
    | Vote
    | PreVote
    | PreVoteReply
    | ReadRound
    | ReadRoundReply
    | StaleTerm
    | TakeOver
    | Ping
    | JoinQuery
    | JoinReply
    | AgeQuery
    | AgeReply
)

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[list[RaftMessage]] = msgpack_decoder(list[RaftMessage])


def encode_raft(message: RaftMessage) -> bytes:
    return _ENCODER.encode(message)


def join_bodies(encoded: list[bytes]) -> bytes:
    """Return the body that holds these encoded messages: a msgpack array32."""
    return b"".join((b"\xdd", len(encoded).to_bytes(4, "big"), *encoded))


def decode_body(body: bytes) -> list[RaftMessage]:
    """Return the messages of a body; raise `ProtocolError`."""
    try:
        return _DECODER.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"a Raft message cannot be read ({error}); do all masters run the same version?") from None
