"""Judge a run: were all answers explainable, did every read find its bytes, how long were the gaps?

Owns: the checks over a history and the figures of the report. Refuses to know: processes and clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from dfs.chaos.history import History
from dfs.chaos.linearizability import check, split
from dfs.chaos.verdict import at_share
from dfs.chaos.workloads import BOOK, YARD
from dfs.testing.chaos.schedule import DEPOSES_THE_LEADER, TAKES_THE_QUORUM, Fault, FaultKind

Moment = tuple[Fault, float, float]  # a fault, when it struck and when the cluster was whole again (monotonic clock)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`broken`: promises that did not hold, in words; nothing else makes a run fail."""

    seed: int
    duration_s: float
    calls: dict[str, int]
    faults: dict[str, int]
    broken: list[str] = field(default_factory=list)
    reads_failed: list[str] = field(default_factory=list)  # while the masters had a quorum
    write_gaps_s: list[float] = field(default_factory=list)  # without any change, one for each deposed leader

    @property
    def is_clean(self) -> bool:
        return not self.broken and not self.reads_failed

    def json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self))

    def text(self) -> str:
        """Return the report for people."""
        done = sum(count for name, count in self.calls.items() if name.endswith("done"))
        lines = [
            f"seed {self.seed}: {'clean' if self.is_clean else 'BROKEN'} after {self.duration_s:.0f} s",
            f"  calls   {sum(self.calls.values())}, {done} of them done: {_counted(self.calls)}",
            f"  faults  {sum(self.faults.values())}: {_counted(self.faults)}",
        ]
        if gaps := sorted(self.write_gaps_s):
            lines.append(
                f"  leaders lost, no change succeeded for: {len(gaps)} times, median {at_share(gaps, 0.5):.2f} s, "
                f"p99 {at_share(gaps, 0.99):.2f} s, max {gaps[-1]:.2f} s"
            )
        lines += [f"  BROKEN  {words}" for words in self.broken]
        lines += [f"  FAILED READ  {words}" for words in self.reads_failed]
        return "\n".join(lines)


def judge(
    seed: int,
    duration_s: float,
    history: History,
    moments: Sequence[Moment],
    faults: dict[str, int],
    found: Sequence[str] = (),
) -> Verdict:
    """Check every object's history by itself, and count; `found`: what others found broken."""
    broken = list(found)
    for key, calls in sorted(split(history.calls).items(), key=lambda item: str(item[0])):
        verdict = check(calls, BOOK if "book" in str(key) else YARD)
        if not verdict.is_linearizable:
            broken.append(f"{key}: {verdict.story}")
    return Verdict(
        seed,
        duration_s,
        dict(sorted(history.counts.items())),
        faults,
        broken,
        [words for begun_s, ended_s, words in history.failed_reads if not _excuses(moments, begun_s, ended_s)],
        _write_gaps(history, moments),
    )


def _excuses(moments: Sequence[Moment], begun_s: float, ended_s: float) -> bool:
    """Whether the quorum was away for a part of a read: it may fail then."""
    return any(
        fault.kind in TAKES_THE_QUORUM and begin_s <= ended_s and begun_s <= end_s for fault, begin_s, end_s in moments
    )


def _write_gaps(history: History, moments: Sequence[Moment]) -> list[float]:
    """Return the longest time without a successful change after each loss of a leader that others can replace at once.

    Many clients change things all the time, so what stands out among their pauses is the wait for a new leader.
    """
    gaps = []
    changed_s = sorted(ended_s for _, ended_s in history.changed_s)
    for fault, struck_s, healed_s in moments:
        if fault.kind in DEPOSES_THE_LEADER - TAKES_THE_QUORUM - {FaultKind.RESTART_LEADER}:
            seen = [struck_s, *(at_s for at_s in changed_s if struck_s < at_s < healed_s), healed_s]
            gaps.append(max(later - earlier for earlier, later in pairwise(seen)))
    return gaps


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(counts.items()))
