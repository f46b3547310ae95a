"""Run seeds of the simulated masters: `python -m dfs.testing.simulate --seed 17` or `--count 2000 [--first 0]`.

Owns: the command line of the simulation. Refuses to know: what a seed means, and what a mutation takes away.

With `--mutation NAME` (or `all`) the masters lack a safety: the seeds are run until one finds it out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from dfs.testing.raft_mutations import MUTATIONS
from dfs.testing.raft_simulation import Outcome, run

SEEDS_PER_TASK = 8  # handed to a process at a time


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dfs.testing.simulate", description="simulate masters under faults")
    parser.add_argument("--seed", type=int, help="replay one seed, twice, and tell its story")
    parser.add_argument("--count", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to run them in")
    parser.add_argument("--mutation", choices=[*MUTATIONS, "all"], help="a safety to take away (or all in turn)")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.mutation)
    seeds, jobs = range(options.first, options.first + options.count), max(1, options.jobs)
    if options.mutation is None:
        return run_many(seeds, jobs)
    names = list(MUTATIONS) if options.mutation == "all" else [options.mutation]
    return max([find_out(name, seeds, jobs) for name in names])


def run_mutated(mutation: str, seed: int) -> Outcome:
    """Run a seed on masters that lack a safety."""
    with MUTATIONS[mutation].installed():
        return run(seed)


def replay(seed: int, mutation: str | None) -> int:
    with MUTATIONS[mutation].installed() if mutation is not None else contextlib.nullcontext():
        return _replay(seed)


def _replay(seed: int) -> int:
    outcome = run(seed, tell=_print)
    _print(_summary(outcome))
    again = run(seed)
    if again.digest != outcome.digest:
        _print(f"NOT REPRODUCIBLE: the second run of the seed has the digest {again.digest}")
        return 2
    return 0 if outcome.failure is None else 1


def run_many(seeds: range, jobs: int) -> int:
    begun_s = time.monotonic()
    failed: list[int] = []
    calls = 0
    with ProcessPoolExecutor(jobs) as pool:
        for outcome in pool.map(run, seeds, chunksize=SEEDS_PER_TASK) if jobs > 1 else map(run, seeds):
            calls += outcome.done
            if outcome.failure is not None:
                failed.append(outcome.seed)
                _print(_summary(outcome))
    seconds = time.monotonic() - begun_s
    _print(f"{len(seeds)} seeds, {calls} calls, {seconds:.1f} s ({seconds / max(1, len(seeds)):.3f} s each)")
    if failed:
        _print(f"{len(failed)} failed; look into one: make sim SEED={failed[0]}")
    return 1 if failed else 0


def find_out(mutation: str, seeds: range, jobs: int) -> int:
    """Look for the first seed that fails without a safety; return 0 when there is one."""
    _print(f"{mutation} ({MUTATIONS[mutation].faults}): without {MUTATIONS[mutation].takes_away}")
    begun_s = time.monotonic()
    attempt = functools.partial(run_mutated, mutation)
    with ProcessPoolExecutor(jobs) as pool:
        for first in range(
            seeds.start, seeds.stop, jobs * SEEDS_PER_TASK
        ):  # a few at a time: the first failure ends it
            some = range(first, min(seeds.stop, first + jobs * SEEDS_PER_TASK))
            for outcome in pool.map(attempt, some, chunksize=max(1, SEEDS_PER_TASK // 2)):
                if outcome.failure is not None:
                    _print(f"  found out after {outcome.seed - seeds.start + 1} seeds, {_summary(outcome)}")
                    return 0
    _print(f"  NOT FOUND OUT by {len(seeds)} seeds in {time.monotonic() - begun_s:.0f} s")
    return 1


def _summary(outcome: Outcome) -> str:
    return (
        f"seed {outcome.seed}: {outcome.failure or 'all rules kept'}\n  {outcome.done} calls, {outcome.unknown} with "
        f"unknown outcome, {outcome.steps} steps in {outcome.virtual_s:.1f} virtual s, digest {outcome.digest}, "
        f"faults {outcome.faults}"
    )


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
