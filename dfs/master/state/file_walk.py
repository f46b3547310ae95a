"""Walk the files of a subtree in pages, each from where the one before ended, whatever changed in between.

Owns: the order of the walk (depth first, names in code point order, a directory before its entries), the place where a
page ends, and finding it again. Refuses to know: chunks, servers, and what the files are looked at for.

The place is the path of the last entry that was told. When that is gone, the walk goes on with what would come after
it, so a page costs what it returns (plus one look-up for each directory above the place), also in a directory of
millions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dfs.master.state import extents
from dfs.master.state.entries import EntryTable
from dfs.master.state.namespace import Directory, File, Node
from dfs.master.state.views import Extent

PATHS_SIZE_MAX = 1024 * 1024  # characters of all paths in a page: a reply must fit into a frame
_PEEK, _PEEK_MAX = 16, 256  # entries that are taken from a directory at once


class FoundFile(NamedTuple):
    """A file of the walk, or the part of it that begins with extent number `first_extent`."""

    path: str  # below the root of the walk; "" when that is the file itself
    file: File
    extent_count: int  # of the whole file
    first_extent: int
    extents: tuple[Extent, ...]


@dataclass(slots=True)
class WalkPage:
    """A page of the walk. `after` and `extents_told` tell the next one where to begin."""

    files: list[FoundFile] = field(default_factory=list)
    directory_count: int = 0
    after: str = ""
    extents_told: int = 0
    has_more: bool = False


class _Walk:
    """One page in the making. `room`: entries and extents that still fit in."""

    def __init__(self, after: str, limit: int) -> None:
        self.page = WalkPage(after=after)
        self._room = limit
        self._paths_room = PATHS_SIZE_MAX

    @property
    def is_full(self) -> bool:
        return self._room <= 0 or self._paths_room <= 0

    def tell_file(self, path: str, file: File, first_extent: int = 0) -> bool:
        """Add a file, or as many of its extents as fit; whether it is told to its end."""
        total = extents.count(file.extents)
        count = min(total - first_extent, max(1, self._room - 1))
        found = extents.window(file.extents, file.size, first_extent, count)[1] if count > 0 else ()
        page = self.page
        page.files.append(FoundFile(path, file, total, first_extent, found))
        page.after = path
        self._room -= 1 + len(found)
        self._paths_room -= len(path)
        told = first_extent + len(found)
        page.extents_told = told if told < total else 0
        return told >= total

    def tell_directory(self, path: str) -> None:
        self.page.directory_count += 1
        self.page.after, self.page.extents_told = path, 0
        self._room -= 1
        self._paths_room -= len(path)


def walk_page(root: Node, after: str, extents_told: int, limit: int) -> WalkPage:
    """Return the page behind the place `after` with at most `limit` entries and extents (at least one of each).

    `extents_told` above 0: the file `after` itself goes on with that extent.
    """
    walk = _Walk(after, limit)
    page = walk.page
    if isinstance(root, File):
        page.has_more = not walk.tell_file("", root, extents_told)
        return page
    levels, unfinished = _resumed(root, after)
    if unfinished is not None and 0 < extents_told < extents.count(unfinished.extents):
        page.has_more = not walk.tell_file(after, unfinished, extents_told)
        if page.has_more:
            return page
    while levels:
        prefix, entries = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
            continue
        if walk.is_full:
            page.has_more = True
            return page
        name, node = entry
        path = f"{prefix}{name}"
        if isinstance(node, Directory):
            walk.tell_directory(path)
            levels.append((f"{path}/", _entries_after(node.entries, "")))
        elif not walk.tell_file(path, node):
            page.has_more = True
            return page
    return page


def _resumed(root: Directory, after: str) -> tuple[list[tuple[str, Iterator[tuple[str, Node]]]], File | None]:
    """Return the directories of the place `after` with what comes behind it, and the file there, if it is one."""
    levels: list[tuple[str, Iterator[tuple[str, Node]]]] = []
    directory, prefix, node = root, "", None
    for name in after.split("/") if after else ():
        levels.append((prefix, _entries_after(directory.entries, name)))
        node = directory.entries.get(name)
        if not isinstance(node, Directory):
            break  # the place is gone, or a file: what comes behind the name is next
        directory, prefix = node, f"{prefix}{name}/"
    else:
        levels.append((prefix, _entries_after(directory.entries, "")))  # inside the directory that was told last
    is_there = isinstance(node, File) and f"{prefix}{after.rpartition('/')[2]}" == after
    return levels, node if is_there and isinstance(node, File) else None


def _entries_after(table: EntryTable[Node], name: str) -> Iterator[tuple[str, Node]]:
    """Yield the entries named after `name`; nothing may change the table meanwhile."""
    size, has_more = _PEEK, True
    while has_more:
        entries, has_more = table.page(name, size)
        yield from entries
        if entries:
            name = entries[-1][0]
        size = min(2 * size, _PEEK_MAX)
