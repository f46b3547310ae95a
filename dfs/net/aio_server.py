"""The asyncio server: many connections, many requests of each at once, one handler.

Owns: requests in progress, their limits, deadlines and replies. Refuses to know: what a message means (a handler is
called), and payloads: frames that carry one are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from dfs.clock import Deadline
from dfs.config import split_address
from dfs.errors import ConnectionFailed, DeadlineExceeded, DfsError, FrameTooLarge, Overloaded, ProtocolError
from dfs.log import get_logger
from dfs.net.aio_connection import STALL_TIMEOUT_S, FrameConnection
from dfs.net.answers import Answer
from dfs.net.auth import ClusterKey
from dfs.net.frames import FrameHead, encode_frame
from dfs.net.messages import ErrorReply, Message, decode, encode
from dfs.net.refusals import RefusalLog
from dfs.net.session import HANDSHAKE_TIMEOUT_S, Role
from dfs.net.sockets import BACKLOG, address_text, listening_socket

CONNECTIONS_MAX: Final = 4096  # of one port
HANDSHAKES_MAX: Final = 256  # connections at a time whose peer has not proved itself
REQUESTS_MAX: Final = 128  # of one connection that are worked on at a time, or in one turn of the loop; others wait
REQUEST_TIMEOUT_S: Final = 30.0  # for a request that does not say how long its sender waits
REQUEST_TIMEOUT_MAX_S: Final = 600.0  # whatever it says
REQUEST_GRACE_S: Final = 1.0  # past its deadline a handler that still runs is cancelled

log = get_logger("dfs.net.aio")


class _Outcome(Protocol):
    def result(self) -> Message: ...


async def _end(answer: Answer) -> None:
    """Return when it is known; how it failed is told to whoever asked."""
    with contextlib.suppress(Exception):
        await answer


class RequestContext(msgspec.Struct, frozen=True, gc=False):
    """What a handler knows about a request beside its message. `deadline`: when the sender stops waiting."""

    peer: str
    request_id: int
    deadline: Deadline


Handler = Callable[[Message, RequestContext], Awaitable[Message]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AioLimits:
    """What one port allows. `drain_s`: how long requests in progress may take to end after a close."""

    connections_max: int = CONNECTIONS_MAX
    handshakes_max: int = HANDSHAKES_MAX
    requests_max: int = REQUESTS_MAX
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    stall_timeout_s: float = STALL_TIMEOUT_S
    drain_s: float = 2.0


class AioServer:
    """A listening port. `start` it, later `close` it."""

    def __init__(self, key: ClusterKey, handler: Handler, allowed: frozenset[type[Message]], limits: AioLimits) -> None:
        self.key = key
        self.handler = handler
        self.allowed = allowed
        self.limits = limits
        self.refusals = RefusalLog(log)
        self.address = ""
        self.tasks: set[asyncio.Task[Message]] = set()  # requests in progress, also of connections that are gone
        self.answers: set[Answer] = set()  # the same, of those that need no task
        self._server: asyncio.Server | None = None
        self._trusted: set[_ServerConnection] = set()
        self._strangers: dict[_ServerConnection, None] = {}  # before their proof, oldest first

    @classmethod
    async def start(
        cls,
        address: str,
        key: ClusterKey,
        handler: Handler,
        *,
        allowed: frozenset[type[Message]],
        limits: AioLimits | None = None,
    ) -> AioServer:
        """Listen at `host:port` (port 0: any free one); raise `ConfigError` when that is impossible.

        `handler` is called for messages of the `allowed` classes only, concurrently, also for one connection. A
        `DfsError` that it raises is the reply; another exception is logged and answered as an internal error. An
        `Answer` that it returns costs no task, and is seen to its end by whoever made it.
        """
        server = cls(key, handler, allowed, limits or AioLimits())
        sock = listening_socket(address, is_bulk=False)
        server.address = address_text(sock.getsockname())
        loop = asyncio.get_running_loop()
        server._server = await loop.create_server(lambda: _ServerConnection(server), sock=sock, backlog=BACKLOG)
        return server

    @property
    def port(self) -> int:
        return split_address(self.address)[1]

    @property
    def connection_count(self) -> int:
        return len(self._trusted) + len(self._strangers)

    async def close(self) -> None:
        """Stop listening, let requests in progress end within `limits.drain_s`, close all connections."""
        if self._server is not None:
            self._server.close()
        for stranger in list(self._strangers):
            stranger.fail(ConnectionFailed("this node is stopping"))
        for connection in self._trusted:
            connection.stop_requests()
        in_progress = {*self.tasks, *(asyncio.ensure_future(_end(answer)) for answer in self.answers)}
        if in_progress:
            _, late = await asyncio.wait(in_progress, timeout=self.limits.drain_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=self.limits.drain_s)
        left = list(self._trusted)
        for connection in left:
            connection.close()
        if left:
            _, open_still = await asyncio.wait([c.closed for c in left], timeout=self.limits.drain_s)
            for connection in left:
                if connection.closed in open_still:
                    connection.fail(ConnectionFailed("this node is stopping"))

    # --- the connections' own calls -----------------------------------------------------------------------

    def admit(self, connection: _ServerConnection) -> None:
        """Take a new connection in; drop the one that has waited longest without proof when too many wait."""
        if len(self._strangers) >= self.limits.handshakes_max:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.fail(Overloaded(f"{self.limits.handshakes_max} peers wait without proof, this one the longest"))
        self._strangers[connection] = None

    def trust(self, connection: _ServerConnection) -> None:
        """Count a connection among the proved ones; raise `Overloaded` when there are too many."""
        if len(self._trusted) >= self.limits.connections_max:
            raise Overloaded(f"the limit of {self.limits.connections_max} connections is reached")
        self._strangers.pop(connection, None)
        self._trusted.add(connection)

    def forget(self, connection: _ServerConnection, error: DfsError) -> None:
        """Note the end of a connection."""
        self._strangers.pop(connection, None)
        if connection not in self._trusted:
            self.refusals.record(connection.peer, error)
            return
        self._trusted.discard(connection)
        if connection.failure is None:
            log.debug("connection_ended", peer=connection.peer, reason=error.message)
        else:
            log.warning("connection_dropped", peer=connection.peer, code=error.code, reason=error.message)


class _ServerConnection(FrameConnection):
    """One client of an AioServer: its frames become requests in progress, at most `requests_max` at a time."""

    def __init__(self, server: AioServer) -> None:
        limits = server.limits
        super().__init__(Role.ACCEPTOR, server.key, limits.handshake_timeout_s, limits.stall_timeout_s)
        self.closed: asyncio.Future[None] = self.loop.create_future()
        self._server = server
        self._waiting: deque[tuple[FrameHead, bytes]] = deque()  # at most what one read brought
        self._in_progress = 0
        self._is_turn_over = False  # others' turn: what waits goes on with the next one
        self._is_stopping = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.admit(self)

    def ready(self) -> None:
        self._server.trust(self)

    def received(self, frames: list[tuple[FrameHead, bytes]]) -> None:
        self._waiting.extend(frames)
        self._begin()

    def writable(self) -> None:
        self._begin()

    def ended(self, error: DfsError) -> None:
        self._waiting.clear()
        self._server.forget(self, error)
        self.closed.set_result(None)
        # Tasks go on to their end: a mutation that has begun is not stopped half-way because its client left.

    def stop_requests(self) -> None:
        """Begin nothing new."""
        self._is_stopping = True
        self.pause_reading(True)

    def _begin(self) -> None:
        """Begin waiting requests as far as the limits allow; do not read more while some wait."""
        left = 0 if self._is_turn_over else self._server.limits.requests_max
        while (
            left
            and self._waiting
            and self._in_progress < self._server.limits.requests_max
            and not (self.is_write_paused or self._is_stopping)
        ):
            left -= 1
            head, header = self._waiting.popleft()
            try:
                message = decode(head.type_code, header)
                if type(message) not in self._server.allowed:
                    raise ProtocolError(f"{type(message).__name__} is not accepted at this port")
            except ProtocolError as error:
                self._reply(head, ErrorReply.of(error))  # the frame itself was whole: the stream stays in step
                continue
            self._start(head, message)
        if not left and self._waiting and not self._is_turn_over:
            self._is_turn_over = True
            self.loop.call_soon(self._go_on)
        if self._waiting or self._is_stopping or self._is_read_paused:
            self.pause_reading(bool(self._waiting) or self._is_stopping)

    def _go_on(self) -> None:
        self._is_turn_over = False
        self._begin()

    def _start(self, head: FrameHead, message: Message) -> None:
        seconds = min(head.timeout_ms / 1000 or REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_MAX_S)
        context = RequestContext(self.peer, head.request_id, Deadline.after(seconds))
        answer = self._server.handler(message, context)
        if isinstance(answer, Answer):
            if answer.is_known:
                self._reply(head, self._outcome(answer, head, message))
                return
            self._server.answers.add(answer)
            self._in_progress += 1
            answer.then(lambda known: self._answered(known, head, message))
            return
        task = self.loop.create_task(self._bounded(answer, message, seconds))
        self._server.tasks.add(task)
        self._in_progress += 1
        task.add_done_callback(lambda ended: self._ended(ended, head, message))

    async def _bounded(self, answer: Awaitable[Message], message: Message, seconds: float) -> Message:
        """Return the answer of a handler, or give it up a while after its request's time."""
        try:
            async with asyncio.timeout(seconds + REQUEST_GRACE_S) as scope:
                return await answer
        except TimeoutError:
            if not scope.expired():
                raise
            what = type(message).__name__
            log.error("request_cancelled", peer=self.peer, request=what, after_s=round(seconds, 3))
            raise DeadlineExceeded(f"{what} took longer than its {seconds:.1f} s and was given up") from None

    def _answered(self, answer: Answer, head: FrameHead, message: Message) -> None:
        self._server.answers.discard(answer)
        self._in_progress -= 1
        self._reply(head, answer.reply or self._outcome(answer, head, message))
        if self._waiting:
            self._begin()

    def _ended(self, task: asyncio.Task[Message], head: FrameHead, message: Message) -> None:
        self._server.tasks.discard(task)
        self._done(None if task.cancelled() else task, head, message)

    def _done(self, answer: _Outcome | None, head: FrameHead, message: Message) -> None:
        self._in_progress -= 1
        if answer is not None:
            self._reply(head, self._outcome(answer, head, message))
        if self._waiting:
            self._begin()

    def _outcome(self, answer: _Outcome, head: FrameHead, message: Message) -> Message:
        try:
            return answer.result()
        except DfsError as error:
            return ErrorReply.of(error)
        except Exception:
            what = type(message).__name__
            log.exception("request_failed", peer=self.peer, request=what, request_id=head.request_id)
            return ErrorReply("internal", f"{what} failed inside the node that served it; its log tells why")

    def _reply(self, head: FrameHead, reply: Message) -> None:
        if not self.is_open:
            return
        try:
            frame = encode_frame(reply.type_code, encode(reply), request_id=head.request_id)
        except FrameTooLarge as error:
            log.error("reply_too_large", peer=self.peer, reply=type(reply).__name__)
            error_reply = ErrorReply.of(error)
            frame = encode_frame(error_reply.type_code, encode(error_reply), request_id=head.request_id)
        self.write(frame, is_alone=not (self._in_progress or self._waiting))
