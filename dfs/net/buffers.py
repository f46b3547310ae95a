"""Memory for the pieces of a stream, used again when whoever got a piece has let go of it.

Owns: the buffers and when one is free. Refuses to know: what is in them.

Fresh memory costs more than the bytes that go into it: the kernel clears every page, and bytearray clears it once more.
"""

from __future__ import annotations

import threading

SMALL_SIZE = 64 * 1024  # bytes up to which fresh memory is the cheaper one


class BufferPool:
    """Buffers of one size, at most `count_max` of them kept. Thread-safe."""

    def __init__(self, size: int, count_max: int) -> None:
        self._size = size
        self._count_max = count_max
        self._lock = threading.Lock()
        self._buffers: list[bytearray] = []

    def take(self, size: int) -> memoryview:
        """Return memory of `size` bytes that nobody else has, whatever is in it: the caller fills all of it."""
        if size > self._size or size <= SMALL_SIZE:
            return memoryview(bytearray(size))
        with self._lock:
            for buffer in self._buffers:
                if _is_free(buffer):
                    return memoryview(buffer)[:size]
            if len(self._buffers) < self._count_max:
                buffer = bytearray(self._size)
                self._buffers.append(buffer)
                return memoryview(buffer)[:size]
        return memoryview(bytearray(size))


def _is_free(buffer: bytearray) -> bool:
    """Whether no view of a buffer is left anywhere: the interpreter refuses to resize one that is seen."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    buffer.pop()
    return True
