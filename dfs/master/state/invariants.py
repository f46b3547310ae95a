"""What must be true of the replicated state after every command.

Owns: the checks that need several parts. Refuses to know: how a violation came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dfs.ids import ChunkHandle
from dfs.master.state import extents
from dfs.master.state.entries import EntryTable
from dfs.master.state.namespace import Contents, check_file, check_tree
from dfs.master.state.nodes import Directory, File, Node
from dfs.master.state.parts import StateParts


def check_invariants(parts: StateParts) -> None:
    """Raise AssertionError with the story unless all parts agree with themselves and with each other."""
    seen: Contents = {}
    next_id = parts.namespace.next_id
    check_tree(parts.namespace.root, next_id, seen)
    for trash_id, entry in parts.trash.items():
        assert entry.deleted_ms <= parts.clock_ms, f"trash entry {trash_id} was deleted in the future"
        if isinstance(entry.node, File):
            check_file(f"trash {trash_id}", entry.node, next_id, seen)
        else:
            check_tree(entry.node, next_id, seen, f"trash {trash_id}")
    for path, shelf in parts.snapshots.shelves():
        assert isinstance(parts.namespace.find(path), Directory), f"{path} has snapshots but is a file"
        check_tree(shelf.content, next_id, seen, f"{path}/.snapshot")
    for path, quota in parts.quotas.items():
        assert isinstance(parts.namespace.find(path), Directory), f"{path} has a quota but is a file"
        assert min(quota) >= 0, f"{path} has the quota {quota}"
        assert any(quota), f"{path} has an empty quota"
    parts.trash.check_invariants()
    parts.snapshots.check_invariants()
    parts.sessions.check_invariants()
    for separation in parts.sharing.separations():
        assert separation.table.sharers > 1, "a table is being copied that nobody shares"
        names = [name for name, _ in separation.made.entries.items()]
        assert names == [name for name, _ in separation.table.items()][: len(names)], "a copy is not what is copied"
    parts.tails.check_invariants()
    for tail in parts.tails.all():
        assert isinstance(parts.namespace.look(tail.path).node, File), f"the tail of {tail.path} belongs to no file"
        assert tail.handle not in parts.chunks, f"the tail of {tail.path} is a sealed chunk, too"
    _check_chunks(parts)


def trees_of(parts: StateParts) -> list[Node]:
    """Return the tops of all trees: the live one, trash, snapshots, copies in the making, what is being released."""
    trashed = (entry.node for _, entry in parts.trash.items())
    snapshots = (root for _, _, _, root in parts.snapshots.roots())
    copies = (separation.made for separation in parts.sharing.separations())
    return [parts.namespace.root, *trashed, *snapshots, *copies, *parts.released.nodes()]


def _check_chunks(parts: StateParts) -> None:
    expected: dict[ChunkHandle, dict[int, int]] = {}
    for file in _files_once(trees_of(parts)):
        _check_content(parts, file)
        for handle in extents.handles(file.extents):
            levels = expected.setdefault(handle, {})
            levels[file.replication] = levels.get(file.replication, 0) + 1
    parts.chunks.check_invariants(expected)
    for handle, chunk in parts.chunks.chunks():
        assert all(server in parts.servers for server in chunk.replicas.servers), f"{handle.hex()}: unknown server"


def _files_once(trees: Iterable[Node]) -> Iterator[File]:
    """Yield all files, those of a shared table once; raise AssertionError unless tables count their sharers right."""
    tables: dict[int, tuple[EntryTable[Node], int]] = {}
    stack = list(trees)
    while stack:
        node = stack.pop()
        if isinstance(node, File):
            yield node
            continue
        _, count = tables.get(id(node.entries), (node.entries, 0))
        tables[id(node.entries)] = node.entries, count + 1
        if not count:
            stack.extend(node.entries.nodes())
    for table, count in tables.values():
        assert table.sharers == count, f"a table counts {table.sharers} sharers, {count} directories have it"


def _check_content(parts: StateParts, file: File) -> None:
    """The extents lie in their chunks and add up to the file's size."""
    _, found = extents.window(file.extents, file.size, 0, extents.EXTENTS_MAX)
    total = 0
    for handle, offset, length in found:
        chunk = parts.chunks.view(handle)
        assert chunk is not None, f"inode {file.inode} uses unknown chunk {handle.hex()}"
        assert 0 <= offset < offset + length <= chunk.length, f"inode {file.inode}: an extent leaves its chunk"
        total += length
    assert total == file.size, f"inode {file.inode}: size {file.size}, its extents add up to {total}"
