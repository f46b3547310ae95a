"""Log lines: one event, one line, nothing forged."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.errors import ConfigError
from dfs.log import VALUE_SIZE_MAX, LineFormatter, configure, format_value, get_logger


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Collect what the logger `dfs.test_log` writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("master", "m1"))
    logger = logging.getLogger("dfs.test_log")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield stream
    logger.removeHandler(handler)


def test_event_is_one_line_of_time_level_node_role_and_fields(lines: io.StringIO) -> None:
    get_logger("dfs.test_log").bind(req=7).info("chunk_published", handle=bytes(16), length=5, path="/a b")
    moment, rest = lines.getvalue().split(" ", 1)
    assert moment.endswith("Z")
    assert rest == f'INFO m1 master chunk_published req=7 handle={"00" * 16} length=5 path="/a b"\n'


def test_field_may_have_any_name(lines: io.StringIO) -> None:
    get_logger("dfs.test_log").info("odd", event=1, message=2, args=3, self_=4)
    assert "event=1 message=2 args=3 self_=4" in lines.getvalue()


def test_level_below_the_configured_one_is_silent(lines: io.StringIO) -> None:
    get_logger("dfs.test_log").debug("unheard")
    assert lines.getvalue() == ""


def test_percent_signs_of_an_event_are_not_interpreted(lines: io.StringIO) -> None:
    get_logger("dfs.test_log").info("full_100%d", path="%s")
    assert "full_100%d path=%s" in lines.getvalue()


@given(st.text(max_size=200))
def test_no_value_can_forge_a_line_or_a_field(text: str) -> None:
    value = format_value(text)
    assert len(value.splitlines()) == 1
    assert value.isprintable()
    if value != text:
        assert value.startswith('"')
        assert value.endswith('"')
        assert '"' not in value[1:-1].replace("\\\\", "").replace('\\"', "")
    else:
        assert not set(text) & set(' ="\n')


def test_payloads_and_endless_values_are_elided() -> None:
    assert format_value(b"x" * 100) == "<100 bytes>"
    assert len(format_value("x" * 100_000)) <= VALUE_SIZE_MAX + 3


def test_traceback_lines_cannot_be_mistaken_for_events(lines: io.StringIO) -> None:
    try:
        raise ValueError("bad\n2026-01-01T00:00:00.000Z INFO m1 master forged")
    except ValueError:
        get_logger("dfs.test_log").exception("call_failed", req=1)
    first, *rest = lines.getvalue().splitlines()
    assert "ERROR m1 master call_failed req=1" in first
    assert rest
    assert all(line.startswith("    | ") for line in rest)


def test_message_of_another_library_becomes_an_event(lines: io.StringIO) -> None:
    logging.getLogger("dfs.test_log").warning("hello %s", "a\nb")
    assert 'WARNING m1 master library_message logger=dfs.test_log text="hello a\\nb"' in lines.getvalue()


@pytest.fixture
def untouched_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, logging.raiseExceptions = handlers, raising
    root.setLevel(level)
    logging.captureWarnings(capture=False)


@pytest.mark.usefixtures("untouched_root")
def test_named_file_is_written_and_its_folder_made(tmp_path: Path) -> None:
    configure("chunk", "c1", "info", tmp_path / "logs" / "c1.log")
    get_logger("x").info("started", port=7421)
    assert "INFO c1 chunk started port=7421\n" in (tmp_path / "logs" / "c1.log").read_text()


@pytest.mark.usefixtures("untouched_root")
def test_environment_names_the_file_when_nobody_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DFS_LOG_FILE", str(tmp_path / "c1.log"))
    configure("chunk", "c1", "info", None)
    get_logger("x").info("started")
    assert "started" in (tmp_path / "c1.log").read_text()


@pytest.mark.usefixtures("untouched_root")
def test_without_a_file_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure("chunk", "c1", "warning", None)
    get_logger("x").info("whispered")
    get_logger("x").warning("shouted")
    written = capsys.readouterr().err
    assert "WARNING c1 chunk shouted\n" in written
    assert "whispered" not in written


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="debug, info, warning, error"):
        configure("chunk", "c1", "loud", None)
