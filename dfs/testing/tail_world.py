"""Record append without sockets: real tails, seals and state, and every message may be lost, late or cut by a crash.

Owns: servers, masters and appenders that are stepped by a seed, and the faults between them. Refuses to know: any
promise (dfs.chaos.records judges). A failing seed replays exactly: `python -m dfs.testing.tail_world 17 18`.

Everything runs in one thread. A call either is lost before it arrives, or its reply is lost after it took effect, or
its receiver crashes in the middle of writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast

from dfs.chaos.records import Acknowledged, check_exactly_once, make_record
from dfs.checksum import Buffer, crc32c
from dfs.chunk.peers import PeerConnections
from dfs.chunk.store import FileStore
from dfs.chunk.tails import log as tail_log
from dfs.chunk.tails.folders import TAIL_FOLDER
from dfs.chunk.tails.service import TailService
from dfs.clock import SYSTEM_CLOCK, Deadline
from dfs.errors import ChunkNotFound, ConnectionFailed, DfsError, NotEnoughServers, OutcomeUnknown, TailClosed
from dfs.ids import ChunkHandle, ServerId, new_chunk_handle
from dfs.master.access import AccessDesk
from dfs.master.healing.liveness import ClusterView
from dfs.master.leadership import Leadership
from dfs.master.state.commands import PutServer
from dfs.master.state.machine import MasterState
from dfs.master.tail_desk import TailDesk
from dfs.net.auth import ClusterKey
from dfs.net.messages import (
    Allocate,
    AllocateReply,
    AppendRecords,
    AppendRecordsReply,
    ErrorReply,
    Message,
    OpenTail,
    ReadTail,
    ReadTailReply,
)
from dfs.net.parts import AllocatedChunk, LocatedTail, RecordGroup, ServerInfo

PATH = "/log"
SERVERS = 5
STEPS = 120  # of one seed
STEPS_TO_SETTLE = 8  # without faults: find out that the tail is over, that the next one is full, append
TIME_MS = 1_700_000_000_000
DEADLINE = Deadline(float("inf"))
T = TypeVar("T", bound=Message)


class Faults:
    """Which calls fail, and how. `rate` 0: none."""

    def __init__(self, rng: Random, rate: float) -> None:
        self._rng = rng
        self.rate = rate
        self.cut: set[tuple[str, str]] = set()  # (from, to) that do not reach each other

    def strikes(self) -> bool:
        return self._rng.random() < self.rate

    def check_reached(self, source: str, target: str) -> None:
        if (source, target) in self.cut or self.strikes():
            raise ConnectionFailed(f"{source} did not reach {target}", address=target)

    def check_replied(self, source: str, target: str) -> None:
        if (target, source) in self.cut or self.strikes():
            raise ConnectionFailed(f"{target} took effect, its reply to {source} is lost", address=target)


class SimChannel:
    """What a server's chain code talks to in place of a connection to the next server."""

    def __init__(self, world: TailWorld, source: str, target: str) -> None:
        self.address = target
        self._world, self._source = world, source
        self._reply: Message | DfsError | None = None

    def call(self, message: Message, _deadline: Deadline) -> Message:
        return self._world.call(self._source, self.address, message, b"")[0]

    def send(self, message: Message, _deadline: Deadline, *, payload: bytes = b"") -> None:
        try:
            self._reply = self._world.call(self._source, self.address, message, bytes(payload))[0]
        except DfsError as error:
            self._reply = error

    def receive(self, _deadline: Deadline) -> SimReceived:
        if isinstance(self._reply, DfsError):
            raise self._reply
        assert self._reply is not None, "nothing was sent"
        return SimReceived(self._reply)

    def close(self) -> None:
        """Nothing is kept."""


class SimReceived:
    """A received message, as far as the chain code looks at it."""

    def __init__(self, message: Message) -> None:
        self.message = message


class SimPeers:
    """A server's connections to the others."""

    def __init__(self, world: TailWorld, name: str) -> None:
        self._world, self._name = world, name

    def take(self, address: str, _deadline: Deadline) -> SimChannel:
        return SimChannel(self._world, self._name, address)

    def give(self, channel: SimChannel) -> None:
        """Nothing is kept."""


