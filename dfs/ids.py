"""The identifiers of the system and their text forms.

Owns: id types, how they are drawn and printed. Refuses to know: what an id names.
"""

from __future__ import annotations

import uuid
from typing import NewType

ID_SIZE = 16  # bytes, every id below

ChunkHandle = NewType("ChunkHandle", bytes)  # 128 random bits; never reused
ServerId = NewType("ServerId", bytes)  # a chunk server; lives in its data directory
SessionId = NewType("SessionId", bytes)  # a client's exactly-once session


def new_chunk_handle() -> ChunkHandle:
    return ChunkHandle(uuid.uuid4().bytes)


def new_server_id() -> ServerId:
    return ServerId(uuid.uuid4().bytes)


def new_session_id() -> SessionId:
    return SessionId(uuid.uuid4().bytes)


def id_text(identifier: bytes) -> str:
    """Return the 32 hex digits that logs, file names and users see."""
    return identifier.hex()
