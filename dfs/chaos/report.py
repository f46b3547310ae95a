"""The folder that a run leaves behind: report.txt, report.json, history.jsonl, timeline.svg and, if it can be, a PNG.

Owns: the words and the files of the report. Refuses to know: how the verdict was reached.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dfs.chaos.history import TimedCall
from dfs.chaos.linearizability import UNKNOWN
from dfs.chaos.picture import draw
from dfs.chaos.story import Moment, Story
from dfs.chaos.timeline import Timeline, draw_up
from dfs.chaos.verdict import Outcome, Verdict, at_share
from dfs.decoders import json_decoder
from dfs.errors import ConfigError, NotFound

TEXT, JSON, HISTORY, SVG, PNG = "report.txt", "report.json", "history.jsonl", "timeline.svg", "timeline.png"
PNG_LIBRARY = "cairosvg"  # the extra `picture`
GAPS_SHOWN = 20
WORDS_SHOWN = 2000  # characters of one finding in the text; report.json has all


@dataclass(frozen=True, slots=True)
class About:
    """Which run it was. `again`: the command that repeats its plan."""

    run_id: str
    cluster: str
    is_throw_away: bool
    seed: int
    begun_ms: int
    version: str
    again: str


class Row(msgspec.Struct, frozen=True):
    """A call in history.jsonl. Seconds count from the begin of the run; before it the run's files were made."""

    begin_s: float
    end_s: float
    key: str
    name: str
    argument: Any
    result: Any
    outcome: str
    is_read: bool


class Report(msgspec.Struct, frozen=True):
    """report.json."""

    about: About
    outcome: str  # clean, broken, inconclusive
    duration_s: float
    verdict: Verdict
    moments: list[Moment]
    skipped: list[str]
    timeline: Timeline


_DECODER: msgspec.json.Decoder[Report] = json_decoder(Report)


def assemble(about: About, verdict: Verdict, story: Story, calls: Sequence[TimedCall]) -> Report:
    """Return the report of a run that is over."""
    duration_s = story.ended_s - story.began_s
    timeline = draw_up(calls, story, verdict.gaps)
    return Report(
        about, verdict.outcome.name.lower(), duration_s, verdict, list(story.moments), list(story.skipped), timeline
    )


def write(folder: Path, report: Report, story: Story, calls: Sequence[TimedCall]) -> list[Path]:
    """Write all files of a report into `folder`, which is made; return them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TEXT).write_text("\n".join(lines(report)) + "\n", encoding="utf-8")
        (folder / JSON).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        with (folder / HISTORY).open("wb") as file:
            for call in calls:
                file.write(msgspec.json.encode(_row(call, story.began_s)) + b"\n")
        return [folder / TEXT, folder / JSON, folder / HISTORY, *write_pictures(folder, report)]
    except OSError as error:
        raise ConfigError(f"cannot write the report to {folder}: {error.strerror or error}") from None


def write_pictures(folder: Path, report: Report) -> list[Path]:
    """Write the timeline as SVG, and as PNG when the library for that is installed."""
    svg = draw(report.timeline, _title(report), _subtitle(report))
    (folder / SVG).write_text(svg, encoding="utf-8")
    if importlib.util.find_spec(PNG_LIBRARY) is None:
        return [folder / SVG]
    importlib.import_module(PNG_LIBRARY).svg2png(bytestring=svg.encode(), write_to=str(folder / PNG), scale=1.5)
    return [folder / SVG, folder / PNG]


def load(folder: Path) -> Report:
    """Return the report that a run wrote into `folder`."""
    path = folder / JSON
    try:
        return _DECODER.decode(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{folder} holds no report of `dfs chaos run`: {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a report of this version: {error}") from None


def exit_code(report: Report) -> int:
    return Outcome[report.outcome.upper()].value


def lines(report: Report) -> Iterator[str]:
    """Yield the report for people."""
    verdict, about = report.verdict, report.about
    yield f"{report.outcome.upper()}: {_title(report)}"
    yield f"{_subtitle(report)}; run {about.run_id}"
    yield ""
    for promise in verdict.promises:
        yield f"  {'BROKEN' if promise.broken else 'held  '}  {promise.name} ({promise.checked})"
        for words in promise.broken:
            yield from (f"            {line}" for line in words[:WORDS_SHOWN].splitlines())
    for doubt in verdict.doubts:
        yield f"  doubt   {doubt}"
    yield ""
    yield f"faults: {sum(verdict.faults.values())}"
    for kind, count in verdict.faults.items():
        gaps = verdict.fault_gaps_s[kind]
        longest = f"median {at_share(gaps, 0.5):.2f} s, max {gaps[-1]:.2f} s"
        yield f"  {kind:<16} {count:>3} times; longest time without a successful change: {longest}"
    yield from (f"  left out: {words}" for words in report.skipped)
    yield ""
    pauses = verdict.pauses_s
    yield (
        f"between two successful changes: median {at_share(pauses, 0.5) * 1000:.1f} ms, p99"
        f" {at_share(pauses, 0.99) * 1000:.0f} ms, max {pauses[-1]:.2f} s"
        if pauses
        else "no change succeeded"
    )
    for gap in verdict.gaps[:GAPS_SHOWN]:
        yield f"  at {gap.begin_s:.1f} s nothing for {gap.length_s:.2f} s: {'; '.join(gap.faults) or 'no fault stood'}"
    if len(verdict.gaps) > GAPS_SHOWN:
        yield f"  and {len(verdict.gaps) - GAPS_SHOWN} more"
    yield ""
    yield f"calls: {sum(verdict.calls.values())}"
    for name, count in verdict.calls.items():
        yield f"  {name:<32} {count:>8}"
    yield ""
    yield f"the same plan again: {about.again}"


def _title(report: Report) -> str:
    about = report.about
    kind = "a throw-away cluster" if about.is_throw_away else f"cluster {about.cluster!r}"
    return f"dfs chaos on {kind}, seed {about.seed}, {report.duration_s:.0f} s"


def _subtitle(report: Report) -> str:
    verdict = report.verdict
    done = sum(count for name, count in verdict.calls.items() if name.endswith(" done"))
    held = sum(not promise.broken for promise in verdict.promises)
    longest = verdict.pauses_s[-1] if verdict.pauses_s else report.duration_s
    return (
        f"{report.outcome}: {held} of {len(verdict.promises)} promises held; {sum(verdict.faults.values())} faults,"
        f" {done} calls done; longest time without a change {longest:.2f} s; dfs {report.about.version}"
    )


def _row(call: TimedCall, began_s: float) -> Row:
    result = None if call.result is UNKNOWN else call.result
    return Row(
        round(call.begun_s - began_s, 6),
        round(call.ended_s - began_s, 6),
        str(call.key),
        call.name,
        call.argument,
        result,
        call.outcome,
        call.is_read,
    )
