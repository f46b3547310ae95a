"""One asyncio connection that speaks frames without payload: the part that servers and clients share.

Owns: the handshake over a transport, cutting bytes into frames, gathering what is written in one turn of the loop, and
the timers that end a connection which does not move. Refuses to know: requests and replies (dfs.net.aio).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
from typing import Final, cast

from dfs.errors import ConnectionFailed, DeadlineExceeded, DfsError, LimitExceeded
from dfs.net.auth import ClusterKey
from dfs.net.frames import FrameHead, FrameParser
from dfs.net.session import HANDSHAKE_TIMEOUT_S, NONCE_SIZE, Handshake, Role
from dfs.net.sockets import address_text, is_self_connected, lost_error, tune

WRITE_BUFFER_HIGH: Final = 1024 * 1024  # bytes not yet taken by the kernel: above this nothing new is begun
WRITE_BUFFER_MAX: Final = 64 * 1024 * 1024  # bytes: above this the peer is cut off
STALL_TIMEOUT_S: Final = 30.0  # a peer that takes nothing, or leaves a frame unfinished, for so long is cut off


class FrameConnection(asyncio.Protocol):
    """Base of both sides; used from its loop only. Subclasses fill in the hooks `ready`, `received` and `ended`."""

    def __init__(
        self,
        role: Role,
        key: ClusterKey,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        stall_timeout_s: float = STALL_TIMEOUT_S,
    ) -> None:
        self.peer = "unknown"
        self.failure: DfsError | None = None  # why this side gave the connection up
        self.loop = asyncio.get_running_loop()
        self.is_write_paused = False
        self._handshake = Handshake(role, key.handshake_key, key.cluster, secrets.token_bytes(NONCE_SIZE))
        self._handshake_timeout_s = handshake_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._early = bytearray()  # handshake bytes that came in pieces
        self._parser = FrameParser()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_size = 0  # bytes of them
        self._is_read_paused = False
        self._partial_since_s: float | None = None  # when the unfinished frame last grew by a whole frame
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # --- hooks ----------------------------------------------------------------------------------------

    def ready(self) -> None:
        """The peer has proved itself."""

    def received(self, frames: list[tuple[FrameHead, bytes]]) -> None:
        """Frames came; never empty."""

    def writable(self) -> None:
        """The peer takes bytes again."""

    def ended(self, error: DfsError) -> None:
        """The connection is gone. Called once, and only after `connection_made`."""

    # --- for subclasses -------------------------------------------------------------------------------

    @property
    def is_authenticated(self) -> bool:
        return self._handshake.is_done

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def write(self, frame: bytes, *, is_alone: bool = False) -> None:
        """Send a frame at the end of this turn of the loop, together with all others of the turn; at once when it is
        known to be alone, or when they are so much that it must show whether the peer takes them."""
        transport = self._transport
        if is_alone and not self._out and transport is not None and not transport.get_write_buffer_size():
            if not transport.is_closing():
                transport.write(frame)
            return
        self._out_size += len(frame)
        is_due = is_alone or self._out_size > WRITE_BUFFER_HIGH
        if not self._out and not is_due:
            self.loop.call_soon(self._flush)
        self._out.append(frame)
        if is_due:
            self._flush()

    def pause_reading(self, is_paused: bool) -> None:
        """Stop or resume taking bytes from the peer."""
        if is_paused == self._is_read_paused or self._transport is None or self._transport.is_closing():
            return
        self._is_read_paused = is_paused
        if is_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
            if self._partial_since_s is not None:
                self._partial_since_s = self.loop.time()  # it was this side that did not read

    def fail(self, error: DfsError) -> None:
        """Give the connection up at once; what was not sent is dropped."""
        if self.failure is None:
            self.failure = error
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Send what was written, then end the connection."""
        if self._transport is not None:
            self._flush()
            self._transport.close()

    # --- asyncio.Protocol -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_HIGH)
        self.peer = address_text(transport.get_extra_info("peername"))
        sock = cast(socket.socket, transport.get_extra_info("socket"))
        with contextlib.suppress(OSError):
            tune(sock, is_bulk=False)
            if is_self_connected(sock):
                why = f"cannot connect to {self.peer}: nobody listens there; is the daemon running?"
                self.fail(ConnectionFailed(why, address=self.peer))
                return
        self._after("handshake", self._handshake_timeout_s, "it did not prove itself in time")
        if hello := self._handshake.start():
            self._transport.write(hello)

    def data_received(self, data: bytes) -> None:
        try:
            if not self._handshake.is_done:
                data = self._shake_hands(data)
            if data and self.is_open:
                self._cut(data)
        except DfsError as error:
            self.fail(error)

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._after("write", self._stall_timeout_s, "it does not take our bytes")

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._cancel("write")
        self.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._out.clear()
        if self.failure is not None:
            error = self.failure
        elif not self._handshake.is_done:
            error = self._handshake.end_of_stream(self.peer)
        else:
            error = lost_error(self.peer, exc if isinstance(exc, OSError) else None)
        self.ended(error)

    # --- inside ---------------------------------------------------------------------------------------

    def _shake_hands(self, data: bytes) -> bytes:
        """Take handshake bytes; return what came after them. Keeps less than one step of the handshake."""
        assert self._transport is not None
        self._early += data
        while len(self._early) >= self._handshake.needed:
            step = bytes(self._early[: self._handshake.needed])
            del self._early[: self._handshake.needed]
            if answer := self._handshake.receive(step):
                self._transport.write(answer)
            if self._handshake.is_done:
                self._cancel("handshake")
                self.ready()
                rest = bytes(self._early)
                self._early.clear()
                return rest
        return b""

    def _cut(self, data: bytes) -> None:
        frames = self._parser.feed(data)
        if not self._parser.has_partial:
            self._partial_since_s = None
        elif frames or self._partial_since_s is None:
            self._partial_since_s = self.loop.time()
            if "frame" not in self._timers:
                self._timers["frame"] = self.loop.call_later(self._stall_timeout_s, self._check_partial)
        if frames:
            self.received(frames)

    def _check_partial(self) -> None:
        """End a connection whose frame stays unfinished, unless it is this side that does not read."""
        del self._timers["frame"]
        if self._partial_since_s is None:
            return
        now = self.loop.time()
        if self._is_read_paused:
            self._partial_since_s = now
        left_s = self._partial_since_s + self._stall_timeout_s - now
        if left_s <= 0:
            self._expire("it left a frame unfinished")
        else:
            self._timers["frame"] = self.loop.call_later(left_s, self._check_partial)

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
            if self._transport.get_write_buffer_size() > WRITE_BUFFER_MAX:
                self.fail(LimitExceeded(f"{self.peer} let more than {WRITE_BUFFER_MAX} bytes of replies pile up"))
        self._out.clear()
        self._out_size = 0

    def _after(self, name: str, seconds: float, why: str) -> None:
        self._timers[name] = self.loop.call_later(seconds, self._expire, why)

    def _cancel(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _expire(self, why: str) -> None:
        self.fail(DeadlineExceeded(f"the connection to {self.peer} was given up: {why}", address=self.peer))
