"""Is the order of a tail right, is nothing taken twice, and does its file survive a cut at any byte?

Owns: the ledger and the file of one tail. Refuses to know: chains and masters.
"""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import msgspec
import pytest

from dfs.checksum import crc32c
from dfs.chunk.tails.log import (
    FORMAT_VERSION,
    JOURNAL_START,
    TAIL_SUFFIX,
    Round,
    TailFile,
    TailLog,
    TailStart,
    check_records,
    encode_frame,
    encode_round,
)
from dfs.chunk.tails.order import Ledger
from dfs.errors import (
    AppenderUnknown,
    ChunkCorrupt,
    Conflict,
    InvalidArgument,
    LimitExceeded,
    TailClosed,
    VersionMismatch,
)
from dfs.ids import ChunkHandle
from dfs.net.messages import APPENDERS_MAX, GROUP_RECORDS_MAX, RESULTS_MAX
from dfs.net.parts import AppenderState, RecordGroup

A, B = b"a" * 16, b"b" * 16
HANDLE = ChunkHandle(bytes(range(16)))
BASE = 1000
TAIL = HANDLE.hex() + TAIL_SUFFIX


def group(appender: bytes, first: int, *sizes: int, unacked: int | None = None, closing: bool = False) -> RecordGroup:
    data = [records(appender, first + index, size) for index, size in enumerate(sizes)]
    crcs = tuple(map(crc32c, data))
    return RecordGroup(appender, first, first if unacked is None else unacked, tuple(sizes), crcs, closing)


def records(appender: bytes, sequence: int, size: int) -> bytes:
    return Random(appender + b"%d" % sequence).randbytes(size)


def data_of(item: RecordGroup) -> bytes:
    return b"".join(
        records(item.appender, item.first_sequence + index, size) for index, size in enumerate(item.lengths)
    )


def ledger(size_max: int = 10_000, *known: AppenderState) -> Ledger:
    return Ledger(BASE, size_max, 2_500, known)


# --- the ledger


def test_records_of_all_appenders_stand_one_after_the_other() -> None:
    tail = ledger()
    assert tail.admit(group(A, 1, 10, 20)).offsets == (BASE, BASE + 10)
    assert tail.admit(group(B, 1, 5)).offsets == (BASE + 30,)
    assert tail.admit(group(A, 3, 7)).offsets == (BASE + 35,)
    assert tail.length == 42


def test_a_repeated_group_gets_its_first_offsets_and_takes_no_room() -> None:
    tail = ledger()
    first = tail.admit(group(A, 1, 10, 20))
    again = tail.admit(group(A, 1, 10, 20))
    assert (again.offsets, again.fresh, again.skipped, tail.length) == (first.offsets, None, 2, 30)


def test_a_group_that_is_partly_known_adds_only_the_rest() -> None:
    tail = ledger()
    tail.admit(group(A, 1, 10, 20))
    partly = tail.admit(group(A, 2, 20, 30))
    assert partly.offsets == (BASE + 10, BASE + 30)
    assert partly.fresh is not None
    assert (partly.fresh.first_sequence, partly.fresh.lengths, partly.skipped) == (3, (30,), 1)


def test_a_gap_and_an_unknown_appender_are_refused_and_change_nothing() -> None:
    tail = ledger()
    with pytest.raises(AppenderUnknown):
        tail.admit(group(A, 2, 10))
    tail.admit(group(A, 1, 10))
    with pytest.raises(Conflict):
        tail.admit(group(A, 3, 10))
    assert tail.length == 10
    assert tail.admit(group(A, 2, 10)).offsets == (BASE + 10,)


def test_what_is_known_from_earlier_tails_is_recognised() -> None:
    tail = ledger(10_000, AppenderState(A, 7, (300, 400)))
    assert tail.admit(group(A, 6, 10, 20)).offsets == (300, 400)
    assert tail.admit(group(A, 7, 20, 30)).offsets == (400, BASE)
    assert tail.changed() == (AppenderState(A, 8, (400, BASE)),)
    with pytest.raises(Conflict):
        tail.admit(group(A, 2, 10))  # acknowledged long ago: its place is not kept, but it is no new record either


def test_a_full_tail_takes_nothing_of_a_group_that_does_not_fit() -> None:
    tail = ledger(100)
    tail.admit(group(A, 1, 60))
    with pytest.raises(TailClosed) as refusal:
        tail.admit(group(A, 2, 20, 21))
    assert refusal.value.details == {"room": "41"}, "what the next tail must be able to take"
    with pytest.raises(LimitExceeded):
        tail.admit(group(A, 2, *[2_500] * 5))  # no tail would ever take it: to ask for the next one would never end
    assert tail.admit(group(A, 2, 40)).offsets == (BASE + 60,)
    assert tail.admit(group(A, 2, 40)).offsets == (BASE + 60,), "also a full tail answers what was there"


