"""pysyncobj's Raft made safe: the one place that overrides it and touches its private names.

Owns: the engine class, its overrides, and the check that the installed library is the one they were written for.
Refuses to know: sockets, authentication, proposals and what a command means.

What is overridden and why (the letters are those of the study of the library's faults, docs/adr/):
- term and vote go through the journal, and a second vote or a term going back stops the process (a);
- the election deadline reads "never" until a pre-vote round was won (f1);
- applying runs no pickle, and an exception stops the process instead of running the entry again for ever (e5, e6, e7);
- checkpoints are verified whole before anything is replaced, and nothing runs on without its state (h1 to h5, j10);
- the log keeps a tail behind a checkpoint, so that a follower that was away for a moment needs no checkpoint.
"""

# ruff: noqa: N802 - the names are the library's

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import msgspec
import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.config import SERIALIZER_STATE
from pysyncobj.transport import Transport

from dfs.decoders import msgpack_decoder
from dfs.errors import ConfigError, DfsError, InternalError, StorageCorrupt
from dfs.log import get_logger
from dfs.master.raft_checkpoint import (
    CheckpointFolder,
    CheckpointHead,
    CheckpointPiece,
    CheckpointReceiver,
    CheckpointSender,
    CheckpointWriter,
    read_pieces,
    verify_checkpoint,
)
from dfs.master.raft_install import Installation
from dfs.master.raft_journal import Journal, disk_error
from dfs.master.raft_records import WAY_OUT
from dfs.master.raft_transport import Node
from dfs.master.replicated_log import StateMachine

LIBRARY_VERSION = "0.3.17"
FOLLOWER, CANDIDATE, LEADER = 0, 1, 2
ROLES = {FOLLOWER: "follower", CANDIDATE: "candidate", LEADER: "leader"}
KEEP_ENTRIES = 5_000  # log entries kept in memory behind a checkpoint: as many as etcd keeps for slow followers
KEEP_SIZE = 8 * 1024 * 1024  # bytes of commands kept behind a checkpoint at most: some ten thousands of calls
_COMMANDS, _NOTHING = b"\x00", b"\x01"  # first byte of a log entry; the library's REGULAR and NO_OP
_NEVER_S = float("inf")
_ENDLESS = 1 << 60  # switches the library's own limits off: ours are elsewhere
_log = get_logger(__name__)
_UNPACKER = msgpack_decoder(list[bytes])
_PRIVATE = """
    raftCurrentTerm votedForNodeId raftElectionDeadline raftState raftLeader raftLog raftCommitIndex raftLastApplied
    raftNextIndex raftMatchIndex lastResponseTime serializer needLoadDumpFile forceLogCompaction sendNextNodeIdx
    deleteEntriesTo doApplyCommand sendAppendEntries onMessageReceived generateRaftTimeout"""
_PRIVATE_NAMES = frozenset(f"_SyncObj__{name}" for name in _PRIVATE.split())


def check_library() -> None:
    """Raise `ConfigError` unless the library is exactly the one that the overrides were written for."""
    names = set(vars(SyncObj))
    for member in vars(SyncObj).values():
        names.update(getattr(getattr(member, "__code__", None), "co_names", ()))
    missing = sorted(_PRIVATE_NAMES - names)
    if library.VERSION != LIBRARY_VERSION or missing:
        raise ConfigError(
            f"pysyncobj {library.VERSION} is installed, {LIBRARY_VERSION} is needed (lacking {missing}); reinstall dfss"
        )


library.monotonicTime = time.monotonic  # what it is there, without a function around it


class EngineStopped(Exception):
    """The engine met a state that it must not go on from; its failure was reported before."""


