"""Run seeds of the simulated masters: `python -m dfs.testing.simulate --seed 17` or `--count 2000 [--first 0]`.

Owns: the command line of the simulation. Refuses to know: what a seed means.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from dfs.testing.raft_simulation import Outcome, run

SEEDS_PER_TASK = 8  # handed to a process at a time


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dfs.testing.simulate", description="simulate masters under faults")
    parser.add_argument("--seed", type=int, help="replay one seed, twice, and tell its story")
    parser.add_argument("--count", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to run them in")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed)
    return run_many(range(options.first, options.first + options.count), max(1, options.jobs))


def replay(seed: int) -> int:
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
