"""Performs faults on a real cluster and undoes them.

Owns: choosing the victim, signals, broken disks, flipped bits, cut links and wrong clocks, and bringing all back to
life. Refuses to know: when (dfs.testing.chaos.schedule), and what clients see of it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from dfs.errors import DfsError
from dfs.net.parts import MasterStatus
from dfs.testing.chaos.clocks import Clocks
from dfs.testing.chaos.namespaces import Namespaces
from dfs.testing.chaos.schedule import TOUCHES_CHUNK_SERVERS, TOUCHES_MASTERS, Fault, FaultKind
from dfs.testing.chaos.small_disks import SmallDisks
from dfs.testing.cluster import ClusterUnderTest, wait_until

RECOVERY_S = 60.0  # patience for the cluster's own recovery on a busy machine
FILLER_PIECE_SIZE = 1 << 20  # bytes
CLOCK_JUMP_S = (10.0, 200_000.0)  # the shortest and the longest: from a bad NTP server to a wrong day
OLD_REPLICAS = 8  # of a chunk server, to damage one of: most younger ones belong to files that were replaced since
Undo = Callable[[], None]


class Surgeon:
    """Used by one thread for the masters and one for the chunk servers; what both touch is under a lock."""

    def __init__(
        self,
        cluster: ClusterUnderTest,
        network: Namespaces | None = None,
        disks: SmallDisks | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.moments_s: list[tuple[Fault, float, float]] = []  # when each struck, and when all was whole again
        self._cluster, self._network, self._disks, self._clocks = cluster, network, disks, clocks
        self._hands = threading.Lock()  # processes are started and ended one at a time
        self._masters = [master.name for master in cluster.config.masters]
        self._servers = [server.name for server in cluster.config.chunk_servers]
        self._deeds: dict[FaultKind, Callable[[Fault], Undo]] = {
            FaultKind.KILL_LEADER: lambda _: self._kill([cluster.leader()]),
            FaultKind.KILL_FOLLOWER: lambda fault: self._kill([self._follower(fault)]),
            FaultKind.PAUSE_LEADER: lambda _: self._pause(cluster.leader()),
            FaultKind.RESTART_LEADER: lambda _: self._stop(cluster.leader()),
            FaultKind.WIPE_FOLLOWER: self._wipe_follower,
            FaultKind.KILL_TWO_MASTERS: lambda fault: self._kill([cluster.leader(), self._follower(fault)]),
            FaultKind.KILL_ALL_MASTERS: lambda _: self._kill(self._masters),
            FaultKind.ISOLATE_LEADER: lambda _: self._cut_leader(both_ways=True),
            FaultKind.DEAFEN_LEADER: lambda _: self._cut_leader(both_ways=False),
            FaultKind.KILL_CHUNK_SERVER: lambda fault: self._kill([self._server(fault)]),
            FaultKind.PAUSE_CHUNK_SERVER: lambda fault: self._pause(self._server(fault)),
            FaultKind.CUT_CHUNK_SERVER: lambda fault: self._cut(self._server(fault), self._masters, both_ways=True),
            FaultKind.FLIP_A_BIT: self._flip_a_bit,
            FaultKind.FILL_LEADERS_DISK: lambda _: self._fill(cluster.leader()),
            FaultKind.FILL_CHUNK_SERVERS_DISK: lambda fault: self._fill(self._server(fault)),
            FaultKind.FAIL_LEADERS_DISK: lambda _: self._break_disks([cluster.leader()]),
            FaultKind.FAIL_CHUNK_SERVERS_DISK: lambda fault: self._break_disks([self._server(fault)]),
            FaultKind.CUT_LEADERS_POWER: lambda _: self._cut_power([cluster.leader()]),
            FaultKind.CUT_CHUNK_SERVERS_POWER: lambda fault: self._cut_power([self._server(fault)]),
            FaultKind.JUMP_LEADERS_CLOCK: lambda fault: self._jump(cluster.leader(), fault),
            FaultKind.JUMP_CHUNK_SERVERS_CLOCK: lambda fault: self._jump(self._server(fault), fault),
            FaultKind.KILL_EVERYTHING: lambda _: self._kill(cluster.names()),
            FaultKind.CUT_ALL_POWER: lambda _: self._cut_power(cluster.names()),
        }

    def begin(self, fault: Fault) -> Undo:
        """Do it; the result undoes it and waits until its side of the cluster is whole again."""
        undo = self._deeds[fault.kind](fault)
        struck_s = time.monotonic()
        with self._hands:
            self.counts[fault.kind.value] += 1

        def end() -> None:
            undo()
            if fault.kind in TOUCHES_MASTERS:
                wait_until(self._masters_are_whole, RECOVERY_S, f"all masters work again after {fault}")
            if fault.kind in TOUCHES_CHUNK_SERVERS:
                wait_until(self._servers_are_whole, RECOVERY_S, f"all chunk servers are heard again after {fault}")
            with self._hands:
                self.moments_s.append((fault, struck_s, time.monotonic()))

        return end

    def _masters_are_whole(self) -> bool:
        return sorted(self._roles().values()) == ["follower"] * (len(self._masters) - 1) + ["leader"]

    def _servers_are_whole(self) -> bool:
        with self._cluster.client(timeout_s=3) as client, contextlib.suppress(DfsError):
            return all(server.state == "alive" for server in client.cluster_status().servers)
        return False

    # --- victims

    def _follower(self, fault: Fault) -> str:
        leader = self._cluster.leader()
        return _chosen([name for name in self._masters if name != leader], fault)

    def _server(self, fault: Fault) -> str:
        return _chosen(self._servers, fault)

    # --- processes

    def _kill(self, names: Sequence[str]) -> Undo:
        with self._hands:
            for name in names:
                self._cluster.kill(name)
        return lambda: self._start(names)

    def _start(self, names: Sequence[str]) -> None:
        with self._hands:
            for name in names:
                self._cluster.start(name)  # one that runs is left alone

    def _stop(self, name: str) -> Undo:
        with self._hands:
            self._cluster.stop(name)
        return lambda: self._start([name])

    def _pause(self, name: str) -> Undo:
        self._cluster.kill(name, signal.SIGSTOP)
        return lambda: self._cluster.kill(name, signal.SIGCONT)

    def _wipe_follower(self, fault: Fault) -> Undo:
        name = self._follower(fault)
        undo = self._kill([name])
        (folder,) = (master.data_dir for master in self._cluster.config.masters if master.name == name)
        for path in folder.iterdir():  # the folder itself stays: a disk may be mounted there
            shutil.rmtree(path) if path.is_dir() else path.unlink()

        def undo_and_wait() -> None:
            undo()
            wait_until(lambda: self._has_vote(name), RECOVERY_S, f"{name} with its empty disk has joined again")

        return undo_and_wait

    def _has_vote(self, name: str) -> bool:
        return self._roles().get(name) in ("follower", "leader")

    def _roles(self) -> dict[str, str]:
        with self._cluster.client(timeout_s=3) as client:
            statuses = client.master_statuses()
        return {status.name: status.role for status in statuses if isinstance(status, MasterStatus)}

    # --- disks

    def _flip_a_bit(self, fault: Fault) -> Undo:
        """Damage one replica on disk. It stays so: finding and replacing it is the system's work.

        Always on one server: a second damaged replica of one chunk and a dead server would be one fault too many.
        """
        replicas = self._cluster.replicas(self._servers[-1])[:OLD_REPLICAS]
        if replicas:
            with contextlib.suppress(FileNotFoundError):  # deleted this very moment
                replicas[int(fault.choice * 7919) % len(replicas)].damage(fault.choice)
        return lambda: None

    def _fill(self, name: str) -> Undo:
        """Fill a node's disk to the last byte. One that stops for it is started again when there is room."""
        filler = self._cluster.folder / name / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(FILLER_PIECE_SIZE))
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(1))

        def undo() -> None:
            filler.unlink()
            self._start([name])

        return undo

    def _break_disks(self, names: Sequence[str]) -> Undo:
        """Let every call on these nodes' disks fail; a node that goes on without its disk is started anew at last."""
        disks = self._disks
        assert disks is not None, "a plan with faults of disks needs some"
        for name in names:
            disks.cut_power(self._cluster.folder / name)

        def undo() -> None:
            for name in names:
                with contextlib.suppress(DfsError):  # it has ended by itself
                    self._cluster.kill(name)
                disks.restore_power(self._cluster.folder / name)
            self._start(names)

        return undo

    def _cut_power(self, names: Sequence[str]) -> Undo:
        """First the disks, so that nothing comes there any more from processes that run for a moment longer."""
        undo = self._break_disks(names)
        with self._hands:
            for name in names:
                with contextlib.suppress(DfsError):  # it has ended by itself
                    self._cluster.kill(name)
        return undo

    # --- clocks

    def _jump(self, name: str, fault: Fault) -> Undo:
        clocks = self._clocks
        assert clocks is not None, "a plan with faults of clocks needs some"
        shortest_s, longest_s = CLOCK_JUMP_S
        share = fault.choice * 2 % 1
        size_s = shortest_s * (longest_s / shortest_s) ** share
        clocks.set(name, size_s if fault.choice < 0.5 else -size_s)
        return lambda: clocks.set(name, 0.0)

    # --- network

    def _cut_leader(self, *, both_ways: bool) -> Undo:
        leader = self._cluster.leader()
        return self._cut(leader, [name for name in self._masters if name != leader], both_ways=both_ways)

    def _cut(self, name: str, others: Sequence[str], *, both_ways: bool) -> Undo:
        network = self._network
        assert network is not None, "a plan with faults of the network needs one"
        for other in others:
            network.cut(other, name)
            if both_ways:
                network.cut(name, other)
        return network.heal


def _chosen(names: Sequence[str], fault: Fault) -> str:
    return names[int(fault.choice * len(names))]
