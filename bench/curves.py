"""Points of cost over something that grows, and their JSON.

Owns: the schema. Refuses to know: how points are measured and drawn.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.figures import Machine


class Curve(msgspec.Struct, frozen=True):
    """One line of a plot."""

    plot: str  # "size", "count", "entries" or "clients"
    line: str
    x: tuple[int, ...]
    y: tuple[float, ...]


class Curves(msgspec.Struct, frozen=True):
    """All lines of one run."""

    commit: str
    machine: Machine
    curves: tuple[Curve, ...]

    def of(self, plot: str) -> list[Curve]:
        return [curve for curve in self.curves if curve.plot == plot]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Curves:
        """Return saved curves. Raises `ValueError` when they are not."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except msgspec.DecodeError as error:
            raise ValueError(f"{path} holds no curves: {error}") from None
