"""What clients ask masters about snapshots: make, list, remove, go back.

Owns: these calls, their replies and their limits. Refuses to know: how the state keeps a snapshot.

The content of a snapshot is read by path, below `DIRECTORY/.snapshot/NAME`, with the same calls as everything else.
"""

from __future__ import annotations

from dfs.net.messages.base import Message, Mutation, message
from dfs.net.parts import SnapshotStatus

SNAPSHOTS_PAGE_MAX = 1000  # entries in a ListSnapshotsReply


@message(0x0211)
class CreateSnapshot(Mutation, frozen=True, array_like=True):
    """Keep a directory and all below it as it is now, under `.snapshot/NAME` in it. Reply: SnapshotReply."""

    path: str
    name: str


@message(0x0212)
class RemoveSnapshot(Mutation, frozen=True, array_like=True):
    """Give a snapshot up; what only it held is released. Reply: SnapshotReply."""

    path: str
    name: str


@message(0x0213)
class RestoreSnapshot(Mutation, frozen=True, array_like=True):
    """Make a directory, or what is at `inner` in it, what it was in a snapshot, at once.

    `inner`: relative path, "" = the whole directory. `safety_name`: the snapshot that is made of the directory just
    before; "" = none, and what is there now and in no snapshot is released. Reply: StatReply of what was restored.
    """

    path: str
    name: str
    inner: str = ""
    safety_name: str = ""


@message(0x0215)
class SnapshotReply(Message, frozen=True, array_like=True):
    snapshot: SnapshotStatus


@message(0x0140)
class ListSnapshots(Message, frozen=True, array_like=True):
    """Snapshots of `path` and of directories below it, by directory and name, those after the given pair only."""

    path: str
    after_directory: str = ""
    after_name: str = ""


@message(0x0141)
class ListSnapshotsReply(Message, frozen=True, array_like=True):
    entries: tuple[SnapshotStatus, ...]
    has_more: bool