class EngineJournal(Journal):
    """The journal under the names that the library calls."""

    def add(self, command: bytes, index: int, term: int) -> None:
        self.append(command, index, term)

    def clear(self) -> None:
        self.reset()

    def deleteEntriesFrom(self, position: int) -> None:
        self.truncate_from(position)

    def deleteEntriesTo(self, position: int) -> None:
        self.forget(position)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: Any) -> Any:
        return self.slice(key.start or 0, key.stop) if isinstance(key, slice) else self.entries[key]

    def setCurrentTerm(self, term: int, vote: str | None) -> None:
        self.set_vote(term, vote)

    def getCurrentTerm(self) -> int:
        return self.term

    def getVotedForNodeId(self) -> str | None:
        return self.vote

    def setRaftCommitIndex(self, index: int) -> None:
        """Do nothing: the commit index is volatile in Raft."""

    def getRaftCommitIndex(self) -> int:
        return 1

    def onOneSecondTimer(self) -> None:
        """Do nothing: all is written by its batch."""


class _Checkpoints:
    """The library's Serializer interface on our checkpoints."""

    def __init__(self, engine: Engine, folder: CheckpointFolder) -> None:
        self.folder = folder
        self.writer = CheckpointWriter(folder)
        self.receiver = CheckpointReceiver(folder)
        self._engine = engine
        self._senders: dict[str, CheckpointSender] = {}

    def checkSerializing(self) -> tuple[int, int | None]:
        done = self.writer.poll()
        if done is None:
            state = SERIALIZER_STATE.SERIALIZING if self.writer.is_writing else SERIALIZER_STATE.NOT_SERIALIZING
        else:
            state = SERIALIZER_STATE.SUCCESS if done else SERIALIZER_STATE.FAILED
            self._engine.checkpoint_done(self.writer.index, is_good=done)
        return state, self.writer.index - 1  # the library names a checkpoint by the entry before its last

    def serialize(self, data: tuple[None, Any, Any, Any], _index: int) -> None:
        _, last, previous, _ = data
        self._engine.checkpoint_begun(last[1])
        try:
            self.writer.start(CheckpointHead(previous, last), self._engine.machine.dump)
        except OSError as error:  # no memory for a child: the log goes on, it only grows
            _log.error("checkpoint_failed", index=last[1], why=str(error))
            self._engine.checkpoint_done(last[1], is_good=False)

    def getTransmissionData(self, node: Any) -> tuple[CheckpointPiece, bool, bool] | None:
        """Return the next piece for a follower; None when it must wait."""
        if self._engine.is_congested(node.id):
            return None
        sender = self._senders.get(node.id)
        if sender is None:
            path = self.folder.newest()
            if path is None:
                return None
            sender = self._senders[node.id] = CheckpointSender(path, self.folder.indexes()[-1])
            _log.info("checkpoint_sending", peer=node.id, file=str(path))
        piece = sender.next_piece()
        if piece.is_last:
            self.cancel(node.id)
        return piece, piece.offset == 0, piece.is_last

    def setTransmissionData(self, data: tuple[CheckpointPiece, bool, bool]) -> bool:
        """Take a piece; the last one begins the installation. False: there is nothing for the library to load."""
        if not self._engine.is_installing:
            draft = self.receiver.take(data[0])
            if draft is not None:
                self._engine.accept_checkpoint(draft)
        return False

    def cancelTransmisstion(self, node: Any) -> None:
        if not self._engine.is_congested(node.id):
            self.cancel(node.id)

    def cancel(self, peer: str) -> None:
        sender = self._senders.pop(peer, None)
        if sender is not None:
            sender.close()

    def close(self) -> None:
        self.writer.stop()
        self.receiver.close()
        for peer in list(self._senders):
            self.cancel(peer)


