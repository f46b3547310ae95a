"""The error wall: every failure becomes one line on stderr and one documented exit code.

Owns: the table of exit codes, the text of an error line, and going on after one of several operands failed.
Refuses to know: verbs, and how an error came about.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Final

import click

from dfs.cli.output import escape_controls
from dfs.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    DeadlineExceeded,
    DfsError,
    NoQuorum,
    NotFound,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    TokenInvalid,
    VersionMismatch,
)

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_FOUND: Final = 3
EXIT_UNREACHABLE: Final = 4
EXIT_REFUSED: Final = 5
EXIT_CONFIG: Final = 6
EXIT_DATA_MISSING: Final = 7
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141
EXIT_TERMINATED: Final = 143

# What scripts may rely on; docs/cli.md and `dfs --help` print this table.
EXIT_CODES: Final = (
    (
        EXIT_OK,
        "done; for `test`: true; for `status` and `fsck`: healthy; for `doctor`: nothing failed; for `chaos`: all held",
    ),
    (
        EXIT_FAILED,
        "an operation failed; for `test`: false; for `status`: degraded; for `fsck`: NOT healthy; for `chaos`: broken",
    ),
    (EXIT_USAGE, "an unknown verb, a bad option or a bad argument; for `chaos`: refused, or nothing concluded"),
    (EXIT_NOT_FOUND, "a file, directory, snapshot or server does not exist (remote or local)"),
    (EXIT_UNREACHABLE, "the cluster did not answer in time: no quorum, connection failed, deadline passed"),
    (EXIT_REFUSED, "the cluster refused this client: wrong secret or incompatible version"),
    (EXIT_CONFIG, "cluster.ini or metadata.json is missing or wrong"),
    (EXIT_DATA_MISSING, "`fsck`: bytes cannot be read: a chunk has no good live replica"),
    (EXIT_INTERRUPTED, "interrupted with Ctrl-C"),
    (EXIT_BROKEN_PIPE, "the reader of our output went away"),
    (EXIT_TERMINATED, "terminated by SIGTERM"),
)

_CODE_OF: Final[tuple[tuple[type[BaseException], int], ...]] = (
    (AuthenticationFailed, EXIT_REFUSED),
    (TokenInvalid, EXIT_REFUSED),
    (VersionMismatch, EXIT_REFUSED),
    (ConfigError, EXIT_CONFIG),
    (NotFound, EXIT_NOT_FOUND),
    (NoQuorum, EXIT_UNREACHABLE),
    (NotLeader, EXIT_UNREACHABLE),
    (ConnectionFailed, EXIT_UNREACHABLE),
    (DeadlineExceeded, EXIT_UNREACHABLE),
    (OutcomeUnknown, EXIT_UNREACHABLE),
    (Overloaded, EXIT_UNREACHABLE),
    (DfsError, EXIT_FAILED),
    (FileNotFoundError, EXIT_NOT_FOUND),
)
FAILURES_KEPT_MAX: Final = 1000  # a tree can fail in a million places; JSON tells of the first ones
_FATAL: Final = frozenset({EXIT_UNREACHABLE, EXIT_REFUSED, EXIT_CONFIG})


class LocalError(Exception):
    """A failure on this side of the wire (a local file, a refused combination). `exit_code` is the verb's end."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


EXPECTED: Final = (DfsError, LocalError, OSError)  # what verbs may end with; anything else is a bug


def exit_code_of(error: BaseException) -> int:
    if isinstance(error, LocalError):
        return error.exit_code
    return next((code for kind, code in _CODE_OF if isinstance(error, kind)), EXIT_FAILED)


def is_fatal(error: BaseException) -> bool:
    """Return whether going on with the next operand is pointless: it would wait and fail in the same way."""
    return exit_code_of(error) in _FATAL


def describe(error: BaseException) -> str:
    """Return the one-line text of an error; what it quotes cannot forge lines or drive a terminal."""
    if isinstance(error, DfsError | LocalError | ValueError) or not isinstance(error, OSError):
        text = str(error) or type(error).__name__
    else:
        where = f" {os.fsdecode(error.filename)!r}" if isinstance(error.filename, str | bytes) else ""
        text = f"local file{where}: {error.strerror or error}"
    return escape_controls(text)


def report(verb: str, text: str) -> None:
    """Print one error line, after what was printed before it."""
    sys.stdout.flush()
    print(f"dfs: {verb}: {text}" if verb else f"dfs: {text}", file=sys.stderr, flush=True)


class _Catch:
    """What `Failures.catch` returns; a class, so that type checkers know that it swallows."""

    def __init__(self, failures: Failures) -> None:
        self._failures = failures

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, EXPECTED) or isinstance(error, BrokenPipeError) or is_fatal(error):
            return False
        self._failures.add(error)
        return True


class Failures:
    """The failed operands of one verb: each is reported at once, the others go on, the verb ends with their code.

    Safe to use from several threads. `say` prints a line (a progress bar has its own way).
    """

    def __init__(self, verb: str, *, debug: bool = False, say: Callable[[str], None] | None = None) -> None:
        self._verb = verb
        self._debug = debug
        self._say = say
        self._codes: set[int] = set()
        self.count = 0
        self.kept: list[dict[str, str]] = []  # the first FAILURES_KEPT_MAX, for JSON

    def catch(self) -> _Catch:
        """Return a context that reports and swallows a failure; one that would repeat for every operand passes."""
        return _Catch(self)

    def add(self, error: BaseException, label: str = "") -> None:
        """Report a failure now; `label` names the operand when the error does not."""
        if self._debug:
            traceback.print_exception(error)
        text = describe(error)
        if label and label not in str(error):
            text = f"{escape_controls(label)}: {text}"
        if self._say is None:
            report(self._verb, text)
        else:
            self._say(f"dfs: {self._verb}: {text}")
        self.count += 1
        self._codes.add(exit_code_of(error))
        if len(self.kept) < FAILURES_KEPT_MAX:
            code = error.code if isinstance(error, DfsError) else "local"
            self.kept.append({"path": label, "code": code, "message": str(error)})

    def absorb(self, other: Failures) -> None:
        """Count the failures of another part of the same verb."""
        self.count += other.count
        self._codes |= other._codes
        self.kept += other.kept[: FAILURES_KEPT_MAX - len(self.kept)]

    @property
    def exit_code(self) -> int:
        """The code that all failures share; 1 when they differ, 0 when there are none."""
        if not self._codes:
            return EXIT_OK
        return next(iter(self._codes)) if len(self._codes) == 1 else EXIT_FAILED

    def finish(self) -> None:
        """End the verb with the code of its failures, when there were any."""
        if self._codes:
            raise click.exceptions.Exit(self.exit_code)
