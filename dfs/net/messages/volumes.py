"""What a reader says at the local door of a chunk server about small chunks, which share files.

Owns: where a small chunk is in a shared file, and the handing over of that file, once. Refuses to know: the format of
that file, and how a descriptor travels (dfs.net.local).
"""

from __future__ import annotations

from typing import Final

from dfs.ids import ChunkHandle
from dfs.net.messages.base import Message, message

VOLUMES_HELD_MAX: Final = 32  # shared files of one server that a reader may name as held
VOLUME_NAME_SIZE_MAX: Final = 16  # bytes


@message(0x0458)
class OpenRecord(Message, frozen=True, array_like=True):
    """Tell where a small chunk is, and hand its file over unless it is one of `held`. Understood at a local door only.

    `held`: names that this server gave, of files that the reader still has.
    """

    handle: ChunkHandle
    token: bytes
    held: tuple[bytes, ...] = ()


@message(0x0459)
class OpenRecordReply(Message, frozen=True, array_like=True):
    """The chunk's bytes begin at `start` of the file `volume`, and never change there, nor does the file's name.

    With `is_handed_over` a descriptor comes with this frame, open for reading. `checksums`: the list of all blocks.
    """

    chunk_length: int
    chunk_crc: int
    checksums: bytes
    volume: bytes
    start: int
    is_handed_over: bool
