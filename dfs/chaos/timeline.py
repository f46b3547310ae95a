"""Turn the calls of a run into lines over time: how many a second, and how long they took.

Owns: the sums per slot of time. Refuses to know: pictures, and where calls come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dfs.chaos.history import TimedCall
from dfs.chaos.story import Moment, Story
from dfs.chaos.verdict import Gap, at_share

SLOTS_MAX = 240  # points of a line: more than a picture can show
SLOT_S_MIN = 0.25
CURVES = ("reads", "changes", "appends")


@dataclass(frozen=True, slots=True)
class Timeline:
    """Lists have one value per slot of `slot_s` seconds; a latency is `None` where no call ended."""

    duration_s: float
    slot_s: float
    rates: dict[str, list[float]]  # successful calls per second, by `CURVES`
    median_s: list[float | None]
    slow_s: list[float | None]  # the 99th percentile
    moments: tuple[Moment, ...]
    gaps: tuple[Gap, ...]


def draw_up(calls: Sequence[TimedCall], story: Story, gaps: Sequence[Gap]) -> Timeline:
    """Count the successful calls of a run by the moments of their ends."""
    duration_s = max(story.ended_s - story.began_s, SLOT_S_MIN)
    slot_s = max(SLOT_S_MIN, duration_s / SLOTS_MAX)
    count = max(1, int(duration_s / slot_s))
    counts = {curve: [0] * count for curve in CURVES}
    latencies: list[list[float]] = [[] for _ in range(count)]
    for call in calls:
        at_s = call.ended_s - story.began_s
        if call.outcome == "done" and 0 <= at_s < duration_s:
            slot = min(count - 1, int(at_s / slot_s))
            counts[curve_of(call)][slot] += 1
            latencies[slot].append(call.ended_s - call.begun_s)
    for ended in latencies:
        ended.sort()
    return Timeline(
        duration_s,
        slot_s,
        {curve: [value / slot_s for value in values] for curve, values in counts.items()},
        [at_share(ended, 0.5) if ended else None for ended in latencies],
        [at_share(ended, 0.99) if ended else None for ended in latencies],
        tuple(story.moments),
        tuple(gaps),
    )


def curve_of(call: TimedCall) -> str:
    if call.name == "append":
        return "appends"
    return "reads" if call.is_read else "changes"
