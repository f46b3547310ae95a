"""Does every promise hold while a real cluster is broken in every way that it must bear? `make chaos` runs longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfs.testing.chaos import clocks, small_disks
from dfs.testing.chaos.namespaces import Namespaces, is_permitted
from dfs.testing.chaos.run import run_chaos
from dfs.testing.chaos.schedule import DEPOSES_THE_LEADER, FaultKind, Means, Plan, one_after_another

pytestmark = pytest.mark.timeout(300)
LATE_S = 60.0  # that a busy machine may take for the planned faults, and their recovery, in addition

needs_network = pytest.mark.skipif(
    not is_permitted(), reason="cutting links needs root and network namespaces; run as root on Linux with iproute2"
)


def test_masters_killed_paused_wiped_and_all_at_once_break_no_promise(tmp_path: Path) -> None:
    masters = one_after_another(
        FaultKind.KILL_LEADER,
        FaultKind.PAUSE_LEADER,
        FaultKind.WIPE_FOLLOWER,
        FaultKind.KILL_TWO_MASTERS,
        FaultKind.RESTART_LEADER,
        FaultKind.KILL_ALL_MASTERS,
        FaultKind.KILL_EVERYTHING,
    )
    servers = one_after_another(FaultKind.KILL_CHUNK_SERVER, FaultKind.FLIP_A_BIT, FaultKind.PAUSE_CHUNK_SERVER)
    verdict = run_chaos(1, 20, folder=tmp_path, plan=Plan(masters, servers), late_s=LATE_S)
    assert verdict.is_clean, verdict.text()
    assert sum(verdict.faults.values()) >= 5, verdict.text()  # on a busy machine recovery may take the time of some
    assert len(verdict.write_gaps_s) >= 1, verdict.text()
    assert all(verdict.calls.get(f"{name} done", 0) > 5 for name in ("touch", "move", "put", "read", "append")), (
        verdict.text()
    )


@needs_network
def test_a_leader_cut_off_from_its_followers_serves_no_stale_read_and_loses_no_write(tmp_path: Path) -> None:
    masters = one_after_another(FaultKind.ISOLATE_LEADER, FaultKind.DEAFEN_LEADER, FaultKind.ISOLATE_LEADER, lasts_s=3)
    servers = one_after_another(FaultKind.CUT_CHUNK_SERVER)
    verdict = run_chaos(2, 14, folder=tmp_path, plan=Plan(masters, servers), means=Means(network=True), late_s=LATE_S)
    assert verdict.is_clean, verdict.text()
    assert sum(count for kind, count in verdict.faults.items() if FaultKind(kind) in DEPOSES_THE_LEADER) >= 2


@pytest.mark.skipif(not small_disks.is_permitted(), reason="small disks need root, loop devices and ext4")
def test_lost_power_failing_disks_and_full_ones_break_no_promise(tmp_path: Path) -> None:
    masters = one_after_another(
        FaultKind.CUT_LEADERS_POWER, FaultKind.FILL_LEADERS_DISK, FaultKind.FAIL_LEADERS_DISK, FaultKind.CUT_ALL_POWER
    )
    servers = one_after_another(
        FaultKind.FAIL_CHUNK_SERVERS_DISK, FaultKind.FILL_CHUNK_SERVERS_DISK, FaultKind.CUT_CHUNK_SERVERS_POWER
    )
    verdict = run_chaos(3, 12, folder=tmp_path, plan=Plan(masters, servers), means=Means(disks=True), late_s=LATE_S)
    assert verdict.is_clean, verdict.text()
    kinds = {FaultKind(kind) for kind in verdict.faults}
    assert len(kinds & {FaultKind.CUT_LEADERS_POWER, FaultKind.FAIL_CHUNK_SERVERS_DISK}) == 2, verdict.text()


@pytest.mark.skipif(not clocks.is_possible(), reason="moving clocks needs a C compiler and the GNU C library")
def test_clocks_that_jump_break_no_promise(tmp_path: Path) -> None:
    masters = one_after_another(*[FaultKind.JUMP_LEADERS_CLOCK] * 4, calm_s=0.3)
    servers = one_after_another(*[FaultKind.JUMP_CHUNK_SERVERS_CLOCK] * 4, calm_s=0.3)
    verdict = run_chaos(4, 7, folder=tmp_path, plan=Plan(masters, servers), means=Means(clocks=True), late_s=LATE_S)
    assert verdict.is_clean, verdict.text()
    assert verdict.faults.get("jump_leaders_clock", 0) >= 2, verdict.text()


@needs_network
def test_a_network_of_namespaces_is_gone_with_its_block() -> None:
    links = Path("/sys/class/net")
    with Namespaces(("a", "b")) as network:
        bridge = network.bridge
        assert (links / bridge).exists()
    assert not (links / bridge).exists()
