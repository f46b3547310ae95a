"""A directory's entries: a sorted map from name to node that stays cheap from no entry to millions.

Owns: the order of names and the blocks they are kept in. Refuses to know: what a node is.

Names are kept in code point order in blocks of at most `BLOCK_MAX`, found by two bisections: no hash table, no second
sorted copy, pages of a listing cost what they return, and two replicas iterate alike by construction.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

NodeT = TypeVar("NodeT")

BLOCK_MAX = 1024  # names in one block; a fuller one is split in halves


class EntryTable(Generic[NodeT]):
    """A sorted map; `len()` is its number of entries. `sharers`: how many directories have it (dfs.master.sharing)."""

    __slots__ = ("_count", "_last", "_names", "_nodes", "sharers")

    def __init__(self) -> None:
        self.sharers = 1
        self._count = 0
        self._last: list[str] = []  # the last name of each block
        self._names: list[list[str]] = []
        self._nodes: list[list[NodeT]] = []

    def __len__(self) -> int:
        return self._count

    def get(self, name: str) -> NodeT | None:
        block = bisect_left(self._last, name)
        if block == len(self._last):
            return None
        names = self._names[block]
        index = bisect_left(names, name)
        return self._nodes[block][index] if names[index] == name else None

    def add(self, name: str, node: NodeT) -> None:
        """Add a name that is not there yet."""
        if not self._last:
            self._last, self._names, self._nodes = [name], [[name]], [[node]]
            self._count = 1
            return
        block = bisect_left(self._last, name)
        if block == len(self._last):
            block -= 1
            self._last[block] = name
        names, nodes = self._names[block], self._nodes[block]
        index = bisect_left(names, name)
        names.insert(index, name)
        nodes.insert(index, node)
        self._count += 1
        if len(names) > BLOCK_MAX:
            self._split(block)

    def _split(self, block: int) -> None:
        names, nodes = self._names[block], self._nodes[block]
        # Names that arrive in order fill the last block: leave full ones behind, as an append-only list would.
        middle = BLOCK_MAX if block == len(self._last) - 1 else BLOCK_MAX // 2
        self._names[block : block + 1] = [names[:middle], names[middle:]]
        self._nodes[block : block + 1] = [nodes[:middle], nodes[middle:]]
        self._last.insert(block, names[middle - 1])

    def replace(self, name: str, node: NodeT) -> None:
        """Put another node under a name that is there."""
        block = bisect_left(self._last, name)
        self._nodes[block][bisect_left(self._names[block], name)] = node

    def remove(self, name: str) -> None:
        """Remove a name that is there."""
        block = bisect_left(self._last, name)
        names = self._names[block]
        index = bisect_left(names, name)
        del names[index], self._nodes[block][index]
        self._count -= 1
        if not names:
            del self._last[block], self._names[block], self._nodes[block]
        elif index == len(names):
            self._last[block] = names[-1]

    def items(self) -> Iterator[tuple[str, NodeT]]:
        """Yield (name, node) by ascending name."""
        for names, nodes in zip(self._names, self._nodes, strict=True):
            yield from zip(names, nodes, strict=True)

    def nodes(self) -> Iterator[NodeT]:
        for nodes in self._nodes:
            yield from nodes

    def page(self, after: str, limit: int) -> tuple[list[tuple[str, NodeT]], bool]:
        """Return the first `limit` entries whose names come after `after`, and whether there are more."""
        block = bisect_right(self._last, after)
        found: list[tuple[str, NodeT]] = []
        start = bisect_right(self._names[block], after) if block < len(self._last) else 0
        while block < len(self._last):
            names, stop = self._names[block], start + limit - len(found)
            found += zip(names[start:stop], self._nodes[block][start:stop], strict=True)
            if stop < len(names):
                return found, True
            block, start = block + 1, 0
            if len(found) == limit:
                return found, block < len(self._last)
        return found, False

    def mapped(self, twin: Callable[[NodeT], NodeT]) -> EntryTable[NodeT]:
        """Return a table of its own with the same names, and of each node its twin."""
        made: EntryTable[NodeT] = EntryTable()
        made._count = self._count
        made._last = self._last.copy()
        made._names = [names.copy() for names in self._names]
        made._nodes = [[twin(node) for node in nodes] for nodes in self._nodes]
        return made

    def check_invariants(self) -> None:
        """Raise AssertionError unless the blocks are what the other methods take them for."""
        assert len(self._last) == len(self._names) == len(self._nodes), "block lists differ in length"
        names = [name for block in self._names for name in block]
        assert len(names) == self._count, f"{len(names)} names are kept, {self._count} counted"
        assert names == sorted(set(names)), "names are not strictly ascending"
        for last, block, nodes in zip(self._last, self._names, self._nodes, strict=True):
            assert block, "an empty block is kept"
            assert len(block) <= BLOCK_MAX, f"a block holds {len(block)} names"
            assert block[-1] == last, f"a block ends with {block[-1]!r}, its index says {last!r}"
            assert len(block) == len(nodes), "a block has more names than nodes or fewer"
