"""Does the checker accept what one order explains, and nothing else? A naive judge tries all orders."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Hashable
from typing import Any

from dfs.chaos.linearizability import UNKNOWN, Call, Model, check, split


def step(state: Any, name: str, argument: Any) -> tuple[Any, Hashable]:
    """A register with read, write and compare-and-set."""
    if name == "read":
        return state, state
    if name == "write":
        return "ok", argument
    expected, new = argument
    return (True, new) if state == expected else (False, state)


REGISTER = Model(0, step)


def call(name: str, argument: Any, result: Any, begun: int, ended: int | None) -> Call:
    return Call("x", name, argument, result, begun, ended)


def is_linearizable(*calls: Call) -> bool:
    return check(calls, REGISTER).is_linearizable


def is_explained_by_some_order(calls: tuple[Call, ...]) -> bool:
    """All orders of all subsets that hold every call that ended."""
    ended = [one for one in calls if one.ended is not None]
    unknown = [one for one in calls if one.ended is None]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*ended, *chosen]):
                if respects_time(order) and explains(order):
                    return True
    return False


def respects_time(order: tuple[Call, ...]) -> bool:
    return not any(
        later.ended is not None and later.ended < earlier.begun
        for position, earlier in enumerate(order)
        for later in order[position + 1 :]
    )


def explains(order: tuple[Call, ...]) -> bool:
    state: Any = REGISTER.initial
    for one in order:
        result, state = REGISTER.step(state, one.name, one.argument)
        if one.result is not UNKNOWN and one.result != result:
            return False
    return True


def test_calls_one_after_another_are_linearizable() -> None:
    assert is_linearizable(call("write", 1, "ok", 1, 2), call("read", None, 1, 3, 4))


def test_empty_history_is_linearizable() -> None:
    assert is_linearizable()


def test_read_of_a_value_that_was_overwritten_before_is_refused() -> None:
    stale = (call("write", 1, "ok", 1, 2), call("write", 2, "ok", 3, 4), call("read", None, 1, 5, 6))
    verdict = check(stale, REGISTER)
    assert not verdict.is_linearizable
    assert "read(None)" in verdict.story


def test_lost_write_is_refused() -> None:
    assert not is_linearizable(call("write", 1, "ok", 1, 2), call("read", None, 0, 3, 4))


def test_write_that_overlaps_may_be_seen_or_not() -> None:
    for seen in (0, 1):
        assert is_linearizable(call("write", 1, "ok", 1, 4), call("read", None, seen, 2, 3))


def test_value_that_was_seen_and_then_vanished_is_refused() -> None:
    assert not is_linearizable(call("write", 1, "ok", 1, 6), call("read", None, 1, 2, 3), call("read", None, 0, 4, 5))


def test_unknown_write_may_happen_late_or_never() -> None:
    write = call("write", 1, UNKNOWN, 1, None)
    assert is_linearizable(write, call("read", None, 0, 2, 3))
    assert is_linearizable(write, call("read", None, 0, 2, 3), call("read", None, 1, 4, 5))


def test_unknown_write_happens_at_most_once() -> None:
    assert not is_linearizable(
        call("write", 1, UNKNOWN, 1, None),
        call("read", None, 1, 2, 3),
        call("write", 2, "ok", 4, 5),
        call("read", None, 1, 6, 7),
    )


def test_unknown_write_does_not_happen_before_it_began() -> None:
    assert not is_linearizable(call("read", None, 1, 1, 2), call("write", 1, UNKNOWN, 3, None))


def test_compare_and_set_that_two_clients_won_is_refused() -> None:
    assert not is_linearizable(call("cas", (0, 1), True, 1, 4), call("cas", (0, 2), True, 2, 3))


def test_two_reads_that_saw_two_writes_in_opposite_orders_are_refused() -> None:
    assert not is_linearizable(
        call("write", 1, "ok", 1, 12),
        call("write", 2, "ok", 2, 13),
        call("read", None, 1, 3, 4),
        call("read", None, 2, 5, 6),
        call("read", None, 1, 7, 8),
    )


def test_checker_agrees_with_a_judge_that_tries_all_orders() -> None:
    rng = random.Random(5)
    verdicts = []
    for _ in range(600):
        calls = random_history(rng)
        verdict = check(calls, REGISTER).is_linearizable
        assert verdict == is_explained_by_some_order(calls), "\n".join(map(str, calls))
        verdicts.append(verdict)
    assert 100 < sum(verdicts) < 500, "both verdicts are exercised"


def random_history(rng: random.Random) -> tuple[Call, ...]:
    count = rng.randint(2, 5)
    moments = rng.sample(range(100), 2 * count)
    calls = []
    for number in range(count):
        begun, ended = sorted(moments[2 * number : 2 * number + 2])
        is_unknown = rng.random() < 0.2
        name = rng.choice(("read", "write", "cas"))
        argument: Any = None
        result: Any = rng.randrange(3)
        if name == "write":
            argument, result = rng.randrange(1, 3), "ok"
        elif name == "cas":
            argument, result = (rng.randrange(3), rng.randrange(3)), rng.random() < 0.5
        calls.append(call(name, argument, UNKNOWN if is_unknown else result, begun, None if is_unknown else ended))
    return tuple(calls)


def test_long_history_of_one_register_is_checked_quickly() -> None:
    rng = random.Random(6)
    state, calls = 0, []
    for number in range(3000):  # at most five overlap
        begun, ended = 10 * number - rng.randrange(20), 10 * number + rng.randrange(1, 20)
        if rng.random() < 0.5:
            state = number + 1
            calls.append(call("write", state, "ok", begun, ended))
        else:
            calls.append(call("read", None, state, begun, ended))
    assert is_linearizable(*calls)


def test_keys_are_checked_apart() -> None:
    calls = [Call(key, "write", 1, "ok", number, number + 1) for number, key in enumerate("abab")]
    assert {key: len(found) for key, found in split(calls).items()} == {"a": 2, "b": 2}


def test_a_long_history_takes_memory_in_proportion_to_its_length() -> None:
    """Half an hour of chaos is a hundred thousand calls on one object; sets of them as bit masks would be gigabytes."""
    rng = random.Random(5)
    calls: list[Call] = []
    running: list[tuple[str, Any, int]] = []
    value, event = 0, 0
    for number in range(20_000):
        event += 1
        running.append((rng.choice(("read", "write")), number, event))
        if len(running) == 4:
            event += 1
            name, argument, begun = running.pop(rng.randrange(4))
            value = argument if name == "write" else value
            calls.append(call(name, argument, "ok" if name == "write" else value, begun, event))
    tracemalloc.start()
    try:
        assert is_linearizable(*calls)
        assert tracemalloc.get_traced_memory()[1] < 1_500 * len(calls)  # bytes; a bit mask alone would be up to 2,500
    finally:
        tracemalloc.stop()