class SimServer:
    """One chunk server; what is on its disk outlives it, its store as well (its own crashes are tested elsewhere)."""

    def __init__(self, world: TailWorld, name: str, folder: Path) -> None:
        self.name = name
        self.server_id = ServerId(name.encode().ljust(16, b"."))
        self.store = FileStore([folder], "sim", disk_reserve=0, fsync=False, volume_chunk_max=0)
        self.store.server_id = self.server_id
        self._world = world
        self._folder = folder / TAIL_FOLDER
        self.is_up = True
        self.start()

    def start(self) -> None:
        """Come (back) with what is on disk."""
        peers = cast(PeerConnections, SimPeers(self._world, self.name))
        self.service = TailService([self._folder], self.store, peers, lambda *_: None)
        self.is_up = True

    def has_open(self, file: tail_log.TailFile) -> bool:
        """Whether the present process made this tail."""
        tail = self.service._open.get(file.handle)
        return tail is not None and tail.file is file

    def crash_while_writing(self, rng: Random, tail: tail_log.TailFile, frame: bytes) -> None:
        """Leave any beginning of a frame on the disk, any part of its data missing, and be down."""
        with contextlib.suppress(FileNotFoundError), tail.path.open("r+b") as file:  # a seal may have taken it away
            if frame and rng.random() < 0.5:
                file.seek(tail.length)
                file.write(b"\0" * rng.randrange(200))
            file.seek(tail.end)
            file.write(frame[: rng.randrange(len(frame) + 1)])
        self.is_up = False


class SimLeadership:
    """The log: proposals apply at once, may be lost before, and may have an unknown outcome after."""

    def __init__(self, state: MasterState, faults: Faults) -> None:
        self._state, self._faults = state, faults

    async def barrier(self, _deadline: Deadline) -> None:
        """Sims have one state: it is always the newest."""

    async def decree(self, command: Message) -> Message:
        if self._faults.strikes():
            raise OutcomeUnknown("the proposal was lost")
        reply = self._state.apply(TIME_MS, command)
        if self._faults.strikes():
            raise OutcomeUnknown("the proposal was applied, nobody heard of it")
        if isinstance(reply, ErrorReply):
            raise reply.error()
        return reply


class SimAccess:
    """Placement by the seed, without tokens."""

    def __init__(self, world: TailWorld, replication: int) -> None:
        self._world, self._replication = world, replication

    def allocate(self, message: Allocate) -> AllocateReply:
        world = self._world
        names = [name for name, server in world.servers.items() if server.server_id not in message.exclude]
        if len(names) < self._replication:
            raise NotEnoughServers("too few servers are left")
        chain = world.rng.sample(names, self._replication)
        infos = tuple(ServerInfo(world.servers[name].server_id, name, name, "r", True) for name in chain)
        handle = ChunkHandle(world.rng.randbytes(10) + new_chunk_handle(TIME_MS)[10:])
        chunk = AllocatedChunk(handle, b"", tuple(range(len(chain))))
        return AllocateReply((chunk,), infos, world.chunk_size, self._replication, 1000)

    def located_tail(self, tail: Any, table: Any, _rights: Any, _expires_ms: int) -> LocatedTail:
        chain = tuple(table.index(server_id) for server_id in tail.servers)
        return LocatedTail(tail.handle, self._world.state.stat(tail.path).size, b"", chain)


class _Config:
    chunk_size = 4096
    token_lifetime_s = 60.0


class SimDesk(TailDesk):
    """The real desk of one master, whose calls to chunk servers go through the world."""

    def __init__(self, world: TailWorld, name: str, replication: int) -> None:
        self._world, self._name = world, name
        super().__init__(
            config=cast(Any, _Config),
            state=world.state,
            view=ClusterView(heartbeat_interval_s=1e6, dead_after_s=1e9),
            leadership=cast(Leadership, SimLeadership(world.state, world.faults)),
            access=cast(AccessDesk, SimAccess(world, replication)),
            key=ClusterKey.from_secret(b"x" * 32, "sim"),
            clock=SYSTEM_CLOCK,
        )

    async def ask(self, address: str, message: Message, reply: type[T], _timeout_s: float) -> T:
        answer, _ = self._world.call(self._name, address, message, b"")
        assert isinstance(answer, reply), f"{type(answer).__name__} answers {type(message).__name__}"
        return answer


