"""The physical limit of a read on this machine: sendfile from the page cache through a TCP socket of the loopback.

Owns: the server process, and receiving with and without verification. Refuses to know: dfs, but for its checksum.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dfs.checksum import BLOCK_SIZE, crc32c
from dfs.config import MIB

BUFFER = MIB
_CONGESTION = b"cubic"  # the system's default may pace, which costs two thirds on a loopback


class Loopback:
    """A process that sends one whole file to whoever connects."""

    def __init__(self, port: int, size: int) -> None:
        self._port = port
        self._size = size

    def receive(self, *, verified: bool) -> int:
        """Receive the file into a buffer that is used again; return its size."""
        received, buffer = 0, memoryview(bytearray(BUFFER))
        with socket.socket() as sock:
            tune(sock)
            sock.connect(("127.0.0.1", self._port))
            while received < self._size:
                filled = 0
                while filled < BUFFER and (count := sock.recv_into(buffer[filled:])):
                    filled += count
                if not filled:
                    raise ConnectionError(f"the sender ended after {received} of {self._size} bytes")
                if verified:
                    for start in range(0, filled, BLOCK_SIZE):
                        crc32c(buffer[start : min(start + BLOCK_SIZE, filled)])
                received += filled
        return received


@contextmanager
def serving(path: Path) -> Iterator[Loopback]:
    """Serve a file by a process of its own until the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    tune(listener)
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, path), daemon=True)
    process.start()
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield Loopback(port, path.stat().st_size)
    finally:
        process.kill()
        process.join()


def tune(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION)
    except OSError:
        pass  # not built into this kernel: its default is the limit then


def _serve(listener: socket.socket, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        while True:
            sock, _ = listener.accept()
            with sock:
                sent = 0
                while sent < size:
                    sent += os.sendfile(sock.fileno(), file.fileno(), sent, size - sent)
