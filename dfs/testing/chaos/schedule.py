"""Decide what breaks, when, and for how long: the whole plan of a chaos run follows from its seed.

Owns: the kinds of faults, and the guard that no plan breaks more at once than the system promises to bear.
Refuses to know: clocks, processes and the network (dfs.testing.chaos.surgeon performs the plan).

Masters and chunk servers break independently, each side one fault at a time, and a fault of everything when both sides
are whole. So at any moment at most one chunk server is away, unless the fault says otherwise in its name.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass


class FaultKind(enum.Enum):
    """What is done to whom; each is undone at the end of its time."""

    KILL_LEADER = "kill_leader"
    KILL_FOLLOWER = "kill_follower"
    PAUSE_LEADER = "pause_leader"
    RESTART_LEADER = "restart_leader"  # politely, as an operator would
    WIPE_FOLLOWER = "wipe_follower"  # killed, its disk emptied
    KILL_TWO_MASTERS = "kill_two_masters"
    KILL_ALL_MASTERS = "kill_all_masters"
    ISOLATE_LEADER = "isolate_leader"  # from the other masters; clients still reach it
    DEAFEN_LEADER = "deafen_leader"  # it hears no other master, and they hear it
    KILL_CHUNK_SERVER = "kill_chunk_server"
    PAUSE_CHUNK_SERVER = "pause_chunk_server"
    CUT_CHUNK_SERVER = "cut_chunk_server"  # from the masters; clients still reach it
    FLIP_A_BIT = "flip_a_bit"  # in one replica on disk
    FILL_LEADERS_DISK = "fill_leaders_disk"  # to the last byte
    FILL_CHUNK_SERVERS_DISK = "fill_chunk_servers_disk"
    FAIL_LEADERS_DISK = "fail_leaders_disk"  # every call on it is an error (EIO)
    FAIL_CHUNK_SERVERS_DISK = "fail_chunk_servers_disk"
    CUT_LEADERS_POWER = "cut_leaders_power"  # killed, and what its disk had not synced is lost
    CUT_CHUNK_SERVERS_POWER = "cut_chunk_servers_power"
    JUMP_LEADERS_CLOCK = "jump_leaders_clock"  # its time of day; back again at the end
    JUMP_CHUNK_SERVERS_CLOCK = "jump_chunk_servers_clock"
    KILL_EVERYTHING = "kill_everything"
    CUT_ALL_POWER = "cut_all_power"


OF_MASTERS: tuple[FaultKind, ...] = (
    FaultKind.KILL_LEADER,
    FaultKind.KILL_LEADER,
    FaultKind.KILL_FOLLOWER,
    FaultKind.PAUSE_LEADER,
    FaultKind.RESTART_LEADER,
    FaultKind.WIPE_FOLLOWER,
    FaultKind.KILL_TWO_MASTERS,
    FaultKind.KILL_ALL_MASTERS,
)
OF_CHUNK_SERVERS: tuple[FaultKind, ...] = (
    FaultKind.KILL_CHUNK_SERVER,
    FaultKind.KILL_CHUNK_SERVER,
    FaultKind.PAUSE_CHUNK_SERVER,
    FaultKind.FLIP_A_BIT,
)
OF_THE_MASTERS_NETWORK: tuple[FaultKind, ...] = (FaultKind.ISOLATE_LEADER, FaultKind.DEAFEN_LEADER)
OF_THE_CHUNK_SERVERS_NETWORK: tuple[FaultKind, ...] = (FaultKind.CUT_CHUNK_SERVER,)
OF_THE_MASTERS_DISKS: tuple[FaultKind, ...] = (
    FaultKind.FILL_LEADERS_DISK,
    FaultKind.FAIL_LEADERS_DISK,
    FaultKind.CUT_LEADERS_POWER,
)
OF_THE_CHUNK_SERVERS_DISKS: tuple[FaultKind, ...] = (
    FaultKind.FILL_CHUNK_SERVERS_DISK,
    FaultKind.FAIL_CHUNK_SERVERS_DISK,
    FaultKind.CUT_CHUNK_SERVERS_POWER,
)
OF_THE_MASTERS_CLOCKS: tuple[FaultKind, ...] = (FaultKind.JUMP_LEADERS_CLOCK,)
OF_THE_CHUNK_SERVERS_CLOCKS: tuple[FaultKind, ...] = (FaultKind.JUMP_CHUNK_SERVERS_CLOCK,)
OF_EVERYTHING = frozenset({FaultKind.KILL_EVERYTHING, FaultKind.CUT_ALL_POWER})
TOUCHES_CHUNK_SERVERS = OF_EVERYTHING | {
    *OF_CHUNK_SERVERS,
    *OF_THE_CHUNK_SERVERS_NETWORK,
    *OF_THE_CHUNK_SERVERS_DISKS,
    *OF_THE_CHUNK_SERVERS_CLOCKS,
}
TOUCHES_MASTERS = frozenset(FaultKind) - TOUCHES_CHUNK_SERVERS | OF_EVERYTHING
TAKES_THE_QUORUM = OF_EVERYTHING | {FaultKind.KILL_TWO_MASTERS, FaultKind.KILL_ALL_MASTERS}
DEPOSES_THE_LEADER = TAKES_THE_QUORUM | {
    FaultKind.KILL_LEADER,
    FaultKind.PAUSE_LEADER,
    FaultKind.RESTART_LEADER,
    FaultKind.ISOLATE_LEADER,
    FaultKind.DEAFEN_LEADER,
    FaultKind.FAIL_LEADERS_DISK,
    FaultKind.CUT_LEADERS_POWER,
}
LASTS_S = (0.5, 4.0)  # how long a fault stands, before the cluster's own recovery is waited for
CALM_S = (0.5, 3.0)  # between two faults of one side: most of the time something is broken
EVERYTHING_EVERY = 6  # one fault of the masters in so many takes everything along


@dataclass(frozen=True, slots=True)
class Fault:
    """Times count from the begin of the run. `choice` in [0, 1) picks the victim among those that fit then."""

    begin_s: float
    end_s: float
    kind: FaultKind
    choice: float

    def __str__(self) -> str:
        return f"{self.begin_s:7.2f}..{self.end_s:.2f} s {self.kind.value}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Faults of each side, by their begins. One that touches both sides is among those of the masters."""

    masters: tuple[Fault, ...]
    servers: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Means:
    """What can be broken here beside processes: links, disks of the nodes' own, clocks of their own."""

    network: bool = False
    disks: bool = False
    clocks: bool = False


