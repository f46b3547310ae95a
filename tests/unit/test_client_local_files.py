"""Are local files read whole, written whole, and never left behind half?"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from dfs.checksum import BLOCK_SIZE
from dfs.client import download, local_files
from dfs.client.local_files import SourceFile, StreamChunk, TargetFile, open_source, write_whole
from dfs.errors import AlreadyExists, Conflict, IsADirectory, LocalFileError, NotFound


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "PIECE_SIZE", BLOCK_SIZE)


def joined(chunk: StreamChunk) -> bytes:
    return b"".join(bytes(piece) for piece in chunk.pieces())


class Trickle(io.RawIOBase):
    """A stream without readinto of its own that gives 1,000 bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._data.read(min(1000, len(buffer)))
        buffer[: len(data)] = data
        return len(data)


class OnlyRead:
    """The least that may be called a stream."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._data.read(min(size, 700))


# --- sources -------------------------------------------------------------------------------------------------


def test_pieces_of_a_range_are_whole_blocks_but_for_the_last(tmp_path: Path) -> None:
    data = os.urandom(3 * BLOCK_SIZE)
    (tmp_path / "f").write_bytes(data)
    source = SourceFile(tmp_path / "f")
    pieces = [bytes(piece) for piece in source.pieces(5, 2 * BLOCK_SIZE + 10)]
    assert [len(piece) for piece in pieces] == [BLOCK_SIZE, BLOCK_SIZE, 10]
    assert b"".join(pieces) == data[5 : 2 * BLOCK_SIZE + 15]
    source.close()


def test_a_source_that_got_shorter_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    with open_source(tmp_path / "f") as source:
        assert isinstance(source, SourceFile)
        os.truncate(tmp_path / "f", 50)
        with pytest.raises(Conflict, match="changed while it was read"):
            list(source.pieces(0, 100))


def test_a_rewritten_source_of_the_same_size_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    with open_source(tmp_path / "f") as source:
        assert isinstance(source, SourceFile)
        source.check_unchanged()
        (tmp_path / "f").write_bytes(b"y" * 100)
        os.utime(tmp_path / "f", ns=(1, 1))
        with pytest.raises(Conflict):
            source.check_unchanged()


def test_a_source_that_is_not_there_or_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="missing"), open_source(tmp_path / "missing"):
        pass
    with pytest.raises(IsADirectory), open_source(tmp_path):
        pass


@pytest.mark.parametrize("kind", [io.BytesIO, Trickle, OnlyRead])
def test_a_stream_is_cut_into_chunks_of_whole_blocks(kind: type) -> None:
    data = os.urandom(5 * BLOCK_SIZE + 17)
    stream: BinaryIO = kind(data)
    got = b""
    while True:
        chunk = StreamChunk()
        chunk.fill(stream, 1)
        chunk.fill(stream, 1000)
        if not chunk.fill(stream, 2 * BLOCK_SIZE):
            break
        sizes = [len(piece) for piece in chunk.pieces()]
        assert all(size == BLOCK_SIZE for size in sizes[:-1])
        assert sum(sizes) == chunk.length <= 2 * BLOCK_SIZE
        assert joined(chunk) == joined(chunk), "a chunk can be sent again"
        got += joined(chunk)
    assert got == data


def test_a_stream_that_fails_is_a_local_error() -> None:
    class Broken(io.RawIOBase):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            raise OSError(5, "Input/output error")

    with pytest.raises(LocalFileError, match="Input/output error"):
        StreamChunk().fill(Broken(), 10)  # type: ignore[arg-type]


def test_a_non_blocking_stream_without_data_is_refused_and_not_spun_on() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    try:
        with os.fdopen(reading, "rb", buffering=0) as stream, pytest.raises(LocalFileError, match="blocking"):
            StreamChunk().fill(stream, 10)
    finally:
        os.close(writing)


# --- targets -----------------------------------------------------------------------------------------------------


def test_a_file_that_only_claims_to_be_empty_is_read_to_its_end(tmp_path: Path) -> None:
    claimed = Path("/proc/self/status")
    assert claimed.stat().st_size == 0
    chunk = StreamChunk()
    with open_source(claimed) as source:
        assert not isinstance(source, SourceFile)
        assert chunk.fill(source, 1000)
    assert joined(chunk).startswith(b"Name:")
    (tmp_path / "empty").touch()
    with open_source(tmp_path / "empty") as source:
        assert not isinstance(source, SourceFile)
        assert not StreamChunk().fill(source, 1000)


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_is_never_a_target_whatever_it_is_called(name: str) -> None:
    with pytest.raises(IsADirectory):
        TargetFile(Path(name))


def test_a_non_blocking_target_that_is_full_is_refused_and_not_spun_on() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    refused = pytest.raises(LocalFileError, match="non-blocking")
    with os.fdopen(reading, "rb"), io.FileIO(writing, "wb") as target, refused:
        download._write_stream(cast(BinaryIO, target), memoryview(bytes(1 << 21)))


def test_a_target_appears_when_it_is_published_and_not_before(tmp_path: Path) -> None:
    target = TargetFile(tmp_path / "t")
    target.reserve(6)
    target.write(memoryview(b"def"), 3)
    target.write(memoryview(b"abc"), 0)
    assert not (tmp_path / "t").exists()
    target.publish(overwrite=True)
    target.close()
    assert (tmp_path / "t").read_bytes() == b"abcdef"
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_target_that_is_closed_unpublished_leaves_nothing(tmp_path: Path) -> None:
    target = TargetFile(tmp_path / "t")
    target.reserve(100)
    assert [path.name.startswith(".t.") for path in tmp_path.iterdir()] == [True]
    target.close()
    assert not list(tmp_path.iterdir())


def test_a_target_has_the_mode_that_the_user_s_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        target = TargetFile(tmp_path / "t")
        target.publish(overwrite=False)
        target.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o640


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = TargetFile(tmp_path / "t")
    (tmp_path / "t").write_bytes(b"mine")
    with pytest.raises(AlreadyExists):
        target.publish(overwrite=False)
    target.close()
    assert (tmp_path / "t").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_the_longest_name_fits_with_its_temporary(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127):
        target = TargetFile(tmp_path / name)
        target.publish(overwrite=False)
        target.close()
        assert (tmp_path / name).exists()


def test_no_space_is_known_before_the_bytes_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    target = TargetFile(tmp_path / "t")
    with pytest.raises(LocalFileError, match="free some space"):
        target.reserve(100)
    target.close()


def test_a_file_system_that_cannot_reserve_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    target = TargetFile(tmp_path / "t")
    target.reserve(3)
    target.publish(overwrite=True)
    target.close()
    assert (tmp_path / "t").read_bytes() == bytes(3)


# --- small files in few calls -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_read", [True, False])
def test_a_thread_that_outlives_its_transfer_touches_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    """As when Ctrl-C is pressed once more while the threads of a transfer are waited for."""
    path = tmp_path / "file"
    path.write_bytes(b"mine" * 100_000)
    other = tmp_path / "other"
    other.write_bytes(b"others" * 100_000)
    is_within, may_go_on = threading.Event(), threading.Event()

    def held(count: int) -> int:
        if not is_within.is_set():
            is_within.set()
            assert may_go_on.wait(20)
        return count

    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: held(pwrite(fd, data, offset)))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: held(preadv(fd, [views[0][:100]], offset)))
    file = SourceFile(path) if is_read else TargetFile(tmp_path / "target")
    buffer = memoryview(bytearray(b"mine" * 100_000))
    work = file.read_into if isinstance(file, SourceFile) else file.write
    thread = threading.Thread(target=work, args=(buffer, 0))
    thread.start()
    assert is_within.wait(20)
    file.close()
    with other.open("r+b"):  # it has the number that was closed, if one was
        may_go_on.set()
        thread.join(20)
    assert bytes(buffer) == path.read_bytes()
    assert other.read_bytes() == b"others" * 100_000
    with pytest.raises(LocalFileError, match="its transfer is over"):
        work(buffer, 0)


def test_small_file_appears_whole_and_replaces_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 255)
    write_whole(target, memoryview(b"first"), overwrite=False)
    with pytest.raises(AlreadyExists):
        write_whole(target, memoryview(b"second"), overwrite=False)
    assert target.read_bytes() == b"first"
    write_whole(target, memoryview(b"third"), overwrite=True)
    assert target.read_bytes() == b"third"
    write_whole(tmp_path / "empty", memoryview(b""), overwrite=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["empty", target.name])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_small_files_of_a_forked_child_have_temporaries_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two files whose names begin alike one would be refused, lose its temporary, or get the other's content."""
    reader, writer = os.pipe()
    opened, real = list[str](), os.open

    def seen(path: str, *arguments: int) -> int:
        opened.append(str(path))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", seen)
    if not (child := os.fork()):
        try:
            write_whole(tmp_path / ("x" * 60 + "child"), memoryview(b"child"), overwrite=False)
            os.write(writer, opened[-1].encode())
        finally:
            os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    write_whole(tmp_path / ("x" * 60 + "parent"), memoryview(b"parent"), overwrite=False)
    told = os.read(reader, 4096).decode()
    os.close(reader)
    os.close(writer)
    assert told.startswith(str(tmp_path))
    assert opened[-1] != told


def test_small_file_that_cannot_be_made_takes_nobody_else_s_temporary_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, names = os.open, list[str]()

    def taken(path: str, *arguments: int) -> int:
        names.append(path)
        Path(path).write_bytes(b"somebody else's")
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", taken)
        with pytest.raises(AlreadyExists):
            write_whole(tmp_path / "file", memoryview(b"data"), overwrite=False)
    assert Path(names[0]).read_bytes() == b"somebody else's"


def test_small_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        write_whole(tmp_path / "none" / "file", memoryview(b"data"), overwrite=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises((IsADirectory, AlreadyExists)):
        write_whole(tmp_path / "folder", memoryview(b"data"), overwrite=True)

    def full(_fd: int, _data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LocalFileError, match="free some space"):
        write_whole(tmp_path / "file", memoryview(b"data"), overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_small_file_is_made_where_no_hard_links_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_source: str, _target: str) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refused)
    write_whole(tmp_path / "file", memoryview(b"data"), overwrite=False)
    with pytest.raises(AlreadyExists):
        write_whole(tmp_path / "file", memoryview(b"other"), overwrite=False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"data")]
