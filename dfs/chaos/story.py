"""What happened in a run besides the calls: the faults as they were, what was left out, and why it ended.

Owns: these facts. Refuses to know: how they came about, and what they mean (dfs.chaos.verdict).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Moment:
    """A fault as it was: seconds since the begin of the run. `whole_s`: when all was well again."""

    fault: str
    targets: tuple[str, ...]
    struck_s: float
    lifted_s: float
    whole_s: float


@dataclass(slots=True)
class Story:
    """What happened. `stopped`: why the run ended early, "" when it did not; `left`: what could not be undone."""

    began_s: float
    moments: list[Moment] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    stopped: str = ""
    ended_s: float = 0.0
    left: list[str] = field(default_factory=list)
