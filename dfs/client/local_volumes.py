"""Volumes of chunk servers of the reader's own machine, held open, and where small replicas are in them.

Owns: the files that are held, the places that are known in them, their limits and age. Refuses to know: who is asked
for a place (dfs.client.local_replicas), and what is read for whom.

A place holds for ever: a sealed chunk never changes, and a volume is only appended to until it is removed as a whole.
What is read there is compared with the checksum that the masters have, each time; so a place that is wrong, for
whatever reason, costs a read over the network and nothing else.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Container
from typing import Final, NamedTuple

from dfs.client.held_file import OpenFile
from dfs.ids import ChunkHandle, ServerId
from dfs.net.messages import VOLUMES_HELD_MAX

PLACES_MAX: Final = 8192  # small replicas whose places are known; some 400 bytes each

VolumeKey = tuple[ServerId, bytes]


def let_go(files: list[OpenFile]) -> None:
    """Drop files, removed ones in a thread of their own.

    The last close of a removed file frees its space, in the calling thread; on a disk that is mounted with `discard`
    that may take as long as to write it, and no reader should wait for it.
    """
    gone = [file for file in files if file.is_deleted()]
    files.clear()
    if gone:
        try:
            threading.Thread(target=gone.clear, name="dfs-let-go", daemon=True).start()
        except RuntimeError:  # the system has no thread for us: whoever is here waits for the disk
            gone.clear()


class Place(NamedTuple):
    """Where a small replica is: `length` bytes from `start` on."""

    volume: VolumeKey
    start: int
    length: int
    crc: int
    checksums: bytes


_UNKNOWN: Final = object()


class _Held:
    """A volume that is held, and when it was last read."""

    __slots__ = ("file", "used_s")

    def __init__(self, file: OpenFile, now_s: float) -> None:
        self.file = file
        self.used_s = now_s


class LocalVolumes:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[VolumeKey, _Held] = {}
        self._places: OrderedDict[ChunkHandle, Place | None] = OrderedDict()  # None: was wrong, not to be asked for
        self._is_closed = False

    def find(self, handle: ChunkHandle, now_s: float) -> tuple[Place, OpenFile] | None:
        """Return where a replica is and the file there, None when that is not known."""
        with self._lock:
            place = self._places.get(handle)
            if place is None:
                return None
            held = self._held.get(place.volume)
            if held is None:
                del self._places[handle]
                return None
            held.used_s = now_s
            return place, held.file

    def servers(self) -> set[ServerId]:
        """Return the servers of which volumes are held."""
        with self._lock:
            return {owner for owner, _ in self._held}

    def take_out(self, oldest_s: float, ended: Container[ServerId]) -> list[OpenFile]:
        """Take out the volumes that nobody read since then, that were removed, or that belong to servers that ended."""
        with self._lock:
            keys = [
                key
                for key, held in self._held.items()
                if held.used_s < oldest_s or key[0] in ended or held.file.is_deleted()
            ]
            return [self._held.pop(key).file for key in keys]

    def names(self, server: ServerId) -> tuple[bytes, ...]:
        """Return the names of the volumes of a server that are held."""
        with self._lock:
            return tuple(name for owner, name in self._held if owner == server)

    def take(self, handle: ChunkHandle, place: Place, fd: int | None, now_s: float) -> OpenFile | None:
        """Note a place, with the descriptor that came, if one did; return the file there.

        None when that was let go of while the place was asked for: whoever wants it asks again.
        """
        file, old = None if fd is None else OpenFile(fd), list[OpenFile]()
        with self._lock:
            if file is not None and not self._is_closed:
                self._take_in(place.volume, file, now_s, old)
            elif file is None and (held := self._held.get(place.volume)) is not None:
                held.used_s, file = now_s, held.file
            if file is not None:
                self._note(handle, place)
        let_go(old)
        return file

    def _note(self, handle: ChunkHandle, place: Place | None) -> None:
        """Keep a place; the lock is held."""
        if not self._is_closed:
            self._places[handle] = place
            if len(self._places) > PLACES_MAX:
                self._places.popitem(last=False)

    def _take_in(self, volume: VolumeKey, file: OpenFile, now_s: float, old: list[OpenFile]) -> None:
        """Hold a volume; move what has to go for it to `old`. The lock is held."""
        by_age = sorted(self._held, key=lambda key: self._held[key].used_s)
        keys = set(by_age[: max(0, len(self._held) - VOLUMES_HELD_MAX + 1)])
        if volume in self._held:  # two threads asked at the same time
            keys.add(volume)
        old += [self._held.pop(key).file for key in keys]
        self._held[volume] = _Held(file, now_s)

    def refute(self, handle: ChunkHandle) -> None:
        """Note that the bytes at the place of a replica were wrong: it is read over the network from here on."""
        with self._lock:
            self._note(handle, None)

    def is_refuted(self, handle: ChunkHandle) -> bool:
        with self._lock:
            return self._places.get(handle, _UNKNOWN) is None

    def close(self) -> None:
        """Hold nothing any more."""
        with self._lock:
            self._is_closed = True
            old = [held.file for held in self._held.values()]
            self._held.clear()
            self._places.clear()
        let_go(old)
