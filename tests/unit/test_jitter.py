"""Does dfs leave the random numbers of the program that uses it alone?"""

from __future__ import annotations

import random
import subprocess
import sys

from dfs import jitter


def test_draws_change_no_sequence_of_the_program_and_follow_no_seed_of_it() -> None:
    random.seed(1)
    expected = random.random()
    random.seed(1)
    drawn = [jitter.draw() for _ in range(100)]
    assert random.random() == expected
    random.seed(1)
    assert drawn != [jitter.draw() for _ in range(100)]
    assert all(0 <= number < 1 for number in drawn)


def test_a_forked_child_draws_other_numbers() -> None:
    script = "import os; from dfs.jitter import draw; child = os.fork(); "
    script += "os.write(1, f'{draw()!r}\\n'.encode()); child and os.wait()"
    drawn = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert len(set(drawn.split())) == 2
