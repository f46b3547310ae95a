"""Would the judges notice? With one safety taken out of a real cluster, a short run must find a broken promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfs.testing.chaos.namespaces import is_permitted
from dfs.testing.chaos.run import run_chaos
from dfs.testing.chaos.sabotage import SABOTEUR
from dfs.testing.chaos.schedule import FaultKind, Means, Plan, one_after_another

pytestmark = pytest.mark.timeout(400)

PLANS = {
    "fsync_gate": Plan(one_after_another(FaultKind.KILL_ALL_MASTERS, FaultKind.KILL_ALL_MASTERS), ()),
    "read_barrier": Plan(one_after_another(FaultKind.ISOLATE_LEADER, FaultKind.ISOLATE_LEADER, lasts_s=3), ()),
    "session_dedupe": Plan(one_after_another(*[FaultKind.DEAFEN_LEADER] * 3, lasts_s=2), ()),
    "sealing_fence": Plan((), ()),  # copies of a log seal it all the time
    "version_pin": Plan((), ()),  # writers and readers of the same few files are enough
    "block_checksums": Plan((), one_after_another(*[FaultKind.FLIP_A_BIT] * 10, lasts_s=0.1, calm_s=0.2)),
}
RUNS_MAX = 3
NEEDS_NETWORK = {"read_barrier", "session_dedupe"}


@pytest.mark.parametrize("safety", sorted(SABOTEUR.safeties))
def test_a_cluster_without_one_of_its_safeties_is_called_broken(safety: str, tmp_path: Path) -> None:
    plan = PLANS[safety]
    if safety in NEEDS_NETWORK and not is_permitted():
        pytest.skip("cutting links needs root and network namespaces")
    lasts_s = max((fault.end_s for fault in plan.masters + plan.servers), default=3.0) + 2
    for seed in range(1, 1 + RUNS_MAX):  # on a busy machine few calls fall into a run, and the bug needs two that meet
        folder = tmp_path / str(seed)
        folder.mkdir()
        means = Means(network=safety in NEEDS_NETWORK)
        kept = tmp_path / f"kept{seed}"
        verdict = run_chaos(
            seed, lasts_s, folder=folder, plan=plan, means=means, without=safety, late_s=60, keep=kept
        )  # each fault is performed, however busy the machine is
        contradictions = [words for words in verdict.reads_failed if "contradict themselves" in words]
        if verdict.broken or contradictions:
            words = (kept / "verdict.txt").read_text()
            assert words.startswith(verdict.text())
            assert words.count(" .. ") == len(plan.masters) + len(plan.servers), "the faults, each with its times"
            assert "raft_member" in (kept / "m1.log").read_text()
            return
    pytest.fail(f"not noticed in {RUNS_MAX} runs; the last: {verdict.text()}")
