"""Fast paths that can be switched off: the plain way next to each must keep every promise alone.

Owns: their names, and the variable of the environment that leaves some out. Refuses to know: what each of them does.

They are on by default. Tests run with them and without them; an operator who suspects one leaves it out by
`DFS_WITHOUT=fan-out,volume-ahead` (docs/operations.md) and starts the program or daemon again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum

from dfs.errors import ConfigError

VARIABLE = "DFS_WITHOUT"


class FastPath(StrEnum):
    """A way that is faster than the plain one, and keeps the same promises."""

    MEMORY_DOOR = "memory-door"  # chunk servers of the writer's machine take chunks from its memory, not by sockets
    FAN_OUT = "fan-out"  # a client sends a small chunk to all its servers at once instead of along the chain
    VOLUME_AHEAD = "volume-ahead"  # a chunk server writes small records over zeros that are on the disk already


def is_on(path: FastPath, environ: Mapping[str, str] | None = None) -> bool:
    """Whether `path` may be taken; raise `ConfigError` when the variable names what there is not."""
    named = (os.environ if environ is None else environ).get(VARIABLE, "")
    left_out = {name.strip() for name in named.split(",")} - {""}
    if unknown := left_out - set(FastPath):
        raise ConfigError(
            f"{VARIABLE} names {', '.join(sorted(unknown))}; what can be left out is: {', '.join(FastPath)}"
        )
    return path.value not in left_out
