"""The measures of CONTRIBUTING.md as tests: a house stays tidy only when untidiness fails the build.

Owns: rules about the shape of the code. Refuses to know: what the code does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dfs.config_default import EMBEDDED_DEFAULT

ROOT = Path(__file__).parent.parent
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
MODULE_LINES_MEDIAN_MAX = 250
FORBIDDEN_NAMES = frozenset({"utils", "util", "common", "helper", "helpers", "manager", "managers", "misc"})
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")  # tidy: the rule itself
SHIPPED = sorted((ROOT / "dfs").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHES = sorted((ROOT / "bench").rglob("*.py"))
ALL = [*SHIPPED, *TESTS, *BENCHES]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def test_there_is_something_to_check() -> None:
    assert len(SHIPPED) > 20
    assert len(TESTS) > 10


@pytest.mark.parametrize("path", SHIPPED, ids=shown)
def test_module_says_what_it_owns_and_what_it_refuses_to_know(path: Path) -> None:
    docstring = ast.get_docstring(parsed(path))
    assert docstring, f"{shown(path)} has no docstring"
    assert docstring.splitlines()[0].endswith((".", "!", "?", ":")), "the first line is a sentence"
    if len(path.read_text(encoding="utf-8").splitlines()) > 10:
        for words in ("Owns:", "Refuses to know:"):
            assert words in " ".join(docstring.split()), f"the docstring of {shown(path)} lacks {words!r}"


@pytest.mark.parametrize("path", SHIPPED, ids=shown)
def test_public_class_says_what_it_is(path: Path) -> None:
    silent = [
        node.name
        for node in parsed(path).body
        if isinstance(node, ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not speaks_for_itself(path, node)
    ]
    assert not silent, f"classes without a docstring: {silent}"


def speaks_for_itself(path: Path, node: ast.ClassDef) -> bool:
    """Errors and wire messages are named by the fact; their fields carry the comments."""
    return path.name in ("errors.py", "parts.py", "commands.py") or path.parent.name == "messages"


@pytest.mark.parametrize("path", ALL, ids=shown)
def test_no_module_is_longer_than_its_cap(path: Path) -> None:
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count <= MODULE_LINES_MAX, f"{shown(path)} has {count} lines: find the second noun in it"


def test_modules_stay_short_in_the_median() -> None:
    counts = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in SHIPPED)
    assert counts[len(counts) // 2] <= MODULE_LINES_MEDIAN_MAX


@pytest.mark.parametrize("path", ALL, ids=shown)
def test_no_function_is_longer_than_its_cap(path: Path) -> None:
    long = {
        node.name: size
        for node in functions(parsed(path))
        if (size := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert not long, f"functions over {FUNCTION_LINES_MAX} lines: {long}"


@pytest.mark.parametrize("path", ALL, ids=shown)
def test_every_function_says_what_it_returns(path: Path) -> None:
    silent = [f"{node.name} (line {node.lineno})" for node in functions(parsed(path)) if node.returns is None]
    assert not silent, f"without a return annotation: {silent}"


@pytest.mark.parametrize("path", ALL, ids=shown)
def test_file_is_named_by_a_noun_that_means_something(path: Path) -> None:
    words = path.stem.removeprefix("test_").split("_")
    assert not FORBIDDEN_NAMES & set(words), f"{shown(path)}: say what it is"


@pytest.mark.parametrize("path", ALL, ids=shown)
def test_nothing_is_left_unfinished(path: Path) -> None:
    marked = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if UNFINISHED.search(line) and "tidy: the rule itself" not in line
    ]
    assert not marked


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.name != "decoders.py"], ids=shown)
def test_decoders_are_made_where_one_thread_at_a_time_makes_them(path: Path) -> None:
    made = [
        f"{ast.unparse(node.func)} (line {node.lineno})"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func).endswith((".Decoder", "msgspec.convert"))
            or (re.search(r"(json|msgpack)\.decode$", ast.unparse(node.func)) and node.keywords)
        )
    ]
    assert not made, f"made past dfs/decoders.py: {made}"


@pytest.mark.parametrize("path", [*SHIPPED, *TESTS], ids=shown)
def test_nothing_draws_from_the_generator_that_all_share(path: Path) -> None:
    """It is the user's program's (dfs/jitter.py), and hypothesis fails tests during which others draw from it."""
    drawn = [
        f"random.{node.attr} (line {node.lineno})"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value) == "random"
        and node.attr not in ("Random", "SystemRandom")
    ]
    assert not drawn or path.name == "test_jitter.py"


@pytest.mark.parametrize("path", [path for path in TESTS if path.name.startswith("test_")], ids=shown)
def test_every_test_is_a_claim_that_can_fail(path: Path) -> None:
    """A name of at least three words, and at least one assertion (an assert, a raises, or a checker that asserts)."""
    checkers = {node.name for node in functions(parsed(path)) if asserts_something(node, set())}
    for node in functions(parsed(path)):
        if node.name.startswith("test_"):
            assert node.name.count("_") >= 3, f"{node.name} does not say what is claimed"
            assert asserts_something(node, checkers), f"{node.name} asserts nothing"


def asserts_something(function: Function, checkers: set[str]) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if (
                name in checkers
                or name in ("raises", "fail", "warns")
                or name.startswith(("check", "assert", "run_state"))
            ):
                return True
    return False


@pytest.mark.parametrize("path", SHIPPED, ids=shown)
def test_broad_except_never_swallows_in_silence(path: Path) -> None:
    """It logs with the traceback, raises, or hands the exception on."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ExceptHandler) and catches_all(node):
            body = ast.Module(body=node.body, type_ignores=[])
            used = {name.id for name in ast.walk(body) if isinstance(name, ast.Name)}
            assert node.name in used or re.search(r"\braise\b|\.exception\(|exc_info|traceback", ast.unparse(body)), (
                f"{shown(path)} line {node.lineno} swallows every exception in silence"
            )


def catches_all(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(name is None or ast.unparse(name) in ("Exception", "BaseException") for name in names)


def test_cluster_ini_of_the_repository_is_the_embedded_default() -> None:
    assert (ROOT / "cluster.ini").read_text(encoding="utf-8") == EMBEDDED_DEFAULT


def test_relative_links_between_the_documents_lead_somewhere() -> None:
    broken = []
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{shown(document)} -> {target}")
    assert not broken


def test_tests_that_the_documents_name_exist() -> None:
    names = {node.name for path in TESTS for node in functions(parsed(path))}
    for document in [ROOT / "README.md", ROOT / "docs" / "guarantees.md"]:
        named = set(re.findall(r"`(test_\w+)`", document.read_text(encoding="utf-8")))
        assert named <= names, f"{document.name} names tests that do not exist: {sorted(named - names)}"
