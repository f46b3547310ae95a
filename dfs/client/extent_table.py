"""Where the bytes of one version of a file are, for reads at any place in it.

Owns: the extents that are known, page by page, and how many pages are kept. Refuses to know: who is asked for a page,
and what is read. Memory is bounded: of a file of many extents only the pages that were used last are kept.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from dfs.errors import ProtocolError
from dfs.net.messages import LocateReply
from dfs.net.parts import LocatedExtent, ServerInfo

PAGES_MAX: Final = 8  # kept; 1000 extents each, some 400 KiB


class Located:
    """One extent with its place in the file, and its replicas. Both are refreshed when they change."""

    __slots__ = ("extent", "index", "offset", "replicas")

    def __init__(self, index: int, offset: int, extent: LocatedExtent, replicas: tuple[ServerInfo, ...]) -> None:
        self.index = index
        self.offset = offset
        self.extent = extent
        self.replicas = replicas


class ExtentTable:
    """Thread-safe. `locate` returns the page that begins with the extent of that number, of the same version."""

    def __init__(self, first: LocateReply, locate: Callable[[int], LocateReply]) -> None:
        self._locate = locate
        self._lock = threading.Lock()
        self._firsts = [0]  # of each known page: the number of its first extent
        self._offsets = [first.first_offset]  # the same: its file offset
        self._pages: OrderedDict[int, Sequence[Located]] = OrderedDict()
        self._end = 0  # file offset up to which pages are known
        self._has_more = True
        self._starts: dict[int, list[int]] = {}
        self._take(0, first)

    def find(self, offset: int) -> Located | None:
        """Return the extent that holds a file offset, None behind the last one; raise what `locate` raises."""
        with self._lock:
            while offset >= self._end:
                if not self._has_more:
                    return None
                number = len(self._firsts)
                known = self._page(number - 1)
                self._firsts.append(self._firsts[-1] + len(known))
                self._offsets.append(self._end)
                try:
                    self._take(number, self._locate(self._firsts[number]))
                except BaseException:
                    del self._firsts[number:], self._offsets[number:]
                    raise
            number = bisect_right(self._offsets, offset) - 1
            page = self._page(number)
            return page[bisect_right(self._starts[number], offset) - 1]

    def _page(self, number: int) -> Sequence[Located]:
        page = self._pages.get(number)
        if page is None:
            page = self._take(number, self._locate(self._firsts[number]))
        self._pages.move_to_end(number)
        return page

    def _take(self, number: int, reply: LocateReply) -> Sequence[Located]:
        """Keep a page; the lock is held."""
        if reply.first_offset != self._offsets[number] or (number and not reply.extents):
            raise ProtocolError("a master sent other extents than were asked for; is it of another version?")
        index, offset, page = self._firsts[number], reply.first_offset, []
        servers = reply.servers
        for extent in reply.extents:
            replicas = tuple(servers[place] for place in extent.replicas if 0 <= place < len(servers))
            page.append(Located(index, offset, extent, replicas))
            index, offset = index + 1, offset + extent.length
        self._pages[number] = page
        self._starts[number] = [located.offset for located in page]
        if number == len(self._firsts) - 1:
            self._end, self._has_more = offset, reply.has_more
        while len(self._pages) > PAGES_MAX:
            del self._starts[self._pages.popitem(last=False)[0]]
        return page
