"""One run against a cluster: let clients work, break it by plan within the guard's bounds, undo always, look again.

Owns: the order of things in a run, what is away at each moment, and its end for whatever reason. Refuses to know: how a
fault is done, what is dangerous, and what makes an answer right.

One thread strikes and undoes. Signals only set `stop`, so no undoing is ever cut short by one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dfs.chaos.clients import Clients
from dfs.chaos.guard import alarm, objection, troubles
from dfs.chaos.journal import Journal
from dfs.chaos.nodes import Node
from dfs.chaos.scenario import Fault, Victim
from dfs.chaos.story import Moment, Story
from dfs.chaos.undoing import undo
from dfs.chaos.watch import Watch
from dfs.errors import DfsError

TICK_S = 0.05
RECOVERY_S = 180.0  # patience for the cluster to be whole again after a fault: elections, re-replication
SETTLED_S = 1.0  # whole for so long before the next fault of a side
PATIENCE_S = 30.0  # a fault that may not strike for so long is left out

Say = Callable[[float, str], None]  # seconds since the begin, words


@dataclass(slots=True)
class _Standing:
    """A fault that struck and is not whole again. `steps` are the numbers of its open steps in the journal."""

    fault: Fault
    targets: tuple[str, ...]
    steps: list[int]
    struck_s: float
    lift_s: float
    lifted_s: float | None = None


class _Side:
    """The faults of the masters, or of the chunk servers, one after the other."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.waiting = deque(faults)
        self.standing: _Standing | None = None
        self.whole_s = 0.0  # since when there is nothing to wait for

    @property
    def away(self) -> frozenset[str]:
        return frozenset(self.standing.targets) if self.standing is not None else frozenset()


