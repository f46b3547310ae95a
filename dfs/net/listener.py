"""The accepting side of the blocking driver: a thread per connection, and an end to each of them.

Owns: the listening socket, the limits on connections, and the stop. Refuses to know: what a connection is used for (a
callable is told), and frames.

Peers that have not proved themselves are bounded apart from the others: when too many of them wait, the one that has
waited longest is dropped, so that strangers who hold connections open keep nobody out.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from dfs.clock import Deadline
from dfs.errors import ConnectionFailed, DfsError, InternalError, ProtocolError
from dfs.log import get_logger
from dfs.net.auth import ClusterKey
from dfs.net.blocking import Channel, accept_stream, accepted_stream
from dfs.net.refusals import RefusalLog
from dfs.net.session import HANDSHAKE_TIMEOUT_S
from dfs.net.sockets import address_text, listening_socket
from dfs.net.stream import SocketStream

CONNECTIONS_MAX = 1024  # threads that one port may cost
HANDSHAKES_MAX = 64  # connections at a time whose peer has not proved itself
STOP_POLL_S = 0.2  # how late a stop may be noticed
LAST_WORDS_TIMEOUT_S = 1.0  # to tell a peer why its connection is dropped
ACCEPT_PAUSE_S = 0.1  # after the system refused to accept (no descriptors): do not spin

log = get_logger("dfs.net.listener")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLimits:
    """What one port allows. `drain_s`: how long work in progress may take to end after a stop."""

    connections_max: int = CONNECTIONS_MAX
    handshakes_max: int = HANDSHAKES_MAX
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S
    drain_s: float = 5.0


class Listener:
    """A bound and listening socket. `address` is where it really listens (a port 0 has been replaced)."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.address = address_text(sock.getsockname())
        self.port: int = sock.getsockname()[1]

    @classmethod
    def bind(cls, address: str, *, bulk: bool = True) -> Listener:
        """Listen at `host:port` (port 0: any free one); raise `ConfigError` when that is impossible."""
        sock = listening_socket(address, is_bulk=bulk)
        sock.settimeout(STOP_POLL_S)
        return cls(sock)

    def accept(self) -> socket.socket | None:
        """Return the next connection, or `None` when none came within STOP_POLL_S; raise OSError when closed."""
        try:
            return self._socket.accept()[0]
        except (TimeoutError, ConnectionAbortedError, InterruptedError):
            return None

    def stream(self, sock: socket.socket) -> SocketStream:
        """Return the stream of an accepted connection; raise `ConnectionFailed` when it has gone already."""
        return accepted_stream(sock)

    @property
    def is_closed(self) -> bool:
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Stop listening; again is harmless."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes an accept in another thread
        self._socket.close()


class _Connections:
    """The live connections of one port, each with its thread."""

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._threads: dict[SocketStream, threading.Thread] = {}
        self._strangers: dict[SocketStream, None] = {}  # before their proof, oldest first

    def admit(self, stream: SocketStream, thread: threading.Thread) -> SocketStream | None:
        """Take a connection in; return the one that is to be dropped for it, which may be the new one itself."""
        with self._lock:
            if len(self._threads) - len(self._strangers) >= self._limits.connections_max:
                return stream
            dropped = None
            if len(self._strangers) >= self._limits.handshakes_max:
                dropped = next(iter(self._strangers))
                del self._strangers[dropped]
                self._threads.pop(dropped)  # its thread ends by itself at once
            self._threads[stream] = thread
            self._strangers[stream] = None
            return dropped

    def trust(self, stream: SocketStream) -> bool:
        """Count a connection among the proved ones; False when it was dropped meanwhile or there are too many."""
        with self._lock:
            if stream not in self._strangers:
                return False
            is_free = len(self._threads) - len(self._strangers) < self._limits.connections_max
            if is_free:
                del self._strangers[stream]
            return is_free

    def holds(self, stream: SocketStream) -> bool:
        with self._lock:
            return stream in self._threads

    def forget(self, stream: SocketStream) -> None:
        with self._lock:
            self._threads.pop(stream, None)
            self._strangers.pop(stream, None)

    def live(self) -> list[tuple[SocketStream, threading.Thread]]:
        with self._lock:
            return list(self._threads.items())


