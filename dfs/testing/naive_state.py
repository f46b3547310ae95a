"""The replicated state once more, naively: a judge for the real one.

Owns: the meaning of every command in its simplest form (full paths in dicts, everything recomputed by a walk).
Refuses to know: how the real state keeps anything, sessions, and speed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from dfs import errors
from dfs.ids import ChunkHandle, ServerId
from dfs.net import messages as m
from dfs.net import parts
from dfs.paths import ROOT, join, parent, split

Extents = list[tuple[ChunkHandle, int, int]]
CHUNK_LENGTH_MAX = 256 * 1024 * 1024


@dataclass
class NaiveFile:
    """A file as a plain list of extents."""

    extents: Extents
    replication: int
    mtime_ms: int

    @property
    def size(self) -> int:
        return sum(length for _, _, length in self.extents)


@dataclass
class NaiveChunk:
    """A chunk with its registered replicas; references are counted when asked for."""

    length: int
    crc: int
    servers: set[ServerId]


Tree = dict[str, NaiveFile | int]  # path -> file, or the mtime of a directory


@dataclass
class NaiveTrash:
    """A deleted subtree by relative path."""

    path: str
    deleted_ms: int
    tree: Tree  # paths below `path`, "" is itself


@dataclass
class NaiveState:
    """`apply` returns the error code of a command, or "" after doing it."""

    trash_keep_ms: int
    replication: int
    now_ms: int = 0
    tree: Tree = field(default_factory=lambda: {ROOT: 0})
    trash: dict[int, NaiveTrash] = field(default_factory=dict)
    next_trash_id: int = 1
    chunks: dict[ChunkHandle, NaiveChunk] = field(default_factory=dict)
    garbage: dict[ChunkHandle, set[ServerId]] = field(default_factory=dict)
    servers: set[ServerId] = field(default_factory=set)
    failures: list[tuple[int, str]] = field(default_factory=list)  # of the last call for many files
    modes: dict[ServerId, tuple[bool, int]] = field(default_factory=dict)
    balance: tuple[int, int] = (0, 0)

    def apply(self, now_ms: int, command: Any) -> str:
        self.now_ms = max(self.now_ms, now_ms)
        try:
            getattr(self, re.sub("(?=[A-Z])", "_", type(command).__name__).lower())(command)
        except errors.DfsError as error:
            return error.code
        self._collect()
        return ""

    # --- what follows from the rest

    def references(self) -> dict[ChunkHandle, list[int]]:
        """Return for each used chunk the replication of each extent that uses it."""
        found: dict[ChunkHandle, list[int]] = {}
        for file in (file for tree in self.trees() for file in tree.values() if isinstance(file, NaiveFile)):
            for handle, _, _ in file.extents:
                found.setdefault(handle, []).append(file.replication)
        return found

    def trees(self) -> list[Tree]:
        return [self.tree, *(entry.tree for entry in self.trash.values())]

    def _collect(self) -> None:
        used = self.references()
        for handle in [handle for handle in self.chunks if handle not in used]:
            chunk = self.chunks.pop(handle)
            if chunk.servers:
                self.garbage[handle] = chunk.servers

    def size_of(self, tree: Tree) -> int:
        return sum(file.size for file in tree.values() if isinstance(file, NaiveFile))

    # --- names

    def _look(self, path: str, *, parents: bool = False) -> NaiveFile | int | None:
        parts = split(path)
        ancestor = ROOT
        for name in parts[:-1]:
            ancestor = join(ancestor, name)
            if isinstance(self.tree.get(ancestor), NaiveFile):
                raise errors.NotADirectory(ancestor)
            if ancestor not in self.tree and not parents:
                raise errors.NotFound(ancestor)
        return self.tree.get(path)

    def _need(self, path: str) -> NaiveFile | int:
        found = self._look(path)
        if found is None:
            raise errors.NotFound(path)
        return found

    def _put(self, path: str, node: NaiveFile | int) -> None:
        missing = []
        ancestor = parent(path)
        while ancestor not in self.tree:
            missing.append(ancestor)
            ancestor = parent(ancestor)
        for directory in reversed(missing):
            self.tree[directory] = self.now_ms
            self.tree[parent(directory)] = self.now_ms
        if path not in self.tree:
            self.tree[parent(path)] = self.now_ms
        self.tree[path] = node

    def _below(self, path: str) -> Tree:
        """Return the subtree at `path` by relative path."""
        return {
            known[len(path) :]: node
            for known, node in self.tree.items()
            if known == path or known.startswith(path.rstrip("/") + "/")
        }

    def _cut(self, path: str) -> Tree:
        found = self._below(path)
        for known in found:
            del self.tree[path + known]
        self.tree[parent(path)] = self.now_ms
        return found

    def _make_directory(self, command: m.MakeDirectory) -> None:
        found = self._look(command.path, parents=command.parents)
        if isinstance(found, int) and command.parents:
            return
        if found is not None:
            raise errors.AlreadyExists(command.path)
        self._put(command.path, self.now_ms)

    def _remove_directory(self, command: m.RemoveDirectory) -> None:
        found = self._need(command.path)
        if command.path == ROOT:
            raise errors.InvalidArgument(command.path)
        if isinstance(found, NaiveFile):
            raise errors.NotADirectory(command.path)
        if len(self._below(command.path)) > 1:
            raise errors.DirectoryNotEmpty(command.path)
        self._cut(command.path)

    def _delete(self, command: m.Delete) -> None:
        found = self._need(command.path)
        if command.path == ROOT:
            raise errors.InvalidArgument(command.path)
        if isinstance(found, int) and not command.recursive:
            raise errors.IsADirectory(command.path)
        tree = self._cut(command.path)
        if not command.skip_trash and self.trash_keep_ms:
            self.trash[self.next_trash_id] = NaiveTrash(command.path, self.now_ms, tree)
            self.next_trash_id += 1

    def _replaceable(self, target: str, source: NaiveFile | int, overwrite: bool) -> None:
        found = self._look(target)
        if found is not None and (isinstance(found, int) or isinstance(source, int) or not overwrite):
            raise errors.AlreadyExists(target)

    def _rename(self, command: m.Rename) -> None:
        found = self._need(command.source)
        if command.source == ROOT:
            raise errors.InvalidArgument(command.source)
        if command.source == command.target:
            return
        if isinstance(found, int) and command.target.startswith(command.source + "/"):
            raise errors.InvalidArgument(command.target)
        self._replaceable(command.target, found, command.overwrite)
        tree = self._cut(command.source)
        if command.target in self.tree:
            self._cut(command.target)
        for path, node in tree.items():
            self.tree[command.target + path] = node
        self.tree[parent(command.target)] = self.now_ms

    def _read(self, path: str) -> tuple[NaiveFile | int, Tree]:
        """Return what is at a path, and all below it by relative path."""
        return self._need(path), self._below(path)

    def _copy(self, command: m.Copy) -> None:
        found, tree = self._read(command.source)
        if isinstance(found, NaiveFile):
            if command.source == command.target:
                raise errors.InvalidArgument(command.target)
        elif not command.recursive:
            raise errors.IsADirectory(command.source)
        elif command.source == ROOT or (command.target + "/").startswith(command.source + "/"):
            raise errors.InvalidArgument(command.target)
        self._replaceable(command.target, found, command.overwrite)
        is_new = command.target not in self.tree
        for path, node in tree.items():
            copied = replace(node, mtime_ms=self.now_ms) if isinstance(node, NaiveFile) else self.now_ms
            self.tree[command.target + path] = copied
        if is_new:
            self.tree[parent(command.target)] = self.now_ms

    def _touch(self, command: m.Touch) -> None:
        mtime_ms = self._time(command.mtime_ms)
        found = self._look(command.path)
        if isinstance(found, NaiveFile):
            found.mtime_ms = mtime_ms
        elif found is not None:
            self.tree[command.path] = mtime_ms
        elif command.no_create:
            raise errors.NotFound(command.path)
        else:
            self._put(command.path, NaiveFile([], self.replication, mtime_ms))

    def _time(self, mtime_ms: int) -> int:
        if not 0 <= mtime_ms <= 253_402_300_799_999:
            raise errors.InvalidArgument("time")
        return mtime_ms or self.now_ms

    # --- content

    def _content(self, chunks: tuple[parts.NewChunk, ...], extents: tuple[parts.NewExtent, ...]) -> Extents:
        if len(chunks) > m.COMMIT_CHUNKS_MAX or len(extents) > m.COMMIT_CHUNKS_MAX:
            raise errors.LimitExceeded("count")
        for chunk in chunks:
            if len(chunk.handle) != 16:
                raise errors.InvalidArgument("handle")
            if chunk.handle in self.chunks or chunk.handle in self.garbage:
                raise errors.ChunkExists("handle")
            sound = 0 < chunk.length <= CHUNK_LENGTH_MAX and 0 <= chunk.crc < 1 << 32
            placed = 0 < len(chunk.servers) <= 16 and len(set(chunk.servers)) == len(chunk.servers)
            if not (sound and placed and self.servers.issuperset(chunk.servers)):
                raise errors.InvalidArgument("chunk")
        if len({chunk.handle for chunk in chunks}) < len(chunks):
            raise errors.InvalidArgument("twice")
        for extent in extents:
            if extent.chunk not in range(len(chunks)) or extent.offset < 0 or extent.length <= 0:
                raise errors.InvalidArgument("extent")
            if extent.offset + extent.length > chunks[extent.chunk].length:
                raise errors.InvalidArgument("extent")
        if {extent.chunk for extent in extents} != set(range(len(chunks))):
            raise errors.InvalidArgument("unused")
        return [(chunks[extent.chunk].handle, extent.offset, extent.length) for extent in extents]

    def _learn(self, chunks: tuple[parts.NewChunk, ...]) -> None:
        for chunk in chunks:
            self.chunks[chunk.handle] = NaiveChunk(chunk.length, chunk.crc, set(chunk.servers))

    def _commit_file(self, command: m.CommitFile) -> None:
        replication = self._goal(command.replication or self.replication)
        mtime_ms = self._time(command.mtime_ms)
        found = self._look(command.path, parents=command.parents)
        if isinstance(found, int):
            raise errors.IsADirectory(command.path)
        if found is not None and not command.overwrite:
            raise errors.AlreadyExists(command.path)
        extents = self._content(command.chunks, command.extents)
        self._learn(command.chunks)
        self._put(command.path, NaiveFile(extents, replication, mtime_ms))

    def _commit_many(self, command: m.CommitMany) -> None:
        if len(command.files) > m.PACKED_FILES_MAX:
            raise errors.LimitExceeded("files")
        replication = self._goal(command.replication or self.replication)
        extents = self._content(command.chunks, tuple(extent for file in command.files for extent in file.extents))
        self._learn(command.chunks)
        self.failures = []
        for index, file in enumerate(command.files):
            own, extents = extents[: len(file.extents)], extents[len(file.extents) :]
            try:
                mtime_ms = self._time(file.mtime_ms)
                found = self._look(file.path, parents=command.parents)
                if isinstance(found, int):
                    raise errors.IsADirectory(file.path)
                if file.version:
                    raise errors.Conflict(file.path)  # versions are not kept here: the tests ask for impossible ones
                if found is not None and not command.overwrite:
                    raise errors.AlreadyExists(file.path)
                self._put_one(file.path, NaiveFile(own, replication, mtime_ms))
            except errors.DfsError as error:
                self.failures.append((index, error.code))

    def _put_one(self, path: str, file: NaiveFile) -> None:
        self._put(path, file)

    def _append_extents(self, command: m.AppendExtents) -> None:
        found = self._look(command.path)
        if isinstance(found, int):
            raise errors.IsADirectory(command.path)
        if found is None and not command.create:
            raise errors.NotFound(command.path)
        extents = self._content(command.chunks, command.extents)
        self._learn(command.chunks)
        if found is None:
            self._put(command.path, NaiveFile(extents, self.replication, self.now_ms))
        elif extents:
            self._put(command.path, NaiveFile(found.extents + extents, found.replication, self.now_ms))

    def _goal(self, replication: int) -> int:
        if not 1 <= replication <= m.REPLICATION_MAX:
            raise errors.InvalidArgument("replication")
        return replication

    def _set_replication(self, command: m.SetReplication) -> None:
        self._goal(command.replication)
        if isinstance(self._need(command.path), int) and not command.recursive:
            raise errors.IsADirectory(command.path)
        for node in self._below(command.path).values():
            if isinstance(node, NaiveFile):
                node.replication = command.replication

    # --- trash

    def _undelete(self, command: m.Undelete) -> None:
        same = [number for number, entry in self.trash.items() if entry.path == command.path]
        number = command.trash_id or max(same, default=0)
        if number not in self.trash:
            raise errors.NotFound(command.path)
        if self.trash[number].path != command.path:
            raise errors.InvalidArgument(command.path)
        if self._look(command.path, parents=True) is not None:
            raise errors.AlreadyExists(command.path)
        tree = self.trash.pop(number).tree
        self._put(command.path, tree.pop(""))
        for path, node in tree.items():
            self.tree[command.path + path] = node

    def _empty_trash(self, command: m.EmptyTrash) -> None:
        if command.trash_id and command.trash_id not in self.trash:
            raise errors.NotFound("trash")
        for number in [command.trash_id] if command.trash_id else list(self.trash):
            del self.trash[number]

    # --- duties

    def _put_server(self, command: Any) -> None:
        self.servers.add(command.server_id)

    def _set_options(self, command: Any) -> None:
        self.trash_keep_ms, self.replication = command.trash_keep_ms, command.replication

    def _expire_trash(self, command: Any) -> None:
        for number in list(self.trash)[: max(0, command.limit)]:
            if self.trash[number].deleted_ms + self.trash_keep_ms <= self.now_ms:
                del self.trash[number]

    def _change_replicas(self, command: Any) -> None:
        for change in command.changes if command.server_id in self.servers else ():
            chunk = self.chunks.get(change.handle)
            if chunk is None:
                if not change.is_added:
                    self._forget(change.handle, command.server_id)
            elif not change.is_added:
                chunk.servers.discard(command.server_id)
            elif (chunk.length, chunk.crc) == (change.length, change.crc):
                chunk.servers.add(command.server_id)

    def _forget_garbage(self, command: Any) -> None:
        for handle in command.handles:
            self._forget(handle, command.server_id)

    def _forget(self, handle: ChunkHandle, server_id: ServerId) -> None:
        servers = self.garbage.get(handle, set())
        servers.discard(server_id)
        if not servers:
            self.garbage.pop(handle, None)

    def _set_server_mode(self, command: Any) -> None:
        if command.server_id not in self.servers:
            raise errors.NotFound("server")
        self._time(command.maintenance_until_ms)
        self.modes[command.server_id] = (command.is_leaving, command.maintenance_until_ms)

    def _forget_server(self, command: Any) -> None:
        if command.server_id not in self.servers:
            raise errors.NotFound("server")
        naming = [chunk.servers for chunk in self.chunks.values()] + list(self.garbage.values())
        if any(command.server_id in servers for servers in naming):
            raise errors.Conflict("server")
        self.servers.discard(command.server_id)
        self.modes.pop(command.server_id, None)

    def _trim_replicas(self, command: Any) -> None:
        used = self.references()
        for handle in command.handles:
            chunk = self.chunks.get(handle)
            if chunk is not None and len(chunk.servers) > max(used[handle]):
                chunk.servers.discard(command.server_id)

    def _set_balance(self, command: Any) -> None:
        if command.mode not in (0, 1, 2) or not 0 <= command.threshold_ppm <= 1_000_000:
            raise errors.InvalidArgument("balance")
        self.balance = (command.mode, command.threshold_ppm)

    def _expire_sessions(self, command: Any) -> None:
        """Sessions are not modelled."""
