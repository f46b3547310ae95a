"""docs/performance.md, written from a saved report and saved curves.

Owns: the page. Refuses to know: how anything was measured. Run `make performance`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.curves import Curves
from bench.figures import Report
from bench.plots import PLOTS, draw
from bench.table import machine_line, markdown, options_line

HEAD = """\
# Performance

Written by `make performance`; do not edit. `make bench` measures the same on your machine, beside its own limits, in
about ten minutes; `make bench QUICK=1` in two.

| | |
| --- | --- |
| commit | {commit} |
| when | {when} |
| machine | {machine} |
| options | {options} |

All daemons, clients and disks share this one machine: three masters and four chunk servers, 3 replicas, every
acknowledged write fsynced on all of them (but for `put, unsynced`). Clients are processes. `dfs is` compares with the
line it stands in: 2.00x is twice as fast. `3x` makes three copies, as replication 3 stores three. A `~` marks what was
noisy, or where the quartiles of the rounds lie far apart.

"""
GROWTH = """\
## How cost grows

Measured at commit {commit}. `python -m bench.linear` measures the masters at 10,000 and at 1,000,000 files.

"""


def page(report: Report, curves: Curves, plots: str) -> str:
    """Return the page; `plots` is the folder of the SVG files as seen from it."""
    head = HEAD.format(
        commit=report.commit,
        when=report.when,
        machine=machine_line(report.machine),
        options=options_line(report),
    )
    pictures = [f"![{plot.title}]({plots}/growth-{name}.svg)\n" for name, plot in PLOTS.items() if curves.of(name)]
    return head + markdown(report) + "\n" + GROWTH.format(commit=curves.commit) + "\n".join(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.performance", description=__doc__.split("\n", 1)[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("curves", type=Path)
    parser.add_argument("page", type=Path)
    given = parser.parse_args()
    try:
        report, curves = Report.load(given.report), Curves.load(given.curves)
    except (OSError, ValueError) as error:
        sys.exit(f"FAILED: {error}")
    plots = given.page.with_suffix("")
    draw(curves, plots)
    given.page.write_text(page(report, curves, plots.name), encoding="utf-8")
    print(f"wrote {given.page} and {plots}")


if __name__ == "__main__":
    main()