class SimAppender:
    """One appender: sends, hears or not, goes on with the next tail, forgets all but its identity now and then."""

    def __init__(self, world: TailWorld, number: int) -> None:
        self._world, self.number = world, number
        self.identity = struct.pack("<I", number).ljust(16, b"\1")
        self._next = 1
        self._pending: list[bytes] = []
        self._tail: tuple[ChunkHandle, str] | None = None
        self._must_resume = False

    @property
    def is_settled(self) -> bool:
        """Whether all that it began is acknowledged."""
        return not self._pending and not self._must_resume

    def crash(self) -> None:
        """Lose all but the identity."""
        self._pending, self._tail, self._must_resume = [], None, True

    def step(self) -> None:
        """Try once to get one batch (the present one, or a new one) appended."""
        rng = self._world.rng
        if self._world.is_appending:
            return  # one thread: this one would wait for the round that waits for it
        if self._must_resume:
            self._resume()
            return
        if not self._pending:
            count = rng.randrange(1, 5)
            self._pending = [make_record(self.number, self._next + n, rng.randrange(30, 200)) for n in range(count)]
        reply = self._send(self._next, self._pending)
        if reply is None:
            return
        for index, offset in enumerate(reply.offsets):
            self._world.acknowledged.append(Acknowledged(self.number, self._next + index, offset))
        self._next += len(self._pending)
        self._pending = []

    def _resume(self) -> None:
        opened = self._open(b"")
        if opened is None or self._open(opened[0]) is None:
            return
        reply = self._send(1, [])
        if reply is not None:
            self._next, self._must_resume = reply.last_sequence + 1, False

    def _send(self, first: int, records: Sequence[bytes]) -> AppendRecordsReply | None:
        tail = self._tail or self._open(b"")
        if tail is None:
            return None
        lengths, crcs = tuple(map(len, records)), tuple(map(crc32c, records))
        group = RecordGroup(self.identity, first, first, lengths, crcs)
        self._world.is_appending = True
        try:
            answer, _ = self._world.call("client", tail[1], AppendRecords(tail[0], b"", group), b"".join(records))
        except (TailClosed, ConnectionFailed):
            self._world.is_appending = False
            self._tail = None
            self._open(tail[0])
            return None
        finally:
            self._world.is_appending = False
        assert isinstance(answer, AppendRecordsReply)
        return answer

    def _open(self, broken: bytes) -> tuple[ChunkHandle, str] | None:
        reply = self._world.open(ChunkHandle(broken))
        self._tail = None if reply is None else (reply.tail.handle, reply.servers[reply.tail.chain[0]].address)
        return self._tail


