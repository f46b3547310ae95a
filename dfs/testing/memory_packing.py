"""The calls for many small files of the memory client.

Owns: `put_many`, `locate_many`, `get_many` and `repack`, told by its single calls. Refuses to know: packs and chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from dfs import paths
from dfs.client.packs import PackEvents, PackItem
from dfs.client.repacking import RepackReport
from dfs.client.unpacking import UnpackEvents, UnpackItem
from dfs.errors import DfsError, IsADirectory
from dfs.net.messages import LocateManyReply
from dfs.net.parts import FileStatus, Kind, LocatedFile, NewExtent

PAGE = 3  # entries of a page: few, so that tests see several


class MemoryPacking:
    """Part of `MemoryClient`."""

    put: Callable[..., FileStatus]
    get: Callable[..., FileStatus]
    stat: Callable[[str], FileStatus]
    walk: Callable[[str], Iterator[tuple[str, FileStatus]]]

    repacked = RepackReport(0, 0, 0, 0)  # what the next repack is to report

    def repack(self, path: str) -> RepackReport:
        self.stat(path)
        return self.repacked

    def put_many(
        self,
        items: Iterable[PackItem],
        events: PackEvents,
        *,
        overwrite: bool = False,
        parents: bool = False,
        replication: int | None = None,
        keeps_time: bool = False,
    ) -> None:
        for item in items:
            try:
                if item.source.is_dir():
                    raise IsADirectory(f"{item.source} is a directory")
                mtime_ms = item.source.stat().st_mtime_ns // 1_000_000 if keeps_time else 0
                status = self.put(
                    item.source,
                    item.path,
                    overwrite=overwrite,
                    parents=parents,
                    replication=replication,
                    mtime_ms=mtime_ms,
                )
            except DfsError as error:
                events.failed(item, error)
            else:
                events.stored(item, status.size)

    def locate_many(self, path: str) -> Iterator[LocateManyReply]:
        root = paths.normalise(path)
        self.stat(root)
        page: list[LocatedFile] = []
        for full, status in self.walk(root):
            relative = full[len(root) :].lstrip("/")
            extents = (NewExtent(0, 0, status.size),) if status.kind is Kind.FILE and status.size else ()
            page.append(
                LocatedFile(
                    relative,
                    status.kind,
                    status.size,
                    status.mtime_ms,
                    status.version,
                    status.replication,
                    extents,
                )
            )
            if len(page) == PAGE:
                yield LocateManyReply(tuple(page), (), (), has_more=True)
                page = []
        yield LocateManyReply(tuple(page), (), (), has_more=False)

    def get_many(
        self,
        pages: Iterable[tuple[LocateManyReply, list[UnpackItem]]],
        events: UnpackEvents,
        *,
        overwrite: bool = True,
    ) -> None:
        for _, items in pages:
            for item in items:
                try:
                    self.get(item.path, item.target, overwrite=overwrite)
                except DfsError as error:
                    events.failed(item, error)
                else:
                    events.fetched(item)
