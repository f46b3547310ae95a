"""The random numbers that spread attempts over time, drawn apart from those of the program that uses dfs.

Owns: one generator for all threads. Refuses to know: what is tried again, and when.

Python's shared generator is the program's: one that seeds it must find its sequence unchanged by our threads, and its
clients must not back off in step for having been seeded alike.
"""

from __future__ import annotations

import os
import random

_generator = random.Random()  # noqa: S311 - nothing secret is drawn
os.register_at_fork(after_in_child=_generator.seed)  # else parent and child would go in step


def draw() -> float:
    """Return a number from 0 to below 1."""
    return _generator.random()
