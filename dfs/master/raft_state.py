"""The replicated state as a pysyncobj object: the wall around the Raft library.

Owns: `RaftLog`, a `ReplicatedLog` on stock pysyncobj, driven by the asyncio loop. Refuses to know: commands, names, clients.

All proposals of one loop turn become one log entry, and a read barrier is a (possibly empty) entry proposed after the
read began, shared by all reads that wait: linearizable without trusting a clock. The library's faults that matter here:
callbacks may never come, so every wait is bounded and ends as `OutcomeUnknown`; an exception out of an apply would run
the entry for ever, so it stops the process; the address to bind must be said, or 0.0.0.0 is bound; a link idle for
`connectionTimeout` loses its next message (the first vote of an election), so that timeout is made endless.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pysyncobj.syncobj as library
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, SyncObjConsumer, SyncObjException, replicated

from dfs.errors import ConfigError, DfsError, NoQuorum, NotLeader, OutcomeUnknown, Overloaded, StorageCorrupt
from dfs.log import get_logger
from dfs.master.replicated_log import LogStatus, StateMachine
from dfs.net.auth import ClusterKey

PENDING_COMMANDS_MAX = 20_000  # proposals and barriers waiting in one master
TICK_S = 0.02  # longest time between two looks at timers
HEARTBEAT_S = 0.1  # the leader's append-entries period
COMPACT_ENTRIES = 100_000  # entries after which the log is folded into a dump
LIBRARY_VERSION = "0.3.17"
_READ, _WRITE = 1, 2  # pysyncobj.poller.POLL_EVENT_TYPE
_ROLES = {0: "follower", 1: "candidate", 2: "leader"}

log = get_logger(__name__)


class _LoopPoller:
    """The library's poller interface on the asyncio loop; `on_event` runs after each socket event."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_event: Callable[[], None]) -> None:
        self._loop, self._on_event = loop, on_event

    def subscribe(self, descriptor: int, callback: Callable[[int, int], None], mask: int) -> None:
        self.unsubscribe(descriptor)
        if mask & _READ:
            self._loop.add_reader(descriptor, self._fire, callback, descriptor, _READ)
        if mask & _WRITE:
            self._loop.add_writer(descriptor, self._fire, callback, descriptor, _WRITE)

    def unsubscribe(self, descriptor: int) -> None:
        for remove in (self._loop.remove_reader, self._loop.remove_writer):
            with contextlib.suppress(OSError):  # the library closes a socket before it unsubscribes it
                remove(descriptor)

    def poll(self, _timeout: float) -> None:
        """Do nothing: the loop polls."""

    def _fire(self, callback: Callable[[int, int], None], descriptor: int, event: int) -> None:
        callback(descriptor, event)
        self._on_event()


class _LazyDump:
    """Pickles as the pieces of a state dump, made where the pickling happens: in the library's forked child."""

    def __init__(self, machine: StateMachine) -> None:
        self._machine = machine

    def __reduce__(self) -> tuple[type[list[bytes]], tuple[list[bytes]]]:
        return list, (list(self._machine.dump()),)


class _ReplicatedMachine(SyncObjConsumer):  # type: ignore[misc]  # pysyncobj has no types
    """The state machine as the library's replicated object."""

    def __init__(self, machine: StateMachine) -> None:
        super().__init__()
        self._machine = machine

    @replicated  # type: ignore[untyped-decorator]
    def apply_batch(self, commands: list[bytes]) -> list[Any]:
        try:
            return [self._machine.apply_encoded(command) for command in commands]
        except Exception:  # the library would re-apply for ever, and the masters would part: stop here
            log.exception("apply_failed", commands=len(commands))
            os._exit(70)

    def _serialize(self) -> _LazyDump:
        return _LazyDump(self._machine)

    def _deserialize(self, data: list[bytes]) -> None:
        try:
            self._machine.load(data)
        except DfsError:  # the library would run on with an empty state
            log.exception("checkpoint_unusable")
            os._exit(71)


