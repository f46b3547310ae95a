"""What every test gets without asking: a home of its own, so that no test reads or writes a person's settings.

Owns: isolation from the environment, and from how fast the machine is. Refuses to know: any single test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from dfs.fast_paths import VARIABLE

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(
    "any machine"
)  # both judge by the time that an example takes, also while others have the processor


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


@pytest.fixture(scope="module")
def all_fast_paths() -> Iterator[None]:
    """Leave no fast path out, whatever the run does: for modules that ask how the fast paths work.

    All others hold with and without them (`DFS_WITHOUT=all make test`).
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        yield