def test_acknowledged_offsets_are_forgotten_and_the_others_kept() -> None:
    tail = ledger()
    tail.admit(group(A, 1, 1, 1, 1))
    tail.admit(group(A, 4, 1, unacked=3))
    assert tail.changed() == (AppenderState(A, 4, (BASE + 2, BASE + 3)),)


def test_a_closed_appender_is_dropped_unless_it_goes_on() -> None:
    tail = ledger(10_000, AppenderState(B, 3, ()))
    tail.admit(group(A, 1, 10))
    tail.admit(group(A, 2, closing=True))
    assert tail.admit(group(A, 2, closing=True)).fresh is None
    tail.admit(group(B, 4, closing=True))
    assert (tail.changed(), set(tail.closed())) == ((), {A, B})
    tail.admit(group(A, 2, 10))
    assert (tail.changed(), tail.closed()) == ((AppenderState(A, 2, (BASE + 10,)),), (B,))


def test_an_appender_is_told_its_last_record() -> None:
    tail = ledger(10_000, AppenderState(A, 3, ()))
    assert tail.admit(group(A, 1)).last_sequence == 3
    assert tail.admit(group(B, 1)).last_sequence == 0


def test_every_bound_of_the_table_holds() -> None:
    tail = ledger(10_000_000)
    for refused in (
        RecordGroup(b"short", 1, 1, (1,), (0,)),
        RecordGroup(A, 1, 2, (1,), (0,)),
        RecordGroup(A, 1, 1, (1,), ()),
        RecordGroup(A, 1, 1, (1,) * (GROUP_RECORDS_MAX + 1), (0,) * (GROUP_RECORDS_MAX + 1)),
    ):
        with pytest.raises(InvalidArgument):
            tail.admit(refused)
    for sizes in ((0,), (2_501,)):
        with pytest.raises(LimitExceeded):
            tail.admit(RecordGroup(A, 1, 1, sizes, (0,)))
    full = (1,) * GROUP_RECORDS_MAX
    for start in range(1, RESULTS_MAX, GROUP_RECORDS_MAX):
        tail.admit(RecordGroup(A, start, 1, full, full))
    with pytest.raises(LimitExceeded):
        tail.admit(RecordGroup(A, RESULTS_MAX + 1, 1, (1,), (0,)))
    tail.admit(RecordGroup(A, RESULTS_MAX + 1, 2, (1,), (0,)))
    for number in range(APPENDERS_MAX - 1):
        tail.admit(RecordGroup(b"%016d" % number, 1, 1, (1,), (0,)))
    with pytest.raises(LimitExceeded):
        tail.admit(RecordGroup(B, 1, 1, (1,), (0,)))


# --- the file


def filled(path: Path, rounds: int = 6) -> tuple[TailFile, list[Round], bytes]:
    start = TailStart(BASE, 100_000, 25_000, (AppenderState(B, 2, (5,)),))
    file, table = TailFile.create(path, HANDLE, start), start.ledger()
    made, content = [], b""
    for number in range(rounds):
        groups = (group(A, 2 * number + 1, 30, 40 + number), group(B, number + 3, 11))
        item = Round(table.length, groups)
        for one in groups:
            table.admit(one)
        data = b"".join(map(data_of, groups))
        file.stage(data)
        file.append(item)
        made.append(item)
        content += data
    return file, made, content


def test_a_tail_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file, rounds, content = filled(tmp_path / TAIL)
    log = TailLog(tmp_path / TAIL, HANDLE)
    assert (log.length, log.content(log.length)) == (file.length, content)
    half = rounds[3].offset
    assert log.content(half) == content[:half]
    assert {state.appender: state.last_sequence for state in log.ledger(half).changed()} == {A: 6, B: 5}
    with pytest.raises(ChunkCorrupt):
        log.content(half + 1)
    assert (tmp_path / TAIL).read_bytes()[: len(content)] == content, "as a sealed replica has it"


def parts_of(path: Path) -> tuple[bytes, bytes]:
    """Return the data and the journal of a tail."""
    with path.open("rb") as file:
        data = file.read(4096).rstrip(b"\0")
        file.seek(JOURNAL_START)
        return data, file.read()


def put_together(path: Path, data: bytes, journal: bytes) -> Path:
    with path.open("wb") as file:
        file.write(data)
        file.seek(JOURNAL_START)
        file.write(journal)
    return path


def test_a_journal_cut_at_any_byte_holds_exactly_the_rounds_before(tmp_path: Path) -> None:
    filled(tmp_path / TAIL, 3)
    data, journal = parts_of(tmp_path / TAIL)
    whole = TailLog(tmp_path / TAIL, HANDLE)
    ends = [0]
    for size in range(len(journal) + 1):
        cut = put_together(tmp_path / f"cut{TAIL_SUFFIX}", data, journal[:size])
        try:
            found = TailLog(cut, HANDLE)
        except ChunkCorrupt:
            assert ends == [0], "only a file without its beginning is damaged"
            continue
        if found.length != ends[-1]:
            ends.append(found.length)
        assert found.content(found.length) == whole.content(found.length)
    assert len(ends) == 4, "each round appears whole, with the last byte of its frame"


