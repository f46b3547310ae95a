"""Quotas of directories: how many names and how many stored bytes may be below each.

Owns: the limits by path, and whether a growth fits them. Refuses to know: how use is counted (the totals of every
directory are exact, dfs.master.state.nodes), and what grows.

Names are files and directories, the directory itself not counted. Bytes are stored bytes: size times replication, as
HDFS counts them. What is live counts; what is in the trash or in snapshots does not. What an open tail may still take
is reserved for it, so that sealing it, which must not fail, never passes a quota.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dfs.errors import QuotaExceeded
from dfs.master.state.namespace import Place, shown
from dfs.master.state.nodes import Directory
from dfs.net.parts import QuotaStatus
from dfs.paths import is_below, join

QUOTAS_MAX = 10_000  # directories that have one


class Quota(NamedTuple):
    """Limits; 0 = none."""

    names: int
    stored_size: int


class Growth(NamedTuple):
    """What a command adds below the directories on the way to a place (negative: takes away).

    `is_inside`: it is added in the directory at the place, which counts it, too.
    """

    place: Place
    names: int
    stored_size: int
    is_inside: bool = False


class QuotaTable:
    """Quotas by the path of their directory."""

    def __init__(self, reserved: Callable[[str], int]) -> None:
        """`reserved`: stored bytes that open tails at a path or below it may come to."""
        self._quotas: dict[str, Quota] = {}
        self._reserved = reserved

    def __len__(self) -> int:
        return len(self._quotas)

    def get(self, path: str) -> Quota | None:
        return self._quotas.get(path)

    def paths(self) -> list[str]:
        return sorted(self._quotas)

    def items(self) -> Iterator[tuple[str, Quota]]:
        """Yield (path, quota) by path."""
        for path in sorted(self._quotas):
            yield path, self._quotas[path]

    def paths_below(self, path: str) -> list[str]:
        """Return the directories with a quota that are `path` or lie in it, by path."""
        return sorted(known for known in self._quotas if is_below(known, path)) if self._quotas else []

    def paths_above(self, path: str) -> list[str]:
        """Return the directories with a quota that are `path` or that it lies in, by path."""
        return sorted(known for known in self._quotas if is_below(path, known)) if self._quotas else []

    def check(self, growths: Sequence[Growth]) -> None:
        """Raise `QuotaExceeded` unless all growths of one command together fit every quota on their ways."""
        if not self._quotas:
            return
        sums: dict[str, tuple[Directory, int, int]] = {}
        for growth in growths:
            for path, directory in self._limited(growth):
                _, names, stored_size = sums.get(path, (directory, 0, 0))
                sums[path] = directory, names + growth.names, stored_size + growth.stored_size
        for path, (directory, names, stored_size) in sums.items():
            self.check_directory(path, directory, names, stored_size)

    def check_directory(self, path: str, directory: Directory, names: int, stored_size: int) -> None:
        """Raise `QuotaExceeded` unless so much more may be below the directory at `path`, by its own quota alone."""
        quota = self._quotas[path]
        used = directory.file_count + directory.directory_count
        if names > 0 and 0 < quota.names < used + names:
            raise QuotaExceeded(_names_text(path, quota.names, used, names), directory=path)
        used, reserved = directory.stored_size, self._reserved(path)
        if stored_size > 0 and 0 < quota.stored_size < used + reserved + stored_size:
            raise QuotaExceeded(_bytes_text(path, quota.stored_size, used, reserved, stored_size), directory=path)

    def room(self, place: Place) -> tuple[int, str]:
        """Return the least number of stored bytes that the quotas on the way to a place leave, and where that is.

        Without any quota of bytes the place is "".
        """
        least, where = 0, ""
        for path, directory in self._limited(Growth(place, 0, 0)):
            limit = self._quotas[path].stored_size
            left = max(0, limit - directory.stored_size - self._reserved(path))
            if limit and (not where or left < least):
                least, where = left, path
        return least, where

    def _limited(self, growth: Growth) -> Iterator[tuple[str, Directory]]:
        """Yield the directories with a quota on the way to a growth."""
        place, path = growth.place, "/"
        names = place.path[1:].split("/")
        for index, directory in enumerate(place.chain):
            if path in self._quotas:
                yield path, directory
            path = join(path, names[index])
        if growth.is_inside and path in self._quotas and isinstance(place.node, Directory):
            yield path, place.node

    def set(self, path: str, quota: Quota) -> None:
        """Set the limits of a directory; without any it has no quota."""
        if quota == (0, 0):
            self._quotas.pop(path, None)
        else:
            self._quotas[path] = quota

    def drop(self, path: str) -> None:
        """Forget the quotas of a directory that goes, and those in it."""
        for known in self.paths_below(path):
            del self._quotas[known]

    def rename(self, source: str, target: str) -> None:
        """Follow a directory that was renamed."""
        for path in self.paths_below(source):
            self._quotas[target + path[len(source) :]] = self._quotas.pop(path)


def status(path: str, quota: Quota, directory: Directory) -> QuotaStatus:
    used = directory.file_count + directory.directory_count
    return QuotaStatus(path, quota.names, quota.stored_size, used, directory.stored_size)


def _names_text(path: str, limit: int, used: int, more: int) -> str:
    return (
        f"the quota of {shown(path)} is {limit} files and directories; {used} are there, {more} more are wanted. "
        "Remove some (what is in the trash does not count), or have the quota raised: "
        f"dfs quota set --names N {shown(path)}"
    )


def _bytes_text(path: str, limit: int, used: int, reserved: int, more: int) -> str:
    kept = f", {reserved} are kept for records being appended" if reserved else ""
    return (
        f"the quota of {shown(path)} is {limit} bytes with all replicas; {used} are used{kept}, {more} more are "
        "wanted. Remove some files (what is in the trash does not count), or have the quota raised: "
        f"dfs quota set --bytes SIZE {shown(path)}"
    )
