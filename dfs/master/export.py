"""The replicated state as JSON lines, for people and other programs, and back.

Owns: the line format, its counts and checksum. Refuses to know: files, checkpoints on disk, and the rules of the state
(loading the pieces that come out of `import_pieces` checks those).

Line 1 is the header, then one record per line in the order of the dump, then a trailer with the number of records of
each type and the CRC32C of all bytes before it. Ids are hex, sizes bytes, times milliseconds since 1970.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from dfs.checksum import crc32c
from dfs.decoders import msgpack_decoder
from dfs.errors import StorageCorrupt
from dfs.ids import ChunkHandle, ServerId, SessionId
from dfs.master.state import extents
from dfs.master.state.checkpoint import PIECE_SIZE, SEPARATION, VERSION
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
    TailRow,
    TailRows,
    TrashRow,
    TrashRows,
)
from dfs.master.state.views import Extent
from dfs.paths import SNAPSHOTS, join

FORMAT = "dfs-export"
FORMAT_VERSION = 1
LINE_SIZE_MAX = 64 * 1024 * 1024  # bytes; a file of 262,144 extents takes about 25 MiB
_ROWS_MAX = 5000  # rows of a piece
_DAMAGED = (
    OverflowError,
    msgspec.MsgspecError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    RecursionError,
    struct.error,
)

_PIECE_DECODER: msgspec.msgpack.Decoder[Piece] = msgpack_decoder(Piece)
_ENCODER = msgspec.msgpack.Encoder()
_JSON = msgspec.json.Encoder()


# --- pieces to lines


def export_lines(pieces: Iterable[bytes], *, cluster: str, log_index: int) -> Iterator[bytes]:
    """Yield the lines of a dumped state, each with its newline."""
    stream = (_PIECE_DECODER.decode(piece) for piece in pieces)
    start = next(stream)
    if not isinstance(start, Start) or start.version != VERSION:
        raise StorageCorrupt("the dumped state does not begin with a version that is known here; upgrade")
    counts: Counter[str] = Counter()
    crc = 0
    for record in _records(start, stream, cluster, log_index):
        counts[record["type"]] += 1
        line = _JSON.encode(record) + b"\n"
        crc = crc32c(line, crc)
        yield line
    yield _JSON.encode({"type": "end", "counts": dict(counts), "crc32c": f"{crc:08x}"}) + b"\n"


def _records(start: Start, stream: Iterator[Piece], cluster: str, log_index: int) -> Iterator[dict[str, Any]]:
    yield {
        "type": "header",
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "cluster": cluster,
        "log_index": log_index,
        **{name: getattr(start, name) for name in Start.__struct_fields__ if name != "version"},
    }
    trees = _Trees()
    for piece in stream:
        if isinstance(piece, TrashRows):
            trees.trash_ids += [row.trash_id for row in piece.rows]
        if isinstance(piece, SnapshotRows):
            trees.snapshots += [_snapshot_path(row) for row in piece.rows]
        if not isinstance(piece, Start | End):
            for row in piece.rows:
                yield _record(row, trees)


def _snapshot_path(row: SnapshotRow) -> str:
    return join(join(row.directory, SNAPSHOTS), row.name)


class _Trees:
    """Which tree the rows of nodes belong to, and the path of each."""

    def __init__(self) -> None:
        self.trash_ids: list[int] = []
        self.snapshots: list[str] = []
        self._count = self._copies = 0
        self._names: list[str] = []
        self._tree = ""

    def place(self, depth: int, name: str) -> tuple[str, str]:
        """Return the tree and the path of the next row."""
        if depth == 0:
            self._tree = self._next_tree(name)
        del self._names[max(0, depth - 1) :]
        if depth:
            self._names.append(name)
        return self._tree, "/" + "/".join(self._names)

    def _next_tree(self, name: str) -> str:
        if name == SEPARATION:
            self._copies += 1
            return f"separation:{self._copies - 1}"
        self._count += 1
        number = self._count - 2
        if number < 0:
            return "live"
        if number < len(self.trash_ids):
            return f"trash:{self.trash_ids[number]}"
        number -= len(self.trash_ids)
        if number < len(self.snapshots):
            return f"snapshot:{self.snapshots[number]}"
        return f"released:{number - len(self.snapshots)}"


def _mode_record(row: ModeRow) -> dict[str, Any]:
    return {
        "type": "mode",
        "server": row.server_id.hex(),
        "is_leaving": row.is_leaving,
        "maintenance_until_ms": row.maintenance_until_ms,
    }


def _record(row: Row, trees: _Trees) -> dict[str, Any]:
    match row:
        case ServerRow():
            return {
                "type": "server",
                "server": row.server_id.hex(),
                "name": row.name,
                "address": row.address,
                "rack": row.rack,
            }
        case ChunkRow():
            return {
                "type": "chunk",
                "chunk": row.handle.hex(),
                "length": row.length,
                "crc32c": f"{row.crc:08x}",
                "servers": [server.hex() for server in row.servers],
            }
        case GarbageRow():
            return {
                "type": "garbage",
                "chunk": row.handle.hex(),
                "length": row.length,
                "servers": [server.hex() for server in row.servers],
                "since_ms": row.since_ms,
            }
        case TrashRow():
            return {"type": "trash", "trash_id": row.trash_id, "path": row.path, "deleted_ms": row.deleted_ms}
        case ModeRow():
            return _mode_record(row)
        case SnapshotRow():
            return {
                "type": "snapshot",
                "directory": row.directory,
                "name": row.name,
                "created_ms": row.created_ms,
                "shelf_inode": row.shelf_inode,
                "shelf_ms": row.shelf_ms,
            }
        case QuotaRow():
            return {"type": "quota", "path": row.path, "names": row.names, "stored_size": row.stored_size}
        case SessionRow():
            return {
                "type": "session",
                "session": row.session.hex(),
                "first_unacked": row.first_unacked,
                "last_used_ms": row.last_used_ms,
                "results": [[sequence, result.hex()] for sequence, result in row.results],
            }
        case TailRow():
            return {
                "type": "tail",
                "path": row.path,
                "chunk": row.handle.hex(),
                "servers": [server.hex() for server in row.servers],
                "begun_ms": row.begun_ms,
                "reserved": row.reserved,
            }
        case AppenderRow():
            return {
                "type": "appender",
                "inode": row.inode,
                "versions": list(row.versions),
                "appender": row.appender.hex(),
                "last_sequence": row.last_sequence,
                "offsets": list(row.offsets),
                "used_ms": row.used_ms,
            }
    return _node_record(row, trees)


def _node_record(row: NodeRow, trees: _Trees) -> dict[str, Any]:
    tree, path = trees.place(row.depth, row.name)
    common = {"tree": tree, "path": path, "inode": row.inode, "mtime_ms": row.mtime_ms}
    if not row.replication:
        shares = {"shares": row.version} if row.version else {}  # the directory line, from 1, whose entries it has
        copies = {"copies": row.size} if row.size else {}  # likewise, whose entries are being copied to here
        return {"type": "directory", **common, **shares, **copies}
    _, found = extents.window(row.extents, row.size, 0, extents.count(row.extents))
    return {
        "type": "file",
        **common,
        "version": row.version,
        "replication": row.replication,
        "size": row.size,
        "extents": [[handle.hex(), offset, length] for handle, offset, length in found],
    }


# --- lines to pieces


def import_pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of an exported state; raise `StorageCorrupt` with the line that is wrong.

    Only a run to the end proves the lines: the trailer comes last.
    """
    yield from _Importer().run(lines)