def plan_faults(seed: int, duration_s: float, means: Means) -> Plan:
    """Return the faults of a run of `duration_s`; none lasts longer than the run."""
    rng = random.Random(seed)  # noqa: S311 - a seed must replay
    masters, servers = OF_MASTERS, OF_CHUNK_SERVERS
    if means.network:
        masters, servers = masters + OF_THE_MASTERS_NETWORK, servers + OF_THE_CHUNK_SERVERS_NETWORK
    if means.disks:
        masters, servers = masters + OF_THE_MASTERS_DISKS, servers + OF_THE_CHUNK_SERVERS_DISKS
    if means.clocks:
        masters, servers = masters + OF_THE_MASTERS_CLOCKS, servers + OF_THE_CHUNK_SERVERS_CLOCKS
    plan = _side(rng, masters, duration_s)
    for number, fault in enumerate(plan):
        if number % EVERYTHING_EVERY == EVERYTHING_EVERY - 1:
            kind = FaultKind.CUT_ALL_POWER if means.disks and fault.choice < 0.5 else FaultKind.KILL_EVERYTHING
            plan[number] = Fault(fault.begin_s, fault.end_s, kind, fault.choice)
    return Plan(tuple(plan), tuple(_side(rng, servers, duration_s)))


def one_after_another(*kinds: FaultKind, lasts_s: float = 1.5, calm_s: float = 1.0) -> tuple[Fault, ...]:
    """Return the faults of one side for a plan that is written by hand, evenly spread."""
    step_s = lasts_s + calm_s
    return tuple(Fault(calm_s + n * step_s, (n + 1) * step_s, kind, 0.3 * n % 1) for n, kind in enumerate(kinds))


def _side(rng: random.Random, kinds: tuple[FaultKind, ...], duration_s: float) -> list[Fault]:
    faults = []
    now_s = rng.uniform(*CALM_S)
    while (end_s := now_s + rng.uniform(*LASTS_S)) < duration_s:
        faults.append(Fault(now_s, end_s, rng.choice(kinds), rng.random()))
        now_s = end_s + rng.uniform(*CALM_S)
    return faults
