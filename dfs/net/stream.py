"""A connected socket as a stream of bytes with deadlines: the wall between the blocking driver and the system.

Owns: the socket, its read-ahead buffer, its kernel timeouts, and the translation of its errors. Refuses to know:
frames, handshakes and messages (dfs.net.blocking).

Waiting is done by the kernel, inside the very calls that send and receive: SO_RCVTIMEO and SO_SNDTIMEO stand at
`KERNEL_WAIT_MAX_S`, or at a part of what is left of the deadline when that is less. An ordinary call costs one send and
one receive and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import socket
import struct
import threading
import time
from typing import Final

from dfs.checksum import Buffer
from dfs.clock import Deadline
from dfs.errors import ConnectionFailed, DeadlineExceeded, DfsError, DiskFailed
from dfs.net.sockets import connect_error, is_self_connected, lost_error, resolve, tune

KERNEL_WAIT_MAX_S: Final = 1.0  # longest single wait in the kernel; then the deadline is looked at again
KERNEL_WAIT_MIN_S: Final = 0.001  # to the kernel 0 means for ever
KERNEL_WAIT_SHARE: Final = 8  # a timeout that stands is left alone down to this part of the wait: it is waited again
READ_AHEAD_SIZE: Final = 16 * 1024  # bytes: a prefix and its header arrive in one receive
SEND_FILE_PIECE_MAX: Final = 1 << 30  # bytes in one sendfile, below the 2 GiB where systems disagree
MSG_MORE: Final[int] = getattr(socket, "MSG_MORE", 0)  # more follows at once: do not send a small packet yet
_MSG_WAITALL: Final[int] = getattr(socket, "MSG_WAITALL", 0)
_MSG_DONTWAIT: Final[int] = socket.MSG_DONTWAIT
_NOW: Final = Deadline(0.0)  # has passed: look, do not wait
_DESCRIPTOR = struct.Struct("@i")
_NO_WAITS: Final = (math.inf, 0.0)  # none: no timeout was set yet
_TIMEVAL = struct.Struct("@ll")  # of setsockopt: seconds, microseconds
_FILE_ERRORS = frozenset({errno.EIO, errno.EINVAL, errno.ESTALE, errno.EOVERFLOW})


class SocketStream:
    """One connection. Use from one thread at a time; `interrupt` and `close` may come from any.

    Methods that wait raise `DeadlineExceeded` or `ConnectionFailed` (details: `address`); after either, how much was
    sent or received is unknown, `is_broken` is set and the connection is only to be closed.
    """

    def __init__(self, sock: socket.socket, address: str) -> None:
        sock.settimeout(None)  # the kernel's own timeouts rule
        self.address = address
        self.is_broken = False
        self.is_closed = False
        self._has_ended = False  # met by `wait_readable`: nothing more is to be asked of the kernel
        self._end_error: OSError | ValueError | None = None  # what it ended with
        self._socket = sock
        # Socket option -> the waits for which the kernel's present timeout is left alone, the shortest is that timeout.
        self._waits_s = {socket.SO_RCVTIMEO: _NO_WAITS, socket.SO_SNDTIMEO: _NO_WAITS}
        self._buffer = memoryview(bytearray(READ_AHEAD_SIZE))
        self._start = 0  # unread bytes are _buffer[_start:_end]
        self._end = 0
        self._close_lock = threading.RLock()  # the garbage collector may end a transfer in the midst of `close`

    @classmethod
    def connect(cls, address: str, deadline: Deadline, *, is_bulk: bool) -> SocketStream:
        """Return a connected stream; raise `ConnectionFailed` or `DeadlineExceeded`.

        Resolving a host name is the system's business and obeys its own timeouts.
        """
        failure: DfsError | None = None
        for family, kind, protocol, name in resolve(address):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:  # no descriptors, or a kernel without this kind of address
                failure = connect_error(address, error)
                continue
            try:
                tune(sock, is_bulk=is_bulk)
                sock.settimeout(deadline.check(f"connecting to {address}"))
                sock.connect(name)
                if is_self_connected(sock):
                    raise ConnectionRefusedError
            except OSError as error:
                sock.close()
                failure = connect_error(address, error)
                if isinstance(failure, DeadlineExceeded):
                    raise failure from None
            except DfsError:
                sock.close()
                raise
            else:
                return cls(sock, address)
        raise failure or ConnectionFailed(f"cannot connect to {address}: it has no network address", address=address)

    # --- sending --------------------------------------------------------------------------------------

    def send(self, data: Buffer, deadline: Deadline, flags: int = 0) -> None:
        """Send all of `data`."""
        view: Buffer = data
        left = len(data)
        while left:
            self._arm(socket.SO_SNDTIMEO, deadline, "sending to")
            try:
                sent = self._socket.send(view, flags)
            except BlockingIOError:
                continue  # the kernel's wait ended: look at the deadline
            except (OSError, ValueError) as error:
                raise self._lost(error) from None
            left -= sent
            if left:
                view = memoryview(view)[sent:]

    def send_pair(self, head: bytes, body: memoryview, deadline: Deadline) -> None:
        """Send `head` and then `body` (of bytes), in one system call when the kernel takes that much."""
        sent = 0
        while not sent:
            self._arm(socket.SO_SNDTIMEO, deadline, "sending to")
            try:
                sent = self._socket.sendmsg((head, body))
            except BlockingIOError:
                continue
            except (OSError, ValueError) as error:
                raise self._lost(error) from None
        if sent < len(head):
            self.send(head[sent:], deadline, MSG_MORE)
            sent = len(head)
        self.send(body[sent - len(head) :], deadline)

    def send_descriptor(self, data: bytes, fd: int, deadline: Deadline) -> None:
        """Send `data`, and with its first byte a copy of the descriptor: over a Unix socket only."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(fd))]
        sent = 0
        while not sent:
            self._arm(socket.SO_SNDTIMEO, deadline, "sending to")
            try:
                sent = self._socket.sendmsg((data,), rights)
            except BlockingIOError:
                continue
            except (OSError, ValueError) as error:
                raise self._lost(error) from None
        self.send(data[sent:], deadline)

    def send_file(self, fd: int, offset: int, size: int, deadline: Deadline) -> None:
        """Send bytes of a file without copying them into this process; raise `DiskFailed` when it cannot be read or
        is shorter."""
        # A blocking sendfile gives each of its inner waits the whole kernel timeout; a non-blocking one obeys ours.
        self._set_blocking(False)
        try:
            end = offset + size
            while offset < end:
                try:
                    sent = os.sendfile(self._socket.fileno(), fd, offset, min(end - offset, SEND_FILE_PIECE_MAX))
                except BlockingIOError:
                    if not self._wait(select.POLLOUT, deadline):
                        self._check(deadline, "sending to")
                    continue
                except (OSError, ValueError) as error:
                    raise self._file_error(error) from None
                if not sent:
                    self.is_broken = True
                    raise DiskFailed(f"a file of this node ended {end - offset} bytes too early while it was sent")
                offset += sent
        finally:
            if not self.is_closed:
                self._set_blocking(True)

    # --- receiving ------------------------------------------------------------------------------------

    def take(self, size: int, deadline: Deadline) -> memoryview:
        """Return the next `size` bytes, valid until the next receive; read ahead what has come with them."""
        unread = self._end - self._start
        if unread < size:
            if size > READ_AHEAD_SIZE:
                large = memoryview(bytearray(size))
                self.fill(large, deadline)
                return large
            if self._start:
                self._buffer[:unread] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, unread
            while self._end < size:
                self._end += self._receive(self._buffer[self._end :], 0, deadline)
        start = self._start
        self._start += size
        return self._buffer[start : self._start]

    def fill(self, buffer: memoryview, deadline: Deadline) -> None:
        """Receive exactly `len(buffer)` bytes into `buffer` (of bytes), without copying what was not read ahead."""
        size = len(buffer)
        got = min(size, self._end - self._start)
        if got:
            buffer[:got] = self._buffer[self._start : self._start + got]
            self._start += got
        while got < size:
            got += self._receive(buffer[got:] if got else buffer, _MSG_WAITALL, deadline)

    def _receive(self, buffer: memoryview, flags: int, deadline: Deadline) -> int:
        if self._has_ended:
            raise self._lost(self._end_error)
        while True:
            self._arm(socket.SO_RCVTIMEO, deadline, "waiting for")
            try:
                count = self._receive_some(buffer, flags)
            except BlockingIOError:
                continue  # the kernel's wait ended: look at the deadline
            except (OSError, ValueError) as error:
                raise self._lost(error) from None
            if not count:
                raise self._lost(None)
            return count

    def _receive_some(self, buffer: memoryview, flags: int) -> int:
        """Ask the kernel once; what may come besides bytes is a subclass's business."""
        return self._socket.recv_into(buffer, 0, flags)

    def take_descriptor(self) -> int | None:
        """Return the descriptor that came, which is the caller's then; None: none came."""
        return None

    def fileno(self) -> int:
        """Return the socket's number, to wait for several at once; -1 when it is closed."""
        return self._socket.fileno()

    def wait_readable(self, deadline: Deadline) -> bool:
        """Say whether bytes, or the end of the stream, came before the deadline: they are read ahead."""
        if self._start < self._end or self._has_ended or self.is_closed:
            return True
        self._start = self._end = 0
        while True:
            wait_s = deadline.at_s - time.monotonic()
            flags = 0 if wait_s > 0 else _MSG_DONTWAIT
            try:
                if not flags:
                    shortest_s, longest_s = self._waits_s[socket.SO_RCVTIMEO]
                    if not shortest_s <= wait_s <= longest_s:
                        self._limit_waits(socket.SO_RCVTIMEO, wait_s)
                self._end = self._receive_some(self._buffer, flags)
            except BlockingIOError:
                if flags:
                    return False
            except (OSError, ValueError) as error:
                self._has_ended, self._end_error = True, error
                return True
            else:
                self._has_ended = not self._end
                return True

    def ahead(self) -> memoryview:
        """Return what has come and was not taken yet, without waiting; valid until the next receive."""
        if self._start == self._end:
            self.wait_readable(_NOW)
        return self._buffer[self._start : self._end]

    @property
    def has_unread(self) -> bool:
        """Whether something was received, or the end met, that nobody has taken yet: the kernel does not tell again."""
        return self._start < self._end or self._has_ended

    # --- ending ---------------------------------------------------------------------------------------

    def interrupt(self, *, reads_only: bool = False) -> None:
        """Wake the thread that uses this stream (from another one): it meets the end of the stream.

        A thread that already has all it wanted notices nothing, so that nobody else is to use the stream is noted.
        """
        if not reads_only:
            self.is_broken = True
        with self._close_lock:  # not after the number was given back: it may be another one's socket then
            self._shut(socket.SHUT_RD if reads_only else socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):  # the peer was faster, or it is closed
            self._socket.shutdown(how)

    def close(self) -> None:
        """End the connection; again is harmless."""
        with self._close_lock:
            if self.is_closed:
                return
            self.is_closed = self.is_broken = True
            self._shut(socket.SHUT_RDWR)  # a thread that still waits in the kernel would not notice a mere close
            self._socket.close()

    # --- the kernel's timeouts and errors ---------------------------------------------------------------

    def _arm(self, option: int, deadline: Deadline, doing: str) -> None:
        """Give the kernel's next wait its limit; raise `DeadlineExceeded` when the deadline has passed."""
        wait_s = deadline.at_s - time.monotonic()
        if wait_s <= 0:
            self._check(deadline, doing)
        shortest_s, longest_s = self._waits_s[option]
        if not shortest_s <= wait_s <= longest_s:
            self._limit_waits(option, wait_s)

    def _limit_waits(self, option: int, wait_s: float) -> None:
        """Let no wait in the kernel take longer than `wait_s`; needed only when that is not among `_waits_s`."""
        # A power of two: what is left of the same deadline in the next call is then seldom worth another change.
        wait_s = min(max(math.ldexp(0.5, math.frexp(wait_s)[1]), KERNEL_WAIT_MIN_S), KERNEL_WAIT_MAX_S)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(wait_s), int(wait_s % 1 * 1_000_000)))
        except OSError as error:
            raise self._lost(error) from None
        longest_s = wait_s * KERNEL_WAIT_SHARE
        self._waits_s[option] = wait_s, math.inf if longest_s >= KERNEL_WAIT_MAX_S else longest_s

    def _wait(self, event: int, deadline: Deadline) -> bool:
        poller = select.poll()
        try:
            poller.register(self._socket, event)
        except (OSError, ValueError) as error:  # closed by another thread
            raise self._lost(error) from None
        return bool(poller.poll(math.ceil(deadline.remaining_s() * 1000)))

    def _set_blocking(self, is_blocking: bool) -> None:
        try:
            self._socket.setblocking(is_blocking)
        except OSError as error:
            raise self._lost(error) from None

    def _check(self, deadline: Deadline, doing: str) -> None:
        try:
            deadline.check(f"{doing} {self.address}")
        except DeadlineExceeded as error:
            self.is_broken = True
            error.details["address"] = self.address
            raise

    def _file_error(self, error: OSError | ValueError) -> DfsError:
        if isinstance(error, OSError) and error.errno in _FILE_ERRORS:
            self.is_broken = True
            return DiskFailed(f"a file of this node cannot be read while it is sent: {error.strerror}")
        return self._lost(error)

    def _lost(self, error: OSError | ValueError | None) -> DfsError:
        """Return our error for a broken stream (`None`: the peer closed it; ValueError: a closed descriptor)."""
        self.is_broken = True
        return lost_error(self.address, error if isinstance(error, OSError) else None)
