"""The dumped form of the replicated state: typed msgpack pieces of bounded size, in a fixed order.

Owns: the pieces, their version, and turning parts into pieces and back. Refuses to know: files, checksums and magic
(the raft_* modules put them around), and commands.

What follows from something else is not dumped but derived anew: totals, reference counts, goals, tallies, blocks. So a
loaded state agrees with itself by construction. Rows keep the order of the tables, on which later results depend.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import msgspec

from dfs.decoders import msgpack_decoder
from dfs.errors import DfsError, StorageCorrupt
from dfs.ids import ID_SIZE, ChunkHandle, ServerId
from dfs.master.state import extents
from dfs.master.state.checkpoint_rows import (
    AppenderRow,
    AppenderRows,
    ChunkRow,
    Chunks,
    End,
    GarbageRow,
    GarbageRows,
    ModeRow,
    NodeRow,
    Nodes,
    Piece,
    QuotaRow,
    QuotaRows,
    Row,
    ServerModes,
    ServerRow,
    Servers,
    SessionRow,
    Sessions,
    SnapshotRow,
    SnapshotRows,
    Start,
    Table,
    TailRow,
    TailRows,
    TrashRow,
    TrashRows,
)
from dfs.master.state.chunkmap import TAKEN_APART_STEP
from dfs.master.state.nodes import Directory, File, Node
from dfs.master.state.parts import StateParts
from dfs.master.state.quotas import Quota
from dfs.master.state.sessions import Session
from dfs.master.state.sharing import share
from dfs.master.state.tails import Remembered, TailRecord
from dfs.master.state.trash import Trashed
from dfs.master.state.views import GarbageChunk, RegisteredServer
from dfs.paths import check_name

VERSION = 1
PIECE_SIZE = 256 * 1024  # bytes after which a piece is closed; one row is at most about 7 MiB (a file's extents)
KEY_TABLES = 16
SEPARATION = "separation"
DAMAGED = "the dumped state is damaged or of another version"


_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Piece] = msgpack_decoder(Piece)


# --- parts to pieces


def dump(parts: StateParts) -> Iterator[bytes]:
    """Yield the pieces. Nothing may be applied between two of them."""
    space, trash = parts.namespace, parts.trash
    start = Start(
        VERSION,
        parts.clock_ms,
        parts.trash_keep_ms,
        parts.replication,
        space.next_id,
        trash.next_id,
        parts.born_ms,
        parts.horizon_ms,
        parts.orphan_grace_ms,
        parts.balance_mode,
        parts.balance_threshold_ppm,
    )
    yield _ENCODER.encode(start)
    snapshots = (root for _, _, _, root in parts.snapshots.roots())
    trees = chain([space.root], (entry.node for _, entry in trash.items()), snapshots)
    tables: list[tuple[type[Table], Iterator[tuple[int, Row]]]] = [
        (Servers, ((128, ServerRow(s.server_id, s.name, s.address, s.rack)) for s in parts.servers.all())),
        (Chunks, _chunk_rows(parts)),
        (GarbageRows, ((80 + 18 * len(item.servers), GarbageRow(*item)) for item in parts.chunks.garbage())),
        (TrashRows, ((32 + len(e.path), TrashRow(i, e.path, e.deleted_ms)) for i, e in trash.items())),
        (SnapshotRows, _snapshot_rows(parts)),
        (QuotaRows, ((32 + len(path), QuotaRow(path, *quota)) for path, quota in parts.quotas.items())),
        (Nodes, _node_rows(parts, trees)),
        (Sessions, _session_rows(parts)),
        (TailRows, _tail_rows(parts)),
        (AppenderRows, _appender_rows(parts)),
        (ServerModes, _mode_rows(parts)),
    ]
    count = 0
    for table, rows in tables:
        batch: list[Any] = []
        size = 0
        for row_size, row in rows:
            batch.append(row)
            size += row_size
            if size >= PIECE_SIZE:
                yield _ENCODER.encode(table(batch))
                count += len(batch)
                batch, size = [], 0
        if batch:
            yield _ENCODER.encode(table(batch))
            count += len(batch)
    yield _ENCODER.encode(End(count))


def _chunk_rows(parts: StateParts) -> Iterator[tuple[int, Row]]:
    for handle, chunk in parts.chunks.chunks():
        servers = chunk.replicas.servers
        yield 32 + 18 * len(servers), ChunkRow(handle, chunk.length, chunk.crc, servers)


def _snapshot_rows(parts: StateParts) -> Iterator[tuple[int, Row]]:
    for path, shelf in parts.snapshots.shelves():
        for name, created_ms in sorted(shelf.created_ms.items()):
            row = SnapshotRow(path, name, created_ms, shelf.content.inode, shelf.content.mtime_ms)
            yield 48 + len(path) + len(name), row


def _node_rows(parts: StateParts, trees: Iterable[Node]) -> Iterator[tuple[int, Row]]:
    shared: dict[int, int] = {}  # id of a table that several directories have -> number of the first one's row
    count = 0

    def rows(tree: Node, row_name: str = "", size: int = 0) -> Iterator[tuple[int, Row]]:
        nonlocal count
        stack: list[Iterator[tuple[str, Node]]] = [iter([(row_name, tree)])]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
                continue
            name, node = found
            depth = len(stack) - 1
            if isinstance(node, File):
                yield 48 + len(name) + len(node.extents), _file_row(depth, name, node)
                continue
            count += 1
            first = shared.setdefault(id(node.entries), count) if node.entries.sharers > 1 else count
            version = 0 if first == count else first
            yield 32 + len(name), NodeRow(depth, name, node.inode, node.mtime_ms, version, 0, 0 if depth else size)
            if first == count:
                stack.append(node.entries.items())

    for tree in chain(trees, parts.released.nodes()):
        yield from rows(tree)
    for separation in parts.sharing.separations():
        yield from rows(separation.made, SEPARATION, shared[id(separation.table)])


def _file_row(depth: int, name: str, file: File) -> NodeRow:
    return NodeRow(depth, name, file.inode, file.mtime_ms, file.version, file.replication, file.size, file.extents)


def _session_rows(parts: StateParts) -> Iterator[tuple[int, Row]]:
    for session_id, session in parts.sessions.items():
        results: list[tuple[int, bytes]] = []
        size = 48
        for result in session.results.items():
            results.append(result)
            size += 16 + len(result[1])
            if size >= PIECE_SIZE:
                yield size, SessionRow(session_id, session.first_unacked, session.last_used_ms, tuple(results))
                results, size = [], 48
        if results or size == 48:
            yield size, SessionRow(session_id, session.first_unacked, session.last_used_ms, tuple(results))


def _mode_rows(parts: StateParts) -> Iterator[tuple[int, Row]]:
    for server in parts.servers.all():
        if server.is_leaving or server.maintenance_until_ms:
            yield 32, ModeRow(server.server_id, server.is_leaving, server.maintenance_until_ms)


def _tail_rows(parts: StateParts) -> Iterator[tuple[int, TailRow]]:
    for tail in parts.tails.all():
        row = TailRow(tail.path, tail.handle, tail.servers, tail.begun_ms, tail.reserved)
        yield 104 + len(tail.path), row


def _appender_rows(parts: StateParts) -> Iterator[tuple[int, Row]]:
    for inode, history in parts.tails.histories():
        if not history.appenders:
            yield 48, AppenderRow(inode, history.versions, b"", 0, (), 0)
        for appender, item in history.appenders.items():
            row = AppenderRow(inode, history.versions, appender, item.last_sequence, item.offsets, item.used_ms)
            yield 64 + 9 * len(item.offsets), row


# --- pieces to parts


def load(pieces: Iterable[bytes]) -> StateParts:
    """Return the parts that were dumped; raise `StorageCorrupt` unless every piece is there and makes sense."""
    loader = Loader()
    for piece in pieces:
        loader.take(piece)
    return loader.finish()


@contextmanager
def _refusing_damage() -> Iterator[None]:
    try:
        yield
    except (msgspec.MsgspecError, DfsError, ValueError, KeyError, IndexError, AssertionError, struct.error) as error:
        raise StorageCorrupt(
            f"{DAMAGED} ({type(error).__name__}: {error}); start this master with an empty data directory: the others "
            "will send it theirs"
        ) from error


class Loader:
    """Builds new parts from pieces in their order: `take` each, then `finish`. Both raise `StorageCorrupt`.

    A piece takes some milliseconds (0.2 s when it is one file with the most extents there can be).
    """

    def __init__(self) -> None:
        self.parts = StateParts(0, 1)
        self.start: Start | None = None
        self.phase = 0
        self.is_ended = False
        self.row_count = 0
        self.trees = 0
        self.trash_rows: list[TrashRow] = []
        self.trashed_count = 0
        self.trash_node: Node | None = None  # of the entry whose tree is not complete yet
        self.snapshot_rows: list[SnapshotRow] = []
        self.snapshot_nodes: list[Directory] = []
        # The chunk map's own key objects, to share them with files: in a few tables, so that none grows with a stall,
        # and each large enough for its memory to go back to the system in the end.
        self.keys: list[dict[ChunkHandle, ChunkHandle]] = [{} for _ in range(KEY_TABLES)]
        self.servers: dict[tuple[ServerId, ...], tuple[ServerId, ...]] = {}  # checked; garbage shares them
        self.directories: list[Directory] = []  # in the order of their rows, which name them by number
        self.stack: list[Directory] = []
        self.last_names: list[str] = []

    def take(self, data: bytes) -> None:
        """Take the next piece in."""
        with _refusing_damage():
            piece = _DECODER.decode(data)
            if self.start is None:
                _require(
                    isinstance(piece, Start) and piece.version == VERSION, f"it does not begin with version {VERSION}"
                )
                assert isinstance(piece, Start), "checked above"
                self._begin(piece)
                return
            _require(not self.is_ended, "there are pieces after the end")
            if isinstance(piece, End):
                _require(piece.row_count == self.row_count, f"{self.row_count} rows of {piece.row_count} are there")
                self.is_ended = True
                return
            _require(not isinstance(piece, Start), "it begins twice")
            assert not isinstance(piece, Start), "checked above"
            _require(_ORDER.index(type(piece)) >= self.phase, "its pieces are out of order")
            self.phase = _ORDER.index(type(piece))
            self.row_count += len(piece.rows)
            take = _TAKERS[type(piece)]
            for row in piece.rows:
                take(self, row)

    def finish(self) -> StateParts:
        """Return the parts, at once."""
        with _refusing_damage():
            _require(self.start is not None, f"it does not begin with version {VERSION}")
            _require(self.is_ended, "its end is missing")
            self._close(0)
            self._complete_trash()
            _require(self.trees >= 1 and self.trashed_count == len(self.trash_rows), "a tree is missing")
            assert self.start is not None, "checked above"
            self.parts.trash.next_id = self.start.next_trash_id
            self._finish_snapshots()
            unused = self.parts.chunks.unused_count
            _require(not unused, f"{unused} chunks are used by no file")
            return self.parts

    def take_apart(self) -> Iterator[None]:
        """Give up what served the loading, in steps of a few milliseconds."""
        for keys in self.keys:
            keys.clear()
            yield
        while self.directories:
            del self.directories[-TAKEN_APART_STEP:]
            yield

    def _begin(self, start: Start) -> None:
        self.start = start
        parts = self.parts
        parts.clock_ms, parts.trash_keep_ms, parts.replication = start.clock_ms, start.trash_keep_ms, start.replication
        parts.born_ms, parts.horizon_ms = start.born_ms, start.horizon_ms
        parts.orphan_grace_ms = start.orphan_grace_ms
        parts.balance_mode, parts.balance_threshold_ppm = start.balance_mode, start.balance_threshold_ppm
        parts.namespace.next_id = start.next_id

    def _take_server(self, row: ServerRow) -> None:
        self.parts.servers.put(RegisteredServer(row.server_id, row.name, row.address, row.rack))

    def _take_chunk(self, row: ChunkRow) -> None:
        handle = row.handle
        _require(len(handle) == ID_SIZE, "a chunk handle is bad")
        keys = self.keys[handle[0] % KEY_TABLES]
        _require(handle not in keys, "a chunk handle is double")
        keys[handle] = handle
        self._check_servers(row.servers)
        self.parts.chunks.add(handle, row.length, row.crc, row.servers)

    def _take_garbage(self, row: GarbageRow) -> None:
        self._check_servers(row.servers)
        servers = self.servers[row.servers]
        self.parts.chunks.add_garbage(GarbageChunk(row.handle, row.length, servers, row.since_ms))

    def _take_trash(self, row: TrashRow) -> None:
        _require(
            self.start is not None and row.trash_id < self.start.next_trash_id, "a trash id is not below the counter"
        )
        self.trash_rows.append(row)

    def _take_snapshot(self, row: SnapshotRow) -> None:
        check_name(row.name)
        self.snapshot_rows.append(row)

    def _take_quota(self, row: QuotaRow) -> None:
        _require(row.names >= 0 and row.stored_size >= 0, "a quota is negative")
        self.parts.quotas.set(row.path, Quota(row.names, row.stored_size))

    def _take_tail(self, row: TailRow) -> None:
        self.parts.tails.open(TailRecord(row.path, row.handle, row.servers, row.begun_ms, row.reserved))

    def _take_appender(self, row: AppenderRow) -> None:
        item = Remembered(row.last_sequence, row.offsets, row.used_ms)
        appenders = [(row.appender, item)] if row.appender else []
        self.parts.tails.restore_history(row.inode, row.versions, appenders)

    def _take_mode(self, row: ModeRow) -> None:
        _require(row.server_id in self.parts.servers, "a mode is of no registered server")
        self.parts.servers.set_mode(
            row.server_id, is_leaving=row.is_leaving, maintenance_until_ms=row.maintenance_until_ms
        )

    def _check_servers(self, servers: tuple[ServerId, ...]) -> None:
        if servers not in self.servers:
            _require(all(server in self.parts.servers for server in servers), "a chunk is on an unknown server")
            self.servers[servers] = servers

    def _take_node(self, row: NodeRow) -> None:
        _require(0 <= row.depth <= len(self.stack), "a node has no parent")
        self._close(row.depth)
        node = self._node(row)
        if row.depth:
            check_name(row.name)
            _require(self.last_names[-1] < row.name, "names of a directory are out of order")
            self.last_names[-1] = row.name
            self.stack[-1].entries.add(row.name, node)
            if isinstance(node, File) or row.version:
                self.stack[-1].account(node, 1)
        else:
            self._place_tree(node, row)
        if isinstance(node, Directory):
            self.directories.append(node)
            if not row.version:
                self.stack.append(node)
                self.last_names.append("")

    def _close(self, depth: int) -> None:
        """Directories deeper than `depth` are complete: their totals go up, and into the trash's."""
        while len(self.stack) > depth:
            directory = self.stack.pop()
            self.last_names.pop()
            if self.stack:
                self.stack[-1].account(directory, 1)

    def _place_tree(self, node: Node, row: NodeRow) -> None:
        self._complete_trash()
        if row.name == SEPARATION:
            _require(isinstance(node, Directory) and 0 < row.size <= len(self.directories), "a copy is of nothing")
            assert isinstance(node, Directory), "checked above"
            self.parts.sharing.restore(self.directories[row.size - 1].entries, node)
            return
        number = self.trees
        self.trees += 1
        if number == 0:
            _require(isinstance(node, Directory), "the root is not a directory")
            assert isinstance(node, Directory), "checked above"
            self.parts.namespace.root = node
        elif number <= len(self.trash_rows):
            self.trash_node = node
        elif number <= len(self.trash_rows) + len(self.snapshot_rows):
            _require(isinstance(node, Directory), "a snapshot is not of a directory")
            assert isinstance(node, Directory), "checked above"
            self.snapshot_nodes.append(node)
        else:
            self.parts.released.push(node)

    def _complete_trash(self) -> None:
        """The tree of a trash entry is complete, and so are the totals that the trash adds up."""
        node, self.trash_node = self.trash_node, None
        if node is not None:
            row = self.trash_rows[self.trashed_count]
            self.trashed_count += 1
            self.parts.trash.restore(row.trash_id, Trashed(row.path, node, row.deleted_ms))

    def _node(self, row: NodeRow) -> Node:
        _require(0 < row.inode < self.parts.namespace.next_id, "an inode is not below the counter")
        if not row.replication:
            return self._directory(row)
        _require(extents.is_valid(row.extents), "an extent list is cut short")
        packed, size, chunks = row.extents, row.size, self.parts.chunks
        try:
            if len(packed) == ID_SIZE:  # nearly all files: share the objects that the chunk map keeps, too
                packed = handle = self.keys[packed[0] % KEY_TABLES][ChunkHandle(packed)]
                length = chunks.reference(handle, row.replication)
                size = length if length == size else size
            else:
                for handle in extents.handles(packed):
                    chunks.reference(handle, row.replication)
        except KeyError:
            raise ValueError("a file uses an unknown chunk") from None
        version = row.inode if row.version == row.inode else row.version
        return File(row.inode, version, row.mtime_ms, row.replication, size, packed)

    def _directory(self, row: NodeRow) -> Directory:
        if not row.version:
            return Directory(row.inode, row.mtime_ms)
        _require(0 < row.version <= len(self.directories), "a directory shares the entries of one that comes later")
        known = self.directories[row.version - 1]
        _require(known not in self.stack, "a directory shares the entries of one that it is in")
        made = share(known)
        made.inode, made.mtime_ms = row.inode, row.mtime_ms
        return made

    def _take_session(self, row: SessionRow) -> None:
        results = dict(row.results)
        known = self.parts.sessions.get(row.session)
        if known is not None:
            known.results.update(results)
        else:
            self.parts.sessions.restore(row.session, Session(row.first_unacked, row.last_used_ms, results))

    def _finish_snapshots(self) -> None:
        parts = self.parts
        _require(len(self.snapshot_nodes) == len(self.snapshot_rows), "the tree of a snapshot is missing")
        for row, root in zip(self.snapshot_rows, self.snapshot_nodes, strict=True):
            if (shelf := parts.snapshots.shelf(row.directory)) is None:
                _require(isinstance(parts.namespace.find(row.directory), Directory), "a file has snapshots")
                shelf = parts.snapshots.open_shelf(row.directory, row.shelf_inode, row.shelf_ms)
            _require(row.name not in shelf.created_ms, "a snapshot is there twice")
            parts.snapshots.add(row.directory, row.name, root, row.created_ms)
            shelf.content.mtime_ms = row.shelf_ms
        for path in parts.quotas.paths():
            _require(isinstance(parts.namespace.find(path), Directory), "a file has a quota")


_TAKERS: dict[type[Table], Callable[[Loader, Any], None]] = {  # in the order of a dump
    Servers: Loader._take_server,
    Chunks: Loader._take_chunk,
    GarbageRows: Loader._take_garbage,
    TrashRows: Loader._take_trash,
    SnapshotRows: Loader._take_snapshot,
    QuotaRows: Loader._take_quota,
    Nodes: Loader._take_node,
    Sessions: Loader._take_session,
    TailRows: Loader._take_tail,
    AppenderRows: Loader._take_appender,
    ServerModes: Loader._take_mode,
}
_ORDER = list(_TAKERS)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
