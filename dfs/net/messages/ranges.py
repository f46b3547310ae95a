"""What clients ask masters to do with ranges of files: cut, join, and overwrite without rewriting the rest.

Owns: these mutations and their limits. Refuses to know: how the state carries them out.

Sizes and offsets are bytes.
"""

from __future__ import annotations

from dfs.net.messages.base import Mutation, message
from dfs.net.parts import NewChunk, NewExtent

CONCAT_SOURCES_MAX = 1000  # files that one Concat joins


@message(0x020E)
class Truncate(Mutation, frozen=True, array_like=True):
    """Cut a file to its first `size` bytes; its own size changes nothing, a longer one is refused: there are no holes.
    Reply: StatReply."""

    path: str
    size: int


@message(0x020F)
class Concat(Mutation, frozen=True, array_like=True):
    """Add the content of `sources`, in order, at the end of `target`, at once; no byte moves. The sources go (their
    content lives on in the target) unless `keep_sources`. Reply: StatReply of the target."""

    target: str
    sources: tuple[str, ...]
    keep_sources: bool = False


@message(0x0210)
class WriteRange(Mutation, frozen=True, array_like=True):
    """Put new bytes over those from `offset` on, at once; what reaches over the end makes the file longer.

    `offset` is at most the file's size. `version` 0 takes any; another one must be the file's (`Conflict` otherwise).
    `is_same_content`: only the extents change, and the file's time stays (merging). Reply: StatReply.
    """

    path: str
    offset: int
    chunks: tuple[NewChunk, ...]
    extents: tuple[NewExtent, ...]
    version: int = 0
    is_same_content: bool = False
