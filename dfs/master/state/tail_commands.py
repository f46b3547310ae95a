"""Handlers of the commands that open and seal tails.

Owns: their semantics. Refuses to know: when and why the leader proposes them, and how tails are stored (docs/adr/0015).
Each handler checks everything, then changes everything; it raises a DfsError before the first change or not at all.
"""

from __future__ import annotations

from dfs.errors import ChunkExists, Conflict, InvalidArgument, IsADirectory, LimitExceeded
from dfs.ids import ID_SIZE, allocated_ms, id_text
from dfs.master.state import extents as packing
from dfs.master.state.chunkmap import CHUNK_LENGTH_MAX
from dfs.master.state.commands import BeginTail, CommitTail, ForgetAppenders
from dfs.master.state.namespace import Directory, File, shown
from dfs.master.state.parts import StateParts
from dfs.master.state.tails import TailRecord
from dfs.master.state.views import Extent
from dfs.net.messages import REPLICATION_MAX, Done


def begin_tail(parts: StateParts, command: BeginTail) -> Done:
    """Open a tail. All that a later `CommitTail` might be refused for is checked here: it must succeed."""
    place = parts.namespace.locate(command.path)
    file = place.node
    if isinstance(file, Directory):
        raise IsADirectory(f"{shown(command.path)} is a directory; only files can be appended to")
    present = (0, 0) if file is None else (file.inode, file.version)
    if present != (command.inode, command.version):
        raise Conflict(f"{shown(command.path)} changed while its tail was made; make another one")
    path = command.path  # in its stored form: `locate` refuses any other
    if parts.tails.at(path) is not None:
        raise Conflict(f"{shown(path)} has an open tail already; append to that one")
    _check_handle(parts, command)
    if file is not None and packing.count(file.extents) >= packing.EXTENTS_MAX:
        raise LimitExceeded(
            f"{shown(path)} has {packing.EXTENTS_MAX} extents, the most a file can have; put it anew (get, then "
            "put) to merge them"
        )
    replication = parts.replication if file is None else file.replication
    reserved = command.size_max * replication if command.reserves else 0
    parts.require_room(int(file is None), reserved or replication, place)
    parts.require_total(0, command.size_max * replication)
    parts.tails.require_memory()
    parts.tails.open(TailRecord(path, command.handle, command.servers, parts.clock_ms, reserved))
    if file is None:
        made = File(0, 0, parts.clock_ms, replication, 0, packing.EMPTY)
        parts.namespace.create_file(place, made, parts.clock_ms)
    return Done()


def _check_handle(parts: StateParts, command: BeginTail) -> None:
    handle, servers = command.handle, command.servers
    text = id_text(handle[: ID_SIZE + 1])
    if len(handle) != ID_SIZE or not 1 <= command.size_max <= CHUNK_LENGTH_MAX:
        raise InvalidArgument(f"a tail {text} of {command.size_max} bytes is not possible")
    if handle in parts.chunks or parts.chunks.is_garbage(handle) or parts.tails.of_handle(handle) is not None:
        raise ChunkExists(f"chunk {text} is known already; handles are never reused: allocate a new one", handle=text)
    if allocated_ms(handle) < parts.horizon_ms:
        raise Conflict(f"tail {text} was allocated longer ago than uncommitted chunks are kept; make another one")
    if not 1 <= len(servers) <= REPLICATION_MAX or len(set(servers)) != len(servers):
        raise InvalidArgument(f"tail {text} cannot be on these {len(servers)} servers")
    for server_id in servers:
        if server_id not in parts.servers:
            raise InvalidArgument(f"tail {text} is on server {id_text(server_id)[:64]}, which is not registered")


def commit_tail(parts: StateParts, command: CommitTail) -> Done:
    """Turn the open tail into an extent. The first seal counts, whatever its length; later ones find no tail."""
    tail = parts.tails.at(command.path)
    if tail is None or tail.handle != command.handle:
        raise Conflict(f"tail {id_text(command.handle)[:64]} of {shown(command.path)} is not open (any more)")
    place = parts.namespace.locate(command.path)
    file = place.node
    if not isinstance(file, File):
        raise Conflict(f"{shown(command.path)} is no file")  # the invariants forbid it
    _check_sealed(parts, command, tail)
    parts.tails.close(tail.path)
    parts.tails.remember(file.inode, command.appenders, command.closed, parts.clock_ms)
    if command.length:
        before = file.version
        parts.chunks.add(command.handle, command.length, command.crc, command.servers)
        parts.chunks.reference(command.handle, file.replication)
        if file.size:
            added = packing.pack([Extent(command.handle, 0, command.length)], file.size)
            packed = packing.expand(file.extents, file.size) + added
        else:
            packed = packing.whole_chunk(command.handle)
        size = file.size + command.length
        # The old list's references stay: they are the new list's, so the detached old content is not released.
        parts.namespace.set_content(place, File(0, 0, parts.clock_ms, file.replication, size, packed))
        parts.tails.appended(file.inode, before, file.version)
    return Done()


def _check_sealed(parts: StateParts, command: CommitTail, tail: TailRecord) -> None:
    text = id_text(command.handle)
    if not 0 <= command.length <= CHUNK_LENGTH_MAX or not 0 <= command.crc <= 0xFFFFFFFF:
        raise InvalidArgument(f"tail {text} cannot have {command.length} bytes with checksum {command.crc}")
    servers = set(command.servers)
    is_imported = allocated_ms(command.handle) < parts.born_ms  # sealed in the old state: copies may be anywhere
    if (
        bool(servers) != bool(command.length)
        or len(servers) != len(command.servers)
        or not (is_imported or servers <= set(tail.servers))
    ):
        raise InvalidArgument(f"tail {text} was sealed on servers that are not those of its chain")
    for server_id in command.servers:
        if server_id not in parts.servers:
            raise InvalidArgument(f"tail {text} is on server {id_text(server_id)}, which is not registered")


def forget_appenders(parts: StateParts, command: ForgetAppenders) -> Done:
    if command.idle_ms < 1:
        raise InvalidArgument(f"appenders cannot be forgotten after {command.idle_ms} ms")
    parts.tails.forget(command.idle_ms, command.limit, parts.clock_ms)
    return Done()
