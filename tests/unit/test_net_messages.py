"""Messages: numbers never move, headers are validated, neighbours of another version are understood."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.errors import ProtocolError
from dfs.net.messages import ErrorReply, Heartbeat, Message, Ping, Stat, StatReply, base, decode, encode, message


def test_wire_number_cannot_be_given_twice() -> None:
    with pytest.raises(ValueError, match="0x0002 is taken by Ping"):

        @message(Ping.type_code)
        class Impostor(Message, frozen=True, array_like=True):
            """Never registered."""


def test_unknown_number_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="0xffff"):
        decode(0xFFFF, b"\x90")


@given(code=st.sampled_from(sorted(base._TYPES)), header=st.binary(max_size=200))
def test_random_header_is_a_message_or_a_protocol_error(code: int, header: bytes) -> None:
    try:
        value: Message | None = decode(code, header)
    except ProtocolError:
        value = None
    assert value is None or type(value) is base._TYPES[code]


def test_deeply_nested_header_is_refused_without_a_crash() -> None:
    with pytest.raises(ProtocolError):
        decode(Stat.type_code, b"\x91" * 100_000)


@pytest.mark.parametrize(
    "fields",
    [
        [],  # a required field is missing
        [5],  # of another type
        [b"bytes"],  # bytes are not text
        {"path": "/"},  # not an array
    ],
)
def test_header_of_the_wrong_shape_is_refused(fields: object) -> None:
    with pytest.raises(ProtocolError, match="bad Stat header"):
        decode(Stat.type_code, msgspec.msgpack.encode(fields))


def test_field_of_a_newer_version_is_ignored() -> None:
    assert decode(Stat.type_code, msgspec.msgpack.encode(["/a", 5, "new", 7])) == Stat("/a", 5)


def test_field_that_an_older_version_does_not_send_takes_its_default() -> None:
    old = msgspec.msgpack.encode([b"i" * 16, b"n", 1, 1, 0, 0, []])
    beat = decode(Heartbeat.type_code, old)
    assert isinstance(beat, Heartbeat)
    assert (beat.added, beat.removed) == ((), ())
    assert decode(Stat.type_code, msgspec.msgpack.encode(["/a"])) == Stat("/a", stale_ms=0)
    assert decode(ErrorReply.type_code, msgspec.msgpack.encode(["not_found", "no /a"])) == ErrorReply(
        "not_found", "no /a"
    )


def test_messages_cannot_be_changed_after_they_are_made() -> None:
    asked = Stat("/a")
    with pytest.raises(AttributeError):
        asked.path = "/b"  # type: ignore[misc]
    assert asked == Stat("/a")


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode(Stat.type_code, b"\x91\xa2\xff\xfe")


def test_encoding_is_deterministic_always() -> None:
    assert encode(Ping()) == b"\x90"
    assert encode(Stat("/é")) == encode(Stat("/é")) == b"\x92\xa3/\xc3\xa9\x00"
    with pytest.raises(ProtocolError):
        decode(StatReply.type_code, encode(Ping()))
