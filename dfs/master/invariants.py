"""What must be true of the replicated state after every command.

Owns: the checks that need several parts. Refuses to know: how a violation came about.
"""

from __future__ import annotations

from dfs.ids import ChunkHandle
from dfs.master import extents
from dfs.master.namespace import File, Node, check_file, check_tree, files_below
from dfs.master.parts import StateParts


def check_invariants(parts: StateParts) -> None:
    """Raise AssertionError with the story unless all parts agree with themselves and with each other."""
    inodes: set[int] = set()
    next_id = parts.namespace.next_id
    check_tree(parts.namespace.root, next_id, inodes)
    for trash_id, entry in parts.trash.items():
        assert entry.deleted_ms <= parts.clock_ms, f"trash entry {trash_id} was deleted in the future"
        if isinstance(entry.node, File):
            check_file(f"trash {trash_id}", entry.node, next_id, inodes)
        else:
            check_tree(entry.node, next_id, inodes, f"trash {trash_id}")
    parts.trash.check_invariants()
    parts.sessions.check_invariants()
    parts.tails.check_invariants()
    for tail in parts.tails.all():
        assert isinstance(parts.namespace.locate(tail.path).node, File), f"the tail of {tail.path} belongs to no file"
        assert tail.handle not in parts.chunks, f"the tail of {tail.path} is a sealed chunk, too"
    _check_chunks(parts)


def _check_chunks(parts: StateParts) -> None:
    expected: dict[ChunkHandle, dict[int, int]] = {}
    trashed = (entry.node for _, entry in parts.trash.items())
    trees: list[Node] = [parts.namespace.root, *trashed, *parts.released.nodes()]
    for tree in trees:
        for file in files_below(tree):
            _check_content(parts, file)
            for handle in extents.handles(file.extents):
                levels = expected.setdefault(handle, {})
                levels[file.replication] = levels.get(file.replication, 0) + 1
    parts.chunks.check_invariants(expected)
    for handle, chunk in parts.chunks.chunks():
        assert all(server in parts.servers for server in chunk.replicas.servers), f"{handle.hex()}: unknown server"


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
