"""Let all threads of this process share the C library's memory, instead of an arena for every few of them.

Owns: that setting. Refuses to know: who allocates what.

A chunk server has a thread for each connection. glibc gives threads up to eight arenas a processor, and each of them
keeps what its threads once needed and grows by itself: with 200 clients half of a server's memory was such room. Two
arenas are enough, because only one thread at a time runs Python and allocates.
"""

from __future__ import annotations

import ctypes
from typing import Final

ARENAS_MAX: Final = 2
_M_ARENA_MAX: Final = -8  # malloc.h of glibc


def share_arenas() -> None:
    """To be called before there are threads; harmless where the C library has no arenas."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return
    mallopt.restype = ctypes.c_int
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt(_M_ARENA_MAX, ARENAS_MAX)
