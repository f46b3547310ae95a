"""cluster.ini: what is read, and how every mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfs import config
from dfs.config import (
    EMBEDDED_DEFAULT,
    find_config,
    load_config,
    parse_config,
    parse_duration,
    parse_size,
    split_address,
)
from dfs.errors import ConfigError
from dfs.net import frames, messages

SOURCE = Path("/etc/dfs/cluster.ini")


def changed(old: str, new: str) -> str:
    assert old in EMBEDDED_DEFAULT
    return EMBEDDED_DEFAULT.replace(old, new, 1)


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, SOURCE)
    return caught.value.message


def test_default_describes_three_masters_and_four_chunk_servers_on_loopback() -> None:
    cluster = parse_config(EMBEDDED_DEFAULT, SOURCE)
    assert [master.name for master in cluster.masters] == ["m1", "m2", "m3"]
    assert [server.name for server in cluster.chunk_servers] == ["c1", "c2", "c3", "c4"]
    addresses = [node.address for node in cluster.masters] + [node.address for node in cluster.chunk_servers]
    assert all(split_address(address)[0] == "127.0.0.1" for address in addresses)
    assert cluster.warnings == ()


def test_default_text_says_the_same_as_the_defaults_of_the_class() -> None:
    cluster = parse_config(EMBEDDED_DEFAULT, SOURCE)
    bare = "\n".join(
        line
        for line in EMBEDDED_DEFAULT.splitlines()
        if line.startswith(("[", "name", "secret_file", "run_dir", "address", "raft_address", "data_dir", "rack"))
    )
    assert parse_config(bare, SOURCE) == cluster


def test_relative_paths_start_at_the_folder_of_the_file() -> None:
    cluster = parse_config(changed("dfs-data/m1", "/var/lib/dfs/m1"), SOURCE)
    assert cluster.master("m1").data_dir == Path("/var/lib/dfs/m1")
    assert cluster.master("m2").data_dir == Path("/etc/dfs/dfs-data/m2")
    assert cluster.secret_file == Path("/etc/dfs/dfs-data/cluster.secret")


def test_several_data_directories_are_read_from_one_line_or_several() -> None:
    expected = (Path("/disk1/dfs"), Path("/disk2/dfs"))
    for text in ("/disk1/dfs, /disk2/dfs", "\n  /disk1/dfs\n  /disk2/dfs"):
        assert parse_config(changed("dfs-data/c1", text), SOURCE).chunk_server("c1").data_dirs == expected


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("dead_after = 10 s ", "dead_after = 10 ", ("[cluster]", "dead_after", "no unit", "ms s m h d")),
        ("64 MiB ", "64 MB ", ("[cluster]", "chunk_size", "did you mean MiB")),
        ("64 MiB ", "100 KiB ", ("[cluster]", "chunk_size", "multiple of 64 KiB")),
        ("64 MiB ", "1 GiB ", ("[cluster]", "chunk_size", "256 MiB")),
        ("dead_after", "dead_aftr", ("[cluster]", "'dead_aftr'", "did you mean 'dead_after'")),
        ("rack = r1", "colour = r1", ("[chunk:c1]", "'colour'", "allowed: address, data_dirs, rack")),
        ("[chunk:c1]", "[chnk:c1]", ("[chnk:c1]", "did you mean 'chunk'")),
        ("[chunk:c1]", "[chunk:]", ("[chunk:]", "name")),
        ("[chunk:c1]", "[DEFAULT]", ("[DEFAULT]", "unknown section")),
        ("[cluster]", "[cluster:x]", ("[cluster:x]", "unknown section")),
        ("[master:m2]", "[master:m1]", ("[master:m1]", "twice")),
        ("[chunk:c1]", "[chunk:m1]", ("[chunk:m1]", "already taken by [master:m1]")),
        ("name = dfs", "nam = dfs", ("[cluster]", "did you mean 'name'")),
        ("name = dfs", "", ("[cluster]", "name", "missing")),
        ("name = dfs", "name = a b", ("[cluster]", "name", "letters, digits")),
        ("127.0.0.1:7402", "127.0.0.1:7401", ("[master:m2]", "address", "already taken by [master:m1] address")),
        ("127.0.0.1:7421", "localhost:7411", ("[chunk:c1]", "already taken by [master:m1] raft_address")),
        ("127.0.0.1:7402", "0.0.0.0:7402", ("[master:m2]", "address", "cannot be connected to")),
        ("127.0.0.1:7402", "127.0.0.1", ("[master:m2]", "address", "host:port")),
        ("127.0.0.1:7402", "127.0.0.1:99999", ("[master:m2]", "address", "1 to 65535")),
        ("dfs-data/m2", "dfs-data/c1/../m1", ("[master:m2]", "data_dir", "already taken by [master:m1]")),
        ("dfs-data/c1", "~/c1", ("[chunk:c1]", "data_dirs", "whole path")),
        ("dfs-data/c1", "", ("[chunk:c1]", "data_dirs", "1 to 64")),
        ("replication = 3 ", "replication = 0 ", ("[cluster]", "replication", "from 1 to 16")),
        ("replication = 3 ", "replication = drei ", ("[cluster]", "replication", "'drei'")),
        ("fsync = yes", "fsync = maybe", ("[cluster]", "fsync", "'maybe'")),
        ("replicas_min = 1", "replicas_min = 4", ("[cluster]", "replicas_min", "replication")),
        ("dead_after = 10 s ", "dead_after = 1 s ", ("[cluster]", "dead_after", "heartbeat_interval")),
        ("repair_after = 60 s", "repair_after = 5 s", ("[cluster]", "repair_after", "dead_after")),
        ("timeout_min = 500 ms", "timeout_min = 1 s", ("[cluster]", "election_timeout_max", "election_timeout_min")),
        ("timeout_min = 500 ms", "timeout_min = 1 ms", ("[cluster]", "election_timeout_min", "50 ms")),
        ("client_timeout = 30 s", "client_timeout = 500 ms", ("[cluster]", "client_timeout", "change of leader")),
        ("session_expiry = 1 h", "session_expiry = 20 m", ("[cluster]", "session_expiry", "twice")),
        ("orphan_grace = 24 h", "orphan_grace = 5 m", ("[cluster]", "orphan_grace", "token_lifetime")),
        ("heartbeat_interval = 1 s", "heartbeat_interval = 0 s", ("[cluster]", "heartbeat_interval", "longer")),
        ("trash_keep = 3 d", "trash_keep = 9999 d", ("[cluster]", "trash_keep", "3650 d")),
        ("scrub_rate = 10 MiB/s", "scrub_rate = 0 B", ("[cluster]", "scrub_rate", "64 KiB", "scrub_period")),
        ("scrub_rate = 10 MiB/s", "scrub_rate = 10/s", ("[cluster]", "scrub_rate", "no unit")),
        ("scrub_rate = 10 MiB/s", "scrub_rate = 10", ("[cluster]", "scrub_rate", "no unit")),
        ("scrub_period = 14 d", "scrub_period = 14", ("[cluster]", "scrub_period", "no unit")),
        ("[cluster]", "name = x\n[cluster]", ("line 8", "before any [section]")),
        ("name = dfs", "name = dfs\nname = dfs", ("[cluster]", "name", "twice")),
        ("name = dfs", "name = dfs\nwhat is this", ("what is this", "key = value")),
    ],
)
def test_mistake_is_told_with_file_section_key_and_remedy(old: str, new: str, words: tuple[str, ...]) -> None:
    message = complaint(changed(old, new))
    assert message.startswith(f"{SOURCE}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_cluster_without_masters_is_refused() -> None:
    assert "no sections [master:NAME]" in complaint("[cluster]\nname=x\nsecret_file=s\nrun_dir=r\n")


def test_minimum_of_replicas_that_no_server_count_reaches_is_refused() -> None:
    head, _, _ = EMBEDDED_DEFAULT.partition("[chunk:c2]")
    assert "can never be reached" in complaint(head.replace("replicas_min = 1", "replicas_min = 2"))


def test_unwise_settings_are_warned_of_and_accepted() -> None:
    text = changed("fsync = yes", "fsync = no").partition("[chunk:c3]")[0]
    text = text.replace(
        "[master:m3]\naddress = 127.0.0.1:7403\nraft_address = 127.0.0.1:7413\ndata_dir = dfs-data/m3", ""
    )
    cluster = parse_config(text, SOURCE)
    assert len(cluster.warnings) == 3
    for warning, words in zip(cluster.warnings, ("odd number", "only 2 chunk servers", "power cut"), strict=True):
        assert words in warning


def test_unknown_node_is_told_with_the_known_names() -> None:
    cluster = parse_config(EMBEDDED_DEFAULT, SOURCE)
    with pytest.raises(ConfigError, match=r"\[master:m4\]; known names: m1, m2, m3"):
        cluster.master("m4")
    with pytest.raises(ConfigError, match="known names: c1, c2, c3, c4"):
        cluster.chunk_server("m1")


def test_named_file_wins_over_the_environment_and_that_over_the_folder(tmp_path: Path) -> None:
    assert find_config(None, {}, tmp_path) is None
    (tmp_path / "cluster.ini").write_text(EMBEDDED_DEFAULT)
    assert find_config(None, {}, tmp_path) == tmp_path / "cluster.ini"
    assert find_config(None, {"DFS_CONFIG": "other.ini"}, tmp_path) == tmp_path / "other.ini"
    assert find_config("/a/b.ini", {"DFS_CONFIG": "other.ini"}, tmp_path) == Path("/a/b.ini")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"# " + b"x" * config.CONFIG_SIZE_MAX])
def test_file_that_cannot_be_a_configuration_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "cluster.ini"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cluster\.ini"):
        load_config(path)


@pytest.mark.parametrize(
    ("text", "size"), [("0 B", 0), ("64KiB", 65536), ("1.5 MiB", 1572864), ("2 GiB", 2**31), ("1 TiB", 2**40)]
)
def test_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "64", "MiB", "-1 MiB", "0.3 B", "1e3 B", "1 MiB 2", "٣ B", "1" * 20 + " B", "1 s"]
)
def test_size_without_number_or_unit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("250 ms", 0.25), ("10s", 10), ("1.5 m", 90), ("2 h", 7200), ("3 d", 259200)]
)
def test_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "s", "-1 s", "10 S s", "10 min", "inf s", "nan s"])
def test_duration_without_number_or_unit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)


def test_ipv6_addresses_stand_in_brackets() -> None:
    assert split_address("[::1]:7401") == ("::1", 7401)
    with pytest.raises(ConfigError, match="brackets"):
        split_address("::1:7401")


def test_limits_agree_with_those_of_the_wire() -> None:
    assert config.REPLICATION_MAX == messages.REPLICATION_MAX
    assert config.CHUNK_SIZE_MAX == frames.PAYLOAD_SIZE_MAX


@pytest.mark.parametrize("text", ["10 MiB", "10 MiB/s", "10 MiB / s"])
def test_a_scrub_rate_is_written_as_the_other_rates_or_as_it_was_before(text: str) -> None:
    changed = EMBEDDED_DEFAULT.replace("scrub_rate = 10 MiB/s ", f"scrub_rate = {text} ")
    assert parse_config(changed, SOURCE).scrub_rate == 10 * 1024 * 1024
