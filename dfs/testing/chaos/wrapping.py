"""Run a daemon in a process in which something was changed first: a safety taken away, a hook, a trap.

Owns: the words of such a command, and how `dfs` is run behind them. Refuses to know: what was changed.
"""

from __future__ import annotations

import runpy
import sys


def wrapped(module: str, *own: str) -> tuple[str, ...]:
    """Return the words before a daemon's command that run it in `module`; `own` are for that module."""
    return (sys.executable, "-P", "-m", module, *own)


def words_before() -> list[str]:
    """Return the words before `dfs`: first those for the module that wraps, then the daemon's interpreter's own."""
    return sys.argv[1 : sys.argv.index("dfs")]


def run_dfs() -> None:
    """Run `dfs` in this process, with the arguments after the first word `dfs`."""
    sys.argv = sys.argv[sys.argv.index("dfs") :]
    runpy.run_module("dfs", run_name="__main__", alter_sys=True)