def test_a_round_whose_data_did_not_reach_the_disk_is_a_torn_end(tmp_path: Path) -> None:
    _, rounds, content = filled(tmp_path / TAIL, 3)
    data, journal = parts_of(tmp_path / TAIL)
    for size in range(rounds[-1].offset, len(data)):
        found = TailLog(put_together(tmp_path / f"cut{TAIL_SUFFIX}", data[:size], journal), HANDLE)
        assert found.content(found.length) == content[: rounds[-1].offset]


def test_a_flipped_bit_is_a_torn_end_or_damage_but_never_other_bytes(tmp_path: Path) -> None:
    _, rounds, content = filled(tmp_path / TAIL, 3)
    both, bad = parts_of(tmp_path / TAIL), tmp_path / f"bad{TAIL_SUFFIX}"
    last = (rounds[-1].offset, len(both[1]) - len(encode_round(HANDLE, rounds[-1])))
    outcomes = set()
    for part, position in [(which, place) for which in (0, 1) for place in range(0, len(both[which]), 3)]:
        pieces = [bytearray(both[0]), bytearray(both[1])]
        pieces[part][position] ^= 0x10
        try:
            found = TailLog(put_together(bad, *map(bytes, pieces)), HANDLE)
        except ChunkCorrupt:
            outcomes.add(("damage", part))
            assert position < last[part], "in the last round nobody can tell"
            continue
        outcomes.add(("torn", part))
        assert position >= last[part], f"byte {position} of {part} rotted in a round that others follow"
        assert found.content(found.length) == content[: rounds[-1].offset]
    assert outcomes == {("damage", 0), ("damage", 1), ("torn", 0), ("torn", 1)}


def test_a_tail_of_the_first_format_is_still_read(tmp_path: Path) -> None:
    """One that an earlier version left when it was stopped: all of it a journal, data behind each head."""
    _, rounds, content = filled(tmp_path / TAIL, 3)
    old = tmp_path / HANDLE.hex()
    start = msgspec.msgpack.encode((BASE, 100_000, 25_000, ((B, 2, (5,)),)))
    frames = [frame_of_format_1(start, b"")]
    for item in rounds:
        head = msgspec.msgpack.encode(item)
        frames.append(frame_of_format_1(head, content[item.offset : item.offset + item.size]))
    for torn in (b"", frames[1][:50]):
        old.write_bytes(b"".join(frames) + torn)
        log = TailLog(old, HANDLE)
        assert (log.length, log.content(log.length)) == (len(content), content)
        assert log.ledger(log.length).changed() == TailLog(tmp_path / TAIL, HANDLE).ledger(len(content)).changed()


def frame_of_format_1(head: bytes, data: bytes) -> bytes:
    sizes = struct.pack("<II", len(head), len(data))
    return HANDLE + sizes + struct.pack("<I", crc32c(head, crc32c(sizes))) + head + data


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    head = msgspec.msgpack.encode((BASE, 100_000, 25_000, (), FORMAT_VERSION + 1))
    put_together(tmp_path / TAIL, b"", encode_frame(HANDLE, head))
    with pytest.raises(VersionMismatch, match=f"format {FORMAT_VERSION + 1}"):
        TailLog(tmp_path / TAIL, HANDLE)


def test_readers_get_whole_records_below_what_is_committed(tmp_path: Path) -> None:
    file, rounds, content = filled(tmp_path / TAIL)
    committed = rounds[4].offset
    position = 0
    while position < committed:
        start, lengths, crcs, data = file.read(position, committed, 100)
        assert (start, data) == (position, content[position : position + sum(lengths)])
        assert len(lengths) == len(crcs) > 0
        position += len(data)
    assert position == committed
    start, lengths, _, data = file.read(45, committed, 1)
    assert (start, lengths, data) == (30, [40], content[30:70]), "the record that holds the offset"
    assert file.read(committed, committed, 100)[1] == []


def test_a_tail_is_made_once(tmp_path: Path) -> None:
    filled(tmp_path / TAIL)
    with pytest.raises(FileExistsError):
        filled(tmp_path / TAIL)


def test_a_record_with_a_wrong_byte_is_refused_on_arrival() -> None:
    one = group(A, 1, 10, 20)
    check_records((one,), data_of(one))
    with pytest.raises(ChunkCorrupt):
        check_records((one,), data_of(one)[:-1] + b"?")
    with pytest.raises(ChunkCorrupt):
        check_records((one,), data_of(one) + b"?")
    with pytest.raises(ChunkCorrupt):
        check_records((RecordGroup(A, 1, 1, one.lengths, one.crcs[:1]),), data_of(one))
    with pytest.raises(ChunkCorrupt):
        check_records((RecordGroup(A, 1, 1, (-1, 31), one.crcs),), data_of(one))
