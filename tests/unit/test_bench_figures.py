"""The statistics, the verdict on noise, the judgement of aims, the table and the JSON of the benchmarks."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from bench.aims import AIMS, Aim, judge, outcomes
from bench.figures import SCHEMA, Calibration, Figure, Key, Machine, Option, Report, quartiles
from bench.machine import Ticks, file_system
from bench.noise import verdict
from bench.table import HEADINGS, markdown, noise_lines, rows, show, summary

MACHINE = Machine(2, "a processor", 8 << 30, "6.1.0", "ext4", "3.11.2")
QUIET = Calibration("calls", 0.010, 0.001, 0.05, 0.0, 0.3)


def figure(workload: str, subject: str, *samples: float, clients: int = 1, noisy: str = "") -> Figure:
    return Figure("calls", Key(workload, subject, clients), "calls", samples, noisy)


def report(*figures: Figure) -> Report:
    options: dict[str, Option] = {"preset": "full", "rounds": 3, "against": None}
    return Report("2026-01-01T00:00:00+00:00", "abc1234", MACHINE, options, figures, (QUIET,))


# --- statistics -------------------------------------------------------------------------------------------


def test_quartiles_interpolate_between_the_samples() -> None:
    assert quartiles((1.0, 2.0, 3.0, 4.0, 5.0)) == (2.0, 4.0)
    assert quartiles((4.0, 1.0)) == (1.75, 3.25)
    assert quartiles((7.0,)) == (7.0, 7.0)
    with pytest.raises(ValueError, match="no samples"):
        quartiles(())


def test_one_outlier_moves_neither_the_median_nor_much_of_the_spread() -> None:
    steady = figure("stat", "dfs", 100, 101, 99, 100, 5)
    assert steady.median == 100
    assert not steady.is_scattered
    assert figure("stat", "dfs", 100, 300, 20, 180, 5).is_scattered


# --- noise ------------------------------------------------------------------------------------------------


def test_a_quiet_machine_is_not_called_noisy() -> None:
    slightly = msgspec.structs.replace(QUIET, arithmetic_s=0.0115, fsync_s=0.003, others=0.2, stolen=0.01)
    assert verdict([QUIET, QUIET, slightly]) == ""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"arithmetic_s": 0.02}, "arithmetic once took 2.0 times"),
        ({"fsync_s": 0.009}, "fsync once took 9.0 times"),
        ({"stolen": 0.2}, "hypervisor took 20%"),
    ],
)
def test_each_sign_of_noise_is_told_by_itself(change: dict[str, float], word: str) -> None:
    found = verdict([QUIET, QUIET, msgspec.structs.replace(QUIET, **change)])
    assert word in found
    assert ";" not in found


def test_a_neighbour_that_stays_is_noise_and_one_that_passes_by_is_not() -> None:
    busy = msgspec.structs.replace(QUIET, others=0.8)
    assert "others used 0.8 processors" in verdict([QUIET, busy, busy])
    assert verdict([QUIET, busy, QUIET]) == ""


def test_no_look_at_the_machine_proves_no_quiet() -> None:
    assert verdict([]) != ""


def test_processor_time_is_read_from_the_kernels_table() -> None:
    ticks = Ticks.now("cpu  100 20 30 1000 50 6 4 90 0 0\ncpu0 1 2 3")
    assert ticks.total_s == pytest.approx(13.0)
    assert ticks.stolen_s == pytest.approx(0.9)
    assert ticks.busy_s == pytest.approx(1.6)  # neither idle nor waiting nor stolen


def test_the_innermost_mount_names_the_file_system(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    point = str(tmp_path / "a b").replace(" ", "\\040")
    mounts = f"/dev/vda / ext4 rw 0 0\nmfs {point} fuse.mfs rw 0 0\n"
    assert file_system(tmp_path / "a b", mounts) == "fuse.mfs"
    assert file_system(tmp_path, mounts) == "ext4"


# --- aims -------------------------------------------------------------------------------------------------


def test_a_rate_is_judged_by_the_median() -> None:
    outcome = judge(Aim("mkdir", 1_000, 8), report(figure("mkdir", "dfs", 900, 1_100, 5_000, clients=8)))
    assert outcome is not None
    assert outcome.is_met
    assert outcome.share == pytest.approx(1.1)


def test_a_ratio_needs_what_it_is_compared_with() -> None:
    aim, own = Aim("put, fsynced", 0.8, against="3x cp + fsync"), figure("put, fsynced", "dfs", 300)
    assert judge(aim, report(own)) is None
    outcome = judge(aim, report(own, figure("put, fsynced", "3x cp + fsync", 400, noisy="storm")))
    assert outcome is not None
    assert outcome.reached == pytest.approx(0.75)
    assert not outcome.is_met
    assert outcome.noisy == "storm"


def test_a_figure_of_other_clients_is_no_outcome_of_the_aim() -> None:
    assert outcomes(report(figure("mkdir", "dfs", 9_000, clients=2))) == []


def test_no_aim_stands_in_the_table_twice() -> None:
    assert len({(aim.workload, aim.clients, aim.against) for aim in AIMS}) == len(AIMS)


# --- table ------------------------------------------------------------------------------------------------


def test_rows_stand_beside_what_they_are_compared_with() -> None:
    found = rows(
        report(
            figure("get to a file", "cp", 1_000),
            figure("mkdir", "dfs", 600),
            figure("get to a file", "dfs", 720),
        )
    )
    assert [row.cells[:3] for row in found] == [
        ("get to a file", "1", "dfs"),
        ("get to a file", "1", "cp"),
        ("mkdir", "1", "dfs"),
    ]
    own, cp, mkdir = found
    assert own.is_own
    assert cp.cells[HEADINGS.index("dfs is")] == "0.72x"
    assert cp.cells[HEADINGS.index("aim")] == ">= 0.8x"
    assert cp.verdict == "90% of it"
    assert mkdir.cells[HEADINGS.index("aim")] == ">= 1,200"
    assert mkdir.verdict == "50% of it"


def test_what_is_noisy_or_scattered_is_marked() -> None:
    quiet, noisy, scattered = rows(
        report(
            figure("mkdir", "dfs", 1_300),
            figure("touch", "dfs", 1_300, noisy="others used 2.0 processors"),
            figure("rm", "dfs", 100, 1_000, 5_000),
        )
    )
    median = HEADINGS.index("median")
    assert not quiet.cells[median].endswith("~")
    assert noisy.cells[median].endswith("~")
    assert scattered.cells[median].endswith("~")


def test_a_noisy_success_is_not_told_as_a_success() -> None:
    noisy = report(figure("mkdir", "dfs", 9_999, noisy="others used 2.0 processors"))
    assert rows(noisy)[0].verdict == "met (noisy)"
    assert noise_lines(noisy) == ["calls: TOO NOISY to conclude anything: others used 2.0 processors"]
    assert summary(noisy) == "1 of 1 aims met; 1 of them on a noisy machine"


def test_terminal_and_page_show_the_same_cells() -> None:
    found = report(figure("stat", "dfs", 7_000, clients=1), figure("stat", "local", 70_000))
    out = StringIO()
    show(found, Console(file=out, width=160))
    page = markdown(found)
    for row in rows(found):
        for cell in filter(None, row.cells):
            assert cell in out.getvalue()
            assert cell in page
    assert "2 cores (a processor), 8 GiB, Linux 6.1.0, ext4" in out.getvalue()


# --- JSON -------------------------------------------------------------------------------------------------


def test_a_saved_report_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = report(figure("stat", "dfs", 7_000.5, 8_000, clients=8, noisy="x"))
    saved.save(tmp_path / "deep" / "bench.json")
    assert Report.load(tmp_path / "deep" / "bench.json") == saved


def test_the_json_says_its_schema_and_other_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    msgspec.structs.replace(report(), schema=SCHEMA + 1).save(path)
    assert msgspec.json.decode(path.read_bytes())["schema"] == SCHEMA + 1
    with pytest.raises(ValueError, match=f"schema {SCHEMA + 1}"):
        Report.load(path)


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1}', '{"figures": 7}'])
def test_what_is_no_report_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"bench\.json is not a report"):
        Report.load(path)
