"""May threads meet a message for the first time together?

msgspec ends the process when two threads make decoders of one struct class at the same time (see dfs/decoders.py), so
each trial is a process of its own.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

TRIAL = """
import os, threading

import msgspec
from {module} import {maker} as make_decoder

is_half_known, is_met, is_made = threading.Event(), threading.Event(), threading.Event()


def number() -> type:
    '''What msgspec calls in the midst of finding out about `Part`.'''
    is_half_known.set()
    is_met.wait({wait})
    return int


class Inner(msgspec.Struct, array_like=True):
    number: "number()"


class Part(msgspec.Struct, array_like=True):
    inner: Inner


class First(msgspec.Struct, array_like=True):
    part: Part


class Second(msgspec.Struct, array_like=True):
    part: Part


def meet(kind: type) -> None:
    decoder = make_decoder(kind)
    found = decoder.decode(msgspec.msgpack.encode(kind(Part(Inner(7)))))
    assert found == kind(Part(Inner(7)))
    is_met.set()
    os.write(1, kind.__name__.encode() + b"\\n")


first = threading.Thread(target=meet, args=(First,))
first.start()
assert is_half_known.wait(20)
{second}
first.join()
"""
IN_ANOTHER_THREAD = """
second = threading.Thread(target=meet, args=(Second,))
second.start()
second.join()
"""
IN_A_FORK = """
if not (child := os.fork()):
    is_met = threading.Event()  # the first thread may be holding the lock of the other one just now
    meet(Second)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def trial(maker: str, second: str, wait: float = 1.0) -> subprocess.CompletedProcess[str]:
    """Have First and Second met; what runs in the midst of the first waits for the second, but not for ever."""
    module, _, name = maker.rpartition(".")
    script = TRIAL.format(module=module, maker=name, second=second, wait=wait)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("second", [IN_ANOTHER_THREAD, IN_A_FORK], ids=["thread", "fork"])
def test_decoders_of_the_same_parts_can_be_made_at_the_same_time(second: str) -> None:
    result = trial("dfs.decoders.msgpack_decoder", second)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split()) == ["First", "Second"]


@pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="a fault of the library: when it is gone, dfs/decoders.py can go, too"
)
def test_msgspec_itself_lets_threads_make_decoders_at_the_same_time() -> None:
    result = trial(
        "msgspec.msgpack.Decoder", IN_ANOTHER_THREAD, wait=20.0
    )  # nothing waits that long: it is met, or dies
    if result.returncode not in (0, -signal.SIGSEGV):
        raise ValueError(f"the trial itself failed: {result.stderr}")
    assert result.returncode == 0
