"""The small replicas of one disk, together in a few append-only files.

Owns: the volumes of a disk, where each small replica is, what is garbage in them, and the order in which things become
durable. Refuses to know: the other replicas, what is reported to whom, and when to compact.

Why and how: docs/adr/0018. A record counts from the moment at which its group commit is on the disk; places change
then, under the lock, which is never held over input or output. Whoever writes or removes files has the commit's turn.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dfs.checksum import Buffer
from dfs.chunk.ballast import Ballast
from dfs.chunk.disk import Disk
from dfs.chunk.group_commit import GroupCommit
from dfs.chunk.identity import sync_directory
from dfs.chunk.layout import decode_tail, file_size
from dfs.chunk.replicas import Done, Replica
from dfs.chunk.volumes.files import WHOLE_SIZE_MAX, OpenRecord, VolumeFiles, read_whole, write_all
from dfs.chunk.volumes.gathering import Gathered, Gathering
from dfs.chunk.volumes.records import (
    HEADER_SIZE,
    SALT_SIZE,
    RecordHeader,
    RecordKind,
    VolumeName,
    encode_header,
    encode_index,
)
from dfs.chunk.volumes.scan import ScannedVolume, read_volume
from dfs.errors import ChunkNotFound, DiskFailed, DiskFull
from dfs.fast_paths import FastPath, is_on
from dfs.ids import ChunkHandle, id_text
from dfs.log import get_logger

VOLUME_CHUNK_MAX = 256 * 1024  # bytes of a chunk that goes into a volume; above it a file of its own costs little more
VOLUME_SIZE = (
    64 * 1024 * 1024
)  # bytes after which a volume is full; a start reads at most one per disk record by record
BATCH_SIZE_MAX = 8 * 1024 * 1024  # bytes in one group commit
AHEAD_SIZE = 1024 * 1024  # bytes of zeros that are written behind a small batch, for the next ones to be written over
AHEAD_BATCH_MAX = 64 * 1024  # bytes of a batch; for a larger one the second write costs more than the sync gains
GARBAGE_SHARE = 0.5  # of a full volume, from which on it is compacted

_VOLUME, _INDEX, _DRAFT = ".vol", ".idx", ".tmp"

log = get_logger(__name__)


@dataclass(slots=True, eq=False)
class Volume:
    """One volume. `end`: its durable bytes; `live`: those of records that count or are needed."""

    name: VolumeName
    path: Path
    end: int = 0
    live: int = 0
    replica_count: int = 0
    is_full: bool = False
    has_outdated: bool = False  # an outdated copy without a tombstone: must go before any other (ADR 18)
    tombstones: Counter[int] = field(
        default_factory=Counter
    )  # how many are here, by the number of the volume they name
    headers: list[bytes] = field(default_factory=list)  # for the index, until it is full

    @property
    def index_path(self) -> Path:
        return self.path.with_suffix(_INDEX)

    @property
    def is_worth_compacting(self) -> bool:
        return self.is_full and (self.has_outdated or self.end - self.live >= GARBAGE_SHARE * self.end)


class Place(NamedTuple):
    """Where a small replica is."""

    volume: Volume
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Write:
    """What somebody wants in the log: a replica with its body, or (`body` empty) the deletion of one."""

    handle: ChunkHandle
    moment_ms: int
    length: int = 0
    crc: int = 0
    body: tuple[Buffer, ...] = ()


class Arrival(NamedTuple):
    """A replica that is to be appended; `done` hears how that went."""

    replica: Replica
    data: Buffer
    tail: bytes
    done: Done


class VolumeSet:
    """All volumes of one disk. Thread-safe; the store sees to it that one handle is not put and deleted at once."""

    def __init__(self, disk: Disk, *, fsync: bool, volume_size: int = VOLUME_SIZE) -> None:
        self.disk = disk
        self.folder = disk.path / "volumes"
        self._fsync = fsync
        self._volume_size = volume_size
        self._lock = threading.Lock()
        self._places: dict[ChunkHandle, Place] = {}
        self._volumes: dict[int, Volume] = {}
        self._present: tuple[Volume, int] | None = None  # the volume that is written to, and its descriptor
        self._writes_ahead = fsync and is_on(FastPath.VOLUME_AHEAD)
        self._ahead_end = 0  # of the bytes of the present volume that the disk has places for
        self._is_closed = False
        self._last_number = 0  # of any volume that was begun: none is used twice
        self._files = VolumeFiles()
        self._ballast = Ballast(disk)
        self._turns: GroupCommit[_Write] = GroupCommit(self._commit, batch_size_max=BATCH_SIZE_MAX)
        self._gathering = Gathering(self._turns, self._commit, batch_size_max=BATCH_SIZE_MAX)

    # --- start --------------------------------------------------------------------------------------------

    def load(self) -> list[Replica]:
        """Read all volumes; return the replicas that count. A disk that cannot be read is failed."""
        try:
            return self._load()
        except OSError as error:
            self.disk.judge(error, f"reading the volumes in {self.folder}")
            return []

    def _load(self) -> list[Replica]:
        if not self.folder.exists():
            self.folder.mkdir(mode=0o700)
            sync_directory(self.folder.parent)
        scans: list[tuple[Volume, ScannedVolume]] = []
        found = self._tidy()
        if self._fsync:
            sync_directory(self.folder)  # the process may have died before that; what is reported must be durable
        for name, path in found:
            volume = Volume(name, path)
            scan = read_volume(path, volume.index_path, name)
            volume.end, volume.is_full = scan.end, scan.has_index
            self._volumes[name.number] = volume
            self._last_number = name.number
            scans.append((volume, scan))
        if scans:
            self._resume(*scans[-1])
        replicas = self._resolve(scans)
        for volume, scan in scans:
            self._finish_scanned(volume, scan)
        return replicas

    def _tidy(self) -> list[tuple[VolumeName, Path]]:
        """Return the volumes by number; remove what a crash left of unfinished and outlived indexes."""
        names = sorted(entry.name for entry in os.scandir(self.folder))
        found: list[tuple[VolumeName, Path]] = []
        for text in names:
            path = self.folder / text
            name = VolumeName.parse(path.stem) if path.suffix == _VOLUME else None
            if name is not None:
                found.append((name, path))
            elif path.suffix == _DRAFT or (path.suffix == _INDEX and f"{path.stem}{_VOLUME}" not in names):
                path.unlink()
            elif path.suffix != _INDEX:
                log.warning("volume_ignored", path=path, reason="it is not named like a volume")
        return sorted(found, key=lambda item: item[0].number)

    def _resume(self, volume: Volume, scan: ScannedVolume) -> None:
        """Go on writing where the last volume's sound part ends."""
        if volume.is_full or volume.end >= self._volume_size:
            return
        fd = os.open(volume.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._present = volume, fd
        if os.fstat(fd).st_size > volume.end:
            os.ftruncate(fd, volume.end)
        self._sync(fd)  # likewise: what a process wrote that died before its sync
        if volume.index_path.exists():  # of a volume that was cut off: it would hide what is appended from here on
            volume.index_path.unlink()
            if self._fsync:
                sync_directory(self.folder)
        volume.headers = [encode_header(header, volume.name.salt) for header in scan.headers]

    def _resolve(self, scans: Sequence[tuple[Volume, ScannedVolume]]) -> list[Replica]:
        """Find the copy of each handle that counts: the last in log order, unless a tombstone names it."""
        latest: dict[ChunkHandle, tuple[Volume, RecordHeader]] = {}
        outdated: list[tuple[Volume, int]] = []
        ended: set[tuple[int, int]] = set()
        for volume, scan in scans:
            for header in scan.headers:
                if header.kind is RecordKind.TOMBSTONE:
                    ended.add((header.target_volume, header.target_offset))
                    volume.tombstones[header.target_volume] += 1
                    continue
                if (before := latest.get(header.handle)) is not None:
                    outdated.append((before[0], before[1].offset))
                latest[header.handle] = volume, header
        for volume, offset in outdated:
            volume.has_outdated = volume.has_outdated or (volume.name.number, offset) not in ended
        replicas = []
        for handle, (volume, header) in latest.items():
            if (volume.name.number, header.offset) not in ended:
                self._places[handle] = Place(volume, header.offset, header.length)
                volume.live += header.size
                volume.replica_count += 1
                replicas.append(Replica(handle, header.length, header.crc, header.moment_ms))
        for volume in self._volumes.values():
            volume.live += HEADER_SIZE * sum(
                count for target, count in volume.tombstones.items() if target in self._volumes
            )
        return replicas

    def _finish_scanned(self, volume: Volume, scan: ScannedVolume) -> None:
        """Set damaged records aside; give a volume that is not written any more its index, which leaves them out."""
        for header, reason in scan.damaged:
            self._copy_aside(volume, header, reason)
        is_present = self._present is not None and self._present[0] is volume
        if is_present and (volume.has_outdated or scan.damaged):
            self._retire()
        elif not is_present and not scan.has_index:
            self._sync_found(volume)
            volume.headers = [encode_header(header, volume.name.salt) for header in scan.headers]
            self._finish(volume)

    def _sync_found(self, volume: Volume) -> None:
        if self._fsync:
            fd = os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)

    # --- reading ------------------------------------------------------------------------------------------

    def holds(self, handle: ChunkHandle) -> bool:
        return handle in self._places

    def open(self, handle: ChunkHandle) -> OpenRecord:
        """Open a replica; raise `ChunkNotFound`, `ChunkCorrupt` or `VersionMismatch` (for its tail), or `OSError`."""
        while True:
            place = self._places.get(handle)
            if place is None:
                raise ChunkNotFound(f"the volumes of {self.disk.path} hold no replica of chunk {id_text(handle)}")
            try:
                name = place.volume.name
                number = name.number
                file = self._files.take(number, place.volume.path, partial(self._volumes.__contains__, number))
            except FileNotFoundError:
                if self._places.get(handle) is place:
                    raise
                continue  # its volume was compacted at this moment: look again
            start, size = place.offset + HEADER_SIZE, file_size(place.length)
            try:
                if place.length <= WHOLE_SIZE_MAX and (whole := read_whole(file.fd, start, size)):
                    data, end = whole[: place.length], whole[place.length :]
                else:
                    data, end = None, os.pread(file.fd, size - place.length, start + place.length)
                return OpenRecord(self._files, file, name, start, decode_tail(end, place.length, handle), data)
            except BaseException:
                self._files.release(file)
                raise

    def reopen(self, handle: ChunkHandle) -> None:
        """Let the next reader of a replica open its volume anew."""
        place = self._places.get(handle)
        if place is not None:
            self._files.evict(place.volume.name.number)

    # --- writing ------------------------------------------------------------------------------------------

    def append(self, replica: Replica, data: Buffer, tail: bytes) -> None:
        """Make a replica durable; it can be opened when this returns. Raise `DiskFull`, `DiskFailed`, `Overloaded`."""
        self._turns.submit(_write_of(replica, data, tail), HEADER_SIZE + len(data) + len(tail))

    def append_all(self, arrivals: Sequence[Arrival]) -> None:
        """Make replicas durable together, by this thread or by one that waits for its turn already."""
        self._gathering.submit(
            [
                Gathered(_write_of(replica, data, tail), HEADER_SIZE + len(data) + len(tail), done)
                for replica, data, tail, done in arrivals
            ]
        )

    def delete(self, handle: ChunkHandle, now_ms: int) -> None:
        """Make the end of a replica durable; its bytes are garbage from then on. Raise as `append`."""
        self._turns.submit(_Write(handle, now_ms), HEADER_SIZE)

    def _check_usable(self) -> None:
        if self._is_closed:  # a writer that outlived its daemon: the directory may be another's already
            raise DiskFailed(f"the volumes of {self.disk.path} are closed; this chunk server is stopping")
        self.disk.check_room(0)

    def _commit(self, batch: list[_Write]) -> None:
        """Append a batch and sync once; then, and not before, it counts. Deletions find room on a full disk, too."""
        while True:
            try:
                self._append_all(batch)
            except DiskFull:
                if any(write.body for write in batch) or not self._ballast.release():
                    raise
            else:
                return

    def _append_all(self, batch: list[_Write]) -> None:
        self._check_usable()
        with self._errors_judged("appending to a volume"):
            volume, fd = self._writable()
            headers: list[RecordHeader] = []
            buffers: list[Buffer] = []
            end = volume.end
            for write in batch:
                header = self._header(write, end)
                if header is not None:
                    headers.append(header)
                    buffers += (encode_header(header, volume.name.salt), *write.body)
                    end += header.size
            self._write_durably(volume, fd, buffers)
        self._count(volume, headers, end)

    def _header(self, write: _Write, offset: int) -> RecordHeader | None:
        """Return the header of a write; None when there is nothing to delete any more."""
        handle = write.handle
        if write.body:
            return RecordHeader(RecordKind.REPLICA, offset, handle, write.length, write.crc, write.moment_ms)
        place = self._places.get(handle)
        if place is None:
            return None
        number = place.volume.name.number
        return RecordHeader(RecordKind.TOMBSTONE, offset, handle, 0, 0, write.moment_ms, number, place.offset)

    def _count(self, volume: Volume, headers: Sequence[RecordHeader], end: int) -> None:
        """Let durable records count."""
        with self._lock:
            for header in headers:
                if header.kind is RecordKind.TOMBSTONE:
                    place = self._places.get(header.handle)
                    if place is not None and _is_named_by(header, place):  # not a later life under the same handle
                        self._discount(self._places.pop(header.handle))
                    volume.tombstones[header.target_volume] += 1
                else:
                    if (moved := self._places.get(header.handle)) is not None:
                        self._discount(moved)
                    self._places[header.handle] = Place(volume, header.offset, header.length)
                    volume.replica_count += 1
                volume.live += header.size
                volume.headers.append(encode_header(header, volume.name.salt))
            volume.end = end

    @staticmethod
    def _discount(place: Place) -> None:
        place.volume.live -= HEADER_SIZE + file_size(place.length)
        place.volume.replica_count -= 1

    def _write_durably(self, volume: Volume, fd: int, buffers: list[Buffer]) -> None:
        """Append behind the durable end; after a failure nothing of it is left there, or the volume is given up."""
        is_written = False
        try:
            write_all(fd, buffers, volume.end)
            is_written = True
            if self._writes_ahead:
                self._write_ahead(fd, volume.end, volume.end + sum(map(len, buffers)))
            self._sync(fd)
        except OSError:
            self._ahead_end = 0
            try:
                os.ftruncate(fd, volume.end)
            except OSError:
                is_written = True
            if is_written:  # what is on the disk now is not known: not one more byte goes into this volume
                self._retire()
            raise

    def _write_ahead(self, fd: int, start: int, end: int) -> None:
        """See to it that most small batches change no size and no place of the file: their sync is then one write of
        the disk instead of a transaction of the file system. A disk without room for that does without."""
        if end <= self._ahead_end or end - start > AHEAD_BATCH_MAX:
            return
        size = min(AHEAD_SIZE, self._volume_size - end)
        if 0 < size < self.disk.space().free:  # above the reserve: what is kept for deletions is not for this
            with contextlib.suppress(OSError):  # it was only meant to help
                write_all(fd, [bytes(size)], end)
                self._ahead_end = end + size  # durable by the sync of this batch

    def _sync(self, fd: int) -> None:
        if self._fsync:
            os.fdatasync(fd)

    # --- the life of a volume -------------------------------------------------------------------------------

    def _writable(self) -> tuple[Volume, int]:
        """Return the present volume and its descriptor, a new one when the last is full; raise `OSError`, or
        `DiskFailed` after `close`: the next process may have the disk by then."""
        if self._is_closed:
            raise DiskFailed(f"this chunk server is being stopped; {self.folder} is not written any more")
        if self._present is not None and self._present[0].end >= self._volume_size:
            self._retire()
        if self._present is None:
            self._last_number += 1
            name = VolumeName(self._last_number, os.urandom(SALT_SIZE))
            path = self.folder / f"{name.text}{_VOLUME}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if self._fsync:
                    sync_directory(self.folder)
            except OSError:
                os.close(fd)
                path.unlink(missing_ok=True)
                raise
            volume = Volume(name, path)
            with self._lock:
                self._volumes[name.number] = volume
            self._present, self._ahead_end = (volume, fd), 0
        return self._present

    def _retire(self) -> None:
        """Write no more into the present volume."""
        if self._present is None:
            return
        volume, fd = self._present
        self._present = None
        self._let_go(volume, fd)
        self._finish(volume)

    def _let_go(self, volume: Volume, fd: int) -> None:
        """Close the volume that was written to, without the zeros behind its end."""
        with contextlib.suppress(OSError):  # what had to be on the disk was synced
            if self._ahead_end > volume.end:
                os.ftruncate(fd, volume.end)
        with contextlib.suppress(OSError):
            os.close(fd)

    def _finish(self, volume: Volume) -> None:
        """Write the index of a full volume; without one the next start reads the volume itself."""
        draft = volume.path.with_suffix(_DRAFT)
        try:
            self._write_private(draft, encode_index(volume.headers, volume.end))
            draft.rename(volume.index_path)
        except OSError as error:
            log.warning("volume_index_not_written", volume=volume.path, reason=error.strerror or str(error))
        with self._lock:
            volume.headers = []
            volume.is_full = True

    def _write_private(self, path: Path, data: bytes) -> None:
        """Write a file anew, durably, that only the daemon's user may read."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, [data], 0)
            self._sync(fd)
        finally:
            os.close(fd)

    # --- compaction (dfs.chunk.volumes.compaction decides when) -----------------------------------------------------

    def worst(self) -> Volume | None:
        """Return the volume that is to be compacted next."""
        with self._lock:
            worth = [volume for volume in self._volumes.values() if volume.is_worth_compacting]
        return max(worth, key=_compaction_rank, default=None)

    def restore_ballast(self) -> None:
        """Take the room for deletions on a full disk again."""
        with self._turns.paused():
            if not self._is_closed:
                self._ballast.restore()

    def is_needed(self, volume: Volume, header: RecordHeader) -> bool:
        """Whether a record of `volume` must outlive it."""
        if header.kind is RecordKind.TOMBSTONE:
            return header.target_volume != volume.name.number and header.target_volume in self._volumes
        place = self._places.get(header.handle)
        return place is not None and place.volume is volume and place.offset == header.offset

    def move(self, source: Volume, records: Sequence[tuple[RecordHeader, bytes]]) -> None:
        """Append what is still needed of some records of `source` to the present volume, durably."""
        with self._turns.paused():
            self._check_usable()
            with self._errors_judged("compacting a volume"):
                volume, fd = self._writable()
                headers: list[RecordHeader] = []
                buffers: list[Buffer] = []
                end = volume.end
                for header, body in records:
                    if self.is_needed(source, header):
                        moved = header.moved_to(end)
                        headers.append(moved)
                        buffers += (encode_header(moved, volume.name.salt), body)
                        end += moved.size
                if headers:
                    had_outdated = source.has_outdated
                    source.has_outdated = True  # from here on it holds copies that only their copies hide
                    try:
                        self._write_durably(volume, fd, buffers)
                    except OSError:
                        if self._present is not None:  # nothing of them was left there
                            source.has_outdated = had_outdated
                        raise
            self._count(volume, headers, end)

    def remove(self, volume: Volume) -> bool:
        """Remove a volume of which nothing counts any more; whether that was so."""
        with self._turns.paused():
            self._check_usable()
            if volume.replica_count:
                return False
            with self._errors_judged("removing a volume"):
                self._writable()  # the highest number stays in use: an old tombstone must not name a new record
                folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    volume.path.unlink(missing_ok=True)
                    volume.index_path.unlink(missing_ok=True)
                    if self._fsync:
                        os.fsync(folder)  # before any tombstone that names this volume may go
                finally:
                    os.close(folder)
            with self._lock:
                del self._volumes[volume.name.number]
                for other in self._volumes.values():
                    other.live -= HEADER_SIZE * other.tombstones.pop(volume.name.number, 0)
        self._files.evict(volume.name.number)
        return True

    # --- damage -----------------------------------------------------------------------------------------------

    def held_by(self, volume: Volume) -> list[ChunkHandle]:
        """Return the replicas that count and are in `volume`."""
        with self._lock:
            return [handle for handle, place in self._places.items() if place.volume is volume]

    def forget(self, handle: ChunkHandle) -> None:
        """Count a replica as garbage whose end could not be made durable: until its volume goes, a start finds it."""
        with self._lock:
            place = self._places.pop(handle, None)
            if place is not None:
                self._discount(place)
                place.volume.has_outdated = True

    def copy_aside(self, handle: ChunkHandle, reason: str) -> None:
        """Put a copy of a damaged replica into the quarantine; `delete` takes the replica itself away."""
        place = self._places.get(handle)
        if place is not None:
            header = RecordHeader(RecordKind.REPLICA, place.offset, handle, place.length)
            self._copy_aside(place.volume, header, reason)

    def _copy_aside(self, volume: Volume, header: RecordHeader, reason: str) -> None:
        draft = self.disk.temporary / id_text(header.handle)
        try:
            fd = os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._write_private(draft, os.pread(fd, header.size - HEADER_SIZE, header.start))
            finally:
                os.close(fd)
        except OSError as error:
            log.warning("damaged_replica_not_kept", handle=header.handle, reason=error.strerror or str(error))
            with contextlib.suppress(OSError):  # the next start empties tmp/
                draft.unlink(missing_ok=True)
            return
        self.disk.quarantine(draft, reason)

    def close(self) -> None:
        """Let go of all files; nothing needs to be written."""
        with self._turns.paused():
            self._is_closed = True
            if self._present is not None:
                self._let_go(*self._present)
                self._present = None
        self._files.close()

    @contextlib.contextmanager
    def _errors_judged(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.disk.judge(error, doing) from None


def _write_of(replica: Replica, data: Buffer, tail: bytes) -> _Write:
    return _Write(replica.handle, replica.published_ms, replica.length, replica.crc, (data, tail))


def _compaction_rank(volume: Volume) -> tuple[bool, bool, int]:
    """Return how soon it is compacted: one without a live replica needs no room, which a full disk has not."""
    return volume.has_outdated, not volume.replica_count, volume.end - volume.live


def _is_named_by(tombstone: RecordHeader, place: Place) -> bool:
    return (tombstone.target_volume, tombstone.target_offset) == (place.volume.name.number, place.offset)
