"""One chaos run: start a cluster, let clients work, break things by plan, heal, look once more, judge.

Owns: the threads of a run and their end. Refuses to know: what the faults and the operations are.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dfs.chaos.history import History
from dfs.chaos.workloads import BookWorker, YardWorker, last_look, prepare
from dfs.client import DfsClient
from dfs.testing.chaos import clocks, namespaces, small_disks
from dfs.testing.chaos.clocks import Clocks
from dfs.testing.chaos.logs import Logs, LogWorker, last_look_at_logs
from dfs.testing.chaos.namespaces import Namespaces
from dfs.testing.chaos.sabotage import SABOTEUR, SMALL_PAGES, launcher
from dfs.testing.chaos.schedule import TOUCHES_CHUNK_SERVERS, Fault, Means, Plan, plan_faults
from dfs.testing.chaos.small_disks import SmallDisks
from dfs.testing.chaos.surgeon import Surgeon
from dfs.testing.chaos.verdict import Moment, Verdict, judge
from dfs.testing.cluster import ClusterUnderTest

YARD_CLIENTS, YARD_READERS, BOOK_CLIENTS, LOG_CLIENTS = 4, 2, 3, 3
YARDS, BOOKS, LOGS = 3, 3, 2  # few: clients that never meet prove nothing
CHUNK_SIZE = 128 * 1024  # bytes: the larger editions have three chunks
CALL_TIMEOUT_S = 8.0  # a client's patience with one call
THINK_S = 0.01  # between two calls of one client; the judge's search grows with the calls that overlap
NODES = ("m1", "m2", "m3", "c1", "c2", "c3", "c4")

SETTINGS = {
    "replicas_min": "2"
}  # one replica alone may be where the next fault strikes: no read could be promised then
KEPT = Path("build")  # where the logs of broken runs go

NO_MEANS = Means()

Step = Callable[[DfsClient], None]


def run_chaos(
    seed: int,
    duration_s: float,
    *,
    folder: Path | None = None,
    plan: Plan | None = None,
    means: Means = NO_MEANS,
    without: str = "",
    late_s: float = 0.0,
    keep: Path | None = None,
) -> Verdict:
    """Run one seed against a throw-away cluster; raise a `DfsError` when the cluster does not heal in time.

    Faults of `plan` that are not due to begin within `duration_s`, or for which the recovery from others leaves no time
    in it, are left out; up to `late_s` more are taken for them, as a busy machine needs.
    `without` takes a safety out of all daemons or clients (dfs.testing.chaos.sabotage), to see that it is missed.
    `keep`: where the verdict, the faults and the logs of the daemons go when it is not clean.
    """
    faults = plan_faults(seed, duration_s, means) if plan is None else plan
    with contextlib.ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dfs-chaos-")))
        cluster, surgeon = _set_up(stack, folder, means, without)
        history, logs = History(), Logs(LOGS)
        with cluster.client() as client:
            prepare(history, client, YARDS, BOOKS)
        stop = threading.Event()
        workers = [_Worker(cluster, step, stop) for step in _steps(seed, history, logs)]
        try:
            _perform(faults, surgeon, duration_s, late_s)
        finally:
            stop.set()
            for worker in workers:
                worker.join()
        cluster.wait_healthy()
        with cluster.client(timeout_s=60) as client:
            last_look(history, client, YARDS, BOOKS)
            broken = last_look_at_logs(history, logs, client)
        crashed = [worker.crash for worker in workers if worker.crash is not None]
        if crashed:
            raise crashed[0]
        verdict = judge(seed, duration_s, history, surgeon.moments_s, dict(surgeon.counts), broken)
        if keep is not None and not verdict.is_clean:
            _keep(verdict, surgeon.moments_s, cluster, keep)
        return verdict


def _keep(verdict: Verdict, moments: Sequence[Moment], cluster: ClusterUnderTest, folder: Path) -> None:
    """Write down what a person needs to find out why a run was broken; the time of day is that of the logs."""
    folder.mkdir(parents=True, exist_ok=True)
    of_day_s = time.time() - time.monotonic()
    lines = [
        f"{_of_day(of_day_s + begin_s)} .. {_of_day(of_day_s + end_s)} {fault.kind} (choice {fault.choice:.3f})"
        for fault, begin_s, end_s in moments
    ]
    (folder / "verdict.txt").write_text("\n".join([verdict.text(), *lines, ""]), encoding="utf-8")
    for name in NODES:
        (folder / f"{name}.log").write_text(cluster.log_of(name), encoding="utf-8")


def _of_day(at_s: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at_s)) + f"{at_s % 1:.3f}"[1:]


def _set_up(stack: contextlib.ExitStack, folder: Path, means: Means, without: str) -> tuple[ClusterUnderTest, Surgeon]:
    """Start a cluster that can be broken by these means, and who breaks it; `stack` ends all of it."""
    spaces = stack.enter_context(Namespaces(NODES)) if means.network else None
    disks = None
    if means.disks:
        disks = stack.enter_context(SmallDisks([folder / "cluster" / name for name in NODES]))
    times = None
    if means.clocks:
        (folder / "clocks").mkdir()
        times = Clocks(folder / "clocks", NODES)
    if without in SABOTEUR.of_clients:
        stack.enter_context(SABOTEUR.without(without))
    launchers = {}
    for name in NODES:
        deeds = [SMALL_PAGES] if name.startswith("m") else []
        deeds += [without] if without and without not in SABOTEUR.of_clients else []
        words = spaces.launcher(name) if spaces else ()
        launchers[name] = (*words, *(times.launcher(name) if times else ()), *launcher(*deeds))
    cluster = stack.enter_context(
        ClusterUnderTest(
            folder,
            chunk_size=CHUNK_SIZE,
            settings=SETTINGS,
            hosts={name: spaces.address(name) for name in NODES} if spaces else None,
            launchers=launchers,
        )
    )
    return cluster, Surgeon(cluster, spaces, disks, times)


def _steps(seed: int, history: History, logs: Logs) -> list[Step]:
    yards = [
        YardWorker(number, seed, history, YARDS, is_reader=number >= YARD_CLIENTS).step
        for number in range(YARD_CLIENTS + YARD_READERS)
    ]
    books = [BookWorker(number, seed, history, BOOKS).step for number in range(BOOK_CLIENTS)]
    return [*yards, *books, *(LogWorker(number, seed, history, logs, LOGS).step for number in range(LOG_CLIENTS))]


class _Worker:
    """A thread that steps until the run ends. An error that `History` does not take is a bug, kept in `crash`."""

    def __init__(self, cluster: ClusterUnderTest, step: Step, stop: threading.Event) -> None:
        self.crash: Exception | None = None
        self._cluster, self._step, self._stop = cluster, step, stop
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._cluster.client(timeout_s=CALL_TIMEOUT_S) as client:
                while not self._stop.wait(THINK_S):
                    self._step(client)
        except Exception as error:  # noqa: BLE001 - a thread root; the run raises it
            self.crash = error


def _perform(plan: Plan, surgeon: Surgeon, duration_s: float, late_s: float) -> None:
    """Break both sides by plan, each in a thread, until the time is over and all is undone."""
    sides = _Sides(surgeon, duration_s, late_s)
    threads = [
        threading.Thread(target=sides.run, args=(faults,), daemon=True) for faults in (plan.masters, plan.servers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sides.crash is not None:
        raise sides.crash


class _Sides:
    """Performs the faults of a side one after the other, each at its time or as soon as the one before it is healed."""

    def __init__(self, surgeon: Surgeon, duration_s: float, late_s: float) -> None:
        self.crash: Exception | None = None
        self._surgeon = surgeon
        self._began_s, self._duration_s, self._late_s = time.monotonic(), duration_s, late_s
        self._servers = threading.Lock()  # held while a chunk server is broken

    def run(self, faults: Sequence[Fault]) -> None:
        try:
            for fault in faults:
                if fault.begin_s >= self._duration_s or not self._wait_for(fault.begin_s) or self.crash is not None:
                    break
                with self._servers if fault.kind in TOUCHES_CHUNK_SERVERS else contextlib.nullcontext():
                    self._perform(fault)
            self._wait_for(self._duration_s)
        except Exception as error:  # noqa: BLE001 - a thread root; the run raises it
            self.crash = error

    def _perform(self, fault: Fault) -> None:
        undo = self._surgeon.begin(fault)
        try:
            time.sleep(fault.end_s - fault.begin_s)
        finally:
            undo()

    def _wait_for(self, at_s: float) -> bool:
        """Wait for a moment of the run; False when there is no time left for a fault after it."""
        time.sleep(max(0.0, self._began_s + at_s - time.monotonic()))
        return time.monotonic() < self._began_s + self._duration_s + self._late_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Run seeds until the time is over, print each verdict; the exit code is 1 when one is broken."""
    parser = argparse.ArgumentParser(prog="python -m dfs.testing.chaos.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed; the others follow it")
    parser.add_argument("--seconds", type=float, default=30.0, help="of one run")
    parser.add_argument("--minutes", type=float, default=0.0, help="go on with further seeds for so long")
    parser.add_argument("--processes-only", action="store_true", help="leave links, disks and clocks alone")
    parser.add_argument("--json", type=Path, help="write all verdicts into this file, a line each")
    given = parser.parse_args(arguments)
    has_all = not given.processes_only
    means = Means(
        network=has_all and namespaces.is_permitted(),
        disks=has_all and small_disks.is_permitted(),
        clocks=has_all and clocks.is_possible(),
    )
    if not means.network:
        print("links are not cut in this run: that needs root, iproute2 and network namespaces")  # noqa: T201
    if not means.disks:
        print("disks are not broken in this run: that needs root, loop devices and ext4")  # noqa: T201
    if not means.clocks:
        print("clocks are not moved in this run: that needs a C compiler and the GNU C library")  # noqa: T201
    end_s, seed, is_clean = time.monotonic() + 60 * given.minutes, given.seed, True
    while True:
        kept = KEPT / f"chaos-{seed}"
        verdict = run_chaos(seed, given.seconds, means=means, keep=kept)
        print(verdict.text(), flush=True)  # noqa: T201 - this is the program's output
        if not verdict.is_clean:
            print(f"  the faults and the logs of all daemons are in {kept}", flush=True)  # noqa: T201
        if given.json is not None:
            with given.json.open("ab") as file:
                file.write(verdict.json().replace(b"\n", b"") + b"\n")
        is_clean = is_clean and verdict.is_clean
        seed += 1
        if time.monotonic() >= end_s:
            return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