class RaftLog:
    """A `ReplicatedLog` over the masters in `peers` (name to raft address, itself included)."""

    def __init__(
        self,
        *,
        name: str,
        peers: Mapping[str, str],
        data_dir: Path,
        key: ClusterKey,
        machine: StateMachine,
        election_timeout_s: tuple[float, float],
        fsync: bool,
        on_leadership: Callable[[bool], None],
    ) -> None:
        del fsync  # stock pysyncobj never syncs; the hardened journal will
        self._name, self._peers, self._data_dir, self._key = name, dict(peers), data_dir, key
        self._names = {address: peer for peer, address in peers.items()}
        self._replica = _ReplicatedMachine(machine)
        self._timeouts = election_timeout_s
        self._on_leadership = on_leadership
        self._node: Any = None
        self._pending: list[tuple[bytes | None, asyncio.Future[Any]]] = []  # command, or None for a barrier
        self._waiting: set[asyncio.Future[Any]] = set()
        self._is_tick_due = False
        self._timer: asyncio.TimerHandle | None = None

    # --- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the journal and join; `ConfigError` when the address is taken, `StorageCorrupt` for a bad journal."""
        self._loop = asyncio.get_running_loop()
        if library.VERSION != LIBRARY_VERSION:
            raise ConfigError(f"pysyncobj {library.VERSION} is installed, {LIBRARY_VERSION} is needed: reinstall dfss")
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        own = self._peers[self._name]
        make_poller = library.createPoller
        library.createPoller = lambda _kind: _LoopPoller(self._loop, self._schedule_tick)
        try:
            self._node = SyncObj(
                own, [a for a in self._peers.values() if a != own], self._conf(own), consumers=[self._replica]
            )
        except SyncObjException:
            raise ConfigError(
                f"master {self._name}: cannot bind raft address {own}; is another master running there?"
            ) from None
        except Exception as error:
            raise StorageCorrupt(
                f"master {self._name}: the raft journal in {self._data_dir} cannot be read ({error!r}); "
                "move the folder away and start again: the other masters send the state"
            ) from error
        finally:
            library.createPoller = make_poller
        self._tick_by_timer()

    def _conf(self, own: str) -> Any:
        low, high = self._timeouts
        return SyncObjConf(
            autoTick=False,
            password=self._key.raft_key.hex(),
            bindAddress=own,
            maxBindRetries=1,
            raftMinTimeout=low,
            raftMaxTimeout=high,
            appendEntriesPeriod=HEARTBEAT_S,
            appendEntriesUseBatch=False,
            appendEntriesBatchSizeBytes=1 << 20,
            leaderFallbackTimeout=2 * high,
            connectionTimeout=1e6,
            connectionRetryTime=0.2,
            commandsWaitLeader=False,
            journalFile=str(self._data_dir / "journal"),
            fullDumpFile=str(self._data_dir / "dump"),
            logCompactionMinEntries=COMPACT_ENTRIES,
            logCompactionMinTime=1e9,
            onStateChanged=self._role_changed,
        )

    async def close(self) -> None:
        if self._node is None:
            return
        if self._timer:
            self._timer.cancel()
        node, self._node = self._node, None
        node.destroy()
        self._fail_waiting("this master stops")

    # --- the loop ---------------------------------------------------------------------------------------

    def _tick_by_timer(self) -> None:
        if self._node is not None:
            self._timer = self._loop.call_later(TICK_S, self._tick_by_timer)
            self._tick()

    def _schedule_tick(self) -> None:
        if not self._is_tick_due:
            self._is_tick_due = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._is_tick_due = False
        if self._node is None:
            return
        if self._pending:
            batch, self._pending = self._pending, []
            self._propose_batch(batch)
        self._node.doTick(0)

    def _propose_batch(self, batch: list[tuple[bytes | None, asyncio.Future[Any]]]) -> None:
        def finish(results: list[Any] | None, reason: int) -> None:
            position = 0
            for command, future in batch:
                self._waiting.discard(future)
                if not future.done():
                    if results is None or reason != FAIL_REASON.SUCCESS:
                        future.set_exception(OutcomeUnknown("leadership was lost while the command was on its way"))
                    else:
                        future.set_result(None if command is None else results[position])
                position += command is not None

        self._replica.apply_batch([command for command, _ in batch if command is not None], callback=finish)

    def _role_changed(self, old: int, new: int) -> None:
        log.info("raft_role", old=_ROLES.get(old), new=_ROLES.get(new))
        if _ROLES.get(old) == "leader":
            self._fail_waiting("leadership was lost while the command was on its way")
        if "leader" in (_ROLES.get(old), _ROLES.get(new)):
            self._on_leadership(_ROLES.get(new) == "leader")

    def _fail_waiting(self, why: str) -> None:
        self._pending.clear()
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_exception(OutcomeUnknown(why))

    # --- the interface --------------------------------------------------------------------------------------

    async def propose(self, command: bytes, timeout_s: float) -> Any:
        return await self._submit(command, timeout_s)

    async def read_barrier(self, timeout_s: float) -> None:
        try:
            await self._submit(None, timeout_s)
        except OutcomeUnknown:
            raise NoQuorum(
                f"master {self._name} could not prove within {timeout_s:.1f} s that it leads a majority of the "
                f"{len(self._peers)} masters; check that at least {len(self._peers) // 2 + 1} run and reach each other"
            ) from None

    async def _submit(self, command: bytes | None, timeout_s: float) -> Any:
        if not self.is_leader:
            raise NotLeader(f"master {self._name} does not lead")
        if len(self._waiting) >= PENDING_COMMANDS_MAX:
            raise Overloaded(f"master {self._name} has {PENDING_COMMANDS_MAX} calls waiting; try again")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.add(future)
        self._pending.append((command, future))
        self._schedule_tick()
        try:
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise OutcomeUnknown(f"no majority of the masters confirmed the command within {timeout_s:.1f} s") from None
        finally:
            self._waiting.discard(future)

    @property
    def is_leader(self) -> bool:
        return self._node is not None and bool(self._node._isLeader())

    def status(self) -> LogStatus:
        if self._node is None:
            return LogStatus("stopped", 0, 0, 0, None)
        facts = self._node.getStatus()
        leader = facts["leader"]
        return LogStatus(
            role=_ROLES.get(facts["state"], "follower"),
            term=facts["raft_term"],
            commit_index=facts["commit_idx"],
            applied_index=facts["last_applied"],
            leader=self._names.get(leader.id) if leader is not None else None,
        )
