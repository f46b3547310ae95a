"""Is a fast path off exactly when the environment names it?"""

from __future__ import annotations

import pytest

from dfs.errors import ConfigError
from dfs.fast_paths import VARIABLE, FastPath, is_on


def test_all_are_on_by_default() -> None:
    assert all(is_on(path, {}) for path in FastPath)


def test_what_is_named_is_off_and_nothing_else() -> None:
    for named in FastPath:
        assert [path for path in FastPath if not is_on(path, {VARIABLE: f" {named}, "})] == [named]


def test_a_misspelt_name_is_refused_and_the_right_ones_are_told() -> None:
    with pytest.raises(ConfigError, match=r"fan-uot.*fan-out"):
        is_on(FastPath.FAN_OUT, {VARIABLE: "fan-uot"})
