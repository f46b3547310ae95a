"""What is said about many small files at once: storing them in shared chunks, and finding them.

Owns: these calls, their replies and their limits. Refuses to know: how files are packed into chunks.

Sizes are bytes, times are milliseconds since 1970.
"""

from __future__ import annotations

from typing import Final

from dfs.net.messages.base import Message, Mutation, message
from dfs.net.parts import FileFailure, LocatedChunk, LocatedFile, NewChunk, PackedFile, ServerInfo

PACKED_FILES_MAX: Final = 1000  # files in one CommitMany: about 20 ms of a master's time
LOCATE_FILES_MAX: Final = 1000  # entries in one LocateManyReply
LOCATE_FILE_EXTENTS_MAX: Final = 64  # extents of a file in a LocateManyReply; one with more is located by itself


@message(0x0160)
class LocateMany(Message, frozen=True, array_like=True):
    """Where the bytes of all files below the directory `path` are, in pages: the entries after `after` only (the
    relative path of the last entry of the page before), each directory before its content, by name."""

    path: str
    after: str = ""
    limit: int = LOCATE_FILES_MAX
    stale_ms: int = 0  # as in Stat


@message(0x0161)
class LocateManyReply(Message, frozen=True, array_like=True):
    files: tuple[LocatedFile, ...]
    chunks: tuple[LocatedChunk, ...]
    servers: tuple[ServerInfo, ...]
    has_more: bool


@message(0x0230)
class CommitMany(Mutation, frozen=True, array_like=True):
    """put -r: create or, with `overwrite`, replace many files, each at once and by itself: what one of them meets does
    not touch the others. Bad chunks or extents fail the call as a whole. Reply: CommitManyReply.

    A chunk that no file came to use is garbage at once."""

    chunks: tuple[NewChunk, ...]
    files: tuple[PackedFile, ...]
    replication: int  # 0 = the cluster's default, drawn by the leader
    overwrite: bool = False
    parents: bool = False  # make missing ancestor directories


@message(0x0231)
class CommitManyReply(Message, frozen=True, array_like=True):
    """All files but those in `failures` are stored."""

    failures: tuple[FileFailure, ...]
