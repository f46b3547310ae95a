"""One run of a verb that moves files in or out: what is done at once or in parallel, reported and counted.

Owns: the run with its progress bar, workers, failures and final count. Refuses to know: where bytes come from or go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from dfs.cli import output, wall
from dfs.cli.context import Cli
from dfs.cli.progress import Progress
from dfs.cli.trees import Tally
from dfs.cli.workers import Workers

STREAM: Final = "-"  # stdin as a source, stdout as a target


class Run:
    """One put or get of many files: failures are reported at once, what was done is counted."""

    def __init__(self, cli: Cli, progress: Progress) -> None:
        self.cli = cli
        self.progress = progress
        self.tally = Tally()
        self.failures = cli.failures(say=progress.note)
        self.workers: Workers | None = None
        self.started_s = time.monotonic()

    def advance(self, size: int) -> None:
        """Count transferred bytes; ends the transfer when the run is over."""
        if self.workers is not None:
            self.workers.check()
        self.progress.advance(size)

    def failed(self, label: str, error: BaseException) -> None:
        if wall.is_fatal(error):
            raise error
        self.failures.add(error, label)

    def skip(self, text: str) -> None:
        self.progress.note(f"dfs: {self.cli.verb}: {output.escape_controls(text)}")

    def do(self, label: str, task: Callable[[], None]) -> None:
        """Run a task now, or on a worker thread."""
        if self.workers is None:
            with self.failures.catch():
                task()
        else:
            self.workers.submit(label, task)

    def summary(self, done: str, is_json: bool, is_told: bool) -> None:
        """Print the final count."""
        tally, seconds = self.tally, time.monotonic() - self.started_s
        if is_json:
            output.print_json(
                {
                    "file_count": tally.file_count,
                    "directory_count": tally.directory_count,
                    "size": tally.size,
                    "skipped_count": tally.skipped_count,
                    "failure_count": self.failures.count,
                    "failures": self.failures.kept,
                    "seconds": round(seconds, 3),
                }
            )
        elif is_told:
            parts = [output.count_text(tally.file_count, "file")]
            if tally.directory_count:
                parts.append(f"in {output.count_text(tally.directory_count, 'directory', 'directories')}")
            rate = f", {output.size_text(tally.size / seconds)}/s" if seconds > 0 else ""
            parts.append(f"({output.size_text(tally.size)} in {output.duration_text(seconds)}{rate})")
            if tally.skipped_count:
                parts.append(f"- {tally.skipped_count} skipped")
            if self.failures.count:
                parts.append(f"- {self.failures.count} failed")
            output.line(f"{done} {' '.join(parts)}")


@contextmanager
def run_transfer(cli: Cli, total: int | None, *, in_parallel: bool) -> Iterator[Run]:
    """Yield a run with its bar and workers; the workers have finished when it ends."""
    with Progress(cli.verb, total) as progress:
        run = Run(cli, progress)
        if not in_parallel:
            yield run
            return
        with Workers(run.failed) as run.workers:
            yield run
            run.workers.finish()
