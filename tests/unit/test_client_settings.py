"""Do the user's settings survive, stay private, and complain clearly when they are damaged?"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from dfs.client import plan
from dfs.client import settings as settings_module
from dfs.client.settings import FILE_SIZE_MAX, Settings, settings_path
from dfs.errors import ConfigError


def test_missing_file_gives_the_defaults(tmp_path: Path) -> None:
    assert Settings.load(tmp_path / "metadata.json") == Settings()


def test_saved_settings_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "metadata.json"
    saved = Settings(
        cwd="/a b/ü",
        config="/etc/cluster.ini",
        masters=("h1:1", "h2:2"),
        cluster="main",
        secret_file="~/secret",
        replication=2,
        timeout_s=12.5,
        output="json",
    )
    saved.save(path)
    assert Settings.load(path) == saved


def test_settings_file_is_private_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_text("{}")
    path.chmod(0o644)
    Settings().save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in tmp_path.iterdir()] == ["metadata.json"]


def test_unknown_keys_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_text('{"cwd": "/a", "colour": {"ls": true}}')
    settings = Settings.load(path)
    settings.cwd = "/b"
    settings.save(path)
    values = json.loads(path.read_text())
    assert values["colour"] == {"ls": True}
    assert values["cwd"] == "/b"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "damaged"),
        ('{"cwd": "/a"', "damaged"),
        ("\x00\x01", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "JSON object"),
        ('{"cwd": 7}', "'cwd'"),
        ('{"cwd": "relative"}', "'cwd'"),
        ('{"cwd": "/a/../b"}', "'cwd'"),
        ('{"masters": "h:1"}', "'masters'"),
        ('{"masters": [1]}', "'masters'"),
        ('{"replication": true}', "'replication'"),
        ('{"replication": -1}', "'replication'"),
        ('{"timeout_s": 0}', "'timeout_s'"),
        ('{"timeout_s": NaN}', "'timeout_s'"),
        ('{"output": "xml"}', "'output'"),
        ('{"secret_file": ""}', "'secret_file'"),
    ],
)
def test_damaged_file_is_an_error_that_says_the_way_out(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Settings.load(path)
    assert word in caught.value.message
    assert f"rm {path}" in caught.value.message
    assert path.read_text() == text


def test_file_that_is_not_utf_8_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_bytes(b'{"cwd": "/\xff"}')
    with pytest.raises(ConfigError, match="damaged"):
        Settings.load(path)


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    with path.open("wb") as file:
        file.truncate(FILE_SIZE_MAX + 1)
    with pytest.raises(ConfigError, match="over"):
        Settings.load(path)


@pytest.mark.parametrize("change", [{"cwd": "x"}, {"replication": 99}, {"output": "xml"}, {"timeout_s": -1.0}])
def test_impossible_settings_are_not_saved(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "metadata.json"
    settings = Settings()
    for key, value in change.items():
        setattr(settings, key, value)
    with pytest.raises(ConfigError):
        settings.save(path)
    assert not path.exists()


def test_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metadata.json"
    Settings(cwd="/old").save(path)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ConfigError, match="No space left"):
        Settings(cwd="/new").save(path)
    assert Settings.load(path).cwd == "/old"
    assert [found.name for found in tmp_path.iterdir()] == ["metadata.json"]


def test_a_linked_settings_file_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "metadata.json"
    real.write_text("{}")
    link.symlink_to(real)
    Settings(cwd="/x").save(link)
    assert link.is_symlink()
    assert Settings.load(real).cwd == "/x"


def test_limit_of_masters_is_the_client_s() -> None:
    assert settings_module.MASTERS_MAX == plan.MASTERS_MAX


def test_place_of_the_file_can_be_chosen_by_the_environment(tmp_path: Path) -> None:
    assert settings_path({"DFS_SETTINGS": str(tmp_path / "mine.json")}) == tmp_path / "mine.json"
    assert settings_path({}).name == "metadata.json"
    assert settings_path({"DFS_SETTINGS": ""}).is_absolute()
