"""Decoders of typed data, made by one thread at a time.

Owns: how msgspec's decoders are made. Refuses to know: what they decode.

msgspec notes what it finds out about a struct class in that class, before it has found out all of it (a class may
contain itself), and runs Python code meanwhile. Another thread that makes a decoder of the same class, or of one that
contains it, takes the half of it for the whole, and its first `decode` ends the process (msgspec 0.22: SIGSEGV). So
all decoders of dfs are made here; once made, they may be used by any thread.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import msgspec

_lock = threading.Lock()
# A process that is forked while another thread makes a decoder would keep the lock, and the half-known class, for ever.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def msgpack_decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return a decoder of msgpack bytes to `kind`: a struct class, or any type that msgspec knows."""
    with _lock:
        return msgspec.msgpack.Decoder(kind)


def json_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return a decoder of JSON bytes to `kind`, likewise."""
    with _lock:
        return msgspec.json.Decoder(kind)
