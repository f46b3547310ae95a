"""Fast paths that can be switched off: the plain way next to each must keep every promise alone.

Owns: the one list of their names, and the variable of the environment that leaves some out. Refuses to know: what each
of them does.

They are on by default. Tests run with them and without them; an operator who suspects one leaves it out by
`DFS_WITHOUT=fan-out,volume-ahead` (docs/operations.md) and starts the program or daemon again; `DFS_WITHOUT=all`
leaves all out. A fast path that also has a setting is taken when both allow it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum

from dfs.errors import ConfigError

VARIABLE = "DFS_WITHOUT"
ALL = "all"  # the word that leaves every one out


class FastPath(StrEnum):
    """A way that is faster than the plain one, and keeps the same promises. Add one here and in docs/operations.md."""

    CUT_RANGES = "cut-ranges"  # a client asks for the very bytes of a short range instead of whole blocks
    FAN_OUT = "fan-out"  # a client sends a small chunk to all its servers at once instead of along the chain
    GATHERED_STORES = "gathered-stores"  # few threads of a chunk server take the small chunks of all its connections
    HEDGED_READS = "hedged-reads"  # a client asks a second replica when the first is slow
    LOCAL_READS = "local-reads"  # open files go from a chunk server to clients of its machine
    LOCAL_VOLUMES = "local-volumes"  # a chunk server hands its volumes to clients of its machine, once each
    MEMORY_DOOR = "memory-door"  # chunk servers of the writer's machine take chunks from its memory, not by sockets
    PACKING = "packing"  # a client stores many small files in shared chunks, and commits them together
    QUICK_JOURNAL = "quick-journal"  # a master's loop writes the journal itself while the disk is quick
    RESERVE = "reserve"  # a client has chunks allocated ahead of small puts
    ROOM_AHEAD = "room-ahead"  # a chunk server has room allocated ahead of large chunks and rounds
    SENDFILE = "sendfile"  # a chunk server lets the kernel copy a file into a connection
    UNPACKING = "unpacking"  # a client reads many small files from their chunks in long runs
    VOLUME_AHEAD = "volume-ahead"  # a chunk server writes small records over zeros that are on the disk already


def left_out(environ: Mapping[str, str] | None = None) -> frozenset[FastPath]:
    """Return what the environment leaves out; raise `ConfigError` when it names what there is not."""
    named = (os.environ if environ is None else environ).get(VARIABLE, "")
    words = {word.strip() for word in named.split(",")} - {""}
    if unknown := words - {*FastPath, ALL}:
        raise ConfigError(
            f"{VARIABLE} names {', '.join(sorted(unknown))}; what can be left out is: {', '.join(FastPath)}, or {ALL}"
        )
    return frozenset(FastPath if ALL in words else map(FastPath, words))


def is_on(path: FastPath, environ: Mapping[str, str] | None = None) -> bool:
    """Whether `path` may be taken; raise `ConfigError` when the variable names what there is not."""
    return path not in left_out(environ)
