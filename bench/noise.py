"""Whether the machine was quiet enough for its figures to mean something.

Owns: the limits and the verdict. Refuses to know: how a calibration is made (bench.machine).

Four signs: the same arithmetic took unequally long, so did a small synced write, somebody else used the processors
while the benchmark stood still, or the hypervisor took time away. Each limit is about twice what a quiet machine shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from bench.figures import Calibration

ARITHMETIC_MAX: Final = 1.3  # slowest over median
FSYNC_MAX: Final = 4.0  # slowest over median: disks vary more
OTHERS_MAX: Final = 0.25  # processors, in the median: one outlier is not a neighbour
STOLEN_MAX: Final = 0.05


def verdict(calibrations: Sequence[Calibration]) -> str:
    """Return why nothing should be concluded, or nothing when the machine was quiet."""
    if not calibrations:
        return "the machine was never looked at"
    reasons = []
    for what, times, limit in (
        ("arithmetic", [each.arithmetic_s for each in calibrations], ARITHMETIC_MAX),
        ("a small fsync", [each.fsync_s for each in calibrations], FSYNC_MAX),
    ):
        factor = max(times) / statistics.median(times)
        if factor > limit:
            reasons.append(f"{what} once took {factor:.1f} times its median")
    others = statistics.median(each.others for each in calibrations)
    if others > OTHERS_MAX:
        reasons.append(f"others used {others:.1f} processors")
    stolen = max(each.stolen for each in calibrations)
    if stolen > STOLEN_MAX:
        reasons.append(f"the hypervisor took {stolen:.0%} of the time")
    return "; ".join(reasons)
