"""What differs between two states of a tree: created, deleted, modified, renamed.

Owns: the comparison. Pure but for the listings it is given. Refuses to know: snapshots, and how a directory is listed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dfs.net.parts import FileStatus, Kind

Listing = Callable[[str], Iterator[FileStatus]]  # of a relative path ("" = the top): its entries by name


class ChangeKind(enum.Enum):
    """What happened to an entry."""

    CREATED = "created"
    DELETED = "deleted"
    MODIFIED = "modified"
    RENAMED = "renamed"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `path` is relative, in the new tree but for a deletion; `source` is where a renamed thing was.

    A created or deleted directory stands for all that is in it.
    """

    kind: ChangeKind
    path: str
    entry_kind: Kind
    source: str = ""


@dataclass(slots=True)
class _Found:
    """What is in one tree only, by inode; and changes that are certain."""

    created: dict[tuple[int, str], FileStatus] = field(default_factory=dict)
    deleted: dict[tuple[int, str], FileStatus] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)


def compare_trees(old: Listing, new: Listing) -> list[Change]:
    """Return the differences by path. Memory follows their number, not the size of the trees."""
    found = _Found()
    pairs = [("", "")]
    while pairs:
        while pairs:
            _compare_directories(*pairs.pop(), old, new, found, pairs)
        _match_renames(found, pairs)
    changes = found.changes
    changes += [Change(ChangeKind.CREATED, path, status.kind) for (_, path), status in found.created.items()]
    changes += [Change(ChangeKind.DELETED, path, status.kind) for (_, path), status in found.deleted.items()]
    return sorted(changes, key=lambda change: (change.path, change.kind.value))


def _compare_directories(
    old_path: str, new_path: str, old: Listing, new: Listing, found: _Found, pairs: list[tuple[str, str]]
) -> None:
    """Compare the entries of one directory; `pairs` gets the subdirectories that both have."""
    before, after = old(old_path), new(new_path)
    left, right = next(before, None), next(after, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.path < right.path):
            assert left is not None, "one of them is there"
            found.deleted[left.inode, _join(old_path, left.path)] = left
            left = next(before, None)
        elif left is None or right.path < left.path:
            found.created[right.inode, _join(new_path, right.path)] = right
            right = next(after, None)
        else:
            _compare_entries(_join(old_path, left.path), _join(new_path, right.path), left, right, found, pairs)
            left, right = next(before, None), next(after, None)


def _compare_entries(
    old_path: str, new_path: str, left: FileStatus, right: FileStatus, found: _Found, pairs: list[tuple[str, str]]
) -> None:
    """Compare what has the same name, or was renamed."""
    if left.kind is not right.kind:
        found.deleted[left.inode, old_path] = left
        found.created[right.inode, new_path] = right
    elif left.kind is Kind.DIRECTORY:
        pairs.append((old_path, new_path))
    elif (left.inode, left.version, left.replication, left.mtime_ms) != (
        right.inode,
        right.version,
        right.replication,
        right.mtime_ms,
    ):
        found.changes.append(Change(ChangeKind.MODIFIED, new_path, Kind.FILE))


def _match_renames(found: _Found, pairs: list[tuple[str, str]]) -> None:
    """Turn pairs of a deletion and a creation of the same inode into renames, and compare the two."""
    by_inode: dict[int, str] = dict(key for key in found.deleted)
    for inode, new_path in list(found.created):
        old_path = by_inode.get(inode)
        if old_path is None or found.deleted[inode, old_path].kind is not found.created[inode, new_path].kind:
            continue
        del by_inode[inode]
        left, right = found.deleted.pop((inode, old_path)), found.created.pop((inode, new_path))
        found.changes.append(Change(ChangeKind.RENAMED, new_path, right.kind, old_path))
        _compare_entries(old_path, new_path, left, right, found, pairs)


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name
