"""Which process a client belongs to: one that was made before a fork is of no use to the child.

Owns: the check, and the words. Refuses to know: what is shared by a fork.

Parent and child would have the same connections (each could get the answers of the other), the same numbers of calls
(the masters would take a call of one for a repetition of the other's), and the same lent memory (a chunk could be
stored with the other's bytes, and with checksums that say so).
"""

from __future__ import annotations

import os

from dfs.errors import InvalidArgument


class Owner:
    """The process that made this object."""

    __slots__ = ("_process",)

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        return os.getpid() == self._process

    def check(self) -> None:
        """Raise `InvalidArgument` in any other process."""
        if os.getpid() != self._process:
            raise InvalidArgument(
                f"this client was made by process {self._process}, before a fork; make a new one in each process"
            )
