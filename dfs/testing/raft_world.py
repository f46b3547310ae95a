"""The real Raft code of the masters on virtual machines: what is exchanged under it, and a master's many lives.

Owns: the list of names that are exchanged in dfs.master.raft_* while a simulation runs, and hosts that start, die,
lose their power and start again. Refuses to know: when what fails (raft_simulation) and what is right (raft_referee).

Real: node, engine with pysyncobj, gate, transport, links with handshake and MACs, wire, journal, records, checkpoint
files and folder, the state machine. Virtual: time, random numbers, sockets, files, and two things that a single thread
cannot have: the journal's writer thread (its steps are callbacks after a delay) and the checkpoint's forked child (it
takes the state at once and writes with the same functions later).
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from dfs.errors import DfsError
from dfs.master import (
    raft_checkpoint,
    raft_engine,
    raft_gate,
    raft_join,
    raft_journal,
    raft_link,
    raft_node,
    raft_planned,
    raft_state,
    raft_transport,
)
from dfs.master.raft_checkpoint import CheckpointHead, CheckpointWriter, write_checkpoint
from dfs.master.raft_engine import EngineJournal
from dfs.master.raft_state import RaftLog
from dfs.master.raft_wire import AgeQuery, AgeReply, Ping, RaftMessage
from dfs.master.state import checkpoint
from dfs.master.state.machine import MasterState
from dfs.net.auth import ClusterKey
from dfs.testing.virtual_disk import VirtualDisk, VirtualOs
from dfs.testing.virtual_loop import Machine, MachineDied, VirtualLoop, current_machine
from dfs.testing.virtual_net import VirtualNet, VirtualTransport

RAFT_PORT = 7100
QUICK_SHARE = 0.4  # of the time the disk takes less than another thread would
_NOWHERE = Context()  # of messages on their way
_NEVER_ECHOED = (
    Ping,
    AgeQuery,
    AgeReply,
)  # questions of age are numbered within a life of a master: links tell them apart
_LIBRARY: Any = vars(raft_engine)["library"]  # only the Raft wall imports it
_LIBRARY_NODE: Any = raft_transport.Node.__mro__[1]
WALL_START_MS = 1_700_000_000_000
KEY = ClusterKey.from_secret(b"a secret of thirty-two bytes, ok", "simulation")


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftLimits:
    """The limits of the Raft code, small enough that a run of seconds meets them."""

    segment_size: int  # bytes
    slice_entries: int
    keep_entries: int
    checkpoint_entries: int
    piece_size: int  # bytes
    disk_delay_s: float  # of one batch, about
    election_timeout_s: tuple[float, float]


class MasterHost:
    """One computer: its disk stays, its lives come and go. `life` is the present one."""

    def __init__(self, world: RaftWorld, name: str) -> None:
        self.name = name
        self.address = f"10.0.0.{int(name[1:])}"
        self.rng = random.Random(f"{world.seed} {name}")  # noqa: S311 - a seed must replay
        self.wipe()
        self.wall_ahead_ms = 0
        self.slowness = self.rng.choice((0.2, 1.0, 1.0, 5.0))  # of the disk
        self.life: Life | None = None
        self._world = world

    def wipe(self) -> None:
        """Put in a new disk."""
        self.disk = VirtualDisk(self.rng)
        self.disk.on_power_cut = lambda: self.die(with_power=True)

    async def start(self) -> bool:
        """Begin a life; return False when it ended while it started. Errors of the disk are raised."""
        world = self._world
        world.net.dark.discard(self.name)
        machine = Machine(
            world.loop,
            self.name,
            clock_rate=self.rng.choice((1.0, 1.0, self.rng.uniform(0.95, 1.05))),
            clock_start_s=self.rng.uniform(0, 1e6),
        )
        life = self.life = Life(self, world, machine)
        try:
            await machine.spawn(life.log.start())
            life.is_started = machine.is_alive
        except MachineDied:
            assert self.life is not life
        except DfsError:
            self.die(with_power=False)
            raise
        return life.is_started

    def die(self, *, with_power: bool) -> None:
        """End this life: as by SIGKILL, or because the power fails."""
        life, self.life = self.life, None
        if life is None:
            return
        if with_power:
            if life.writer is not None and life.writer.jobs and self.disk.operations_left > 0:
                life.writer.be_interrupted(self.rng)
            self._world.net.dark.add(self.name)
        life.machine.kill()
        self._world.net.drop_machine(life.machine, silently=with_power)
        if with_power:
            self.disk.lose_power()
        self.disk.on_power_cut = lambda: self.die(with_power=True)
        self._world.on_death(self, with_power)

    def wall_ms(self) -> int:
        return WALL_START_MS + self.wall_ahead_ms + int(self._world.loop.time() * 1000)


class Life:
    """A master process on its machine. What the referee has seen of it so far is kept here, too."""

    def __init__(self, host: MasterHost, world: RaftWorld, machine: Machine) -> None:
        self.host, self.machine = host, machine
        self.is_started = False
        self.writer: VirtualWriter | None = None
        self.seen_commit = self.seen_applied = self.led_term = 0
        self.seen_sequence = -1
        self.seen_vote: tuple[int, str | None] = (0, None)
        self.new_ends: deque[tuple[int, int, int]] = deque()  # not on disk yet: journal record, log index, term
        self.new_votes: deque[tuple[int, int, str]] = deque()  # not on disk yet: journal record, term, for whom
        self.seen_terms: dict[int, int] = {}  # by log index
        self.state = MasterState()
        self._world = world
        self.log = RaftLog(
            name=host.name,
            peers=world.peers,
            data_dir=host.disk.root(),  # type: ignore[arg-type]  # a path on another disk
            key=KEY,
            machine=self.state,
            election_timeout_s=world.limits.election_timeout_s,
            fsync=True,
            on_leadership=lambda _leads: None,
            on_failure=self._fail,
        )

    @property
    def engine(self) -> raft_engine.Engine:
        return self.log.node.engine

    def hear_echo(self, peer: str, message: RaftMessage) -> None:
        """What the transport does with a message that comes over a link."""
        raft_gate.Gate.received(self.log.node.gate, peer, message)
        self.log.node.messages_handled()

    def _fail(self, error: DfsError) -> None:
        """What `os._exit` is in a real process."""
        self._world.on_failure(self.host, error)
        self.host.die(with_power=False)
        raise MachineDied


class RaftWorld:
    """Hosts, net and time of one run. Use `installed()` around everything that touches the Raft code."""

    def __init__(self, seed: int, size: int, limits: RaftLimits, *, net_delay_s: float, echo_rate: float = 0.0) -> None:
        self.seed, self.limits, self.echo_rate = seed, limits, echo_rate
        self.loop = _NetLoop()  # type: ignore[abstract]  # what is not there is not used
        self.net = VirtualNet(self.loop, random.Random(f"{seed} net"), delay_s=net_delay_s)  # noqa: S311
        self.loop.net = self.net
        names = [f"m{number}" for number in range(1, size + 1)]
        self.hosts = {name: MasterHost(self, name) for name in names}
        self.peers = {name: f"{host.address}:{RAFT_PORT}" for name, host in self.hosts.items()}
        for host in self.hosts.values():
            self.net.name_host(host.address, host.name)
        self.on_failure: Callable[[MasterHost, DfsError], None] = lambda _host, _error: None
        self.on_death: Callable[[MasterHost, bool], None] = lambda _host, _with_power: None
        self._rng = random.Random(f"{seed} outside")  # noqa: S311
        self._echo_rng = random.Random(f"{seed} echo")  # noqa: S311

    def life_of(self, machine: Machine) -> Life | None:
        host = self.hosts.get(machine.name)
        life = host.life if host is not None else None
        return life if life is not None and life.machine is machine else None

    def rng_of(self, machine: Machine | None) -> random.Random:
        return self._rng if machine is None else self.hosts[machine.name].rng

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Exchange the names for the length of a run."""
        changes = self._exchanged_names()
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        try:
            for owner, name, value in changes:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)
            VirtualOs.forget()

    def _exchanged_names(self) -> list[tuple[Any, str, Any]]:
        limits = self.limits
        time = SimpleNamespace(monotonic=self._monotonic)
        system = VirtualOs(self.rng_of)

        def draw() -> float:
            return self.rng_of(current_machine()).random()

        return [
            (raft_node, "time", time),
            (raft_state, "time", time),
            (raft_node, "os", system),
            (raft_node, "fcntl", SimpleNamespace(flock=lambda *_: None, LOCK_EX=0, LOCK_NB=0)),
            (raft_node, "EngineJournal", self._make_journal),
            (raft_node, "Gate", self._make_gate),
            (raft_node, "CHECKPOINT_ENTRIES", limits.checkpoint_entries),
            (raft_engine, "time", time),
            (raft_engine, "CheckpointWriter", self._make_checkpoint_writer),
            (raft_engine, "Node", _Node),
            (raft_engine, "KEEP_ENTRIES", limits.keep_entries),
            (_LIBRARY, "monotonicTime", self._monotonic),
            (_LIBRARY, "random", SimpleNamespace(random=draw)),
            (raft_gate, "time", time),
            (raft_link, "time", time),
            (raft_link, "os", system),
            (raft_planned, "time", time),
            (raft_transport, "time", time),
            (raft_transport, "draw", draw),
            (raft_transport, "Node", _Node),
            (raft_join, "os", system),
            (raft_journal, "os", system),
            (raft_journal, "threading", SimpleNamespace(Thread=_InstantThread, Lock=threading.Lock)),
            (raft_journal, "SLICE_ENTRIES_MAX", limits.slice_entries),
            (raft_checkpoint, "os", system),
            (raft_checkpoint, "time", time),
            (raft_checkpoint, "PIECE_SIZE", limits.piece_size),
            (checkpoint, "PIECE_SIZE", limits.piece_size),  # small ones take many turns to be loaded
        ]

    def _monotonic(self) -> float:
        machine = current_machine()
        return self.loop.now_s if machine is None else machine.monotonic()

    def _make_journal(self, folder: Any, *, name: str, fsync: bool) -> EngineJournal:
        machine = current_machine()
        assert machine is not None
        journal = _VirtualJournal(folder, name=name, fsync=fsync, segment_size=self.limits.segment_size)
        life = self.life_of(machine)
        assert life is not None
        journal.virtual_writer = life.writer = VirtualWriter(self, machine, journal)
        journal.pace_rng = random.Random(f"{self.seed} {machine.name} {self.loop.now_s}")  # noqa: S311 - it must replay
        return journal

    def _make_gate(self, *arguments: Any) -> raft_gate.Gate:
        machine = current_machine()
        assert machine is not None
        gate = _EchoingGate(*arguments)
        gate.world, gate.host = self, self.hosts[machine.name]
        return gate

    def echo_later(self, peer: str, host: MasterHost, message: RaftMessage) -> None:
        """Let a message come a second time now and then: to whichever life the host has by then."""
        if self._echo_rng.random() < self.echo_rate and not isinstance(message, _NEVER_ECHOED):
            delay_s = self._echo_rng.choice((0.01, 0.1, 0.5, 1.5)) * self._echo_rng.random()
            self.loop.call_later(delay_s, self._echo, peer, host, message, context=_NOWHERE)

    def _echo(self, peer: str, host: MasterHost, message: RaftMessage) -> None:
        life = host.life
        if self.echo_rate and life is not None and life.is_started and self.net.is_open(peer, host.name):
            self.loop.call_soon(life.hear_echo, peer, message, context=life.machine.context.copy())

    def _make_checkpoint_writer(self, folder: raft_checkpoint.CheckpointFolder) -> CheckpointWriter:
        return _VirtualCheckpointWriter(self, folder)


