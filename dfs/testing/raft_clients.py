"""Clients of simulated masters, and the history of what they saw.

Owns: calls with exactly-once sessions over an unreliable network, the retries of a real client, and what the paths they
use must look like to one client alone (`MODEL`). Refuses to know: faults, and whether the history is right.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Hashable
from contextvars import Context
from typing import Any

from dfs.chaos.linearizability import UNKNOWN, Call, Model
from dfs.errors import DfsError, NotFound, NotLeader
from dfs.master.state.commands import encode_command
from dfs.net.messages import Delete, ErrorReply, MakeDirectory, Message, Mutation, RemoveDirectory, Touch
from dfs.net.parts import CallId
from dfs.testing.raft_referee import RuleBroken
from dfs.testing.raft_world import Life, MasterHost, RaftWorld

Request = Callable[[Life], Awaitable[Any]]
_NOWHERE = Context()  # of replies on their way
_DEFINITE = {"already_exists": "exists", "not_found": "missing"}  # error codes that are results


def _step(state: Any, name: str, argument: Any) -> tuple[Any, Hashable]:
    """One path: None when there is nothing, else the time of a file, or `directory`."""
    if name == "read":
        return state, state
    if name == "touch":
        return "ok", argument
    if name == "make":
        return ("exists", state) if state is not None else ("ok", "directory")
    return ("missing", None) if state is None else ("ok", None)  # delete, remove


MODEL = Model(None, _step)


class History:
    """All calls of all clients in the order of their begins and ends."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._events = 0

    def next_event(self) -> int:
        self._events += 1
        return self._events


class Client:
    """One client after another under the same name: one that does not know an outcome gives its session up."""

    def __init__(self, world: RaftWorld, name: str, history: History, keys: int) -> None:
        self.name = name
        self.done = self.unknown = 0
        self._world, self._history, self._keys = world, history, keys
        self._rng = random.Random(f"{world.seed} {name}")  # noqa: S311 - a seed must replay
        self._session = b""
        self._sequence = 0
        self._target = self._rng.choice(list(world.hosts))
        self._values = 0

    async def work_until(self, end_s: float, think_s: float) -> None:
        while self._world.loop.time() < end_s:
            await asyncio.sleep(self._rng.expovariate(1.0) * think_s)
            await self.call(*self._random_operation(), patience_s=self._rng.uniform(0.5, 3.0))

    def _random_operation(self) -> tuple[str, str, Any]:
        key = f"/k{self._rng.randrange(self._keys)}"
        is_directory = int(key[2:]) % 3 == 2
        chance = self._rng.random()
        if chance < 0.45:
            return key, "read", None
        if is_directory:
            return key, ("make" if chance < 0.75 else "remove"), None
        if chance < 0.9:
            self._values += 1
            return key, "touch", int(self.name[1:]) * 1_000_000 + self._values
        return key, "delete", None

    async def call(self, key: str, name: str, argument: Any, *, patience_s: float) -> Any:
        """Do one call and write it down; return its result or `UNKNOWN`."""
        history = self._history
        begun = history.next_event()
        request = self._read(key) if name == "read" else self._mutation(key, name, argument)
        result = await self._insist(request, patience_s)
        if result is UNKNOWN:
            self.unknown += 1
            self._session = b""
            if name == "read":
                return result
        else:
            self.done += 1
        history.calls.append(
            Call(key, name, argument, result, begun, None if result is UNKNOWN else history.next_event())
        )
        return result

    async def _insist(self, request: Request, patience_s: float) -> Any:
        """Send a request to one master after another until one answers for good."""
        loop, rng = self._world.loop, self._rng
        deadline_s = loop.time() + patience_s
        while loop.time() < deadline_s:
            outcome = await self._ask(self._world.hosts[self._target], request, rng.uniform(0.2, 1.0))
            if not isinstance(outcome, DfsError) and outcome is not UNKNOWN:
                return outcome
            if isinstance(outcome, NotLeader) or outcome is UNKNOWN or rng.random() < 0.5:
                self._target = rng.choice(list(self._world.hosts))
            await asyncio.sleep(rng.uniform(0.005, 0.05))
        return UNKNOWN

    async def _ask(self, host: MasterHost, request: Request, timeout_s: float) -> Any:
        """Return what `request` returned or raised on the host; `UNKNOWN` when nothing came back."""
        world, net = self._world, self._world.net
        answer: asyncio.Future[Any] = world.loop.create_future()

        def settle(outcome: Any) -> None:
            if not answer.done() and net.is_open(host.name, self.name):
                answer.set_result(outcome)

        async def serve(life: Life) -> None:
            outcome: Any
            try:
                outcome = await request(life)
            except (DfsError, RuleBroken) as error:
                outcome = error
            world.loop.call_later(net.random_delay_s(), settle, outcome, context=_NOWHERE)

        def arrive() -> None:
            life = host.life
            if not net.is_open(self.name, host.name):
                return
            if life is None or not life.is_started:
                world.loop.call_later(net.random_delay_s(), settle, UNKNOWN, context=_NOWHERE)
            else:
                life.machine.spawn(serve(life))

        world.loop.call_later(net.random_delay_s(), arrive, context=_NOWHERE)
        try:
            outcome = await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            return UNKNOWN
        if isinstance(outcome, RuleBroken):
            raise outcome
        return outcome

    def _mutation(self, key: str, name: str, argument: Any) -> Request:
        if not self._session:
            self._session, self._sequence = self._rng.randbytes(16), 0
        self._sequence += 1
        command = self._command(key, name, argument)

        async def propose(life: Life) -> Any:
            reply = await life.log.propose(encode_command(life.host.wall_ms(), command), 2.0)
            return _result_of(reply)

        return propose

    def _command(self, key: str, name: str, argument: Any) -> Mutation:
        call: Any = CallId(self._session, self._sequence, self._sequence)  # type: ignore[arg-type]
        if name == "touch":
            return Touch(call, key, argument)
        if name == "make":
            return MakeDirectory(call, key)
        if name == "remove":
            return RemoveDirectory(call, key)
        return Delete(call, key, skip_trash=True)

    def _read(self, key: str) -> Request:
        async def read(life: Life) -> Any:
            await life.log.read_barrier(2.0)
            try:
                status = life.state.stat(key)
            except NotFound:
                return None
            return status.mtime_ms if int(key[2:]) % 3 != 2 else "directory"

        return read


def _result_of(reply: Message) -> str:
    if not isinstance(reply, ErrorReply):
        return "ok"
    if reply.code not in _DEFINITE:
        raise RuleBroken(f"a call of a correct client ended in {reply.code}: {reply.text}")
    return _DEFINITE[reply.code]
