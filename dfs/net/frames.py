"""The one frame format of all connections: how bytes become heads, and heads become bytes.

Owns: the 36-byte prefix, its limits and checksums, and a push parser without IO. Refuses to know: message meanings,
sockets and authentication. The layout is documented byte by byte in docs/wire-protocol.md and pinned by golden frames.

All integers are little-endian. A frame is prefix, header (`header_size`) and payload (`payload_size`). The prefix CRC
covers the 32 bytes before it and is checked before a size is believed; the header CRC covers the header. The payload is
raw chunk data whose checksums travel in a header (dfs.checksum), so it is streamed and never buffered here.
"""

from __future__ import annotations

import struct

import msgspec

from dfs.checksum import Buffer, crc32c
from dfs.errors import FrameCorrupt, FrameTooLarge, VersionMismatch

MAGIC = b"DFSf"
VERSION = 1
HEADER_SIZE_MAX = 8 * 1024 * 1024  # bytes
PAYLOAD_SIZE_MAX = 256 * 1024 * 1024  # bytes; the largest possible chunk

_FIELDS = struct.Struct("<4sBBHQIIII")  # magic version flags type request_id timeout_ms header payload header_crc
_CRC = struct.Struct("<I")
_PREFIX = struct.Struct(_FIELDS.format + "I")
PREFIX_SIZE = _PREFIX.size
assert PREFIX_SIZE == 36


class FrameHead(msgspec.Struct, frozen=True, gc=False):
    """A checked prefix. `timeout_ms`: how long the sender will wait for the answer, 0 = not said."""

    type_code: int
    request_id: int
    timeout_ms: int
    header_size: int
    payload_size: int
    header_crc: int

    def check_header(self, header: Buffer) -> None:
        """Raise `FrameCorrupt` unless `header` is what the sender framed."""
        if crc32c(header) != self.header_crc:
            raise FrameCorrupt(f"header checksum of a frame of type {self.type_code:#06x} is wrong; retry the call")


def encode_frame(
    type_code: int, header: Buffer, *, request_id: int = 0, timeout_ms: int = 0, payload_size: int = 0
) -> bytes:
    """Return prefix and header; the caller sends `payload_size` bytes after them."""
    size = len(header)
    if size > HEADER_SIZE_MAX:
        raise FrameTooLarge(f"a header of {size} bytes is over the limit of {HEADER_SIZE_MAX}; ask for less at a time")
    if payload_size > PAYLOAD_SIZE_MAX:
        raise FrameTooLarge(f"a payload of {payload_size} bytes is over the limit of {PAYLOAD_SIZE_MAX}")
    fields = _FIELDS.pack(
        MAGIC, VERSION, 0, type_code, request_id, min(timeout_ms, 0xFFFFFFFF), size, payload_size, crc32c(header)
    )
    return b"".join((fields, _CRC.pack(crc32c(fields)), header))


def decode_prefix(prefix: Buffer) -> FrameHead:
    """Return the head of exactly `PREFIX_SIZE` bytes; raise a ProtocolError before any size is believed."""
    magic, version, flags, type_code, request_id, timeout_ms, header, payload, header_crc, crc = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise FrameCorrupt(f"not a dfs frame (starts with {magic!r}); is this another service's port?")
    if crc32c(prefix[: _FIELDS.size]) != crc:
        raise FrameCorrupt("prefix checksum of a frame does not match; retry the call")
    if version != VERSION or flags:
        raise VersionMismatch(f"frame version {version} (flags {flags}) met, {VERSION} (0) spoken; upgrade one side")
    if header > HEADER_SIZE_MAX:
        raise FrameTooLarge(f"a header of {header} bytes is announced, the limit is {HEADER_SIZE_MAX}")
    if payload > PAYLOAD_SIZE_MAX:
        raise FrameTooLarge(f"a payload of {payload} bytes is announced, the limit is {PAYLOAD_SIZE_MAX}")
    return FrameHead(type_code, request_id, timeout_ms, header, payload, header_crc)


class FrameParser:
    """Cut a byte stream into payload-less frames (masters speak only these). Push bytes in, take frames out.

    Buffers at most one frame: prefix plus a header within its checked size.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: FrameHead | None = None

    @property
    def has_partial(self) -> bool:
        """Whether a frame has begun and is not complete."""
        return self._head is not None or bool(self._buffer)

    def feed(self, data: Buffer) -> list[tuple[FrameHead, bytes]]:
        """Return the frames completed by `data`; raise a ProtocolError on the first wrong byte of a prefix."""
        source: Buffer = data
        if self._buffer:
            self._buffer += data
            source = self._buffer
        frames: list[tuple[FrameHead, bytes]] = []
        start, head = 0, self._head
        while True:
            if head is None:
                if len(source) - start < PREFIX_SIZE:
                    break
                head = decode_prefix(source[start : start + PREFIX_SIZE])
                start += PREFIX_SIZE
                if head.payload_size:
                    raise FrameTooLarge("a payload was sent to a port that takes none")
            if len(source) - start < head.header_size:
                break
            header = bytes(source[start : start + head.header_size])
            start += head.header_size
            head.check_header(header)
            frames.append((head, header))
            head = None
        self._head = head
        if source is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += source[start:]
        return frames
