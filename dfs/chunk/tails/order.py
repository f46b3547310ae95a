"""The order of a tail: who may append what next, where it stands, and what was there already.

Owns: the dedupe table of one tail, and the offsets of its records. Pure: the same groups give the same table on every
server and after every restart. Refuses to know: files, sockets, threads, and what a record contains (docs/adr/0015).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from dfs.errors import AppenderUnknown, Conflict, InvalidArgument, LimitExceeded, TailClosed
from dfs.ids import ID_SIZE, id_text
from dfs.net.messages import (
    APPENDERS_MAX,
    GROUP_RECORDS_MAX,
    GROUP_SIZE_MAX,
    OFFSETS_MAX,
    RECORDS_PER_CHUNK_MIN,
    RESULTS_MAX,
)
from dfs.net.parts import AppenderState, RecordGroup


@dataclass(slots=True)
class _Known:
    """What the table keeps of one appender; `offsets` are those of its last records."""

    last_sequence: int
    offsets: list[int]
    is_touched: bool = False  # by a record of this tail
    is_closed: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to one group: `offsets` of all its records; `fresh` is what is new of it, from record `skipped` on."""

    offsets: tuple[int, ...]
    last_sequence: int
    skipped: int
    fresh: RecordGroup | None


class Ledger:
    """The order and the dedupe table of one tail. Rule 1: only `admit` changes it, and not when it raises.

    What is admitted is not durable yet; a tail whose round fails is never used again, so nothing is ever taken back.
    """

    def __init__(self, base: int, size_max: int, record_size_max: int, appenders: Iterable[AppenderState] = ()) -> None:
        self.length = 0  # bytes admitted
        self._base = base
        self._size_max = size_max
        self._record_size_max = record_size_max
        self._known = {state.appender: _Known(state.last_sequence, list(state.offsets), False) for state in appenders}
        self._kept = sum(len(known.offsets) for known in self._known.values())

    def admit(self, group: RecordGroup) -> Admission:
        """Order what is new of a group behind all before it.

        Raise `AppenderUnknown`, `Conflict` (a gap, or an outcome that was forgotten because it was acknowledged),
        `InvalidArgument`, `LimitExceeded`, or `TailClosed` when it does not fit any more.
        """
        check_group(group, self._record_size_max)
        known = self._known.get(group.appender)
        last = 0 if known is None else known.last_sequence
        name = id_text(group.appender)
        if known is None and group.first_sequence != 1:
            raise AppenderUnknown(
                f"appender {name} sends record {group.first_sequence}, but this file knows nothing of it; look what is "
                "in the file, then go on as a new appender"
            )
        if group.first_sequence > last + 1:
            raise Conflict(f"appender {name} sends record {group.first_sequence}; its last one was {last}")
        skipped = min(len(group.lengths), last + 1 - group.first_sequence)
        repeated = self._repeated(group, known, skipped) if skipped and known is not None else ()
        fresh_lengths = group.lengths[skipped:]
        is_closing = group.is_closing and not (known is not None and known.is_closed)
        if not fresh_lengths and (not is_closing or known is None):
            return Admission(repeated, last, skipped, None)
        self._check_room(group, known, sum(fresh_lengths), last)
        if known is None:
            known = self._known[group.appender] = _Known(0, [])
        offsets = self._enter(known, group, fresh_lengths)
        fresh = msgspec.structs.replace(
            group, first_sequence=last + 1, lengths=fresh_lengths, crcs=group.crcs[skipped:]
        )
        return Admission((*repeated, *offsets), known.last_sequence, skipped, fresh)

    def _repeated(self, group: RecordGroup, known: _Known, count: int) -> tuple[int, ...]:
        """Return the first offsets of records that are here already."""
        start = group.first_sequence - (known.last_sequence - len(known.offsets) + 1)
        if start < 0:
            raise Conflict(
                f"record {group.first_sequence} of appender {id_text(group.appender)} was appended and acknowledged "
                "before; its offset is no longer kept"
            )
        return tuple(known.offsets[start : start + count])

    def _check_room(self, group: RecordGroup, known: _Known | None, size: int, last: int) -> None:
        count = len(group.lengths)
        if size > self._record_size_max * RECORDS_PER_CHUNK_MIN:
            raise LimitExceeded(f"{size} bytes in one call never fit a tail; send fewer records")
        if self.length + size > self._size_max:
            text = f"the tail holds {self.length} bytes and takes {self._size_max}; ask for the next one"
            raise TailClosed(text, room=str(size))
        if last + count - group.first_unacked >= RESULTS_MAX or self._kept + count > OFFSETS_MAX:
            raise LimitExceeded(
                f"the outcomes of {last + count + 1 - group.first_unacked} records of appender "
                f"{id_text(group.appender)} would be kept, and {self._kept} of all appenders of the file; the limits "
                f"are {RESULTS_MAX} and {OFFSETS_MAX}: acknowledge some"
            )
        if known is None and len(self._known) >= APPENDERS_MAX:
            raise LimitExceeded(
                f"{APPENDERS_MAX} appenders of this file did not close and were not silent for a day; close them, or "
                "share one"
            )

    def _enter(self, known: _Known, group: RecordGroup, lengths: Sequence[int]) -> list[int]:
        offsets = []
        for length in lengths:
            offsets.append(self._base + self.length)
            self.length += length
        before = len(known.offsets)
        known.last_sequence += len(lengths)
        known.offsets += offsets
        surplus = len(known.offsets) - (known.last_sequence - group.first_unacked + 1)
        del known.offsets[: max(0, min(surplus, before))]
        self._kept += len(known.offsets) - before
        known.is_touched = True
        known.is_closed = group.is_closing
        return offsets

    def changed(self) -> tuple[AppenderState, ...]:
        """Return what is to be kept of the appenders that this tail heard of, and that did not close."""
        return tuple(
            AppenderState(appender, known.last_sequence, tuple(known.offsets))
            for appender, known in self._known.items()
            if known.is_touched and not known.is_closed
        )

    def closed(self) -> tuple[bytes, ...]:
        """Return the appenders that closed."""
        return tuple(appender for appender, known in self._known.items() if known.is_closed)


def check_group(group: RecordGroup, record_size_max: int) -> None:
    """Raise `InvalidArgument` or `LimitExceeded` unless a group of records makes sense by itself."""
    if len(group.appender) != ID_SIZE:
        raise InvalidArgument(f"an appender's name has {ID_SIZE} bytes, not {len(group.appender)}")
    if not 1 <= group.first_unacked <= group.first_sequence:
        raise InvalidArgument(
            f"record {group.first_sequence} with first unacknowledged {group.first_unacked} is not possible"
        )
    if len(group.lengths) > GROUP_RECORDS_MAX or len(group.crcs) != len(group.lengths):
        raise InvalidArgument(
            f"a group of {len(group.lengths)} records with {len(group.crcs)} checksums; at most {GROUP_RECORDS_MAX} go"
        )
    if any(not 1 <= length <= record_size_max for length in group.lengths):
        raise LimitExceeded(
            f"a record has 1 to {record_size_max} bytes (a quarter of a chunk); append larger data as a file"
        )
    if len(group.lengths) > 1 and sum(group.lengths) > GROUP_SIZE_MAX:
        raise LimitExceeded(f"several records in one call have at most {GROUP_SIZE_MAX} bytes together")
