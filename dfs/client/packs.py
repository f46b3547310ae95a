"""Many small local files into few shared chunks, and into the masters by few calls.

Owns: reading small files, packing them, and telling of each what became of it. Refuses to know: how a chunk is written,
how a tree is walked, and what is shown to anybody.

The caller's thread reads files into a pack; when it is full, one of a few threads stores it as a chunk and commits its
files in one call. Each file appears at once, whole, or fails by itself. Files are packed in the order in which they
come: neighbours share chunks, and most often are read and deleted together.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dfs import paths
from dfs.client.local_files import local_error
from dfs.client.parallel import Cancellation, in_order
from dfs.client.upload import Upload
from dfs.errors import Conflict, DfsError
from dfs.fast_paths import FastPath, is_on
from dfs.net.messages import PACKED_FILES_MAX, CommitMany, CommitManyReply, ErrorReply
from dfs.net.parts import FileFailure, NewChunk, NewExtent, PackedFile

PACK_SIZE: Final = 4 * 1024 * 1024  # bytes of one pack: few enough that little waits for the last file of a pack to go
PACKED_FILE_SIZE_MAX: Final = 1024 * 1024  # bytes; a larger file gets chunks of its own
PACKS_AT_ONCE: Final = 3  # one is stored while another is committed; with those being filled about 20 MiB of memory


@dataclass(frozen=True, slots=True)
class PackItem:
    """A local file to store as `path`."""

    source: Path
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRules:
    """How to store: as for a single put. `keeps_time`: the files get the local modification times."""

    overwrite: bool
    parents: bool
    replication: int
    keeps_time: bool


@dataclass(frozen=True, slots=True)
class PackEvents:
    """Who hears what became of a file; called from any thread. What `failed` raises ends the whole run."""

    stored: Callable[[PackItem, int], None]
    failed: Callable[[PackItem, DfsError], None]
    too_large: Callable[
        [PackItem], None
    ]  # not packed, as none are without that fast path: put it by itself; called from the caller's thread


@dataclass(slots=True)
class _Pack:
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(PACK_SIZE)))
    used: int = 0
    items: list[PackItem] = field(default_factory=list)
    files: list[PackedFile] = field(default_factory=list)


class Packer:
    """Stores many files; made for each call."""

    def __init__(self, upload: Upload, rules: PackRules, events: PackEvents) -> None:
        self._upload = upload
        self._rules = rules
        self._events = events
        self._cancellation = Cancellation()
        self._packs_files = is_on(FastPath.PACKING)

    def run(self, items: Iterable[PackItem]) -> None:
        """Store all; on return every file was told of. Raise what ended the run early."""
        stored = in_order(
            self._store, self._packs(items), self._cancellation, workers=PACKS_AT_ONCE, window=PACKS_AT_ONCE
        )
        for _ in stored:
            pass

    # --- filling ------------------------------------------------------------------------------------------

    def _packs(self, items: Iterable[PackItem]) -> Iterator[_Pack]:
        """Yield full packs, read by the thread that asks for them."""
        pack = _Pack()
        for item in items:
            if not self._packs_files:
                self._events.too_large(item)
                continue
            if len(pack.files) == PACKED_FILES_MAX or pack.used + PACKED_FILE_SIZE_MAX > PACK_SIZE:
                yield pack
                pack = _Pack()
            try:
                path = paths.normalise(item.path)
                file = self._read(item.source, path, pack)
            except OSError as error:
                self._events.failed(item, local_error(error, "read", item.source))
            except DfsError as error:
                self._events.failed(item, error)
            else:
                if file is None:
                    self._events.too_large(item)
                else:
                    pack.items.append(item)
                    pack.files.append(file)
        if pack.files:
            yield pack

    def _read(self, source: Path, path: str, pack: _Pack) -> PackedFile | None:
        """Read a file into the pack; None when it is too large, no regular file, or claims to be empty and is not."""
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a named pipe is not waited for
        try:
            before = os.fstat(fd)
            size = before.st_size
            if not stat.S_ISREG(before.st_mode) or size > PACKED_FILE_SIZE_MAX:
                return None
            got = _read_all(fd, pack.buffer[pack.used : pack.used + size + 1])
            if not size and got:
                return None  # files of /proc say that they are empty, and are not
            after = os.fstat(fd)
        finally:
            os.close(fd)
        if got != size or (after.st_size, after.st_mtime_ns) != (size, before.st_mtime_ns):
            raise Conflict(f"{str(source)!r} changed while it was read; it was not stored: try again when it rests")
        extents = (NewExtent(0, pack.used, size),) if size else ()
        pack.used += size
        mtime_ms = before.st_mtime_ns // 1_000_000 if self._rules.keeps_time else 0
        return PackedFile(path, extents, max(0, mtime_ms))

    # --- storing ------------------------------------------------------------------------------------------

    def _store(self, pack: _Pack) -> None:
        events = self._events
        try:
            failures = self._commit(pack)
        except DfsError as error:
            for item in pack.items:
                events.failed(item, error)
            return
        failed = {failure.index: failure for failure in failures}
        for index, (item, file) in enumerate(zip(pack.items, pack.files, strict=True)):
            if index in failed:
                events.failed(item, ErrorReply(failed[index].code, failed[index].text).error())
            else:
                events.stored(item, sum(extent.length for extent in file.extents))

    def _commit(self, pack: _Pack) -> tuple[FileFailure, ...]:
        rules = self._rules
        self._cancellation.check()
        chunks: tuple[NewChunk, ...] = ()
        if pack.used:
            name = f"{pack.items[0].path} and {len(pack.items) - 1} more files"
            data = pack.buffer[: pack.used]
            chunks = (self._upload.store_pack(data, name, rules.replication, self._cancellation),)
        return self._upload.commit(
            lambda call: CommitMany(call, chunks, tuple(pack.files), rules.replication, rules.overwrite, rules.parents),
            CommitManyReply,
        ).failures


def _read_all(fd: int, view: memoryview) -> int:
    """Read until `view` is full or the file ends; return the bytes got."""
    got = 0
    while got < len(view) and (count := os.readv(fd, [view[got:]])):
        got += count
    return got