class ChaosRun:
    """Performs a plan once. `stop` may be set by a signal handler at any moment, with the reason."""

    def __init__(
        self,
        nodes: Sequence[Node],
        faults: Sequence[Fault],
        duration_s: float,
        servers_max: int,
        *,
        journal: Journal,
        say: Say,
    ) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._duration_s, self._servers_max = duration_s, servers_max
        self._journal, self._say = journal, say
        self._sides = [
            _Side([fault for fault in faults if fault.kind.victim.is_master is is_master])
            for is_master in (True, False)
        ]
        self._stop = threading.Event()
        self._stopped = ""
        self.story = Story(time.monotonic())

    def stop(self, reason: str) -> None:
        """End the run at its next step; safe in a signal handler."""
        self._stopped = self._stopped or reason
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        return self._stop.is_set()

    def perform(self, clients: Clients, watch: Watch) -> Story:
        """Break and heal until the time is over or something stops it; everything is undone when this returns."""
        self.story = story = Story(time.monotonic())
        try:
            while self._elapsed_s() < self._duration_s and not self._stop.wait(TICK_S):
                clients.turn_to(self._elapsed_s())
                self._tick(clients, watch)
        finally:
            self._undo()
        story.stopped = self._stopped
        self._wait_whole(watch)
        clients.end()
        story.ended_s = time.monotonic()
        return story

    # --- one look, one decision

    def _tick(self, clients: Clients, watch: Watch) -> None:
        for crash in (watch.crash, clients.crash):
            if crash is not None:
                raise crash
        if reason := alarm(watch.view, self._away(), self._servers_max):
            self._say(self._elapsed_s(), f"STOP: {reason}")
            self.stop(reason)
            return
        try:
            for side in self._sides:
                if side.standing is not None:
                    self._attend(side, side.standing, watch)
                elif side.waiting and self._is_due(side):
                    self._consider(side, watch)
        except (DfsError, OSError) as error:  # a daemon is not as it was thought to be: undo, once more, and end
            self._say(self._elapsed_s(), f"STOP: {error}")
            self.stop(str(error))

    def _attend(self, side: _Side, standing: _Standing, watch: Watch) -> None:
        """Lift a fault when its time is over, and note when all is whole again."""
        now_s = self._elapsed_s()
        if standing.lifted_s is None:
            if now_s >= standing.lift_s:
                self._lift(standing)
            return
        if self._is_whole(side, standing, watch):
            self._note(side, standing)
        elif now_s - standing.lifted_s > RECOVERY_S:
            self.stop(f"{', '.join(standing.targets)} did not recover within {RECOVERY_S:g} s")

    def _is_whole(self, side: _Side, standing: _Standing, watch: Watch) -> bool:
        """Whether this side is, by a look that began after the fault was lifted; the other side is excused."""
        view, lifted_s = watch.view, standing.lifted_s
        excused = self._away() - side.away
        if standing.fault.kind.victim.is_master:
            excused |= {server.name for server in view.servers}
        return lifted_s is not None and view.at_s - self.story.began_s > lifted_s and not troubles(view, excused)

    def _is_due(self, side: _Side) -> bool:
        now_s, fault = self._elapsed_s(), side.waiting[0]
        if now_s + fault.end_s - fault.begin_s > self._duration_s:
            side.waiting.popleft()  # no time left for it
            return False
        return now_s >= max(fault.begin_s, side.whole_s + SETTLED_S)

    def _consider(self, side: _Side, watch: Watch) -> None:
        fault, view = side.waiting[0], watch.view
        targets = self._targets(fault, view.leader)
        reason = "no daemon that can be reached fits" if not targets else ""
        reason = reason or objection(view, fault, targets, self._away(), self._servers_max)
        if not reason and view.at_s - self.story.began_s < side.whole_s:
            return  # a look from before the last fault was over
        if reason:
            if self._elapsed_s() - max(fault.begin_s, side.whole_s) > PATIENCE_S or not targets:
                side.waiting.popleft()
                self.story.skipped.append(f"{fault.kind}: {reason}")
                self._say(self._elapsed_s(), f"left out {fault.kind}: {reason}")
            return
        side.waiting.popleft()
        self._strike(side, fault, targets)

    def _targets(self, fault: Fault, leader: str) -> tuple[str, ...]:
        """Return whom a fault hits now, () for nobody."""
        return fault.pick(candidates(self._nodes.values(), fault, leader))

    def _away(self) -> frozenset[str]:
        return frozenset[str]().union(*(side.away for side in self._sides))

    # --- faults

    def _strike(self, side: _Side, fault: Fault, targets: tuple[str, ...]) -> None:
        now_s = self._elapsed_s()
        standing = _Standing(fault, targets, [], now_s, now_s + fault.end_s - fault.begin_s)
        side.standing = standing  # before the first deed: whatever happens now is undone
        for name in targets:
            way = self._nodes[name].ways[fault.kind.action]
            standing.steps += [self._journal.add(step) for step in way.steps()]
            self._say(self._elapsed_s(), f"{fault.kind} {name}: {way.words}")
            way.strike()

    def _lift(self, standing: _Standing) -> None:
        open_steps = dict(self._journal.steps)
        failures: list[DfsError | OSError] = []
        for number in reversed(standing.steps):
            if number in open_steps:
                try:
                    undo(open_steps[number])
                    self._journal.done(number)
                except (DfsError, OSError) as error:  # one target must not keep the others broken
                    failures.append(error)
        if failures:
            raise failures[0]
        standing.lifted_s = self._elapsed_s()
        self._say(standing.lifted_s, f"undone: {standing.fault.kind} {', '.join(standing.targets)}")

    def _note(self, side: _Side, standing: _Standing) -> None:
        now_s = self._elapsed_s()
        lifted_s = now_s if standing.lifted_s is None else standing.lifted_s
        self.story.moments.append(
            Moment(str(standing.fault.kind), standing.targets, standing.struck_s, lifted_s, now_s)
        )
        side.standing, side.whole_s = None, now_s

    def _undo(self) -> None:
        """Lift what stands; go on after a failure, so that one node cannot keep the others broken."""
        for side in self._sides:
            standing = side.standing
            if standing is not None and standing.lifted_s is None:
                try:
                    self._lift(standing)
                except (DfsError, OSError) as error:
                    standing.lifted_s = self._elapsed_s()
                    self.story.left.append(f"{standing.fault.kind} {', '.join(standing.targets)}: {error}")

    def _wait_whole(self, watch: Watch) -> None:
        """Give the cluster time to recover, whatever ended the run; none when a daemon could not be brought back."""
        deadline_s = time.monotonic() + (0.0 if self.story.left else RECOVERY_S)
        lifted_s = self._elapsed_s()
        while time.monotonic() < deadline_s and watch.crash is None:
            if watch.view.at_s - self.story.began_s > lifted_s and not troubles(watch.view):
                break
            time.sleep(TICK_S)
        else:
            if not self.story.left:
                found = "; ".join(troubles(watch.view)[:3]) or "nothing is known about it any more"
                self.story.left.append(f"the cluster is not whole {RECOVERY_S:g} s after the last fault: {found}")
        for side in self._sides:
            if side.standing is not None:
                self._note(side, side.standing)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self.story.began_s


def candidates(nodes: Iterable[Node], fault: Fault, leader: str) -> list[str]:
    """Return the names of those that a fault could hit now, sorted."""
    found = []
    for node in nodes:
        fits = {
            Victim.LEADER: node.is_master and node.name == leader,
            Victim.FOLLOWER: node.is_master and leader not in (node.name, ""),
            Victim.SERVER: not node.is_master,
        }[fault.kind.victim]
        if fits and fault.kind.action in node.ways:
            found.append(node.name)
    return sorted(found)
