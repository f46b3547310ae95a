"""A finding of a check-up: what, where, why it matters, what to do.

Owns: the finding, its three levels, and the words for sizes, times and lists of names in it. Refuses to know: any
single check (dfs.local.machine_findings, dfs.local.cluster_findings).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from dfs.config import split_address

NAMES_MAX = 8  # in one finding


class Level(enum.Enum):
    """OK needs nothing, WARN will hurt one day, FAIL hurts now."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `topic`: config, secret, layout, disk, fsync, limits, memory, ports, …"""

    level: Level
    topic: str
    where: str
    what: str
    why: str = ""
    todo: str = ""


def ok(topic: str, where: str, what: str) -> Finding:
    return Finding(Level.OK, topic, where, what)


def warn(topic: str, where: str, what: str, why: str, todo: str) -> Finding:
    return Finding(Level.WARN, topic, where, what, why, todo)


def fail(topic: str, where: str, what: str, why: str, todo: str) -> Finding:
    return Finding(Level.FAIL, topic, where, what, why, todo)


# --- words --------------------------------------------------------------------------------------------


def host_of(address: str) -> str:
    return split_address(address)[0]


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def names_text(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - NAMES_MAX} more" if len(found) > NAMES_MAX else ""
    return ", ".join(found[:NAMES_MAX]) + more


def size_text(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"


def duration_text(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
