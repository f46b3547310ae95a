"""The entry point of the `dfs` command.

Owns: what signals do to a run. Refuses to know: everything else; the rest is imported after the signals are settled.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    from dfs.cli.wall import EXIT_TERMINATED

    raise SystemExit(EXIT_TERMINATED)  # so that temporary files of a transfer are removed on the way out


def _open_standard_streams() -> None:
    """Put something under closed standard streams, so that no socket gets their number and their use is an error."""
    for number, flags, mode in ((0, os.O_WRONLY, "r"), (1, os.O_RDONLY, "w"), (2, os.O_WRONLY, "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number: this one
            stream = os.fdopen(number, mode, encoding="utf-8", closefd=False)
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)


def main() -> NoReturn:
    """Run `dfs` with the arguments of this process."""
    _open_standard_streams()
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
