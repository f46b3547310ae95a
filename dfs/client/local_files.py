"""Files of the caller's machine: what is stored from them, and what is fetched into them.

Owns: reading a source without letting it change unnoticed, and making a target appear whole or not at all. Refuses to
know: chunks, servers and masters. Errors of the local file system leave this module as `LocalFileError` and its kin.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dfs.client.held_file import OpenFile
from dfs.errors import AlreadyExists, Conflict, DfsError, IsADirectory, LocalFileError, NotADirectory, NotFound
from dfs.page_cache import write_at

TEMPORARY_NAME_MAX = 50  # characters of the target's name in its temporary's: the whole must stay below 255 bytes
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})  # no hard links can be made
PIECE_SIZE = 1024 * 1024  # bytes read, sent and written at a time (a multiple of the block size)


def local_error(error: OSError, doing: str, name: object) -> DfsError:
    """Return our error for a failed operation on a local file."""
    text = f"cannot {doing} the local file {str(name)!r}: {error.strerror or error}"
    match error.errno:
        case errno.ENOENT:
            return NotFound(text)
        case errno.EEXIST:
            return AlreadyExists(text)
        case errno.EISDIR:
            return IsADirectory(text)
        case errno.ENOTDIR:
            return NotADirectory(text)
        case errno.ENOSPC | errno.EDQUOT:
            return LocalFileError(f"{text}; free some space there, or choose another place")
        case _:
            return LocalFileError(text)


def _opened(file: OpenFile | None, name: object) -> OpenFile:
    """Return a file to use it, for as long as the caller refers to it."""
    if file is None:
        raise LocalFileError(f"the local file {str(name)!r} is not used any more: its transfer is over")
    return file


class SourceFile:
    """A regular local file that is read in ranges by several threads. It must not change until `check_unchanged`."""

    def __init__(self, path: Path) -> None:
        """Open it; raise when it cannot be read, and `IsADirectory` for a directory."""
        self.path = path
        try:
            self._file: OpenFile | None = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise local_error(error, "open", path) from None
        self._before = os.fstat(self._file.fd)
        self.size = self._before.st_size

    def pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """Yield the bytes of a range in pieces, each valid until the next; raise `Conflict` when some are gone."""
        buffer = memoryview(bytearray(min(PIECE_SIZE, length)))
        end = offset + length
        while offset < end:
            piece = buffer[: min(PIECE_SIZE, end - offset)]
            self.read_into(piece, offset)
            yield piece
            offset += len(piece)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on; raise `Conflict` when some are gone."""
        file, got = _opened(self._file, self.path), 0
        while got < len(view):
            try:
                count = os.preadv(file.fd, [view[got:]], offset + got)
            except OSError as error:
                raise local_error(error, "read", self.path) from None
            if not count:
                raise self._changed()
            got += count

    def check_unchanged(self) -> None:
        """Raise `Conflict` when the file is not as it was when it was opened."""
        now = os.fstat(_opened(self._file, self.path).fd)
        if (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns):
            raise self._changed()

    def close(self) -> None:
        """Let go of it; a thread that still reads, because the wait for it was interrupted, reads to its end."""
        self._file = None

    def _changed(self) -> Conflict:
        return Conflict(f"{str(self.path)!r} changed while it was read; nothing was stored: try again when it rests")


@contextlib.contextmanager
def open_source(source: Path | BinaryIO) -> Iterator[SourceFile | BinaryIO]:
    """Open a source: a regular file for reading in ranges, anything else (pipe, device, stream, a file that claims to
    be empty) for reading once."""
    if not isinstance(source, Path):
        yield source
        return
    try:
        status = source.stat()
    except OSError as error:
        raise local_error(error, "read", source) from None
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectory(f"the local {str(source)!r} is a directory; its files are stored one by one")
    if not stat.S_ISREG(mode) or not status.st_size:  # files of /proc say that they are empty, and are not
        try:
            stream = source.open("rb", buffering=0)
        except OSError as error:
            raise local_error(error, "open", source) from None
        with stream:
            yield stream
        return
    file = SourceFile(source)
    try:
        yield file
    finally:
        file.close()


FIRST_READ_SIZE = 64 * 1024  # bytes of room for what a stream brings; twice as many as there are each further time


class StreamChunk:
    """The next bytes of a stream, kept so that they can be sent again, in pieces of `PIECE_SIZE` but for the last.

    Its memory grows with what came: a short stream never costs a whole chunk.
    """

    def __init__(self) -> None:
        self._pieces: list[bytearray] = []
        self._has_ended = False
        self.length = 0

    def fill(self, stream: BinaryIO, size: int) -> bool:
        """Read on until there are `size` bytes, or the stream ends; return whether there are any."""
        while self.length < size and not self._has_ended:
            if not self._pieces or len(self._pieces[-1]) == PIECE_SIZE:
                self._pieces.append(bytearray())
            piece = self._pieces[-1]
            before = len(piece)
            wanted = min(PIECE_SIZE - before, size - self.length, max(FIRST_READ_SIZE, before))
            piece.extend(bytes(wanted))
            with memoryview(piece) as whole, whole[before:] as rest:
                got = _read_fully(stream, rest)
            del piece[before + got :]
            self.length += got
            self._has_ended = got < wanted
        return self.length > 0

    def pieces(self) -> Iterator[memoryview]:
        """Yield the kept bytes in pieces; may be called again."""
        return (memoryview(piece) for piece in self._pieces if piece)

    def copy_into(self, position: int, view: memoryview) -> None:
        """Fill `view` with the kept bytes from `position` on."""
        got = 0
        while got < len(view):
            index, start = divmod(position + got, PIECE_SIZE)
            part = memoryview(self._pieces[index])[start : start + len(view) - got]
            view[got : got + len(part)] = part
            got += len(part)


