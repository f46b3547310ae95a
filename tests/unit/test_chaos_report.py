"""Is the report of `dfs chaos` true to its history, and its picture a picture?"""

from __future__ import annotations

import io
import math
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from dfs.chaos.history import History, TimedCall
from dfs.chaos.linearizability import Call
from dfs.chaos.picture import draw, nice_ceiling
from dfs.chaos.records import Acknowledged, Copied, make_record
from dfs.chaos.report import About, assemble, exit_code, lines, load, write
from dfs.chaos.story import Moment, Story
from dfs.chaos.timeline import draw_up
from dfs.chaos.verdict import Outcome, Verdict, judge
from dfs.checksum import crc32c
from dfs.errors import NotFound

ABOUT = About("r-1", 'test <&> "1"', False, 7, 0, "1.0", "dfs chaos run --seed 7")


def story(**changes: object) -> Story:
    moments = [Moment("kill-leader", ("m2",), 2.0, 4.0, 5.0), Moment("pause-server", ("c<1>",), 6.0, 7.0, 7.5)]
    return Story(**{"began_s": 100.0, "moments": moments, "ended_s": 110.0, **changes})  # type: ignore[arg-type]


def history(extra: list[TimedCall] | None = None) -> History:
    """Changes every 0.1 s, except from second 2 to 3.5; a file that is stored and read."""
    made = History()
    still = "/.chaos-x/0/stillbook0"
    calls = [TimedCall(still, "put", 5, "ok", "done", 99.0, 99.1, False)]
    for number in range(99):
        at_s = 100 + (number + 1) / 10
        if not 102 < at_s < 103.5:
            calls.append(TimedCall("/.chaos-x/0/yard0", "touch", ("a", number), "ok", "done", at_s - 0.01, at_s, False))
    calls += [TimedCall(still, "read", None, 5, "done", 108.0, 108.1, True), *(extra or [])]
    for index, call in enumerate(calls):
        made.timed.append(call)
        made.counts[f"{call.name} {call.outcome}"] += 1
        if call.outcome == "done":
            made.calls.append(Call(call.key, call.name, call.argument, call.result, 2 * index, 2 * index + 1))
            if not call.is_read:
                made.changed_s.append((call.begun_s, call.ended_s))
        elif call.is_read:
            made.failed_reads.append((call.begun_s, call.ended_s, f"read: {call.outcome}"))
    return made


def verdict(made: History, log: bytes = b"", told: tuple[Acknowledged, ...] = (), **changes: object) -> Verdict:
    return judge(made, told, log, (), story(**changes))


def broken(found: Verdict) -> list[str]:
    return [promise.name for promise in found.promises if promise.broken]


def test_a_run_without_a_flaw_is_clean_and_its_gap_is_found() -> None:
    record = make_record(1, 1, 50)
    found = verdict(history(), record, (Acknowledged(1, 1, 0),))
    assert (found.outcome, found.doubts) == (Outcome.CLEAN, ())
    (gap,) = found.gaps
    assert math.isclose(gap.begin_s, 2.0)
    assert math.isclose(gap.length_s, 1.5)
    assert gap.faults == ("kill-leader m2",)
    assert math.isclose(found.fault_gaps_s["kill-leader"][0], 1.5)
    assert found.fault_gaps_s["pause-server"][0] < 0.2


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (TimedCall("/.chaos-x/0/yard0", "list", None, ("b",), "done", 109, 109.1, True), "names are linearizable"),
        (
            TimedCall("/.chaos-x/0/book0", "read", None, -1, "done", 109, 109.1, True),
            "contents are whole and linearizable",
        ),
        (
            TimedCall("/.chaos-x/0/stillbook0", "read", None, "missing", "done", 109, 109.1, True),
            "nothing acknowledged is lost",
        ),
        (
            TimedCall("/.chaos-x/0/book0", "read", None, None, "connection_failed", 109, 109.1, True),
            "every read is answered",
        ),
    ],
)
def test_a_single_wrong_answer_breaks_its_promise(call: TimedCall, name: str) -> None:
    found = verdict(history([call]))
    assert name in broken(found)
    assert found.outcome is Outcome.BROKEN


def test_appends_are_judged_by_their_records() -> None:
    one, two = make_record(1, 1, 50), make_record(1, 2, 50)
    told = (Acknowledged(1, 1, 0), Acknowledged(1, 2, len(one)))
    assert broken(verdict(history(), one + two, told)) == []
    for log in (one, one + one + two, one + two[:-1], one + two[:-1] + b"?", b""):
        assert broken(verdict(history(), log, told)) == ["each acknowledged append is there exactly once"]