def serve_forever(
    listener: Listener,
    key: ClusterKey,
    handle: Callable[[Channel], None],
    limits: ServeLimits,
    stop: threading.Event,
) -> None:
    """Accept until `stop` is set or the listener is closed; run `handle` with each authenticated channel in a thread.

    `handle` returns when its peer is done (it sees `ConnectionFailed` then, and may let it pass); the channel is closed
    after it. On return all connections are closed: idle ones at once, working ones within `limits.drain_s`.
    """
    service = _Service(key, handle, limits)
    try:
        while not stop.is_set():
            try:
                sock = listener.accept()
            except OSError as error:
                if stop.is_set() or listener.is_closed:
                    break
                log.error("accept_failed", address=listener.address, reason=error.strerror or str(error))
                stop.wait(ACCEPT_PAUSE_S)
                continue
            if sock is not None:
                with contextlib.suppress(ConnectionFailed):  # it has gone already
                    service.begin(listener.stream(sock))
    finally:
        listener.close()
        service.drain()


class _Service:
    """What happens to the connections of one `serve_forever`, from accept to close."""

    def __init__(self, key: ClusterKey, handle: Callable[[Channel], None], limits: ServeLimits) -> None:
        self._key = key
        self._handle = handle
        self._limits = limits
        self._connections = _Connections(limits)
        self._refusals = RefusalLog(log)
        self._full = f"the limit of {limits.connections_max} connections is reached"

    def begin(self, stream: SocketStream) -> None:
        """Start the thread of an accepted connection."""
        thread = threading.Thread(target=self._run, args=(stream,), name=f"dfs {stream.address}", daemon=True)
        dropped = self._connections.admit(stream, thread)
        if dropped is stream:
            self._refusals.record(stream.address, self._full)
            stream.close()
            return
        if dropped is not None:
            waiting = self._limits.handshakes_max
            self._refusals.record(dropped.address, f"{waiting} peers wait without proof, this one the longest")
            dropped.interrupt()
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread for us
            log.error("thread_start_failed", peer=stream.address, reason=str(error))
            self._connections.forget(stream)
            stream.close()

    def _run(self, stream: SocketStream) -> None:
        """The root of a connection's thread."""
        try:
            channel = self._authenticate(stream)
            if channel is not None:
                self._serve(channel)
        except Exception:
            log.exception("connection_handler_failed", peer=stream.address)
        finally:
            self._connections.forget(stream)
            stream.close()

    def _authenticate(self, stream: SocketStream) -> Channel | None:
        try:
            channel = accept_stream(stream, self._key, Deadline.after(self._limits.handshake_timeout_s))
        except DfsError as error:
            if self._connections.holds(stream):  # a dropped one was reported when it was dropped
                self._refusals.record(stream.address, error)
            return None
        if self._connections.trust(stream):
            return channel
        self._refusals.record(stream.address, self._full)
        return None

    def _serve(self, channel: Channel) -> None:
        try:
            self._handle(channel)
        except ConnectionFailed as error:
            log.debug("connection_ended", peer=channel.address, reason=error.message)
        except InternalError:
            raise
        except DfsError as error:
            log.warning("connection_dropped", peer=channel.address, code=error.code, reason=error.message)
            if isinstance(error, ProtocolError):
                channel.send_last_words(error, Deadline.after(LAST_WORDS_TIMEOUT_S))

    def drain(self) -> None:
        """End all connections: first let what is being answered be answered, then cut."""
        live = self._connections.live()
        for stream, _ in live:
            stream.interrupt(reads_only=True)
        deadline = Deadline.after(self._limits.drain_s)
        for _, thread in live:
            thread.join(deadline.remaining_s())
        left = [(stream, thread) for stream, thread in live if thread.is_alive()]
        for stream, _ in left:
            stream.interrupt()
        deadline = Deadline.after(self._limits.drain_s)
        for stream, thread in left:
            thread.join(deadline.remaining_s())
            if thread.is_alive():
                log.warning("connection_thread_left", peer=stream.address)
