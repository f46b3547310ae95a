"""The entry point of the `dfs` command.

Owns: what signals do to a run. Refuses to know: everything else; the rest is imported after the signals are settled.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    from dfs.cli.wall import EXIT_TERMINATED

    raise SystemExit(EXIT_TERMINATED)  # so that temporary files of a transfer are removed on the way out


def main() -> NoReturn:
    """Run `dfs` with the arguments of this process."""
    is_interruptible = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # a shell's background job is not
    if is_interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules load: the end, without their tracebacks
    from dfs.cli.group import cli

    if is_interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end a verb
    cli.main()