class _EchoingGate(raft_gate.Gate):
    """The gate of a network that delivers some messages twice, the second time late and out of order.

    Our links cannot do that, as each frame's counter is under its MAC; Raft must not depend on it.
    """

    world: RaftWorld
    host: MasterHost

    def received(self, peer: str, message: RaftMessage) -> None:
        self.world.echo_later(peer, self.host, message)
        super().received(peer, message)


class _NetLoop(VirtualLoop):
    """The loop with the two calls of asyncio that make connections."""

    net: VirtualNet

    async def create_server(  # type: ignore[override]  # the one form that is used
        self, make_protocol: Callable[[], Any], host: str, port: int
    ) -> Any:
        return self.net.listen((host, port), make_protocol)

    async def create_connection(  # type: ignore[override]  # the one form that is used
        self, make_protocol: Callable[[], Any], host: str, port: int
    ) -> tuple[VirtualTransport, Any]:
        return await self.net.connect((host, port), make_protocol)


class _Node(_LIBRARY_NODE):  # type: ignore[misc]  # the library has no types
    """The library keeps nodes in sets: their order must not depend on the process."""

    def __init__(self, id: Any, **rest: Any) -> None:  # noqa: A002 - the library's name
        super().__init__(id, **rest)
        self._hash = zlib.crc32(str(id).encode())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return bool(super().__eq__(other))


