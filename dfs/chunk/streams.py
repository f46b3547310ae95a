"""How many chunks may move at the same time, and the memory that they move through.

Owns: the limits on streams and their buffers. Refuses to know: what is in a buffer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType

from dfs.checksum import BLOCK_SIZE
from dfs.errors import Overloaded

STREAMS_MAX = 64  # chunks being written here at the same time; more only make each other slower
READS_MAX = 256  # reads being answered at the same time; they cost a thread and a descriptor, no buffer
STREAM_WAIT_S = 1.0  # how long a request waits for its turn before it is refused
APPENDS_SIZE_MAX = 256 * 1024 * 1024  # bytes of records that wait for their round
RANGES_MEMORY_MAX = 64 * 1024 * 1024  # bytes of ranges being read: unlike blocks they pass through this process
BUFFER_SIZE = 16 * BLOCK_SIZE  # bytes of one stream's buffer; measured: 256 KiB to 1 MiB are equally fast
LENT_BUFFER_SIZE = 4 * BLOCK_SIZE  # bytes of it for a stream from lent memory: all steps find them in a core's cache


class ByteBudget:
    """Memory for payloads that wait: at most `size_max` bytes at a time, but always at least one payload."""

    def __init__(self, name: str, size_max: int) -> None:
        self._name = name
        self._size_max = size_max
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def lent(self, size: int) -> Iterator[None]:
        """Hold `size` bytes of the budget; raise `Overloaded` when they are not free within STREAM_WAIT_S."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._used or self._used + size <= self._size_max, STREAM_WAIT_S):
                raise Overloaded(f"this chunk server already holds {self._used} bytes of {self._name}; try again later")
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


class Streams:
    """Turns for at most `streams_max` streams. With `buffer_size` each gets a buffer, used again by later ones."""

    def __init__(self, name: str, streams_max: int, buffer_size: int = 0) -> None:
        self._name = name
        self._streams_max = streams_max
        self._buffer_size = buffer_size
        self._buffers: list[memoryview] = []  # as many as ever were in use at once
        self._changed = threading.Condition()
        self._active = 0

    @property
    def active(self) -> int:
        return self._active

    def turn(self) -> contextlib.AbstractContextManager[memoryview]:
        """Wait for a turn and lend a buffer; raise `Overloaded` when there is no turn within STREAM_WAIT_S."""
        return _Turn(self)

    def begin(self) -> memoryview:
        """Begin a turn as `turn` does; it is the caller's to `end`."""
        with self._changed:
            if self._active >= self._streams_max and not self._changed.wait_for(self._has_room, STREAM_WAIT_S):
                raise Overloaded(f"this chunk server already serves {self._streams_max} {self._name}; try again later")
            buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(self._buffer_size))
            self._active += 1
            return buffer

    def end(self, buffer: memoryview) -> None:
        with self._changed:
            self._active -= 1
            self._buffers.append(buffer)
            self._changed.notify()

    def _has_room(self) -> bool:
        return self._active < self._streams_max


class _Turn:
    """One turn, for the length of a block."""

    __slots__ = ("_buffer", "_streams")

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def __enter__(self) -> memoryview:
        self._buffer = self._streams.begin()
        return self._buffer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams.end(self._buffer)
