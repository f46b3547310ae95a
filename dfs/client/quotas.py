"""Quotas as a program sees them: set, clear, list.

Owns: these calls. Refuses to know: how a leader is found, and how use is counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from dfs import paths
from dfs.client.calls import Calls
from dfs.client.discovery import Masters
from dfs.clock import Deadline
from dfs.errors import InvalidArgument
from dfs.net.messages import ListQuotas, ListQuotasReply, QuotaReply, SetQuota
from dfs.net.parts import QuotaStatus


class Quotas:
    """Limits of directories: names (files and directories) and stored bytes (with replicas) of all that is below."""

    def __init__(self, masters: Masters, calls: Calls, timeout_s: float) -> None:
        self._masters = masters
        self._calls = calls
        self._timeout_s = timeout_s

    def set(self, path: str, *, names: int | None = None, stored_size: int | None = None) -> QuotaStatus:
        """Set one limit or both; None leaves one as it is. Below the present use they only stop growth."""
        for limit in (names, stored_size):
            if limit is not None and limit < 1:
                raise InvalidArgument(f"a quota of {limit} would allow nothing; clear it, or set at least 1")
        if names is None and stored_size is None:
            raise InvalidArgument("a quota needs a limit of names, of stored bytes, or both")
        return self._set(path, -1 if names is None else names, -1 if stored_size is None else stored_size)

    def clear(self, path: str, *, names: bool = True, stored_size: bool = True) -> QuotaStatus:
        """Lift the limits that are named."""
        return self._set(path, 0 if names else -1, 0 if stored_size else -1)

    def _set(self, path: str, names: int, stored_size: int) -> QuotaStatus:
        path = paths.normalise(path)
        return self._calls.call(
            lambda call: SetQuota(call, path, names, stored_size), QuotaReply, Deadline.after(self._timeout_s)
        ).quota

    def list(self, path: str = "/") -> Iterator[QuotaStatus]:
        """Yield the quotas of a directory and of those in it, by path."""
        yield from self._pages(path, is_effective=False)

    def effective(self, path: str) -> Iterator[QuotaStatus]:
        """Yield the quotas that a path is subject to: its own, and those of the directories that it lies in."""
        yield from self._pages(path, is_effective=True)

    def _pages(self, path: str, *, is_effective: bool) -> Iterator[QuotaStatus]:
        path, after = paths.normalise(path), ""
        while True:
            message = ListQuotas(path, after, is_effective)
            reply = self._masters.call(message, ListQuotasReply, Deadline.after(self._timeout_s))
            yield from reply.entries
            if not reply.has_more or not reply.entries:
                return
            after = reply.entries[-1].path
