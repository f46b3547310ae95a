"""The identifiers of the system and their text forms.

Owns: id types, how they are drawn and printed. Refuses to know: what an id names.
"""

from __future__ import annotations

import os
import uuid
from typing import NewType

ID_SIZE = 16  # bytes, every id below
_TIME_SIZE = 6  # last bytes of a chunk handle
_TIME_MAX_MS = (1 << 8 * _TIME_SIZE) - 1

ChunkHandle = NewType("ChunkHandle", bytes)  # 80 random bits, then when it was allocated; never reused
ServerId = NewType("ServerId", bytes)  # a chunk server; lives in its data directory
SessionId = NewType("SessionId", bytes)  # a client's exactly-once session


def new_chunk_handle(allocated_ms: int = 0) -> ChunkHandle:
    """Draw a handle that says when the leading master allocated it (milliseconds since 1970).

    Whether an uncommitted chunk is too old is then no matter of a chunk server's clock (docs/adr/0009). The time is
    last, so that the folders of a disk, named by the first digits, fill evenly.
    """
    time_ms = min(max(0, allocated_ms), _TIME_MAX_MS)
    return ChunkHandle(os.urandom(ID_SIZE - _TIME_SIZE) + time_ms.to_bytes(_TIME_SIZE, "big"))


def allocated_ms(handle: ChunkHandle) -> int:
    """Return when a chunk handle was allocated, by the clock of the master that led (milliseconds since 1970)."""
    return int.from_bytes(handle[-_TIME_SIZE:], "big")


def new_server_id() -> ServerId:
    return ServerId(uuid.uuid4().bytes)


def new_session_id() -> SessionId:
    return SessionId(uuid.uuid4().bytes)


def id_text(identifier: bytes) -> str:
    """Return the 32 hex digits that logs, file names and users see."""
    return identifier.hex()
