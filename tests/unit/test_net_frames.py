"""Frames: what is cut from the stream is what was framed, and everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.errors import FrameCorrupt, FrameTooLarge, ProtocolError, VersionMismatch
from dfs.net.frames import (
    HEADER_SIZE_MAX,
    MAGIC,
    PAYLOAD_SIZE_MAX,
    PREFIX_SIZE,
    FrameHead,
    FrameParser,
    decode_prefix,
    encode_frame,
)

u16, u32, u64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
headers = st.binary(max_size=300)


def parse(data: bytes, sizes: list[int]) -> list[tuple[FrameHead, bytes]]:
    """Feed `data` in pieces of these sizes, then the rest byte by byte."""
    parser, frames, at = FrameParser(), list[tuple[FrameHead, bytes]](), 0
    for size in [*sizes, *([1] * len(data))]:
        frames += parser.feed(data[at : at + size])
        at += size
    assert not parser.has_partial
    return frames


@given(code=u16, request=u64, timeout=u32, payload=st.integers(0, PAYLOAD_SIZE_MAX), header=headers)
def test_head_survives_the_wire(code: int, request: int, timeout: int, payload: int, header: bytes) -> None:
    frame = encode_frame(code, header, request_id=request, timeout_ms=timeout, payload_size=payload)
    assert len(frame) == PREFIX_SIZE + len(header)
    head = decode_prefix(frame[:PREFIX_SIZE])
    assert (head.type_code, head.request_id, head.timeout_ms, head.payload_size) == (code, request, timeout, payload)
    assert head.header_size == len(header)
    head.check_header(frame[PREFIX_SIZE:])


@given(bodies=st.lists(headers, max_size=4), sizes=st.lists(st.integers(0, 80), max_size=30))
def test_frames_cut_at_any_byte_parse_alike(bodies: list[bytes], sizes: list[int]) -> None:
    data = b"".join(encode_frame(7, body, request_id=index) for index, body in enumerate(bodies))
    expected = [(index, body) for index, body in enumerate(bodies)]
    assert [(head.request_id, header) for head, header in FrameParser().feed(data)] == expected
    assert [(head.request_id, header) for head, header in parse(data, sizes)] == expected


def test_every_single_bit_flip_in_prefix_and_header_is_refused() -> None:
    frame = encode_frame(0x0110, b"\x91\xa5/path", request_id=77, timeout_ms=30_000)
    for position in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(ProtocolError):
            FrameParser().feed(bytes(damaged))


@given(data=st.binary(max_size=500), first=st.booleans())
def test_random_bytes_are_refused_or_wait_for_more(data: bytes, first: bool) -> None:
    data = (MAGIC if first else b"") + data
    parser = FrameParser()
    try:
        assert parser.feed(data) == []  # a CRC by chance is one in 2^32
        assert len(data) < PREFIX_SIZE
    except ProtocolError:
        assert len(data) >= PREFIX_SIZE


@pytest.mark.parametrize(("header", "payload"), [(HEADER_SIZE_MAX + 1, 0), (2**32 - 1, 0), (0, PAYLOAD_SIZE_MAX + 1)])
def test_oversized_frame_is_refused_from_its_prefix_alone(header: int, payload: int) -> None:
    with pytest.raises(FrameTooLarge, match="announced"):
        decode_prefix(forged_prefix(header_size=header, payload_size=payload))


def test_parser_refuses_an_oversized_frame_before_it_buffers_it() -> None:
    with pytest.raises(FrameTooLarge):
        FrameParser().feed(forged_prefix(header_size=HEADER_SIZE_MAX + 1))


def test_parser_refuses_payloads_because_it_never_buffers_them() -> None:
    with pytest.raises(FrameTooLarge, match="takes none"):
        FrameParser().feed(encode_frame(1, b"", payload_size=1))


def test_sender_is_stopped_before_it_frames_too_much() -> None:
    with pytest.raises(FrameTooLarge, match="ask for less"):
        encode_frame(1, bytes(HEADER_SIZE_MAX + 1))
    with pytest.raises(FrameTooLarge):
        encode_frame(1, b"", payload_size=PAYLOAD_SIZE_MAX + 1)
    assert len(encode_frame(1, bytes(HEADER_SIZE_MAX))) == PREFIX_SIZE + HEADER_SIZE_MAX


def test_other_version_or_flags_are_a_version_mismatch() -> None:
    with pytest.raises(VersionMismatch, match="version 2"):
        decode_prefix(forged_prefix(version=2))
    with pytest.raises(VersionMismatch, match="flags 1"):
        decode_prefix(forged_prefix(flags=1))


def test_another_protocol_is_recognised_by_its_first_bytes() -> None:
    with pytest.raises(FrameCorrupt, match="another service's port"):
        decode_prefix(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n"[:PREFIX_SIZE])


def test_endless_timeout_is_capped_to_what_the_field_holds() -> None:
    frame = encode_frame(1, b"", timeout_ms=2**40)
    assert decode_prefix(frame).timeout_ms == 2**32 - 1


def test_parser_knows_whether_a_frame_is_unfinished() -> None:
    parser, frame = FrameParser(), encode_frame(1, b"header")
    seen = [parser.has_partial]
    for cut in range(1, len(frame)):
        assert parser.feed(frame[:cut]) == []
        seen.append(parser.has_partial)
        assert len(parser.feed(frame[cut:])) == 1
        seen.append(parser.has_partial)
    assert seen == [False, *[True, False] * (len(frame) - 1)]


def forged_prefix(*, version: int = 1, flags: int = 0, header_size: int = 0, payload_size: int = 0) -> bytes:
    """Return a prefix whose checksum is right, whatever it says: the layout written down a second time."""
    import struct

    from dfs.checksum import crc32c

    fields = struct.pack("<4sBBHQIIII", b"DFSf", version, flags, 1, 0, 0, header_size, payload_size, crc32c(b""))
    return fields + struct.pack("<I", crc32c(fields))
