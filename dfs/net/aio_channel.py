"""The asyncio client: one connection that carries many calls at once.

Owns: calls that wait for their reply, their limit and deadlines. Refuses to know: what a message means, and payloads.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from dfs.clock import Deadline
from dfs.config import split_address
from dfs.errors import ConnectionFailed, DeadlineExceeded, DfsError, Overloaded, ProtocolError
from dfs.net.aio_connection import FrameConnection
from dfs.net.auth import ClusterKey
from dfs.net.frames import FrameHead, encode_frame
from dfs.net.messages import ErrorReply, Message, decode, encode
from dfs.net.session import Role
from dfs.net.sockets import connect_error

CALLS_MAX: Final = 1024  # of one channel that wait for their reply


class _ClientConnection(FrameConnection):
    """The connection of an AioChannel: replies find their calls by request id."""

    def __init__(self, address: str, key: ClusterKey, handshake_timeout_s: float) -> None:
        super().__init__(Role.INITIATOR, key, handshake_timeout_s)
        self.calls: dict[int, asyncio.Future[Message]] = {}
        self.authenticated: asyncio.Future[None] = self.loop.create_future()
        self.authenticated.add_done_callback(_retrieve)
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self._address = address

    def ready(self) -> None:
        if not self.authenticated.done():
            self.authenticated.set_result(None)

    def received(self, frames: list[tuple[FrameHead, bytes]]) -> None:
        for head, header in frames:
            call = self.calls.pop(head.request_id, None)
            if call is None or call.done():
                continue  # the caller has stopped waiting
            try:
                call.set_result(decode(head.type_code, header))
            except ProtocolError as error:
                call.set_exception(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.may_write.clear()

    def writable(self) -> None:
        self.may_write.set()

    def ended(self, error: DfsError) -> None:
        if not self.authenticated.done():
            error.details.setdefault("address", self._address)
            self.authenticated.set_exception(error)
        for call in self.calls.values():
            if not call.done():
                call.set_exception(ConnectionFailed(error.message, address=self._address))
        self.calls.clear()
        self.may_write.set()
        self.closed.set_result(None)


class AioChannel:
    """One authenticated connection that carries many calls at once. Used from one loop."""

    def __init__(self, address: str, connection: _ClientConnection) -> None:
        self.address = address
        self._connection = connection
        self._request_id = 0

    @classmethod
    async def connect(cls, address: str, key: ClusterKey, deadline: Deadline) -> AioChannel:
        """Return an authenticated connection; raise `ConnectionFailed`, `AuthenticationFailed`, `VersionMismatch`,
        `ProtocolError` (not a dfs port) or `DeadlineExceeded`."""
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        seconds = deadline.check(f"connecting to {address}")
        connection = _ClientConnection(address, key, seconds)
        try:
            async with asyncio.timeout(seconds):
                await loop.create_connection(lambda: connection, host, port)
                await connection.authenticated
        except DfsError:
            raise
        except OSError as error:
            connection.fail(ConnectionFailed("given up"))
            raise connect_error(address, error) from None
        except BaseException:
            connection.fail(ConnectionFailed("given up"))
            raise
        return cls(address, connection)

    async def call(self, message: Message, deadline: Deadline) -> Message:
        """Send a message and return its reply; an `ErrorReply` is raised as the error it carries.

        Raise `ConnectionFailed`, `DeadlineExceeded`, or `Overloaded` when CALLS_MAX calls wait already. A call that is
        cancelled or late does no harm to the others.
        """
        connection = self._connection
        doing = f"waiting for {self.address}"
        if connection.is_write_paused:
            await self._wait_writable(deadline, doing)
        if not connection.is_open:
            why = f"lost the connection to {self.address}; the node may have stopped"
            raise ConnectionFailed(why, address=self.address)
        if len(connection.calls) >= CALLS_MAX:
            raise Overloaded(
                f"{CALLS_MAX} calls to {self.address} wait for their replies already; wait for some of them"
            )
        seconds = deadline.check(doing)
        self._request_id += 1
        request_id = self._request_id
        timeout_ms = math.ceil(seconds * 1000)
        connection.write(encode_frame(message.type_code, encode(message), request_id=request_id, timeout_ms=timeout_ms))
        call: asyncio.Future[Message] = connection.loop.create_future()
        connection.calls[request_id] = call
        timer = connection.loop.call_later(seconds, _expire, call, doing)
        try:
            reply = await call
        finally:
            timer.cancel()
            connection.calls.pop(request_id, None)
        if isinstance(reply, ErrorReply):
            raise reply.error()
        return reply

    async def _wait_writable(self, deadline: Deadline, doing: str) -> None:
        try:
            async with asyncio.timeout(deadline.check(doing)):
                await self._connection.may_write.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed while {doing}, which takes no more bytes") from None

    @property
    def is_broken(self) -> bool:
        """Whether the connection is gone."""
        return not self._connection.is_open

    async def close(self) -> None:
        """End the connection; calls that wait fail. Again is harmless."""
        self._connection.close()
        if not self._connection.closed.done():
            await asyncio.wait([self._connection.closed], timeout=1.0)
            self._connection.fail(ConnectionFailed("closed"))


def _expire(call: asyncio.Future[Message], doing: str) -> None:
    if not call.done():
        call.set_exception(DeadlineExceeded(f"the deadline passed while {doing}; try again, or allow more time"))


def _retrieve(future: asyncio.Future[None]) -> None:
    """Mark the error of a future as seen: nobody may wait for it any more."""
    if not future.cancelled():
        future.exception()
