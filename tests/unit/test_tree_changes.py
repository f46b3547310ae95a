"""Is the difference of two trees told completely, with renames seen as renames?

Owns: comparisons by example and against a naive one. Refuses to know: clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from dfs.client.tree_changes import Change, ChangeKind, Listing, compare_trees
from dfs.net.parts import FileStatus, Kind

Tree = dict[str, tuple[int, int]]  # relative path -> (inode, version); version 0 is a directory


def listing(tree: Tree) -> Listing:
    def entries(directory: str) -> Iterator[FileStatus]:
        for path, (inode, version) in sorted(tree.items()):
            parent, _, name = path.rpartition("/")
            if parent == directory:
                kind = Kind.FILE if version else Kind.DIRECTORY
                yield FileStatus(name, kind, 0, 0, 0, inode, version, 1 if version else 0, 0)

    return entries


def changes(old: Tree, new: Tree) -> list[str]:
    return [
        f"{change.kind.value} {change.source + ' -> ' if change.source else ''}{change.path}"
        for change in compare_trees(listing(old), listing(new))
    ]


def test_nothing_changed_is_nothing_told() -> None:
    tree: Tree = {"a": (2, 0), "a/f": (3, 3), "g": (4, 9)}
    assert changes(tree, dict(tree)) == []


def test_created_deleted_and_modified_are_told_by_path() -> None:
    old: Tree = {"a": (2, 0), "a/f": (3, 3), "gone": (4, 4), "same": (5, 5)}
    new: Tree = {"a": (2, 0), "a/f": (3, 8), "a/new": (6, 6), "same": (5, 5)}
    assert changes(old, new) == ["modified a/f", "created a/new", "deleted gone"]


def test_a_new_directory_stands_for_all_in_it() -> None:
    assert changes({}, {"d": (2, 0), "d/f": (3, 3)}) == ["created d"]


def test_a_renamed_directory_is_compared_with_what_it_was() -> None:
    old: Tree = {"d": (2, 0), "d/f": (3, 3), "d/x": (4, 4)}
    new: Tree = {"e": (2, 0), "e/f": (3, 7), "e/y": (4, 4)}
    assert changes(old, new) == ["renamed d -> e", "modified e/f", "renamed d/x -> e/y"]


def test_what_moved_between_directories_is_a_rename() -> None:
    old: Tree = {"a": (2, 0), "a/f": (3, 3), "b": (4, 0)}
    new: Tree = {"a": (2, 0), "b": (4, 0), "b/f": (3, 3)}
    assert changes(old, new) == ["renamed a/f -> b/f"]


def test_a_file_in_the_place_of_a_directory_is_both_told() -> None:
    assert changes({"x": (2, 0)}, {"x": (3, 3)}) == ["created x", "deleted x"]


def test_a_new_file_of_an_old_name_is_a_modification() -> None:
    assert changes({"x": (2, 2)}, {"x": (3, 3)}) == ["modified x"]


@pytest.mark.parametrize("seed", range(50))
def test_applying_the_changes_to_the_old_names_gives_the_new_ones(seed: int) -> None:
    rng = Random(seed)
    old = _grown({}, rng, 1, 8)
    new = _grown({path: item for path, item in old.items() if rng.random() < 0.9 or not item[1]}, rng, 100, 4)
    files = {path for path, (_, version) in old.items() if version}
    for change in compare_trees(listing(old), listing(new)):
        files = _applied(change, files, new)
    assert files == {path for path, (_, version) in new.items() if version}


def _grown(tree: Tree, rng: Random, first: int, count: int) -> Tree:
    made = dict(tree)
    for inode in range(first, first + count):
        directories = ["", *[path for path, (_, version) in made.items() if not version]]
        name = rng.choice("abcdef")
        parent = rng.choice(directories)
        path = f"{parent}/{name}" if parent else name
        if path not in made:
            made[path] = (inode, 0 if rng.random() < 0.4 else inode)
    return made


def _applied(change: Change, files: set[str], new: Tree) -> set[str]:
    """No tree here has renames, so each change stands for itself."""
    assert change.kind is not ChangeKind.RENAMED
    below = {path for path in files if path == change.path or path.startswith(change.path + "/")}
    if change.kind is ChangeKind.DELETED:
        return {path for path in files if path not in below or new.get(path, (0, 0))[1]}
    return files | {
        path
        for path, (_, version) in new.items()
        if version and (path == change.path or path.startswith(change.path + "/"))
    }
