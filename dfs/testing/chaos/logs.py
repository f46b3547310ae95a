"""Clients that append to shared logs, read them while they grow, and copy them; and the judge of what they saw.

Owns: those clients, and every promise about a growing file. Refuses to know: faults, and how a record is made
(dfs.chaos.records).

A log is judged in the end, by its last content. Offsets tell the one order of all records, so nothing is searched:
the order must agree with the clock, and every look at the log must be a beginning of it that is long enough.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dfs.chaos.history import History
from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.checksum import crc32c
from dfs.client import DfsClient
from dfs.client.appender import Appender

SIZE_MIN, SIZE_MAX = 40, 24_000  # bytes of a record; the largest is below a quarter of a small chunk
BATCH_MAX = 4  # records that an appender has outstanding
VOLUME_SIZE_MAX = 1 << 20  # bytes after which a log goes on in the next file: a look reads all of it


@dataclass(frozen=True, slots=True)
class _Append:
    """An acknowledged record; moments are events of the history."""

    told: Acknowledged
    size: int
    begun: int
    ended: int


@dataclass(frozen=True, slots=True)
class _Look:
    """What somebody saw of a log: its first `size` bytes."""

    what: str
    size: int
    crc: int
    begun: int
    ended: int


@dataclass(slots=True)
class _Volume:
    """All that is known of one file of records."""

    appends: list[_Append] = field(default_factory=list)
    looks: list[_Look] = field(default_factory=list)
    sent: dict[int, int] = field(default_factory=dict)  # by appender: the last sequence that it ever sent


class Logs:
    """Shared by all clients of a run: which files there are, and what happened to them. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._numbers = [0] * count
        self._volumes: dict[str, _Volume] = {}

    def path(self, log: int) -> str:
        """Return the file that this log is written to now."""
        with self._lock:
            return f"/chaos/log{log}.{self._numbers[log]}"

    def paths(self) -> list[str]:
        with self._lock:
            return sorted(self._volumes)

    def has_content(self, path: str) -> bool:
        """Whether a record of this file was ever acknowledged or seen."""
        with self._lock:
            volume = self._volumes[path]
            return bool(volume.appends) or any(look.size for look in volume.looks)

    def sending(self, path: str, appender: int, sequence: int) -> None:
        """Note, before it is sent, that a record may come to be."""
        with self._lock:
            self._volumes.setdefault(path, _Volume()).sent[appender] = sequence

    def appended(self, path: str, record: _Append) -> None:
        with self._lock:
            self._volumes[path].appends.append(record)
            log, _, number = path.removeprefix("/chaos/log").partition(".")
            if record.told.offset > VOLUME_SIZE_MAX and self._numbers[int(log)] == int(number):
                self._numbers[int(log)] += 1

    def looked(self, path: str, look: _Look) -> None:
        with self._lock:
            self._volumes.setdefault(path, _Volume()).looks.append(look)

    def check(self, path: str, content: bytes) -> list[str]:
        """Return what is wrong with one file, in words; `content`: all that it holds in the end."""
        with self._lock:
            volume = self._volumes[path]
        try:
            found = check_exactly_once(content, [append.told for append in volume.appends])
        except AssertionError as error:
            return [f"{path}: {error}"]
        broken = [
            f"{path}: record {record.sequence} of appender {record.appender} is there, {sent} were ever sent"
            for record in found
            if record.sequence > (sent := volume.sent.get(record.appender, 0))
        ]
        broken += [f"{path}: {words}" for words in _disorder(volume.appends)]
        return broken + [f"{path}: {words}" for words in _bad_looks(content, volume.appends, volume.looks)]


def _disorder(appends: Iterable[_Append]) -> list[str]:
    """Find records that stand before others which were acknowledged before they were sent."""
    broken = []
    latest: _Append | None = None  # of all that stand further behind: the one that was acknowledged first
    for append in sorted(appends, key=lambda append: append.told.offset, reverse=True):
        if latest is not None and latest.ended < append.begun:
            broken.append(f"{append} stands before {latest}, which was acknowledged before it was sent")
        if latest is None or append.ended < latest.ended:
            latest = append
    return broken


