"""Numbers with signs and units as people type them after options: `+10M`, `-3`, `64K`.

Owns: their syntax and comparison. Refuses to know: what is measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import click

SIZE_MAX: Final = 1 << 62  # bytes; more is a slip of the pen

_SIZE: Final = re.compile(r"(\d{1,19})\s*(?:([ckmgtb]?)(?:i?b)?)", re.IGNORECASE)
_SCALE: Final = {"": 1, "b": 1, "c": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NUMBER: Final = re.compile(r"\d{1,12}")


def parse_size(text: str) -> int:
    """Return bytes for `100`, `64K`, `64KiB`, `10M`, `1G`; raise `ValueError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write bytes, or a number with K, M, G or T (powers of 1024)")
    size = int(match[1]) * _SCALE[match[2].lower()]
    if size > SIZE_MAX:
        raise ValueError(f"{text!r} is larger than any file can be")
    return size


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes; with a leading sign it is kept (`head -c -1K`, `tail -c +5`)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True, slots=True)
class Bound:
    """`sign` "+": more than `value`; "-": less; "": just that many units of `unit`."""

    sign: str
    value: int
    unit: int = 1

    def holds_for_size(self, size: int) -> bool:
        """Compare bytes exactly; without a sign the size is rounded up to the unit, as `find` does."""
        if self.sign == "+":
            return size > self.value * self.unit
        if self.sign == "-":
            return size < self.value * self.unit
        return -(-size // self.unit) == self.value

    def holds_for_age(self, age_s: float) -> bool:
        """Compare whole units of age, as `find -mtime` does: +1 is at least two days old."""
        age = int(age_s // self.unit)
        return age > self.value if self.sign == "+" else age < self.value if self.sign == "-" else age == self.value


class SizeBound(click.ParamType):  # type: ignore[type-arg]
    """`+10M`, `-1K`, `0`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Bound:
        if isinstance(value, Bound):
            return value
        sign, rest = _signed(value)
        match = _SIZE.fullmatch(rest)
        if match is None:
            self.fail(f"{value!r} is not a size; write +10M for more, -10M for less", param, ctx)
        return Bound(sign, int(match[1]), _SCALE[match[2].lower()])


class AgeBound(click.ParamType):  # type: ignore[type-arg]
    """`+3`, `-1`, `0` in units of `unit_s` seconds."""

    name = "age"

    def __init__(self, unit_s: int) -> None:
        self._unit_s = unit_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Bound:
        if isinstance(value, Bound):
            return value
        sign, rest = _signed(value)
        if not _NUMBER.fullmatch(rest):
            self.fail(f"{value!r} is not an age; write +3 for older than 3, -3 for younger", param, ctx)
        return Bound(sign, int(rest), self._unit_s)


def _signed(text: str) -> tuple[str, str]:
    return (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
