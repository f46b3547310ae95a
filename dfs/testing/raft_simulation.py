"""A run of simulated masters under faults, all of it drawn from one seed, judged after every step.

Owns: the course of a run, the schedule of faults, and the verdict.
Refuses to know: what a seed means (raft_plan), how machines, disks and networks fail (virtual_*), and what the rules
are (raft_referee, raft_examination).

`run(seed)` returns an `Outcome`; the same seed gives the same digest. To look into one: python -m dfs.testing.simulate.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass, field

from dfs.chaos.linearizability import check, split
from dfs.errors import DfsError, DiskFailed, DiskFull
from dfs.testing.raft_clients import MODEL, Client, History
from dfs.testing.raft_examination import examine
from dfs.testing.raft_plan import Plan
from dfs.testing.raft_referee import Referee, RuleBroken
from dfs.testing.raft_world import Life, MasterHost, RaftWorld
from dfs.testing.virtual_loop import Machine

_NOWHERE = Context()  # of what is not asked for by a machine
RUNS_PER_COLLECTION = 16  # of the cycles that worlds leave
SETTLE_S = 30.0  # virtual; after all is healed the masters must work again within it


@dataclass(slots=True)
class Outcome:
    """`failure` None: the run kept all rules. `digest` covers every byte delivered and every call."""

    seed: int
    digest: str = ""
    failure: str | None = None
    done: int = 0
    unknown: int = 0
    steps: int = 0
    virtual_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)


def run(seed: int, *, tell: Callable[[str], None] | None = None, plan: Plan | None = None) -> Outcome:
    """Simulate one seed; `tell` hears the story."""
    simulation = RaftSimulation(plan or Plan.of(seed), tell or (lambda _line: None))
    with _quiet(), simulation.world.installed():
        return simulation.run()


_runs = itertools.count(1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log lines of masters that are meant to fail, and no collection in the middle of a deterministic run."""
    loggers = [logging.getLogger(name) for name in ("dfs", "pysyncobj")]
    levels = [logger.level for logger in loggers]
    was_collecting = gc.isenabled()
    gc.disable()
    for logger, level in zip(loggers, levels, strict=True):
        if level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if was_collecting:
            gc.enable()
            if next(_runs) % RUNS_PER_COLLECTION == 0:
                gc.collect()  # worlds are full of cycles, and the collector alone comes too late: half a MiB a seed


