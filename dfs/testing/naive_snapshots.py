"""The naive judge, continued: ranges of files, snapshots and quotas.

Owns: the meaning of these commands in its simplest form: content as lists that are sliced, a snapshot as a deep copy, a
quota as a look at the result, which is undone when it is too much. Refuses to know: how the real state does any of it.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dfs import errors
from dfs.master.state import sharing
from dfs.net import messages as m
from dfs.paths import ROOT, is_below, join, parent, split, split_snapshot
from dfs.testing.naive_state import Extents, NaiveFile, NaiveState, Tree

T = TypeVar("T")


@dataclass
class NaiveSnapshot:
    """What was below a directory, by relative path ("" is itself)."""

    created_ms: int
    tree: Tree


@dataclass
class NaiveQuota:
    """Limits, 0 = none."""

    names: int
    stored_size: int


@dataclass
class NaiveWholeState(NaiveState):
    """The judge of all commands."""

    snapshots: dict[str, dict[str, NaiveSnapshot]] = field(default_factory=dict)  # directory -> name -> snapshot
    quotas: dict[str, NaiveQuota] = field(default_factory=dict)

    def apply(self, now_ms: int, command: Any) -> str:
        before = deepcopy({name: value for name, value in self.__dict__.items() if name != "quotas"})
        quotas = dict(self.quotas)
        used = {id(quota): self.used(path) for path, quota in quotas.items()}
        code = super().apply(now_ms, command)
        if not code and any(self._exceeds(path, quota, used) for path, quota in self.quotas.items()):
            code = errors.QuotaExceeded.code
        if code:
            self.__dict__.update(before, quotas=quotas, now_ms=self.now_ms)
        return code

    # --- what follows from the rest

    def trees(self) -> list[Tree]:
        shelves = self.snapshots.values()
        return [*super().trees(), *(snapshot.tree for shelf in shelves for snapshot in shelf.values())]

    def used(self, path: str) -> tuple[int, int]:
        """Return the names and stored bytes below a directory."""
        nodes = [node for known, node in self._below(path).items() if known]
        return len(nodes), sum(node.size * node.replication for node in nodes if isinstance(node, NaiveFile))

    def _exceeds(self, path: str, quota: NaiveQuota, used: dict[int, tuple[int, int]]) -> bool:
        """Return whether a limit is passed that was not passed, or less so, before."""
        now, before = self.used(path), used.get(id(quota), (1 << 62, 1 << 62))
        limits = quota.names, quota.stored_size
        return any(
            limit and is_now > limit and is_now > was for limit, is_now, was in zip(limits, now, before, strict=True)
        )

    # --- names

    def _look(self, path: str, *, parents: bool = False) -> NaiveFile | int | None:
        cut = split_snapshot(path)
        if cut is not None:
            raise errors.ReadOnly(path) if cut[1] else errors.InvalidName(path)
        return super()._look(path, parents=parents)

    def _put_one(self, path: str, file: NaiveFile) -> None:
        before = dict(self.tree)
        used = {id(quota): self.used(known) for known, quota in self.quotas.items()}
        super()._put_one(path, file)
        if any(self._exceeds(known, quota, used) for known, quota in self.quotas.items()):
            self.tree = before
            raise errors.QuotaExceeded(path)

    def _read(self, path: str) -> tuple[NaiveFile | int, Tree]:
        cut = split_snapshot(path)
        if cut is None:
            return super()._read(path)
        directory, inner = cut
        if isinstance(self._need(directory), NaiveFile):
            raise errors.NotADirectory(directory)
        if directory not in self.snapshots:
            raise errors.NotFound(path)
        shelf: Tree = {"": 0}
        for name, snapshot in self.snapshots[directory].items():
            shelf.update({f"/{name}{known}": node for known, node in snapshot.tree.items()})
        return self._inside(shelf, inner)

    def _inside(self, tree: Tree, inner: tuple[str, ...]) -> tuple[NaiveFile | int, Tree]:
        at = ""
        for name in inner:
            if isinstance(tree[at], NaiveFile):
                raise errors.NotADirectory(at)
            at = f"{at}/{name}"
            if at not in tree:
                raise errors.NotFound(at)
        found = {known[len(at) :]: node for known, node in tree.items() if known == at or known.startswith(at + "/")}
        return tree[at], found

    def _delete(self, command: m.Delete) -> None:
        is_directory = isinstance(self._look(command.path), int)
        super()._delete(command)
        self._gone(command.path, is_directory)

    def _remove_directory(self, command: m.RemoveDirectory) -> None:
        super()._remove_directory(command)
        self._gone(command.path, True)

    def _gone(self, path: str, is_directory: bool) -> None:
        if any(is_below(known, path) for known in self.snapshots):
            raise errors.HasSnapshots(path)
        if is_directory:
            self._drop_quotas(path)

    def _drop_quotas(self, path: str) -> None:
        self.quotas = {known: quota for known, quota in self.quotas.items() if not is_below(known, path)}

    def _rename(self, command: m.Rename) -> None:
        is_directory = isinstance(self._look(command.source), int)
        super()._rename(command)
        if is_directory and command.source != command.target:
            self.snapshots = _moved(self.snapshots, command)
            self.quotas = _moved(self.quotas, command)

    # --- ranges

    def _need_file(self, path: str) -> NaiveFile:
        found = self._need(path)
        if isinstance(found, int):
            raise errors.IsADirectory(path)
        return found

    def _truncate(self, command: m.Truncate) -> None:
        file = self._need_file(command.path)
        if not 0 <= command.size <= file.size:
            raise errors.InvalidArgument("size")
        if command.size != file.size:
            self._set(command.path, file, _slice(file.extents, 0, command.size))

    def _write_range(self, command: m.WriteRange) -> None:
        file = self._need_file(command.path)
        if command.version:
            raise errors.Conflict("no version is modelled")
        if not 0 <= command.offset <= file.size:
            raise errors.InvalidArgument("offset")
        found = self._content(command.chunks, command.extents)
        if command.is_same_content:
            raise errors.InvalidArgument("without a version")
        stop = command.offset + sum(length for _, _, length in found)
        self._learn(command.chunks)
        if found:
            before, after = _slice(file.extents, 0, command.offset), _slice(file.extents, stop, file.size)
            self._set(command.path, file, before + found + after)

    def _concat(self, command: m.Concat) -> None:
        file = self._need_file(command.target)
        if not command.sources or len({*command.sources, command.target}) <= len(command.sources):
            raise errors.InvalidArgument("sources")
        added: Extents = []
        for source in command.sources:
            added += self._need_file(source).extents
        if added:
            self._set(command.target, file, file.extents + added)
        for source in () if command.keep_sources else command.sources:
            self._cut(source)

    def _set(self, path: str, file: NaiveFile, extents: Extents) -> None:
        self.tree[path] = replace(file, extents=extents, mtime_ms=self.now_ms)

    # --- snapshots

    def _need_directory(self, path: str) -> None:
        if isinstance(self._need(path), NaiveFile):
            raise errors.NotADirectory(path)

    def _create_snapshot(self, command: m.CreateSnapshot) -> None:
        self._need_directory(command.path)
        self._check_new(command.path, command.name)
        self._keep(command.path, command.name)

    def _check_new(self, path: str, name: str) -> None:
        if name in ("", ".", "..", ".snapshot") or "/" in name or "\0" in name or len(name.encode()) > 255:
            raise errors.InvalidName(name)
        if name in self.snapshots.get(path, {}):
            raise errors.AlreadyExists(name)

    def _keep(self, path: str, name: str) -> None:
        tree = deepcopy(self._below(path)) if path != ROOT else self._whole()
        self.snapshots.setdefault(path, {})[name] = NaiveSnapshot(self.now_ms, tree)

    def _whole(self) -> Tree:
        return {"" if known == ROOT else known: deepcopy(node) for known, node in self.tree.items()}

    def _remove_snapshot(self, command: m.RemoveSnapshot) -> None:
        self._need_directory(command.path)
        shelf = self.snapshots.get(command.path, {})
        if command.name not in shelf:
            raise errors.NotFound(command.name)
        del shelf[command.name]
        if not shelf:
            del self.snapshots[command.path]

    def _restore_snapshot(self, command: m.RestoreSnapshot) -> None:
        self._need_directory(command.path)
        shelf = self.snapshots.get(command.path, {})
        if command.name not in shelf:
            raise errors.NotFound(command.name)
        path = join(command.path, command.inner) if command.inner else command.path
        inner = split(path)[len(split(command.path)) :]
        then, tree = self._inside(shelf[command.name].tree, inner)
        if command.safety_name:
            self._check_new(command.path, command.safety_name)
            self._check_small(command.path, inner)
        if any(is_below(known, path) and (inner or known != path) for known in self.snapshots):
            raise errors.HasSnapshots(path)
        now = self._look(path, parents=True)
        if command.safety_name:
            self._keep(command.path, command.safety_name)
        for known in [known for known in self.tree if is_below(known, path) and known not in (ROOT, path)]:
            del self.tree[known]
        if isinstance(then, NaiveFile) or not isinstance(now, int):
            self.tree.pop(path, None)
            self._put(path, 0)
        for known, node in deepcopy(tree).items():
            self.tree[join(path, known[1:]) if known else path] = node
        for known in [known for known in self.quotas if not isinstance(self.tree.get(known), int)]:
            del self.quotas[known]

    def _check_small(self, path: str, inner: tuple[str, ...]) -> None:
        """The directories from `path` to the parent of what is restored are small."""
        for name in inner:
            if len([known for known in self.tree if known != path and parent(known) == path]) > sharing.AT_ONCE_MAX:
                raise errors.LimitExceeded(path)
            path = join(path, name)

    # --- quotas

    def _set_quota(self, command: m.SetQuota) -> None:
        self._need_directory(command.path)
        if not -1 <= command.names <= 20_000_000 or not -1 <= command.stored_size <= 1 << 59:
            raise errors.InvalidArgument("quota")
        known = self.quotas.pop(command.path, NaiveQuota(0, 0))
        names = known.names if command.names < 0 else command.names
        stored_size = known.stored_size if command.stored_size < 0 else command.stored_size
        if names or stored_size:
            self.quotas[command.path] = NaiveQuota(names, stored_size)


def _moved(table: dict[str, T], command: m.Rename) -> dict[str, T]:
    """Return a table by path after a directory was renamed."""
    source, target = command.source, command.target
    return {target + path[len(source) :] if is_below(path, source) else path: item for path, item in table.items()}


def _slice(extents: Extents, start: int, stop: int) -> Extents:
    """Return the extents of file bytes [`start`, `stop`)."""
    found: Extents = []
    at = 0
    for handle, offset, length in extents:
        low, high = max(at, start), min(at + length, stop)
        if low < high:
            found.append((handle, offset + low - at, high - low))
        at += length
    return found
