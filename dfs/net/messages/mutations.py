"""What clients ask masters to change: each call is the command that goes into the log.

Owns: the mutations, their replies and their limits. Refuses to know: how the state carries them out.

Sizes are bytes, times are milliseconds since 1970.
"""

from __future__ import annotations

from dfs.net.messages.base import Message, Mutation, message
from dfs.net.parts import Kind, NewChunk, NewExtent

COMMIT_CHUNKS_MAX = 65_536  # chunks or extents in one CommitFile or AppendExtents (4 TiB of 64 MiB chunks)
REPLICATION_MAX = 16  # replicas of one chunk, and servers in one chain
OUTSTANDING_CALLS_MAX = 1024  # unacknowledged calls of one session


@message(0x0200)
class MakeDirectory(Mutation, frozen=True, array_like=True):
    """mkdir; with `parents` missing ancestors are made and an existing directory is fine. Reply: StatReply."""

    path: str
    parents: bool = False


@message(0x0201)
class RemoveDirectory(Mutation, frozen=True, array_like=True):
    """rmdir: the directory must be empty. Reply: Done."""

    path: str


@message(0x0202)
class Delete(Mutation, frozen=True, array_like=True):
    """rm: move to the trash, or with `skip_trash` release at once. Directories need `recursive`. Reply: DeleteReply."""

    path: str
    recursive: bool = False
    skip_trash: bool = False


@message(0x0203)
class DeleteReply(Message, frozen=True, array_like=True):
    kind: Kind
    file_count: int  # files removed, 1 for a file
    size: int
    expires_ms: int  # when the trash gives the space back; 0 = released now
    trash_id: int  # 0 when it skipped the trash


@message(0x0204)
class Rename(Mutation, frozen=True, array_like=True):
    """mv: atomic. `target` is the full new path. A file at `target` is replaced by a file with `overwrite` (its old
    content is released at once, as by put and cp: only delete goes to the trash), a directory never. A directory cannot
    move into itself. Same path: no change. Reply: StatReply."""

    source: str
    target: str
    overwrite: bool = False


@message(0x0205)
class Copy(Mutation, frozen=True, array_like=True):
    """cp: the copy shares the chunks; no byte moves. Directories need `recursive`. Reply: StatReply of the copy."""

    source: str
    target: str
    recursive: bool = False
    overwrite: bool = False


@message(0x0206)
class CommitFile(Mutation, frozen=True, array_like=True):
    """put: create or, with `overwrite`, replace a file with these extents, at once. Reply: StatReply."""

    path: str
    chunks: tuple[NewChunk, ...]
    extents: tuple[NewExtent, ...]
    replication: int  # 0 = the cluster's default, drawn by the leader
    overwrite: bool = False
    parents: bool = False  # make missing ancestor directories
    mtime_ms: int = 0  # 0 = now


@message(0x0207)
class AppendExtents(Mutation, frozen=True, array_like=True):
    """append: add extents at the end of a file, at once; with `create` a missing file is made. Reply: StatReply."""

    path: str
    chunks: tuple[NewChunk, ...]
    extents: tuple[NewExtent, ...]
    create: bool = False


@message(0x0208)
class Touch(Mutation, frozen=True, array_like=True):
    """touch: set the time (0 = now); create an empty file when missing unless `no_create`. Reply: StatReply."""

    path: str
    mtime_ms: int = 0
    no_create: bool = False


@message(0x0209)
class SetReplication(Mutation, frozen=True, array_like=True):
    """setrep: new replication goal of a file, or of all files below a directory with `recursive`."""

    path: str
    replication: int
    recursive: bool = False


@message(0x020A)
class SetReplicationReply(Message, frozen=True, array_like=True):
    file_count: int


@message(0x020B)
class Undelete(Mutation, frozen=True, array_like=True):
    """Put a trash entry back to its path (`trash_id` 0: the newest one deleted from `path`). Reply: StatReply."""

    path: str
    trash_id: int = 0


@message(0x020C)
class EmptyTrash(Mutation, frozen=True, array_like=True):
    """expunge: release trash entries now: one (`trash_id`) or all deleted until now (0). Reply: EmptyTrashReply."""

    trash_id: int = 0


@message(0x020D)
class EmptyTrashReply(Message, frozen=True, array_like=True):
    entry_count: int
    size: int
    has_more: bool  # a bounded number goes per call: call again
