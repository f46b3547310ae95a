"""Lines of a local file or a pipe as records of a remote file.

Owns: cutting a stream into lines, and hearing of each that it is stored. Refuses to know: how records are appended.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import BinaryIO, Final

from dfs.cli.wall import LocalError
from dfs.client import DfsClient

LINE_SIZE_MAX: Final = 64 * 1024 * 1024  # bytes of a line that is held in memory; a quarter of the largest chunk


def append_lines(
    client: DfsClient, stream: BinaryIO, target: str, *, create: bool, advance: Callable[[int], None]
) -> None:
    """Append each line of a stream, as it comes, as one record; return when all are stored.

    An empty stream makes the file when it may. A last line without newline is a record, too.
    """
    waiting: deque[tuple[int, Future[int]]] = deque()
    count = 0
    with client.appender(target, create=create) as appender:
        while line := stream.readline(LINE_SIZE_MAX + 1):
            if len(line) > LINE_SIZE_MAX:
                raise LocalError(f"line {count + 1} is longer than {LINE_SIZE_MAX} bytes; append without --lines")
            waiting.append((len(line), appender.append(line)))
            count += 1
            while waiting and waiting[0][1].done():
                _settle(waiting, advance)
        while waiting:
            _settle(waiting, advance)
    if not count:
        client.append(io.BytesIO(), target, create=create)


def _settle(waiting: deque[tuple[int, Future[int]]], advance: Callable[[int], None]) -> None:
    size, outcome = waiting.popleft()
    outcome.result()
    advance(size)
