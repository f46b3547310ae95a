"""Fixtures of the command line tests: `run` types a command, `client` is what it talks to.

Owns: wiring. Refuses to know: verbs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from click.testing import CliRunner, Result

from dfs.cli.context import Cli
from dfs.cli.group import cli
from dfs.client import DfsClient
from dfs.testing.memory_client import MemoryClient


@pytest.fixture
def client() -> MemoryClient:
    return MemoryClient()


@pytest.fixture
def run(client: MemoryClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs one command line; each starts afresh, settings stay between them."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"DFS_SETTINGS": str(tmp_path / "metadata.json")})

    def type_command(*arguments: str | Path, stdin: bytes = b"", connected: bool = True) -> Result:
        context = Cli(client=cast(DfsClient, client) if connected else None)
        result = runner.invoke(cli, [str(argument) for argument in arguments], input=stdin, obj=context)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return type_command
