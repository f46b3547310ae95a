"""Plots and the page of the benchmarks are made of saved figures alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.curves import Curve, Curves
from bench.figures import Figure, Key, Machine, Option, Report
from bench.performance import page
from bench.plots import PLOTS, draw

MACHINE = Machine(2, "a processor", 8 << 30, "6.1.0", "ext4", "3.11.2")
CURVES = Curves(
    "abc1234",
    MACHINE,
    (
        Curve("size", "put, dfs", (4096, 1 << 20), (0.002, 0.02)),
        Curve("size", "put, local disk", (4096, 1 << 20), (0.001, 0.01)),
        Curve("clients", "stat", (1, 2, 4), (5000.0, 9000.0, 15000.0)),
    ),
)


def test_curves_become_one_svg_for_each_plot_with_its_lines(tmp_path: Path) -> None:
    paths = draw(CURVES, tmp_path / "plots")
    assert [path.name for path in paths] == ["growth-size.svg", "growth-clients.svg"]
    words = "".join(ET.fromstring(paths[0].read_text(encoding="utf-8")).itertext())
    for word in (PLOTS["size"].title, PLOTS["size"].x, "put, dfs", "put, local disk"):
        assert word in words


def test_the_same_curves_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = draw(CURVES, tmp_path / "first"), draw(CURVES, tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_curves_come_back_as_they_were_saved(tmp_path: Path) -> None:
    CURVES.save(tmp_path / "growth.json")
    assert Curves.load(tmp_path / "growth.json") == CURVES
    (tmp_path / "growth.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no curves"):
        Curves.load(tmp_path / "growth.json")


def test_the_page_tells_where_its_figures_come_from_and_shows_every_plot() -> None:
    figure = Figure("calls", Key("stat", "dfs", 1), "calls", (7_000.0,))
    options: dict[str, Option] = {"preset": "quick", "rounds": 1}
    report = Report("2026-01-01T00:00:00+00:00", "abc1234", MACHINE, options, (figure,), ())
    text = page(report, CURVES, "performance")
    for word in ("abc1234", "2026-01-01", "2 cores (a processor), 8 GiB, Linux 6.1.0, ext4", "preset quick, rounds 1"):
        assert word in text
    assert "7,000 calls/s" in text
    assert text.count("](performance/growth-") == 2