class TailWorld:
    """Servers, masters and appenders of one seed."""

    chunk_size = _Config.chunk_size

    def __init__(self, seed: int, folder: Path, *, appenders: int = 4, replication: int = 3) -> None:
        self.rng = Random(seed)  # noqa: S311 - to be replayed
        self.state = MasterState()
        self.faults = Faults(self.rng, self.rng.choice([0.0, 0.01, 0.05, 0.1]))
        self.crash_rate = self.rng.choice([0.0, 0.005, 0.02])
        self.interleave_rate = self.rng.choice([0.0, 0.02, 0.1])
        self.servers = {f"c{number}": SimServer(self, f"c{number}", folder / f"c{number}") for number in range(SERVERS)}
        for server in self.servers.values():
            self.state.apply(TIME_MS, PutServer(server.server_id, server.name, server.name, "r"))
        self.desks = [SimDesk(self, name, replication) for name in ("m1", "m2")]  # a deposed leader, too
        self.appenders = [SimAppender(self, number + 1) for number in range(appenders)]
        self.acknowledged: list[Acknowledged] = []
        self.is_appending = False
        self._is_sealing = self._is_interleaved = False
        self.seen = b""  # the longest content that a reader ever saw

    # --- calls ------------------------------------------------------------------------------------------------

    def call(self, source: str, target: str, message: Message, payload: bytes) -> tuple[Message, bytes | None]:
        """Let one server answer, or fail like a network and a machine do."""
        server = self.servers[target]
        self.interleave()
        self.faults.check_reached(source, target)
        if not server.is_up:
            raise ConnectionFailed(f"{target} is down", address=target)
        service = server.service
        try:
            answer = service.reply(message, payload)
        except _CrashedError:
            raise ConnectionFailed(f"{target} crashed", address=target) from None
        if server.service is not service or not server.is_up:
            raise ConnectionFailed(f"{target} crashed", address=target)
        self.interleave()
        self.faults.check_replied(source, target)
        return answer

    def interleave(self) -> None:
        """Between any two steps of a call something else may happen: a seal within a round, a round within a seal."""
        if self._is_interleaved or self.rng.random() >= self.interleave_rate:
            return
        self._is_interleaved = True
        try:
            tail = self.state.tails.at(PATH)
            if self._is_sealing:
                self.rng.choice(self.appenders).step()
            elif tail is not None and self.rng.random() < 0.7:
                self.seal(tail.handle)
            else:
                self.restart(self.rng.choice(list(self.servers)))
        finally:
            self._is_interleaved = False

    def open(self, broken: ChunkHandle) -> Any:
        """Ask one of the masters for the tail; None when that fails this time."""
        if self._is_sealing:
            return None  # one loop: an appender within a seal goes on with the tail it knows
        desk = self.rng.choice(self.desks)
        return self._on_loop(desk.open(OpenTail(PATH, True, broken), DEADLINE))

    def seal(self, handle: ChunkHandle) -> None:
        """Let one of the masters seal a tail, or try."""
        self._on_loop(self.rng.choice(self.desks).seal(PATH, handle))

    def _on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        self._is_sealing = True
        try:
            return asyncio.run(work)
        except DfsError:
            return None
        finally:
            self._is_sealing = False

    # --- steps ------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Let the seed choose what happens."""
        with _disk_crashes(self):
            for _ in range(steps):
                self.step()

    def step(self) -> None:
        choice = self.rng.random()
        if choice < 0.80:
            self.rng.choice(self.appenders).step()
        elif choice < 0.85:
            self.read()
        elif choice < 0.88:
            self.restart(self.rng.choice(list(self.servers)))
        elif choice < 0.90:
            self.rng.choice(self.appenders).crash()
        elif choice < 0.93:
            names = ["client", "m1", "m2", *self.servers]
            self.faults.cut = {tuple(self.rng.sample(names, 2)) for _ in range(self.rng.randrange(4))}  # type: ignore[misc]
        elif choice < 0.96:
            tail = self.state.tails.at(PATH)
            if tail is not None:
                self.open(tail.handle)  # a reader, or an appender that is wrong, accuses a good tail
        else:
            for server in self.servers.values():
                if not server.is_up:
                    server.start()

    def restart(self, name: str) -> None:
        self.servers[name].start()

    def read(self) -> None:
        """Read like a client: what the masters say, then the head. What was seen once must never change."""
        content = self.content()
        tail = self.state.tails.at(PATH)
        if tail is not None:
            head = next(name for name, server in self.servers.items() if server.server_id == tail.servers[0])
            base = len(content)
            while True:
                request = ReadTail(tail.handle, b"", len(content) - base, 1 << 20)
                try:
                    reply, payload = self.call("client", head, request, b"")
                except (ConnectionFailed, TailClosed, ChunkNotFound):
                    return
                assert isinstance(reply, ReadTailReply)
                if not reply.lengths:
                    break
                content += payload or b""
        for record in self.acknowledged:
            assert record.offset < len(content), f"{record} was acknowledged, a later reader sees {len(content)} bytes"
        assert content[: len(self.seen)] == self.seen, "what a reader saw has changed"
        self.seen = content

    @property
    def sealed_count(self) -> int:
        """How many sealed tails the file holds."""
        return self.state.stat(PATH).extent_count

    def content(self) -> bytes:
        """Return the sealed content, and check that all replicas of each chunk are alike."""
        try:
            view = self.state.extents(PATH, 0, 1000, 0)
        except DfsError:
            return b""
        pieces = []
        for extent in view.extents:
            chunk = self.state.chunk(extent.handle)
            assert chunk is not None
            copies = set()
            for server in self.servers.values():
                if server.server_id in chunk.servers:
                    with server.store.open(extent.handle) as opened:
                        copies.add(os.pread(opened.fd, opened.tail.length, opened.start))
            assert len(copies) == 1, f"replicas of {extent.handle.hex()} differ"
            pieces.append(copies.pop())
            assert len(pieces[-1]) == extent.length
        return b"".join(pieces)

    def close(self) -> None:
        """Let go of the disks."""
        for server in self.servers.values():
            server.store.close()

    def heal(self) -> bytes:
        """End all faults, let every appender finish, seal, and return the content."""
        self.faults.rate, self.faults.cut, self.crash_rate, self.interleave_rate = 0.0, set(), 0.0, 0.0
        for server in self.servers.values():
            if not server.is_up:
                server.start()
        for appender in self.appenders:
            steps = 0
            while not appender.is_settled or not steps:
                appender.step()
                steps += 1
                assert steps < STEPS_TO_SETTLE, f"appender {appender.number} gets nothing done although nothing fails"
        self.read()
        tail = self.state.tails.at(PATH)
        if tail is not None:
            self.seal(tail.handle)
        assert self.state.tails.at(PATH) is None, "a tail cannot be sealed although nothing fails"
        self.state.check_invariants()
        content = self.content()
        assert content[: len(self.seen)] == self.seen, "what a reader saw is not in the file"
        return content


