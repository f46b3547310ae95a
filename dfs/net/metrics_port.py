"""The HTTP port that a monitoring system reads a daemon's metrics from: one page, read-only, bounded in everything.

Owns: the listening socket, the few words of HTTP that are needed, and the limits. Refuses to know: what is on the page.

Nobody is authenticated here, so nobody gets more than the page: at most `CONNECTIONS_MAX` at a time (the oldest goes
when another one comes), each with one request of `REQUEST_SIZE_MAX` bytes and `CONNECTION_TIME_MAX_S` in all;
connections are taken up no faster than one each `ACCEPT_PAUSE_S`, and one page serves all that ask within
`PAGE_AGE_MAX_S`. A hostile peer can keep others from the metrics, and never the daemon from its work.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from dfs.clock import Deadline
from dfs.errors import DfsError
from dfs.log import get_logger
from dfs.net.sockets import address_text, listening_socket

CONNECTIONS_MAX = 4
REQUEST_SIZE_MAX = 8192  # bytes of a request with its headers
CONNECTION_TIME_MAX_S = 5.0  # for the request and its answer
ACCEPT_PAUSE_S = 0.02
ACCEPT_TIMEOUT_S = 0.5  # how late a stop may be noticed
PAGE_AGE_MAX_S = 1.0
PATH = "/metrics"
CONTENT_TYPE_TEXT = "text/plain; charset=utf-8"

log = get_logger(__name__)


class MetricsPort:
    """A port that serves one page. Listens once made; `close` it."""

    def __init__(self, address: str, make_page: Callable[[], bytes], content_type: str) -> None:
        """Raise `ConfigError` when the port cannot be had (port 0: any free one). `make_page` runs in a thread."""
        self._make_page, self._content_type = make_page, content_type
        self._socket = listening_socket(address, is_bulk=False)
        self._socket.settimeout(ACCEPT_TIMEOUT_S)
        self.address = address_text(self._socket.getsockname())
        self._lock = threading.Lock()
        self._readers: dict[threading.Thread, socket.socket] = {}  # the oldest first
        self._page_lock = threading.Lock()
        self._page, self._page_made_s = b"", float("-inf")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dfs metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; a connection in progress ends by itself."""
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.wait(ACCEPT_PAUSE_S):
            try:
                connection, _ = self._socket.accept()
            except OSError:  # nobody came, or who came has gone
                continue
            self._make_room()
            reader = threading.Thread(target=self._serve, args=(connection,), name="dfs metrics reader", daemon=True)
            with self._lock:
                self._readers[reader] = connection
            try:
                reader.start()
            except RuntimeError as error:  # the system has no thread for us: the next reader may have better luck
                log.warning("metrics_reader_failed", reason=str(error))
                with self._lock:
                    del self._readers[reader]
                connection.close()

    def _make_room(self) -> None:
        """Let go of whoever has been here longest when too many are, and wait for its thread."""
        with self._lock:
            readers = list(self._readers.items())
        for reader, connection in readers[: max(0, len(readers) - CONNECTIONS_MAX + 1)]:
            with contextlib.suppress(OSError):  # it went by itself
                connection.shutdown(socket.SHUT_RDWR)
            reader.join(CONNECTION_TIME_MAX_S)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._answer(connection, Deadline.after(CONNECTION_TIME_MAX_S))
        except (OSError, DfsError) as error:
            log.debug("metrics_reader_failed", reason=error)
        except Exception:  # a thread root: the next reader may have better luck
            log.exception("metrics_failed")
        finally:
            with self._lock:
                self._readers.pop(threading.current_thread(), None)

    def _answer(self, connection: socket.socket, deadline: Deadline) -> None:
        status, content_type, body, is_head = b"200 OK", self._content_type, b"", False
        try:
            method, target = request_of(connection, deadline)
        except BadRequestError as error:
            status, content_type, body = error.status, CONTENT_TYPE_TEXT, b"this port serves " + PATH.encode() + b"\n"
        else:
            is_head = method == "HEAD"
            if method not in ("GET", "HEAD"):
                status, content_type, body = b"405 Method Not Allowed", CONTENT_TYPE_TEXT, b"only GET and HEAD\n"
            elif target.partition("?")[0] != PATH:
                status, content_type, body = b"404 Not Found", CONTENT_TYPE_TEXT, b"see " + PATH.encode() + b"\n"
            else:
                body = self._fresh_page()
        head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (
            status,
            content_type.encode(),
            len(body),
        )
        _send(connection, head if is_head else head + body, deadline)

    def _fresh_page(self) -> bytes:
        with self._page_lock:
            now_s = time.monotonic()
            if now_s - self._page_made_s > PAGE_AGE_MAX_S:
                self._page, self._page_made_s = self._make_page(), now_s
            return self._page


class BadRequestError(Exception):
    """What came is no request that is served here."""

    def __init__(self, status: bytes) -> None:
        super().__init__(status)
        self.status = status


def request_of(connection: socket.socket, deadline: Deadline) -> tuple[str, str]:
    """Read a request to the end of its headers; return its method and target."""
    data = b""
    while b"\r\n\r\n" not in data and b"\n\n" not in data:
        if len(data) >= REQUEST_SIZE_MAX:
            raise BadRequestError(b"431 Request Header Fields Too Large")
        connection.settimeout(deadline.check("reading a request for metrics"))
        piece = connection.recv(REQUEST_SIZE_MAX - len(data))
        if not piece:
            raise BadRequestError(b"400 Bad Request")
        data += piece
    words = data.split(b"\n", 1)[0].decode("ascii", "replace").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequestError(b"400 Bad Request")
    return words[0], words[1]


def _send(connection: socket.socket, data: bytes, deadline: Deadline) -> None:
    """Send all within the deadline, however slowly the peer takes it."""
    view = memoryview(data)
    while view:
        connection.settimeout(deadline.check("sending metrics"))
        view = view[connection.send(view) :]
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


def open_metrics_port(address: str, make_page: Callable[[], bytes], content_type: str) -> MetricsPort | None:
    """Return the port, None for no address, or when it cannot be had: that is no reason not to keep files."""
    if not address:
        return None
    try:
        port = MetricsPort(address, make_page, content_type)
    except DfsError as error:
        log.error("metrics_port_failed", address=address, reason=error.message)
        return None
    log.info("metrics_port_open", address=port.address)
    return port
