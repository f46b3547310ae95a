"""The replicated state as one bundle of its parts, for the handlers of commands.

Owns: which parts there are, and the rules that need several of them. Refuses to know: commands and their encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from dfs.errors import HasSnapshots, LimitExceeded, NotADirectory
from dfs.master.state.chunkmap import TAKEN_APART_STEP, ChunkMap
from dfs.master.state.commands import BALANCE_AUTOMATIC, ORPHAN_GRACE_MS
from dfs.master.state.extents import EXTENTS_MAX
from dfs.master.state.namespace import Namespace, Place, shown
from dfs.master.state.nodes import Directory, File, Node
from dfs.master.state.quotas import Growth, QuotaTable
from dfs.master.state.registry import ServerRegistry
from dfs.master.state.sessions import SessionTable
from dfs.master.state.sharing import Sharing
from dfs.master.state.snapshots import SnapshotTable
from dfs.master.state.tails import TailTable
from dfs.master.state.trash import ReleaseQueue, Trash
from dfs.paths import SNAPSHOTS_MARK, split_snapshot

NODES_MAX = 20_000_000  # files and directories in tree and trash (about 8 GB of memory on each master)
SIZE_TOTAL_MAX = 1 << 59  # bytes, stored and in the trash together; keeps every sum within 64 bits
SUBTREE_MAX = 25_000  # files and directories that one copy -r or setrep -R touches: a quarter of a second at most
SUBTREE_EXTENTS_MAX = EXTENTS_MAX  # extents, likewise; the largest single file can still be copied
TIME_MAX_MS = 253_402_300_799_999  # the end of the year 9999


class StateParts:
    """Everything that is replicated. Only handlers change it, and only after all their checks."""

    __slots__ = (
        "balance_mode",
        "balance_threshold_ppm",
        "born_ms",
        "chunks",
        "clock_ms",
        "horizon_ms",
        "namespace",
        "orphan_grace_ms",
        "quotas",
        "released",
        "replication",
        "servers",
        "sessions",
        "sharing",
        "snapshots",
        "tails",
        "trash",
        "trash_keep_ms",
    )

    def __init__(self, trash_keep_ms: int, replication: int) -> None:
        self.clock_ms = 0  # the state clock: the latest leader's time seen; it never goes back
        self.born_ms = 0  # the state clock at the first command: no chunk of this state was allocated before
        self.horizon_ms = 0  # chunks allocated before it can no longer be committed; it never goes back
        self.orphan_grace_ms = ORPHAN_GRACE_MS
        self.trash_keep_ms = trash_keep_ms
        self.replication = replication
        self.balance_mode = BALANCE_AUTOMATIC
        self.balance_threshold_ppm = 0
        self.chunks = chunks = ChunkMap()
        self.released = ReleaseQueue()
        # Nothing in here knows this object: a state that was replaced goes at once, not with the garbage collector.
        self.sharing = Sharing(lambda file: chunks.reference_file(file.extents, file.replication), self.released.push)
        self.namespace = Namespace(self.sharing)
        self.snapshots = SnapshotTable()
        self.servers = ServerRegistry()
        self.sessions = SessionTable()
        self.tails = TailTable()
        self.quotas = QuotaTable(self.tails.reserved)
        self.trash = Trash()

    def tick(self, now_ms: int) -> None:
        """Take the time of a command in.

        The horizon is what makes deleting orphans safe: a leader calls a replica an orphan only when its chunk was
        allocated before the horizon of the state it knows, and no command after that state can commit such a chunk.
        """
        self.clock_ms = max(self.clock_ms, now_ms)
        self.born_ms = self.born_ms or self.clock_ms
        self.horizon_ms = max(self.horizon_ms, self.clock_ms - self.orphan_grace_ms)

    def find(self, path: str) -> Node:
        """Return the node at a path, to look at it, also in a snapshot; raise `NotFound` and its like."""
        cut = split_snapshot(path) if SNAPSHOTS_MARK in path else None
        if cut is None:
            return self.namespace.find(path)
        directory, inner = cut
        if isinstance(self.namespace.find(directory), File):
            raise NotADirectory(f"{shown(path)}: {shown(directory)} is a file; only directories have snapshots")
        return self.snapshots.find(directory, inner, path)

    def reference(self, file: File) -> None:
        """Count the extents of a file that has come into being."""
        self.chunks.reference_file(file.extents, file.replication)

    def require_room(self, nodes: int, stored_size: int, place: Place, *, is_inside: bool = False) -> None:
        """Raise `QuotaExceeded` or `LimitExceeded` unless so much more may be at a place (`is_inside`: in it)."""
        if len(self.quotas):
            self.quotas.check((Growth(place, nodes, stored_size, is_inside),))
        self.require_total(nodes, stored_size)

    def require_total(self, nodes: int, stored_size: int) -> None:
        """Raise `LimitExceeded` unless the whole tree may grow by this much."""
        root = self.namespace.root
        if nodes and root.file_count + root.directory_count + self.trash.node_count + nodes > NODES_MAX:
            raise LimitExceeded(
                f"the file system and its trash hold {NODES_MAX} files and directories, the most they can; "
                "delete some files and empty the trash"
            )
        if stored_size > 0 and root.stored_size + self.trash.size + stored_size > SIZE_TOTAL_MAX:
            raise LimitExceeded(
                f"the file system would hold more than {SIZE_TOTAL_MAX} bytes with its copies and trash; "
                "delete some files and empty the trash"
            )

    def forget_directory(self, path: str, node: Node) -> None:
        """Forget the quotas of a directory that leaves the tree, and of those in it."""
        if len(self.quotas) and isinstance(node, Directory):
            self.quotas.drop(path)

    def require_no_snapshots(self, path: str, verb: str) -> None:
        """Raise `HasSnapshots` when a directory with snapshots is at a path or below it."""
        first = self.snapshots.first_below(path)
        if first is not None:
            raise HasSnapshots(
                f"{shown(path)} cannot be {verb}: {shown(first)} has snapshots, which would go with it; remove them "
                "first: `dfs snapshot ls`, `dfs snapshot rm`"
            )

    def step(self) -> None:
        """Go on with what commands began and left to be done in bounded steps."""
        if len(self.sharing):
            self.sharing.step()
        if len(self.released):
            self.released.step(self.chunks, self.clock_ms, self.sharing.leave)

    @property
    def has_steps(self) -> bool:
        return len(self.released) > 0 or (len(self.sharing) > 0 and self.sharing.is_pending)

    def release(self, node: Node) -> None:
        """Give up a detached subtree: its chunks are dereferenced in bounded steps, the first after this command."""
        self.released.push(node)

    def release_trash(self, trash_ids: list[int]) -> int:
        """Release these trash entries; return the bytes (logical) they hold."""
        size = 0
        for trash_id in trash_ids:
            entry = self.trash.remove(trash_id)
            size += entry.node.size
            self.release(entry.node)
        return size

    def take_apart(self) -> Iterator[None]:
        """Free a state that was replaced, in steps of about a millisecond; it is useless from the first one on.

        A table that several directories share is empty when the second of them is met.
        """
        yield from self.chunks.take_apart()
        stack = [self.namespace.root, *(entry.node for _, entry in self.trash.items()), *self.released.nodes()]
        stack.extend(shelf.content for _, shelf in self.snapshots.shelves())
        stack.extend(separation.made for separation in self.sharing.separations())
        self.namespace.root, self.trash, self.released = Directory(1, 0), Trash(), ReleaseQueue()
        self.snapshots = SnapshotTable()
        budget = TAKEN_APART_STEP
        while stack:
            node = stack.pop()
            budget -= 1
            if isinstance(node, Directory):
                for block in node.entries.take_apart():
                    stack.extend(child for child in block if isinstance(child, Directory))
                    budget -= len(block)
                    if budget <= 0:
                        budget = TAKEN_APART_STEP
                        yield
