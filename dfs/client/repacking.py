"""Give the space of deleted small files back: store the files of half-empty shared chunks anew (docs/adr/0019).

Owns: which chunks are worth it (a pure plan), and moving their files. Refuses to know: how bytes travel, and who asks.

Two walks over a tree, page by page: the first adds up what is alive of each chunk, the second moves. Each file is
committed only if it still has the version that was read, so a writer in between wins and nothing needs a lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dfs import paths
from dfs.client.calls import Calls
from dfs.client.packs import PACK_SIZE, PACKED_FILE_SIZE_MAX
from dfs.client.parallel import Cancellation
from dfs.client.transfer import Transfer
from dfs.client.unpacking import UnpackItem, is_packable, plan_runs, read_run
from dfs.client.upload import Upload
from dfs.clock import Deadline
from dfs.errors import Conflict
from dfs.ids import ChunkHandle
from dfs.net.messages import PACKED_FILES_MAX, CommitMany, CommitManyReply, ErrorReply, LocateManyReply
from dfs.net.parts import Kind, NewExtent, PackedFile

LIVE_SHARE_MIN: Final = 0.5  # of a chunk, below which its files are moved: so no byte moves more than log n times
WASTE_MIN: Final = 64 * 1024  # bytes of a chunk; less is not worth a commit


@dataclass(slots=True)
class Usage:
    """What a tree uses of a chunk: `live` bytes of its `length`; `is_pinned`: also by files that are not moved."""

    length: int
    live: int = 0
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class RepackReport:
    """What one run did. `conflict_count`: files that were changed or removed meanwhile, and left as they are."""

    file_count: int
    size: int
    chunk_count: int
    conflict_count: int


@dataclass(slots=True)
class _Pack:
    data: bytearray = field(default_factory=bytearray)
    files: list[PackedFile] = field(default_factory=list)


def plan_repack(usage: Mapping[ChunkHandle, Usage]) -> set[ChunkHandle]:
    """Return the chunks whose files are to be moved: less than half of them is alive, and all of that can be moved.

    Copies of a file count twice, so a chunk may look fuller than it is, never emptier.
    """
    return {
        handle
        for handle, used in usage.items()
        if not used.is_pinned and used.live < used.length * LIVE_SHARE_MIN and used.length - used.live >= WASTE_MIN
    }


def count_usage(pages: Iterable[LocateManyReply]) -> dict[ChunkHandle, Usage]:
    """Add up what the files of all pages use of their chunks."""
    usage: dict[ChunkHandle, Usage] = {}
    for page in pages:
        known = [usage.setdefault(chunk.handle, Usage(chunk.length)) for chunk in page.chunks]
        for file in page.files:
            is_movable = is_packable(file)
            for extent in file.extents if file.kind is Kind.FILE else ():
                known[extent.chunk].live += extent.length
                known[extent.chunk].is_pinned |= not is_movable
    return usage


class Repacking:
    """Moves the files below one directory; made for each call."""

    def __init__(self, transfer: Transfer, upload: Upload, calls: Calls, timeout_s: float) -> None:
        self._transfer = transfer
        self._upload = upload
        self._calls = calls
        self._timeout_s = timeout_s
        self._cancellation = Cancellation()
        self._packs: dict[int, _Pack] = {}  # by replication
        self._file_count = self._size = self._conflict_count = 0

    def run(self, root: str, pages: Callable[[], Iterator[LocateManyReply]]) -> RepackReport:
        """Move what is worth it below the directory `root`, of which `pages` walks the content."""
        wanted = plan_repack(count_usage(pages()))
        if wanted:
            for page in pages():
                self._move_page(root, page, wanted)
            for replication, pack in self._packs.items():
                self._commit(replication, pack)
        return RepackReport(self._file_count, self._size, len(wanted), self._conflict_count)

    def _move_page(self, root: str, page: LocateManyReply, wanted: set[ChunkHandle]) -> None:
        items = [
            UnpackItem(file, paths.join(root, file.path), Path())
            for file in page.files
            if is_packable(file) and file.extents and page.chunks[file.extents[0].chunk].handle in wanted
        ]
        for run in plan_runs(items, [chunk.length for chunk in page.chunks]):
            data = read_run(self._transfer, page, run, self._cancellation)
            for item in run.items:
                start = item.file.extents[0].offset - run.start
                self._add(item, data[start : start + item.file.size])

    def _add(self, item: UnpackItem, data: memoryview) -> None:
        file = item.file
        pack = self._packs.setdefault(file.replication, _Pack())
        extent = NewExtent(0, len(pack.data), len(data))
        pack.data += data
        pack.files.append(PackedFile(item.path, (extent,), file.mtime_ms, file.version))
        if len(pack.files) == PACKED_FILES_MAX or len(pack.data) + PACKED_FILE_SIZE_MAX > PACK_SIZE:
            self._commit(file.replication, pack)
            self._packs[file.replication] = _Pack()

    def _commit(self, replication: int, pack: _Pack) -> None:
        if not pack.files:
            return
        name = f"{pack.files[0].path} and {len(pack.files) - 1} more files"
        chunk = self._upload.store_pack(memoryview(pack.data), name, replication, self._cancellation)
        failures = self._calls.call(
            lambda call: CommitMany(call, (chunk,), tuple(pack.files), replication, overwrite=True),
            CommitManyReply,
            Deadline.after(self._timeout_s),
        ).failures
        failed = {failure.index for failure in failures}
        self._file_count += len(pack.files) - len(failed)
        self._size += sum(file.extents[0].length for index, file in enumerate(pack.files) if index not in failed)
        for failure in failures:
            error = ErrorReply(failure.code, failure.text).error()
            if not isinstance(error, (Conflict, FileNotFoundError, NotADirectoryError)):
                raise error
            self._conflict_count += 1
