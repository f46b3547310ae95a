"""What every test gets without asking: a home of its own, so that no test reads or writes a person's settings.

Owns: isolation from the environment. Refuses to know: any single test.
"""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point HOME and the XDG folders at an empty folder and forget all DFS_ variables."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("DFS_CONFIG", "DFS_SETTINGS", "DFS_LOG_FILE"):
        monkeypatch.delenv(variable, raising=False)
    return home
