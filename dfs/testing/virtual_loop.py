"""An asyncio event loop on virtual time, and machines that can be killed, paused and given wrong clocks.

Owns: virtual time, the order in which callbacks run, and which machine each callback belongs to.
Refuses to know: networks, disks, and what runs on it.

Everything runs in one thread and in one order: the same program with the same random numbers runs the same way again.
A callback belongs to the machine of the context in which it was asked for, as all that it asks for in turn. Callbacks
of a dead machine never run, those of a paused one wait: a kill needs no help of the code that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, cast

STEPS_MAX = 5_000_000  # callbacks in one run: more is a loop that never waits

T = TypeVar("T")
_machine: ContextVar[Machine | None] = ContextVar("virtual_machine", default=None)


class MachineDied(BaseException):
    """The machine that runs this code ended just now. Not an `Exception`: no handler may live through it."""


class Machine:
    """One life of a computer: from its start to its kill. What lives longer (its disk) is elsewhere."""

    def __init__(self, loop: VirtualLoop, name: str, *, clock_rate: float = 1.0, clock_start_s: float = 0.0) -> None:
        self.name = name
        self.is_alive = True
        self.is_paused = False
        self._loop = loop
        self._rate, self._ahead_s = clock_rate, clock_start_s
        self._deferred: list[VirtualHandle] = []
        self.context = copy_context()
        self.context.run(_machine.set, self)
        loop.machines.append(self)

    def __repr__(self) -> str:
        return f"Machine({self.name})"

    def monotonic(self) -> float:
        """Return the time of this machine's own clock, which may be too fast or too slow; it never goes back."""
        return self._loop.now_s * self._rate + self._ahead_s

    def jump_clock(self, seconds: float) -> None:
        """Let the clock leap forward, as after the sleep of a virtual machine."""
        self._ahead_s += seconds

    def kill(self) -> None:
        self.is_alive = False
        self._deferred.clear()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        """Run what came in the meantime, in its order."""
        self.is_paused = False
        deferred, self._deferred = self._deferred, []
        for handle in deferred:
            self._loop.make_ready(handle)

    def defer(self, handle: VirtualHandle) -> None:
        self._deferred.append(handle)

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function as this machine."""
        return self.context.copy().run(function, *arguments)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task on this machine."""
        return self._loop.create_task(coroutine, context=self.context.copy())


def current_machine() -> Machine | None:
    """Return the machine whose code is running, `None` outside of all."""
    return _machine.get()


class VirtualHandle:
    """A callback that was asked for; what asyncio calls Handle and TimerHandle."""

    __slots__ = ("arguments", "callback", "context", "is_cancelled", "machine", "when_s")

    def __init__(self, when_s: float, callback: Callable[..., object], arguments: Any, context: Context | None) -> None:
        self.when_s = when_s
        self.callback, self.arguments = callback, arguments
        self.context = context if context is not None else copy_context()
        self.machine: Machine | None = self.context.get(_machine)
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_s


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop. `on_step(machine)` runs after each callback of a machine; `errors` collects what callbacks raised."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._ready: deque[VirtualHandle] = deque()
        self._timers: list[tuple[float, int, VirtualHandle]] = []
        self._timer_count = 0
        self.steps = 0
        self.errors: list[BaseException] = []
        self.machines: list[Machine] = []  # all that ever were
        self._tasks: list[asyncio.Task[Any]] = []
        self.on_step: Callable[[Machine], None] = lambda _machine: None

    # --- running

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, jumping over the time in which nothing happens."""
        previous = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            task = self.create_task(main)
            while not task.done():
                self._advance()
                self._run_ready(task)
            return task.result()
        finally:
            asyncio._set_running_loop(previous)

    def _advance(self) -> None:
        """Move the clock to the next timer when nothing is ready, and make ready what is due."""
        timers, ready = self._timers, self._ready
        if not ready:
            if not timers:
                raise AssertionError("everything waits and nothing will ever happen")
            self.now_s = max(self.now_s, timers[0][0])
        while timers and timers[0][0] <= self.now_s:
            ready.append(heapq.heappop(timers)[2])

    def _run_ready(self, main: asyncio.Task[Any]) -> None:
        """Run what is ready now, and what becomes ready by it, until nothing is or `main` has ended."""
        ready = self._ready
        while ready and not main.done():
            self.steps += 1
            if self.steps > STEPS_MAX:
                raise AssertionError(f"{STEPS_MAX} steps and no end: something works without waiting")
            handle = ready.popleft()
            machine = handle.machine
            if handle.is_cancelled or (machine is not None and not machine.is_alive):
                continue
            if machine is not None and machine.is_paused:
                machine.defer(handle)
                continue
            try:
                handle.context.run(handle.callback, *handle.arguments)
            except MachineDied:
                continue
            except Exception as error:  # noqa: BLE001 - the judge of the run must see it
                self.errors.append(error)
            if machine is not None and machine.is_alive:
                self.on_step(machine)

    def make_ready(self, handle: VirtualHandle) -> None:
        self._ready.append(handle)

    # --- what asyncio asks of a loop

    def time(self) -> float:
        return self.now_s

    def call_soon(  # type: ignore[override]  # a duck of the right shape
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> VirtualHandle:
        handle = VirtualHandle(self.now_s, callback, args, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there is one thread

    def call_later(  # type: ignore[override]  # likewise
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> VirtualHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # likewise
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> VirtualHandle:
        handle = VirtualHandle(when, callback, args, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]  # the signature differs from version to version
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        # One of a killed machine stays unfinished, which is no mistake.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.append(task)
        return task

    def close(self) -> None:
        """Note the errors of tasks that nobody awaited; end the tasks that are left, in their order, without a word."""
        for task in self._tasks:
            if task.done() and getattr(task, "_log_traceback", False) and isinstance(task.exception(), Exception):
                self.errors.append(cast(Exception, task.exception()))
        for machine in self.machines:
            machine.kill()
        for task in self._tasks:
            with contextlib.suppress(BaseException):
                cast(Coroutine[Any, Any, Any], task.get_coro()).close()
        self._tasks.clear()

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002 - there is one thread
        func: Callable[..., T],
        *args: Any,
    ) -> asyncio.Future[T]:
        future = self.create_future()

        def run() -> None:
            if not future.cancelled():
                future.set_result(func(*args))

        self.call_soon(run)
        return future

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Do nothing: what a callback raises is caught where it runs, and `close` looks at the tasks."""
