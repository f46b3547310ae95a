"""Judge what a chunk server says that it holds against what the chunk map says.

Owns: the verdict on one replica, the pages of a full report, and which replicas must be missing after it.
Refuses to know: clocks (moments are arguments), the log, and how a correction is carried out.

Why missing replicas are not simply "in the map but not in the report": a chunk can be published and committed while
the report is on its way. Whatever was published before the map was compared stands in a heartbeat, at the latest in
the second one that arrives afterwards (the first may have been collected before). So the missing ones wait for two
heartbeats, and what heartbeats mentioned meanwhile is left alone.
"""

from __future__ import annotations

import enum
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise, takewhile

from dfs.errors import InvalidArgument
from dfs.ids import ID_SIZE, ChunkHandle, ServerId, allocated_ms
from dfs.master.state.views import ChunkView
from dfs.net.messages import ChunkReport
from dfs.net.parts import ReplicaReport

HEARTBEATS_AWAITED = 2  # after a comparison, before a replica counts as missing (see above)
CHANGE_MEMORY_S = 60.0  # four times what a chunk server waits for the answer to a page before it begins anew
CHANGES_KEPT_MAX = 200_000  # of one server; at the most that heartbeats can carry, more than half a minute
STALLED_AFTER_S = 30.0  # an unfinished report without a new page is asked for again
_HALVES = struct.Struct(">QQ")


class Verdict(enum.Enum):
    """What to do about one reported replica."""

    KEEP = "keep"  # as in the map
    LIST = "list"  # good, but the map does not name this server: correct the map
    STALE = "stale"  # another length or CRC than the map's: delete
    GARBAGE = "garbage"  # released: delete after the grace period
    ORPHAN = "orphan"  # never committed, and no command can do it any more: delete
    YOUNG = "young"  # unknown, but a writer may still commit it
    FOREIGN = "foreign"  # older than these masters' whole state: of another life of the cluster, not ours to delete

    @property
    def is_delete(self) -> bool:
        return self in (Verdict.STALE, Verdict.GARBAGE, Verdict.ORPHAN)


def judge(
    replica: ReplicaReport,
    server_id: ServerId,
    chunk: ChunkView | None,
    *,
    is_garbage: bool,
    born_ms: int,
    horizon_ms: int,
) -> Verdict:
    """Return the verdict on a replica that `server_id` holds; `chunk` is the map's entry of the same handle.

    A replica of length 0 stands for one of which only the handle is known. `born_ms` and `horizon_ms` are the state's:
    the age of a replica is never judged by the clock of its server.
    """
    if chunk is not None:
        if replica.length and (replica.length, replica.crc) != (chunk.length, chunk.crc):
            return Verdict.STALE
        return Verdict.KEEP if server_id in chunk.servers else Verdict.LIST
    if is_garbage:
        return Verdict.GARBAGE
    if allocated_ms(replica.handle) < born_ms:
        return Verdict.FOREIGN
    return Verdict.ORPHAN if allocated_ms(replica.handle) < horizon_ms else Verdict.YOUNG


class HandleColumn:
    """Ascending handles at 16 bytes each; a set would take six times as much, and every server reports at once.

    Kept as two columns of 64-bit halves, so that looking one up is a bisection in C.
    """

    def __init__(self) -> None:
        self._high = array("Q")
        self._low = array("Q")

    def extend(self, handles: Sequence[bytes]) -> None:
        """Add handles above all that are here."""
        halves = struct.unpack(f">{2 * len(handles)}Q", b"".join(handles))
        self._high.extend(halves[0::2])
        self._low.extend(halves[1::2])

    @property
    def last(self) -> bytes | None:
        return _HALVES.pack(self._high[-1], self._low[-1]) if self._high else None

    def __len__(self) -> int:
        return len(self._high)

    def __iter__(self) -> Iterator[bytes]:
        return (_HALVES.pack(high, low) for high, low in zip(self._high, self._low, strict=True))

    def __contains__(self, handle: bytes) -> bool:
        high, low = _HALVES.unpack(handle)
        place = bisect_left(self._high, high)
        while place < len(self._high) and self._high[place] == high:
            if self._low[place] == low:
                return True
            place += 1
        return False


class ReportIntake:
    """The pages of one full report. Rule 1: only `accept` changes it."""

    def __init__(self, report_id: int, now_s: float) -> None:
        self.report_id = report_id
        self.handles = HandleColumn()
        self.begun_s = now_s
        self.heard_s = now_s
        self.is_complete = False
        self._page = -1

    def accept(self, report: ChunkReport, now_s: float) -> None:
        """Take the next page in (or the last one again, resent); raise `InvalidArgument` when it does not fit."""
        handles = [replica.handle for replica in report.replicas]
        is_resend = report.page == self._page
        follows = is_resend or (report.page == self._page + 1 and not self.is_complete)
        if report.report_id != self.report_id or not follows:
            raise InvalidArgument(
                f"page {report.page} of chunk report {report.report_id} does not follow page {self._page} of report "
                f"{self.report_id}; start a new report at page 0"
            )
        check_handles(handles)
        before = [self.handles.last] if self.handles.last is not None and not is_resend else []
        if any(low >= high for low, high in pairwise([*before, *handles])):
            raise InvalidArgument(f"page {report.page} of chunk report {report.report_id} is not in ascending order")
        if not is_resend:
            self.handles.extend(handles)
            self._page = report.page
        self.heard_s = now_s
        self.is_complete = report.is_last


def check_handles(handles: Iterable[bytes]) -> None:
    """Raise `InvalidArgument` unless each is a chunk handle by its size."""
    for handle in handles:
        if len(handle) != ID_SIZE:
            raise InvalidArgument(f"a chunk handle has {ID_SIZE} bytes, not {len(handle)}")


class RecentChanges:
    """What one server's heartbeats said of each chunk lately: newer than any report that is on its way."""

    def __init__(self) -> None:
        self._last: dict[ChunkHandle, tuple[bool, float]] = {}  # handle -> (is held, when heard), oldest first

    def note(self, handles: Iterable[ChunkHandle], now_s: float, *, is_held: bool) -> None:
        change = (is_held, now_s)  # one for all: a busy leader remembers a hundred thousand handles
        for handle in handles:
            self._last.pop(handle, None)
            self._last[handle] = change
        self._forget_oldest(len(self._last) - CHANGES_KEPT_MAX)

    def was_added(self, handle: ChunkHandle) -> bool:
        return self._last.get(handle, (False, 0.0))[0]

    def was_removed(self, handle: ChunkHandle) -> bool:
        return not self._last.get(handle, (True, 0.0))[0]

    def forget_before(self, moment_s: float) -> None:
        self._forget_oldest(sum(1 for _ in takewhile(lambda change: change[1] < moment_s, self._last.values())))

    def _forget_oldest(self, count: int) -> None:
        for handle in list(islice(self._last, max(0, count))):
            del self._last[handle]

    def __len__(self) -> int:
        return len(self._last)
