"""Curves as SVG files, by matplotlib (the optional extra `bench`).

Owns: axes and titles. Refuses to know: where the points come from. The same curves give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.curves import Curves


class Plot(NamedTuple):
    title: str
    x: str
    y: str
    is_log: bool  # the y axis; x always is


PLOTS: Final = {
    "size": Plot("One file, 3 replicas, fsynced", "bytes of the file", "seconds", True),
    "count": Plot("A tree of 4 KiB files", "files", "microseconds for each file", True),
    "entries": Plot("One directory", "entries", "microseconds", True),
    "clients": Plot("Single calls", "client processes", "calls per second", False),
}
SIZE_INCHES: Final = (6.4, 4.0)


def draw(curves: Curves, folder: Path) -> list[Path]:
    """Draw what there are curves of; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(name, plot, curves, folder) for name, plot in PLOTS.items() if curves.of(name)]


def _draw(name: str, plot: Plot, curves: Curves, folder: Path) -> Path:
    path = folder / f"growth-{name}.svg"
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        for curve in curves.of(name):
            axes.plot(curve.x, curve.y, marker="o", markersize=4, label=curve.line)
        axes.set_xscale("log", base=2 if name in ("size", "clients") else 10)
        if plot.is_log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_title(plot.title)
        axes.set_xlabel(plot.x)
        axes.set_ylabel(plot.y)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
    return path