class Engine(SyncObj):  # type: ignore[misc]  # the library has no types
    """One Raft node. Driven by `tick`; everything runs on one thread.

    `on_role(old, new)` and `on_failure(error)` are called from inside the engine and must not call back into it.
    After a failure every entrance raises `EngineStopped`.
    """

    _is_live = False  # the library's constructor must not write its defaults into the journal

    def __init__(
        self,
        *,
        name: str,
        peers: list[str],
        journal: EngineJournal,
        folder: CheckpointFolder,
        machine: StateMachine,
        transport: Transport,
        is_congested: Callable[[str], bool],
        election_timeout_s: tuple[float, float],
        heartbeat_s: float,
        on_role: Callable[[int, int], None],
        on_failure: Callable[[DfsError], None],
    ) -> None:
        check_library()
        self.journal = journal
        self.machine = machine
        self.is_congested = is_congested
        self.election_deadline_s = 0.0
        self.heard_at_s = time.monotonic()  # when a leader was last heard of; at start: now, to be careful
        self.may_campaign = False
        self.is_forced = False  # the coming election was asked for by the leader
        self.voters: set[str] = set()
        self._own_entry_term = -1  # the last term in which this leader has applied an entry of that term
        self.sent_index = 0  # last log index that was handed to the transport
        self.checkpoint_index = 0
        self.checkpoint_size = 0  # journal.appended_size at the last checkpoint
        self.checkpoint_failed_at_s: float | None = None
        self._role_changed = on_role
        self._report_failure = on_failure
        self._is_stopped = False
        self._installation: Installation | None = None  # a received checkpoint that is being loaded
        self._leftover: Installation | None = None  # one that was installed: the state before is being cleared away
        self.nodes: dict[str, Any] = {peer: Node(peer) for peer in peers}
        self.timeout_min_s, self.timeout_max_s = election_timeout_s
        if not journal.entries:
            journal.append(_NOTHING, 1, 0)
        create, library.createJournal = library.createJournal, lambda _file=None: journal
        try:
            conf = self._configuration(heartbeat_s, folder)
            super().__init__(Node(name), list(self.nodes.values()), conf, nodeClass=Node, transport=transport)
        finally:
            library.createJournal = create
        self._is_live = True
        self._poller = SimpleNamespace(poll=lambda _timeout_s: None)  # the event loop polls
        self.checkpoints = self._SyncObj__serializer = _Checkpoints(self, folder)
        self._SyncObj__needLoadDumpFile = False
        self._load_at_start()

    def _configuration(self, heartbeat_s: float, folder: CheckpointFolder) -> Any:
        return SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=heartbeat_s,
            appendEntriesBatchSizeBytes=_ENDLESS,  # slices of the journal are bounded; a smaller one means pickles (j8)
            commandsQueueSize=0,
            commandsWaitLeader=False,
            raftMinTimeout=self.timeout_min_s,
            raftMaxTimeout=self.timeout_max_s,
            leaderFallbackTimeout=self.timeout_max_s,
            connectionTimeout=1e9,
            dynamicMembershipChange=False,
            logCompactionMinEntries=_ENDLESS,
            logCompactionMinTime=_ENDLESS,
            fullDumpFile=str(folder.folder),
            serializer=lambda *_: None,
            deserializer=lambda *_: None,
            onStateChanged=self._change_role,
        )

    # --- facts -----------------------------------------------------------------------------------------------

    @property
    def role(self) -> int:
        return self._SyncObj__raftState  # type: ignore[no-any-return]

    @property
    def is_leader(self) -> bool:
        return self._SyncObj__raftState == LEADER and not self._is_stopped

    @property
    def leader_name(self) -> str | None:
        leader = self._SyncObj__raftLeader
        return None if leader is None else str(leader.id)

    @property
    def commit_index(self) -> int:
        return self._SyncObj__raftCommitIndex

    @property
    def applied_index(self) -> int:
        return self._SyncObj__raftLastApplied

    @property
    def leads_with_own_entry(self) -> bool:
        """Whether this leader has applied an entry of its own term: only then it knows what is committed."""
        if not self.is_leader:
            return False
        term = self.journal.term
        if self._own_entry_term != term and self.journal.term_at(self.applied_index) == term:
            self._own_entry_term = term  # what it applies from here on is of this term, too
        return self._own_entry_term == term

    @property
    def next_index(self) -> dict[Any, int]:
        """By node: the first log index not yet sent to it."""
        return self._SyncObj__raftNextIndex  # type: ignore[no-any-return]

    def match_index(self, peer: str) -> int:
        return int(self._SyncObj__raftMatchIndex.get(self.nodes[peer], 0))

    # --- actions ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do a turn; with `has_more_work` the next one is due at once."""
        self._check_running()
        self._onTick(0)
        if self._installation is not None:
            self._install_step(self._installation)
        elif self._leftover is not None and self._leftover.step():
            self._leftover = None

    @property
    def has_more_work(self) -> bool:
        return self.commit_index > self.applied_index or self.is_installing or self._leftover is not None

    @property
    def is_turn_due(self) -> bool:
        """Whether a turn would do more than look at the time, which it does every half heartbeat anyway."""
        if self.has_more_work or self.may_campaign:
            return True
        return self.is_leader and (self.sent_index < self.journal.last_index or self._can_commit())

    def _can_commit(self) -> bool:
        """Whether a majority, this leader included, is known to hold an entry that is not committed yet."""
        matching: dict[Any, int] = self._SyncObj__raftMatchIndex
        next_index = self.commit_index + 1
        if next_index > self.journal.last_index:
            return False
        return 2 * (1 + sum(index >= next_index for index in matching.values())) > len(self.nodes) + 1

    @property
    def is_log_applied(self) -> bool:
        """Whether no entry is on its way: neither here to be sent, synced and committed, nor to be applied."""
        return self._SyncObj__raftLastApplied >= self.journal.last_index

    @property
    def is_installing(self) -> bool:
        """Whether a received checkpoint is being loaded; entries of the log are of no use until it is."""
        return self._installation is not None

    def deliver(self, peer: str, message: dict[str, Any]) -> None:
        """Give a message that the gate has passed to the library."""
        self._check_running()
        self._SyncObj__onMessageReceived(self.nodes[peer], message)

    def submit(self, commands: list[bytes], done: Callable[[list[Any] | None, int], None]) -> None:
        """Queue commands as one log entry; `done` gets their results, or None and the library's reason."""
        self._applyCommand(_COMMANDS + msgspec.msgpack.encode(commands), done)

    def replicate(self) -> None:
        """Send new entries at once, not with the next heartbeat."""
        if self.is_leader and self.sent_index < self.journal.last_index:
            self._SyncObj__sendAppendEntries()
            self.sent_index = self.journal.last_index

    def hear_leader(self) -> None:
        """Note a sign of life of the leader of this term."""
        self.heard_at_s = time.monotonic()
        if not self.is_leader:
            self._SyncObj__raftElectionDeadline = self.heard_at_s + self.random_timeout_s()

    def random_timeout_s(self) -> float:
        return float(self._SyncObj__generateRaftTimeout())

    def note_response(self, peer: str) -> None:
        self._SyncObj__lastResponseTime[self.nodes[peer]] = time.monotonic()

    def adopt_term(self, term: int) -> None:
        """Become a follower of a higher term that was heard of, without a vote in it."""
        if term > self.journal.term:
            self.deliver(
                next(iter(self.nodes)),
                {"type": "request_vote", "term": term, "last_log_index": 0, "last_log_term": -1},
            )

    def peer_connected(self, peer: str) -> None:
        """What was on its way over the old link is lost: send again from what is known to have arrived."""
        if self.is_leader:
            match = self.match_index(peer)
            self.next_index[self.nodes[peer]] = (match or self.journal.last_index) + 1
            self.sent_index = 0

    def fail(self, error: DfsError) -> NoReturn:
        """Stop for good: going on could lose or invent data."""
        if not self._is_stopped:
            self._is_stopped = True
            self._report_failure(error)
        raise EngineStopped(str(error))

    def stop(self) -> None:
        self._is_stopped = True
        if self._installation is not None:
            self._installation.close()
            self._installation = None
        self.checkpoints.close()

    def _check_running(self) -> None:
        if self._is_stopped:
            raise EngineStopped("the Raft engine is stopped")

    def _change_role(self, old: int, new: int) -> None:
        self.sent_index = 0
        if new != CANDIDATE:
            self.is_forced = False
        self._role_changed(old, new)

    # --- term, vote and election deadline (faults a, f1) -----------------------------------------------------

    @property
    def _SyncObj__raftCurrentTerm(self) -> int:
        return self.journal.term

    @_SyncObj__raftCurrentTerm.setter
    def _SyncObj__raftCurrentTerm(self, term: int) -> None:
        if self._is_live and term != self.journal.term:
            if term < self.journal.term:
                self.fail(InternalError(f"Raft term {term} after term {self.journal.term}: a bug, report it"))
            self.journal.set_vote(term, None)
            self.voters.clear()

    @property
    def _SyncObj__votedForNodeId(self) -> str | None:
        return self.journal.vote

    @_SyncObj__votedForNodeId.setter
    def _SyncObj__votedForNodeId(self, vote: str | None) -> None:
        if self._is_live and vote is not None and vote != self.journal.vote:
            if self.journal.vote is not None:
                self.fail(InternalError(f"a second vote in Raft term {self.journal.term}: a bug, report it"))
            self.journal.set_vote(self.journal.term, vote)

    @property
    def _SyncObj__raftElectionDeadline(self) -> float:
        return 0.0 if self.may_campaign else _NEVER_S

    @_SyncObj__raftElectionDeadline.setter
    def _SyncObj__raftElectionDeadline(self, deadline_s: float) -> None:
        self.election_deadline_s = deadline_s
        self.may_campaign = False

    # --- applying (faults e5, e6, e7) ------------------------------------------------------------------------

    def _SyncObj__doApplyCommand(self, command: bytes) -> list[Any] | None:
        self._check_running()
        kind = command[:1]
        if kind == _NOTHING:
            return None
        index = self.applied_index + 1
        if kind != _COMMANDS:
            self.fail(StorageCorrupt(f"log entry {index} has the unknown kind {kind!r}, of a newer version: upgrade"))
        try:
            return [self.machine.apply_encoded(one) for one in _UNPACKER.decode(command[1:])]
        except Exception as error:  # noqa: BLE001 - whatever it is, going on would part the masters
            _log.exception("apply_failed", index=index)
            self.fail(InternalError(f"applying log entry {index} raised {error!r}: a bug, report it with the log"))

    # --- checkpoints (faults h1 to h5, j10) ------------------------------------------------------------------

    def checkpoint_soon(self) -> None:
        if not self.checkpoints.writer.is_writing:
            self.forceLogCompaction()

    def checkpoint_begun(self, index: int) -> None:
        self.checkpoint_index = index
        self.checkpoint_size = self.journal.appended_size

    def checkpoint_done(self, index: int, *, is_good: bool) -> None:
        if is_good:
            self.checkpoint_failed_at_s = None
            _log.info("checkpoint_written", index=index)
        else:
            self.checkpoint_failed_at_s = time.monotonic()

    def accept_checkpoint(self, draft: Path) -> None:
        """Begin to load a received checkpoint beside the present state, if it is newer than what is here."""
        try:
            installation = Installation(draft, self.machine)
        except StorageCorrupt as error:
            _log.error("checkpoint_received_damaged", why=str(error))
            return
        if self._is_news(installation.head):
            self._installation = installation
            _log.info("checkpoint_installing", index=installation.head.index)
        else:
            installation.close()

    def _is_news(self, head: CheckpointHead) -> bool:
        return head.index > self.applied_index and self.journal.term_at(head.index) != head.last[2]

    def _install_step(self, installation: Installation) -> None:
        """Do one step; after the last one publish the file, then replace journal and state, then say so."""
        try:
            if not installation.step():
                return
        except StorageCorrupt as error:
            self._installation = None
            _log.error("checkpoint_received_damaged", why=str(error))
            return
        self._installation = None
        if self.is_leader or not self._is_news(installation.head):
            return
        self.checkpoints.writer.stop()
        folder = self.checkpoints.folder
        try:
            folder.publish(installation.draft, installation.head.index)
        except OSError as error:
            self.fail(disk_error(error, folder.folder, "storing a checkpoint"))
        try:
            self._begin_log(folder.path(installation.head.index), installation.head)
        except StorageCorrupt as error:
            self.fail(error)
        installation.install()
        self._leftover = installation
        self._loaded(installation.head.index)
        if self._SyncObj__raftLeader is not None:
            self._SyncObj__sendNextNodeIdx(self._SyncObj__raftLeader, success=True)

    def _load_at_start(self) -> None:
        """Load what is on disk; raise `StorageCorrupt` that says the way out rather than start with less."""
        path = self.checkpoints.folder.newest()
        first = self.journal.first_index
        if path is None:
            if first != 1:
                raise StorageCorrupt(
                    f"the Raft journal starts at index {first} and the checkpoint before it is missing in "
                    f"{self.checkpoints.folder.folder}; put it back there, or {WAY_OUT}"
                )
            return
        try:
            self._load_checkpoint(path)
        except StorageCorrupt as error:
            raise StorageCorrupt(f"{error}. {self._way_out(path)}") from error

    def _way_out(self, damaged: Path) -> str:
        older = self.checkpoints.folder.indexes()[:-1]
        reach = older[-1] if older else 1
        if self.journal.first_index <= reach <= self.journal.last_index:
            before = f"the checkpoint before it ({self.checkpoints.folder.path(reach)})" if older else "the very start"
            return f"The journal reaches back to {before}: move {damaged.name} out of the folder and start again"
        return f"The journal does not reach back far enough to do without it: {WAY_OUT}"

    def _load_checkpoint(self, path: Path) -> None:
        head = verify_checkpoint(path)  # whole, before anything is touched
        self._begin_log(path, head)
        self.machine.load(read_pieces(path))
        self._loaded(head.index)

    def _begin_log(self, path: Path, head: CheckpointHead) -> None:
        """Let the journal begin with the last entries of a checkpoint, unless it holds them."""
        journal, index = self.journal, head.index
        if journal.term_at(index) != head.last[2]:
            if journal.first_index > index and journal.first_index != 1:
                raise StorageCorrupt(f"checkpoint {path} ends at {index}, the journal starts at {journal.first_index}")
            if head.last[2] > journal.term:  # the power failed after the checkpoint was there, before its term was
                journal.set_vote(head.last[2], None)
            journal.reset()
            journal.append(*head.previous)
            journal.append(*head.last)

    def _loaded(self, index: int) -> None:
        """Go on from a checkpoint that the state machine holds now."""
        journal = self.journal
        self._SyncObj__raftLastApplied = index
        self._SyncObj__raftCommitIndex = max(self.commit_index, index)
        self._forget_before(index - 1)
        behind = index - journal.first_index + 1
        self.checkpoint_index = index
        self.checkpoint_size = journal.appended_size - sum(len(entry[0]) for entry in journal.entries[behind:])
        _log.info("checkpoint_loaded", index=index, log_end=journal.last_index)

    def _SyncObj__deleteEntriesTo(self, index: int) -> None:
        """A checkpoint that holds `index` and the entry after it is on disk."""
        self._forget_before(index)
        kept = self.checkpoints.folder.indexes()
        if len(kept) > 1:  # the journal must reach back to the checkpoint before
            self.journal.release(kept[-2] - 1)

    def _forget_before(self, index: int) -> None:
        """Drop entries from memory, but keep a tail before `index` for followers that are a little behind."""
        journal = self.journal
        position = index - journal.first_index
        oldest = max(0, position - KEEP_ENTRIES)
        size = 0
        while position > oldest and size < KEEP_SIZE:
            position -= 1
            size += len(journal.entries[position][0])
        journal.forget(position)
