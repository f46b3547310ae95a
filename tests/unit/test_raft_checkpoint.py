"""Is a checkpoint loaded only when every byte of it is what was written, and never lost to a newer one that failed?

Each test names the fault letter of the pysyncobj study it guards against (h1: torn dump = empty state, h6: the child
keeps sockets, j10: an older dump replaces a newer one).
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dfs.errors import StorageCorrupt
from dfs.master.raft_checkpoint import (
    PIECE_SIZE,
    CheckpointFolder,
    CheckpointHead,
    CheckpointReceiver,
    CheckpointSender,
    CheckpointWriter,
    read_pieces,
    verify_checkpoint,
    write_checkpoint,
)

PIECES = [b"", b"one", bytes(range(256)) * 40, b"end"]


def head_at(index: int) -> CheckpointHead:
    return CheckpointHead((b"\x01", index - 1, 2), (b"\x00last", index, 3))


@pytest.fixture
def folder() -> Iterator[CheckpointFolder]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield CheckpointFolder(Path(name) / "checkpoints", fsync=False)


def finish(writer: CheckpointWriter) -> bool:
    deadline = time.monotonic() + 20
    while (result := writer.poll()) is None:
        assert time.monotonic() < deadline, "the checkpoint child does not end"
        time.sleep(0.005)
    return result


def store(folder: CheckpointFolder, index: int, pieces: list[bytes] = PIECES) -> Path:
    draft = folder.folder / "draft"
    write_checkpoint(draft, head_at(index), pieces, fsync=True)
    folder.publish(draft, index)
    return folder.path(index)


def test_a_checkpoint_is_read_back_as_written(folder: CheckpointFolder) -> None:
    path = store(folder, 42)
    assert verify_checkpoint(path) == head_at(42)
    assert list(read_pieces(path)) == PIECES


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_fault_h1_one_flipped_bit_anywhere_is_refused(where: float, bit: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name) / "c"
        write_checkpoint(path, head_at(7), [b"alpha", b"beta" * 20], fsync=False)
        data = bytearray(path.read_bytes())
        data[int(where * len(data))] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises(StorageCorrupt, match="damaged"):
            verify_checkpoint(path)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True))
def test_fault_h1_a_torn_checkpoint_is_refused(where: float) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name) / "c"
        write_checkpoint(path, head_at(7), [b"alpha", b"beta" * 20], fsync=False)
        data = path.read_bytes()
        path.write_bytes(data[: int(where * len(data))])
        with pytest.raises(StorageCorrupt, match="damaged"):
            verify_checkpoint(path)


def test_swapped_frames_are_refused_although_each_checksum_matches(folder: CheckpointFolder) -> None:
    path = store(folder, 9, [b"aaaa", b"bbbb"])
    other = store(folder, 10, [b"bbbb", b"aaaa"])
    mixed = other.read_bytes()[:-32] + path.read_bytes()[-32:]
    other.write_bytes(mixed)
    with pytest.raises(StorageCorrupt, match="digest"):
        verify_checkpoint(other)


def test_the_newest_and_the_one_before_are_kept(folder: CheckpointFolder) -> None:
    for index in (10, 20, 30):
        store(folder, index)
    assert folder.indexes() == [20, 30]
    assert folder.newest() == folder.path(30)


def test_leftover_drafts_are_cleared_at_start(folder: CheckpointFolder) -> None:
    draft = folder.folder / "checkpoint-00000000000000000005.tmp"
    draft.write_bytes(b"half")
    assert CheckpointFolder(folder.folder, fsync=False).newest() is None
    assert not draft.exists()


def is_running(pid: int) -> bool:
    """Whether a process has not ended; where nobody reaps orphans it may stay as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_whose_master_was_killed_in_the_last_moment_publishes_nothing(
    folder: CheckpointFolder, tmp_path: Path
) -> None:
    """All is written, and synced while the master dies: the next one may be writing a draft of that name by now."""
    told = tmp_path / "child"

    def dump() -> Iterator[bytes]:
        yield from PIECES
        told.with_suffix(".new").write_text(str(os.getpid()))
        told.with_suffix(".new").rename(told)
        while os.getppid() == master:
            time.sleep(0.005)

    if not (master := os.fork()):
        try:
            master = os.getpid()
            CheckpointWriter(folder).start(head_at(7), dump)
            time.sleep(20)  # until the end
        finally:
            os._exit(0)
    deadline = time.monotonic() + 20
    while not told.exists():
        assert time.monotonic() < deadline, "no checkpoint is written"
        time.sleep(0.005)
    os.kill(master, signal.SIGKILL)
    os.waitpid(master, 0)
    while is_running(int(told.read_text())):
        assert time.monotonic() < deadline, "the checkpoint child does not end"
        time.sleep(0.005)
    assert folder.indexes() == []


def test_the_child_writes_the_state_as_of_the_fork(folder: CheckpointFolder) -> None:
    state = [b"before"]
    writer = CheckpointWriter(folder)
    writer.start(head_at(5), lambda: iter(state))
    state[0] = b"after"
    assert finish(writer)
    assert list(read_pieces(folder.path(5))) == [b"before"]
    assert writer.poll() is None


def test_a_failing_dump_leaves_the_previous_checkpoint(folder: CheckpointFolder) -> None:
    store(folder, 4)

    def dump() -> Iterator[bytes]:
        yield b"some"
        raise OSError(28, "No space left on device")

    writer = CheckpointWriter(folder)
    writer.start(head_at(8), dump)
    assert finish(writer) is False
    assert folder.indexes() == [4]


def test_fault_j10_a_stopped_child_publishes_nothing(folder: CheckpointFolder) -> None:
    def dump() -> Iterator[bytes]:
        yield b"some"
        signal.pause()

    writer = CheckpointWriter(folder)
    writer.start(head_at(8), dump)
    writer.stop()
    assert not writer.is_writing
    assert folder.indexes() == []
    assert list(folder.folder.iterdir()) == []


def test_fault_h6_the_child_holds_no_inherited_socket(folder: CheckpointFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)):
        writer = CheckpointWriter(folder)
        writer.start(head_at(8), _sockets)
        assert finish(writer)
    assert list(read_pieces(folder.path(8))) == [b"0"]


def _sockets() -> Iterator[bytes]:
    count = 0
    for fd in range(3, 256):
        try:
            count += str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("socket")
        except OSError:
            continue
    yield b"%d" % count


def test_a_checkpoint_travels_in_bounded_pieces(folder: CheckpointFolder) -> None:
    path = store(folder, 70, [os.urandom(PIECE_SIZE) for _ in range(3)])
    other = CheckpointFolder(folder.folder.with_name("other"), fsync=True)
    sender, receiver = CheckpointSender(path, 70), CheckpointReceiver(other)
    draft, count = None, 0
    while draft is None:
        piece = sender.next_piece()
        assert len(piece.data) <= PIECE_SIZE
        draft, count = receiver.take(piece), count + 1
    sender.close()
    assert count == 4
    assert verify_checkpoint(draft) == head_at(70)
    assert draft.read_bytes() == path.read_bytes()


def test_a_transfer_with_a_lost_piece_never_completes(folder: CheckpointFolder) -> None:
    path = store(folder, 70, [os.urandom(PIECE_SIZE) for _ in range(3)])
    receiver = CheckpointReceiver(CheckpointFolder(folder.folder.with_name("other"), fsync=False))
    sender = CheckpointSender(path, 70)
    pieces = [sender.next_piece() for _ in range(4)]
    sender.close()
    assert [receiver.take(piece) for piece in (pieces[0], pieces[2], pieces[3])] == [None, None, None]