class _CrashedError(Exception):
    """The process of a server ends here."""


class _disk_crashes:  # noqa: N801 - used like a function
    """While active, a write to a tail may end in the middle, together with its server; the dead write nothing."""

    def __init__(self, world: TailWorld) -> None:
        self._world = world

    def __enter__(self) -> None:
        world, before, stage = self._world, tail_log.TailFile.append, tail_log.TailFile.stage
        self._before = before, stage

        def staging(file: tail_log.TailFile, data: Buffer, behind: int = 0) -> None:
            self._check_running(file)
            stage(file, data, behind)

        def append(file: tail_log.TailFile, item: tail_log.Round) -> None:
            if world.rng.random() >= world.crash_rate:
                world.interleave()
                self._check_running(file)
                before(file, item)
                world.interleave()
                if world.rng.random() >= world.crash_rate:
                    return
                self._server(file).is_up = False  # after the sync, before anybody heard of it
                raise _CrashedError
            self._check_running(file)
            self._server(file).crash_while_writing(world.rng, file, tail_log.encode_round(file.handle, item))
            raise _CrashedError

        tail_log.TailFile.append = cast(Any, append)  # type: ignore[method-assign]
        tail_log.TailFile.stage = cast(Any, staging)  # type: ignore[method-assign]

    def _check_running(self, file: tail_log.TailFile) -> None:
        """Raise when the process that made this tail has ended meanwhile."""
        if not self._server(file).has_open(file):
            raise _CrashedError

    def _server(self, file: tail_log.TailFile) -> SimServer:
        return self._world.servers[file.path.parent.parent.name]

    def __exit__(self, *_: object) -> None:
        tail_log.TailFile.append, tail_log.TailFile.stage = self._before  # type: ignore[method-assign]


def run_seed(seed: int, steps: int = STEPS) -> tuple[TailWorld, int]:
    """Run one seed and judge it; return its world and how many records the file holds."""
    memory = Path("/dev/shm")  # noqa: S108 - where syncs cost nothing
    folder = Path(tempfile.mkdtemp(prefix="dfs-tails-", dir=memory if memory.is_dir() else None))
    try:
        for number in range(SERVERS):
            (folder / f"c{number}").mkdir()
        world = TailWorld(seed, folder)
        with contextlib.closing(world):
            world.run(steps)
            return world, len(check_exactly_once(world.heal(), world.acknowledged))
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
    finally:
        shutil.rmtree(folder)
        gc.collect()  # a world is full of cycles, and its tails are open files


def main() -> None:
    """Run the seeds from the first argument up to the second."""
    first, end = map(int, sys.argv[1:3])
    records = seals = 0
    for seed in range(first, end):
        world, count = run_seed(seed)
        records += count
        seals += world.sealed_count
    print(f"{end - first} seeds: {records} records exactly once, {seals} tails sealed")  # noqa: T201 - a tool for people


if __name__ == "__main__":
    main()