def _read_fully(stream: BinaryIO, view: memoryview) -> int:
    """Fill `view` from a stream that may give less at a time; return the bytes got, less only at its end."""
    got = 0
    read_into = getattr(stream, "readinto", None)
    while got < len(view):
        try:
            if read_into is not None:
                count = read_into(view[got:])
            else:
                data = stream.read(len(view) - got)
                count = len(data)
                view[got : got + count] = data
        except OSError as error:
            raise local_error(error, "read", getattr(stream, "name", "stream")) from None
        if not count:  # None: a non-blocking stream without data is not waited for
            if count is None:
                raise LocalFileError("the source is a non-blocking stream without data; give a blocking one")
            break
        got += count
    return got


class TargetFile:
    """A local file in the making: a temporary beside its final name until `publish`. Threads may write parts of it."""

    def __init__(self, target: Path) -> None:
        """Make the temporary; raise when the folder cannot be written, and `IsADirectory` for a directory."""
        self._target = target
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            if target.is_dir():
                raise IsADirectory(f"the local target {str(target)!r} is a directory; give the name of a file in it")
            beginning = target.name[:TEMPORARY_NAME_MAX]
            self._temporary = target.with_name(f".{beginning}.{secrets.token_hex(6)}.part")
            self._file: OpenFile | None = OpenFile(os.open(self._temporary, flags, 0o666))  # the user's umask decides
        except IsADirectory:
            raise
        except OSError as error:
            raise local_error(error, "make", target) from None

    def reserve(self, size: int) -> None:
        """Set the size and reserve the space for it, so that a full disk is known before the bytes come."""
        fd = _opened(self._file, self._target).fd
        try:
            os.ftruncate(fd, 0)
            if size and not self._allocate(fd, size):
                os.ftruncate(fd, size)
        except OSError as error:
            raise local_error(error, "reserve space for", self._target) from None

    @staticmethod
    def _allocate(fd: int, size: int) -> bool:
        """Allocate an empty file's bytes (before its size is set: twice as fast); False where that is not possible."""
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return False
            raise
        return True

    def write(self, data: memoryview, offset: int) -> None:
        file = _opened(self._file, self._target)
        try:
            write_at(file.fd, data, offset)
        except OSError as error:
            raise local_error(error, "write", self._target) from None

    def publish(self, *, overwrite: bool) -> None:
        """Give the file its name; raise `AlreadyExists` when that is taken and `overwrite` is not asked for."""
        try:
            if overwrite:
                self._temporary.replace(self._target)
                return
            try:
                os.link(self._temporary, self._target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                check_absent(self._target)  # no hard links here: a small window stays open
                self._temporary.replace(self._target)
        except OSError as error:
            raise local_error(error, "make", self._target) from None

    def close(self) -> None:
        """Remove the temporary if it is still there, and let go of it, as `SourceFile` does."""
        with contextlib.suppress(OSError):
            self._temporary.unlink()
        self._file = None


class _TemporaryNames:
    """Names that nobody else has: a mark of this process, and a counter."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self.begin()
        os.register_at_fork(after_in_child=self.begin)  # parent and child count on alike

    def begin(self) -> None:
        self._mark = secrets.token_hex(6)

    def next(self) -> str:
        return f"{self._mark}{next(self._numbers):x}"


_temporary_names = _TemporaryNames()


def write_whole(target: Path, data: memoryview, *, overwrite: bool) -> None:
    """Make a small local file appear whole, as `TargetFile` does, by as few calls of the system as that takes."""
    folder, name = os.path.split(target)
    temporary = f"{folder or os.curdir}/.{name[:TEMPORARY_NAME_MAX]}.{_temporary_names.next()}.part"
    is_there = False
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # the user's umask decides
        is_there = True
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)
        if not overwrite and _link(temporary, target):
            return
        os.replace(temporary, target)  # noqa: PTH105 - a Path for each small file costs as much as the call
        is_there = False
    except DfsError:
        raise
    except OSError as error:
        raise local_error(error, "make", target) from None
    finally:
        if is_there:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108 - as above


def _link(temporary: str, target: Path) -> bool:
    """Give a file a second name that nobody has; False where that cannot be, and nobody has the name at this moment."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        check_absent(target)  # no hard links here: a small window stays open
        return False
    return True


def check_absent(target: Path) -> None:
    """Raise `AlreadyExists` when something has the name `target`."""
    if os.path.lexists(target):
        raise AlreadyExists(f"the local file {str(target)!r} exists already; allow overwriting, or choose another name")
