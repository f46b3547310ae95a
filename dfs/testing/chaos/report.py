"""Turn the verdicts of chaos runs into one page that anyone can read and make again: docs/reliability.md.

Owns: the sums and the words of the page. Refuses to know: how the runs were made.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dfs.chaos.verdict import at_share
from dfs.decoders import json_decoder
from dfs.testing.chaos.verdict import Verdict

_HEAD = """# Reliability

Made by `make report`; do not edit. Clusters of three masters and four chunk servers (`replicas_min = 2`), real
processes, were broken by seeded plans while twelve clients worked on a few contended paths. Then a machine judged:
names linearizable, contents whole and linearizable, every appended record there exactly once and in an order that
agrees with the clock, no read failed while a majority of masters and one replica lived, no call took effect that
said it had not. A run is repeated by its seed: `make chaos SEED=n MINUTES=1`. That these judges find what they look
for is shown by tests/chaos/test_seeded_bugs.py: with one safety taken out of the cluster, each calls it broken.
"""


def report(verdicts: Sequence[Verdict], commit: str, simulated: str) -> str:
    """Return the page (Markdown)."""
    calls: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for verdict in verdicts:
        calls.update(verdict.calls)
        faults.update(verdict.faults)
    gaps = sorted(gap_s for verdict in verdicts for gap_s in verdict.write_gaps_s)
    findings = [words for verdict in verdicts for words in (*verdict.broken, *verdict.reads_failed)]
    seeds = ", ".join(str(verdict.seed) for verdict in verdicts)
    minutes = sum(verdict.duration_s for verdict in verdicts) / 60
    refused = sum(count for name, count in calls.items() if " failed" in name)
    unknown = sum(count for name, count in calls.items() if name.endswith(" unknown"))
    lines = [
        _HEAD,
        "| what | figure |",
        "| --- | --- |",
        f"| commit | {commit} |",
        f"| runs | {len(verdicts)}, {minutes:.0f} minutes together; seeds {seeds} |",
        f"| calls judged | {calls.total() - refused} |",
        f"| calls without a known outcome | {unknown} |",
        f"| calls refused, surely without effect | {refused} |",
        f"| faults injected | {faults.total()} |",
        f"| promises found broken | {sum(len(verdict.broken) for verdict in verdicts)} |",
        f"| reads failed while they could be answered | {sum(len(verdict.reads_failed) for verdict in verdicts)} |",
    ]
    if gaps:
        lines.append(
            f"| nobody could change anything after a leader was lost ({len(gaps)} times) | median "
            f"{at_share(gaps, 0.5):.2f} s, p99 {at_share(gaps, 0.99):.2f} s, max {gaps[-1]:.2f} s |"
        )
    if simulated:
        lines.append(f"| masters simulated under faults (`make sim`) | {simulated} |")
    lines += ["", "| fault | times |", "| --- | --- |"]
    lines += [f"| {kind.replace('_', ' ')} | {count} |" for kind, count in sorted(faults.items())]
    lines += ["", "| call | outcome | times |", "| --- | --- | --- |"]
    for name, count in sorted(calls.items()):
        call, _, outcome = name.partition(" ")
        lines.append(f"| {call} | {outcome} | {count} |")
    if findings:
        lines += ["", "## Found broken", "", *(f"    {line}" for words in findings for line in words.splitlines())]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page to stdout; the exit code is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m dfs.testing.chaos.report", description=__doc__)
    parser.add_argument("verdicts", type=Path, help="what dfs.testing.chaos.run --json wrote")
    parser.add_argument("--commit", default="not told")
    parser.add_argument("--simulated", type=Path, help="what dfs.testing.simulate printed")
    given = parser.parse_args(arguments)
    decoder = json_decoder(Verdict)
    verdicts: list[Verdict] = [decoder.decode(line) for line in given.verdicts.read_bytes().splitlines()]
    simulated = given.simulated.read_text(encoding="utf-8").splitlines()[-1] if given.simulated else ""
    sys.stdout.write(report(verdicts, given.commit, simulated))
    return 0 if all(verdict.is_clean for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
