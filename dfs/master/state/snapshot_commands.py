"""Handlers of the mutations of snapshots: create, remove, restore.

Owns: their semantics. Refuses to know: sessions, encoding, and how trees share subtrees (dfs.master.state.sharing).
Each handler checks everything, then changes everything; it raises a DfsError before the first change or not at all.

All three are O(depth), whatever the size of the directory: nothing is copied. Who changes something in the live
directory afterwards pays for a copy of the directories on the way to it, once.
"""

from __future__ import annotations

from copy import copy

from dfs.errors import AlreadyExists, HasSnapshots, InvalidArgument, InvalidName, LimitExceeded, NotADirectory
from dfs.master.state import sharing
from dfs.master.state.namespace import Place, check_changeable, descend, shown, status_of
from dfs.master.state.nodes import Directory, File, Node, count_nodes, stored_size_of
from dfs.master.state.parts import SIZE_TOTAL_MAX, StateParts
from dfs.master.state.quotas import Growth
from dfs.master.state.sharing import exchange, share
from dfs.master.state.snapshots import SNAPSHOTS_MAX
from dfs.net.messages import CreateSnapshot, RemoveSnapshot, RestoreSnapshot, SnapshotReply, StatReply
from dfs.paths import SNAPSHOTS, check_name, join, split


def create_snapshot(parts: StateParts, command: CreateSnapshot) -> SnapshotReply:
    directory = _directory(parts, command.path)
    _check_new(parts, command.path, command.name, directory)
    _add(parts, command.path, command.name, directory)
    return SnapshotReply(parts.snapshots.status(command.path, command.name))


def remove_snapshot(parts: StateParts, command: RemoveSnapshot) -> SnapshotReply:
    _directory(parts, command.path)
    parts.snapshots.get(command.path, command.name)
    reply = SnapshotReply(parts.snapshots.status(command.path, command.name))
    parts.release(parts.snapshots.remove(command.path, command.name, parts.clock_ms))
    return reply


def restore_snapshot(parts: StateParts, command: RestoreSnapshot) -> StatReply:
    """Go back. Quotas stay with their paths; those of directories that are no more go with them."""
    _directory(parts, command.path)
    directory = parts.namespace.locate(command.path).node  # now, while nothing is changed: it may take several tries
    assert isinstance(directory, Directory), "looked at just now"
    root = parts.snapshots.get(command.path, command.name)
    path = join(command.path, command.inner) if command.inner else command.path
    source = descend(
        root, split(path)[len(split(command.path)) :], join(command.path, f"{SNAPSHOTS}/{command.name}/{command.inner}")
    )
    if command.safety_name:
        _check_new(parts, command.path, command.safety_name, directory)
        _check_small(directory, split(path)[len(split(command.path)) : -1] if command.inner else None, path)
    _check_restorable(parts, command, path, source)
    if command.safety_name:
        _add(parts, command.path, command.safety_name, directory)
    place = parts.namespace.locate(path, parents=True)
    if isinstance(source, Directory) and isinstance(place.node, Directory):
        _exchange(parts, place, place.node, source)
    else:
        if place.node is not None:
            parts.release(parts.namespace.unlink(place, parts.clock_ms))
        parts.namespace.link(place, _twin(parts, source), parts.clock_ms)
    for known in parts.quotas.paths_below(path):
        if not isinstance(_node_or_none(parts, known), Directory):
            parts.quotas.drop(known)
    assert place.node is not None, "restored to nothing"
    return StatReply(status_of(path, place.node))


def _directory(parts: StateParts, path: str) -> Directory:
    """Return the directory at a path, without giving it a table of its own."""
    check_changeable(path)
    node = parts.namespace.find(path)
    if isinstance(node, File):
        raise NotADirectory(f"{shown(path)} is a file; only directories have snapshots (cp keeps a file at no cost)")
    return node


