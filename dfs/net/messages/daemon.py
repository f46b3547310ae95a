"""What every daemon answers, and how any call may fail.

Owns: errors, pings and the empty success. Refuses to know: what a daemon is for.

Sizes are bytes, times are milliseconds since 1970.
"""

from __future__ import annotations

import msgspec

from dfs.errors import DfsError, from_code
from dfs.net.messages.base import Message, message


@message(0x0001)
class ErrorReply(Message, frozen=True, array_like=True):
    """Any call may end in this instead of its reply."""

    code: str
    text: str
    details: dict[str, str] = msgspec.field(default_factory=dict)

    def error(self) -> DfsError:
        return from_code(self.code, self.text, self.details)

    @classmethod
    def of(cls, error: DfsError) -> ErrorReply:
        return cls(error.code, error.message, error.details)


@message(0x0002)
class Ping(Message, frozen=True, array_like=True):
    """Answered by every daemon, whatever its state."""


@message(0x0003)
class Pong(Message, frozen=True, array_like=True):
    node: str
    role: str  # master, chunk
    version: str
    now_ms: int = 0  # the time of day there; 0 = not told


@message(0x0004)
class Done(Message, frozen=True, array_like=True):
    """A call succeeded and has nothing to tell."""
