"""Handlers of the mutations of ranges: truncate, concat, overwrite in place.

Owns: how a range of a file's extents is replaced. Refuses to know: sessions, encoding, and how chunks were written.
Each handler checks everything, then changes everything; it raises a DfsError before the first change or not at all.
"""

from __future__ import annotations

from dfs.errors import Conflict, InvalidArgument, IsADirectory, LimitExceeded, NotFound
from dfs.ids import ChunkHandle
from dfs.master.state import extents as packing
from dfs.master.state.content_commands import add_chunks, check_content
from dfs.master.state.namespace import Place, shown, status_of
from dfs.master.state.nodes import Directory, File, stored_size_of
from dfs.master.state.parts import StateParts
from dfs.master.state.quotas import Growth
from dfs.net.messages import CONCAT_SOURCES_MAX, Concat, StatReply, Truncate, WriteRange


def truncate(parts: StateParts, command: Truncate) -> StatReply:
    """Cut a file short. What is cut off is released at once, as by an overwriting put."""
    place, file = _existing_file(parts, command.path)
    if not 0 <= command.size <= file.size:
        raise InvalidArgument(
            f"{shown(command.path)} has {file.size} bytes and cannot be cut to {command.size}: files have no holes; "
            "append to make it longer"
        )
    if command.size < file.size:
        cut = packing.cut(file.extents, file.size, command.size, file.size)
        _replace(parts, place, cut, b"" if cut.before is None else packing.pack([cut.before], _end(cut)), command.size)
    return StatReply(status_of(command.path, file))


def write_range(parts: StateParts, command: WriteRange) -> StatReply:
    """Replace a range by new extents, O(log extents of the file + extents replaced + bytes of the list)."""
    place, file = _existing_file(parts, command.path)
    if command.version not in (0, file.version):
        raise Conflict(
            f"{shown(command.path)} changed: it has version {file.version}, {command.version} was expected; look again"
        )
    if not 0 <= command.offset <= file.size:
        raise InvalidArgument(
            f"{shown(command.path)} has {file.size} bytes; bytes at {command.offset} would leave a gap, and files have "
            "no holes: write from an offset up to its size"
        )
    content = check_content(parts, command.chunks, command.extents)
    length = content.size
    stop = min(command.offset + length, file.size)
    size = max(command.offset + length, file.size)
    if command.is_same_content and (not command.version or size > file.size):
        raise InvalidArgument("extents can only be merged within a file, of a version that is given")
    if not content.extents:
        return StatReply(status_of(command.path, file))
    cut = packing.cut(file.extents, file.size, command.offset, stop)
    middle = [*([cut.before] if cut.before else []), *content.extents, *([cut.after] if cut.after else [])]
    count = (len(cut.head) + len(cut.tail)) // packing.RECORD.size + len(middle)
    if count > packing.EXTENTS_MAX:
        raise _too_many(command.path, count)
    parts.require_room(0, (size - file.size) * file.replication, place)
    add_chunks(parts, command.chunks, content, file.replication)
    mtime_ms = file.mtime_ms if command.is_same_content else parts.clock_ms
    _replace(parts, place, cut, packing.pack(middle, _end(cut)) + cut.tail, size, mtime_ms=mtime_ms)
    return StatReply(status_of(command.path, file))


def concat(parts: StateParts, command: Concat) -> StatReply:
    """Join files, O(their extents), which are bounded. The sources do not go to the trash: nothing of them is lost."""
    place, file = _existing_file(parts, command.target)
    sources = _concat_sources(parts, command)
    held = packing.count(file.extents) + sum(packing.count(source.extents) for _, source in sources)
    if held > packing.EXTENTS_MAX:
        raise _too_many(command.target, held)
    added = sum(source.size for _, source in sources)
    growth = [Growth(place, 0, added * file.replication)]
    if not command.keep_sources:
        growth += [Growth(found, -1, -stored_size_of(source)) for found, source in sources]
    parts.quotas.check(growth)
    parts.require_total(0, sum(item.stored_size for item in growth))
    packed, size = [packing.expand(file.extents, file.size)], file.size
    for _, source in sources:
        packed.append(packing.shifted(source.extents, source.size, size))
        size += source.size
        for handle in packing.handles(source.extents):
            parts.chunks.reference(handle, file.replication)
    if added:
        content = File(0, 0, parts.clock_ms, file.replication, size, _tidy(parts, b"".join(packed)))
        parts.namespace.set_content(place, content)  # its old references are among the new list's
    if not command.keep_sources:
        for found, _ in sources:
            parts.release(parts.namespace.unlink(found, parts.clock_ms))
    return StatReply(status_of(command.target, file))


def _concat_sources(parts: StateParts, command: Concat) -> list[tuple[Place, File]]:
    if not 1 <= len(command.sources) <= CONCAT_SOURCES_MAX:
        raise InvalidArgument(
            f"{len(command.sources)} files are to be joined; 1 to {CONCAT_SOURCES_MAX} go in one call"
        )
    if len(set(command.sources)) != len(command.sources) or command.target in command.sources:
        raise InvalidArgument("a file is named twice; each can be joined once, and not to itself (cp makes a copy)")
    return [_existing_file(parts, path) for path in command.sources]


def _existing_file(parts: StateParts, path: str) -> tuple[Place, File]:
    place = parts.namespace.locate(path)
    if place.node is None:
        raise NotFound(f"{shown(path)} does not exist")
    if isinstance(place.node, Directory):
        raise IsADirectory(f"{shown(path)} is a directory; only files have content")
    return place, place.node


def _end(cut: packing.Cut) -> int:
    """Return the file offset where the untouched head of a list ends."""
    return packing.end(cut.head) if cut.head else 0


def _replace(
    parts: StateParts, place: Place, cut: packing.Cut, rest: bytes, size: int, *, mtime_ms: int | None = None
) -> None:
    """Give a file the list `cut.head` + `rest`; count what is left of cut extents anew, and release the whole ones."""
    file = place.node
    assert isinstance(file, File), "only a file has content"
    for left in (cut.before, cut.after):
        if left is not None:
            parts.chunks.reference(left.handle, file.replication)
    mtime_ms = parts.clock_ms if mtime_ms is None else mtime_ms
    content = File(0, 0, mtime_ms, file.replication, size, _tidy(parts, cut.head + rest))
    old = parts.namespace.set_content(place, content)
    if cut.removed:
        old.extents = packing.pack(cut.removed)
        old.size = packing.end(old.extents)
        parts.release(old)


def _tidy(parts: StateParts, records: bytes) -> bytes:
    """Return a list in its shortest form: one extent that is a whole chunk is the chunk's handle alone."""
    if len(records) == packing.RECORD.size:
        handle, offset, end = packing.RECORD.unpack(records)
        chunk = parts.chunks.view(ChunkHandle(handle))
        if chunk is not None and not offset and end == chunk.length:
            return packing.whole_chunk(ChunkHandle(handle))
    return records


def _too_many(path: str, count: int) -> LimitExceeded:
    return LimitExceeded(
        f"{shown(path)} would get {count} extents, the limit is {packing.EXTENTS_MAX}; merge them first: `dfs compact`"
    )
