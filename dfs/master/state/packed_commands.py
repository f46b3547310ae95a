"""The mutation that stores many files in shared chunks.

Owns: what is judged for the call as a whole and what for each file. Refuses to know: sessions, and who packs what.
A file is checked, then changed; one that fails changed nothing, and the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence

from dfs.errors import AlreadyExists, Conflict, DfsError, IsADirectory, LimitExceeded, Overloaded
from dfs.ids import ChunkHandle
from dfs.master.state import extents as packing
from dfs.master.state.content_commands import check_content, check_replication
from dfs.master.state.extents import Packable
from dfs.master.state.namespace import shown
from dfs.master.state.nodes import Directory, File
from dfs.master.state.parts import StateParts
from dfs.master.state.tree_commands import modification_time
from dfs.net.messages import PACKED_FILES_MAX, CommitMany, CommitManyReply
from dfs.net.parts import FileFailure, PackedFile

FAILURE_TEXT_MAX = 300  # characters; the reply is kept in the state until the client has it


def commit_many(parts: StateParts, command: CommitMany) -> CommitManyReply:
    """Create or replace many files. What is replaced is released at once, as by put."""
    if len(command.files) > PACKED_FILES_MAX:
        raise LimitExceeded(f"a call brings {len(command.files)} files, the limit is {PACKED_FILES_MAX}; call again")
    replication = command.replication or parts.replication
    check_replication(replication)
    content = check_content(parts, command.chunks, [extent for file in command.files for extent in file.extents])
    _own_directories(parts, command)
    # The chunks are in use until the end of the call: a later file may replace an earlier one of the same call.
    for chunk in command.chunks:
        parts.chunks.add(chunk.handle, chunk.length, chunk.crc, chunk.servers, replication, 1)
    lengths = {chunk.handle: chunk.length for chunk in command.chunks}
    failures = []
    start = 0
    for index, file in enumerate(command.files):
        own = content.extents[start : start + len(file.extents)]
        start += len(file.extents)
        try:
            _commit(parts, command, file, own, _packed(own, lengths), replication)
        except DfsError as error:
            failures.append(FileFailure(index, error.code, error.message[:FAILURE_TEXT_MAX]))
    for chunk in command.chunks:
        parts.chunks.dereference(chunk.handle, replication, parts.clock_ms)
    return CommitManyReply(tuple(failures))


def _own_directories(parts: StateParts, command: CommitMany) -> None:
    """Raise `Overloaded` now, before the first file, while a large directory is being copied: all come again then."""
    found: set[str] = set()
    for file in command.files:
        directory = file.path.rpartition("/")[0]
        if directory in found:
            continue
        try:
            parts.namespace.locate(file.path, parents=command.parents)
        except Overloaded:
            raise
        except DfsError:
            continue  # told when it is the file's turn
        found.add(directory)


def _packed(found: Sequence[Packable], lengths: dict[ChunkHandle, int]) -> bytes:
    if len(found) == 1:
        handle, _, length = found[0]
        if length == lengths[handle]:
            return packing.whole_chunk(handle)
    return packing.pack(found)


def _commit(
    parts: StateParts, command: CommitMany, file: PackedFile, found: Sequence[Packable], packed: bytes, replication: int
) -> None:
    mtime_ms = modification_time(parts, file.mtime_ms)
    place = parts.namespace.locate(file.path, parents=command.parents)
    old = place.node
    if isinstance(old, Directory):
        raise IsADirectory(f"{shown(file.path)} is a directory")
    if file.version:
        if old is None or old.version != file.version:
            raise Conflict(f"{shown(file.path)} changed: it has no longer version {file.version}")
    elif old is not None and not command.overwrite:
        raise AlreadyExists(f"{shown(file.path)} exists already; replacing it must be asked for (overwrite)")
    size = sum(length for _, _, length in found)
    growth = size * replication - (old.size * old.replication if old is not None else 0)
    parts.require_room(len(place.missing) + (old is None), growth, place)
    for handle, _, _ in found:
        parts.chunks.reference(handle, replication)
    content = File(0, 0, mtime_ms, replication, size, packed)
    if old is None:
        parts.namespace.create_file(place, content, parts.clock_ms)
    else:
        parts.release(parts.namespace.set_content(place, content))
