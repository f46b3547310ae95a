"""Random commands for the replicated state, and the whole of a state as plain values.

Owns: which commands mean something in a tree that is there, and reading a state through its queries.
Refuses to know: what the commands should do (the judges), and how histories are run.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.state.commands import (
    ChangeReplicas,
    ExpireTrash,
    ForgetGarbage,
    ForgetServer,
    PutServer,
    ReplicaChange,
    SetBalance,
    SetOptions,
    SetServerMode,
    TrimReplicas,
)
from dfs.master.state.machine import MasterState
from dfs.net import messages as m
from dfs.net import parts
from dfs.paths import join
from dfs.testing.naive_snapshots import NaiveWholeState
from dfs.testing.naive_state import NaiveFile

SERVERS = [ServerId(bytes([number]) * 16) for number in (9, 3, 7, 1)]
STRANGER = ServerId(b"?" * 16)
SESSIONS = [SessionId(bytes([0xA0 + number]) * 16) for number in range(3)]
KEEP_MS = 5_000

NAMES = ["a", "b", "ä ", "c\n"]
BAD_PATHS = ["", "a", "/a//b", "/..", "/a/", "/\0", "/" + "x" * 256]


class Chooser:
    """Draws commands that mean something in the present tree: most touch what is there, some are broken in one way.

    `rng` is a seeded Random, or hypothesis's, which shrinks.
    """

    def __init__(self, rng: Random, judge: NaiveWholeState) -> None:
        self.rng = rng
        self.judge = judge
        self.next_number = 1

    def step(self) -> tuple[Callable[[parts.CallId], m.Message] | m.Message, SessionId, int, str]:
        rng = self.rng
        kinds: list[Callable[[], Callable[[parts.CallId], m.Message] | m.Message]] = [
            self.tree,
            self.tree,
            self.content,
            self.content,
            self.trash,
            self.ranges,
            self.snapshots,
            self.snapshots,
            self.duty,
        ]
        what = rng.choice(kinds)()
        return what, rng.choice(SESSIONS), rng.choice([0, 1, 700, 2_000]), rng.choice(["", "", "replay", "reload"])

    def flag(self) -> bool:
        return self.rng.random() < 0.6

    def path(self, *, fresh: bool = False) -> str:
        rng = self.rng
        known = sorted(self.judge.tree)
        path = rng.choice(known[1:] or known)
        mode = rng.randrange(20)
        if mode == 0:
            return rng.choice(BAD_PATHS)
        if mode == 1:
            return "/"
        if mode == 2:
            return join(join(path, rng.choice(NAMES)), rng.choice(NAMES))
        if mode < 8 or (fresh and mode < 16):
            directories = [known for known in known if isinstance(self.judge.tree[known], int)]
            return join(rng.choice(directories), rng.choice(NAMES))
        return path

    def tree(self) -> Callable[[parts.CallId], m.Message]:
        path, target, fresh = self.path(), self.path(fresh=True), self.path(fresh=True)
        x, y = self.flag(), self.flag()
        makers: list[Callable[[parts.CallId], m.Message]] = [
            lambda call: m.MakeDirectory(call, fresh, x),
            lambda call: m.MakeDirectory(call, fresh, x),
            lambda call: m.RemoveDirectory(call, path),
            lambda call: m.Delete(call, path, x, self.rng.random() < 0.3),
            lambda call: m.Rename(call, path, target, y),
            lambda call: m.Rename(call, path, target, y),
            lambda call: m.Copy(call, path, target, x, y),
            lambda call: m.Copy(call, path, target, x, y),
            lambda call: m.Touch(call, fresh, self.rng.choice([0, 5, 5, -7]), x),
        ]
        return self.rng.choice(makers)

    def content(self) -> Callable[[parts.CallId], m.Message]:
        path, x, y = self.path(), self.flag(), self.flag()
        chunks, extents = self.chunks_and_extents()
        goal = self.rng.choice([1, 2, 3, 3, 4, 16, 0, 17, -1])
        mtime_ms = self.rng.choice([0, 0, 0, 77, 77, -1, 1 << 60])
        makers: list[Callable[[parts.CallId], m.Message]] = [
            lambda call: m.CommitFile(call, self.path(fresh=True), chunks, extents, goal, x, y, mtime_ms),
            lambda call: m.CommitFile(call, path, chunks, extents, 3, True, True),
            lambda call: m.CommitMany(call, chunks, self.packed(extents), goal, x, y),
            lambda call: m.CommitMany(call, chunks, self.packed(extents), 2, True, True),
            lambda call: m.AppendExtents(call, path, chunks, extents, x),
            lambda call: m.AppendExtents(call, self.path(fresh=True), chunks, extents, x),
            lambda call: m.SetReplication(call, path, goal, x),
        ]
        return self.rng.choice(makers)

    def packed(self, extents: tuple[parts.NewExtent, ...]) -> tuple[parts.PackedFile, ...]:
        """Deal the extents out to files: new, existing, impossible ones, and the same one twice."""
        rng = self.rng
        files: list[parts.PackedFile] = []
        while extents or rng.random() < 0.3:
            count = rng.randint(0, 2)
            version, mtime_ms = rng.choice([0] * 9 + [1 << 40]), rng.choice([0, 0, 9, -1])
            path = rng.choice(files).path if files and rng.random() < 0.2 else self.path(fresh=True)
            files.append(parts.PackedFile(path, extents[:count], mtime_ms, version))
            extents = extents[count:]
        return tuple(files)

    def ranges(self) -> Callable[[parts.CallId], m.Message]:
        """Draw a truncate, an overwrite or a concat."""
        rng, path, tree = self.rng, self.path(), self.judge.tree
        node = tree.get(path)
        size = node.size if isinstance(node, NaiveFile) else 5
        offset = rng.choice([0, size, size + 1, -1, *[rng.randint(0, size) for _ in range(8)]])
        chunks, extents = self.chunks_and_extents()
        version = rng.choice([0] * 9 + [1 << 40])
        files = [known for known in tree if isinstance(tree[known], NaiveFile)]
        sources = tuple(rng.sample(files, min(len(files), rng.randint(0, 3)))) + (
            (self.path(),) if rng.random() < 0.2 else ()
        )
        keep, merging = self.flag(), rng.random() < 0.05
        makers: list[Callable[[parts.CallId], m.Message]] = [
            lambda call: m.Truncate(call, path, offset),
            lambda call: m.WriteRange(call, path, offset, chunks, extents, version, merging),
            lambda call: m.WriteRange(call, path, offset, chunks, extents),
            lambda call: m.Concat(call, path, sources, keep),
        ]
        return rng.choice(makers)

    def snapshots(self) -> Callable[[parts.CallId], m.Message]:
        """Draw a command of snapshots or quotas, or a copy out of a snapshot, or a try to change one."""
        rng, judge = self.rng, self.judge
        known = [(path, name) for path, shelf in judge.snapshots.items() for name in shelf]
        path, name = rng.choice(known) if known and rng.random() < 0.8 else (self.path(), rng.choice(["s", "t", "."]))
        inner = self.inner(path, name)
        inside = "/".join([path.rstrip("/"), ".snapshot", *[name][: rng.choice([1, 1, 1, 0])]])
        deep = f"{inside}/{inner}" if inner else inside
        safety = rng.choice(["", "", "safe", "s", ".snapshot", "x/y"])
        target, x, y = self.path(fresh=True), self.flag(), self.flag()
        limit = rng.choice([0, -1, 2, 5, 9, -2])
        size = rng.choice([0, -1, 20, 60, 200, 1 << 60])
        makers: list[Callable[[parts.CallId], m.Message]] = [
            lambda call: m.CreateSnapshot(call, self.path(), rng.choice(["s", "t", "u", "", "a/b"])),
            lambda call: m.CreateSnapshot(call, self.path(), "s"),
            lambda call: m.RemoveSnapshot(call, path, name),
            lambda call: m.RestoreSnapshot(call, path, name, "", safety),
            lambda call: m.RestoreSnapshot(call, path, name, inner, safety),
            lambda call: m.Copy(call, deep, target, x, y),
            lambda call: m.Delete(call, deep, x),
            lambda call: m.Truncate(call, deep, 0),
            lambda call: m.Rename(call, deep, target, x),
            lambda call: m.Rename(call, target, deep, x),
            lambda call: m.SetQuota(call, self.path(), limit, size),
            lambda call: m.SetQuota(call, self.path(), limit, size),
        ]
        return rng.choice(makers)

    def inner(self, path: str, name: str) -> str:
        """Return a relative path in a snapshot, or one that is not there."""
        snapshot = self.judge.snapshots.get(path, {}).get(name)
        known = sorted(snapshot.tree) if snapshot else []
        return self.rng.choice([*known, "/a", "/a/b"])[1:]

    def handle(self) -> ChunkHandle:
        """Return an old handle of any fate."""
        return ChunkHandle(self.rng.randrange(self.next_number).to_bytes(16, "big"))

    def chunks_and_extents(self) -> tuple[tuple[parts.NewChunk, ...], tuple[parts.NewExtent, ...]]:
        rng = self.rng
        chunks: list[parts.NewChunk] = []
        extents: list[parts.NewExtent] = []
        for index in range(rng.choice([0, 1, 1, 2, 3])):
            handle = ChunkHandle(self.next_number.to_bytes(16, "big"))
            self.next_number += 1
            length, servers = rng.randint(1, 9), rng.sample(SERVERS[:3], rng.randint(1, 3))
            chunks.append(parts.NewChunk(handle, length, handle[15] * 7, tuple(servers)))
            for _ in range(rng.randint(0, 2)):
                offset = rng.randrange(length)
                extents.append(parts.NewExtent(index, offset, rng.randint(1, length - offset)))
            extents.append(parts.NewExtent(index, 0, length))
        rng.shuffle(extents)
        if chunks and rng.random() < 0.15:
            self.break_one(chunks, extents)
        return tuple(chunks), tuple(extents)

    def break_one(self, chunks: list[parts.NewChunk], extents: list[parts.NewExtent]) -> None:
        chunk, rng = chunks[0], self.rng
        handle, length, crc, servers = chunk.handle, chunk.length, chunk.crc, chunk.servers
        wrong_extents = [parts.NewExtent(0, length, 1), parts.NewExtent(len(chunks), 0, 1), parts.NewExtent(0, -1, 1)]
        wrong_chunks = [
            parts.NewChunk(handle, length, crc, ()),
            parts.NewChunk(handle, length, crc, (*servers, STRANGER)),
            parts.NewChunk(handle, length, crc, (servers[0], servers[0])),
            parts.NewChunk(ChunkHandle(b"short"), length, crc, servers),
            parts.NewChunk(handle, (1 << 28) + 1, crc, servers),
            parts.NewChunk(handle, length, 1 << 32, servers),
            parts.NewChunk(self.handle(), length, crc, servers),
            chunks[-1],
        ]
        if rng.random() < 0.3:
            extents.append(rng.choice(wrong_extents))
        elif rng.random() < 0.1:
            extents[:] = [extent for extent in extents if extent.chunk]
        else:
            chunks[0] = rng.choice(wrong_chunks)

    def trash(self) -> Callable[[parts.CallId], m.Message]:
        rng, trash = self.rng, self.judge.trash
        number = rng.choice([*trash, 99, -1])
        path = trash[number].path if number in trash and rng.random() < 0.9 else self.path()
        if rng.random() < 0.6:
            return lambda call: m.Undelete(call, path, rng.choice([0, number]))
        if rng.random() < 0.6:
            return lambda call: m.Delete(call, self.path(), recursive=True)
        return lambda call: m.EmptyTrash(call, rng.choice([0, number, number]))

    def duty(self) -> m.Message:
        rng = self.rng
        server_id = rng.choice([*SERVERS, STRANGER])
        handles = [self.handle() for _ in range(rng.randrange(8))]
        chunks = self.judge.chunks
        changes = [
            ReplicaChange(handle, self.flag(), chunks[handle].length if handle in chunks else 1, handle[15] * 7)
            for handle in handles
        ]
        makers: list[Callable[[], m.Message]] = [
            lambda: PutServer(rng.choice(SERVERS), "c", "h:1", ""),
            lambda: ChangeReplicas(server_id, tuple(changes)),
            lambda: ChangeReplicas(server_id, tuple(changes)),
            lambda: ForgetGarbage(server_id, tuple(handles)),
            lambda: SetServerMode(server_id, self.flag(), rng.choice([0, 5, -1])),
            lambda: TrimReplicas(server_id, tuple(handles)),
            lambda: TrimReplicas(server_id, tuple(chunks)),
            lambda: ForgetServer(rng.choice([SERVERS[3], server_id])),
            lambda: SetBalance(rng.choice([0, 1, 2, 3]), rng.choice([0, 7, -1])),
            lambda: ExpireTrash(rng.choice([-1, 1, 9])),
            lambda: SetOptions(rng.choice([0, KEEP_MS, KEEP_MS, KEEP_MS]), rng.randint(1, 3)),
        ]
        return rng.choice(makers)()


def tree_of(state: MasterState, root: str = "") -> dict[str, object]:
    """Read a whole tree through the public queries, in small pages; return it by path relative to `root`."""
    found: dict[str, object] = {"/": state.stat(root or "/").mtime_ms}
    todo = ["/"]
    while todo:
        directory = todo.pop()
        after, has_more = "", True
        while has_more:
            entries, has_more = state.list_directory((root + directory).rstrip("/") or "/", after, 2)
            for entry in entries:
                after, path = entry.path, f"{directory.rstrip('/')}/{entry.path}"
                if entry.kind is parts.Kind.DIRECTORY:
                    found[path] = entry.mtime_ms
                    todo.append(path)
                else:
                    found[path] = (_extents_of(state, root + path, entry), entry.replication, entry.mtime_ms)
    return found


def _extents_of(state: MasterState, path: str, entry: parts.FileStatus) -> list[tuple[ChunkHandle, int, int]]:
    found: list[tuple[ChunkHandle, int, int]] = []
    offset, has_more = 0, True
    while has_more:
        view = state.extents(path, len(found), 2, entry.version)
        assert view.first_offset == offset
        found += [(extent.handle, extent.chunk_offset, extent.length) for extent in view.extents]
        offset += sum(extent.length for extent in view.extents)
        has_more = view.has_more
    assert (offset, len(found)) == (entry.size, entry.extent_count)
    return found


def without_sessions(state: MasterState) -> list[object]:
    """Return all that is dumped but sessions, shared subtrees written out: a failed command may end the sharing."""
    pieces = [msgspec.msgpack.decode(piece) for piece in state.dump()][1:-1]
    trees = _written_out([row for tag, rows in pieces if tag == 4 for row in rows])
    return [*[row for tag, rows in pieces if tag not in (4, 6) for row in rows], trees]


def _written_out(rows: list[list[Any]]) -> list[Any]:
    """Nest the rows of nodes: (depth, name, inode, mtime, version, replication, ...); a directory has replication 0."""
    top: list[Any] = []
    stack = [top]
    directories: list[list[Any]] = []
    is_copy = False  # of a shared directory, in the making: a failed command may begin one
    for depth, *fields in rows:
        is_copy = fields[0] == "separation" if depth == 0 else is_copy
        if is_copy:
            continue
        del stack[depth + 1 :]
        children: list[Any] = []
        if not fields[4]:
            children = directories[fields[3] - 1] if fields[3] else children
            directories.append(children)
            fields[3] = 0
        stack[depth].append((fields, children))
        stack.append(children)
    return top
