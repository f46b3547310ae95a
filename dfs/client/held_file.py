"""A descriptor that several threads use, and that is closed when none of them does any more.

Owns: when it is closed. Refuses to know: what file it is of, and what is done with it.

Whoever uses it keeps a reference for as long as that takes. A number that was closed too early is soon another file's:
a thread that is late would read from that one, or write into it.
"""

from __future__ import annotations

import contextlib
import os


class OpenFile:
    """A descriptor that is closed when nobody refers to it any more: its users may outlast whoever held it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # it is closed all the same
            os.close(self.fd)

    def is_deleted(self) -> bool:
        """Whether no name of the file is left, or its file system does not say."""
        try:
            return os.fstat(self.fd).st_nlink == 0
        except OSError:
            return True
