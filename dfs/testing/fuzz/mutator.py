"""Bytes that nobody meant, made from sound ones by chance: quick enough for every run of the tests.

Owns: the kinds of damage. Refuses to know: parsers. A coverage-guided fuzzer goes deeper: dfs.testing.fuzz.run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

SIZE_MAX = 16 * 1024  # bytes
DAMAGES_MAX = 6  # of one input
_INTERESTING = (b"\0", b"\x7f", b"\x80", b"\xff", b"\xff" * 4, b"\xc0", b"\xdd\xff\xff\xff\xff", b"\n", b"9" * 25)


def damaged(samples: Sequence[bytes], seed: int, count: int) -> Iterator[bytes]:
    """Yield every sample, then `count` inputs made from them; the same for the same seed."""
    yield from samples
    rng = random.Random(seed)  # noqa: S311 - a seed must replay
    for _ in range(count):
        data = rng.choice(samples) if samples and rng.random() < 0.95 else rng.randbytes(rng.randrange(200))
        for _ in range(rng.randint(1, DAMAGES_MAX)):
            data = _damage(data, samples, rng)
        yield data[:SIZE_MAX]


def _damage(data: bytes, samples: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 1, 2, 4, 16, 64)))
    match rng.randrange(7):
        case 0:  # a flipped bit
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :] if at < len(data) else data
        case 1:
            return data[:at] + rng.choice(_INTERESTING) + data[end:]
        case 2:
            return data[:at] + rng.randbytes(end - at) + data[end:]
        case 3:  # cut out
            return data[:at] + data[end:]
        case 4:  # cut off
            return data[:at]
        case 5:  # doubled
            return data[:end] + data[at:end] * rng.randint(1, 8) + data[end:]
        case _:  # a piece of another sample
            other = rng.choice(samples) if samples else data
            start = rng.randrange(len(other) + 1)
            return data[:at] + other[start : start + 64] + data[at:]
