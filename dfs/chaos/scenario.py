"""Decide what is broken, when, and for how long: the plan of a user's run follows from its seed.

Owns: the faults that a user's cluster may be given, and their times. Refuses to know: whether one is safe at its moment
(dfs.chaos.guard), and how it is done (dfs.chaos.nodes).

Masters and chunk servers are two sides. Each side has one fault at a time; which one of the followers or servers it
hits is drawn when it strikes, from `choice`: by then others may lead.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

CALM_S = (2.0, 6.0)  # between two faults of one side: time to see the cluster work as ever
FIRST_S = 2.0  # at least so long it works undisturbed, to compare with


class Action(enum.Enum):
    """What is done to a daemon. The first three leave what it stores alone."""

    KILL = "kill"  # SIGKILL, started again
    PAUSE = "pause"  # SIGSTOP, SIGCONT
    RESTART = "restart"  # stopped in good order, started again
    WIPE = "wipe"  # killed, its disk emptied, started again
    FILL = "fill"  # its disk is filled to the last byte


class Victim(enum.Enum):
    """To whom."""

    LEADER = "leader"
    FOLLOWER = "follower"
    SERVER = "server"

    @property
    def is_master(self) -> bool:
        return self is not Victim.SERVER


@dataclass(frozen=True, slots=True)
class FaultKind:
    """Written `kill-leader`, `pause-server`: an action and its victim."""

    action: Action
    victim: Victim

    def __str__(self) -> str:
        return f"{self.action.value}-{self.victim.value}"


GENTLE: tuple[FaultKind, ...] = tuple(
    FaultKind(action, victim) for action in (Action.KILL, Action.PAUSE, Action.RESTART) for victim in Victim
)
HARSH: tuple[FaultKind, ...] = (  # these destroy or crowd out what is stored: on throw-away clusters only
    FaultKind(Action.WIPE, Victim.FOLLOWER),
    FaultKind(Action.WIPE, Victim.SERVER),
    FaultKind(Action.FILL, Victim.LEADER),
    FaultKind(Action.FILL, Victim.SERVER),
)
KINDS: dict[str, FaultKind] = {str(kind): kind for kind in GENTLE + HARSH}


@dataclass(frozen=True, slots=True)
class Fault:
    """Times count from the begin of the run. `choice` in [0, 1) picks the victims, `count` of them."""

    begin_s: float
    end_s: float
    kind: FaultKind
    choice: float
    count: int = 1

    def pick(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the victims among those that fit, sorted names."""
        first = int(self.choice * len(names))
        return tuple(names[(first + n) % len(names)] for n in range(min(self.count, len(names))))


def plan_faults(
    seed: int, duration_s: float, kinds: Collection[FaultKind], outage_s: tuple[float, float], servers_max: int = 1
) -> tuple[Fault, ...]:
    """Return the faults of both sides by their begins; all end within `duration_s`.

    `outage_s`: how long one stands, least and most; `servers_max`: how many chunk servers one fault may take at once.
    """
    rng = random.Random(f"chaos {seed}")  # noqa: S311 - a seed must replay
    ordered = sorted(kinds, key=str)
    masters = _side(rng, [kind for kind in ordered if kind.victim.is_master], duration_s, outage_s, 1)
    servers = _side(rng, [kind for kind in ordered if not kind.victim.is_master], duration_s, outage_s, servers_max)
    return tuple(sorted(masters + servers, key=lambda fault: fault.begin_s))


def _side(
    rng: random.Random, kinds: Sequence[FaultKind], duration_s: float, outage_s: tuple[float, float], count_max: int
) -> list[Fault]:
    """Return faults of one side. Each kind comes once, in a drawn order, before any comes again."""
    faults: list[Fault] = []
    now_s = FIRST_S + rng.uniform(0, 1)
    left: list[FaultKind] = []
    while kinds and (end_s := now_s + rng.uniform(*outage_s)) < duration_s:
        if not left:
            left = rng.sample(kinds, len(kinds))
        kind = left.pop()
        takes_many = kind.action in (Action.KILL, Action.PAUSE, Action.RESTART)
        faults.append(Fault(now_s, end_s, kind, rng.random(), rng.randint(1, count_max) if takes_many else 1))
        now_s = end_s + rng.uniform(*CALM_S)
    return faults
