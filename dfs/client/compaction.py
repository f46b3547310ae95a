"""Merge the many small extents of a file into few large ones, without anybody seeing a change of content.

Owns: which extents are worth it (a pure plan), and carrying the plan out range by range. Refuses to know: how bytes
travel. The masters move no bytes, so the client that made the extents, or an administrator's, does the work.

Each range is read from the version that the plan was made for and committed only if the file still has it: a writer in
between wins, and the merging ends. What was merged until then stays merged.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass

from dfs.client.download import Download
from dfs.client.upload import Upload
from dfs.errors import Conflict
from dfs.net.parts import FileStatus, LocatedExtent

MERGE_AT_COUNT = 1024  # extents: an overwrite in place that leaves more of them, and small ones, merges them
MERGE_AT_SIZE = 1024 * 1024  # bytes of an extent on average; files of larger ones are left alone


@dataclass(frozen=True, slots=True)
class Merge:
    """Bytes [`offset`, +`length`) of a file, in `count` extents, are to become one chunk."""

    offset: int
    length: int
    count: int


def is_fragmented(status: FileStatus) -> bool:
    """Return whether a file has so many small extents that merging pays by itself."""
    return status.extent_count > MERGE_AT_COUNT and status.size < status.extent_count * MERGE_AT_SIZE


def plan_merges(lengths: Iterable[int], chunk_size: int) -> list[Merge]:
    """Return the runs of adjacent extents of at most half a chunk, joined up to a chunk each.

    A larger extent is never rewritten: a merge moves each byte of a file of n extents O(log n) times in its life.
    """
    merges: list[Merge] = []
    start = size = count = offset = 0
    for length in (*lengths, chunk_size):  # the last one ends the last run
        is_small = length <= chunk_size // 2
        if not is_small or size + length > chunk_size:
            if count > 1:
                merges.append(Merge(start, size, count))
            start, size, count = offset, 0, 0
        if is_small:
            size, count = size + length, count + 1
        offset += length
        if not is_small:
            start = offset
    return merges


class Compaction:
    """Merges one file; made for each call."""

    def __init__(self, download: Download, upload: Upload) -> None:
        self._download = download
        self._upload = upload

    def run(self, path: str, chunk_size: int) -> FileStatus:
        """Merge what is worth it; return the file's status. Raise `Conflict` when somebody changes it meanwhile."""
        status, extents = self._download.extents(path)
        for merge in plan_merges(_lengths(extents), chunk_size):
            status = self._merge(path, merge, status)
        return status

    def _merge(self, path: str, merge: Merge, status: FileStatus) -> FileStatus:
        content = io.BytesIO()
        read = self._download.get(
            path, content, overwrite=False, offset=merge.offset, length=merge.length, progress=None
        )
        if read.version != status.version:
            raise Conflict(f"{path!r} was changed by somebody while its extents were merged; merge it again")
        content.seek(0)
        return self._upload.write(
            content,
            path,
            offset=merge.offset,
            replication=status.replication,
            version=status.version,
            is_same_content=True,
            progress=None,
        )


def _lengths(extents: Iterable[LocatedExtent]) -> Iterable[int]:
    return (extent.length for extent in extents)
