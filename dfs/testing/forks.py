"""A forked child that uses what its parent made: everything has to be refused, and nothing may wait.

Owns: the child, its end, and what it was told. Refuses to know: what is used.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from dfs.errors import DfsError

Use = Callable[[], object]


def is_refused_in_a_child(uses: Sequence[Use], ends: Sequence[Use], *, wait_s: float) -> bool:
    """Fork; return whether each of `uses` told the child to make a client of its own, and none of `ends` failed.

    A child that waits for anything is ended after `wait_s`, which counts as a failure.
    """
    child = os.fork()
    if not child:
        signal.alarm(int(wait_s))
        told = []
        try:
            for use in uses:
                try:
                    use()
                except DfsError as error:
                    told.append("make a new one in each process" in str(error))
            for end in ends:
                end()
        finally:
            os._exit(told != [True] * len(uses))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
