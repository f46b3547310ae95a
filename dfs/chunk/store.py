"""The replicas of a chunk server on several disks: large ones as plain files, small ones in volumes.

Owns: the index of what is held, which disk takes a new replica, and the steps of publishing, deleting and verifying.
Refuses to know: connections, tokens, masters, the bytes of the format (dfs.chunk.layout), and how small replicas are
kept together (dfs.chunk.volumes.volumes).

A replica of more than VOLUME_CHUNK_MAX bytes is written under `tmp/`, synced, renamed into its folder, and the folder
synced; only then is it in the index. So a start after a kill needs no repair: what is under `tmp/` was never promised,
what is in a folder is whole or, by its checksums, known not to be. The store's lock guards the index only and is never
held over input or output.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from dfs.checksum import BLOCK_SIZE, Buffer, first_bad_block
from dfs.chunk.changes import ReplicaChanges
from dfs.chunk.damage import find_damage
from dfs.chunk.descriptors import FD_CACHE_MAX, DescriptorCache, OpenReplica
from dfs.chunk.disk import FOLDER_COUNT, Disk, measure_space, read_open_tail
from dfs.chunk.identity import claim, sync_directory
from dfs.chunk.layout import Tail, encode_tail, file_size
from dfs.chunk.replicas import BlockSequence, Done, Pace, Replica, ReplicaWriter, Space, SpaceProbe, failure_of
from dfs.chunk.volumes.compaction import Compactor
from dfs.chunk.volumes.files import OpenRecord
from dfs.chunk.volumes.volumes import VOLUME_CHUNK_MAX, VOLUME_SIZE, Arrival, VolumeSet
from dfs.chunk.writeback import reserve_room, start_writeback
from dfs.clock import SYSTEM_CLOCK, Clock
from dfs.errors import ChunkCorrupt, ChunkExists, ChunkNotFound, DfsError, DiskFailed, DiskFull
from dfs.ids import ChunkHandle, id_text
from dfs.log import get_logger
from dfs.measures import Times
from dfs.net.parts import DiskReport
from dfs.page_cache import write_at

SCAN_THREADS = 8  # folders of a disk read at the same time at start
RESERVE_FROM = 1024 * 1024  # bytes after which a chunk is a large one, for which room is made ahead,
RESERVE_SIZE = 8 * 1024 * 1024  # so much at a time
WRITEBACK_SIZE = 8 * 1024 * 1024  # bytes after which the kernel is told to start writing: the final sync is short then

log = get_logger(__name__)


class FileStore:
    """The `ChunkStore` of a daemon (contract: dfs.chunk.replicas)."""

    def __init__(
        self,
        data_dirs: Sequence[Path],
        cluster: str,
        *,
        disk_reserve: int,
        fsync: bool = True,
        probe: SpaceProbe = measure_space,
        clock: Clock = SYSTEM_CLOCK,
        fd_cache_max: int = FD_CACHE_MAX,
        volume_chunk_max: int = VOLUME_CHUNK_MAX,
        volume_size: int = VOLUME_SIZE,
    ) -> None:
        """Claim the directories and read what they hold; raise `ConfigError` or `DiskFailed` (no usable one).

        Chunks of up to `volume_chunk_max` bytes (0: none) go into volumes of about `volume_size` bytes.
        """
        self.server_id, claimed = claim(data_dirs, cluster)
        self.changes = ReplicaChanges()
        self.fsync = fsync
        self.syncs = Times()  # how long making a finished replica durable takes
        self._clock = clock
        self._lock = threading.Lock()
        self._index: dict[ChunkHandle, tuple[Replica, Disk]] = {}
        self._busy: set[ChunkHandle] = set()  # being written or removed: their files are not to be touched
        self._ending: set[ChunkHandle] = set()  # in a volume, and being removed from it
        self._open = DescriptorCache(fd_cache_max)
        self._disks = tuple(
            Disk(found, reserve=disk_reserve, probe=probe, clock=clock, on_failed=self._drop_disk) for found in claimed
        )
        self.volume_chunk_max = volume_chunk_max
        self._volumes = {disk: VolumeSet(disk, fsync=fsync, volume_size=volume_size) for disk in self._disks}
        self.compactor = Compactor(tuple(self._volumes.values()), self.quarantine)
        for found in claimed:
            if found.failure:
                log.error("disk_failed", disk=found.path, reason=found.failure)
        self._load()

    # --- start ------------------------------------------------------------------------------------------

    def _load(self) -> None:
        working = [disk for disk in self._disks if not disk.has_failed]
        with ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="scan") as pool:
            list(pool.map(Disk.prepare, working))
            jobs = [(disk, start) for disk in working if not disk.has_failed for start in range(SCAN_THREADS)]
            list(pool.map(lambda job: self._load_folders(*job), jobs))
            list(pool.map(self._load_volumes, [disk for disk in working if not disk.has_failed]))
        if all(disk.has_failed for disk in self._disks):
            self.close()
            raise DiskFailed("no data directory is usable: " + "; ".join(disk.report().reason for disk in self._disks))
        log.info("store_opened", server=self.server_id, replicas=len(self._index), disks=len(working))

    def _load_folders(self, disk: Disk, start: int) -> None:
        """Take in what is in every SCAN_THREADS-th folder of a disk."""
        for replica in chain.from_iterable(map(disk.scan_folder, range(start, FOLDER_COUNT, SCAN_THREADS))):
            if not self._take_in(replica, disk):
                disk.quarantine(disk.chunk_path(replica.handle), "another disk of this server has the same chunk")

    def _load_volumes(self, disk: Disk) -> None:
        """Take in what is in the volumes of a disk."""
        volumes = self._volumes[disk]
        for replica in volumes.load():
            if not self._take_in(replica, disk):
                volumes.copy_aside(replica.handle, "another file or disk of this server has the same chunk")
                try:
                    volumes.delete(replica.handle, self.now_ms())
                except DfsError:  # the next start finds it again
                    volumes.forget(replica.handle)

    def _take_in(self, replica: Replica, disk: Disk) -> bool:
        """Put a replica found at start into the index; False when its chunk is there already."""
        with self._lock:
            if replica.handle in self._index:
                return False
            self._index[replica.handle] = (replica, disk)
            disk.chunk_count += 1
            return True

    # --- reading ----------------------------------------------------------------------------------------

    def open(self, handle: ChunkHandle) -> OpenReplica | OpenRecord:
        if (kept := self._open.get(handle)) is not None:
            return kept
        replica, disk = entry = self._entry(handle)
        volumes = self._volumes[disk]
        is_record = volumes.holds(handle)
        path = volumes.folder if is_record else disk.chunk_path(handle)
        try:
            opened = volumes.open(handle) if is_record else self._open_file(path, entry)
        except FileNotFoundError:
            if self._is_going(entry):
                raise ChunkNotFound(f"the replica of chunk {id_text(handle)} is being removed") from None
            log.error("replica_vanished", path=path)
            self.changes.found_corrupt(handle)
            self._forget(handle)
            disk.check_place()
            raise ChunkNotFound(
                f"the file of replica {id_text(handle)} vanished from {disk.path}", vanished=id_text(handle)
            ) from None
        except ChunkCorrupt as error:
            self.quarantine(handle, error.message)
            raise self._corrupt(handle, error.message) from None
        except OSError as error:
            raise disk.judge(error, f"reading {path}") from None
        if (opened.tail.length, opened.tail.crc) != (replica.length, replica.crc):
            opened.__exit__(None, None, None)
            reason = f"the file of replica {id_text(handle)} was exchanged for another one"
            self.quarantine(handle, reason)
            raise self._corrupt(handle, reason)
        return opened

    def _is_going(self, entry: tuple[Replica, Disk]) -> bool:
        """Whether a replica that was in the index a moment ago is being deleted, or was."""
        handle = entry[0].handle
        with self._lock:
            return self._index.get(handle) is not entry or handle in self._ending

    def _open_file(self, path: Path, entry: tuple[Replica, Disk]) -> OpenReplica:
        """Open a plain file and keep it open; raise `ChunkCorrupt`, `VersionMismatch` or `OSError`."""
        handle = entry[0].handle
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            tail = read_open_tail(fd, handle)[0]
        except BaseException:
            os.close(fd)
            raise
        return self._open.put(fd, tail, lambda: self._index.get(handle) is entry)

    def _entry(self, handle: ChunkHandle) -> tuple[Replica, Disk]:
        with self._lock:
            entry = self._index.get(handle)
        if entry is None:
            raise ChunkNotFound(f"chunk server {id_text(self.server_id)} has no replica of chunk {id_text(handle)}")
        return entry

    def _corrupt(self, handle: ChunkHandle, text: str) -> ChunkCorrupt:
        return ChunkCorrupt(text, handle=id_text(handle), server=id_text(self.server_id))

    def replica(self, handle: ChunkHandle) -> Replica | None:
        with self._lock:
            entry = self._index.get(handle)
        return entry[0] if entry else None

    def handles(self) -> list[ChunkHandle]:
        with self._lock:
            held = list(self._index)
        held.sort()
        return held

    # --- writing ----------------------------------------------------------------------------------------

    def create(self, handle: ChunkHandle) -> FileReplicaWriter:
        disk = self._choose_disk()
        with self._lock:
            if handle in self._index or handle in self._busy or handle in self._ending:
                raise ChunkExists(f"chunk {id_text(handle)} exists here already; write under a new handle")
            self._busy.add(handle)
            disk.writers += 1
        writer = FileReplicaWriter(self, disk, self._volumes[disk], handle)
        if not self.volume_chunk_max:
            writer.begin_file()
        return writer

    def adopt(self, path: Path, tail: Tail) -> bool:
        homes = [disk for disk in self._disks if path.parent.parent == disk.path]
        if not homes or tail.length <= self.volume_chunk_max:
            return False
        handle, disk = tail.handle, homes[0]
        with self._lock:
            if handle in self._index or handle in self._busy or handle in self._ending:
                raise ChunkExists(f"chunk {id_text(handle)} exists here already; write under a new handle")
            self._busy.add(handle)
            disk.writers += 1
        try:
            self._adopt_file(disk, path, tail)
            self.add(Replica(handle, tail.length, tail.crc, self.now_ms()), disk)
        except FileNotFoundError:
            disk.check_place()
            raise ChunkNotFound(f"{path} vanished before it was chunk {id_text(handle)}") from None
        except OSError as error:
            raise disk.judge(error, f"publishing chunk {id_text(handle)}") from None
        finally:
            self.finish_writing(handle, disk)
        return True

    def _adopt_file(self, disk: Disk, path: Path, tail: Tail) -> None:
        """Cut the file to what a replica is, durably, and only then give it the name of one; raise OSError."""
        disk.check_room(0)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            write_at(fd, encode_tail(tail.handle, tail.length, tail.crc, tail.checksums), tail.length)
            os.ftruncate(fd, file_size(tail.length))
            if self.fsync:
                os.fdatasync(fd)
        finally:
            os.close(fd)
        target = disk.chunk_path(tail.handle)
        path.rename(target)
        if not self.fsync:
            return
        try:
            sync_directory(target.parent)
            sync_directory(path.parent)
        except OSError:
            with contextlib.suppress(OSError):  # it is whole under either name; who tries again looks for the first
                target.rename(path)
            raise

    def _choose_disk(self) -> Disk:
        """Return the disk with the most free bytes per present writer, so that parallel writes use all of them."""
        best, best_score = None, 0.0
        for disk in self._disks:
            score = 0.0 if disk.has_failed else disk.space().free / (disk.writers + 1)
            if score > best_score:
                best, best_score = disk, score
        if best is not None:
            return best
        reasons = "; ".join(f"{report.path}: {report.reason}" for report in self.disks())
        if all(disk.has_failed for disk in self._disks):
            raise DiskFailed(f"all disks of this chunk server are out of use ({reasons}); write elsewhere")
        raise DiskFull(f"no disk of this chunk server has room ({reasons}); write elsewhere")

    def publish_all(self, writers: Sequence[tuple[ReplicaWriter, Done]]) -> None:
        arrivals: dict[VolumeSet, list[Arrival]] = {}
        for writer, done in writers:
            assert isinstance(writer, FileReplicaWriter)
            writer.publish_among(arrivals, done)
        for volumes, arrived in arrivals.items():
            volumes.append_all(arrived)

    def finish_writing(self, handle: ChunkHandle, disk: Disk) -> None:
        """Hear from a writer that it is done, published or not."""
        with self._lock:
            self._busy.discard(handle)
            disk.writers -= 1

    def add(self, replica: Replica, disk: Disk) -> None:
        """Hear from a writer that its replica is in place; raise `DiskFailed` when the disk failed meanwhile."""
        with self._lock:
            if disk.has_failed:
                raise DiskFailed(f"disk {disk.path} failed while chunk {id_text(replica.handle)} was published")
            self._index[replica.handle] = (replica, disk)
            disk.chunk_count += 1
            self.changes.published(replica)  # under the lock: whoever removes it at once is heard after this

    def now_ms(self) -> int:
        return self._clock.wall_ms()

    # --- removing ---------------------------------------------------------------------------------------

    def delete(self, handle: ChunkHandle) -> bool:
        if (volumes := self._volumes_with(handle)) is not None:
            return self._remove_record(handle, volumes)
        with self._taken_out(handle) as entry:
            if entry is None:
                with self._lock:
                    if handle not in self._busy:  # else it comes or goes at this moment, and is told of then
                        self.changes.removed(handle)
                return False
            disk = entry[1]
            path = disk.chunk_path(handle)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                failure = disk.judge(error, f"removing {path}")
                if not disk.has_failed:  # some file systems need room to remove: it is still there, and has to be told
                    self.add(*entry)
                    raise failure from None
            return True

    def quarantine(self, handle: ChunkHandle, reason: str) -> None:
        """Never serve this replica again, keep its file aside, and report it as corrupt."""
        self.changes.found_corrupt(handle)
        if (volumes := self._volumes_with(handle)) is not None:
            try:
                self._remove_record(handle, volumes, reason)
            except DfsError:  # it is out of the index; at worst it is found bad once more
                volumes.forget(handle)
            return
        with self._taken_out(handle) as entry:
            if entry is not None:
                disk = entry[1]
                disk.quarantine(disk.chunk_path(handle), reason)

    def _volumes_with(self, handle: ChunkHandle) -> VolumeSet | None:
        """Return the volumes that hold a replica, None when it is a file of its own or not here."""
        with self._lock:
            entry = self._index.get(handle)
        volumes = self._volumes[entry[1]] if entry is not None else None
        return volumes if volumes is not None and volumes.holds(handle) else None

    def _remove_record(self, handle: ChunkHandle, volumes: VolumeSet, bad_because: str = "") -> bool:
        """Remove a small replica; it is reported as removed when that is durable, a bad one at once."""
        with self._lock:
            if handle not in self._index or handle in self._ending:
                return False
            self._ending.add(handle)
            if bad_because:
                self._drop_entry(handle)
        try:
            if bad_because:
                volumes.copy_aside(handle, bad_because)
            volumes.delete(handle, self.now_ms())
            with self._lock:
                self._drop_entry(handle)
        finally:
            with self._lock:
                self._ending.discard(handle)
        return True

    def _drop_entry(self, handle: ChunkHandle) -> tuple[Replica, Disk] | None:
        """Take a replica out of the index and report it as removed; the lock is held."""
        entry = self._index.pop(handle, None)
        if entry is not None:
            entry[1].chunk_count -= 1
            self.changes.removed(handle)
        return entry

    def _forget(self, handle: ChunkHandle) -> None:
        with self._taken_out(handle) as entry:
            if entry is not None:  # its file has gone already
                self._volumes[entry[1]].forget(handle)

    @contextlib.contextmanager
    def _taken_out(self, handle: ChunkHandle) -> Iterator[tuple[Replica, Disk] | None]:
        """Take a replica out of the index and report it as removed; the block removes its file, and until its end the
        name is not used again. Yield what stood in the index, None when there is no such replica."""
        with self._lock:
            entry = self._drop_entry(handle)
            if entry is not None:
                self._busy.add(handle)
        self._open.evict(handle)
        try:
            yield entry
        finally:
            if entry is not None:
                with self._lock:
                    self._busy.discard(handle)

    def _drop_disk(self, disk: Disk) -> None:
        """Report all replicas of a failed disk as removed."""
        with self._lock:
            lost = [handle for handle, (_, home) in self._index.items() if home is disk]
            for handle in lost:
                del self._index[handle]
                self.changes.removed(handle)
            disk.chunk_count = 0
        for handle in lost:
            self._open.evict(handle)

    # --- health -----------------------------------------------------------------------------------------

    def verify(self, handle: ChunkHandle, pace: Pace | None = None) -> bool:
        _, disk = self._entry(handle)
        self._open.evict(handle)  # a descriptor that is kept would hide that the file has gone
        self._volumes[disk].reopen(handle)
        try:
            with self.open(handle) as opened:
                reason = find_damage(opened, pace)
        except ChunkCorrupt:
            return False  # its tail was damaged; `open` has quarantined it
        except OSError as error:
            raise disk.judge(error, f"verifying replica {id_text(handle)}") from None
        if reason:
            self.quarantine(handle, reason)
        return not reason

    @property
    def data_disks(self) -> tuple[Disk, ...]:
        """All data directories, failed ones included."""
        return self._disks

    def disks(self) -> tuple[DiskReport, ...]:
        for disk in self._disks:
            disk.check_place()
        return tuple(disk.report() for disk in self._disks)

    def space(self) -> Space:
        spaces = {disk.device: disk.space() for disk in self._disks if not disk.has_failed}.values()
        return Space(sum(space.capacity for space in spaces), sum(space.free for space in spaces))

    def close(self) -> None:
        """Let go of the disks; nothing needs to be written."""
        self._open.close()
        for volumes in self._volumes.values():
            volumes.close()
        for disk in self._disks:
            disk.release()


class FileReplicaWriter:
    """A replica on its way into one disk (contract: dfs.chunk.replicas.ReplicaWriter).

    It is kept in memory while it is small enough for a volume; the first byte too many makes a file of it.
    """

    def __init__(self, store: FileStore, disk: Disk, volumes: VolumeSet, handle: ChunkHandle) -> None:
        self._store = store
        self._disk = disk
        self._volumes = volumes
        self._handle = handle
        self._kept = bytearray()
        self._fd = -1
        self._path = disk.temporary  # of its file, when it needs one
        self._blocks = BlockSequence(handle)
        self._crc = 0
        self._flushed = 0  # bytes that the kernel was told to write
        self._reserved = 0  # bytes for which room was asked
        self._is_open = True

    def begin_file(self) -> None:
        """Make a file of what there is so far."""
        self._path = self._disk.temporary / id_text(self._handle)
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            failure = self._disk.judge(error, f"making {self._path}")
            self._close()
            raise failure from None
        if self._kept:
            with self._errors_judged("writing"):
                write_at(self._fd, self._kept, 0)
            self._kept = bytearray()

    def write(self, data: memoryview, checksums: Buffer) -> None:
        self._blocks.check_next(len(data))
        if (bad := first_bad_block(data, checksums)) is not None:
            offset = self._blocks.length + bad * BLOCK_SIZE
            raise ChunkCorrupt(
                f"chunk {id_text(self._handle)}: the block at {offset} does not match its checksum on arrival; resend",
                handle=id_text(self._handle),
                server=id_text(self._store.server_id),
            )
        self._disk.check_room(len(data))
        if self._fd < 0:
            if self._blocks.length + len(data) <= self._store.volume_chunk_max:
                self._kept += data
                self._blocks.add(len(data), checksums)
                return
            self.begin_file()
        self._reserve_ahead(self._blocks.length + len(data))
        with self._errors_judged("writing"):
            write_at(self._fd, data, self._blocks.length)
            self._blocks.add(len(data), checksums)
            if self._store.fsync and self._blocks.length - self._flushed >= WRITEBACK_SIZE:
                start_writeback(self._fd, self._flushed, self._blocks.length - self._flushed)
                self._flushed = self._blocks.length

    def _reserve_ahead(self, end: int) -> None:
        """Make room for what is likely to follow, while there is plenty of it: also if all writers do so at once."""
        wanted = end > self._reserved and end > RESERVE_FROM
        if wanted and self._disk.space().free > (self._disk.writers + 1) * RESERVE_SIZE:
            start = max(self._reserved, self._blocks.length)
            self._reserved = start + RESERVE_SIZE
            reserve_room(self._fd, start, RESERVE_SIZE)

    def check(self, length: int, crc: int) -> None:
        self._blocks.check_finished(length, crc)
        self._crc = crc

    def _sealed(self) -> tuple[Replica, bytes]:
        tail = encode_tail(self._handle, self._blocks.length, self._crc, self._blocks.checksums)
        return Replica(self._handle, self._blocks.length, self._crc, self._store.now_ms()), tail

    def publish(self) -> Replica:
        replica, tail = self._sealed()
        begun_s = time.perf_counter()
        if self._fd < 0:
            try:
                self._volumes.append(replica, self._kept, tail)
            except DfsError:
                self.discard()
                raise
        else:
            self._publish_file(tail)
        self._add(replica, begun_s)
        return replica

    def _add(self, replica: Replica, begun_s: float) -> None:
        """Let a replica count that is on the disk."""
        self._store.syncs.observe(time.perf_counter() - begun_s)
        try:
            self._store.add(replica, self._disk)
        except DiskFailed:
            self.discard()
            raise
        self._close()

    def publish_among(self, others: dict[VolumeSet, list[Arrival]], done: Done) -> None:
        """Publish a file at once; put a small replica among the others that come to its disk. `done` hears of it."""
        if self._fd >= 0:
            done(failure_of(self.publish))
            return
        replica, tail = self._sealed()
        begun_s = time.perf_counter()

        def end(error: DfsError | None) -> None:
            if error is None:
                error = failure_of(lambda: self._add(replica, begun_s))
            else:
                self.discard()
            done(error)

        others.setdefault(self._volumes, []).append(Arrival(replica, self._kept, tail, end))

    def _publish_file(self, tail: bytes) -> None:
        length, target = self._blocks.length, self._disk.chunk_path(self._handle)
        with self._errors_judged("publishing"):
            write_at(self._fd, tail, length)
            if self._reserved:
                os.ftruncate(self._fd, length + len(tail))  # gives back what was not needed
            if self._store.fsync:
                os.fdatasync(self._fd)
            self._path.rename(target)
            self._path = target  # from here on this is what a failure has to remove
            if self._store.fsync:
                sync_directory(target.parent)

    def discard(self) -> None:
        if not self._is_open:
            return
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # a failed disk may not even remove; the next start empties tmp/
                self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        self._is_open = False
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # what had to be on the disk was synced; the descriptor is free anyway
                os.close(self._fd)
        self._store.finish_writing(self._handle, self._disk)

    @contextlib.contextmanager
    def _errors_judged(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            failure = self._disk.judge(error, f"{doing} chunk {id_text(self._handle)}")
            self.discard()
            raise failure from None