class _Importer:
    """Reads lines in their order."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._trees = _Trees()
        self._lengths: dict[ChunkHandle, int] = {}
        self._table: type[Any] = Servers
        self._rows: list[Row] = []
        self._size = self._row_count = 0

    def run(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        number = crc = 0
        is_over = False
        for number, line in enumerate(lines, 1):
            try:
                if is_over:
                    raise ValueError("there are lines after the end")
                if len(line) > LINE_SIZE_MAX:
                    raise ValueError(f"it is longer than {LINE_SIZE_MAX} bytes")
                record = msgspec.json.decode(line)
                if record["type"] == "end":
                    self._check_end(record, crc)
                    is_over = True
                    yield from self._flush()
                    yield _ENCODER.encode(End(self._row_count))
                    continue
                crc = crc32c(line, crc)
                self._counts[record["type"]] += 1
                if number == 1:
                    yield _ENCODER.encode(_start(record))
                else:
                    yield from self._take(*self._row(record), len(line))
            except _DAMAGED as error:
                text = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
                raise StorageCorrupt(f"line {number} of the export is damaged or not of one: {text}") from error
        if not is_over:
            raise StorageCorrupt(f"the export ends after {number} lines without its last line; fetch it again")

    def _check_end(self, record: dict[str, Any], crc: int) -> None:
        if record["counts"] != dict(self._counts):
            raise ValueError(f"it counts {record['counts']}, there are {dict(self._counts)}")
        if record["crc32c"] != f"{crc:08x}":
            raise ValueError(f"the checksum of the lines before is {crc:08x}, {record['crc32c']} is expected")

    def _take(self, table: type[Any], row: Row, size: int) -> Iterator[bytes]:
        if table is not self._table or self._size >= PIECE_SIZE or len(self._rows) >= _ROWS_MAX:
            yield from self._flush()
        self._table = table
        self._rows.append(row)
        self._size += size

    def _flush(self) -> Iterator[bytes]:
        if self._rows:
            self._row_count += len(self._rows)
            yield _ENCODER.encode(self._table(self._rows))
        self._rows, self._size = [], 0

    def _row(self, record: dict[str, Any]) -> tuple[type[Any], Row]:
        match record["type"]:
            case "server":
                server_id = ServerId(bytes.fromhex(record["server"]))
                return Servers, ServerRow(server_id, record["name"], record["address"], record["rack"])
            case "chunk":
                handle = ChunkHandle(bytes.fromhex(record["chunk"]))
                self._lengths[handle] = record["length"]
                crc = int(record["crc32c"], 16)
                return Chunks, ChunkRow(handle, record["length"], crc, _servers(record))
            case "garbage":
                handle = ChunkHandle(bytes.fromhex(record["chunk"]))
                return GarbageRows, GarbageRow(handle, record["length"], _servers(record), record["since_ms"])
            case "trash":
                self._trees.trash_ids.append(record["trash_id"])
                return TrashRows, TrashRow(record["trash_id"], record["path"], record["deleted_ms"])
            case "snapshot":
                snapshot = SnapshotRow(
                    record["directory"],
                    record["name"],
                    record["created_ms"],
                    record["shelf_inode"],
                    record["shelf_ms"],
                )
                self._trees.snapshots.append(_snapshot_path(snapshot))
                return SnapshotRows, snapshot
            case "quota":
                return QuotaRows, QuotaRow(record["path"], record["names"], record["stored_size"])
            case "session":
                session = SessionId(bytes.fromhex(record["session"]))
                results = tuple((sequence, bytes.fromhex(result)) for sequence, result in record["results"])
                return Sessions, SessionRow(session, record["first_unacked"], record["last_used_ms"], results)
            case "mode":
                server_id = ServerId(bytes.fromhex(record["server"]))
                return ServerModes, ModeRow(server_id, record["is_leaving"], record["maintenance_until_ms"])
            case "tail":
                handle = ChunkHandle(bytes.fromhex(record["chunk"]))
                return TailRows, TailRow(
                    record["path"], handle, _servers(record), record["begun_ms"], record.get("reserved", 0)
                )
            case "appender":
                return AppenderRows, _appender(record)
            case "directory" | "file":
                return Nodes, self._node(record)
            case other:
                raise ValueError(f"records of type {other!r} are unknown; was it made by a newer version?")

    def _node(self, record: dict[str, Any]) -> NodeRow:
        path = record["path"]
        depth = 0 if path == "/" else path.count("/")
        name = path.rpartition("/")[2]
        if copied := record.get("copies", 0):
            name = SEPARATION
        expected = self._trees.place(depth, name)
        if (record["tree"], path) != expected:
            raise ValueError(f"{path!r} of tree {record['tree']!r} does not follow the line before")
        if record["type"] == "directory":
            shared = record.get("shares", 0)
            return NodeRow(depth, name, record["inode"], record["mtime_ms"], shared, 0, copied)
        return NodeRow(
            depth,
            name,
            record["inode"],
            record["mtime_ms"],
            record["version"],
            record["replication"],
            record["size"],
            self._packed(record["extents"], record["size"]),
        )

    def _packed(self, listed: list[list[Any]], size: int) -> bytes:
        found = [Extent(ChunkHandle(bytes.fromhex(chunk)), offset, length) for chunk, offset, length in listed]
        if sum(extent.length for extent in found) != size:
            raise ValueError(f"the extents do not add up to the size of {size} bytes")
        if len(found) == 1 and not found[0].chunk_offset and self._lengths.get(found[0].handle) == size:
            return extents.whole_chunk(found[0].handle)
        return extents.pack(found)


def _start(record: dict[str, Any]) -> Start:
    if record["type"] != "header" or record["format"] != FORMAT:
        raise ValueError("it does not begin with the header of an export")
    if record["version"] != FORMAT_VERSION:
        raise ValueError(f"its format is version {record['version']}, {FORMAT_VERSION} is read here")
    names = [field.name for field in msgspec.structs.fields(Start) if field.required or field.name in record]
    return Start(**{name: VERSION if name == "version" else record[name] for name in names})


def _appender(record: dict[str, Any]) -> AppenderRow:
    return AppenderRow(
        record["inode"],
        tuple(record["versions"]),
        bytes.fromhex(record["appender"]),
        record["last_sequence"],
        tuple(record["offsets"]),
        record["used_ms"],
    )


def _servers(record: dict[str, Any]) -> tuple[ServerId, ...]:
    return tuple(ServerId(bytes.fromhex(server)) for server in record["servers"])