def test_copies_of_a_growing_log_are_beginnings_of_it_with_all_that_was_acknowledged() -> None:
    one, two = make_record(1, 1, 50), make_record(1, 2, 50)
    told, log = (Acknowledged(1, 1, 0), Acknowledged(1, 2, len(one))), one + two
    fine = [Copied(0, crc32c(b""), 0), Copied(len(one), crc32c(one), len(one)), Copied(len(log), crc32c(log), 0)]
    assert broken(judge(history(), told, log, (), story(), fine)) == []
    for bad in (
        Copied(0, crc32c(b""), len(one)),  # without a record that was acknowledged before it
        Copied(len(two), crc32c(two), 0),  # other bytes
        Copied(len(log) + 1, crc32c(log + b"?"), 0),  # more than there is in the end
    ):
        found = judge(history(), told, log, (), story(), [*fine, bad])
        assert broken(found) == ["each acknowledged append is there exactly once"]


def test_what_cannot_be_used_at_the_end_is_lost() -> None:
    found = judge(history(), (), b"", ["/.chaos-x/0: book1 cannot be used although the cluster is whole"], story())
    assert broken(found) == ["nothing acknowledged is lost"]


def test_a_run_that_was_stopped_or_broke_nothing_concludes_nothing() -> None:
    assert verdict(history(), stopped="by SIGINT").outcome is Outcome.INCONCLUSIVE
    assert verdict(history(), moments=[]).outcome is Outcome.INCONCLUSIVE
    assert verdict(history(), left=["kill-leader m1: no"]).outcome is Outcome.INCONCLUSIVE
    wrong = TimedCall("/.chaos-x/0/book0", "read", None, -1, "done", 109, 109.1, True)
    assert verdict(history([wrong]), stopped="by SIGINT").outcome is Outcome.BROKEN, "what is broken stays broken"


def test_the_report_is_written_and_read_again(tmp_path: Path) -> None:
    made = history()
    report = assemble(ABOUT, judge(made, (), b"", (), story()), story(), made.timed)
    files = write(tmp_path / "r", report, story(), made.timed)
    assert {"report.txt", "report.json", "history.jsonl", "timeline.svg"} <= {path.name for path in files}
    assert load(tmp_path / "r") == report
    assert exit_code(report) == 0
    text = (tmp_path / "r" / "report.txt").read_text()
    assert text.startswith("CLEAN")
    assert all(words in text for words in ("kill-leader", "names are linearizable", "for 1.50 s", "--seed 7"))
    assert len((tmp_path / "r" / "history.jsonl").read_bytes().splitlines()) == len(made.timed)
    with pytest.raises(NotFound):
        load(tmp_path)


def test_the_text_of_a_broken_promise_says_how() -> None:
    made = history([TimedCall("/.chaos-x/0/yard0", "list", None, ("b",), "done", 109, 109.1, True)])
    text = "\n".join(lines(assemble(ABOUT, judge(made, (), b"", (), story()), story(), made.timed)))
    assert text.startswith("BROKEN")
    assert "no order explains" in text


def test_the_picture_is_well_formed_and_shows_every_fault_and_gap() -> None:
    made = history()
    found = judge(made, (), b"", (), story())
    timeline = draw_up(made.timed, story(), found.gaps)
    root = ET.parse(io.StringIO(draw(timeline, 'a <title> & "more"', "sub"))).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {'a <title> & "more"', "kill leader m2", "pause server c<1>", "1.5 s"} <= set(texts)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for box in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y = float(box.attrib.get("x", 0)), float(box.attrib.get("y", 0))
        assert x >= 0, box.attrib
        assert y >= 0, box.attrib
        assert x + float(box.attrib["width"]) <= width + 2, box.attrib
        assert y + float(box.attrib["height"]) <= height, box.attrib
    for line in root.iter("{http://www.w3.org/2000/svg}polyline"):
        assert all(
            0 <= float(n) <= max(width, height) for pair in line.attrib["points"].split() for n in pair.split(",")
        )


def test_a_run_of_nothing_still_makes_a_picture() -> None:
    empty = Story(0.0, ended_s=0.0)
    ET.fromstring(draw(draw_up([], empty, []), "t", "s"))
    verdict = judge(History(), (), b"", (), empty)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert list(lines(assemble(ABOUT, verdict, empty, [])))


@pytest.mark.parametrize(("value", "ceiling"), [(0, 4), (1, 1), (3, 4), (7, 8), (9, 10), (101, 200), (0.3, 0.4)])
def test_an_axis_ends_at_a_number_that_is_easily_read(value: float, ceiling: float) -> None:
    assert math.isclose(nice_ceiling(value), ceiling)


def test_rates_count_what_succeeded_in_each_slot() -> None:
    timeline = draw_up(history().timed, story(), [])
    total = sum(sum(values) for values in timeline.rates.values()) * timeline.slot_s
    assert round(total) == sum(100 <= call.ended_s < 110 for call in history().timed)
