"""Judge a run against a user's cluster, promise by promise.

Owns: the checks over what clients saw, and the figures of the report. Refuses to know: processes, clocks and output.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from dfs.chaos.history import History
from dfs.chaos.linearizability import check, split
from dfs.chaos.records import Acknowledged, Copied, check_copies, check_exactly_once
from dfs.chaos.story import Moment, Story
from dfs.chaos.workloads import BOOK, STILL_BOOK, YARD

GAP_S = 1.0  # without any successful change for so long is a gap worth a mark: clients change things all the time


class Outcome(enum.Enum):
    """The verdict; its value is the exit code."""

    CLEAN = 0
    BROKEN = 1
    INCONCLUSIVE = 2


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise: what was checked, how often, and in which ways it did not hold."""

    name: str
    checked: str
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gap:
    """No change succeeded between these seconds of the run. `faults`: what stood or was being recovered from."""

    begin_s: float
    end_s: float
    faults: tuple[str, ...]

    @property
    def length_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """`doubts`: why nothing can be concluded although nothing is broken."""

    promises: tuple[Promise, ...]
    doubts: tuple[str, ...]
    calls: dict[str, int]
    faults: dict[str, int]
    gaps: tuple[Gap, ...]  # of `GAP_S` and more
    pauses_s: tuple[float, ...]  # between one successful change and the next, ascending
    fault_gaps_s: dict[str, list[float]] = field(default_factory=dict)  # by fault: the longest pause of each

    @property
    def outcome(self) -> Outcome:
        if any(promise.broken for promise in self.promises):
            return Outcome.BROKEN
        return Outcome.INCONCLUSIVE if self.doubts else Outcome.CLEAN


def judge(
    history: History,
    acknowledged: Sequence[Acknowledged],
    log: bytes,
    unusable: Sequence[str],
    story: Story,
    copies: Sequence[Copied] = (),
) -> Verdict:
    """`log`: what the appenders' file holds at the end; `unusable`: what failed in the last look."""
    faults = Counter(moment.fault for moment in story.moments)
    pauses = pauses_between(history.changed_s, story.began_s, story.ended_s)
    doubts = [f"the run was stopped: {story.stopped}"] if story.stopped else []
    doubts += [f"not undone: {words}" for words in story.left]
    if not story.moments:
        doubts.append("no fault was injected")
    return Verdict(
        (
            _names(history),
            _contents(history),
            _appends(acknowledged, log, copies),
            _kept(history, unusable),
            _reads(history),
        ),
        tuple(doubts),
        dict(sorted(history.counts.items())),
        dict(sorted(faults.items())),
        tuple(
            Gap(begin_s, end_s, _standing(story.moments, begin_s, end_s))
            for begin_s, end_s in pauses
            if end_s - begin_s >= GAP_S
        ),
        tuple(sorted(end_s - begin_s for begin_s, end_s in pauses)),
        _by_fault(pauses, story.moments),
    )


# --- promises


def _names(history: History) -> Promise:
    return _ordered(history, "names are linearizable", is_book=False)


def _contents(history: History) -> Promise:
    return _ordered(history, "contents are whole and linearizable", is_book=True)


def _ordered(history: History, name: str, *, is_book: bool) -> Promise:
    """Every object's calls have an order that explains all answers; a half or mixed content has edition -1: none."""
    objects = {key: calls for key, calls in split(history.calls).items() if ("book" in str(key)) == is_book}
    broken = []
    for key, calls in sorted(objects.items(), key=lambda item: str(item[0])):
        found = check(calls, BOOK if is_book else YARD)
        if not found.is_linearizable:
            broken.append(f"{key}: {found.story}")
    count = sum(map(len, objects.values()))
    return Promise(name, f"{count} calls on {len(objects)} objects", tuple(broken))


def _appends(acknowledged: Sequence[Acknowledged], log: bytes, copies: Sequence[Copied]) -> Promise:
    name = "each acknowledged append is there exactly once"
    try:
        found = check_exactly_once(log, acknowledged)
        check_copies(log, copies)
    except AssertionError as error:
        return Promise(name, f"{len(acknowledged)} acknowledged records", (str(error),))
    checked = f"{len(acknowledged)} acknowledged records of {len(found)} in the file, copied {len(copies)} times"
    return Promise(name, checked)


def _kept(history: History, unusable: Sequence[str]) -> Promise:
    """Files that nobody writes again are what was acknowledged; and all can be used at the end."""
    stored: dict[object, object] = {}
    broken, checked = [*unusable], 0
    for call in history.timed:
        if STILL_BOOK not in str(call.key) or call.outcome != "done":
            continue
        if call.name == "put":
            stored[call.key] = call.argument
        else:
            checked += 1
            if call.result != stored.get(call.key):
                broken.append(f"{call.key} was stored as edition {stored.get(call.key)} and read as {call.result}")
    return Promise("nothing acknowledged is lost", f"{len(stored)} files, read {checked} times", tuple(broken))


def _reads(history: History) -> Promise:
    count = sum(call.is_read for call in history.timed)
    failed = tuple(words for _, _, words in history.failed_reads)
    return Promise("every read is answered", f"{count} reads", failed)


# --- pauses


def pauses_between(
    changed_s: Iterable[tuple[float, float]], began_s: float, ended_s: float
) -> list[tuple[float, float]]:
    """Return the times between two successful changes that followed each other, in seconds of the run."""
    ends = sorted(end_s - began_s for _, end_s in changed_s if began_s < end_s < ended_s)
    return list(pairwise([0.0, *ends, ended_s - began_s]))


def _standing(moments: Sequence[Moment], begin_s: float, end_s: float) -> tuple[str, ...]:
    return tuple(
        f"{moment.fault} {', '.join(moment.targets)}"
        for moment in moments
        if moment.struck_s < end_s and begin_s < moment.whole_s
    )


def _by_fault(pauses: Sequence[tuple[float, float]], moments: Sequence[Moment]) -> dict[str, list[float]]:
    """Return the longest pause that touches each fault's time, by kind."""
    found: dict[str, list[float]] = {}
    for moment in moments:
        touching = [
            end_s - begin_s for begin_s, end_s in pauses if begin_s < moment.whole_s and moment.struck_s < end_s
        ]
        found.setdefault(moment.fault, []).append(max(touching, default=0.0))
    return {kind: sorted(lengths) for kind, lengths in sorted(found.items())}


def at_share(ordered: Sequence[float], share: float) -> float:
    """Return the value below which this share of the ascending values lies; 0.0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
