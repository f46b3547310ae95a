"""What a report says, as rows: for the terminal by rich, for a page as Markdown.

Owns: which rows there are and what stands in them. Refuses to know: how figures are made and judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.aims import AIMS, DFS, Outcome, judge, outcomes, ratio
from bench.figures import Figure, Key, Machine, Report
from dfs.config import GIB

HEADINGS: Final = ("workload", "clients", "who", "median", "quartiles", "dfs is", "aim", "")
_RIGHT = (1, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `cells` are by `HEADINGS`; `verdict` is "met", "missed", "noisy" or nothing, `is_own` is dfs."""

    cells: tuple[str, ...]
    verdict: str
    is_own: bool


def rows(report: Report) -> list[Row]:
    """Return a row for each figure, workload by workload, dfs before those that it is compared with."""
    found: list[Row] = []
    places = list(dict.fromkeys((figure.key.workload, figure.key.clients) for figure in report.figures))
    order = {workload: number for number, (workload, _) in reversed(list(enumerate(places)))}
    for workload, clients in sorted(places, key=lambda place: (order[place[0]], place[1])):
        beside = [f for f in report.figures if (f.key.workload, f.key.clients) == (workload, clients)]
        own = report.figure(Key(workload, DFS, clients))
        found += [_row(figure, own, report) for figure in sorted(beside, key=lambda figure: figure.key.subject != DFS)]
    return found


def _row(figure: Figure, own: Figure | None, report: Report) -> Row:
    key, is_own = figure.key, figure is own
    against = "" if is_own else key.subject
    aim = next((a for a in AIMS if a.key == Key(key.workload, DFS, key.clients) and a.against == against), None)
    outcome = judge(aim, report) if aim is not None else None
    compared = "" if is_own or own is None else f"{ratio(own, figure):.2f}x"
    verdict = verdict_of(outcome) if outcome is not None else ""
    low, high = figure.quartiles
    mark = " ~" if figure.noisy or figure.is_scattered else ""
    cells = (
        key.workload,
        str(key.clients),
        key.subject,
        f"{number(figure.median)} {figure.unit}/s{mark}",
        f"{number(low)} - {number(high)}",
        compared,
        "" if aim is None else aim_text(aim.at_least, against),
        verdict,
    )
    return Row(cells, verdict, is_own)


def verdict_of(outcome: Outcome) -> str:
    """Say in a word or two how an aim fared; a noisy miss proves nothing, nor does a noisy success."""
    if outcome.is_met:
        return "met (noisy)" if outcome.noisy else "met"
    return f"{outcome.share:.0%} of it" + (" (noisy)" if outcome.noisy else "")


def aim_text(at_least: float, against: str) -> str:
    return f">= {at_least:g}x" if against else f">= {at_least:,.0f}"


def number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def noise_lines(report: Report) -> list[str]:
    """Say of each group whether anything may be concluded from it."""
    groups = dict.fromkeys((figure.group, figure.noisy) for figure in report.figures)
    lines = [f"{group}: TOO NOISY to conclude anything: {why}" for group, why in groups if why]
    return lines or ["The machine was quiet enough in all groups."]


def summary(report: Report) -> str:
    judged = outcomes(report)
    met = sum(outcome.is_met for outcome in judged)
    noisy = sum(bool(outcome.noisy) for outcome in judged)
    return f"{met} of {len(judged)} aims met" + (f"; {noisy} of them on a noisy machine" if noisy else "")


def machine_line(machine: Machine) -> str:
    return (
        f"{machine.cpus} cores ({machine.cpu}), {machine.memory / GIB:.0f} GiB, Linux {machine.kernel}, "
        f"{machine.file_system}, Python {machine.python}"
    )


def options_line(report: Report) -> str:
    return ", ".join(f"{name} {value}" for name, value in report.options.items() if value is not None)


def show(report: Report, console: Console) -> None:
    """Print the table, the verdict on the machine, and how many aims are met."""
    table = Table(title=f"dfs {report.commit}, {report.when}", caption=machine_line(report.machine))
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index in _RIGHT else "left", no_wrap=True)
    last = ""
    for row in rows(report):
        if last and row.cells[0] != last:
            table.add_section()
        last = row.cells[0]
        table.add_row(*[Text(cell) for cell in row.cells], style="bold" if row.is_own else None)
    console.print(table)
    for line in noise_lines(report):
        console.print(line, markup=False, highlight=False)
    console.print("~ marks what is noisy or scattered.", summary(report) + ".", markup=False, highlight=False)


def markdown(report: Report) -> str:
    """Return the same as Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |"]
    lines.append("|" + "|".join(" ---: " if index in _RIGHT else " --- " for index in range(len(HEADINGS))) + "|")
    for row in rows(report):
        cells = [
            f"**{cell}**" if row.is_own and cell and index in (2, 3) else cell for index, cell in enumerate(row.cells)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *noise_lines(report), "", f"{summary(report)}.", ""])
