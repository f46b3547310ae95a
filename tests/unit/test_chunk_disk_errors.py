"""Is a disk taken out by an error at whichever step it comes, and does the rest of the server go on?"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dfs.chunk.replicas import Space
from dfs.chunk.service import ChunkService
from dfs.chunk.store import RESERVE_FROM, FileStore
from dfs.clock import Deadline
from dfs.errors import ConnectionFailed, DiskFailed
from dfs.fast_paths import VARIABLE
from dfs.ids import new_chunk_handle
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.blocking import Channel
from dfs.net.listener import Listener, ServeLimits, serve_forever
from dfs.net.messages import ReadChunk
from dfs.testing.replicas import DATA, content, path_of, put

KEY = ClusterKey.from_secret(b"0" * 64, "test")
ERRORS = pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENODEV], ids=errno.errorcode.get)
Break = Callable[[str, int], None]


class TwoDisks:
    """A store on two disks, one replica on each; the next one goes to the first."""

    def __init__(self, folder: Path) -> None:
        self.first, self.second = self.paths = [folder / "a", folder / "b"]
        self.free = {"a": 2_000_000_000, "b": 1_000_000_000}
        self.store = self.open()
        self.lost = put(self.store).handle
        self.free["b"] = 3_000_000_000
        self.kept = put(self.store).handle
        self.free["b"] = 1_000_000_000
        assert path_of(self.first, self.lost).exists()
        assert path_of(self.second, self.kept).exists()

    def open(self) -> FileStore:
        return FileStore(
            self.paths,
            "test",
            disk_reserve=0,
            probe=lambda path: Space(10**10, self.free[path.name]),
            volume_chunk_max=0,  # volumes have their own tests
        )

    def check_first_is_out(self) -> None:
        """The first disk's replica is told as gone, the second's is served, and new ones are taken there."""
        assert [disk.state for disk in self.store.disks()] == ["failed", "ok"]
        assert self.lost in self.store.changes.batch(100).removed
        assert self.lost not in self.store.handles()
        assert content(self.store, self.kept) == DATA
        assert path_of(self.second, put(self.store).handle).exists()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[TwoDisks]:
    made = TwoDisks(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def breaks(disks: TwoDisks, monkeypatch: pytest.MonkeyPatch) -> Break:
    """Return a function that makes a system call fail on the first disk, and on that one only."""

    def is_on_first(argument: object) -> bool:
        try:
            place = str(Path(f"/proc/self/fd/{argument}").readlink()) if isinstance(argument, int) else str(argument)
        except OSError:
            return False
        return place.startswith(str(disks.first))

    def break_call(name: str, number: int) -> None:
        owner: Any = Path if name in ("rename", "unlink") else os
        real = getattr(owner, name)

        def call(first: object, *rest: Any, **named: Any) -> Any:
            if is_on_first(first):
                raise OSError(number, os.strerror(number))
            return real(first, *rest, **named)

        monkeypatch.setattr(owner, name, call)

    return break_call


@ERRORS
@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fdatasync", "rename", "fsync"])
def test_error_while_a_replica_is_written_takes_its_disk_out_and_leaves_nothing_of_it(
    disks: TwoDisks, breaks: Break, call: str, number: int
) -> None:
    breaks(call, number)
    handle = new_chunk_handle()
    data = bytes(RESERVE_FROM + 1) if call == "ftruncate" else DATA  # only a large one gets room made ahead
    with pytest.raises(DiskFailed, match=str(disks.first)):
        put(disks.store, data, handle)
    assert not path_of(disks.first, handle).exists()
    assert list((disks.first / "tmp").iterdir()) == []
    disks.check_first_is_out()


@ERRORS
def test_error_while_a_replica_is_read_takes_its_disk_out(disks: TwoDisks, breaks: Break, number: int) -> None:
    breaks("pread", number)  # of the tail
    with pytest.raises(DiskFailed):
        disks.store.open(disks.lost)
    disks.check_first_is_out()


@pytest.mark.parametrize(("without", "call"), [("", "sendfile"), ("sendfile", "pread")])
def test_error_while_a_replica_is_sent_takes_its_disk_out(
    disks: TwoDisks, breaks: Break, monkeypatch: pytest.MonkeyPatch, without: str, call: str
) -> None:
    monkeypatch.setenv(VARIABLE, without)
    content(disks.store, disks.lost)  # from now on its descriptor is open

    def fail(*_arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch = pytest.MonkeyPatch()  # undone before the other disk is looked at
    patch.setattr(os, call, fail)
    breaks("preadv", errno.EIO)
    listener = Listener.bind("127.0.0.1:0")
    service = ChunkService(store=disks.store, key=KEY, name="c1", address=listener.address)
    stop = threading.Event()
    thread = threading.Thread(
        target=serve_forever, args=(listener, KEY, service.handle, ServeLimits(drain_s=0.0), stop), daemon=True
    )
    thread.start()
    try:
        token = sign_token(KEY, disks.lost, Rights.READ, 1 << 50)
        with Channel.connect(listener.address, KEY, Deadline.after(20), bulk=True) as channel:
            channel.send(ReadChunk(disks.lost, token, 0, len(DATA)), Deadline.after(20))
            size = channel.receive(Deadline.after(20)).payload_size
            with pytest.raises(ConnectionFailed):
                channel.receive_into(memoryview(bytearray(size)), Deadline.after(20))
    finally:
        stop.set()
        listener.close()
        thread.join(20)
        service.close()
        patch.undo()
    disks.check_first_is_out()


def test_vanished_directory_is_named_as_the_reason_whoever_meets_it_first(disks: TwoDisks) -> None:
    disks.first.rename(disks.first.with_name("elsewhere"))
    with pytest.raises(DiskFailed):
        put(disks.store)
    assert "vanished" in disks.store.disks()[0].reason
    disks.check_first_is_out()


def test_failed_disk_comes_back_with_a_restart_only(disks: TwoDisks) -> None:
    elsewhere = disks.first.with_name("elsewhere")
    disks.first.rename(elsewhere)  # somebody unmounts it
    disks.check_first_is_out()
    elsewhere.rename(disks.first)  # and mounts it again
    disks.check_first_is_out()
    disks.store.close()
    disks.store = disks.open()
    assert [disk.state for disk in disks.store.disks()] == ["ok", "ok"]
    assert {disks.lost, disks.kept} <= set(disks.store.handles())


def test_disk_that_cannot_be_read_at_start_is_out_and_the_others_serve(disks: TwoDisks, breaks: Break) -> None:
    disks.store.close()
    breaks("scandir", errno.EIO)
    disks.store = disks.open()
    assert [disk.state for disk in disks.store.disks()] == ["failed", "ok"]
    assert disks.store.handles() == [disks.kept]
