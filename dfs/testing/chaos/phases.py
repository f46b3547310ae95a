"""Kill a leading master at a named phase of a client's call: before it is written, after it is committed, and so on.

Owns: what the phases of a call are, the hooks in the master's process that see them pass, and the file by which a test
says where the leader is to die. Refuses to know: which calls an operation consists of: they are recorded by a run in
which nobody dies, and so are their phases. And what must hold afterwards.

A master under watch runs as `python -m dfs.testing.chaos.phases FOLDER NAME … dfs master --name m1`. A phase is a line
such as `CommitFile synced`; when an operation makes the same call again, `CommitFile#2 synced`; when a call leads to a
second entry of the log, `OpenTail/2 synced`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from dfs.errors import DfsError
from dfs.master import raft_journal
from dfs.master.raft_gate import Gate
from dfs.master.raft_journal import Journal
from dfs.master.raft_state import RaftLog
from dfs.master.raft_wire import AppendReply
from dfs.master.service import MasterService
from dfs.master.state.machine import MasterState
from dfs.net.aio_server import _ServerConnection
from dfs.net.messages import (
    ChunkReport,
    GetClusterStatus,
    GetMasterStatus,
    Heartbeat,
    Message,
    Ping,
    RegisterServer,
    TailReport,
)
from dfs.testing.chaos.wrapping import run_dfs, words_before, wrapped

# What befalls a call that changes something, in this order, but that a follower may be faster than the own disk. What
# happens between two of them happens in memory alone: a process that is killed there leaves what it left before.
RECEIVED = "received"  # the leader has the request and has done nothing
WRITING = "writing"  # the entry of the log was sent to the followers, and nothing of it is on the leader's disk
TORN = "torn"  # half of it is written
SYNCED = "synced"  # it is on the leader's disk, and the leader has not noticed
FOLLOWED = "followed"  # a follower says that it has it, and the leader has not counted that
APPLIED = "applied"  # committed, and done in the leader's state; no answer is sent
ANSWERED = "answered"  # the answer is sent, and may have arrived
CHANGE = (RECEIVED, WRITING, TORN, SYNCED, FOLLOWED, APPLIED, ANSWERED)
NOT_A_CLIENTS = (ChunkReport, GetClusterStatus, GetMasterStatus, Heartbeat, Ping, RegisterServer, TailReport)
_ARMED, _TRACE, _HIT = "armed", "trace", "hit"


class Phases:
    """The test's side: arms the masters of one cluster, one operation at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run = 0
        folder.mkdir()

    def launchers(self, masters: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the words before the command of each master that put it under watch."""
        return {name: wrapped("dfs.testing.chaos.phases", str(self._folder), name) for name in masters}

    @contextlib.contextmanager
    def watched(self, deadly: str = "") -> Iterator[None]:
        """Record the phases of the calls made in the block; the first leader that comes to `deadly` dies there."""
        self._run += 1
        self._write(f"{self._run} {deadly}")
        try:
            yield
        finally:
            self._write("")

    def seen(self) -> list[str]:
        """Return the phases of the latest block in their order, those at a second leader too."""
        path = self._folder / f"{_TRACE}-{self._run}"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def victim(self) -> str:
        """Return the master that died in the latest block; '' when none did."""
        path = self._folder / f"{_HIT}-{self._run}"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def _write(self, text: str) -> None:
        draft = self._folder / "draft"
        draft.write_text(text, encoding="utf-8")
        draft.replace(self._folder / _ARMED)


@dataclass(eq=False)
class _Call:
    """One call of a client at this master, or one log entry of it."""

    label: str
    run: str
    deadly: str
    passed: set[str] = field(default_factory=set)
    entries: int = 0  # of the log

    def next_entry(self) -> _Call:
        """Return the call itself for its first entry of the log, a part of it for each further one."""
        self.entries += 1
        return self if self.entries == 1 else _Call(f"{self.label}/{self.entries}", self.run, self.deadly)


_CALL: ContextVar[_Call | None] = ContextVar("_CALL", default=None)


class Watch:
    """The master's side: hooks around what a call passes through. Calls of chunk servers and looks are left alone."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._counts: Counter[tuple[str, str]] = Counter()  # (run, call): how many of it
        self._commands: dict[bytes, _Call] = {}  # proposed by a call that is watched
        self._indexes: dict[int, _Call] = {}  # log index: whose entry it is
        self._unanswered: dict[tuple[str, int], _Call] = {}  # by the peer and its number of the request

    def begin(self, message: Message) -> _Call | None:
        """Return the call that a message begins; None when nobody watches, or it is nobody's."""
        if isinstance(message, NOT_A_CLIENTS):
            return None
        try:
            run, _, deadly = (self._folder / _ARMED).read_text(encoding="utf-8").partition(" ")
        except FileNotFoundError:
            return None
        if not run:
            return None
        kind = type(message).__name__
        self._counts[run, kind] += 1
        count = self._counts[run, kind]
        return _Call(kind if count == 1 else f"{kind}#{count}", run, deadly)

    def passes(self, call: _Call | None, stage: str) -> None:
        """Note that a call came to a stage; die when it is the one."""
        if call is None or stage in call.passed:
            return
        call.passed.add(stage)
        phase = f"{call.label} {stage}"
        self._append(f"{_TRACE}-{call.run}", phase + "\n")
        if phase == call.deadly:
            self.die(call)

    def die(self, call: _Call) -> None:
        """End this process as kill -9 does, unless another leader has died in this run already."""
        with contextlib.suppress(FileExistsError):
            fd = os.open(self._folder / f"{_HIT}-{call.run}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.write(fd, self._name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def _append(self, name: str, text: str) -> None:
        fd = os.open(self._folder / name, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        os.write(fd, text.encode())
        os.close(fd)

    def call_in(self, data: bytes) -> _Call | None:
        """Return the watched call whose command is among these bytes."""
        return next((call for command, call in tuple(self._commands.items()) if command in data), None)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Watch this process as long as the block lasts."""
        with contextlib.ExitStack() as stack:
            for owner, name, hook in (
                (MasterService, "handle", self._handle(MasterService.handle)),
                (_ServerConnection, "_reply", self._reply(_ServerConnection._reply)),
                (RaftLog, "submit", self._submit(RaftLog.submit)),
                (Journal, "append", self._journal_append(Journal.append)),
                (Journal, "_append", self._journal_write(Journal._append)),
                (Gate, "_append_reply", self._append_reply(Gate._append_reply)),
                (MasterState, "apply_encoded", self._apply(MasterState.apply_encoded)),
            ):
                stack.enter_context(mock.patch.object(owner, name, hook))
            yield

    # --- hooks, each around the method of its name

    def _handle(self, handle: Any) -> Any:
        async def hook(service: MasterService, message: Message, context: Any) -> Message:
            call = self.begin(message) if service.leadership.is_leader else None
            _CALL.set(call)  # a call that is answered in the step of the loop that took it in has no context of its own
            if call is not None:
                self._unanswered[context.peer, context.request_id] = call
            self.passes(call, RECEIVED)
            try:
                reply: Message = await handle(service, message, context)
            except DfsError:
                self._unanswered.pop((context.peer, context.request_id), None)  # it goes to another master, or ends
                raise
            return reply

        return hook

    def _reply(self, reply: Any) -> Any:
        def hook(connection: Any, head: Any, message: Message) -> None:
            reply(connection, head, message)
            self.passes(self._unanswered.pop((connection.peer, head.request_id), None), ANSWERED)

        return hook

    def _submit(self, submit: Any) -> Any:
        def hook(log: RaftLog, command: bytes, waiter: Any) -> None:
            call = _CALL.get()
            if call is not None:
                self._commands[command] = call.next_entry()
            submit(log, command, waiter)

        return hook

    def _journal_append(self, append: Any) -> Any:
        def hook(journal: Journal, command: bytes, index: int, term: int) -> None:
            append(journal, command, index, term)
            call = self.call_in(command)
            if call is not None:
                self._indexes[index] = call

        return hook

    def _journal_write(self, write: Any) -> Any:
        def hook(journal: Journal, data: bytes) -> None:
            call = self.call_in(data)
            self.passes(call, WRITING)
            if call is not None and TORN not in call.passed:
                if call.deadly == f"{call.label} {TORN}":
                    raft_journal.write_all(journal._fd, data[: len(data) // 2], journal._offset)
                self.passes(call, TORN)
            write(journal, data)
            self.passes(call, SYNCED)

        return hook

    def _append_reply(self, take: Any) -> Any:
        def hook(gate: Gate, peer: str, message: AppendReply) -> None:
            if message.is_success:
                for index in [index for index in self._indexes if index < message.next_index]:
                    self.passes(self._indexes.pop(index), FOLLOWED)
            take(gate, peer, message)

        return hook

    def _apply(self, apply: Any) -> Any:
        def hook(state: MasterState, command: bytes) -> Any:
            result = apply(state, command)
            self.passes(self._commands.pop(command, None), APPLIED)
            return result

        return hook


def main() -> None:
    """Run `dfs` under watch."""
    folder, name, *_ = words_before()
    with Watch(Path(folder), name).installed():
        run_dfs()


if __name__ == "__main__":
    main()