def _bad_looks(content: bytes, appends: Sequence[_Append], looks: Iterable[_Look]) -> list[str]:
    """Find looks that saw other bytes than those of the log, too few of them, or fewer than an earlier look."""
    broken = []
    crc, at = 0, 0
    for look in sorted(looks, key=lambda look: look.size):
        crc, at = crc32c(content[at : look.size], crc), look.size
        if look.size > len(content) or look.crc != crc:
            broken.append(f"{look} did not see the first bytes of what the log holds in the end ({len(content)} bytes)")
    ends = [(append.ended, append.told.offset + append.size, str(append)) for append in appends]
    ends += [(look.ended, look.size, str(look)) for look in looks]
    ends.sort()
    longest, why, place = 0, "", 0
    for look in sorted(looks, key=lambda look: look.begun):
        while place < len(ends) and ends[place][0] < look.begun:
            if ends[place][1] > longest:
                _, longest, why = ends[place]
            place += 1
        if look.size < longest:
            broken.append(f"{look} saw less than the {longest} bytes that were there before it: {why}")
    return broken


class LogWorker:
    """One client of the logs; `step` does one thing. After a failed append it goes on under the same identity."""

    def __init__(self, number: int, seed: int, history: History, logs: Logs, count: int) -> None:
        self._number = number + 1
        self._rng = random.Random(f"log {seed} {number}")  # noqa: S311 - a seed must replay
        self._history, self._logs, self._count = history, logs, count
        self._appenders: dict[str, Appender | None] = {}
        self._identities: dict[str, bytes] = {}

    def step(self, client: DfsClient) -> None:
        current = {self._logs.path(log) for log in range(self._count)}
        for old in set(self._appenders) - current:
            if (appender := self._appenders.pop(old)) is not None:
                appender.abandon()
        path = self._logs.path(self._rng.randrange(self._count))
        match self._rng.choices(("append", "read", "copy"), (12, 3, 1))[0]:
            case "append":
                self._append(client, path)
            case "read":
                look_at_log(self._history, self._logs, client, path)
            case _:
                self._copy(client, path)

    def _append(self, client: DfsClient, path: str) -> None:
        """Append a few records at once. All of them have the same begin: that is before each was sent."""
        begun = self._history.moment()
        records: list[bytes] = []

        def ask() -> list[int]:
            appender = self._appenders.get(path) or self._open(client, path)
            self._appenders[path] = None  # unless all goes well
            first = appender.last_sequence + 1
            count = self._rng.randint(1, BATCH_MAX)
            self._logs.sending(path, self._number, first + count - 1)
            size_max = self._rng.choice((200, 200, SIZE_MAX))
            records.extend(
                make_record(self._number, first + place, self._rng.randint(SIZE_MIN, size_max))
                for place in range(count)
            )
            try:
                offsets = [outcome.result() for outcome in [appender.append(record) for record in records]]
            except BaseException:
                appender.abandon()
                raise
            self._appenders[path] = appender
            for place, offset in enumerate(offsets):
                told = Acknowledged(self._number, first + place, offset)
                self._logs.appended(path, _Append(told, len(records[place]), begun, self._history.moment()))
            return offsets

        self._history.count("append", ask)

    def _open(self, client: DfsClient, path: str) -> Appender:
        """Begin, or go on with what is in the file: the outcome of every record sent is known then."""
        appender = client.appender(path, identity=self._identities.get(path))
        self._identities[path] = appender.identity
        return appender

    def _copy(self, client: DfsClient, path: str) -> None:
        """Copy the log, which seals its tail under the hands of those who append, and read the copy."""
        begun = self._history.moment()
        copy = f"/chaos/copy{self._number}"

        def ask() -> int:
            client.copy(path, copy, overwrite=True)
            return self._history.moment()

        if (ended := self._history.count("copy", ask)) is None:
            return
        content = self._history.count("read copy", lambda: b"".join(client.read(copy)), is_read=True)
        if content is not None:
            self._logs.looked(path, _Look(f"copy {self._number}", len(content), crc32c(content), begun, ended))


def look_at_log(history: History, logs: Logs, client: DfsClient, path: str) -> bytes | None:
    """Read a log, note what was seen, and return it; None when that failed or there is none yet."""
    begun = history.moment()
    content = history.count("read log", lambda: b"".join(client.read(path)), is_read=True)
    if content is not None:
        logs.looked(path, _Look("reader", len(content), crc32c(content), begun, history.moment()))
    return content


def last_look_at_logs(history: History, logs: Logs, client: DfsClient) -> list[str]:
    """Read all logs when all is healed, and return what is wrong with them."""
    broken = []
    for path in logs.paths():
        content = look_at_log(history, logs, client, path)
        if content is None and logs.has_content(path):
            broken.append(f"{path} cannot be read although the cluster is whole")
        else:
            broken += logs.check(path, content or b"")
    return broken


__all__ = ["LogWorker", "Logs", "last_look_at_logs", "look_at_log"]
