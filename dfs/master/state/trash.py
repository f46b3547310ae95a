"""What has left the tree: the trash that users can still undelete from, and subtrees that are being released.

Owns: trash entries by id and by path, and the release of content in bounded steps. Refuses to know: the live tree and
how long entries are kept (an argument).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

from dfs.master.state import extents
from dfs.master.state.chunkmap import ChunkMap
from dfs.master.state.entries import EntryTable
from dfs.master.state.nodes import File, Node, count_nodes
from dfs.net.parts import Kind, TrashEntry

RELEASE_STEP_MAX = 2_000  # extents and nodes released after each command: a few milliseconds


class Trashed:
    """A deleted subtree."""

    __slots__ = ("deleted_ms", "node", "path")

    def __init__(self, path: str, node: Node, deleted_ms: int) -> None:
        self.path = path
        self.node = node
        self.deleted_ms = deleted_ms


class Trash:
    """Entries by ascending id, which is the order of deletion and of expiry."""

    def __init__(self) -> None:
        self.next_id = 1
        self.size = 0  # bytes, logical
        self.node_count = 0  # files and directories
        self._ids: list[int] = []
        self._entries: dict[int, Trashed] = {}
        self._by_path: dict[str, tuple[int, ...]] = {}  # ids of a path, ascending

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, trash_id: int) -> Trashed | None:
        return self._entries.get(trash_id)

    def newest(self, path: str) -> int | None:
        """Return the id of the newest entry deleted from exactly this path."""
        found = self._by_path.get(path)
        return found[-1] if found else None

    def items(self) -> Iterator[tuple[int, Trashed]]:
        for trash_id in self._ids:
            yield trash_id, self._entries[trash_id]

    def oldest_ids(self, limit: int) -> list[int]:
        return self._ids[: max(0, limit)]

    def oldest_ms(self) -> int | None:
        """Return when the oldest entry was deleted."""
        return self._entries[self._ids[0]].deleted_ms if self._ids else None

    def page(self, after: int, limit: int, keep_ms: int) -> tuple[tuple[TrashEntry, ...], bool]:
        start = bisect_right(self._ids, after)
        ids = self._ids[start : start + limit]
        return tuple(self._status(trash_id, keep_ms) for trash_id in ids), start + limit < len(self._ids)

    def _status(self, trash_id: int, keep_ms: int) -> TrashEntry:
        entry = self._entries[trash_id]
        kind = Kind.FILE if isinstance(entry.node, File) else Kind.DIRECTORY
        deleted_ms = entry.deleted_ms
        return TrashEntry(trash_id, entry.path, kind, entry.node.size, deleted_ms, deleted_ms + keep_ms)

    def add(self, entry: Trashed) -> int:
        trash_id = self.next_id
        self.restore(trash_id, entry)
        self.next_id = trash_id + 1
        return trash_id

    def restore(self, trash_id: int, entry: Trashed) -> None:
        """Add an entry under its id, which must be above all others."""
        self._ids.append(trash_id)
        self._entries[trash_id] = entry
        self._by_path[entry.path] = (*self._by_path.get(entry.path, ()), trash_id)
        self.size += entry.node.size
        self.node_count += count_nodes(entry.node)

    def remove(self, trash_id: int) -> Trashed:
        """Take an entry out that is there."""
        entry = self._entries.pop(trash_id)
        del self._ids[bisect_left(self._ids, trash_id)]
        rest = tuple(known for known in self._by_path[entry.path] if known != trash_id)
        if rest:
            self._by_path[entry.path] = rest
        else:
            del self._by_path[entry.path]
        self.size -= entry.node.size
        self.node_count -= count_nodes(entry.node)
        return entry

    def check_invariants(self) -> None:
        assert self._ids == sorted(self._entries), "trash ids and entries differ"
        assert all(trash_id < self.next_id for trash_id in self._ids), "a trash id is not below the counter"
        assert self.size == sum(entry.node.size for entry in self._entries.values()), "trash size does not add up"
        node_count = sum(count_nodes(entry.node) for entry in self._entries.values())
        assert self.node_count == node_count, f"trash counts {self.node_count} nodes, holds {node_count}"
        times = [entry.deleted_ms for _, entry in self.items()]
        assert times == sorted(times), "trash is not in the order of deletion"
        by_path: dict[str, tuple[int, ...]] = {}
        for trash_id, entry in self.items():
            by_path[entry.path] = (*by_path.get(entry.path, ()), trash_id)
        assert by_path == self._by_path, f"trash by path is {self._by_path}, should be {by_path}"


class ReleaseQueue:
    """Subtrees nobody can reach any more; their chunks lose their references a bounded step at a time.

    A whole tree of a million files would take seconds, longer than an election; a step runs after each command.
    """

    def __init__(self) -> None:
        self._stack: list[Node] = []

    def __len__(self) -> int:
        return len(self._stack)

    def push(self, node: Node) -> None:
        self._stack.append(node)

    def nodes(self) -> Iterator[Node]:
        yield from self._stack

    def step(
        self, chunks: ChunkMap, now_ms: int, leave: Callable[[EntryTable[Node]], None], budget: int = RELEASE_STEP_MAX
    ) -> None:
        """Release at most `budget` extents and nodes; `leave` is told of a shared table that loses a directory."""
        while self._stack and budget > 0:
            node = self._stack.pop()
            if not isinstance(node, File):
                if node.entries.sharers > 1:
                    leave(node.entries)  # what is in it lives on in another tree
                else:
                    self._stack.extend(node.entries.nodes())
                budget -= 1
                continue
            rest, cut = extents.cut_last(node.extents, budget)
            for handle in extents.handles(cut):
                chunks.dereference(handle, node.replication, now_ms)
            budget -= max(1, extents.count(cut))
            if rest:
                node.extents, node.size = rest, extents.end(rest)
                self._stack.append(node)
