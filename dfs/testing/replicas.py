"""What tests do to the replicas of a store: put them in, read them out, damage their files.

Owns: these few motions, for any `ChunkStore` and for the files of a `FileStore`, and a store of small volumes to do
them to. Refuses to know: what is asserted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dfs.checksum import block_checksums, crc32c
from dfs.chunk.layout import data_length, file_size
from dfs.chunk.replicas import ChunkStore, Replica, Space
from dfs.chunk.store import FileStore
from dfs.chunk.volumes.records import HEADER_SIZE, RecordHeader, RecordKind, VolumeName
from dfs.chunk.volumes.scan import read_volume
from dfs.chunk.volumes.volumes import VOLUME_CHUNK_MAX
from dfs.ids import ChunkHandle, id_text, new_chunk_handle

DATA: Final = bytes(range(256)) * 700  # two blocks and a rest
PIECE_SIZE: Final = 1024 * 1024  # bytes written at a time; whole blocks
SMALL_VOLUME: Final = 8 * 1024  # bytes: a few records fill one


def roomy(_path: Path) -> Space:
    """The space of a disk that never fills."""
    return Space(10**9, 10**9)


@contextlib.contextmanager
def small_volumes(
    path: Path, *, fsync: bool = False, volume_size: int = SMALL_VOLUME, volume_chunk_max: int = VOLUME_CHUNK_MAX
) -> Iterator[FileStore]:
    """Open a store on one data directory whose volumes are full after a few records."""
    store = FileStore(
        [path],
        "test",
        disk_reserve=0,
        fsync=fsync,
        probe=roomy,
        volume_size=volume_size,
        volume_chunk_max=volume_chunk_max,
    )
    try:
        yield store
    finally:
        store.close()


def put(store: ChunkStore, data: bytes = DATA, handle: ChunkHandle | None = None) -> Replica:
    """Publish `data` as a replica, by default of a new chunk."""
    writer = store.create(handle or new_chunk_handle())
    try:
        for start in range(0, len(data), PIECE_SIZE):
            part = memoryview(data)[start : start + PIECE_SIZE]
            writer.write(part, block_checksums(part))
        writer.check(len(data), crc32c(data))
        return writer.publish()
    finally:
        writer.discard()


def content(store: ChunkStore, handle: ChunkHandle) -> bytes:
    """Return all bytes of a replica, unverified."""
    with store.open(handle) as opened:
        return os.pread(opened.fd, opened.tail.length, opened.start)


def path_of(disk: Path, handle: ChunkHandle) -> Path:
    """Return where a data directory keeps the file of a replica."""
    return disk / "chunks" / id_text(handle)[:2] / id_text(handle)


@dataclass(frozen=True, slots=True)
class StoredReplica:
    """Where the bytes [`start`, +`length`) of a replica lie on disk: in a file of their own or in a volume."""

    handle: ChunkHandle
    path: Path
    start: int
    length: int
    published_ms: int

    def data(self) -> bytes:
        """Return all bytes, unverified."""
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), self.length, self.start)

    def damage(self, at: float = 0.0) -> None:
        """Flip one bit of the data, `at` of [0, 1) of its length, behind the store's back."""
        flip(self.path, self.start + int(at * self.length))


def stored_in(disk: Path) -> list[StoredReplica]:
    """Return what a data directory holds, oldest first. What goes meanwhile may be named or not."""
    found = []
    for path in (disk / "chunks").glob("??/*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            handle = ChunkHandle(bytes.fromhex(path.name))
            found.append(StoredReplica(handle, path, 0, data_length(status.st_size), status.st_mtime_ns // 1_000_000))
    records: list[tuple[Path, int, RecordHeader]] = []
    for path in (disk / "volumes").glob("*.vol"):
        name = VolumeName.parse(path.stem)
        assert name is not None, path
        with contextlib.suppress(FileNotFoundError):
            scanned = read_volume(path, path.with_suffix(".idx"), name)
            records += [(path, name.number, header) for header in scanned.headers]
    gone = {
        (header.target_volume, header.target_offset) for _, _, header in records if header.kind is RecordKind.TOMBSTONE
    }
    found += [
        StoredReplica(header.handle, path, header.start, header.length, header.moment_ms)
        for path, number, header in records
        if header.kind is RecordKind.REPLICA and (number, header.offset) not in gone
    ]
    return sorted(found, key=lambda replica: replica.published_ms)


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file behind the store's back."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def quarantined(disk: Path) -> list[str]:
    """Return the names in the quarantine of a data directory, sorted."""
    return sorted(path.name for path in (disk / "quarantine").iterdir())


def volumes_of(disk: Path) -> list[Path]:
    """Return the volumes of a data directory in the order of their names."""
    return sorted((disk / "volumes").glob("*.vol"))


def record_size(length: int) -> int:
    """Return the bytes that a replica of `length` takes in a volume."""
    return HEADER_SIZE + file_size(length)
