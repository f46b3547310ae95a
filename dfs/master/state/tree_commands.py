"""Handlers of the mutations that move names: mkdir, rmdir, rm, mv, cp, touch, undelete, expunge.

Owns: their semantics. Refuses to know: sessions, encoding, and how content is committed (content_commands).
Each handler checks everything, then changes everything; it raises a DfsError before the first change or not at all.
"""

from __future__ import annotations

from dfs.errors import (
    AlreadyExists,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    LimitExceeded,
    NotADirectory,
    NotFound,
)
from dfs.master.state import extents
from dfs.master.state.namespace import Place, files_below, shown, status_of
from dfs.master.state.nodes import Directory, File, Node, count_nodes, stored_size_of
from dfs.master.state.parts import SUBTREE_EXTENTS_MAX, SUBTREE_MAX, TIME_MAX_MS, StateParts
from dfs.master.state.quotas import Growth
from dfs.master.state.trash import Trashed
from dfs.net.messages import (
    Copy,
    Delete,
    DeleteReply,
    Done,
    EmptyTrash,
    EmptyTrashReply,
    MakeDirectory,
    RemoveDirectory,
    Rename,
    StatReply,
    Touch,
    Undelete,
)
from dfs.net.parts import Kind
from dfs.paths import ROOT

EMPTY_TRASH_MAX = 1_000  # entries that one EmptyTrash releases


def make_directory(parts: StateParts, command: MakeDirectory) -> StatReply:
    place = parts.namespace.locate(command.path, parents=command.parents)
    if isinstance(place.node, Directory) and command.parents:
        return _reply(place)
    if place.node is not None:
        raise AlreadyExists(f"{shown(command.path)} exists already")
    parts.require_room(len(place.missing) + 1, 0, place)
    node = Directory(0, parts.clock_ms)
    parts.namespace.link(place, node, parts.clock_ms)
    node.inode = parts.namespace.draw_id()
    return _reply(place)


def remove_directory(parts: StateParts, command: RemoveDirectory) -> Done:
    place, node = _existing(parts, command.path)
    if place.is_root:
        raise InvalidArgument("the root directory cannot be removed")
    if isinstance(node, File):
        raise NotADirectory(f"{shown(command.path)} is a file; rm removes it")
    if len(node.entries):
        raise DirectoryNotEmpty(f"{shown(command.path)} is not empty; rm -r removes it with all that is in it")
    parts.require_no_snapshots(command.path, "removed")
    parts.release(parts.namespace.unlink(place, parts.clock_ms))  # an empty one, too, may share its table
    parts.forget_directory(command.path, node)
    return Done()


def delete(parts: StateParts, command: Delete) -> DeleteReply:
    """Move a subtree to the trash, O(depth). A keep time of 0 means that there is no trash."""
    place, node = _existing(parts, command.path)
    if place.is_root:
        raise InvalidArgument("the root directory cannot be removed")
    if isinstance(node, Directory) and not command.recursive:
        raise IsADirectory(f"{shown(command.path)} is a directory; rm -r removes it with all that is in it")
    kind, file_count = (Kind.FILE, 1) if isinstance(node, File) else (Kind.DIRECTORY, node.file_count)
    parts.require_no_snapshots(command.path, "removed")
    parts.namespace.unlink(place, parts.clock_ms)
    parts.forget_directory(command.path, node)
    if command.skip_trash or not parts.trash_keep_ms:
        reply = DeleteReply(kind, file_count, node.size, 0, 0)
        parts.release(node)
        return reply
    trash_id = parts.trash.add(Trashed(command.path, node, parts.clock_ms))
    return DeleteReply(kind, file_count, node.size, parts.clock_ms + parts.trash_keep_ms, trash_id)


def rename(parts: StateParts, command: Rename) -> StatReply:
    place, node = _existing(parts, command.source)
    if place.is_root:
        raise InvalidArgument("the root directory cannot be renamed")
    if command.source == command.target:
        return _reply(place)
    if isinstance(node, Directory) and command.target.startswith(command.source + "/"):
        raise InvalidArgument(f"{shown(command.source)} cannot be moved into itself ({shown(command.target)})")
    target = parts.namespace.locate(command.target)
    _check_replaceable(target, node, command.overwrite)
    if len(parts.quotas):
        growth = [Growth(target, count_nodes(node), stored_size_of(node))]
        growth.append(Growth(place, -growth[0].names, -growth[0].stored_size))
        if isinstance(target.node, File):
            growth.append(Growth(target, -1, -stored_size_of(target.node)))
        parts.quotas.check(growth)
    if target.node is not None:
        parts.release(parts.namespace.unlink(target, parts.clock_ms))
    parts.namespace.unlink(place, parts.clock_ms)
    parts.namespace.link(target, node, parts.clock_ms)
    if isinstance(node, Directory):
        parts.snapshots.rename(command.source, command.target)
        parts.quotas.rename(command.source, command.target)
    return _reply(target)


