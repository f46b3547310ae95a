"""A progress bar on stderr, for a person who waits longer than a second.

Owns: when a bar appears and what it shows. Refuses to know: what is transferred; rich is imported when a bar appears.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Final

APPEARS_AFTER_S: Final = 1.0  # shorter transfers need no bar


class Progress:
    """Counts bytes from any thread. `total` is `None` when nobody knows the end (a pipe)."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label = label
        self._total = total
        self._lock = threading.Lock()
        self._done = 0
        self._started_s = time.monotonic()
        self._may_show = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._may_show = False
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def advance(self, size: int) -> None:
        """Count bytes; a negative number takes some back."""
        with self._lock:
            self._done += size
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)
            elif self._may_show and time.monotonic() - self._started_s > APPEARS_AFTER_S:
                self._appear()

    def note(self, text: str) -> None:
        """Print a line on stderr without tearing the bar."""
        with self._lock:
            if self._bar is None:
                print(text, file=sys.stderr, flush=True)
            else:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _appear(self) -> None:
        from rich import progress
        from rich.console import Console

        known = [progress.BarColumn(), progress.TaskProgressColumn()] if self._total is not None else []
        rest = [progress.TimeRemainingColumn()] if self._total is not None else [progress.TimeElapsedColumn()]
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            *known,
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            *rest,
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=self._total, completed=self._done)
        self._bar.start()
