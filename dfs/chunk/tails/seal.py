"""What a tail was sealed as, in a file of its own beside it: the promise that stands before the tail's file is cut.

Owns: the format of that file, and that it is durable before anybody relies on it. Refuses to know: who decides the
length, and what becomes of the tail's file (dfs.chunk.tails.service).

With it on the disk the tail has this length for ever, and its journal is no longer needed (docs/adr/0021).
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from dfs.chunk.identity import sync_directory
from dfs.chunk.tails.log import decode_frame, encode_frame
from dfs.decoders import msgpack_decoder
from dfs.ids import ChunkHandle, id_text
from dfs.net.parts import AppenderState

SEAL_SUFFIX = ".seal"


class Seal(msgspec.Struct, frozen=True, array_like=True):
    """The first `length` bytes, with CRC32C `crc`, are the chunk; which appenders are to be kept, and which dropped."""

    length: int
    crc: int
    appenders: tuple[AppenderState, ...]
    closed: tuple[bytes, ...]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Seal] = msgpack_decoder(Seal)


def seal_path(path: Path, handle: ChunkHandle) -> Path:
    """Return where the seal of the tail at `path` is."""
    return path.with_name(id_text(handle) + SEAL_SUFFIX)


def write_seal(path: Path, handle: ChunkHandle, seal: Seal) -> None:
    """Write a seal durably over one that a crash left unfinished; raise OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(encode_frame(handle, _ENCODER.encode(seal)))
        while view:
            view = view[os.write(fd, view) :]
        os.fdatasync(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)


def read_seal(path: Path, handle: ChunkHandle) -> Seal | None:
    """Return the seal, None when there is none or it was not finished (the tail is whole then); raise OSError."""
    try:
        head = decode_frame(path.read_bytes(), handle)
    except FileNotFoundError:
        return None
    try:
        return None if head is None else _DECODER.decode(head)
    except msgspec.MsgspecError:
        return None