def copy(parts: StateParts, command: Copy) -> StatReply:
    """Copy by reference, O(extents of the subtree), which is bounded."""
    node = parts.find(command.source)
    if isinstance(node, File):
        if command.source == command.target:
            raise InvalidArgument(f"{shown(command.source)} cannot be copied onto itself")
    elif not command.recursive:
        raise IsADirectory(f"{shown(command.source)} is a directory; cp -r copies it with all that is in it")
    elif command.source == ROOT or f"{command.target}/".startswith(command.source + "/"):
        raise InvalidArgument(f"{shown(command.source)} cannot be copied into itself ({shown(command.target)})")
    target = parts.namespace.locate(command.target)
    _check_replaceable(target, node, command.overwrite)
    check_subtree(node, command.source)
    replaced_size = stored_size_of(target.node) if target.node else 0
    parts.require_room(count_nodes(node) - bool(target.node), stored_size_of(node) - replaced_size, target)
    for file in files_below(node):
        parts.reference(file)
    if isinstance(node, File) and target.node is not None:
        content = File(0, 0, parts.clock_ms, node.replication, node.size, node.extents)
        parts.release(parts.namespace.set_content(target, content))
    else:
        parts.namespace.link(target, parts.namespace.copy(node, parts.clock_ms), parts.clock_ms)
    return _reply(target)


def touch(parts: StateParts, command: Touch) -> StatReply:
    mtime_ms = modification_time(parts, command.mtime_ms)
    place = parts.namespace.locate(command.path)
    if place.node is not None:
        place.node.mtime_ms = mtime_ms
    elif command.no_create:
        raise NotFound(f"{shown(command.path)} does not exist")
    else:
        parts.require_room(1, 0, place)
        file = File(0, 0, mtime_ms, parts.replication, 0, extents.EMPTY)
        parts.namespace.create_file(place, file, parts.clock_ms)
    return _reply(place)


def undelete(parts: StateParts, command: Undelete) -> StatReply:
    trash_id = command.trash_id or parts.trash.newest(command.path)
    entry = None if trash_id is None else parts.trash.get(trash_id)
    if trash_id is None or entry is None:
        which = f"entry {command.trash_id}" if command.trash_id else "nothing deleted from it"
        raise NotFound(f"{shown(command.path)}: {which} is in the trash (any more)")
    if entry.path != command.path:
        raise InvalidArgument(f"trash entry {trash_id} was deleted from {shown(entry.path)}, not {shown(command.path)}")
    place = parts.namespace.locate(entry.path, parents=True)
    if place.node is not None:
        raise AlreadyExists(f"{shown(entry.path)} exists again; rename it, then undelete")
    node = entry.node
    missing = len(place.missing)
    parts.quotas.check((Growth(place, missing + count_nodes(node), stored_size_of(node)),))
    parts.require_total(missing, stored_size_of(node))  # its nodes count already, in the trash
    parts.trash.remove(trash_id)
    parts.namespace.link(place, node, parts.clock_ms)
    return _reply(place)


def empty_trash(parts: StateParts, command: EmptyTrash) -> EmptyTrashReply:
    """Release entries, O(entries); the subtrees behind them go in bounded steps afterwards."""
    if command.trash_id and parts.trash.get(command.trash_id) is None:
        raise NotFound(f"entry {command.trash_id} is not in the trash (any more)")
    ids = [command.trash_id] if command.trash_id else parts.trash.oldest_ids(EMPTY_TRASH_MAX)
    size = parts.release_trash(ids)
    return EmptyTrashReply(len(ids), size, not command.trash_id and len(parts.trash) > 0)


def modification_time(parts: StateParts, mtime_ms: int) -> int:
    """Return the time that a command asks for, 0 being now; raise `InvalidArgument` when it is not one."""
    if not 0 <= mtime_ms <= TIME_MAX_MS:
        raise InvalidArgument(f"modification time {mtime_ms} ms is not between 1970 and the year 9999")
    return mtime_ms or parts.clock_ms


def check_subtree(node: Node, path: str) -> None:
    """Raise `LimitExceeded` when a subtree is too large for one command that touches all of it."""
    if isinstance(node, Directory) and node.file_count + node.directory_count > SUBTREE_MAX:
        raise LimitExceeded(
            f"{shown(path)} holds {node.file_count} files and {node.directory_count} directories, more than the "
            f"{SUBTREE_MAX} that one command may touch; do it for its subdirectories one by one"
        )
    count = sum(extents.count(file.extents) for file in files_below(node))
    if count > SUBTREE_EXTENTS_MAX:
        raise LimitExceeded(
            f"{shown(path)} holds {count} extents, more than the {SUBTREE_EXTENTS_MAX} that one command may touch; "
            "do it for its subdirectories one by one"
        )


def _existing(parts: StateParts, path: str) -> tuple[Place, Node]:
    place = parts.namespace.locate(path)
    if place.node is None:
        raise NotFound(f"{shown(path)} does not exist")
    return place, place.node


def _check_replaceable(target: Place, node: Node, overwrite: bool) -> None:
    """Raise `AlreadyExists` unless the target is free, or is a file that this file may replace."""
    if target.node is None:
        return
    if isinstance(target.node, Directory) or isinstance(node, Directory):
        raise AlreadyExists(f"{shown(target.path)} exists already; only a file can be replaced, and only by a file")
    if not overwrite:
        raise AlreadyExists(f"{shown(target.path)} exists already; replacing it must be asked for (overwrite)")


def _reply(place: Place) -> StatReply:
    assert place.node is not None, "a reply about nothing"
    return StatReply(status_of(place.path, place.node))
