"""Handlers of the mutations that change content: put, append, setrep.

Owns: the rules of new chunks and extents. Refuses to know: sessions, encoding, and how chunks were written.
Each handler checks everything, then changes everything; it raises a DfsError before the first change or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dfs.errors import AlreadyExists, ChunkExists, Conflict, InvalidArgument, IsADirectory, LimitExceeded, NotFound
from dfs.ids import ID_SIZE, ServerId, allocated_ms, id_text
from dfs.master.state import extents as packing
from dfs.master.state.chunkmap import CHUNK_LENGTH_MAX
from dfs.master.state.extents import Packable
from dfs.master.state.namespace import files_below, shown, status_of
from dfs.master.state.nodes import Directory, File, stored_size_of
from dfs.master.state.parts import StateParts
from dfs.master.state.tree_commands import check_subtree, modification_time
from dfs.net.messages import (
    COMMIT_CHUNKS_MAX,
    REPLICATION_MAX,
    AppendExtents,
    CommitFile,
    SetReplication,
    SetReplicationReply,
    StatReply,
)
from dfs.net.parts import NewChunk, NewExtent

CRC_MAX = 0xFFFFFFFF


class Content(NamedTuple):
    """New content that was checked: its extents, and how many of them use each of the new chunks."""

    extents: list[Packable]
    counts: list[int]

    @property
    def size(self) -> int:
        return sum(length for _, _, length in self.extents)


def commit_file(parts: StateParts, command: CommitFile) -> StatReply:
    """Create or replace a file. What is replaced is released at once: only delete goes to the trash."""
    replication = command.replication or parts.replication
    check_replication(replication)
    mtime_ms = modification_time(parts, command.mtime_ms)
    place = parts.namespace.locate(command.path, parents=command.parents)
    old = place.node
    if isinstance(old, Directory):
        raise IsADirectory(f"{shown(command.path)} is a directory")
    if old is not None and not command.overwrite:
        raise AlreadyExists(f"{shown(command.path)} exists already; replacing it must be asked for (overwrite)")
    brought = check_content(parts, command.chunks, command.extents)
    size = brought.size
    growth = size * replication - (old.size * old.replication if old is not None else 0)
    parts.require_room(len(place.missing) + (old is None), growth, place)
    content = File(0, 0, mtime_ms, replication, size, _pack(brought, command.chunks))
    if len(content.extents) == ID_SIZE:
        content.size = command.chunks[0].length  # the int object that the chunk map keeps, too: 32 bytes less per file
    add_chunks(parts, command.chunks, brought, replication)
    if old is None:
        parts.namespace.create_file(place, content, parts.clock_ms)
        return StatReply(status_of(command.path, content))
    parts.release(parts.namespace.set_content(place, content))
    return StatReply(status_of(command.path, old))


def append_extents(parts: StateParts, command: AppendExtents) -> StatReply:
    """Add content at the end of a file. Nothing to add changes nothing."""
    place = parts.namespace.locate(command.path)
    file = place.node
    if isinstance(file, Directory):
        raise IsADirectory(f"{shown(command.path)} is a directory")
    if file is None and not command.create:
        raise NotFound(f"{shown(command.path)} does not exist; creating it must be asked for (create)")
    content = check_content(parts, command.chunks, command.extents)
    replication = parts.replication if file is None else file.replication
    size = content.size
    held = 0 if file is None else packing.count(file.extents)
    if held + len(content.extents) > packing.EXTENTS_MAX:
        raise LimitExceeded(
            f"{shown(command.path)} has {held} extents and would get over {packing.EXTENTS_MAX}; "
            "put it anew (get, then put) to merge its extents, or append larger pieces"
        )
    parts.require_room(int(file is None), size * replication, place)
    if file is None:
        file = File(0, 0, parts.clock_ms, replication, size, _pack(content, command.chunks))
        add_chunks(parts, command.chunks, content, replication)
        parts.namespace.create_file(place, file, parts.clock_ms)
    elif content.extents:
        joined = packing.expand(file.extents, file.size) + packing.pack(content.extents, file.size)
        packed = joined if file.size else _pack(content, command.chunks)
        add_chunks(parts, command.chunks, content, replication)
        # The old list's references stay: they are the new list's, so the detached old content is not released.
        parts.namespace.set_content(place, File(0, 0, parts.clock_ms, replication, file.size + size, packed))
    return StatReply(status_of(command.path, file))


def set_replication(parts: StateParts, command: SetReplication) -> SetReplicationReply:
    """Set the goal of all files below a path, O(extents of the subtree), which is bounded."""
    check_replication(command.replication)
    place = parts.namespace.locate(command.path)
    node = place.node
    if node is None:
        raise NotFound(f"{shown(command.path)} does not exist")
    if isinstance(node, Directory) and not command.recursive:
        raise IsADirectory(f"{shown(command.path)} is a directory; setrep -R changes all files below it")
    check_subtree(node, command.path)
    parts.require_room(0, node.size * command.replication - stored_size_of(node), place, is_inside=True)
    for path in parts.quotas.paths_below(command.path):
        inner = parts.namespace.find(path)
        if isinstance(inner, Directory):
            parts.quotas.check_directory(path, inner, 0, inner.size * command.replication - inner.stored_size)
    parts.sharing.own_below(node)
    for file in files_below(node):
        for handle in packing.handles(file.extents):
            parts.chunks.renew(handle, file.replication, command.replication)
    parts.namespace.set_replication(place, command.replication)
    return SetReplicationReply(node.file_count if isinstance(node, Directory) else 1)


def check_replication(replication: int) -> None:
    if not 1 <= replication <= REPLICATION_MAX:
        raise InvalidArgument(f"replication {replication} is not between 1 and {REPLICATION_MAX}")


def check_content(parts: StateParts, chunks: Sequence[NewChunk], extents: Sequence[NewExtent]) -> Content:
    """Return what the call brings; raise unless every chunk is new, sound and used, and every extent lies in one.

    The most a call can bring, 65,536 chunks and extents, takes 70 ms here.
    """
    for what, count in (("chunks", len(chunks)), ("extents", len(extents))):
        if count > COMMIT_CHUNKS_MAX:
            raise LimitExceeded(f"a call brings {count} {what}, the limit is {COMMIT_CHUNKS_MAX}; append the rest")
    sound: set[tuple[ServerId, ...]] = set()  # combinations of servers that were checked; they are few
    for chunk in chunks:
        _check_chunk(parts, chunk)
        if chunk.servers not in sound:
            _check_servers(parts, chunk)
            sound.add(chunk.servers)
    if len({chunk.handle for chunk in chunks}) != len(chunks):
        raise InvalidArgument("a chunk handle stands twice in one call")
    found: list[Packable] = []
    counts = [0] * len(chunks)
    for extent in extents:
        number, offset, length = extent.chunk, extent.offset, extent.length
        if not 0 <= number < len(chunks):
            raise InvalidArgument(f"an extent names chunk number {number} of {len(chunks)}")
        chunk = chunks[number]
        if offset < 0 or length < 1 or offset + length > chunk.length:
            raise InvalidArgument(f"extent [{offset}, +{length}) leaves its chunk of {chunk.length} bytes")
        counts[number] += 1
        found.append((chunk.handle, offset, length))
    if 0 in counts:
        raise InvalidArgument("a chunk of the call is not used by any of its extents")
    return Content(found, counts)


def _check_chunk(parts: StateParts, chunk: NewChunk) -> None:
    handle = chunk.handle
    if len(handle) != ID_SIZE:
        raise InvalidArgument(f"chunk handle {id_text(handle[: ID_SIZE + 1])} has {len(handle)} bytes, not {ID_SIZE}")
    is_tail = parts.tails.of_handle(handle) is not None  # its seal comes for sure, and makes it a chunk
    if is_tail or handle in parts.chunks or parts.chunks.is_garbage(handle):
        text = id_text(handle)
        raise ChunkExists(f"chunk {text} is known already; handles are never reused: allocate a new one", handle=text)
    if allocated_ms(handle) < parts.horizon_ms:
        raise Conflict(
            f"chunk {id_text(handle)} was allocated longer ago than uncommitted chunks are kept, "
            f"{parts.orphan_grace_ms / 1000:g} s: its replicas may be gone; store the bytes again, over a faster "
            "connection or in smaller files"
        )
    if not 1 <= chunk.length <= CHUNK_LENGTH_MAX:
        raise InvalidArgument(f"chunk {id_text(handle)} has {chunk.length} bytes; 1 to {CHUNK_LENGTH_MAX} are possible")
    if not 0 <= chunk.crc <= CRC_MAX:
        raise InvalidArgument(f"chunk {id_text(handle)} has the checksum {chunk.crc}, which is not a CRC32C")


def _check_servers(parts: StateParts, chunk: NewChunk) -> None:
    text, servers = id_text(chunk.handle), chunk.servers
    if not 1 <= len(servers) <= REPLICATION_MAX:
        raise InvalidArgument(f"chunk {text} is on {len(servers)} servers; 1 to {REPLICATION_MAX} are possible")
    if len(set(servers)) != len(servers):
        raise InvalidArgument(f"chunk {text} is said to be twice on one server")
    for server_id in servers:
        if server_id not in parts.servers:
            raise InvalidArgument(f"chunk {text} is on server {id_text(server_id)[:64]}, which is not registered")


def _pack(content: Content, chunks: Sequence[NewChunk]) -> bytes:
    extents = content.extents
    if len(extents) == 1 and extents[0][2] == chunks[0].length:
        return packing.whole_chunk(extents[0][0])
    return packing.pack(extents)


def add_chunks(parts: StateParts, chunks: Sequence[NewChunk], content: Content, replication: int) -> None:
    add = parts.chunks.add
    for chunk, count in zip(chunks, content.counts, strict=True):
        add(chunk.handle, chunk.length, chunk.crc, chunk.servers, replication, count)
