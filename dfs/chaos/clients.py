"""The clients of a user's run: threads that work in the run's own directory while the cluster is broken.

Owns: the threads, how much they do, and the fresh objects that they turn to after a while. Refuses to know: faults, and
what makes an answer right (dfs.chaos.verdict).

The judge's search grows with the calls on one object. So the objects are changed by *stages*: in each the clients meet
on a few paths of their own, and every stage is looked at once more at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType

from dfs.chaos.history import History
from dfs.chaos.records import Acknowledged, Copied, make_record
from dfs.chaos.workloads import BookWorker, YardWorker, last_look, prepare
from dfs.checksum import crc32c
from dfs.client import DfsClient
from dfs.client.appender import Appender
from dfs.errors import DeadlineExceeded, DfsError

YARD_CLIENTS, YARD_READERS, BOOK_CLIENTS, APPENDERS = 3, 2, 3, 2
YARDS, BOOKS = 2, 2  # few: clients that never meet prove nothing
STAGE_S = 20.0
THINK_S = 0.02  # between two calls of one client: the run shares the cluster with its users
CALLS_MAX = 400_000  # of a run; longer runs think longer between two calls
RECORD_SIZE = 200  # bytes
APPEND_WAIT_S = 600.0  # beyond any deadline of a client: an appender that never answers hangs, and that is told
LOG, COPY = "log", "copy"
COPY_S = 1.0  # between two copies of the log, each of which seals its tail under the hands of the appenders
COPY_SIZE_MAX = 8 << 20  # bytes of a log that is still copied: reading copies must not become the load
IDENTITIES = 1_000_000  # appenders of one thread: after an error it goes on as another one

Step = Callable[[DfsClient], None]
MakeClient = Callable[[], DfsClient]


def think_s(duration_s: float) -> float:
    """Return how long a client waits between two calls, so that the history of the whole run stays bounded."""
    clients = YARD_CLIENTS + YARD_READERS + BOOK_CLIENTS + APPENDERS
    return max(THINK_S, duration_s * clients / CALLS_MAX)


class Clients:
    """A context manager: prepares the directory, works until its end. `root` is the run's own directory."""

    def __init__(self, make_client: MakeClient, root: str, seed: int, duration_s: float) -> None:
        self.history = History()
        self.acknowledged: list[Acknowledged] = []
        self.copies: list[Copied] = []
        self._make_client, self._root, self._seed = make_client, root, seed
        self._stages = [f"{root}/{number}" for number in range(1 + int(duration_s / STAGE_S))]
        self._stage = 0
        self._think_s = think_s(duration_s)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._steps: list[list[Step]] = [self._steps_of(stage) for stage in self._stages]
        self.crash: Exception | None = None

    def __enter__(self) -> Clients:
        with self._make_client() as client:
            for stage in self._stages:
                prepare(self.history, client, YARDS, BOOKS, root=stage)
        for number in range(len(self._steps[0])):
            self._begin(self._work, number)
        for number in range(APPENDERS):
            self._begin(self._append, number)
        self._begin(self._copy, 0)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.end()

    @property
    def log_path(self) -> str:
        """The file that all appenders share."""
        return f"{self._root}/{LOG}"

    def turn_to(self, elapsed_s: float) -> None:
        """Let the clients go on with the objects of the stage of this moment."""
        self._stage = min(len(self._stages) - 1, int(elapsed_s / STAGE_S))

    def end(self) -> None:
        """Let every client finish its call. Again is harmless."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def last_look(self) -> list[str]:
        """Read everything once more; return what could not be read or used, in words."""
        failures = []
        with self._make_client() as client:
            for stage in self._stages[: self._stage + 1]:
                try:
                    last_look(self.history, client, YARDS, BOOKS, root=stage)
                except DfsError as error:
                    failures.append(f"{stage}: {error}")
        return failures

    def read_log(self) -> bytes:
        """Return what the appenders' file holds; b"" when no record was ever acknowledged and there is none."""
        with self._make_client() as client:
            if not self.acknowledged and not client.exists(self.log_path):
                return b""
            return b"".join(client.read(self.log_path))

    def _steps_of(self, stage: str) -> list[Step]:
        yards: Sequence[Step] = [
            YardWorker(number, self._seed, self.history, YARDS, is_reader=number >= YARD_CLIENTS, root=stage).step
            for number in range(YARD_CLIENTS + YARD_READERS)
        ]
        books: Sequence[Step] = [
            BookWorker(number, self._seed, self.history, BOOKS, root=stage).step for number in range(BOOK_CLIENTS)
        ]
        return [*yards, *books]

    def _begin(self, work: Callable[[DfsClient, int], None], number: int) -> None:
        def run() -> None:
            try:
                with self._make_client() as client:
                    work(client, number)
            except Exception as error:  # noqa: BLE001 - a thread root; the run raises it
                self.crash = error

        thread = threading.Thread(target=run, name=f"chaos-client-{number}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self, client: DfsClient, number: int) -> None:
        while not self._stop.wait(self._think_s):
            self._steps[self._stage][number](client)

    def _append(self, client: DfsClient, number: int) -> None:
        """Append record after record. An appender that failed is never used again: its last record is in doubt."""
        identity, sequence = number * IDENTITIES, 0
        appender: Appender | None = None
        while not self._stop.wait(self._think_s):
            if appender is None:
                appender, identity, sequence = client.appender(self.log_path), identity + 1, 0
            sequence += 1
            record = make_record(identity, sequence, RECORD_SIZE)
            offset = self._append_one(appender, record, f"{identity}:{sequence}")
            if offset is not None:
                self.acknowledged.append(Acknowledged(identity, sequence, offset))
            else:
                appender.abandon()
                appender = None
        if appender is not None:
            appender.abandon()  # nothing waits: every record was awaited

    def _append_one(self, appender: Appender, record: bytes, argument: str) -> int | None:
        def ask() -> int:
            outcome: Future[int] = appender.append(record)
            try:
                return outcome.result(timeout=APPEND_WAIT_S)
            except FutureTimeout:
                raise DeadlineExceeded("an append did not end by its deadline", may_have_happened="yes") from None

        return self.history.count("append", ask, key=self.log_path, argument=argument)

    def _copy(self, client: DfsClient, _number: int) -> None:
        """Copy the log again and again, and read the copy: whoever appends meanwhile must notice, or lose nothing."""
        source, target = self.log_path, f"{self._root}/{COPY}"
        record_size = len(make_record(0, 1, RECORD_SIZE))
        while not self._stop.wait(max(COPY_S, self._think_s)):
            told = self.acknowledged[:]
            least = max((one.offset + record_size for one in told), default=0)
            if not told or least > COPY_SIZE_MAX:
                continue

            def ask() -> bool:
                client.copy(source, target, overwrite=True)
                return True

            if not self.history.count("copy", ask, key=source):
                continue
            content = self.history.count("read copy", lambda: b"".join(client.read(target)), is_read=True, key=target)
            if content is not None:
                self.copies.append(Copied(len(content), crc32c(content), least))
