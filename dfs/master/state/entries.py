"""A directory's entries: a sorted map from name to node that stays cheap from no entry to millions.

Owns: the order of names and the blocks they are kept in. Refuses to know: what a node is.

Names are kept in code point order (which is the byte order of UTF-8) in blocks of at most `BLOCK_MAX`. The names of a
block are one bytes object, NUL before, between and after them, which no name can hold: a name costs its bytes and one
more, and is found by a search in C. The nodes of a block are a tuple beside it: the garbage collector stops looking at
tuples that hold files only. No hash table, no second sorted copy, pages of a listing cost what they return, and two
replicas iterate alike by construction.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

NodeT = TypeVar("NodeT")

BLOCK_MAX = 64  # names in one block; a fuller one is split. An insertion copies a block: 2 microseconds
_NUL = b"\0"
_PAST = b"\0\xff"  # after a name: past every block that begins with it, for UTF-8 knows no byte 255


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


class EntryTable(Generic[NodeT]):
    """A sorted map; `len()` is its number of entries. There is always a block; only the first one may be empty.

    `sharers`: how many directories have it (dfs.master.state.sharing).
    """

    __slots__ = ("_count", "_names", "_nodes", "sharers")

    def __init__(self) -> None:
        self.sharers = 1
        self._count = 0
        self._names: list[bytes] = [_NUL]
        self._nodes: list[tuple[NodeT, ...]] = [()]

    def __len__(self) -> int:
        return self._count

    def _block(self, key: bytes) -> int:
        """Return the number of the block that holds a name, or would: the last that does not begin after it."""
        if len(self._names) == 1:
            return 0
        return max(0, bisect_right(self._names, _NUL + key + _PAST) - 1)

    def get(self, name: str) -> NodeT | None:
        key = name.encode("utf-8", "surrogatepass")  # not by `_key`: nothing else is done so often
        block = self._block(key) if len(self._names) > 1 else 0
        names = self._names[block]
        offset = names.find(_NUL + key + _NUL)
        return None if offset < 0 else self._nodes[block][names.count(_NUL, 0, offset)]

    def add(self, name: str, node: NodeT) -> None:
        """Add a name that is not there yet."""
        key = name.encode("utf-8", "surrogatepass")
        block = self._block(key) if len(self._names) > 1 else 0
        names, nodes = self._names[block], self._nodes[block]
        self._count += 1
        if key > names[names.rfind(_NUL, 0, -1) + 1 : -1]:
            if len(nodes) >= BLOCK_MAX and block == len(self._names) - 1:
                # Names that arrive in order fill the last block: leave full ones behind, as an append-only list would.
                self._names.append(_NUL + key + _NUL)
                self._nodes.append((node,))
                return
            names, nodes = names + key + _NUL, (*nodes, node)
        else:
            known = names.split(_NUL)
            index = bisect_left(known, key, 1, len(known) - 1)
            known.insert(index, key)
            names, nodes = _NUL.join(known), (*nodes[: index - 1], node, *nodes[index - 1 :])
        self._names[block], self._nodes[block] = names, nodes
        if len(nodes) > BLOCK_MAX:
            self._split(block)

    def _split(self, block: int) -> None:
        known, nodes = self._names[block].split(_NUL), self._nodes[block]
        middle = len(nodes) // 2
        first, second = known[: middle + 1], known[middle + 1 :]
        self._names[block : block + 1] = [_NUL.join([*first, b""]), _NUL.join([b"", *second])]
        self._nodes[block : block + 1] = [nodes[:middle], nodes[middle:]]

    def _find(self, name: str) -> tuple[int, int, int, int]:
        """Return where a name that is there is: block, index, offset of the NUL before it, and of the one after."""
        key = _key(name)
        block = self._block(key)
        names = self._names[block]
        offset = names.index(_NUL + key + _NUL)
        return block, names.count(_NUL, 0, offset), offset, offset + 1 + len(key)

    def replace(self, name: str, node: NodeT) -> None:
        """Put another node under a name that is there."""
        block, index, _, _ = self._find(name)
        nodes = self._nodes[block]
        self._nodes[block] = (*nodes[:index], node, *nodes[index + 1 :])

    def remove(self, name: str) -> None:
        """Remove a name that is there."""
        block, index, start, stop = self._find(name)
        names, nodes = self._names[block], self._nodes[block]
        self._count -= 1
        if len(nodes) == 1 and len(self._names) > 1:
            del self._names[block], self._nodes[block]
        else:
            self._names[block] = names[:start] + names[stop:]
            self._nodes[block] = (*nodes[:index], *nodes[index + 1 :])

    def items(self) -> Iterator[tuple[str, NodeT]]:
        """Yield (name, node) by ascending name."""
        for names, nodes in zip(self._names, self._nodes, strict=True):
            yield from zip(_shown(names), nodes, strict=True)

    def nodes(self) -> Iterator[NodeT]:
        for nodes in self._nodes:
            yield from nodes

    def page(self, after: str, limit: int) -> tuple[list[tuple[str, NodeT]], bool]:
        """Return the first `limit` entries whose names come after `after`, and whether there are more."""
        key = _key(after)
        block = self._block(key)
        known = self._names[block].split(_NUL)
        start = bisect_right(known, key, 1, len(known) - 1) - 1
        found: list[tuple[str, NodeT]] = []
        for number in range(block, len(self._names)):
            entries = zip(_shown(self._names[number]), self._nodes[number], strict=True)
            found += islice(entries, start, start + limit + 1 - len(found))
            start = 0
            if len(found) > limit:
                del found[limit:]
                return found, True
        return found, False

    def take_apart(self) -> Iterator[tuple[NodeT, ...]]:
        """Take the blocks out, last first; return their nodes. The table is empty at the end."""
        while len(self._names) > 1:
            self._names.pop()
            yield self._nodes.pop()
        nodes = self._nodes[0]
        self._names, self._nodes, self._count = [_NUL], [()], 0
        yield nodes

    def last_name(self) -> str:
        """Return the last name, "" when there is none."""
        names = self._names[-1]
        return names[names.rfind(_NUL, 0, -1) + 1 : -1].decode("utf-8", "surrogatepass")

    def mapped(self, twin: Callable[[NodeT], NodeT]) -> EntryTable[NodeT]:
        """Return a table of its own with the same names, and of each node its twin."""
        made: EntryTable[NodeT] = EntryTable()
        made._count = self._count
        made._names = self._names.copy()
        made._nodes = [tuple([twin(node) for node in nodes]) for nodes in self._nodes]
        return made

    def check_invariants(self) -> None:
        """Raise AssertionError unless the blocks are what the other methods take them for."""
        assert len(self._names) == len(self._nodes) >= 1, "block lists differ in length"
        names = [name for block in self._names for name in _shown(block)]
        assert len(names) == self._count, f"{len(names)} names are kept, {self._count} counted"
        assert names == sorted(set(names)), "names are not strictly ascending"
        for block, nodes in zip(self._names, self._nodes, strict=True):
            count = len(list(_shown(block)))
            assert block.startswith(_NUL), f"a block begins with {block[:1]!r}"
            assert block.endswith(_NUL), f"a block ends with {block[-1:]!r}"
            assert count or len(self._names) == 1, "an empty block is kept"
            assert count <= BLOCK_MAX, f"a block holds {count} names"
            assert count == len(nodes), "a block has more names than nodes or fewer"


def _shown(names: bytes) -> list[str]:
    """Return the names of a block."""
    return names[1:-1].decode("utf-8", "surrogatepass").split("\0") if len(names) > 1 else []
