"""Compaction: give the space of deleted small replicas back, volume by volume.

Owns: when a volume is compacted, and the steps. Refuses to know: formats, and who deletes.

Crash-safe at every step: records are appended and synced before their old volume goes, and a copy that a crash left
behind is recognised at start (docs/adr/0018).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from dfs.chunk.volumes.records import HEADER_SIZE, RecordHeader, RecordKind
from dfs.chunk.volumes.scan import damage_of, read_volume
from dfs.chunk.volumes.volumes import Volume, VolumeSet
from dfs.errors import DfsError, InternalError
from dfs.ids import ChunkHandle
from dfs.log import get_logger

MOVE_SIZE = 1024 * 1024  # bytes moved in one turn: writers wait for no more than that
PERIOD_S = 5.0  # between two looks for garbage

OnDamaged = Callable[[ChunkHandle, str], None]

log = get_logger(__name__)


class Compactor:
    """Compacts the volumes of all disks of a store, one at a time."""

    def __init__(self, volume_sets: Sequence[VolumeSet], on_damaged: OnDamaged) -> None:
        """`on_damaged(handle, reason)` is told of a replica that is not worth moving: it must leave its volume."""
        self._volume_sets = volume_sets
        self._on_damaged = on_damaged

    def run_once(self) -> int:
        """Compact what is worth it now; return the bytes given back."""
        return sum(self._compact_disk(volumes) for volumes in self._volume_sets if not volumes.disk.has_failed)

    def _compact_disk(self, volumes: VolumeSet) -> int:
        freed = 0
        try:
            volumes.restore_ballast()
            while (volume := volumes.worst()) is not None:
                before, live = volume.end, volume.live
                self._compact(volumes, volume)
                freed += before - live
                log.info("volume_compacted", volume=volume.path, freed=before - live, moved=live)
        except DfsError as error:
            log.warning("volume_not_compacted", disk=volumes.disk.path, code=error.code, reason=error.message)
        except OSError as error:
            volumes.disk.judge(error, f"compacting a volume of {volumes.folder}")
        return freed

    def _compact(self, volumes: VolumeSet, volume: Volume) -> None:
        """Move what is needed of a full volume, then remove it."""
        if volume.path.exists():  # else an earlier removal came as far as that, or somebody removed it
            headers = read_volume(volume.path, volume.index_path, volume.name).headers
            needed = [header for header in headers if volumes.is_needed(volume, header)]
            fd = os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for group in _groups(needed):
                    self._move(volumes, volume, fd, group)
            finally:
                os.close(fd)
        elif volumes.disk.is_in_place():
            for handle in volumes.held_by(volume):
                self._on_damaged(handle, f"its volume {volume.path} vanished")
        if not volumes.remove(volume):
            raise InternalError(f"volume {volume.path} still holds what its index does not list; it is kept")

    def _move(self, volumes: VolumeSet, volume: Volume, fd: int, headers: Iterable[RecordHeader]) -> None:
        records: list[tuple[RecordHeader, bytes]] = []
        for header in headers:
            if header.kind is RecordKind.TOMBSTONE:
                records.append((header, b""))
                continue
            body = os.pread(fd, header.size - HEADER_SIZE, header.start)
            reason = damage_of(body, header)
            if reason:
                self._on_damaged(header.handle, reason)
            else:
                records.append((header, body))
        volumes.move(volume, records)

    def run(self, stop: threading.Event) -> None:
        """Serve as the root of a thread until `stop`."""
        while not stop.wait(PERIOD_S):
            try:
                self.run_once()
            except Exception:
                log.exception("compaction_failed")


def _groups(headers: Iterable[RecordHeader]) -> Iterator[list[RecordHeader]]:
    """Yield the headers in groups of about MOVE_SIZE bytes of records."""
    group: list[RecordHeader] = []
    size = 0
    for header in headers:
        group.append(header)
        size += header.size
        if size >= MOVE_SIZE:
            yield group
            group, size = [], 0
    if group:
        yield group
