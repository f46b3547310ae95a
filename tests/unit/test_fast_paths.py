"""Is a fast path off exactly when the environment names it?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfs.errors import ConfigError
from dfs.fast_paths import ALL, VARIABLE, FastPath, is_on, left_out

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_all_are_on_by_default() -> None:
    assert all(is_on(path, {}) for path in FastPath)


def test_what_is_named_is_off_and_nothing_else() -> None:
    for named in FastPath:
        assert [path for path in FastPath if not is_on(path, {VARIABLE: f" {named}, "})] == [named]


@pytest.mark.parametrize("words", [ALL, f"fan-out, {ALL}", ",".join(FastPath)])
def test_one_word_leaves_all_out(words: str) -> None:
    assert left_out({VARIABLE: words}) == set(FastPath)


@pytest.mark.parametrize("words", ["fan-uot", "fan-out,fan-uot", f"{ALL},fan-uot"])
def test_a_misspelt_name_is_refused_and_the_right_ones_are_told(words: str) -> None:
    with pytest.raises(ConfigError, match=r"names fan-uot; .*fan-out.*all$"):
        is_on(FastPath.FAN_OUT, {VARIABLE: words})


def test_operators_find_each_of_them_explained() -> None:
    section = OPERATIONS.read_text("utf-8").partition("## Leave a fast path out")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)) == sorted(FastPath)
