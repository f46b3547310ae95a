"""What every message is: its number, its header, and how both go over the wire.

Owns: the register of message types and the encoding of headers. Refuses to know: any single message, and sockets.

A header is a msgpack array of the fields in order (msgspec, array-like). New fields go to the end with a default, so
that neighbouring versions understand each other.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import msgspec

from dfs.decoders import msgpack_decoder
from dfs.errors import ProtocolError
from dfs.net.parts import CallId


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
        decoder = _DECODERS[type_code] = msgpack_decoder(cls)
    try:
        value: Message = decoder.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"bad {_TYPES[type_code].__name__} header: {error}") from None
    return value