class _InstantThread:
    """A thread that has done its work as soon as it is started."""

    def __init__(self, *, target: Callable[[], None], name: str, daemon: bool) -> None:
        del name, daemon
        self._target = target

    def start(self) -> None:
        self._target()

    def join(self) -> None:
        """Do nothing: it has ended."""


class _VirtualJournal(EngineJournal):
    """The journal with its writer on the loop, on a disk that is now and then so quick that the loop writes itself."""

    virtual_writer: VirtualWriter
    pace_rng: random.Random
    _quick_left = 0  # looks at the pace of the disk until it changes
    _is_quick_now = False

    @property
    def is_quick(self) -> bool:
        if not self._quick_left:
            self._is_quick_now = self.pace_rng.random() < QUICK_SHARE
            self._quick_left = self.pace_rng.randint(1, 200)
        self._quick_left -= 1
        return self._is_quick_now

    def attach(
        self, post: raft_journal.Post, on_durable: Callable[[], None], on_failure: Callable[[DfsError], None]
    ) -> None:
        self._post, self._on_durable, self._on_failure = post, on_durable, on_failure
        self._queue = self.virtual_writer  # type: ignore[assignment]  # it is both the queue and the thread
        self._writer = self.virtual_writer  # type: ignore[assignment]


class VirtualWriter:
    """The journal's queue and writer thread: each job is done by the journal's own step after the disk's delay."""

    def __init__(self, world: RaftWorld, machine: Machine, journal: EngineJournal) -> None:
        self.jobs: deque[Any] = deque()
        self._world, self._machine, self._journal = world, machine, journal
        self._timer: Any = None
        self._is_broken = False

    def put(self, job: Any) -> None:
        self.jobs.append(job)
        if len(self.jobs) == 1:
            self._work_after(self._delay_s())

    def get(self, timeout: float | None = None) -> Any:
        del timeout
        if not self.jobs:
            raise queue.Empty
        return self.jobs.popleft()

    def join(self) -> None:
        """Do all that is left at once."""
        while self.jobs and not self._is_broken:
            self._step()

    def be_interrupted(self, rng: random.Random) -> None:
        """The power fails while the job is under way: do the first few operations of it."""
        disk = self._world.hosts[self._machine.name].disk
        disk.on_power_cut = lambda: None
        disk.operations_left = rng.randint(0, 3)
        with contextlib.suppress(MachineDied):
            self._machine.run(self._step)

    def _delay_s(self) -> float:
        host = self._world.hosts[self._machine.name]
        rng = host.rng
        slow = host.slowness * (20.0 if rng.random() < 0.02 else 1.0)
        return self._world.limits.disk_delay_s * slow * (0.5 + rng.random())

    def _work_after(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._world.loop.call_later(delay_s, self._work, context=self._machine.context.copy())

    def _work(self) -> None:
        self._step()
        if self._is_broken:
            return
        if self.jobs:
            self._work_after(self._delay_s())
        elif self._journal._needs_mark:
            self._work_after(raft_journal._SETTLE_S)

    def _step(self) -> None:
        """One round of what the thread does for ever."""
        journal = self._journal
        try:
            journal._write_next()
        except OSError as error:
            self._is_broken = True
            doing = "writing the Raft journal"
            journal._report(journal._failed, raft_journal.disk_error(error, journal.folder, doing))


class _VirtualCheckpointWriter(CheckpointWriter):
    """Takes the state at once, as a fork does, and writes it a while later."""

    def __init__(self, world: RaftWorld, folder: raft_checkpoint.CheckpointFolder) -> None:
        super().__init__(folder)
        self._world = world
        self._status: int | None = None
        self._attempt = 0

    def start(self, head: CheckpointHead, dump: Callable[[], Iterator[bytes]]) -> None:
        assert not self._child, "a checkpoint is being written already"
        self._attempt += 1
        self.index, self._child, self._status = head.index, 1, None
        rng = self._world.rng_of(current_machine())
        self._world.loop.call_later(rng.random() * 0.2, self._write, self._attempt, head, list(dump()))

    def _write(self, attempt: int, head: CheckpointHead, pieces: list[bytes]) -> None:
        if attempt != self._attempt or not self._child:
            return
        draft = self._draft(head.index)
        try:
            write_checkpoint(draft, head, pieces, fsync=self._folder.fsync)
            self._folder.publish(draft, head.index)
            self._status = 0
        except OSError as error:
            self._status = error.errno

    def poll(self) -> bool | None:
        if not self._child or self._status is None:
            return None
        self._child = 0
        return not self._status

    def stop(self) -> None:
        child, self._child = self._child, 0
        if child:
            self._draft(self.index).unlink(missing_ok=True)
