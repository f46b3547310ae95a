"""Draw a timeline as SVG: throughput and latency, the faults as shaded spans with names, the gaps marked.

Owns: places, colours and words of the picture. Refuses to know: how the figures were made. No library: an SVG of lines,
boxes and words is text, and it opens in every browser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

from dfs.chaos.story import Moment
from dfs.chaos.timeline import CURVES, Timeline

WIDTH_MIN, WIDTH_MAX, LEFT, RIGHT = 1280, 6400, 74, 24
SECOND_WIDTH = 10  # of a long run: names of faults need room
TOP = 86  # title and legend
LANE = 20  # one row of fault names
PANEL = 210
SPACE = 46
COLOURS = {"reads": "#1f77b4", "changes": "#d4711a", "appends": "#2c8c3c"}
MEDIAN, SLOW = "#555555", "#b0286a"
FAULTS = {"kill": "#d62728", "pause": "#7b52ab", "restart": "#3a7ca5", "wipe": "#8c4a2f", "fill": "#b8860b"}
LETTER = 6.2  # width of a letter of 11 px, roughly
LATENCY_MIN_S = 0.001
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)


def draw(timeline: Timeline, title: str, subtitle: str) -> str:
    """Return the SVG."""
    return _Drawing(timeline, title, subtitle).svg()


class _Drawing:
    """One picture; x is time, each panel has its own y."""

    def __init__(self, timeline: Timeline, title: str, subtitle: str) -> None:
        self._timeline, self._title, self._subtitle = timeline, title, subtitle
        self._width = int(min(max(WIDTH_MIN, LEFT + RIGHT + timeline.duration_s * SECOND_WIDTH), WIDTH_MAX))
        self._lanes = lanes_of(timeline.moments, self._x, self._width - RIGHT)
        lanes = 1 + max(self._lanes, default=0)
        self._rates_top = TOP + lanes * LANE + 24
        self._latency_top = self._rates_top + PANEL + SPACE
        self._bottom = self._latency_top + PANEL
        self._height = self._bottom + 62

    def svg(self) -> str:
        view, font = f"0 0 {self._width} {self._height}", 'font-family="Helvetica, Arial, sans-serif" font-size="11"'
        size = f'width="{self._width}" height="{self._height}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="{view}" {font}>',
            f'<rect width="{self._width}" height="{self._height}" fill="white"/>',
            _text(LEFT, 28, self._title, size=18, weight="bold"),
            _text(LEFT, 47, self._subtitle, colour="#555555", size=12),
            *self._legend(),
            *self._faults(),
            *self._rates(),
            *self._gaps(),
            *self._latencies(),
            *self._times(),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _x(self, at_s: float) -> float:
        return LEFT + (self._width - LEFT - RIGHT) * min(max(at_s / self._timeline.duration_s, 0.0), 1.0)

    # --- what is around

    def _legend(self) -> Iterator[str]:
        x = float(LEFT)
        for curve in CURVES:
            yield _line(x, 65, x + 22, 65, COLOURS[curve], 2.5)
            yield _text(x + 28, 69, f"{curve} per second")
            x += 44 + LETTER * len(f"{curve} per second")
        for words, colour, dash in (("median latency", MEDIAN, ""), ("p99 latency", SLOW, "")):
            yield _line(x, 65, x + 22, 65, colour, 2, dash)
            yield _text(x + 28, 69, words)
            x += 44 + LETTER * len(words)
        yield _box(x, 58, 22, 13, FAULTS["kill"], 0.22)
        yield _box(x + 22, 58, 16, 13, FAULTS["kill"], 0.08)
        yield _text(x + 44, 69, "a fault stands, then recovery")
        x += 60 + LETTER * len("a fault stands, then recovery")
        yield _box(x, 61, 22, 7, "#111111", 0.85)
        yield _text(x + 28, 69, "no change succeeded")

    def _times(self) -> Iterator[str]:
        step_s = next((step for step in STEPS_S if self._timeline.duration_s / step <= 14), 1800)
        for number in range(int(self._timeline.duration_s / step_s) + 1):
            x = self._x(number * step_s)
            yield _line(x, self._bottom, x, self._bottom + 5, "#333333", 1)
            yield _text(x, self._bottom + 18, f"{number * step_s:g} s", anchor="middle")
        yield _text(
            (LEFT + self._width - RIGHT) / 2, self._bottom + 38, "seconds since the begin of the run", anchor="middle"
        )

    # --- faults and gaps

    def _faults(self) -> Iterator[str]:
        for moment, lane in zip(self._timeline.moments, self._lanes, strict=True):
            colour = FAULTS.get(moment.fault.partition("-")[0], "#444444")
            struck, lifted, whole = map(self._x, (moment.struck_s, moment.lifted_s, moment.whole_s))
            for top in (self._rates_top, self._latency_top):
                yield _box(struck, top, max(lifted - struck, 1.5), PANEL, colour, 0.16)
                yield _box(lifted, top, max(whole - lifted, 0.5), PANEL, colour, 0.06)
            y = TOP + lane * LANE
            yield _box(struck, y + 1, max(lifted - struck, 3), LANE - 3, colour, 0.35)
            yield _box(lifted, y + 1, max(whole - lifted, 1), LANE - 3, colour, 0.14)
            yield _line(struck, y + LANE - 2, struck, self._rates_top, colour, 0.7, "2,3")
            yield _text(_label_x(struck, moment, self._width - RIGHT), y + LANE - 6, label_of(moment), weight="bold")

    def _gaps(self) -> Iterator[str]:
        y = self._rates_top + PANEL - 7
        for gap in self._timeline.gaps:
            begin, end = self._x(gap.begin_s), self._x(gap.end_s)
            yield _box(begin, y, max(end - begin, 2), 7, "#111111", 0.85)
            yield _text((begin + end) / 2, y - 4, f"{gap.length_s:.1f} s", anchor="middle", weight="bold")

    # --- panels

    def _rates(self) -> Iterator[str]:
        top, timeline = self._rates_top, self._timeline
        ceiling = nice_ceiling(max((max(values, default=0.0) for values in timeline.rates.values()), default=0.0))
        yield from _frame(top, self._width, "calls per second")
        for share in (0.25, 0.5, 0.75, 1.0):
            y = top + PANEL * (1 - share)
            yield _line(LEFT, y, self._width - RIGHT, y, "#dddddd", 0.8)
            yield _text(LEFT - 8, y + 4, f"{ceiling * share:g}", anchor="end")
        yield _text(LEFT - 8, top + PANEL + 4, "0", anchor="end")
        for curve in CURVES:
            points = [
                (self._middle(slot), top + PANEL * (1 - v / ceiling)) for slot, v in enumerate(timeline.rates[curve])
            ]
            yield _curve(points, COLOURS[curve], 1.8)

    def _latencies(self) -> Iterator[str]:
        """The scale is logarithmic: a pause of seconds and a call of a millisecond are in one picture."""
        top, timeline = self._latency_top, self._timeline
        worst = max((value for value in timeline.slow_s if value is not None), default=LATENCY_MIN_S)
        decades = max(1, math.ceil(math.log10(max(worst, LATENCY_MIN_S * 1.01) / LATENCY_MIN_S)))
        yield from _frame(top, self._width, "latency of a call")
        for decade in range(decades + 1):
            y = top + PANEL * (1 - decade / decades)
            yield _line(LEFT, y, self._width - RIGHT, y, "#dddddd", 0.8)
            yield _text(LEFT - 8, y + 4, _time(LATENCY_MIN_S * 10**decade), anchor="end")
        for values, colour, width in ((timeline.slow_s, SLOW, 1.5), (timeline.median_s, MEDIAN, 1.8)):
            points: list[tuple[float, float]] = []
            for slot, value in enumerate(values):
                if value is None:  # nothing ended then: the line is broken, too
                    yield _curve(points, colour, width)
                    points = []
                    continue
                height = math.log10(max(value, LATENCY_MIN_S) / LATENCY_MIN_S) / decades
                points.append((self._middle(slot), top + PANEL * (1 - min(height, 1.0))))
            yield _curve(points, colour, width)

    def _middle(self, slot: int) -> float:
        return self._x((slot + 0.5) * self._timeline.slot_s)


def lanes_of(moments: Sequence[Moment], x_of: Callable[[float], float], right: float) -> list[int]:
    """Return a row for each fault such that no two names or spans of a row overlap."""
    free_from: list[float] = []
    lanes = []
    for moment in moments:
        begin, end = x_of(moment.struck_s), x_of(moment.whole_s)
        label = _label_x(begin, moment, right)
        begin, end = min(begin, label), max(end, label + LETTER * len(label_of(moment))) + 8
        lane = next((number for number, free in enumerate(free_from) if free <= begin), len(free_from))
        if lane == len(free_from):
            free_from.append(end)
        else:
            free_from[lane] = end
        lanes.append(lane)
    return lanes


def label_of(moment: Moment) -> str:
    return f"{moment.fault.replace('-', ' ')} {', '.join(moment.targets)}"


def nice_ceiling(value: float) -> float:
    """Return 1, 2, 4 or 8 times a power of ten, not below `value`: quarters of it are easy to read."""
    if value <= 0:
        return 4.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 8, 10) if factor * power >= value)


def _label_x(begin: float, moment: Moment, right: float) -> float:
    return min(begin + 4, right - LETTER * len(label_of(moment)))


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def _frame(top: float, width: float, words: str) -> Iterator[str]:
    yield _text(LEFT, top - 8, words, colour="#333333", size=12, weight="bold")
    yield (
        f'<rect x="{LEFT}" y="{top:g}" width="{width - LEFT - RIGHT:g}" height="{PANEL}" fill="none" stroke="#333333" '
        'stroke-width="1"/>'
    )


def _curve(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    if len(points) == 1:
        return f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="{width:g}" fill="{colour}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}" stroke-linejoin="round"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"{dashes}/>'
    )


def _box(x: float, y: float, width: float, height: float, colour: str, opacity: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}" fill="{colour}" '
        f'fill-opacity="{opacity:g}"/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    colour: str = "#222222",
    size: int = 11,
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill={quoteattr(colour)} font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )
