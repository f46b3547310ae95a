"""Interrupt an operation of the client at every one of its steps, collect the garbage, and look what is left.

Owns: the steps (every message that the client sends), the interruptions, and the collection of garbage to its end by
the real duties and heartbeats. Refuses to know: what the operations do (dfs.testing.crash_operations), and how
networks fail (dfs.testing.chaos).

The client, masters' services, state, chunk servers and stores are the real ones, on a memory cluster. The number of
steps is counted in a run without interruption; so a new operation is covered at all its steps by naming it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from dfs.chunk.heartbeat import Heartbeats, ServerCard
from dfs.chunk.leader import LeaderConnection
from dfs.chunk.orders import DeletionOrders
from dfs.chunk.replicator import Replicator
from dfs.chunk.tails.reports import TailReports
from dfs.client import DfsClient, filesystem
from dfs.client.pool import ChannelPool
from dfs.clock import SYSTEM_CLOCK, Deadline
from dfs.errors import ConnectionFailed, DfsError
from dfs.master.duties import Duty, all_duties
from dfs.master.state.machine import MasterState
from dfs.master.tail_duty import TailDuty
from dfs.net.blocking import Channel
from dfs.net.messages import Message
from dfs.net.parts import Kind, ScrubStatus
from dfs.testing.memory_cluster import MemoryChunkServer, MemoryCluster

DAY_S = 25 * 3600.0  # longer than anything that nobody wants is kept
HOUR_S = 3600.0
SWEEPS_MAX = 12  # until nothing is left to collect
TIMEOUT_S = 20.0
CHUNK_SIZE = 64 * 1024
RECORD_SIZE = CHUNK_SIZE // 4

Tree = dict[str, bytes]


class Fault(Enum):
    """What happens at a step."""

    DIES_BEFORE = "the client dies before it sends"
    DIES_AFTER = "the client dies after it sent"
    ANSWER_LOST = "the answer is lost"
    SERVER_RESTARTS = "a chunk server restarts"
    LEADER_CHANGES = "another master leads"


class ClientDiedError(Exception):
    """The client's process ended: nothing that it does from now on has an effect, and nothing is tried again."""


class ShiftedClock:
    """The system's clock, as far ahead as a test wants it."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return SYSTEM_CLOCK.monotonic() + self.ahead_s

    def wall_ms(self) -> int:
        return SYSTEM_CLOCK.wall_ms() + round(self.ahead_s * 1000)


class Steps:
    """Counts the steps of a client, and lets the fault happen at one of them. Safe in any thread."""

    def __init__(
        self, step: int = -1, fault: Fault | None = None, world: Callable[[Fault], None] | None = None
    ) -> None:
        self.count = 0
        self._step, self._fault, self._world = step, fault, world
        self.is_dead = False
        self._lock = threading.Lock()

    def send(self, channel: Channel, send: Callable[[], None]) -> bool:
        """Send a message; return whether its answer is to be lost."""
        with self._lock:
            is_now = self.count == self._step
            self.count += 1
        self.check_alive()
        if not is_now or self._fault is None:
            send()
            return False
        if self._fault is Fault.DIES_BEFORE:
            self._die(channel)
        if self._world is not None and self._fault in (Fault.SERVER_RESTARTS, Fault.LEADER_CHANGES):
            self._world(self._fault)
        send()
        if self._fault is Fault.DIES_AFTER:
            self.is_dead = True  # found out where it waits for the answer, or at the next step
        return self._fault is Fault.ANSWER_LOST

    def _die(self, channel: Channel) -> None:
        self.is_dead = True
        channel.close()
        self.check_alive()

    def check_alive(self) -> None:
        if self.is_dead:
            raise ClientDiedError("the client is dead")


class _SteppedChannel:
    """A client's channel whose every message is a step."""

    def __init__(self, channel: Channel, steps: Steps) -> None:
        self._channel, self._steps = channel, steps
        self._is_answer_lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    @property
    def unwrapped(self) -> Channel:
        return self._channel

    def send(self, *args: Any, **kwargs: Any) -> None:
        if self._steps.send(self._channel, lambda: self._channel.send(*args, **kwargs)):
            self._is_answer_lost = True

    def receive(self, deadline: Deadline) -> Any:
        self._check(deadline)
        return self._channel.receive(deadline)

    def call(self, message: Message, deadline: Deadline) -> Message:
        """As `Channel.call`, in its two halves."""
        answer: list[Message] = []
        is_lost = self._steps.send(self._channel, lambda: answer.append(self._channel.call(message, deadline)))
        self._is_answer_lost = self._is_answer_lost or is_lost
        self._check(deadline)
        return answer[0]

    def _check(self, deadline: Deadline) -> None:
        if self._is_answer_lost:
            self._channel.wait_readable(deadline.no_later_than(0.05))  # it took effect, as far as it got
            self._channel.close()
            raise ConnectionFailed("the answer was lost", address=self._channel.address)
        try:
            self._steps.check_alive()
        except ClientDiedError:
            self._channel.wait_readable(deadline.no_later_than(0.05))
            self._channel.close()
            raise


@contextmanager
def stepped_client(cluster: MemoryCluster, steps: Steps) -> Iterator[DfsClient]:
    """Yield a client whose messages are steps."""

    class SteppedPool(ChannelPool):
        def take_idle(self, address: str, *, bulk: bool = False) -> Any:
            steps.check_alive()
            channel = super().take_idle(address, bulk=bulk)
            return None if channel is None else _SteppedChannel(channel, steps)

        def connect(self, address: str, deadline: Deadline, *, bulk: bool = False) -> Any:
            return _SteppedChannel(super().connect(address, deadline, bulk=bulk), steps)

        def give(self, address: str, channel: Any, *, bulk: bool = False) -> None:
            super().give(address, channel.unwrapped, bulk=bulk)

    made_of = vars(filesystem)
    before, made_of["ChannelPool"] = made_of["ChannelPool"], SteppedPool
    try:
        client = cluster.client(timeout_s=TIMEOUT_S, parallel=1)
    finally:
        made_of["ChannelPool"] = before
    with client:
        yield client


class Scope(Enum):
    """What is changed whole or not at all."""

    ALL = "everything together"
    FILE = "each file"
    RECORD = "each record of RECORD_SIZE bytes that is appended"


@dataclass(frozen=True, slots=True)
class Operation:
    """`prepare` makes a directory ready for `act`.

    `scope`: nothing between before and after is ever seen of that. `acknowledged`: bytes of records that the last `act`
    was told to be in their file. `is_visible`: users see what it does.
    """

    prepare: Callable[[DfsClient, str], None]
    act: Callable[[DfsClient, str], object]
    scope: Scope = Scope.ALL
    acknowledged: Callable[[], int] = lambda: 0
    is_visible: bool = True


class CrashWorld:
    """A memory cluster with everything that collects garbage, driven by hand."""

    def __init__(self, folder: Path) -> None:
        self.clock = ShiftedClock()
        self.cluster = MemoryCluster(folder, masters=2, chunk_servers=4, chunk_size=CHUNK_SIZE, clock=self.clock)
        self._restarts = 0

    def close(self) -> None:
        self.cluster.close()

    def disturb(self, fault: Fault) -> None:
        """Restart one chunk server after the other, or change the leader."""
        if fault is Fault.LEADER_CHANGES:
            self._lead_other()
            return
        server = self.cluster.chunk_servers[self._restarts % len(self.cluster.chunk_servers)]
        self._restarts += 1
        server.stop()
        server.start()

    @property
    def leader(self) -> Any:
        return self.cluster.master(self.cluster.group.leader or "m1")

    def _lead_other(self) -> None:
        self.cluster.lead("m2" if self.leader.name == "m1" else "m1")

    # --- garbage --------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Let time pass and everybody do his duty until nothing is left to collect; raise when something stays."""
        left: list[str] = []
        for sweep in range(SWEEPS_MAX):
            self.clock.ahead_s += DAY_S if sweep == 0 else HOUR_S
            self._sweep()
            left = self.leaks()
            if not left:
                break
        assert not left, f"after {SWEEPS_MAX} sweeps there is still: {'; '.join(left[:5])}"
        for master in self.cluster.masters:
            self.cluster.run(self._check_counted(master.state))

    def _sweep(self) -> None:
        master = self.leader
        duties: list[Duty] = [
            *all_duties(
                config=self.cluster.config,
                state=master.state,
                view=master.service.view,
                reports=master.service.reports,
                leadership=master.service.leadership,
                clock=self.clock,
            ),
            TailDuty(master.service.tails, master.state, master.service.leadership),
        ]
        keepers = [_Keeper(self.cluster, server) for server in self.cluster.chunk_servers]
        for keeper in keepers:
            keeper.beat()
        for duty in duties:
            self.cluster.run(duty.run_once())
        for keeper in keepers:
            keeper.beat()
            keeper.close()

    async def _check_counted(self, state: MasterState) -> None:
        """Raise unless what `dfs df` tells is what is on the servers."""
        state.check_invariants()
        space = state.space(None)
        held = [
            server.store.replica(handle) for server in self.cluster.chunk_servers for handle in server.store.handles()
        ]
        stored_size = sum(replica.length for replica in held if replica is not None)
        counted = (space.chunk_stored_size, space.garbage_count, space.garbage_stored_size)
        assert counted == (stored_size, 0, 0), f"{space} is counted, {stored_size} bytes are stored"

    def leaks(self) -> list[str]:
        """Return what no file, snapshot or trash holds, and is not gone yet."""
        state, found = self.leader.state, []
        if state.garbage_handles():
            found.append(f"{len(state.garbage_handles())} chunks are garbage")
        if state.tails.all():
            found.append(f"{len(state.tails.all())} tails are open")
        for server in self.cluster.chunk_servers:
            for handle in server.store.handles():
                chunk = state.chunk(handle)
                if chunk is None or server.store.server_id not in chunk.servers:
                    found.append(f"{server.name} holds chunk {handle.hex()}, which is in no file")
            found += [f"{server.name} holds tail {tail.handle.hex()}" for tail in server.service.tails.held()]
        return found


class _Keeper:
    """The conversation of one chunk server with the masters, as its daemon has it, in single steps."""

    def __init__(self, cluster: MemoryCluster, server: MemoryChunkServer) -> None:
        masters = [master.address for master in cluster.config.masters]
        self._orders = DeletionOrders(server.store)
        self._leader = LeaderConnection(masters, cluster.key)
        self._heartbeats = Heartbeats(
            store=server.store,
            leader=self._leader,
            orders=self._orders,
            replicator=Replicator(server.store, cluster.key, server.address),
            card=ServerCard(server.name, server.address, "default", os.urandom(16)),
            interval_s=HOUR_S,
            active_streams=lambda: 0,
            disk_wait_ms=lambda: 0,
            scrub=ScrubStatus,
        )
        self._tails = TailReports(server.service.tails, server.store.server_id, masters, cluster.key)

    def beat(self) -> None:
        self._heartbeats.beat()
        self._orders.run_once()
        self._heartbeats.beat()
        self._tails.report()

    def close(self) -> None:
        self._leader.close()
        self._tails.close()


# --- looking ------------------------------------------------------------------------------------------------------


def look(client: DfsClient, directory: str) -> Tree:
    """Return all that users see of a directory: files, directories, snapshots with their content, its trash."""
    found = _content(client, directory)
    for snapshot in client.snapshots.list(directory):
        name = f".snapshot/{snapshot.name}"
        found[name] = b"snapshot"
        found |= {f"{name}/{path}": data for path, data in _content(client, f"{directory}/{name}").items()}
    for entry in client.list_trash():
        if entry.path.startswith(directory + "/"):
            found[f"trash:{entry.path[len(directory) :]}"] = b"%d" % entry.size
    return found


def _content(client: DfsClient, directory: str) -> Tree:
    found: Tree = {}
    for path, status in client.walk(directory):
        name = path[len(directory) + 1 :]
        found[name] = b"".join(client.read(path)) if status.kind is Kind.FILE else b"directory"
        found[f"{name} replication"] = b"%d" % status.replication
    return found


def check_counted(client: DfsClient, directory: str) -> None:
    """Raise unless the quota of a directory counts exactly what is in it."""
    quota = next(quota for quota in client.quotas.effective(directory) if quota.path == directory)
    names = stored_size = 0
    for _, status in client.walk(directory):
        names += 1
        stored_size += status.size * status.replication if status.kind is Kind.FILE else 0
    assert (quota.names_used, quota.stored_size_used) == (names, stored_size), (
        f"{quota} counts {names} and {stored_size}"
    )


# --- one operation ------------------------------------------------------------------------------------------------


class CrashPoints:
    """Runs one operation with an interruption at each step; judges each, and collects the garbage of all."""

    def __init__(self, world: CrashWorld, name: str, operation: Operation) -> None:
        self._world, self._name, self._operation = world, name, operation
        self._count = 0
        self._seen: dict[str, tuple[Tree, str]] = {}  # by directory, with the interruption
        with world.cluster.client(timeout_s=TIMEOUT_S) as client:
            directory = self._ready(client)
            self._before = look(client, directory)
            steps = Steps()
            with stepped_client(world.cluster, steps) as acting:
                operation.act(acting, directory)
            self._after = look(client, directory)
        assert steps.count, f"{name} takes no step"
        assert (self._after != self._before) is operation.is_visible, (
            f"{name} changes {'nothing' * operation.is_visible}"
        )
        self.steps = steps.count

    def _ready(self, client: DfsClient) -> str:
        self._count += 1
        directory = f"/{self._name}-{self._count}"
        client.make_directory(directory)
        client.quotas.set(directory, names=1000, stored_size=1 << 40)
        self._operation.prepare(client, directory)
        return directory

    def run(self, fault: Fault, step: int, *, collects: bool = False) -> None:
        """Interrupt at one step; raise AssertionError when a promise is broken.

        `collects`: also look at it once the garbage is collected. Else `collect` does that for all steps together.
        """
        where = f"{self._name}, step {step} of {self.steps}: {fault.value}"
        with self._world.cluster.client(timeout_s=TIMEOUT_S) as client:
            directory = self._ready(client)
            steps = Steps(step, fault, self._world.disturb)
            error: DfsError | None = None
            try:
                with stepped_client(self._world.cluster, steps) as acting:
                    self._operation.act(acting, directory)
            except DfsError as raised:
                error = raised
            except ClientDiedError:
                pass
            seen = look(client, directory)
            self._judge(seen, error, steps.is_dead, where)
            check_counted(client, directory)
            self._seen[directory] = (seen, where)
        if collects:
            self.collect()

    def collect(self) -> None:
        """Collect all garbage, and look whether what was seen before is still there, and nothing else."""
        self._world.collect()
        with self._world.cluster.client(timeout_s=TIMEOUT_S) as client:
            for directory, (seen, where) in self._seen.items():
                now = look(client, directory)
                assert now == seen, f"{where}: the garbage collection took something: {_difference(now, seen)}"
                check_counted(client, directory)
                self._remove(client, directory)
            self._seen.clear()
        self._world.collect()  # nothing is left of them, in whichever state they were

    def _remove(self, client: DfsClient, directory: str) -> None:
        for snapshot in list(client.snapshots.list(directory)):
            client.snapshots.remove(directory, snapshot.name)
        for entry in list(client.list_trash()):
            if entry.path.startswith(directory + "/"):
                client.empty_trash(entry.trash_id)
        client.delete(directory, recursive=True, skip_trash=True)

    def _judge(self, seen: Tree, error: DfsError | None, is_dead: bool, where: str) -> None:
        if error is None and not is_dead:
            assert seen == self._after, (
                f"{where}: it was acknowledged, but is not there: {_difference(seen, self._after)}"
            )
            return
        if self._operation.scope is Scope.ALL:
            assert seen in (self._before, self._after), f"{where}: half of it is seen: {_difference(seen, self._after)}"
        for path in seen.keys() | self._before.keys() | self._after.keys():
            before, after, now = (tree.get(path) for tree in (self._before, self._after, seen))
            if self._operation.scope is Scope.RECORD and before and after and now and before != after:
                assert _is_between(before, now, after), f"{where}: {path} ends in half a record, or in none of ours"
                least = len(before) + self._operation.acknowledged()
                assert len(now) >= least, f"{where}: {path} has {len(now)} bytes, {least} were acknowledged"
            else:
                assert now in (before, after), f"{where}: {path} is neither as before nor as after"
        is_whole = self._operation.scope is Scope.ALL  # of several files or records some may be there
        if error is not None and is_whole and not is_dead and not error.may_have_happened:
            assert seen == self._before, f"{where}: it said that nothing happened ({error.message})"


def _is_between(before: bytes, now: bytes, after: bytes) -> bool:
    """Whether whole records were appended."""
    return now.startswith(before) and after.startswith(now) and (len(now) - len(before)) % RECORD_SIZE == 0


def _difference(seen: Tree, wanted: Tree) -> str:
    return ", ".join(sorted(path for path in seen.keys() | wanted.keys() if seen.get(path) != wanted.get(path)))
