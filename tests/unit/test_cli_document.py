"""docs/cli.md shows the help of every verb, word for word. `python tests/unit/test_cli_document.py` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dfs.cli.group import cli
from dfs.cli.verbs import VERBS

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"
WIDTH = 98
_BLOCK = re.compile(r"```text\n(Usage: dfs.*?)\n```", re.DOTALL)
_VERB = re.compile(r"Usage: dfs((?: [a-z][a-z-]*)+)")


def usage(*words: str) -> str:
    about = click.Context(cli, info_name="dfs", terminal_width=WIDTH)
    for word in words:
        assert isinstance(about.command, click.Group)
        command = about.command.get_command(about, word)
        assert command is not None, words
        about = click.Context(command, info_name=word, parent=about)
    return about.get_help().rstrip()


def verbs_of(block: str) -> list[tuple[str, ...]]:
    return [tuple(match.split()) for match in _VERB.findall(block)]


def every_verb() -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    root = click.Context(cli)
    for name in VERBS:
        command = cli.get_command(root, name)
        found.add((name,))
        if isinstance(command, click.Group):
            found |= {(name, inner) for inner in command.list_commands(root)}
    return found


def written_anew(text: str) -> str:
    def block(match: re.Match[str]) -> str:
        usages = "\n\n".join(usage(*words) for words in verbs_of(match.group(1)))
        return f"```text\n{usages}\n```"

    return _BLOCK.sub(block, text)


def test_the_document_shows_every_verb_once_and_as_its_help_is() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert text == written_anew(text), "run: .venv/bin/python tests/unit/test_cli_document.py"
    shown = [words for match in _BLOCK.findall(text) for words in verbs_of(match)]
    assert sorted(shown) == sorted(every_verb())


if __name__ == "__main__":
    DOCUMENT.write_text(written_anew(DOCUMENT.read_text("utf-8")), "utf-8")