def _check_new(parts: StateParts, path: str, name: str, directory: Directory) -> None:
    """Raise unless a directory may get a snapshot of this name."""
    check_name(name)
    if name == SNAPSHOTS:
        raise InvalidName(f"a snapshot cannot be named {name!r}")
    if parts.snapshots.has(path, name):
        raise AlreadyExists(f"{shown(path)} has a snapshot {shown(name)} already; choose another name, or remove it")
    if parts.snapshots.count >= SNAPSHOTS_MAX:
        raise LimitExceeded(f"there are {SNAPSHOTS_MAX} snapshots, the most there can be; remove some")
    if parts.snapshots.stored_size + directory.stored_size > SIZE_TOTAL_MAX:
        raise LimitExceeded(f"the snapshots would show more than {SIZE_TOTAL_MAX} bytes; remove some")


def _add(parts: StateParts, path: str, name: str, directory: Directory) -> None:
    if parts.snapshots.shelf(path) is None:
        parts.snapshots.open_shelf(path, parts.namespace.draw_id(), parts.clock_ms)
    parts.snapshots.add(path, name, share(directory), parts.clock_ms)


def _check_restorable(parts: StateParts, command: RestoreSnapshot, path: str, source: Node) -> None:
    """Raise unless what is at `path` now may give way to `source`."""
    inner = parts.snapshots.first_below(path, itself=path != command.path)
    if inner is not None:
        raise HasSnapshots(
            f"{shown(path)} cannot be restored: {shown(inner)} in it has snapshots of its own, which would go; remove "
            "them first, or restore the other entries one by one"
        )
    if path == "/" and isinstance(source, File):
        raise InvalidArgument("the root directory cannot become a file")
    place = parts.namespace.look(path, parents=True)
    names, stored_size = count_nodes(source), stored_size_of(source)
    if place.node is not None:
        names, stored_size = names - count_nodes(place.node), stored_size - stored_size_of(place.node)
    names += len(place.missing)
    is_directory = isinstance(source, Directory)
    parts.quotas.check((Growth(place, names, stored_size, is_inside=is_directory),))
    parts.require_total(max(0, names), stored_size)
    for known in parts.quotas.paths_below(path):
        now, then = parts.namespace.find(known), _inside(source, split(known)[len(split(path)) :])
        if known != path and isinstance(now, Directory) and isinstance(then, Directory):
            growth = count_nodes(then) - count_nodes(now)
            parts.quotas.check_directory(known, now, growth, then.stored_size - now.stored_size)


def _check_small(directory: Directory, names: tuple[str, ...] | None, path: str) -> None:
    """Raise `LimitExceeded` when a part can only be restored in steps after the snapshot that keeps the present."""
    node: Node | None = directory if names is not None else None
    for name in (*(names or ()), ""):
        if isinstance(node, Directory):
            if len(node.entries) > sharing.AT_ONCE_MAX:
                raise LimitExceeded(
                    f"{shown(path)} is in a directory of {len(node.entries)} entries, over {sharing.AT_ONCE_MAX}: keep "
                    "the present by `dfs snapshot create` first, then restore with --no-safety"
                )
            node = node.entries.get(name) if name else None


def _inside(source: Node, names: tuple[str, ...]) -> Node | None:
    node: Node | None = source
    for name in names:
        node = node.entries.get(name) if isinstance(node, Directory) else None
    return node


def _exchange(parts: StateParts, place: Place, directory: Directory, source: Directory) -> None:
    """Give a directory the content of `source`; the totals above it follow."""
    for above in place.chain:
        above.account(directory, -1)
    before = exchange(directory, source)
    for above in place.chain:
        above.account(directory, 1)
    parts.release(before)


def _twin(parts: StateParts, source: Node) -> Node:
    """Return what a snapshot holds, for another tree."""
    if isinstance(source, Directory):
        return share(source)
    made: File = copy(source)
    parts.reference(made)
    return made


def _node_or_none(parts: StateParts, path: str) -> Node | None:
    return _inside(parts.namespace.root, split(path))
