"""Memory that one process lends to others of its machine: an anonymous file, sealed at its size.

Owns: making and mapping it, what makes a foreign descriptor fit to be read from, and reading. Refuses to know: how a
descriptor travels (dfs.net.local), and what is in the memory.

Whoever borrows reads by `pread` into memory of its own and never maps: so nothing that the lender does to it (write,
punch holes) can hurt more than the bytes, and what was verified cannot change any more. The seals prove that it is
memory, which no read waits for, and that its size stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from typing import Final

from dfs.errors import InvalidArgument, Overloaded, ProtocolError

IS_POSSIBLE: Final = hasattr(os, "memfd_create") and hasattr(fcntl, "F_GET_SEALS")
_SEALS: Final[int] = getattr(fcntl, "F_SEAL_SHRINK", 0) | getattr(fcntl, "F_SEAL_GROW", 0)
_SEAL_SEAL: Final[int] = getattr(fcntl, "F_SEAL_SEAL", 0)


class OwnMemory:
    """Memory of this process that can be lent: `view` writes it, `fd` is what is handed over."""

    def __init__(self, size: int) -> None:
        """Make it; raise `Overloaded` when the system has none, or no descriptor for it."""
        self.size = size
        try:
            self.fd = os.memfd_create("dfs-lent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError as error:
            raise Overloaded(f"no memory to lend can be made: {error.strerror}") from None
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS | _SEAL_SEAL)
            self._map = mmap.mmap(self.fd, size)  # has a descriptor of its own
        except OSError as error:
            os.close(self.fd)
            raise Overloaded(f"{size} bytes of memory to lend cannot be made: {error.strerror}") from None
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Let go of it; the memory is free when nobody has a part of `view` or a descriptor any more."""
        os.close(self.fd)
        self.view.release()
        with contextlib.suppress(BufferError):  # somebody has a part: it goes with that
            self._map.close()


class BorrowedMemory:
    """Memory that a peer lent: its descriptor is owned from here on, also when it is refused."""

    def __init__(self, fd: int, size: int, size_max: int) -> None:
        """Raise `InvalidArgument` unless `fd` is sealed memory of exactly `size` bytes, at most `size_max`."""
        self.size = size
        self._fd = fd
        try:
            self._check(size_max)
        except BaseException:
            self.close()
            raise

    def _check(self, size_max: int) -> None:
        try:
            seals = fcntl.fcntl(self._fd, fcntl.F_GET_SEALS)
        except OSError:  # a file, a pipe, a socket
            raise InvalidArgument("what was lent is no memory (memfd_create); a file may be waited for") from None
        if seals & _SEALS != _SEALS:
            raise InvalidArgument("the lent memory may still shrink or grow; it is to be sealed (F_SEAL_SHRINK, _GROW)")
        actual = os.fstat(self._fd).st_size
        if not 0 < self.size == actual <= size_max:
            raise InvalidArgument(f"memory of {actual} bytes was lent as {self.size}; up to {size_max} are allowed")

    def check_range(self, offset: int, size: int) -> None:
        """Raise `InvalidArgument` unless [`offset`, +`size`) lies within the memory."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise InvalidArgument(f"bytes [{offset}, {offset + size}) are not within the {self.size} that were lent")

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from a range that was checked; raise `ProtocolError` when it cannot be read."""
        got = 0
        while got < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[got:] if got else buffer], offset + got)
            except OSError as error:
                raise ProtocolError(f"the lent memory cannot be read: {error.strerror}") from None
            if not count:
                raise ProtocolError("the lent memory ended where its seals say that it does not")
            got += count

    def close(self) -> None:
        """Let go of it; again is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
