"""Does a store with volumes and files do what a dictionary does, whatever call of the system fails or ends it?

What is judged after every step: the bytes of all replicas, the count, and that the reported changes lead a leader, who
adds them up, to exactly what is held.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dfs.checksum import block_checksums, crc32c
from dfs.chunk.replicas import Space
from dfs.chunk.store import FileStore
from dfs.errors import ChunkCorrupt, ChunkNotFound, DfsError
from dfs.ids import ChunkHandle, new_chunk_handle

SMALL_MAX = 1000  # bytes of a chunk that goes into a volume
LIVES = 12  # of one process after the other
STEPS_MAX = 30  # in one life


class Killed(BaseException):
    """The process ends here."""


def roomy(_path: Path) -> Space:
    return Space(10**9, 10**9)


class Faults:
    """Lets the n-th call of the system from now end the process (`code` 0) or fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.code = 0
        self.count = 0
        for owner, name in (
            (os, "pwrite"),
            (os, "pwritev"),
            (os, "fsync"),
            (os, "fdatasync"),
            (os, "open"),
            (Path, "unlink"),
            (Path, "rename"),
        ):
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, function: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **options: object) -> object:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    self.count += 1
                    code, self.left = self.code, None
                    raise OSError(code, os.strerror(code)) if code else Killed
            return function(*arguments, **options)

        return called


@dataclass
class Model:
    """What must be there (`held`), what may be (`maybe`), and what the leader believes (`told`)."""

    held: dict[ChunkHandle, bytes] = field(default_factory=dict)
    maybe: dict[ChunkHandle, bytes] = field(default_factory=dict)
    rotten: set[ChunkHandle] = field(default_factory=set)  # damaged on disk: may come back, is never served
    gone: list[ChunkHandle] = field(default_factory=list)
    told: set[ChunkHandle] = field(default_factory=set)


@contextmanager
def opened(path: Path) -> Iterator[FileStore]:
    store = FileStore([path], "test", disk_reserve=0, probe=roomy, volume_size=4000, volume_chunk_max=SMALL_MAX)
    try:
        yield store
    finally:
        store.close()


def put(store: FileStore, handle: ChunkHandle, data: bytes) -> None:
    writer = store.create(handle)
    try:
        writer.write(memoryview(data), block_checksums(data))
        writer.check(len(data), crc32c(data))
        writer.publish()
    finally:
        writer.discard()


def read(store: FileStore, handle: ChunkHandle) -> bytes:
    with store.open(handle) as replica:
        data = os.pread(replica.fd, replica.tail.length, replica.start)
        assert block_checksums(data) == replica.tail.checksums
        return data


def rot(store: FileStore, handle: ChunkHandle) -> None:
    """Change a byte of a replica on the disk."""
    with store.open(handle) as replica:
        path, offset = Path(f"/proc/self/fd/{replica.fd}").resolve(), replica.start
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data[offset : offset + 1])


def step(store: FileStore, model: Model, rng: random.Random, faults: Faults) -> None:
    kind = rng.choice(["put"] * 5 + ["delete"] * 4 + ["compact", "rot"])
    handle = rng.choice(list(model.held)) if model.held and kind != "put" else new_chunk_handle()
    if kind == "put" and model.gone and rng.random() < 0.3:
        handle = model.gone.pop(rng.randrange(len(model.gone)))
    data = rng.randbytes(rng.randrange(1, SMALL_MAX if rng.random() < 0.8 else 3 * SMALL_MAX))
    if kind == "rot" and model.held:
        rot(store, handle)
        model.rotten.add(handle)
        del model.held[handle]
    if kind == "delete" and model.held:
        model.maybe[handle] = model.held.pop(handle)  # until its end is told
    elif kind == "put":
        model.maybe[handle] = data
    faults.left = rng.randrange(12) if rng.random() < 0.4 else None
    try:
        if kind == "put":
            put(store, handle, data)
            model.held[handle] = model.maybe.pop(handle)
        elif kind == "delete":
            store.delete(handle)
            model.maybe.pop(handle, None)
            model.gone.append(handle)
        elif kind == "rot":
            with suppress(ChunkNotFound):
                assert not store.verify(handle)
        else:
            store.compactor.run_once()
    except DfsError:
        if kind == "delete" and handle in model.maybe:
            model.held[handle] = model.maybe.pop(handle)  # a deletion that failed did not happen
        assert kind != "put" or store.replica(handle) is None
    finally:
        faults.left = None


def judge(store: FileStore, model: Model, *, is_new: bool) -> None:
    for handle in list(model.rotten):
        if store.replica(handle) is not None:
            with suppress(ChunkNotFound):
                assert not store.verify(handle)
        assert store.replica(handle) is None
    found = {handle: read(store, handle) for handle in store.handles()}
    if is_new:  # whatever was in the balance is decided now
        for handle, data in model.maybe.items():
            if handle in found:
                model.held[handle] = data
        model.maybe.clear()
        model.told = set(found)
    assert found == model.held
    assert sum(disk.chunk_count for disk in store.disks()) == len(found)
    batch = store.changes.batch(10_000)
    model.told |= {replica.handle for replica in batch.added}
    model.told -= set(batch.removed)
    assert set(batch.corrupt) <= model.rotten
    store.changes.acknowledge(batch)
    assert model.told == set(found)


@pytest.mark.parametrize("code", [0, errno.EMFILE, errno.ENOSPC], ids=["killed", "no descriptor", "no space"])
@pytest.mark.parametrize("seed", range(2))
def test_store_agrees_with_a_dictionary_through_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda _fd: None)
    faults = Faults(monkeypatch)
    faults.code = code
    rng, model = random.Random(seed), Model()
    for _ in range(LIVES):
        with opened(tmp_path / "a") as store:
            judge(store, model, is_new=True)
            try:
                for _ in range(rng.randrange(STEPS_MAX)):
                    step(store, model, rng, faults)
                    judge(store, model, is_new=False)
            except Killed:
                continue
    assert faults.count > 3


def test_read_of_rotten_replica_is_refused_by_its_reader_only(tmp_path: Path) -> None:
    """The model's own instrument: a byte changed by `rot` is found by `verify`."""
    with opened(tmp_path / "a") as store:
        for size in (100, 3 * SMALL_MAX):
            handle = new_chunk_handle()
            put(store, handle, bytes(size))
            rot(store, handle)
            assert not store.verify(handle)
            with pytest.raises((ChunkNotFound, ChunkCorrupt)):
                store.open(handle)
