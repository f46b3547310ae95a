"""What a seed of the simulated masters means: how many, how fast, how small, and which faults how often.

Owns: `Plan`, its fields and the tempers that draw them. Refuses to know: how a fault is done, and what is right.

Most bugs need several things at once that are rare each: an election while a vote is being written, a follower that is
behind a checkpoint and holds entries that nobody else has. A temper makes one such combination likely.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from dfs.testing.raft_world import RaftLimits

FAULTS = (
    "kill", "power", "power_in_write", "power_all", "power_at_vote", "power_at_commit", "wipe", "isolate",
    "isolate_leader", "depose", "one_way", "split", "pause", "pause_leader", "clock", "wall_clock", "disk_full",
    "disk_error", "checkpoint", "transfer", "cut",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed means. `echo_rate`: the share of messages that come once more, later and out of their order.

    `is_examined`: after the run two questions are put to the healthy masters (raft_examination).
    """

    seed: int
    temper: str
    size: int
    duration_s: float
    fault_gap_s: float
    faults: tuple[str, ...]
    clients: int
    keys: int
    think_s: float
    net_delay_s: float
    echo_rate: float
    is_examined: bool
    limits: RaftLimits

    @classmethod
    def of(cls, seed: int) -> Plan:
        rng = random.Random(f"{seed} plan")  # noqa: S311 - a seed must replay
        temper = rng.choice(("mixed", "mixed", *_TEMPERS))
        plan = _mixed(seed, rng)
        return replace(_TEMPERS[temper](plan, rng), temper=temper) if temper in _TEMPERS else plan


def _mixed(seed: int, rng: random.Random) -> Plan:
    """Anything, some faults at a time: that finds more than all of them at once."""
    chosen = tuple(fault for fault in FAULTS if rng.random() < 0.5)
    return Plan(
        seed=seed,
        temper="mixed",
        size=5 if rng.random() < 0.2 else 3,
        duration_s=rng.uniform(2.0, 5.0),
        fault_gap_s=rng.choice((0.15, 0.4, 0.8)),
        faults=(*chosen, "kill"),
        clients=rng.randint(2, 5),
        keys=rng.randint(1, 4),
        think_s=rng.choice((0.002, 0.01, 0.05)),
        net_delay_s=rng.choice((0.0005, 0.003, 0.01)),
        echo_rate=rng.choice((0.0, 0.0, 0.02, 0.1)),
        is_examined=rng.random() < 0.3,
        limits=RaftLimits(
            segment_size=rng.choice((8, 16, 64)) * 1024,
            slice_entries=rng.choice((2, 5, 512)),
            keep_entries=rng.choice((2, 2, 10, 1000)),
            checkpoint_entries=rng.choice((8, 15, 60, 100_000)),
            piece_size=rng.choice((64, 1000, 256 * 1024)),
            disk_delay_s=rng.choice((0.0002, 0.002, 0.02)),
            election_timeout_s=rng.choice(((0.15, 0.3), (0.15, 0.3), (0.1, 0.5))),
        ),
    )


def _power(plan: Plan, rng: random.Random) -> Plan:
    """Power cuts while much is on its way to slow disks."""
    return replace(
        plan,
        size=3,
        faults=("power", "power_all", "power_at_vote", "power_at_commit", "isolate_leader"),
        fault_gap_s=rng.choice((0.4, 0.8)),
        clients=4,
        keys=1,
        think_s=0.005,
        limits=replace(plan.limits, disk_delay_s=rng.choice((0.005, 0.02))),
    )


def _laggards(plan: Plan, rng: random.Random) -> Plan:
    """Leaders and followers are cut off, and come back behind a checkpoint with entries that nobody else has."""
    return replace(
        plan,
        faults=("depose", "depose", "isolate", "pause_leader", "power"),
        duration_s=0.7 * plan.duration_s,
        fault_gap_s=rng.choice((0.3, 0.6)),
        clients=4,
        keys=rng.randint(1, 3),
        think_s=0.004,
        net_delay_s=rng.choice((0.0005, 0.003)),
        limits=replace(
            plan.limits,
            slice_entries=rng.choice((2, 5)),
            keep_entries=2,
            checkpoint_entries=8,
            piece_size=rng.choice((64, 400, 256 * 1024)),
            disk_delay_s=rng.choice((0.0002, 0.002)),
        ),
    )


def _minorities(plan: Plan, rng: random.Random) -> Plan:
    """Of five masters two go on alone for a while, and lead again soon after: old acknowledgements are lies by then."""
    return replace(
        plan,
        size=5,
        faults=("depose", "depose", "depose", "transfer", "power"),
        fault_gap_s=rng.choice((0.2, 0.5)),
        clients=5,
        keys=2,
        think_s=0.01,
        net_delay_s=rng.choice((0.0005, 0.003)),
        echo_rate=0.3,
        limits=replace(plan.limits, disk_delay_s=0.0002, election_timeout_s=(0.1, 0.2)),
    )


def _elections(plan: Plan, rng: random.Random) -> Plan:
    """Hardly a leader finds peace: many terms, split votes, late messages of old ones."""
    return replace(
        plan,
        size=rng.choice((3, 5)),
        faults=("power_at_vote", "power_at_vote", "kill", "isolate_leader", "pause", "clock", "transfer", "cut"),
        fault_gap_s=0.1,
        clients=2,
        think_s=0.02,
        net_delay_s=rng.choice((0.003, 0.01)),
        echo_rate=rng.choice((0.1, 0.3)),
        limits=replace(plan.limits, election_timeout_s=rng.choice(((0.1, 0.2), (0.1, 0.6)))),
    )


_TEMPERS: dict[str, Callable[[Plan, random.Random], Plan]] = {
    "power": _power,
    "laggards": _laggards,
    "minorities": _minorities,
    "elections": _elections,
}