class RaftSimulation:
    """One run."""

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self.plan = plan
        self.world = RaftWorld(
            plan.seed, plan.size, plan.limits, net_delay_s=plan.net_delay_s, echo_rate=plan.echo_rate
        )
        self.referee = Referee(self.world)
        self.history = History()
        self._tell = tell
        self._outcome = Outcome(plan.seed)
        self._rng = random.Random(f"{plan.seed} faults")  # noqa: S311 - a seed must replay
        self._clients = [Client(self.world, f"c{n}", self.history, plan.keys) for n in range(1, plan.clients + 1)]
        self._broken: RuleBroken | None = None
        self._is_healing = False
        self._is_over = False
        self._traps: dict[str, int] = {"vote": 0, "commit": 0}  # power cuts that wait for such an event
        self._is_trapped = False
        self.referee.on_vote = lambda life: self._spring("vote", life)
        self.referee.on_commit = lambda life: self._spring("commit", life)
        self.world.on_failure = self._master_failed
        self.world.on_death = self._master_died
        self.world.loop.on_step = self._after_step

    def run(self) -> Outcome:
        outcome, loop = self._outcome, self.world.loop
        try:
            loop.run(self._main())
            self._is_over = True
            loop.close()
            self._check()
            self._judge_history()
        except RuleBroken as error:
            outcome.failure = str(error)
            self._is_over = True
            loop.close()
        outcome.done = sum(client.done for client in self._clients)
        outcome.unknown = sum(client.unknown for client in self._clients)
        outcome.steps, outcome.virtual_s = loop.steps, loop.time()
        digest = hashlib.blake2b(self.world.net.digest.digest(), digest_size=8)
        digest.update(f"{loop.steps} {loop.time():.9f} {[str(call) for call in self.history.calls]}".encode())
        outcome.digest = digest.hexdigest()
        return outcome

    def _say(self, line: str) -> None:
        self._tell(f"{self.world.loop.time():9.4f} {line}")

    # --- judging

    def _after_step(self, machine: Machine) -> None:
        life = self.world.life_of(machine)
        if life is None or self._broken is not None:
            return
        try:
            self.referee.look(life)
        except RuleBroken as error:
            self._broken = error

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self.world.loop.errors:
            error = self.world.loop.errors[0]
            raise RuleBroken(f"a callback raised {error!r}") from error

    def _judge_history(self) -> None:
        for calls in split(self.history.calls).values():
            verdict = check(calls, MODEL)
            if not verdict.is_linearizable:
                raise RuleBroken(f"the history is not linearizable: {verdict.story}")

    # --- the course of a run

    async def _main(self) -> None:
        loop, plan = self.world.loop, self.plan
        for host in self.world.hosts.values():
            loop.create_task(self._start(host))
        workers = [loop.create_task(client.work_until(plan.duration_s, plan.think_s)) for client in self._clients]
        while loop.time() < plan.duration_s:
            await asyncio.sleep(self._rng.expovariate(1.0) * plan.fault_gap_s)
            self._check()
            self._fault(self._rng.choice(plan.faults))
        await self._heal_all()
        for worker in workers:
            await worker
        await self._settle()
        if plan.is_examined:
            await examine(self.world, self.plan.limits.election_timeout_s, self._lives)
            await self._settle()
        self._check()

    async def _start(self, host: MasterHost) -> None:
        """Start a master; one whose disk is full or failing gets a better one and tries again."""
        if self._is_over or host.life is not None:
            return
        try:
            is_alive = await host.start()
            self._say(f"{host.name} started" if is_alive else f"{host.name} died while it started")
        except (DiskFull, DiskFailed) as error:
            self._say(f"{host.name} cannot start: {error}")
        except DfsError as error:
            self._broken = self._broken or RuleBroken(f"{host.name} does not start: {error}")

    def _master_failed(self, host: MasterHost, error: DfsError) -> None:
        self._say(f"{host.name} stopped: {error}")
        if not isinstance(error, DiskFull | DiskFailed):
            self._broken = self._broken or RuleBroken(f"{host.name} stopped by itself: {error}")

    def _master_died(self, host: MasterHost, with_power: bool) -> None:
        self._say(f"{host.name} is dead ({'power' if with_power else 'killed'})")
        host.disk.capacity, host.disk.fails_next_sync = 1 << 60, False
        longest_s = (
            0.1 if self._is_trapped else 1.0
        )  # trapped: back while the messages of before are still on their way
        delay_s = 0.1 if self._is_healing else self._rng.uniform(0.02, longest_s)
        self.world.loop.call_later(delay_s, self._restart, host, context=_NOWHERE)

    def _restart(self, host: MasterHost) -> None:
        self.world.loop.create_task(self._start(host))

    async def _heal_all(self) -> None:
        self._is_healing = True
        self._traps.clear()
        self.world.echo_rate = 0.0
        self._say("all is healed")
        for host in self.world.hosts.values():
            host.disk.operations_left, host.disk.capacity = 1 << 60, 1 << 60
            host.disk.fails_next_sync = False
            if host.life is not None:
                host.life.machine.resume()
        self.world.net.heal()

    async def _settle(self) -> None:
        """Liveness: reads of every path succeed, and all masters come to the same state."""
        deadline_s = self.world.loop.time() + SETTLE_S
        reader = Client(self.world, "c0", self.history, self.plan.keys)
        for number in range(self.plan.keys):
            await reader.call(f"/k{number}", "read", None, patience_s=SETTLE_S)
            self._check()
        if reader.unknown:
            raise RuleBroken(f"no master answered within {SETTLE_S} s after all was healed")
        while not self._have_all_caught_up():
            self._check()
            if self.world.loop.time() > deadline_s:
                raise RuleBroken(f"the masters did not come together in {SETTLE_S} s: {self._positions()}")
            await asyncio.sleep(0.1)
        self.referee.judge_end(self._lives())

    def _lives(self) -> list[Life]:
        return [host.life for host in self.world.hosts.values() if host.life is not None and host.life.is_started]

    def _have_all_caught_up(self) -> bool:
        lives = self._lives()
        ends = {(life.engine.applied_index, life.engine.journal.last_index) for life in lives}
        return len(lives) == self.plan.size and len(ends) == 1 and len(set(next(iter(ends)))) == 1

    def _positions(self) -> str:
        logs = [(life, life.engine.journal) for life in self._lives()]
        return ", ".join(
            f"{life.host.name} {life.log.status()} log {journal.first_index}..{journal.last_index}"
            for life, journal in logs
        )

    # --- faults

    def _fault(self, kind: str) -> None:
        self._outcome.faults[kind] = self._outcome.faults.get(kind, 0) + 1
        hosts = list(self.world.hosts.values())
        getattr(self, f"_do_{kind}")(self._rng.choice(hosts), hosts)

    def _do_kill(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        host.die(with_power=False)

    def _do_power(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        host.die(with_power=True)

    def _do_power_in_write(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        host.disk.operations_left = self._rng.randint(0, 12)
        self._say(f"{host.name} will lose its power in {host.disk.operations_left} disk operations")

    def _do_power_all(self, _host: MasterHost, hosts: list[MasterHost]) -> None:
        for host in hosts:
            host.die(with_power=True)

    def _do_power_at_vote(self, _host: MasterHost, _hosts: list[MasterHost]) -> None:
        """The next master that has voted loses its power about when its vote leaves."""
        self._traps["vote"] = 1

    def _do_power_at_commit(self, _host: MasterHost, _hosts: list[MasterHost]) -> None:
        """The next leader that commits, or several, lose their power about when they tell it."""
        self._traps["commit"] = self._rng.randint(1, 3)

    def _spring(self, event: str, life: Life) -> None:
        if self._traps.get(event, 0) > 0:
            self._traps[event] -= 1
            delay_s = self._rng.choice((0.0, 0.001, 0.01))
            self.world.loop.call_later(delay_s, self._die_trapped, life, context=_NOWHERE)

    def _die_trapped(self, life: Life) -> None:
        if life.host.life is life and not self._is_healing:
            self._is_trapped = True
            life.host.die(with_power=True)
            self._is_trapped = False

    def _do_isolate(self, host: MasterHost, hosts: list[MasterHost]) -> None:
        self._say(f"{host.name} is isolated")
        self._part([host], hosts)
        self._heal_later()

    def _part(self, some: list[MasterHost], hosts: list[MasterHost]) -> None:
        """Close all ways between some masters and the others."""
        for one in some:
            for other in hosts:
                if other not in some:
                    self.world.net.block(one.name, other.name)
                    self.world.net.block(other.name, one.name)

    def _do_depose(self, _host: MasterHost, hosts: list[MasterHost]) -> None:
        """Cut the leader off, of five with a follower, until the others have gone on a good way without it."""
        for life in self._lives():
            if life.log.is_leader:
                followers = [host for host in hosts if host is not life.host]
                lonely = [life.host, *self._rng.sample(followers, (len(hosts) - 3) // 2)]
                self._say(f"{', '.join(host.name for host in lonely)} (leader first) are cut off")
                self._part(lonely, hosts)
                goal = life.engine.commit_index + self._rng.choice((3, 12, 20))
                self._heal_once_at(goal, self.world.loop.time() + 2.0, lonely)
                return

    def _heal_once_at(self, goal: int, deadline_s: float, lonely: list[MasterHost]) -> None:
        if self._is_healing:
            return
        others = [life.engine.commit_index for life in self._lives() if life.host not in lonely]
        if max(others, default=0) >= goal or self.world.loop.time() >= deadline_s:
            self._heal()
        else:
            self.world.loop.call_later(0.05, self._heal_once_at, goal, deadline_s, lonely)

    def _do_isolate_leader(self, _host: MasterHost, hosts: list[MasterHost]) -> None:
        for life in self._lives():
            if life.log.is_leader:
                self._do_isolate(life.host, hosts)

    def _do_wipe(self, host: MasterHost, hosts: list[MasterHost]) -> None:
        """Replace a master by an empty one; only when all others are members, as docs/operations.md asks."""
        lives = self._lives()
        if len(lives) == len(hosts) and all(life.log.node.membership.is_member for life in lives):
            self._say(f"{host.name} gets an empty disk")
            host.die(with_power=True)
            host.wipe()

    def _do_one_way(self, host: MasterHost, hosts: list[MasterHost]) -> None:
        """Some ways out of a host, or into it, are closed."""
        is_out = self._rng.random() < 0.5
        others = [one.name for one in hosts if one is not host and self._rng.random() < 0.7]
        others += [client.name for client in self._clients if self._rng.random() < 0.3]
        self._say(f"{host.name} {'to' if is_out else 'from'} {', '.join(others)} is closed")
        for other in others:
            self.world.net.block(*((host.name, other) if is_out else (other, host.name)))
        self._heal_later()

    def _do_split(self, _host: MasterHost, hosts: list[MasterHost]) -> None:
        names = [host.name for host in hosts] + [client.name for client in self._clients]
        left = [name for name in names if self._rng.random() < 0.5]
        self._say(f"{', '.join(left)} are apart")
        for one in left:
            for other in names:
                if other not in left:
                    self.world.net.block(one, other)
                    self.world.net.block(other, one)
        self._heal_later()

    def _heal_later(self) -> None:
        """End all partitions in a while; meanwhile others may be added to them."""
        self.world.loop.call_later(self._rng.choice((0.05, 0.5, 1.5)) * self._rng.random() * 2, self._heal)

    def _heal(self) -> None:
        if not self._is_healing:
            self._say("the network is whole")
            self.world.net.heal()

    def _do_pause(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        self._pause(host, self._rng.choice((0.05, 0.3, 1.0, 2.0)) * self._rng.random())

    def _do_pause_leader(self, _host: MasterHost, _hosts: list[MasterHost]) -> None:
        """Long enough for a new leader, whose changes the old one does not know when it goes on."""
        for life in self._lives():
            if life.log.is_leader:
                self._pause(life.host, self._rng.uniform(0.3, 0.9))

    def _pause(self, host: MasterHost, seconds: float) -> None:
        if host.life is not None:
            self._say(f"{host.name} pauses for {seconds:.2f} s")
            host.life.machine.pause()
            self.world.loop.call_later(seconds, host.life.machine.resume)

    def _do_clock(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        if host.life is not None:
            host.life.machine.jump_clock(self._rng.choice((0.05, 0.3, 5.0, 1000.0)) * self._rng.random())

    def _do_wall_clock(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        host.wall_ahead_ms = self._rng.randint(-10_000_000, 10_000_000)

    def _do_disk_full(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        host.disk.capacity = host.disk.used + self._rng.randint(0, 10_000)
        self._say(f"{host.name} has a full disk")

    def _do_disk_error(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        host.disk.fails_next_sync = True

    def _do_checkpoint(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        if host.life is not None and host.life.is_started:
            host.life.machine.run(host.life.log.checkpoint)

    def _do_transfer(self, host: MasterHost, _hosts: list[MasterHost]) -> None:
        if host.life is not None and host.life.is_started:
            host.life.machine.run(host.life.log.transfer_leadership)

    def _do_cut(self, host: MasterHost, hosts: list[MasterHost]) -> None:
        self.world.net.cut(host.name, self._rng.choice(hosts).name)
