"""Open tails and the memory of appenders: the part of the replicated state that makes record append exactly-once.

Owns: which file has an open tail, what is kept of the appenders of each file, and which versions of a file are
beginnings of its present one. Refuses to know: chunks, trees, and how tails are made and sealed (docs/adr/0015).

Tails are kept by path: nothing that moves or replaces a path is applied while a tail is open there or below.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import msgspec

from dfs.errors import LimitExceeded, TailOpen
from dfs.ids import ChunkHandle, ServerId
from dfs.master.state.namespace import File, shown
from dfs.net.messages import (
    EmptyTrash,
    MakeDirectory,
    Mutation,
    RemoveDirectory,
    RemoveSnapshot,
    SetQuota,
    SetReplication,
    Touch,
    Undelete,
)
from dfs.net.parts import AppenderState

OPEN_TAILS_MAX = 10_000  # files that are appended to at the same time
VERSIONS_MAX = 64  # of one file whose readers may go on while records are appended
REMEMBERED_MAX = 200_000  # appenders of all files together
IDLE_HISTORIES_MAX = 10_000  # of files without appenders: their versions are kept for readers that began before

# These neither read nor move nor replace the content of a file that is there, nor what a tail of it can come to.
_HARMLESS = (
    EmptyTrash,
    MakeDirectory,
    RemoveDirectory,
    RemoveSnapshot,
    SetQuota,
    Touch,
    Undelete,
)


@dataclass(frozen=True, slots=True)
class TailRecord:
    """The open tail of the file at `path`. `servers`: its chain, head first; `reserved`: stored bytes it may take."""

    path: str
    handle: ChunkHandle
    servers: tuple[ServerId, ...]
    begun_ms: int
    reserved: int


class Remembered(msgspec.Struct, gc=False):
    """What is kept of one appender, and since when it was silent."""

    last_sequence: int
    offsets: tuple[int, ...]
    used_ms: int


@dataclass(slots=True)
class History:
    """The appenders of one file. Each of `versions` is the beginning of the next one: only records were appended.

    A restored snapshot can bring an older version back under the same inode; what is appended to it begins a branch.
    """

    versions: tuple[int, ...] = ()
    appenders: OrderedDict[bytes, Remembered] = field(default_factory=OrderedDict)  # silent longest first


class TailTable:
    """All open tails, and the histories of files by inode."""

    def __init__(self) -> None:
        self._open: dict[str, TailRecord] = {}
        self._handles: dict[ChunkHandle, str] = {}
        self._above: Counter[str] = Counter()  # each path with an open tail, and every directory above one
        self._reserved: Counter[str] = Counter()  # by the same paths
        self._histories: dict[int, History] = {}  # in the order of their last seals
        self._idle: OrderedDict[int, None] = OrderedDict()  # those without appenders, in the same order
        self._remembered = 0

    # --- open tails

    def __len__(self) -> int:
        return len(self._open)

    def at(self, path: str) -> TailRecord | None:
        return self._open.get(path)

    def of_handle(self, handle: ChunkHandle) -> TailRecord | None:
        path = self._handles.get(handle)
        return None if path is None else self._open[path]

    def all(self) -> list[TailRecord]:
        return list(self._open.values())

    def below(self, path: str) -> list[TailRecord]:
        """Return the tails of a file, or of all files below a directory."""
        if not self._above[path]:
            return []
        prefix = path.rstrip("/") + "/"
        return [tail for known, tail in self._open.items() if known == path or known.startswith(prefix)]

    def check_sealed(self, command: Mutation) -> None:
        """Raise `TailOpen` when a command names a path at or below which a tail is open."""
        if not self._open or isinstance(command, _HARMLESS):
            return
        waiting = self._above
        if isinstance(command, SetReplication):  # an earlier version, whose tails reserve nothing, did not wait for it
            waiting = self._reserved
        for path in named_paths(command):
            if waiting.get(path):  # as `below` finds them; a path in another form is refused by its handler
                raise TailOpen(f"records are being appended at or below {shown(path)}; its tail must be sealed before")

    def open(self, tail: TailRecord) -> None:
        """Add a tail; raise `LimitExceeded` when there are too many."""
        if len(self._open) >= OPEN_TAILS_MAX:
            raise LimitExceeded(f"{OPEN_TAILS_MAX} files are appended to at the same time; close some appenders")
        self._open[tail.path] = tail
        self._handles[tail.handle] = tail.path
        for known in _with_ancestors(tail.path):
            self._above[known] += 1
            self._reserved[known] += tail.reserved

    def close(self, path: str) -> None:
        tail = self._open.pop(path)
        del self._handles[tail.handle]
        for known in _with_ancestors(path):
            self._above[known] -= 1
            self._reserved[known] -= tail.reserved
            if not self._above[known]:
                del self._above[known], self._reserved[known]

    def reserved(self, path: str) -> int:
        """Return how many stored bytes the open tails at a path or below it can come to."""
        return self._reserved[path]

    def leave(self, handle: ChunkHandle, server_id: ServerId) -> bool:
        """Take a server that is gone out of the chain of a tail; the last one takes the tail along.

        Return whether this is a tail. Each of the others holds all that was acknowledged.
        """
        tail = self.of_handle(handle)
        if tail is None:
            return False
        rest = tuple(known for known in tail.servers if known != server_id)
        if rest:
            self._open[tail.path] = replace(tail, servers=rest)
        else:
            self.close(tail.path)
        return True

    # --- appenders

    def seeds(self, inode: int) -> tuple[AppenderState, ...]:
        """Return what a new tail of a file must know."""
        history = self._histories.get(inode)
        known = () if history is None else history.appenders.items()
        return tuple(AppenderState(appender, item.last_sequence, item.offsets) for appender, item in known)

    def remember(self, inode: int, changed: Iterable[AppenderState], closed: Iterable[bytes], now_ms: int) -> None:
        """Take in what a sealed tail said of its appenders."""
        history = self._histories.pop(inode, None) or History()
        self._histories[inode] = history
        before = len(history.appenders)
        for state in changed:
            history.appenders.pop(state.appender, None)
            history.appenders[state.appender] = Remembered(state.last_sequence, state.offsets, now_ms)
        for appender in closed:
            history.appenders.pop(appender, None)
        self._remembered += len(history.appenders) - before
        self._note_idle(inode, history)
        while len(self._idle) > IDLE_HISTORIES_MAX:
            del self._histories[self._idle.popitem(last=False)[0]]

    def _note_idle(self, inode: int, history: History) -> None:
        self._idle.pop(inode, None)
        if not history.appenders:
            self._idle[inode] = None

    def require_memory(self) -> None:
        """Raise `LimitExceeded` when no more appenders can be remembered."""
        if self._remembered >= REMEMBERED_MAX:
            raise LimitExceeded(
                f"{REMEMBERED_MAX} appenders did not close and were not silent for a day; close appenders after use"
            )

    def appended(self, inode: int, before: int, after: int) -> None:
        """Note that version `after` of a file is `before` and something behind it."""
        history = self._histories[inode]
        versions = history.versions
        known = versions[: versions.index(before) + 1] if before in versions else (before,)
        history.versions = (*known[-VERSIONS_MAX + 1 :], after)

    def is_beginning(self, file: File, version: int) -> bool:
        """Whether `version` of a file was its present content, or the beginning of it."""
        if version == file.version:
            return True
        history = self._histories.get(file.inode)
        return history is not None and history.versions[-1:] == (file.version,) and version in history.versions

    def has_silent(self, idle_ms: int, now_ms: int) -> bool:
        return any(self._is_silent(history, idle_ms, now_ms) for history in self._histories.values())

    @staticmethod
    def _is_silent(history: History, idle_ms: int, now_ms: int) -> bool:
        oldest = next(iter(history.appenders.values()), None)
        return oldest is not None and now_ms - oldest.used_ms >= idle_ms

    def forget(self, idle_ms: int, limit: int, now_ms: int) -> None:
        """Drop at most `limit` appenders of which no seal told for `idle_ms`; an open tail remembers its own."""
        for inode, history in list(self._histories.items()):
            if limit <= 0:
                break
            if inode in self._idle:
                continue
            while limit > 0 and self._is_silent(history, idle_ms, now_ms):
                history.appenders.popitem(last=False)
                self._remembered -= 1
                limit -= 1
            if not history.appenders:
                del self._histories[inode]

    # --- dump and load

    def histories(self) -> Iterator[tuple[int, History]]:
        yield from self._histories.items()

    def restore_history(
        self, inode: int, versions: tuple[int, ...], appenders: Iterable[tuple[bytes, Remembered]]
    ) -> None:
        history = self._histories.setdefault(inode, History(versions))
        for appender, item in appenders:
            history.appenders[appender] = item
            self._remembered += 1
        self._note_idle(inode, history)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the table agrees with itself."""
        counted: Counter[str] = Counter()
        reserved: Counter[str] = Counter()
        for path, tail in self._open.items():
            assert tail.path == path, f"tail {path} is kept under another path"
            assert tail.servers, f"tail {path} is on no server"
            assert self._handles.get(tail.handle) == path, f"tail {path} is not found by its handle"
            counted.update(_with_ancestors(path))
            for known in _with_ancestors(path):
                reserved[known] += tail.reserved
        assert counted == self._above, f"directories above tails are {self._above}, should be {counted}"
        assert reserved == self._reserved, f"{self._reserved} is reserved for tails, should be {reserved}"
        assert len(self._handles) == len(self._open), "handles of closed tails are kept"
        count = sum(len(history.appenders) for history in self._histories.values())
        assert count == self._remembered, f"{count} appenders are remembered, {self._remembered} were counted"
        idle = [inode for inode, history in self._histories.items() if not history.appenders]
        assert list(self._idle) == idle, "histories without appenders are not those that are known to be so"
        assert len(idle) <= IDLE_HISTORIES_MAX, f"{len(idle)} histories without appenders are kept"


def named_paths(command: Mutation) -> Iterator[str]:
    """Yield every path that a mutation names, in whichever field; a part of it that has a `path` names that."""
    for name in command.__struct_fields__:
        value = getattr(command, name)
        for item in value if isinstance(value, tuple) else (value,):
            path = getattr(item, "path", item)
            if isinstance(path, str) and path.startswith("/"):
                yield path


def _with_ancestors(path: str) -> Iterator[str]:
    yield path
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path
