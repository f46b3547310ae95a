"""The blocking driver: one connection used by one thread at a time, made for bulk data and for simple calls.

Owns: frames over a SocketStream, and what is still due in either direction. Refuses to know: who listens
(dfs.net.listener), what messages mean, and files (it gets a descriptor to send from).

After an error, and while a payload is not sent or read to its end, a channel is broken: it is only to be closed.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import select
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from dfs.checksum import Buffer
from dfs.clock import Deadline
from dfs.errors import ConnectionFailed, DfsError, InternalError, ProtocolError
from dfs.net.auth import ClusterKey
from dfs.net.frames import PREFIX_SIZE, decode_prefix, encode_frame
from dfs.net.messages import ErrorReply, Message, decode, encode
from dfs.net.session import NONCE_SIZE, Handshake, Role
from dfs.net.sockets import lost_error, peer_text
from dfs.net.stream import MSG_MORE, SocketStream

SKIP_PIECE_SIZE = 64 * 1024  # bytes thrown away at a time
_NOW = Deadline(0.0)  # has passed: look, do not wait

T = TypeVar("T", bound=Message)


class Received(NamedTuple):
    """A received message. `payload_size` bytes follow it; `timeout_ms`: how long the sender waits (0 = not said)."""

    message: Message
    request_id: int
    timeout_ms: int
    payload_size: int

    def deadline(self, seconds_max: float) -> Deadline:
        """Return when the sender gives up, at most `seconds_max` from now."""
        return Deadline.after(min(self.timeout_ms / 1000 or seconds_max, seconds_max))


def expect(reply: Message, cls: type[T]) -> T:
    """Return the reply if it is a `cls`; raise the error it carries, or `ProtocolError`."""
    if isinstance(reply, cls):
        return reply
    if isinstance(reply, ErrorReply):
        raise reply.error()
    raise ProtocolError(f"{cls.__name__} was expected, {type(reply).__name__} came; are both sides of one version?")


class Channel:
    """One authenticated connection. Use from one thread at a time; `interrupt` and `close` may come from any.

    Every method that waits takes a deadline and raises `DeadlineExceeded` or `ConnectionFailed` (details: `address`).
    """

    def __init__(self, stream: SocketStream) -> None:
        """Wrap a stream whose handshake is done; `connect` and `accept` are what callers want."""
        self.address = stream.address
        self._stream = stream
        self._payload_left = 0  # bytes announced by the peer, not yet read
        self._send_left = 0  # bytes announced to the peer, not yet sent
        self._request_id = 0
        self._is_broken = False

    @classmethod
    def connect(cls, address: str, key: ClusterKey, deadline: Deadline, *, bulk: bool = False) -> Channel:
        """Return an authenticated connection; raise `ConnectionFailed`, `AuthenticationFailed`, `VersionMismatch`,
        `ProtocolError` (not a dfs port) or `DeadlineExceeded`. `bulk`: tune it for much data."""
        stream = SocketStream.connect(address, deadline, is_bulk=bulk)
        _shake_hands(stream, Role.INITIATOR, key, deadline)
        return cls(stream)

    @classmethod
    def accept(cls, sock: socket.socket, key: ClusterKey, deadline: Deadline) -> Channel:
        """Return the authenticated connection of an accepted socket; the socket is closed on any error."""
        return accept_stream(accepted_stream(sock), key, deadline)

    # --- sending ------------------------------------------------------------------------------------

    def send(
        self,
        message: Message,
        deadline: Deadline,
        *,
        request_id: int = 0,
        payload: Buffer | None = None,
        payload_size: int | None = None,
    ) -> None:
        """Send a message, with its payload in the same system call when that is at hand.

        With `payload_size` and no `payload` the caller sends that many bytes next, by `send_bytes` or `send_file`.
        """
        if self._send_left:
            raise self._misused(f"{self._send_left} bytes of a promised payload were not sent")
        if payload is None and not payload_size:  # a call like most
            timeout_ms = math.ceil(deadline.remaining_s() * 1000)
            head = encode_frame(message.type_code, encode(message), request_id=request_id, timeout_ms=timeout_ms)
            self._stream.send(head, deadline)
            return
        size = payload_size or 0
        body: memoryview | None = None
        if payload is not None:
            body = memoryview(payload).cast("B")
            size = len(body)
            if payload_size not in (None, size):
                raise ValueError(f"payload_size is {payload_size}, the payload has {size} bytes")
        head = encode_frame(
            message.type_code,
            encode(message),
            request_id=request_id,
            timeout_ms=math.ceil(deadline.remaining_s() * 1000),
            payload_size=size,
        )
        if body:
            self._stream.send_pair(head, body, deadline)
        else:
            self._stream.send(head, deadline, MSG_MORE if size else 0)
            self._send_left = size

    def send_bytes(self, data: Buffer, deadline: Deadline) -> None:
        """Send the next bytes of a promised payload."""
        view = memoryview(data).cast("B")
        left = self._promised(len(view))
        self._stream.send(view, deadline, MSG_MORE if left else 0)
        self._send_left = left

    def send_descriptor(self, message: Message, fd: int, deadline: Deadline, *, request_id: int = 0) -> None:
        """Send a message without payload and a copy of a descriptor with it: over a Unix socket only."""
        if self._send_left:
            raise self._misused(f"{self._send_left} bytes of a promised payload were not sent")
        self._stream.send_descriptor(
            encode_frame(message.type_code, encode(message), request_id=request_id), fd, deadline
        )

    def send_file(self, fd: int, offset: int, size: int, deadline: Deadline) -> None:
        """Send the next `size` bytes of a promised payload from a file, without copying them into this process.

        Raise `DiskFailed` when the file is shorter or cannot be read.
        """
        left = self._promised(size)
        self._stream.send_file(fd, offset, size, deadline)
        self._send_left = left

    def _promised(self, size: int) -> int:
        """Return what of the promised payload is left to send after `size` bytes."""
        left = self._send_left - size
        if left < 0:
            raise self._misused(f"{size} bytes were to be sent where {self._send_left} were promised")
        return left

    # --- receiving ----------------------------------------------------------------------------------

    def receive(self, deadline: Deadline) -> Received:
        """Wait for the next message. Its payload, if any, is to be read by `receive_into` or `skip_payload` next.

        Raise `ProtocolError` when what came is not one of our frames: the connection is to be closed.
        """
        if self._payload_left:
            raise self._misused(f"{self._payload_left} bytes of the last payload were not read")
        try:
            head = decode_prefix(self._stream.take(PREFIX_SIZE, deadline))
            header = self._stream.take(head.header_size, deadline)
            head.check_header(header)
            message = decode(head.type_code, header)
        except ProtocolError as error:
            self._is_broken = True
            raise _located(error, self.address) from None
        self._payload_left = head.payload_size
        return Received(message, head.request_id, head.timeout_ms, head.payload_size)

    def whole(self, kind: type[T], is_wanted: Callable[[T, int], bool]) -> tuple[T, Received, memoryview] | None:
        """Return the next message and its payload if it is a `kind` that has come as a whole, without waiting.

        Else None, and nothing is taken: `receive` tells what it is, or what is wrong with it. `is_wanted` is asked with
        the message and the size of its payload. The payload is valid until the next receive.
        """
        if self._payload_left or self.is_broken:
            return None
        view = self._stream.ahead()
        try:
            if len(view) < PREFIX_SIZE:
                return None
            head = decode_prefix(view[:PREFIX_SIZE])
            start = PREFIX_SIZE + head.header_size
            size = start + head.payload_size
            if head.type_code != kind.type_code or len(view) < size:
                return None
            header = view[PREFIX_SIZE:start]
            head.check_header(header)
            message = decode(head.type_code, header)
        except ProtocolError:
            return None
        if not isinstance(message, kind) or not is_wanted(message, head.payload_size):
            return None
        self._stream.take(size, _NOW)
        return message, Received(message, head.request_id, head.timeout_ms, head.payload_size), view[start:size]

    def receive_into(self, buffer: memoryview, deadline: Deadline) -> None:
        """Fill `buffer` with the next bytes of the payload."""
        view = buffer.cast("B")
        if len(view) > self._payload_left:
            raise self._misused(f"{len(view)} bytes were to be read where {self._payload_left} were announced")
        self._stream.fill(view, deadline)
        self._payload_left -= len(view)

    def skip_payload(self, size: int, deadline: Deadline) -> None:
        """Throw the next `size` bytes of the payload away."""
        scratch = memoryview(bytearray(min(size, SKIP_PIECE_SIZE)))
        while size > 0:
            piece = scratch[: min(size, SKIP_PIECE_SIZE)]
            self.receive_into(piece, deadline)
            size -= len(piece)

    def take_descriptor(self) -> int:
        """Return the descriptor that came with the last message; it is the caller's. Over a Unix socket only."""
        fd = self._stream.take_descriptor()
        if fd is None:
            self._is_broken = True
            raise ProtocolError(
                f"{self.address} announced a descriptor, and none came; are there none left (ulimit -n)?"
            )
        return fd

    def wait_readable(self, deadline: Deadline) -> bool:
        """Say whether something, or the end of the connection, came before the deadline."""
        return self._stream.wait_readable(deadline)

    @property
    def has_unread(self) -> bool:
        """Whether something has come that was not taken yet; a socket that is waited for does not tell."""
        return self._stream.has_unread

    def fileno(self) -> int:
        """Return the socket's number, to wait for several channels at once; -1 when it is closed."""
        return self._stream.fileno()

    # --- calling ------------------------------------------------------------------------------------

    def call(self, message: Message, deadline: Deadline) -> Message:
        """Send a message and return its payload-less reply; an `ErrorReply` is raised as the error it carries."""
        self._request_id += 1
        self.send(message, deadline, request_id=self._request_id)
        reply, request_id, _, payload_size = self.receive(deadline)
        if request_id != self._request_id or payload_size:
            self._is_broken = True
            if isinstance(reply, ErrorReply) and not request_id:
                raise reply.error()  # the peer's last words
            raise ProtocolError(
                f"{self.address} answered request {request_id} with {payload_size} bytes of payload where an answer "
                f"without payload to request {self._request_id} was due"
            )
        if isinstance(reply, ErrorReply):
            raise reply.error()
        return reply

    def expect(self, reply: Message, cls: type[T]) -> T:
        """Return the reply if it is a `cls`; raise the error it carries, or `ProtocolError`."""
        return expect(reply, cls)

    def send_last_words(self, error: DfsError, deadline: Deadline) -> None:
        """Tell the peer, if it can still be told, why this side closes the connection now."""
        if not (self._send_left or self._stream.is_broken):
            with contextlib.suppress(DfsError):
                self.send(ErrorReply.of(error), deadline)
        self._is_broken = True

    # --- state --------------------------------------------------------------------------------------

    @property
    def is_broken(self) -> bool:
        """Whether the stream is closed, lost, or in the middle of something: not to be used for another call."""
        stream = self._stream
        return self._is_broken or stream.is_broken or stream.is_closed or bool(self._payload_left or self._send_left)

    def interrupt(self, *, reads_only: bool = False) -> None:
        """Wake the thread that uses this channel (from another one): it meets the end of the stream."""
        self._stream.interrupt(reads_only=reads_only)

    def close(self) -> None:
        """End the connection; again is harmless."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _misused(self, story: str) -> InternalError:
        self._is_broken = True
        return InternalError(f"a connection to {self.address} was misused: {story}; this is a bug of dfs")


def first_readable(channels: Sequence[Channel], deadline: Deadline) -> Channel | None:
    """Return the first of `channels`, none of which has been read ahead of, at which something or its end comes."""
    poller = select.poll()
    by_number = {channel.fileno(): channel for channel in channels}
    if -1 in by_number:  # closed by another thread: its end has come
        return by_number[-1]
    for number in by_number:
        poller.register(number, select.POLLIN)
    found = poller.poll(math.ceil(deadline.remaining_s() * 1000))
    return by_number[found[0][0]] if found else None


# --- the server's side, in the two steps that the listener needs ----------------------------------------------


def accepted_stream(sock: socket.socket, kind: type[SocketStream] = SocketStream) -> SocketStream:
    """Return the stream of an accepted socket before its handshake; raise `ConnectionFailed` when it is gone."""
    try:
        return kind(sock, peer_text(sock))
    except OSError as error:
        sock.close()
        raise lost_error("a new peer", error) from None


def accept_stream(stream: SocketStream, key: ClusterKey, deadline: Deadline) -> Channel:
    """Return the channel of an accepted stream once its peer has proved itself; the stream is closed on any error."""
    _shake_hands(stream, Role.ACCEPTOR, key, deadline)
    return Channel(stream)


def initiate_stream(stream: SocketStream, key: ClusterKey, deadline: Deadline) -> None:
    """Do the handshake of whoever connected; the stream is closed on any error."""
    _shake_hands(stream, Role.INITIATOR, key, deadline)


def _shake_hands(stream: SocketStream, role: Role, key: ClusterKey, deadline: Deadline) -> None:
    handshake = Handshake(role, key.handshake_key, key.cluster, secrets.token_bytes(NONCE_SIZE))
    try:
        if hello := handshake.start():
            stream.send(hello, deadline)
        while not handshake.is_done:
            if answer := handshake.receive(bytes(stream.take(handshake.needed, deadline))):
                stream.send(answer, deadline)
    except ConnectionFailed:
        stream.close()
        raise handshake.end_of_stream(stream.address) from None
    except DfsError as error:
        stream.close()
        raise _located(error, stream.address) from None
    except BaseException:
        stream.close()
        raise


def _located(error: DfsError, address: str) -> DfsError:
    """Return the error with the peer's address in its words and facts."""
    error.details.setdefault("address", address)
    if address not in error.message:
        error.message = f"{address}: {error.message}"
    return error
