"""The rules of names, which users meet first."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfs.errors import InvalidName
from dfs.paths import (
    NAME_SIZE_MAX,
    PATH_DEPTH_MAX,
    PATH_SIZE_MAX,
    basename,
    check_name,
    join,
    normalise,
    parent,
    split,
)

names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
typed = st.lists(st.one_of(names, st.sampled_from(["", ".", ".."])), min_size=1, max_size=8).map("/".join).filter(bool)


@pytest.mark.parametrize(
    ("path", "cwd", "expected"),
    [
        ("/", "/", "/"),
        ("a", "/", "/a"),
        ("a/", "/home", "/home/a"),
        ("..", "/home/me", "/home"),
        ("../../../..", "/home", "/"),
        ("//a///b/./c/", "/", "/a/b/c"),
        ("/a/../b", "/x", "/b"),
        (".", "/x/y", "/x/y"),
        ("-rf", "/", "/-rf"),
        ("with space\nand newline", "/", "/with space\nand newline"),
        ("ünïcødé/文", "/", "/ünïcødé/文"),
        ("...", "/", "/..."),
    ],
)
def test_typed_path_becomes_the_stored_one(path: str, cwd: str, expected: str) -> None:
    assert normalise(path, cwd) == expected


@given(path=typed, cwd=st.lists(names, max_size=3).map(lambda parts: "/" + "/".join(parts)))
def test_normalising_agrees_with_posix_and_is_stable(path: str, cwd: str) -> None:
    stored = normalise(path, cwd)
    assert stored == "/" + posixpath.normpath(posixpath.join(cwd, path)).lstrip("/")
    assert normalise(stored, "/elsewhere") == stored


@given(parts=st.lists(names, max_size=6))
def test_split_join_parent_and_basename_agree(parts: list[str]) -> None:
    path = "/"
    for part in parts:
        child = join(path, part)
        assert (parent(child), basename(child)) == (path, part)
        path = child
    assert split(path) == tuple(parts)


@pytest.mark.parametrize("path", ["", "/a\0b", "/\ud800", "/" + "n" * 256, "/" + "é" * 128])
def test_impossible_path_is_refused_by_name(path: str) -> None:
    with pytest.raises(InvalidName):
        normalise(path)


def test_limits_are_exact_in_bytes() -> None:
    assert split("/" + "n" * NAME_SIZE_MAX)
    assert split("/" + "é" * (NAME_SIZE_MAX // 2))
    assert split("/a" * PATH_DEPTH_MAX)
    with pytest.raises(InvalidName, match=f"limit of {PATH_DEPTH_MAX}"):
        split("/a" * (PATH_DEPTH_MAX + 1))
    longest = ("/" + "n" * NAME_SIZE_MAX) * (PATH_SIZE_MAX // (NAME_SIZE_MAX + 1))
    assert len(longest) == PATH_SIZE_MAX
    assert split(longest)
    with pytest.raises(InvalidName, match=f"limit of {PATH_SIZE_MAX}"):
        split(longest + "/x")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "nul\0", "n" * 256])
def test_component_that_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        check_name(name)


@pytest.mark.parametrize("path", ["a", "a/b", "", "/a//b", "/a/", "/a/../b", "/./a"])
def test_stored_path_that_is_not_normal_is_refused(path: str) -> None:
    with pytest.raises(InvalidName):
        split(path)


def test_root_has_no_components_and_is_its_own_parent() -> None:
    assert split("/") == ()
    assert parent("/") == "/"
    assert basename("/") == ""
