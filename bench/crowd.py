"""Several client processes that start together and work for a while.

Owns: forking, the common start, and what becomes of a failure in a child. Refuses to know: what the clients do.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

from dfs.errors import DfsError

START_WAIT_S = 120.0
END_WAIT_S = 600.0
WARM_UPS = 5  # iterations before the clock starts

Step = Callable[[int], object]  # does the n-th iteration; negative numbers are the warm-up
Job = Callable[[int], AbstractContextManager[Step]]  # makes all ready for one client, by its number


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each client works: until `seconds` are over or `count` iterations done."""

    seconds: float = 1.0
    count: int = 1 << 62
    warm_ups: int = WARM_UPS


ONCE = Effort(seconds=float("inf"), count=1, warm_ups=0)


@dataclass(frozen=True, slots=True)
class Done:
    """What one client did, and when (on the clock that all processes of a machine share)."""

    began_s: float
    ended_s: float
    count: int


def run_crowd(clients: int, job: Job, effort: Effort) -> list[Done]:
    """Run a client in each of so many processes; return what each did.

    Raises `DfsError` when one failed, died or did not end in time; then all are gone.
    """
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(clients)
    running = []
    for number in range(clients):
        own, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_client, args=(number, job, effort, begin, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the death of the child is the end of the pipe
        running.append((process, own))
    told: list[Done | str] = []
    try:
        for outcome in _outcomes([own for _, own in running]):
            told.append(outcome)
            if isinstance(outcome, str):
                begin.abort()  # nobody waits for one that failed
    finally:
        for process, own in running:
            process.join(10 if len(told) == clients else 0)
            if process.is_alive():
                process.kill()
                process.join()
            own.close()
    failures = [outcome for outcome in told if isinstance(outcome, str)]
    if failures:  # those who only missed the others at the start are the least interesting
        raise DfsError(min(failures, key=lambda text: BrokenBarrierError.__name__ in text))
    return [outcome for outcome in told if isinstance(outcome, Done)]


def rate(done: list[Done]) -> float:
    """Return iterations per second of all clients together, from the first start to the last end."""
    elapsed_s = max(each.ended_s for each in done) - min(each.began_s for each in done)
    return sum(each.count for each in done) / elapsed_s


def _outcomes(pipes: list[Connection]) -> Iterator[Done | str]:
    """Yield what each client tells, as it comes: a figure, or why there is none."""
    until_s = time.monotonic() + END_WAIT_S
    waiting = list(pipes)
    while waiting:
        ready = wait(waiting, max(0.0, until_s - time.monotonic()))
        if not ready:
            yield f"{len(waiting)} clients told nothing for {END_WAIT_S:.0f} s"
            return
        for pipe in ready:
            assert isinstance(pipe, Connection), "only pipes are waited for"
            waiting.remove(pipe)
            try:
                yield pipe.recv()
            except EOFError:
                yield "a client process died without a word"


def _client(number: int, job: Job, effort: Effort, begin: Barrier, theirs: Connection) -> None:
    """The root of a client process."""
    try:
        with job(number) as step:
            for n in range(-effort.warm_ups, 0):
                step(n)
            begin.wait(START_WAIT_S)
            done = _work(step, effort)
        theirs.send(done)  # after the job has cleaned up behind itself: a failure of that counts, too
    except Exception as error:  # noqa: BLE001 - a process's root: whatever it is ends the measurement
        begin.abort()
        theirs.send(f"client {number}: {type(error).__name__}: {error}")
    finally:
        theirs.close()


def _work(step: Step, effort: Effort) -> Done:
    began_s = now_s = time.perf_counter()
    until_s, count = began_s + effort.seconds, 0
    while count < effort.count and now_s < until_s:
        step(count)
        count += 1
        now_s = time.perf_counter()
    return Done(began_s, now_s, count)
