"""Do the words about healing say what the numbers say, and are rates in cluster.ini read with their units?"""

from __future__ import annotations

from pathlib import Path

import pytest

from dfs.cli.healing import healing_json, healing_lines, is_excused, mode_text
from dfs.config import EMBEDDED_DEFAULT, MIB, parse_config, parse_rate
from dfs.errors import ConfigError
from dfs.ids import ServerId
from dfs.net.parts import BalanceStatus, HealingStatus, ServerInfo, ServerStatus


def server(state: str, mode: str, left: int = 0) -> ServerStatus:
    info = ServerInfo(ServerId(b"s" * 16), "c1", "h:1", "r", is_alive=True)
    return ServerStatus(info, state, 0.1, 1, 1, 1, (), mode, 0, left)


def test_a_healthy_cluster_has_nothing_to_say() -> None:
    assert list(healing_lines(HealingStatus(balance=BalanceStatus("even")))) == []


def test_lines_tell_what_waits_how_fast_and_until_when() -> None:
    healing = HealingStatus(
        waiting=(1, 2, 30),
        waiting_size=66 * MIB,
        deferred_count=4,
        blocked_count=5,
        blocked_reason="c2 is away",
        copying_count=6,
        rate=2 * MIB,
        eta_s=33.0,
        balance=BalanceStatus("waiting", 0.1, 0.25, 7 * MIB),
    )
    repair, safe, blocked, deferred, balance = healing_lines(healing)
    assert "33 chunks to copy (1 without a live replica, 2 with one, 30 with more), 66.0 MiB" in repair
    assert "6 under way, 2.0 MiB/s" in repair
    assert safe == "repair: chunks with one live replica: end not known yet"
    assert blocked.endswith("c2 is away")
    assert "4 chunks wait for a silent server" in deferred
    assert "7.0 MiB to move (waits for repair)" in balance
    assert healing_json(healing)["waiting"] == {"none": 1, "one": 2, "more": 30}
    assert healing_json(healing)["safe_eta_s"] is None


def test_modes_of_servers_are_shown_and_excuse_silence() -> None:
    assert mode_text(server("alive", "draining", 3)) == "alive, draining: 3 left"
    assert mode_text(server("alive", "drained")) == "alive, safe to power off"
    assert "maintenance until" in mode_text(server("dead", "maintenance"))
    assert is_excused(server("dead", "maintenance"))
    assert not is_excused(server("dead", ""))
    assert not is_excused(server("dead", "draining"))


@pytest.mark.parametrize(("text", "rate"), [("100 MiB/s", 100 * MIB), ("0", 0), ("0 B/s", 0), ("1.5 MiB / s", 3 << 19)])
def test_a_rate_is_a_size_per_second(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["100 MiB", "100 MiB/m", "fast", "100/s", "", "9999 TiB/s"])
def test_a_wrong_rate_names_file_section_and_key(text: str) -> None:
    source = EMBEDDED_DEFAULT.replace("repair_rate = 100 MiB/s ", f"repair_rate = {text} ")
    with pytest.raises(ConfigError, match=r"cluster\.ini: \[cluster\] repair_rate: "):
        parse_config(source, Path("cluster.ini"))
